/* The call of a lookup, without a frame of Python.

   A `HotMethod` stands in the place of a coroutine function of the router, which it holds. Called plainly, that is with
   a router and three names, it returns a `Call`. Awaited, a call looks for a fresh entry and is done if there is one; else
   it begins a lookup and waits for that, if the lookup is plain (misses.c); at anything else it makes the coroutine and
   from then on hands everything to that. So the pure code decides every error and all that is not plain. The rules stand
   there:

       answer_from_cache   sfroute/_fronts/router.py      AsyncRouter.get_linked_pod
                           sfroute/_lookups/cache.py      when an entry is fresh
       answer_of           sfroute/_lookups/answers.py    entry_of

   To its caller a call is a coroutine: it has `send`, `throw`, `close` and `__await__`, may be awaited once, runs nothing
   before that, and warns if it never is. It belongs to who awaits it: one thread. */

#include "heart.h"

#include <stddef.h>
#include <time.h>

/* --- What it knows of the pure classes: set once by `learn_hits` --- */

static PyTypeObject *router_type, *entry_type, *epoch_type, *flight_type, *counts_type, *telemetry_type;

static PyObject *entry_of;

static struct {
    Py_ssize_t find, counts, telemetry; /* AsyncRouter */
    Py_ssize_t deadline, epoch, value;  /* Entry */
    Py_ssize_t healthy_until;           /* Epoch */
    Py_ssize_t hits;                    /* CacheCounts */
    Py_ssize_t hook;                    /* Telemetry.hits */
    Py_ssize_t answer;                  /* Flight.entry */
} at;

static PyObject *one, *monotonic;

/* --- The two types --- */

/* The coroutine function that it stands for, and what telemetry calls it: `__name__`. */
typedef struct {
    PyObject_HEAD
    PyObject *function;
    PyObject *operation;
    PyObject *attributes;
    vectorcallfunc vectorcall;
} HotMethod;

enum state { CREATED, RUNNING, SUSPENDED, OVER };

/* One call. `router` and `key`, (namespace, uid, service), are there until it is handed over to `coroutine`, or over.
   `wait` is there while it waits for a lookup that it has begun itself. */
typedef struct {
    PyObject_HEAD
    HotMethod *method;
    PyObject *router;
    PyObject *key;
    PyObject *wait;
    PyObject *coroutine;
    enum state state;
} Call;

static PyTypeObject hot_method_type, call_type;

/* Calls that are over and wait to be used again, as Python keeps its own small objects: a hit allocates nothing. */
enum { KEPT_CALLS = 32 };
static Call *kept_calls[KEPT_CALLS];
static int kept;

/* --- A hit --- */

/* `time.monotonic()`: seconds. -1 with an exception. */
static double
now(void)
{
#ifdef __linux__
    struct timespec instant;
    if (clock_gettime(CLOCK_MONOTONIC, &instant) == 0) {
        /* As Python does it, so that its instants and these compare. */
        return (double)((long long)instant.tv_sec * 1000000000 + instant.tv_nsec) / 1e9;
    }
#endif
    PyObject *instant_object = PyObject_CallNoArgs(monotonic);
    if (instant_object == NULL) {
        return -1.0;
    }
    double seconds = PyFloat_AsDouble(instant_object);
    Py_DECREF(instant_object);
    return seconds;
}

/* The float in a slot. NaN, which nothing is before, if it is none. */
static double
instant_in(PyObject *object, Py_ssize_t offset)
{
    PyObject *found = get_slot(object, offset);
    return found != NULL && PyFloat_CheckExact(found) ? PyFloat_AS_DOUBLE(found) : Py_NAN;
}

/* The entry under the key, if it may be served now: a new reference; else NULL. */
static PyObject *
fresh_entry(PyObject *router, PyObject *key, double *instant)
{
    *instant = now();

    PyObject *find = get_slot(router, at.find);
    if (find == NULL) {
        return NULL;
    }
    /* It is `dict.get` of the entries, so they can be asked without a call. */
    PyObject *entries = PyCFunction_CheckExact(find) ? PyCFunction_GET_SELF(find) : NULL;
    if (entries == NULL || !PyDict_CheckExact(entries)) {
        return NULL;
    }
    Py_INCREF(entries); /* a name may run code of its own when it is hashed */
    PyObject *entry = Py_XNewRef(PyDict_GetItemWithError(entries, key));
    Py_DECREF(entries);
    if (entry == NULL) {
        PyErr_Clear(); /* unhashable: the pure code names the argument */
        return NULL;
    }
    PyObject *epoch = Py_IS_TYPE(entry, entry_type) ? get_slot(entry, at.epoch) : NULL;
    if (epoch != NULL && Py_IS_TYPE(epoch, epoch_type)) {
        if (*instant < instant_in(entry, at.deadline) && *instant < instant_in(epoch, at.healthy_until)) {
            return entry;
        }
    }
    Py_DECREF(entry);
    return NULL;
}

/* One more hit. -1 with an exception. */
static int
count_hit(PyObject *router)
{
    PyObject *counts = get_slot(router, at.counts);
    PyObject *before = counts != NULL && Py_IS_TYPE(counts, counts_type) ? get_slot(counts, at.hits) : NULL;
    if (before == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a router without counts");
        return -1;
    }
    PyObject *after = PyNumber_Add(before, one);
    if (after == NULL) {
        return -1;
    }
    set_slot(counts, at.hits, after);
    Py_DECREF(after);
    return 0;
}

/* What telemetry is told of a hit, if it wants to know. -1 with an exception. */
static int
record_hit(Call *call, PyObject *entry, double began)
{
    PyObject *telemetry = get_slot(call->router, at.telemetry);
    PyObject *hook =
        telemetry != NULL && PyObject_TypeCheck(telemetry, telemetry_type) ? get_slot(telemetry, at.hook) : NULL;
    if (hook == NULL || !PyTuple_CheckExact(hook) || PyTuple_GET_SIZE(hook) != 2) {
        return 0;
    }
    Py_INCREF(hook);
    PyObject *start = PyFloat_FromDouble(began);
    PyObject *end = start == NULL ? NULL : PyFloat_FromDouble(now());
    PyObject *context = end == NULL || PyErr_Occurred() ? NULL : PyObject_CallNoArgs(PyTuple_GET_ITEM(hook, 1));
    PyObject *record = context == NULL ? NULL : PyTuple_Pack(6, call->method->operation, call->key, start, end, context, entry);
    PyObject *done = record == NULL ? NULL : PyObject_CallOneArg(PyTuple_GET_ITEM(hook, 0), record);
    int status = done == NULL ? -1 : 0;
    Py_XDECREF(done);
    Py_XDECREF(record);
    Py_XDECREF(context);
    Py_XDECREF(end);
    Py_XDECREF(start);
    Py_DECREF(hook);
    return status;
}

/* PYGEN_RETURN: the pod of a fresh entry. PYGEN_NEXT: there is none. PYGEN_ERROR: an exception. */
static PySendResult
answer_from_cache(Call *call, PyObject **pod, double *began)
{
    PyObject *entry = fresh_entry(call->router, call->key, began);
    if (entry == NULL) {
        return PyErr_Occurred() ? PYGEN_ERROR : PYGEN_NEXT;
    }
    PySendResult result = PYGEN_ERROR;
    if (count_hit(call->router) == 0 && record_hit(call, entry, *began) == 0) {
        *pod = Py_XNewRef(get_slot(entry, at.value));
        result = *pod == NULL ? PYGEN_ERROR : PYGEN_RETURN;
    }
    Py_DECREF(entry);
    return result;
}

/* --- A miss --- */

/* The pod that the lookup has found. NULL with its error. */
static PyObject *
answer_of(Call *call, PyObject *flight)
{
    PyObject *entry = PyObject_TypeCheck(flight, flight_type) ? get_slot(flight, at.answer) : NULL;
    if (entry != NULL && Py_IS_TYPE(entry, entry_type)) {
        Py_INCREF(entry);
    }
    else {
        entry = PyObject_CallFunctionObjArgs(entry_of, flight, call->method->operation, NULL);
    }
    PyObject *pod = entry == NULL ? NULL : Py_XNewRef(get_slot(entry, at.value));
    Py_XDECREF(entry);
    return pod;
}

/* Wait no longer, if it waits: nobody is to be woken for it. */
static void
stop_waiting(Call *call)
{
    if (call->wait != NULL) {
        leave_wait(call->wait);
        Py_CLEAR(call->wait);
    }
}

/* --- A call, as the coroutine that it seems to be --- */

static void
end_call(Call *call)
{
    call->state = OVER;
    stop_waiting(call);
    Py_CLEAR(call->router);
    Py_CLEAR(call->key);
    Py_CLEAR(call->coroutine);
}

/* Make the coroutine: from now on it decides. -1 with an exception. */
static int
hand_over(Call *call)
{
    stop_waiting(call);
    PyObject *key = call->key;
    PyObject *arguments[] = {
        call->router, PyTuple_GET_ITEM(key, 0), PyTuple_GET_ITEM(key, 1), PyTuple_GET_ITEM(key, 2)};
    call->coroutine = PyObject_Vectorcall(call->method->function, arguments, 4, NULL);
    Py_CLEAR(call->router);
    Py_CLEAR(call->key);
    return call->coroutine == NULL ? -1 : 0;
}

/* Begin a step, of which there is one at a time. -1 with an exception if the call cannot go on. */
static int
begin_step(Call *call)
{
    if (call->state == OVER) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return -1;
    }
    if (call->state == RUNNING) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return -1;
    }
    call->state = RUNNING;
    return 0;
}

/* The first step. */
static PySendResult
start(Call *call, PyObject **result)
{
    double began;
    PySendResult answer = answer_from_cache(call, result, &began);
    if (answer != PYGEN_NEXT) {
        return answer;
    }
    int begun = began < 0.0 ? -1 : begin_lookup(call->router, call->key, began, &call->wait);
    if (begun > 0) {
        *result = Py_NewRef(call->wait);
        return PYGEN_NEXT;
    }
    return begun < 0 || hand_over(call) < 0 ? PYGEN_ERROR : PyIter_Send(call->coroutine, Py_None, result);
}

/* A later step: what it waited for is there. */
static PySendResult
go_on(Call *call, PyObject *value, PyObject **result)
{
    if (call->coroutine != NULL) {
        return PyIter_Send(call->coroutine, value, result);
    }
    PyObject *flight = result_of_wait(call->wait);
    if (flight != NULL) {
        *result = answer_of(call, flight);
        Py_DECREF(flight);
    }
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

static PySendResult
call_send(PyObject *self, PyObject *value, PyObject **result)
{
    Call *call = (Call *)self;
    *result = NULL;
    if (call->state == CREATED && value != Py_None) {
        PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
        return PYGEN_ERROR;
    }
    bool first = call->state == CREATED;
    if (begin_step(call) < 0) {
        return PYGEN_ERROR;
    }
    PySendResult answer = first ? start(call, result) : go_on(call, value, result);
    if (answer == PYGEN_NEXT) {
        call->state = SUSPENDED;
    }
    else {
        end_call(call);
    }
    return answer;
}

/* What a generator's methods return: what it yields; or NULL with StopIteration, or with another exception. */
static PyObject *
yielded(PySendResult answer, PyObject *result)
{
    if (answer == PYGEN_RETURN) {
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
        Py_DECREF(result);
        if (stop != NULL) {
            PyErr_SetObject(PyExc_StopIteration, stop);
            Py_DECREF(stop);
        }
        return NULL;
    }
    return result;
}

static PyObject *
call_next(PyObject *self)
{
    PyObject *result;
    PySendResult answer = call_send(self, Py_None, &result);
    return yielded(answer, result);
}

static PyObject *
call_send_method(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult answer = call_send(self, value, &result);
    return yielded(answer, result);
}

/* Let the coroutine do it: a method of its own, called when the call is not over. */
static PyObject *
pass_on(Call *call, const char *method, PyObject *const *arguments, Py_ssize_t count)
{
    if (begin_step(call) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    if (call->coroutine != NULL || hand_over(call) == 0) {
        PyObject *bound = PyObject_GetAttrString(call->coroutine, method);
        result = bound == NULL ? NULL : PyObject_Vectorcall(bound, arguments, (size_t)count, NULL);
        Py_XDECREF(bound);
    }
    if (result == NULL) {
        end_call(call);
    }
    else {
        call->state = SUSPENDED;
    }
    return result;
}

static PyObject *
call_throw(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    return pass_on((Call *)self, "throw", arguments, count);
}

static PyObject *
call_close(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    Call *call = (Call *)self;
    if (call->state == SUSPENDED || call->state == RUNNING) {
        PyObject *done = pass_on(call, "close", NULL, 0);
        if (done == NULL) {
            return NULL;
        }
        Py_DECREF(done);
    }
    end_call(call);
    Py_RETURN_NONE;
}

static PyObject *
call_await(PyObject *self)
{
    enum state state = ((Call *)self)->state;
    if (state == SUSPENDED || state == RUNNING) {
        PyErr_SetString(PyExc_RuntimeError, "coroutine is being awaited already");
        return NULL;
    }
    return Py_NewRef(self);
}

/* `__name__` and `__qualname__`, which tasks show, and whatever else the coroutine has: `cr_frame`, say. */
static PyObject *
call_get(PyObject *self, PyObject *attribute)
{
    PyObject *found = PyObject_GenericGetAttr(self, attribute);
    if (found != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return found;
    }
    Call *call = (Call *)self;
    int of_function = PyUnicode_CompareWithASCIIString(attribute, "__name__") == 0
        || PyUnicode_CompareWithASCIIString(attribute, "__qualname__") == 0;
    PyObject *asked = of_function ? call->method->function : call->coroutine;
    if (asked != NULL) {
        PyErr_Clear();
        return PyObject_GetAttr(asked, attribute);
    }
    return NULL;
}

static PyObject *
call_repr(PyObject *self)
{
    PyObject *named = PyObject_GetAttrString(((Call *)self)->method->function, "__qualname__");
    PyObject *text = named == NULL ? NULL : PyUnicode_FromFormat("<coroutine object %U at %p>", named, self);
    Py_XDECREF(named);
    return text;
}

static int
call_traverse(PyObject *self, visitproc visit, void *arg)
{
    Call *call = (Call *)self;
    Py_VISIT(call->method);
    Py_VISIT(call->router);
    Py_VISIT(call->key);
    Py_VISIT(call->wait);
    Py_VISIT(call->coroutine);
    return 0;
}

static int
call_clear(PyObject *self)
{
    Call *call = (Call *)self;
    stop_waiting(call);
    Py_CLEAR(call->router);
    Py_CLEAR(call->key);
    Py_CLEAR(call->coroutine);
    return 0;
}

/* As a coroutine does: its caller has forgotten `await`. */
static void
warn_never_awaited(Call *call)
{
    PyObject *kind, *error, *trace;
    PyErr_Fetch(&kind, &error, &trace);
    PyObject *named = PyObject_GetAttrString(call->method->function, "__qualname__");
    if (named == NULL || PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%U' was never awaited", named) < 0) {
        PyErr_WriteUnraisable(call->method->function);
    }
    Py_XDECREF(named);
    PyErr_Restore(kind, error, trace);
}

static void
call_dealloc(PyObject *self)
{
    Call *call = (Call *)self;
    PyObject_GC_UnTrack(self);
    if (call->state == CREATED) {
        warn_never_awaited(call);
    }
    call_clear(self);
    Py_CLEAR(call->method);
    if (kept < KEPT_CALLS) {
        kept_calls[kept++] = call;
    }
    else {
        PyObject_GC_Del(self);
    }
}

static PyAsyncMethods call_as_async = {.am_await = call_await, .am_send = call_send};

static PyMethodDef call_methods[] = {
    {"send", call_send_method, METH_O, "Go on, as a coroutine does."},
    {"throw", (PyCFunction)(void (*)(void))call_throw, METH_FASTCALL, "Raise an exception where it waits."},
    {"close", call_close, METH_NOARGS, "End it."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject call_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sfroute._native.heart.Call",
    .tp_doc = "The call of a hot method: a coroutine that answers from the cache without a frame.",
    .tp_basicsize = sizeof(Call),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = call_dealloc,
    .tp_traverse = call_traverse,
    .tp_clear = call_clear,
    .tp_as_async = &call_as_async,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = call_next,
    .tp_methods = call_methods,
    .tp_getattro = call_get,
    .tp_repr = call_repr,
};

/* --- The method --- */

static PyObject *
hot_method_call(PyObject *self, PyObject *const *arguments, size_t flags, PyObject *names)
{
    HotMethod *method = (HotMethod *)self;
    if (PyVectorcall_NARGS(flags) != 4 || names != NULL || router_type == NULL
        || !PyObject_TypeCheck(arguments[0], router_type))
    {
        return PyObject_Vectorcall(method->function, arguments, flags, names);
    }
    PyObject *key = PyTuple_Pack(3, arguments[1], arguments[2], arguments[3]);
    if (key == NULL) {
        return NULL;
    }
    Call *call;
    if (kept > 0) {
        call = kept_calls[--kept];
        (void)PyObject_Init((PyObject *)call, &call_type);
    }
    else {
        call = PyObject_GC_New(Call, &call_type);
        if (call == NULL) {
            Py_DECREF(key);
            return NULL;
        }
    }
    call->method = (HotMethod *)Py_NewRef(self);
    call->router = Py_NewRef(arguments[0]);
    call->key = key;
    call->wait = call->coroutine = NULL;
    call->state = CREATED;
    PyObject_GC_Track((PyObject *)call);
    return (PyObject *)call;
}

static PyObject *
hot_method_bind(PyObject *self, PyObject *router, PyObject *Py_UNUSED(owner))
{
    return router == NULL || router == Py_None ? Py_NewRef(self) : PyMethod_New(self, router);
}

static PyObject *
hot_method_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"", NULL};
    PyObject *function;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "O!:HotMethod", names, &PyFunction_Type, &function)) {
        return NULL;
    }
    PyObject *operation = PyObject_GetAttrString(function, "__name__");
    if (operation == NULL) {
        return NULL;
    }
    HotMethod *self = (HotMethod *)type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_DECREF(operation);
    }
    else {
        self->operation = operation;
        self->function = Py_NewRef(function);
        self->vectorcall = hot_method_call;
    }
    return (PyObject *)self;
}

static PyObject *
hot_method_repr(PyObject *self)
{
    return PyObject_Repr(((HotMethod *)self)->function);
}

static int
hot_method_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((HotMethod *)self)->function);
    Py_VISIT(((HotMethod *)self)->attributes);
    return 0;
}

static int
hot_method_clear(PyObject *self)
{
    Py_CLEAR(((HotMethod *)self)->attributes);
    return 0;
}

static void
hot_method_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    hot_method_clear(self);
    Py_CLEAR(((HotMethod *)self)->function);
    Py_CLEAR(((HotMethod *)self)->operation);
    Py_TYPE(self)->tp_free(self);
}

static PyGetSetDef hot_method_attributes[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject hot_method_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sfroute._native.heart.HotMethod",
    .tp_doc = "HotMethod(function)\n--\n\nA coroutine method that answers from the cache without a frame.",
    .tp_basicsize = sizeof(HotMethod),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = hot_method_new,
    .tp_dealloc = hot_method_dealloc,
    .tp_traverse = hot_method_traverse,
    .tp_clear = hot_method_clear,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(HotMethod, vectorcall),
    .tp_dictoffset = offsetof(HotMethod, attributes),
    .tp_descr_get = hot_method_bind,
    .tp_getset = hot_method_attributes,
    .tp_repr = hot_method_repr,
};

/* --- The module's part --- */

const char learn_hits_doc[] =
    "learn_hits(router, entry, epoch, flight, counts, telemetry, entry_of)\n--\n\n"
    "Say which the pure classes are, and what tells the entry of a flight. Raises if one lacks a slot that is used here.";

PyObject *
learn_hits(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    PyTypeObject **places[] = {&router_type, &entry_type, &epoch_type, &flight_type, &counts_type, &telemetry_type};
    enum { CLASSES = sizeof places / sizeof places[0] };
    bool classes = count == CLASSES + 1 && PyCallable_Check(arguments[CLASSES]);
    for (Py_ssize_t place = 0; classes && place < CLASSES; place++) {
        classes = PyType_Check(arguments[place]);
    }
    if (!classes) {
        PyErr_SetString(PyExc_TypeError, "learn_hits takes six classes and a function");
        return NULL;
    }
    PyTypeObject *router = (PyTypeObject *)arguments[0];
    PyTypeObject *entry = (PyTypeObject *)arguments[1];
    PyTypeObject *epoch = (PyTypeObject *)arguments[2];
    PyTypeObject *flight = (PyTypeObject *)arguments[3];
    PyTypeObject *counts = (PyTypeObject *)arguments[4];
    PyTypeObject *telemetry = (PyTypeObject *)arguments[5];
    Wanted wanted[] = {
        {router, "_find", &at.find},
        {router, "_counts", &at.counts},
        {router, "_telemetry", &at.telemetry},
        {entry, "deadline", &at.deadline},
        {entry, "epoch", &at.epoch},
        {entry, "value", &at.value},
        {epoch, "healthy_until", &at.healthy_until},
        {counts, "hits", &at.hits},
        {telemetry, "hits", &at.hook},
        {flight, "entry", &at.answer},
    };
    if (find_slots(wanted, sizeof wanted / sizeof wanted[0]) < 0) {
        return NULL;
    }
    for (Py_ssize_t place = 0; place < CLASSES; place++) {
        Py_XSETREF(*places[place], (PyTypeObject *)Py_NewRef(arguments[place]));
    }
    Py_XSETREF(entry_of, Py_NewRef(arguments[CLASSES]));
    Py_RETURN_NONE;
}

int
set_up_calls(PyObject *module)
{
    if (one == NULL) {
        one = PyLong_FromLong(1);
    }
    if (monotonic == NULL) {
        PyObject *time = PyImport_ImportModule("time");
        monotonic = time == NULL ? NULL : PyObject_GetAttrString(time, "monotonic");
        Py_XDECREF(time);
    }
    if (one == NULL || monotonic == NULL || PyType_Ready(&call_type) < 0 || PyType_Ready(&hot_method_type) < 0) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "HotMethod", (PyObject *)&hot_method_type);
}
