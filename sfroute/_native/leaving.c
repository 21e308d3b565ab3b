/* What leaves together: the inner loop of a channel's flush, and what a lane notes of the lookups among it.

       take_batch   sfroute/_net/channel.py     Channel._flush
       mark_sent    sfroute/_lookups/lane.py    Lane.on_sent

   A lookup is a Read, whose slots are read and written here. Any other request is asked by its attributes, as the pure code
   asks it. */

#include "heart.h"

#include <string.h>

static PyTypeObject *read_type;

static struct {
    Py_ssize_t done, payload, commands, sent_at, epoch, sent;
} at;

static PyObject *name_abandoned, *name_commands, *name_payload, *name_popleft, *name_sent_at;

/* What is taken from the queue, as lists. */
typedef struct {
    PyObject *payloads, *tokens, *requests;
    Py_ssize_t size; /* bytes of the payloads */
} Batch;

/* 1 if nobody waits for the request any more; 0 if somebody does, and then it knows when it was sent. -1: an exception. */
static int
is_abandoned(PyObject *request, PyObject *now)
{
    if (Py_IS_TYPE(request, read_type)) {
        PyObject *done = get_slot(request, at.done);
        if (done != Py_True && done != Py_False) {
            PyErr_SetString(PyExc_AttributeError, "done");
            return -1;
        }
        if (done == Py_False) {
            set_slot(request, at.sent_at, now);
        }
        return done == Py_True;
    }
    PyObject *answer = PyObject_CallMethodOneArg(request, name_abandoned, now);
    int abandoned = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return abandoned == 0 && PyObject_SetAttr(request, name_sent_at, now) < 0 ? -1 : abandoned;
}

/* An attribute: a new reference; NULL with an exception. */
static PyObject *
attribute_of(PyObject *request, Py_ssize_t offset, PyObject *name)
{
    PyObject *found = Py_IS_TYPE(request, read_type) ? Py_XNewRef(get_slot(request, offset)) : NULL;
    return found != NULL ? found : PyObject_GetAttr(request, name);
}

/* Put one more into the batch. Returns how many commands it has, -1 with an exception. */
static Py_ssize_t
take(Batch *batch, PyObject *request)
{
    PyObject *payload = attribute_of(request, at.payload, name_payload);
    PyObject *number = payload == NULL ? NULL : attribute_of(request, at.commands, name_commands);
    Py_ssize_t commands = number == NULL ? -1 : PyLong_AsSsize_t(number);
    if (commands >= 0 && !PyBytes_CheckExact(payload)) {
        PyErr_SetString(PyExc_TypeError, "a payload must be bytes");
        commands = -1;
    }
    if (commands < 0 || PyList_Append(batch->payloads, payload) < 0 || PyList_Append(batch->requests, request) < 0) {
        commands = -1;
    }
    else {
        batch->size += PyBytes_GET_SIZE(payload);
    }
    for (Py_ssize_t count = 0; count < commands; count++) {
        if (PyList_Append(batch->tokens, request) < 0) {
            commands = -1;
        }
    }
    Py_XDECREF(number);
    Py_XDECREF(payload);
    return commands;
}

/* The payloads, one behind the other: new bytes. */
static PyObject *
joined(Batch *batch)
{
    PyObject *data = PyBytes_FromStringAndSize(NULL, batch->size);
    if (data != NULL) {
        char *end = PyBytes_AS_STRING(data);
        for (Py_ssize_t place = 0; place < PyList_GET_SIZE(batch->payloads); place++) {
            PyObject *payload = PyList_GET_ITEM(batch->payloads, place);
            memcpy(end, PyBytes_AS_STRING(payload), (size_t)PyBytes_GET_SIZE(payload));
            end += PyBytes_GET_SIZE(payload);
        }
    }
    return data;
}

const char take_batch_doc[] =
    "take_batch(queue, now, room, max_commands, max_bytes)\n--\n\n"
    "Take requests from the queue as long as there is room. Returns their payloads joined, a token for each command, and\n"
    "the requests. Those that nobody waits for are let go.";

PyObject *
take_batch(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "take_batch takes five arguments");
        return NULL;
    }
    PyObject *queue = arguments[0], *now = arguments[1], *result = NULL;
    Py_ssize_t room = PyLong_AsSsize_t(arguments[2]);
    Py_ssize_t max_commands = PyLong_AsSsize_t(arguments[3]);
    Py_ssize_t max_bytes = PyLong_AsSsize_t(arguments[4]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Batch batch = {.payloads = PyList_New(0), .tokens = PyList_New(0), .requests = PyList_New(0)};
    bool ok = batch.payloads != NULL && batch.tokens != NULL && batch.requests != NULL;
    while (ok && room > 0 && PyList_GET_SIZE(batch.tokens) < max_commands && batch.size < max_bytes) {
        Py_ssize_t waiting = PyObject_Size(queue);
        if (waiting <= 0) {
            ok = waiting == 0;
            break;
        }
        PyObject *request = PyObject_CallMethodNoArgs(queue, name_popleft);
        int abandoned = request == NULL ? -1 : is_abandoned(request, now);
        Py_ssize_t commands = abandoned == 0 ? take(&batch, request) : abandoned < 0 ? -1 : 0;
        ok = commands >= 0;
        room -= commands;
        Py_XDECREF(request);
    }
    PyObject *data = ok ? joined(&batch) : NULL;
    if (data != NULL) {
        result = PyTuple_Pack(3, data, batch.tokens, batch.requests);
        Py_DECREF(data);
    }
    Py_XDECREF(batch.payloads);
    Py_XDECREF(batch.tokens);
    Py_XDECREF(batch.requests);
    return result;
}

const char mark_sent_doc[] =
    "mark_sent(requests, epoch)\n--\n\n"
    "Note of the lookups among the requests that they are on their way, in this stretch of their lane. Returns how many "
    "there are.";

PyObject *
mark_sent(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyList_CheckExact(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "mark_sent takes a list and an epoch");
        return NULL;
    }
    Py_ssize_t reads = 0;
    for (Py_ssize_t place = 0; place < PyList_GET_SIZE(arguments[0]); place++) {
        PyObject *request = PyList_GET_ITEM(arguments[0], place);
        if (Py_IS_TYPE(request, read_type)) {
            set_slot(request, at.epoch, arguments[1]);
            set_slot(request, at.sent, Py_True);
            reads++;
        }
    }
    return PyLong_FromSsize_t(reads);
}

int
learn_leaving(PyTypeObject *read)
{
    Wanted wanted[] = {
        {read, "done", &at.done},
        {read, "payload", &at.payload},
        {read, "commands", &at.commands},
        {read, "sent_at", &at.sent_at},
        {read, "epoch", &at.epoch},
        {read, "sent", &at.sent},
    };
    if (find_slots(wanted, sizeof wanted / sizeof wanted[0]) < 0) {
        return -1;
    }
    Py_XSETREF(read_type, (PyTypeObject *)Py_NewRef((PyObject *)read));
    return 0;
}

int
set_up_leaving(void)
{
    if (name_abandoned == NULL) {
        name_abandoned = PyUnicode_InternFromString("abandoned");
        name_commands = PyUnicode_InternFromString("commands");
        name_payload = PyUnicode_InternFromString("payload");
        name_popleft = PyUnicode_InternFromString("popleft");
        name_sent_at = PyUnicode_InternFromString("sent_at");
    }
    return PyErr_Occurred() ? -1 : 0;
}
