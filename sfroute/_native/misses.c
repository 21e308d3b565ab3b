/* The begin of a lookup that the cache cannot answer, for the plain case alone.

   Plain is: telemetry sleeps, the router is open here, the names are known or ASCII without braces, nobody looks the
   same link up already, and the lane of its slot is in reach. At anything else `begin_lookup` stops before it has changed
   anything, and the pure coroutine takes the call. The rules stand there:

       is_open_here     sfroute/_operations/engine.py   Engine.parts_here
       are_plain        sfroute/_contract/keys.py       check_link_names
       tag, slot_of     sfroute/_contract/keys.py       tag_and_slot
       lane_for         sfroute/_lookups/dispatch.py    Dispatch.send
       watch            sfroute/_net/deadlines.py       Deadlines.watch
       submit           sfroute/_net/channel.py         Channel.submit
       begin            sfroute/_lookups/lookups.py     Lookups._begin
                        sfroute/_lookups/lane.py        Read.set_out
       begin_lookup     sfroute/_operations/links.py    LinkReader.past_cache
                        sfroute/_lookups/lookups.py     Lookups.open

   A new Read is a copy of one that the pure code has made (`Lookups._sketch`), but for what is its own. So the pure classes
   alone say what a lookup begins with. */

#include "heart.h"

#include <string.h>

/* --- What it knows of the pure classes: set once by `learn_misses` --- */

static PyTypeObject *router_type, *telemetry_type, *engine_type, *parts_type, *lookups_type, *dispatch_type, *deadlines_type,
    *cache_type, *counts_type, *lane_type, *channel_type, *read_type;

static struct {
    Py_ssize_t router_engine, router_telemetry;
    Py_ssize_t asleep_until;                                               /* Telemetry */
    Py_ssize_t parts;                                                      /* Engine */
    Py_ssize_t thread, loop, lookups;                                      /* Parts */
    Py_ssize_t cache, dispatch, deadline, sketch, wakes;                   /* Lookups */
    Py_ssize_t closed, deadlines, lane_of_slot;                            /* Dispatch */
    Py_ssize_t armed_for, watched, sweep_at;                               /* Deadlines */
    Py_ssize_t flights, counts;                                            /* LookupCache */
    Py_ssize_t misses;                                                     /* CacheCounts */
    Py_ssize_t not_now, lane_epoch, channel;                               /* Lane */
    Py_ssize_t reachable, channel_closed, flush_scheduled, queue;          /* Channel */
    Py_ssize_t key, read_deadline, done, waiters, payload, lane, epoch;    /* Read */
} at;

/* Every slot of a Read. */
enum { MAX_SLOTS = 64 };
static Py_ssize_t read_slots[MAX_SLOTS];
static size_t read_slot_count;

/* The names that were found good: sets of keys.py. */
static PyObject *good_namespaces, *good_services;

static PyObject *one, *name_append, *name_is_running, *name_popleft, *name_submit, *name_watch;

/* --- Names, tags and slots --- */

enum { MAX_NAME_BYTES = 512, SLOTS = 16384 };

/* CRC-16/XMODEM, which Redis Cluster uses. */
static uint16_t crc_table[256];

static void
make_crc_table(void)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        unsigned crc = byte << 8;
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc & 0x8000) ? (crc << 1) ^ 0x1021 : crc << 1;
        }
        crc_table[byte] = (uint16_t)crc;
    }
}

static Py_ssize_t
slot_of(const char *tag, Py_ssize_t size)
{
    unsigned crc = 0;
    for (Py_ssize_t place = 0; place < size; place++) {
        crc = (uint16_t)(crc << 8) ^ crc_table[((crc >> 8) ^ (unsigned char)tag[place]) & 0xff];
    }
    return (Py_ssize_t)(crc & (SLOTS - 1));
}

/* True for a str of its own class that is ASCII: its text is its UTF-8. */
static bool
is_ascii(PyObject *text)
{
    return PyUnicode_CheckExact(text) && PyUnicode_IS_READY(text) && PyUnicode_IS_COMPACT_ASCII(text);
}

/* 1 if all three names may be part of a key and are plain; 0 if that is for the pure code to say; -1: an exception. */
static int
are_plain(PyObject *namespace, PyObject *uid, PyObject *service)
{
    if (!is_ascii(namespace) || !is_ascii(uid) || !is_ascii(service)) {
        return 0;
    }
    Py_ssize_t size = PyUnicode_GET_LENGTH(uid);
    if (size < 1 || size > MAX_NAME_BYTES) {
        return 0;
    }
    const char *text = (const char *)PyUnicode_1BYTE_DATA(uid);
    for (Py_ssize_t place = 0; place < size; place++) {
        if (text[place] < ' ' || text[place] > '~' || text[place] == '{' || text[place] == '}') {
            return 0;
        }
    }
    int known = PySet_Contains(good_namespaces, namespace);
    return known == 1 ? PySet_Contains(good_services, service) : known;
}

/* --- Where it goes --- */

/* What a slot holds, if it is of this class: borrowed; else NULL. */
static PyObject *
slot_of_type(PyObject *owner, Py_ssize_t offset, PyTypeObject *type)
{
    PyObject *found = get_slot(owner, offset);
    return found != NULL && Py_IS_TYPE(found, type) ? found : NULL;
}

/* The Parts of the router, if it is open in this thread and telemetry sleeps: borrowed. NULL with or without an exception. */
static PyObject *
open_parts(PyObject *router, double now)
{
    PyObject *telemetry = slot_of_type(router, at.router_telemetry, telemetry_type);
    PyObject *asleep = telemetry == NULL ? NULL : slot_of_type(telemetry, at.asleep_until, &PyFloat_Type);
    PyObject *engine = slot_of_type(router, at.router_engine, engine_type);
    PyObject *parts = engine == NULL ? NULL : slot_of_type(engine, at.parts, parts_type);
    PyObject *thread = parts == NULL ? NULL : slot_of_type(parts, at.thread, &PyLong_Type);
    if (asleep == NULL || thread == NULL || !(now < PyFloat_AS_DOUBLE(asleep))
        || PyLong_AsUnsignedLong(thread) != PyThread_get_thread_ident())
    {
        return NULL;
    }
    PyObject *loop = Py_XNewRef(get_slot(parts, at.loop));
    PyObject *running = loop == NULL ? NULL : PyObject_CallMethodNoArgs(loop, name_is_running);
    Py_XDECREF(loop);
    Py_XDECREF(running);
    return running == Py_True ? parts : NULL;
}

/* The lane of the slot, if it can be asked at once: borrowed; else NULL. */
static PyObject *
lane_for(PyObject *dispatch, Py_ssize_t slot)
{
    PyObject *lanes = slot_of_type(dispatch, at.lane_of_slot, &PyList_Type);
    if (get_slot(dispatch, at.closed) != Py_False || lanes == NULL || slot >= PyList_GET_SIZE(lanes)) {
        return NULL;
    }
    PyObject *lane = PyList_GET_ITEM(lanes, slot);
    if (!Py_IS_TYPE(lane, lane_type) || get_slot(lane, at.not_now) != Py_False) {
        return NULL;
    }
    PyObject *channel = slot_of_type(lane, at.channel, channel_type);
    if (channel == NULL || get_slot(channel, at.reachable) != Py_True
        || get_slot(channel, at.channel_closed) != Py_False || get_slot(lane, at.lane_epoch) == NULL)
    {
        return NULL;
    }
    return lane;
}

/* --- Beginning it --- */

/* A lookup of the key on this lane, for one who waits. A new Read. */
static PyObject *
new_read(PyObject *sketch, PyObject *key, PyObject *lane, PyObject *payload, double deadline, PyObject *wait)
{
    PyObject *instant = PyFloat_FromDouble(deadline);
    PyObject *waiters = instant == NULL ? NULL : PyList_New(1);
    if (waiters == NULL) {
        Py_XDECREF(instant);
        return NULL;
    }
    PyList_SET_ITEM(waiters, 0, Py_NewRef(wait));
    PyObject *read = read_type->tp_alloc(read_type, 0);
    if (read != NULL) {
        for (size_t place = 0; place < read_slot_count; place++) {
            PyObject *value = get_slot(sketch, read_slots[place]);
            if (value != NULL) {
                set_slot(read, read_slots[place], value);
            }
        }
        set_slot(read, at.key, key);
        set_slot(read, at.read_deadline, instant);
        set_slot(read, at.waiters, waiters);
        set_slot(read, at.payload, payload);
        set_slot(read, at.lane, lane);
        set_slot(read, at.epoch, get_slot(lane, at.lane_epoch));
    }
    Py_DECREF(waiters);
    Py_DECREF(instant);
    return read;
}

/* True if the read at this place of the queue is over; false if it is not, or if there is no saying. */
static bool
is_over(PyObject *queue, Py_ssize_t place)
{
    PyObject *read = PySequence_GetItem(queue, place);
    bool over = read != NULL && Py_IS_TYPE(read, read_type) && get_slot(read, at.done) == Py_True;
    Py_XDECREF(read);
    return over;
}

/* True if the queue is in order with this deadline at its end. */
static bool
is_last(PyObject *queue, Py_ssize_t size, double deadline)
{
    PyObject *read = PySequence_GetItem(queue, size - 1);
    PyObject *before = read != NULL && Py_IS_TYPE(read, read_type) ? slot_of_type(read, at.read_deadline, &PyFloat_Type) : NULL;
    bool last = before != NULL && PyFloat_AS_DOUBLE(before) <= deadline;
    Py_XDECREF(read);
    return last;
}

/* Deadlines.watch. -1 with an exception. */
static int
watch(PyObject *deadlines, PyObject *read, double deadline)
{
    PyObject *queue = Py_XNewRef(get_slot(deadlines, at.watched));
    PyObject *armed_for = slot_of_type(deadlines, at.armed_for, &PyFloat_Type);
    PyObject *sweep_at = slot_of_type(deadlines, at.sweep_at, &PyLong_Type);
    PyObject *done = NULL;
    Py_ssize_t size = queue == NULL || armed_for == NULL || sweep_at == NULL ? -1 : PyObject_Size(queue);
    while (size > 0 && is_over(queue, 0)) {
        PyObject *over = PyObject_CallMethodNoArgs(queue, name_popleft);
        size = over == NULL ? -1 : size - 1;
        Py_XDECREF(over);
    }
    if (size > 0 && size < PyLong_AsSsize_t(sweep_at) && PyFloat_AS_DOUBLE(armed_for) <= deadline
        && is_last(queue, size, deadline))
    {
        done = PyObject_CallMethodOneArg(queue, name_append, read);
    }
    else if (!PyErr_Occurred()) {
        done = PyObject_CallMethodOneArg(deadlines, name_watch, read);
    }
    Py_XDECREF(done);
    Py_XDECREF(queue);
    return done == NULL ? -1 : 0;
}

/* Lookups._begin: enter it, watch its deadline. -1 with an exception; then it is not entered. */
static int
enter(PyObject *deadlines, PyObject *flights, PyObject *key, PyObject *read, double deadline)
{
    if (PyDict_SetItem(flights, key, read) < 0) {
        return -1;
    }
    if (watch(deadlines, read, deadline) < 0) {
        PyObject *kind, *error, *trace;
        PyErr_Fetch(&kind, &error, &trace);
        if (PyDict_DelItem(flights, key) < 0) {
            PyErr_Clear();
        }
        PyErr_Restore(kind, error, trace);
        return -1;
    }
    return 0;
}

/* Channel.submit: it leaves with whatever else comes up in this turn of the loop. -1 with an exception. */
static int
submit(PyObject *channel, PyObject *read)
{
    PyObject *done;
    if (get_slot(channel, at.flush_scheduled) == Py_True && get_slot(channel, at.queue) != NULL) {
        PyObject *queue = Py_NewRef(get_slot(channel, at.queue));
        done = PyObject_CallMethodOneArg(queue, name_append, read);
        Py_DECREF(queue);
    }
    else {
        done = PyObject_CallMethodOneArg(channel, name_submit, read);
    }
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* One more miss. -1 with an exception. */
static int
count_miss(PyObject *counts)
{
    PyObject *before = get_slot(counts, at.misses);
    PyObject *after = before == NULL ? NULL : PyNumber_Add(before, one);
    if (after == NULL) {
        if (before == NULL) {
            PyErr_SetString(PyExc_RuntimeError, "a cache without counts");
        }
        return -1;
    }
    set_slot(counts, at.misses, after);
    Py_DECREF(after);
    return 0;
}

/* Begin a lookup of the key, whose names are plain. `waiter` gets its flight; NULL: a new wait does, which `*wait` becomes.
   1: it has begun; 0: it is not plain; -1: an exception. */
static int
begin(PyObject *lookups, PyObject *key, double deadline, PyObject *waiter, PyObject **wait)
{
    /* Nobody else's code runs until the lookup is made, so what is borrowed stays. */
    PyObject *cache = slot_of_type(lookups, at.cache, cache_type);
    PyObject *dispatch = slot_of_type(lookups, at.dispatch, dispatch_type);
    PyObject *deadlines = dispatch == NULL ? NULL : slot_of_type(dispatch, at.deadlines, deadlines_type);
    PyObject *sketch = slot_of_type(lookups, at.sketch, read_type);
    PyObject *wakes = get_slot(lookups, at.wakes);
    PyObject *flights = cache == NULL ? NULL : slot_of_type(cache, at.flights, &PyDict_Type);
    PyObject *counts = cache == NULL ? NULL : slot_of_type(cache, at.counts, counts_type);
    if (deadlines == NULL || sketch == NULL || wakes == NULL || flights == NULL || counts == NULL) {
        return 0;
    }
    int under_way = PyDict_Contains(flights, key);
    if (under_way != 0) {
        return under_way < 0 ? -1 : 0;
    }
    PyObject *namespace = PyTuple_GET_ITEM(key, 0), *uid = PyTuple_GET_ITEM(key, 1), *service = PyTuple_GET_ITEM(key, 2);
    Py_ssize_t namespace_size = PyUnicode_GET_LENGTH(namespace), uid_size = PyUnicode_GET_LENGTH(uid);
    char tag[2 * MAX_NAME_BYTES + 4];
    if (namespace_size > MAX_NAME_BYTES) {
        return 0;
    }
    memcpy(tag, PyUnicode_1BYTE_DATA(namespace), (size_t)namespace_size);
    memcpy(tag + namespace_size, ":lk:", 4);
    memcpy(tag + namespace_size + 4, PyUnicode_1BYTE_DATA(uid), (size_t)uid_size);
    Py_ssize_t tag_size = namespace_size + 4 + uid_size;
    PyObject *lane = lane_for(dispatch, slot_of(tag, tag_size));
    if (lane == NULL) {
        return 0;
    }
    /* Held: the garbage collector runs others' code, and so does what follows. */
    Py_INCREF(deadlines);
    Py_INCREF(flights);
    Py_INCREF(counts);
    Py_INCREF(sketch);
    Py_INCREF(lane);
    PyObject *channel = Py_NewRef(get_slot(lane, at.channel));
    PyObject *read = NULL;
    int status = -1;
    PyObject *payload =
        pack_lookup(tag, tag_size, (const char *)PyUnicode_1BYTE_DATA(service), PyUnicode_GET_LENGTH(service));
    PyObject *waiting = payload == NULL ? NULL : waiter != NULL ? Py_NewRef(waiter) : new_wait(wakes);
    if (waiting != NULL) {
        read = new_read(sketch, key, lane, payload, deadline, waiting);
    }
    if (read != NULL && count_miss(counts) == 0 && enter(deadlines, flights, key, read, deadline) == 0
        && submit(channel, read) == 0)
    {
        status = 1;
        if (waiter == NULL) {
            *wait = Py_NewRef(waiting);
        }
    }
    Py_XDECREF(read);
    Py_XDECREF(waiting);
    Py_XDECREF(payload);
    Py_DECREF(channel);
    Py_DECREF(lane);
    Py_DECREF(sketch);
    Py_DECREF(counts);
    Py_DECREF(flights);
    Py_DECREF(deadlines);
    return status;
}

int
begin_lookup(PyObject *router, PyObject *key, double now, PyObject **wait)
{
    int plain = read_type == NULL
        ? 0
        : are_plain(PyTuple_GET_ITEM(key, 0), PyTuple_GET_ITEM(key, 1), PyTuple_GET_ITEM(key, 2));
    PyObject *parts = plain == 1 ? open_parts(router, now) : NULL;
    PyObject *lookups = parts == NULL ? NULL : slot_of_type(parts, at.lookups, lookups_type);
    PyObject *seconds = lookups == NULL ? NULL : slot_of_type(lookups, at.deadline, &PyFloat_Type);
    if (seconds == NULL) {
        return plain < 0 || PyErr_Occurred() ? -1 : 0;
    }
    double deadline = now + PyFloat_AS_DOUBLE(seconds);
    Py_INCREF(lookups);
    int status = begin(lookups, key, deadline, NULL, wait);
    Py_DECREF(lookups);
    return status;
}

const char begin_doc[] =
    "begin(lookups, key, waiter, give_up)\n--\n\n"
    "As Lookups._begin for a lookup that may serve an old answer and that telemetry need not know, of a key that was\n"
    "checked. False if it is not plain; then nothing has happened.";

PyObject *
begin_for(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4 || !Py_IS_TYPE(arguments[0], lookups_type) || !PyTuple_CheckExact(arguments[1])
        || PyTuple_GET_SIZE(arguments[1]) < 1)
    {
        PyErr_SetString(PyExc_TypeError, "begin takes Lookups, a key, a waiter and an instant");
        return NULL;
    }
    PyObject *key = arguments[1];
    double deadline = PyFloat_AsDouble(arguments[3]);
    if (deadline == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    int status = 0;
    if (PyTuple_GET_SIZE(key) == 3) {
        status = are_plain(PyTuple_GET_ITEM(key, 0), PyTuple_GET_ITEM(key, 1), PyTuple_GET_ITEM(key, 2));
    }
    if (status == 1) {
        status = begin(arguments[0], key, deadline, arguments[2], NULL);
    }
    return status < 0 ? NULL : PyBool_FromLong(status);
}

/* --- The module's part --- */

const char learn_misses_doc[] =
    "learn_misses(*, router, telemetry, engine, parts, lookups, dispatch, deadlines, cache, counts, lane, channel,\n"
    "             read, slots, namespaces, services)\n--\n\n"
    "Say which the pure classes are, all slots of a read, and which names are known. Raises if a class lacks a slot.";

PyObject *
learn_misses(PyObject *Py_UNUSED(module), PyObject *arguments, PyObject *named)
{
    static char *names[] = {"router", "telemetry", "engine", "parts", "lookups", "dispatch", "deadlines", "cache", "counts",
        "lane", "channel", "read", "slots", "namespaces", "services", NULL};
    PyTypeObject *router, *telemetry, *engine, *parts, *lookups, *dispatch, *deadlines, *cache, *counts, *lane, *channel, *read;
    PyObject *slots, *namespaces, *services;
    PyTypeObject *class = &PyType_Type;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "$O!O!O!O!O!O!O!O!O!O!O!O!O!O!O!:learn_misses", names, class, &router,
            class, &telemetry, class, &engine, class, &parts, class, &lookups, class, &dispatch, class, &deadlines,
            class, &cache, class, &counts, class, &lane, class, &channel, class, &read, &PyTuple_Type, &slots, &PySet_Type, &namespaces,
            &PySet_Type, &services))
    {
        return NULL;
    }
    if (PyTuple_GET_SIZE(slots) > MAX_SLOTS) {
        PyErr_SetString(PyExc_TypeError, "a read has too many slots");
        return NULL;
    }
    Py_ssize_t found[MAX_SLOTS];
    for (Py_ssize_t place = 0; place < PyTuple_GET_SIZE(slots); place++) {
        const char *text = PyUnicode_AsUTF8(PyTuple_GET_ITEM(slots, place));
        Wanted wanted = {read, text, &found[place]};
        if (text == NULL || find_slots(&wanted, 1) < 0) {
            return NULL;
        }
    }
    Wanted wanted[] = {
        {router, "_engine", &at.router_engine},
        {router, "_telemetry", &at.router_telemetry},
        {telemetry, "asleep_until", &at.asleep_until},
        {engine, "parts", &at.parts},
        {parts, "thread", &at.thread},
        {parts, "loop", &at.loop},
        {parts, "lookups", &at.lookups},
        {lookups, "_cache", &at.cache},
        {lookups, "_dispatch", &at.dispatch},
        {lookups, "_deadline", &at.deadline},
        {lookups, "_sketch", &at.sketch},
        {lookups, "_wakes", &at.wakes},
        {dispatch, "closed", &at.closed},
        {dispatch, "deadlines", &at.deadlines},
        {dispatch, "_lane_of_slot", &at.lane_of_slot},
        {deadlines, "_armed_for", &at.armed_for},
        {deadlines, "_queue", &at.watched},
        {deadlines, "_sweep_at", &at.sweep_at},
        {cache, "_flights", &at.flights},
        {cache, "counts", &at.counts},
        {counts, "misses", &at.misses},
        {lane, "not_now", &at.not_now},
        {lane, "epoch", &at.lane_epoch},
        {lane, "channel", &at.channel},
        {channel, "reachable", &at.reachable},
        {channel, "_closed", &at.channel_closed},
        {channel, "_flush_scheduled", &at.flush_scheduled},
        {channel, "_queue", &at.queue},
        {read, "key", &at.key},
        {read, "deadline", &at.read_deadline},
        {read, "done", &at.done},
        {read, "waiters", &at.waiters},
        {read, "payload", &at.payload},
        {read, "lane", &at.lane},
        {read, "epoch", &at.epoch},
    };
    if (find_slots(wanted, sizeof wanted / sizeof wanted[0]) < 0) {
        return NULL;
    }
    read_slot_count = (size_t)PyTuple_GET_SIZE(slots);
    memcpy(read_slots, found, read_slot_count * sizeof found[0]);
    PyTypeObject *classes[] = {router, telemetry, engine, parts, lookups, dispatch, deadlines, cache, counts, lane,
        channel, read};
    PyTypeObject **places[] = {&router_type, &telemetry_type, &engine_type, &parts_type, &lookups_type, &dispatch_type,
        &deadlines_type, &cache_type, &counts_type, &lane_type, &channel_type, &read_type};
    for (size_t place = 0; place < sizeof classes / sizeof classes[0]; place++) {
        Py_XSETREF(*places[place], (PyTypeObject *)Py_NewRef((PyObject *)classes[place]));
    }
    Py_XSETREF(good_namespaces, Py_NewRef(namespaces));
    Py_XSETREF(good_services, Py_NewRef(services));
    Py_RETURN_NONE;
}

int
set_up_misses(PyObject *Py_UNUSED(module))
{
    if (one == NULL) {
        make_crc_table();
        one = PyLong_FromLong(1);
        name_append = PyUnicode_InternFromString("append");
        name_is_running = PyUnicode_InternFromString("is_running");
        name_popleft = PyUnicode_InternFromString("popleft");
        name_submit = PyUnicode_InternFromString("submit");
        name_watch = PyUnicode_InternFromString("watch");
    }
    return PyErr_Occurred() ? -1 : 0;
}
