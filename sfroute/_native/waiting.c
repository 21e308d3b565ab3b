/* Waiting for a lookup: a future of the native part's own, and one wake-up for all who are answered in a turn of the loop.

   A `Wait` is what a task waits for while its lookup is under way. To the task it is a future, as the protocol of
   `_asyncio_future_blocking` has it; to the flight it is a waiter (`done`, `set_result`: sfroute/_lookups/cache.py). It has
   one callback, the wake-up of that task, because only its call ever hands it out.

   A `Wakes` belongs to an event loop. Those who are answered in a turn are woken in the next, in order and each in its own
   context, as futures would have it, but by one handle for all. Only the loop's thread touches either. */

#include "heart.h"

static PyObject *cancelled_error;
static PyTypeObject wakes_type;

enum fate { PENDING, ANSWERED, CANCELLED };

typedef struct {
    PyObject_HEAD
    PyObject *loop;
    PyObject *due;     /* list of those to wake */
    PyObject *context; /* the handle's own; a callback runs in that of its task */
    bool scheduled;
} Wakes;

typedef struct {
    PyObject_HEAD
    Wakes *wakes;
    PyObject *callback; /* NULL: nobody is to be woken */
    PyObject *context;
    PyObject *flight; /* the answer */
    PyObject *message; /* why it was cancelled; may be NULL */
    enum fate fate;
    bool blocking;
} Wait;

/* --- Waking --- */

/* Let the loop wake those who are due. -1 with an exception. */
static int
schedule(Wakes *wakes)
{
    if (wakes->scheduled || PyList_GET_SIZE(wakes->due) == 0) {
        return 0;
    }
    PyObject *call_soon = PyObject_GetAttrString(wakes->loop, "call_soon");
    PyObject *run = call_soon == NULL ? NULL : PyObject_GetAttrString((PyObject *)wakes, "run");
    PyObject *names = run == NULL ? NULL : Py_BuildValue("(s)", "context");
    PyObject *handle = NULL;
    if (names != NULL) {
        PyObject *arguments[] = {run, wakes->context};
        handle = PyObject_Vectorcall(call_soon, arguments, 1, names);
    }
    wakes->scheduled = handle != NULL;
    Py_XDECREF(handle);
    Py_XDECREF(names);
    Py_XDECREF(run);
    Py_XDECREF(call_soon);
    return wakes->scheduled ? 0 : -1;
}

/* Wake whoever waits, in the loop's next turn. -1 with an exception. */
static int
wake_soon(Wait *wait)
{
    if (wait->callback == NULL) {
        return 0;
    }
    return PyList_Append(wait->wakes->due, (PyObject *)wait) < 0 ? -1 : schedule(wait->wakes);
}

/* Wake one, now. -1 with an exception, which is not the woken task's own: a task keeps its own. */
static int
wake(Wait *wait)
{
    PyObject *callback = wait->callback, *context = wait->context;
    if (callback == NULL) {
        return 0; /* it has gone meanwhile */
    }
    wait->callback = wait->context = NULL;
    int status = PyContext_Enter(context);
    if (status == 0) {
        PyObject *done = PyObject_CallOneArg(callback, (PyObject *)wait);
        PyObject *kind, *error, *trace;
        PyErr_Fetch(&kind, &error, &trace);
        status = done == NULL ? -1 : 0;
        if (PyContext_Exit(context) < 0) {
            PyErr_Clear();
        }
        PyErr_Restore(kind, error, trace);
        Py_XDECREF(done);
    }
    Py_DECREF(context);
    Py_DECREF(callback);
    return status;
}

static PyObject *
wakes_run(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    Wakes *wakes = (Wakes *)self;
    PyObject *fresh = PyList_New(0);
    if (fresh == NULL) {
        return NULL;
    }
    PyObject *due = wakes->due;
    wakes->due = fresh;
    wakes->scheduled = false;
    int status = 0;
    for (Py_ssize_t place = 0; status == 0 && place < PyList_GET_SIZE(due); place++) {
        Wait *wait = (Wait *)Py_NewRef(PyList_GET_ITEM(due, place));
        status = wake(wait);
        Py_DECREF(wait);
        if (status < 0) {
            /* Ctrl-C, say. The others are woken all the same, before those who have become due meanwhile. */
            PyObject *kind, *error, *trace;
            PyErr_Fetch(&kind, &error, &trace);
            PyObject *rest = PyList_GetSlice(due, place + 1, PyList_GET_SIZE(due));
            if (rest == NULL || PyList_SetSlice(wakes->due, 0, 0, rest) < 0 || schedule(wakes) < 0) {
                PyErr_WriteUnraisable(self);
            }
            Py_XDECREF(rest);
            PyErr_Restore(kind, error, trace);
        }
    }
    Py_DECREF(due);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
wakes_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"", NULL};
    PyObject *loop;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "O:Wakes", names, &loop)) {
        return NULL;
    }
    Wakes *self = (Wakes *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->loop = Py_NewRef(loop);
        self->due = PyList_New(0);
        self->context = PyContext_New();
        if (self->due == NULL || self->context == NULL) {
            Py_CLEAR(self);
        }
    }
    return (PyObject *)self;
}

static int
wakes_traverse(PyObject *self, visitproc visit, void *arg)
{
    Wakes *wakes = (Wakes *)self;
    Py_VISIT(wakes->loop);
    Py_VISIT(wakes->due);
    Py_VISIT(wakes->context);
    return 0;
}

static void
wakes_dealloc(PyObject *self)
{
    Wakes *wakes = (Wakes *)self;
    PyObject_GC_UnTrack(self);
    Py_CLEAR(wakes->loop);
    Py_CLEAR(wakes->due);
    Py_CLEAR(wakes->context);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef wakes_methods[] = {
    {"run", wakes_run, METH_NOARGS, "Wake all who are due."},
    {NULL, NULL, 0, NULL},
};

/* (Without tp_clear: `due` must always be there. A circle through it would be broken at a Wait.) */
static PyTypeObject wakes_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sfroute._native.heart.Wakes",
    .tp_doc = "Wakes(loop)\n--\n\nWakes those who are answered in a turn of the loop.",
    .tp_basicsize = sizeof(Wakes),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = wakes_new,
    .tp_dealloc = wakes_dealloc,
    .tp_traverse = wakes_traverse,
    .tp_methods = wakes_methods,
};

/* --- A wait --- */

PyObject *
new_wait(PyObject *wakes)
{
    if (!Py_IS_TYPE(wakes, &wakes_type)) {
        PyErr_SetString(PyExc_TypeError, "Wakes are needed to wait");
        return NULL;
    }
    Wait *wait = PyObject_GC_New(Wait, &wait_type);
    if (wait == NULL) {
        return NULL;
    }
    wait->wakes = (Wakes *)Py_NewRef(wakes);
    wait->callback = wait->context = wait->flight = wait->message = NULL;
    wait->fate = PENDING;
    wait->blocking = true;
    PyObject_GC_Track((PyObject *)wait);
    return (PyObject *)wait;
}

bool
wait_is_over(PyObject *self)
{
    return ((Wait *)self)->fate != PENDING;
}

int
answer_wait(PyObject *self, PyObject *flight)
{
    Wait *wait = (Wait *)self;
    if (wait->fate != PENDING) {
        PyErr_SetString(PyExc_RuntimeError, "it was answered already");
        return -1;
    }
    wait->fate = ANSWERED;
    wait->flight = Py_NewRef(flight);
    return wake_soon(wait);
}

void
leave_wait(PyObject *self)
{
    Wait *wait = (Wait *)self;
    if (wait->fate == PENDING) {
        wait->fate = CANCELLED;
    }
    Py_CLEAR(wait->callback);
    Py_CLEAR(wait->context);
}

PyObject *
result_of_wait(PyObject *self)
{
    Wait *wait = (Wait *)self;
    if (wait->fate == ANSWERED) {
        return Py_NewRef(wait->flight);
    }
    if (wait->fate == PENDING) {
        PyErr_SetString(PyExc_RuntimeError, "await wasn't used with future");
        return NULL;
    }
    PyObject *error = wait->message == NULL ? PyObject_CallNoArgs(cancelled_error)
                                            : PyObject_CallOneArg(cancelled_error, wait->message);
    if (error != NULL) {
        PyErr_SetObject(cancelled_error, error);
        Py_DECREF(error);
    }
    return NULL;
}

static PyObject *
wait_result(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return result_of_wait(self);
}

static PyObject *
wait_done(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return PyBool_FromLong(((Wait *)self)->fate != PENDING);
}

static PyObject *
wait_cancelled(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return PyBool_FromLong(((Wait *)self)->fate == CANCELLED);
}

static PyObject *
wait_set_result(PyObject *self, PyObject *flight)
{
    return answer_wait(self, flight) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
wait_get_loop(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return Py_NewRef(((Wait *)self)->wakes->loop);
}

static PyObject *
wait_cancel(PyObject *self, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"msg", NULL};
    PyObject *message = NULL;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "|O:cancel", names, &message)) {
        return NULL;
    }
    Wait *wait = (Wait *)self;
    if (wait->fate != PENDING) {
        Py_RETURN_FALSE;
    }
    wait->fate = CANCELLED;
    wait->message = message == Py_None ? NULL : Py_XNewRef(message);
    return wake_soon(wait) < 0 ? NULL : Py_NewRef(Py_True);
}

static PyObject *
wait_add_done_callback(PyObject *self, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"", "context", NULL};
    PyObject *callback, *context = NULL;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "O|$O:add_done_callback", names, &callback, &context)) {
        return NULL;
    }
    Wait *wait = (Wait *)self;
    if (wait->callback != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a task waits for it already");
        return NULL;
    }
    wait->context = context == NULL || context == Py_None ? PyContext_CopyCurrent() : Py_NewRef(context);
    if (wait->context == NULL) {
        return NULL;
    }
    wait->callback = Py_NewRef(callback);
    if (wait->fate != PENDING && wake_soon(wait) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
wait_remove_done_callback(PyObject *self, PyObject *callback)
{
    Wait *wait = (Wait *)self;
    int same = wait->callback == NULL ? 0 : PyObject_RichCompareBool(wait->callback, callback, Py_EQ);
    if (same < 0) {
        return NULL;
    }
    if (same) {
        Py_CLEAR(wait->callback);
        Py_CLEAR(wait->context);
    }
    return PyLong_FromLong(same);
}

static PyObject *
wait_get_blocking(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((Wait *)self)->blocking);
}

static int
wait_set_blocking(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth < 0) {
        return -1;
    }
    ((Wait *)self)->blocking = truth;
    return 0;
}

static int
wait_traverse(PyObject *self, visitproc visit, void *arg)
{
    Wait *wait = (Wait *)self;
    Py_VISIT(wait->wakes);
    Py_VISIT(wait->callback);
    Py_VISIT(wait->context);
    Py_VISIT(wait->flight);
    Py_VISIT(wait->message);
    return 0;
}

static int
wait_clear(PyObject *self)
{
    Wait *wait = (Wait *)self;
    Py_CLEAR(wait->callback);
    Py_CLEAR(wait->context);
    Py_CLEAR(wait->message);
    return 0;
}

static void
wait_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    wait_clear(self);
    Py_CLEAR(((Wait *)self)->flight);
    Py_CLEAR(((Wait *)self)->wakes);
    PyObject_GC_Del(self);
}

static PyMethodDef wait_methods[] = {
    {"done", wait_done, METH_NOARGS, "True if it no longer waits."},
    {"cancelled", wait_cancelled, METH_NOARGS, "True if it was cancelled."},
    {"result", wait_result, METH_NOARGS, "The finished flight."},
    {"set_result", wait_set_result, METH_O, "Hand over the finished flight."},
    {"get_loop", wait_get_loop, METH_NOARGS, "The event loop it belongs to."},
    {"cancel", (PyCFunction)(void (*)(void))wait_cancel, METH_VARARGS | METH_KEYWORDS, "Wait no longer."},
    {"add_done_callback", (PyCFunction)(void (*)(void))wait_add_done_callback, METH_VARARGS | METH_KEYWORDS,
     "Whom to wake."},
    {"remove_done_callback", wait_remove_done_callback, METH_O, "Wake them not. Returns how many it was."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef wait_attributes[] = {
    {"_asyncio_future_blocking", wait_get_blocking, wait_set_blocking, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject wait_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sfroute._native.heart.Wait",
    .tp_doc = "What a task waits for while its lookup is under way: a future to it, a waiter to the flight.",
    .tp_basicsize = sizeof(Wait),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = wait_dealloc,
    .tp_traverse = wait_traverse,
    .tp_clear = wait_clear,
    .tp_methods = wait_methods,
    .tp_getset = wait_attributes,
};

/* --- The module's part --- */

int
set_up_waiting(PyObject *module)
{
    if (cancelled_error == NULL) {
        PyObject *asyncio = PyImport_ImportModule("asyncio");
        cancelled_error = asyncio == NULL ? NULL : PyObject_GetAttrString(asyncio, "CancelledError");
        Py_XDECREF(asyncio);
    }
    if (cancelled_error == NULL || PyType_Ready(&wakes_type) < 0 || PyType_Ready(&wait_type) < 0) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "Wakes", (PyObject *)&wakes_type);
}
