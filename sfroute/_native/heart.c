/* The native part of a lookup: the two steps that every miss takes, for the plain case alone.

   `land` takes the plain replies off the front of what has arrived and stores them. `pack` writes a lookup's commands.
   Both are copies of pure code, for speed. The rules stand there, and this file says at each step which one it follows:

       land   sfroute/_net/connection.py      Connection.data_received: replies in wire order, one to each token
              sfroute/_lookups/lane.py        Read.on_reply, Read._finish: a pair of value and TTL
              sfroute/_contract/replies.py    pod: what a link may hold
              sfroute/_lookups/cache.py       LookupCache.land, _store, _forget; Flight.finish
       pack   sfroute/_contract/keys.py       tagged_link_key
              sfroute/_lookups/lane.py        _GET_AND_PTTL

   Plain is: the value and the TTL of a link, whole, well-formed, in agreement, for a lookup that is alive and that nobody
   joined late. At anything else `land` stops, before it has changed anything, and the pure code goes on at that byte. So
   the pure code decides every error, and a case that is missing here costs time, not truth.

   The objects are those of the pure classes, and only those classes say what a slot means. This file reads and writes
   their slots where the classes' own descriptors say that they are (`learn`).

   It runs in the main interpreter, under the GIL, and refuses to be imported elsewhere: the pure code runs there. */

#include "heart.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#if PY_VERSION_HEX < 0x030C0000
#include <structmember.h>
#define Py_T_OBJECT_EX T_OBJECT_EX
#endif

#ifndef HEART_SOURCE
#error "compile it with tools/build_native.py, which defines what it is compiled from"
#endif

/* --- What it knows of the pure classes: set once by `learn`, in the only interpreter that may import this --- */

static PyTypeObject *read_type, *entry_type, *epoch_type;

/* Offsets of slots in a Read. */
static struct {
    Py_ssize_t asking, batch, closes_batch, done, dirty, entry, epoch, error, key, lane, late, sent, sent_at,
        value_read, waiters;
} in_read;

/* Offsets of slots in an Entry, and in an Epoch. */
static struct {
    Py_ssize_t deadline, epoch, expires, sent, value;
} in_entry;

static struct {
    Py_ssize_t max_age;
} in_epoch;

/* Names of attributes and methods that are called, interned. */
static struct {
    PyObject *cache, *config, *data, *done, *entries, *epoch, *flights, *negative, *own_writes, *popleft,
        *room, *services, *set_result, *store, *troubled;
} name;

static PyObject *infinity;

/* The place of a slot in the objects of a class; -1 with an exception if the class has no such slot. */
static Py_ssize_t
offset_of(PyTypeObject *type, const char *slot_name)
{
    PyObject *descriptor = PyObject_GetAttrString((PyObject *)type, slot_name);
    if (descriptor == NULL) {
        return -1;
    }
    Py_ssize_t offset = -1;
    /* Of this class or a base: one that was borrowed from elsewhere tells of other objects. */
    if (Py_IS_TYPE(descriptor, &PyMemberDescr_Type)
        && PyType_IsSubtype(type, ((PyDescrObject *)descriptor)->d_type))
    {
        PyMemberDef *member = ((PyMemberDescrObject *)descriptor)->d_member;
        if (member->type == Py_T_OBJECT_EX) {
            offset = member->offset;
        }
    }
    Py_DECREF(descriptor);
    if (offset < 0) {
        PyErr_Format(PyExc_TypeError, "%s.%s is not a slot", type->tp_name, slot_name);
    }
    return offset;
}

int
find_slots(const Wanted *wanted, size_t count)
{
    for (size_t place = 0; place < count; place++) {
        if (offset_of(wanted[place].type, wanted[place].name) < 0) {
            return -1;
        }
    }
    for (size_t place = 0; place < count; place++) {
        *wanted[place].offset = offset_of(wanted[place].type, wanted[place].name);
    }
    return 0;
}

/* --- Reading RESP: only forms that hiredis reads in the same way --- */

/* Where reading stands. */
typedef struct {
    const char *at;
    const char *end;
} Cursor;

/* A decimal number as `string2ll` of hiredis takes it, without the sign: no leading zero, at most 18 digits. It ends with
   the line. False, and nothing is read, if there is none. */
static bool
read_number(Cursor *cursor, int64_t *number)
{
    const char *at = cursor->at;
    int64_t value = 0;
    int digits = 0;
    while (at < cursor->end && *at >= '0' && *at <= '9' && digits < 19) {
        value = digits < 18 ? value * 10 + (*at - '0') : value;
        digits++;
        at++;
    }
    if (digits == 0 || digits > 18 || (digits > 1 && *cursor->at == '0')) {
        return false;
    }
    if (cursor->end - at < 2 || at[0] != '\r' || at[1] != '\n') {
        return false;
    }
    cursor->at = at + 2;
    *number = value;
    return true;
}

/* The value of a link, as replies.pod reads it: no link (-1), or a pod id. */
static bool
read_value(Cursor *cursor, int64_t *pod)
{
    Cursor ahead = *cursor;
    if (ahead.end - ahead.at >= 3 && memcmp(ahead.at, "_\r\n", 3) == 0) {
        cursor->at += 3;
        *pod = -1;
        return true;
    }
    int64_t size;
    if (ahead.at == ahead.end || *ahead.at++ != '$' || !read_number(&ahead, &size)) {
        return false;
    }
    /* 19 digits are the longest pod id; whether that many fit into an int64 is left to the pure code. */
    if (size < 1 || size > 18 || ahead.end - ahead.at < size + 2) {
        return false;
    }
    int64_t value = 0;
    for (int64_t place = 0; place < size; place++, ahead.at++) {
        if (*ahead.at < '0' || *ahead.at > '9') {
            return false;
        }
        value = value * 10 + (*ahead.at - '0');
    }
    if (ahead.at[0] != '\r' || ahead.at[1] != '\n') {
        return false;
    }
    cursor->at = ahead.at + 2;
    *pod = value;
    return true;
}

/* The answer to PTTL: milliseconds, -1 for a link without an end, -2 for no link. */
static bool
read_ttl(Cursor *cursor, int64_t *milliseconds)
{
    Cursor ahead = *cursor;
    if (ahead.at == ahead.end || *ahead.at++ != ':') {
        return false;
    }
    bool negative = ahead.at < ahead.end && *ahead.at == '-';
    ahead.at += negative;
    int64_t number;
    if (!read_number(&ahead, &number)) {
        return false;
    }
    if (negative && number != 1 && number != 2) {
        return false;
    }
    /* Up to here a double holds every integer, so that dividing by 1000 rounds as Python's division of ints does. */
    if (number > ((int64_t)1 << 53)) {
        return false;
    }
    cursor->at = ahead.at;
    *milliseconds = negative ? -number : number;
    return true;
}

/* --- Storing --- */

/* A lane and its cache, as they are while one piece of data is handled. New references, all of them. */
typedef struct {
    PyObject *lane, *tokens;
    PyObject *epoch, *cache, *entries, *data, *flights, *own_writes, *services;
    Py_ssize_t room;
    double max_age;
    bool negative;
} Scene;

static void
leave_scene(Scene *scene)
{
    Py_CLEAR(scene->epoch);
    Py_CLEAR(scene->cache);
    Py_CLEAR(scene->entries);
    Py_CLEAR(scene->data);
    Py_CLEAR(scene->flights);
    Py_CLEAR(scene->own_writes);
    Py_CLEAR(scene->services);
}

/* The attribute, which must be a dict. NULL with an exception. */
static PyObject *
dict_of(PyObject *owner, PyObject *attribute)
{
    PyObject *found = PyObject_GetAttr(owner, attribute);
    if (found != NULL && !PyDict_CheckExact(found)) {
        PyErr_Format(PyExc_TypeError, "%U must be a dict", attribute);
        Py_CLEAR(found);
    }
    return found;
}

/* 1 or 0 for a truth value, -1 with an exception. */
static int
truth_of(PyObject *owner, PyObject *attribute)
{
    PyObject *found = PyObject_GetAttr(owner, attribute);
    if (found == NULL) {
        return -1;
    }
    int truth = PyObject_IsTrue(found);
    Py_DECREF(found);
    return truth;
}

/* Look around. 1: go on; 0: this lane is not plain now; -1: an exception. */
static int
enter_scene(Scene *scene)
{
    int troubled = truth_of(scene->lane, name.troubled); /* Read._finish: the owner must hear of its answer */
    if (troubled != 0) {
        return troubled < 0 ? -1 : 0;
    }
    scene->epoch = PyObject_GetAttr(scene->lane, name.epoch);
    if (scene->epoch == NULL) {
        return -1;
    }
    if (!Py_IS_TYPE(scene->epoch, epoch_type)) {
        return 0;
    }
    PyObject *max_age = get_slot(scene->epoch, in_epoch.max_age);
    if (max_age == NULL) {
        return 0;
    }
    scene->max_age = PyFloat_AsDouble(max_age);
    if (scene->max_age == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    scene->cache = PyObject_GetAttr(scene->lane, name.cache);
    if (scene->cache == NULL) {
        return -1;
    }
    PyObject *config = PyObject_GetAttr(scene->cache, name.config);
    if (config == NULL) {
        return -1;
    }
    int negative = truth_of(config, name.negative);
    Py_DECREF(config);
    if (negative < 0) {
        return -1;
    }
    scene->negative = negative;
    scene->entries = PyObject_GetAttr(scene->cache, name.entries);
    if (scene->entries == NULL) {
        return -1;
    }
    PyObject *room = PyObject_GetAttr(scene->entries, name.room);
    if (room == NULL) {
        return -1;
    }
    scene->room = PyLong_AsSsize_t(room);
    Py_DECREF(room);
    if (scene->room == -1 && PyErr_Occurred()) {
        return -1;
    }
    scene->data = dict_of(scene->entries, name.data);
    scene->flights = scene->data == NULL ? NULL : dict_of(scene->cache, name.flights);
    scene->own_writes = scene->flights == NULL ? NULL : dict_of(scene->cache, name.own_writes);
    scene->services = scene->own_writes == NULL ? NULL : dict_of(scene->cache, name.services);
    return scene->services == NULL ? -1 : 1;
}

/* 1 if the next two replies belong to one lookup, and the lane is in the stretch it was in; else 0, or -1 with an
   exception. A waiter is somebody else's code, so this is asked for each lookup. */
static int
is_next(Scene *scene, PyObject *read)
{
    PyObject *second = PySequence_GetItem(scene->tokens, 1);
    if (second == NULL) {
        return -1;
    }
    Py_DECREF(second);
    if (second != read) {
        return 0;
    }
    PyObject *epoch = PyObject_GetAttr(scene->lane, name.epoch);
    if (epoch == NULL) {
        return -1;
    }
    Py_DECREF(epoch);
    return epoch == scene->epoch;
}

/* True if nothing about the lookup needs the pure code. */
static bool
is_plain(Scene *scene, PyObject *read)
{
    /* A redirected lookup has ASKING among its commands; one of a uid's links is a single command. What one stretch of
       the lane asked and another answers, nobody vouches for. Who joined late may have to ask again. `done` means that
       it was given up meanwhile. (What is `torn` has `value_read`.) What is not `sent` waits to be sent again. The end
       of a batch is told to telemetry, whose code is not ours. */
    if (!Py_IS_TYPE(read, read_type)
        || get_slot(read, in_read.lane) != scene->lane
        || get_slot(read, in_read.epoch) != scene->epoch
        || get_slot(read, in_read.sent) != Py_True
        || get_slot(read, in_read.value_read) != Py_False
        || get_slot(read, in_read.asking) != Py_False
        || get_slot(read, in_read.done) != Py_False
        || get_slot(read, in_read.late) != Py_None)
    {
        return false;
    }
    PyObject *batch = get_slot(read, in_read.batch);
    if (batch == NULL || (batch != Py_None && get_slot(read, in_read.closes_batch) != Py_False)) {
        return false;
    }
    PyObject *key = get_slot(read, in_read.key);
    PyObject *sent_at = get_slot(read, in_read.sent_at);
    PyObject *waiters = get_slot(read, in_read.waiters);
    return key != NULL && PyTuple_CheckExact(key) && PyTuple_GET_SIZE(key) == 3
        && sent_at != NULL && PyFloat_CheckExact(sent_at)
        && waiters != NULL && PyList_CheckExact(waiters)
        && get_slot(read, in_read.dirty) != NULL;
}

/* The lookup that the next two replies belong to, if it is plain: a new reference. NULL without an exception: it is not. */
static PyObject *
plain_read(Scene *scene)
{
    Py_ssize_t waiting = PySequence_Size(scene->tokens);
    if (waiting < 2) {
        return NULL;
    }
    PyObject *read = PySequence_GetItem(scene->tokens, 0);
    /* In this order: is_plain runs nobody's code, so what it saw still holds when the lookup lands. */
    if (read != NULL && (is_next(scene, read) <= 0 || !is_plain(scene, read))) {
        Py_CLEAR(read);
    }
    return read;
}

/* Take two tokens: those of one lookup stand side by side. */
static int
take_tokens(Scene *scene)
{
    for (int count = 0; count < 2; count++) {
        PyObject *token = PyObject_CallMethodNoArgs(scene->tokens, name.popleft);
        if (token == NULL) {
            return -1;
        }
        Py_DECREF(token);
    }
    return 0;
}

/* LookupCache.land: an answer ages from when its question was sent. A new Entry. */
static PyObject *
make_entry(Scene *scene, PyObject *sent, int64_t pod, int64_t milliseconds)
{
    double instant = PyFloat_AS_DOUBLE(sent);
    double until = instant + scene->max_age;
    PyObject *expires = NULL;
    if (pod >= 0 && milliseconds >= 0) {
        double end = instant + (double)milliseconds / 1000.0;
        until = end < until ? end : until;
        expires = PyFloat_FromDouble(end);
    }
    else {
        expires = Py_NewRef(infinity);
    }
    PyObject *deadline = PyFloat_FromDouble(until);
    PyObject *value = pod < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(pod);
    PyObject *entry = NULL;
    if (expires != NULL && deadline != NULL && value != NULL) {
        entry = entry_type->tp_alloc(entry_type, 0);
    }
    if (entry != NULL) {
        set_slot(entry, in_entry.value, value);
        set_slot(entry, in_entry.deadline, deadline);
        set_slot(entry, in_entry.epoch, scene->epoch);
        set_slot(entry, in_entry.expires, expires);
        set_slot(entry, in_entry.sent, sent);
    }
    Py_XDECREF(value);
    Py_XDECREF(deadline);
    Py_XDECREF(expires);
    return entry;
}

/* 1 if LookupCache._store has nothing to do but to put the entry into the dict; else 0, or -1 with an exception. */
static int
is_simple(Scene *scene, PyObject *key)
{
    if (PyDict_Size(scene->own_writes) != 0 || PyDict_Size(scene->data) >= scene->room) {
        return 0;
    }
    PyObject *services = PyDict_GetItemWithError(scene->services, PyTuple_GET_ITEM(key, 0));
    if (services == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    /* Held: comparing names may run code of theirs. */
    Py_INCREF(services);
    int found = PySet_Check(services) ? PySet_Contains(services, PyTuple_GET_ITEM(key, 2)) : 0;
    Py_DECREF(services);
    return found;
}

/* LookupCache._store. */
static int
store(Scene *scene, PyObject *key, PyObject *entry)
{
    int simple = is_simple(scene, key);
    if (simple < 0) {
        return -1;
    }
    if (!simple) {
        PyObject *done = PyObject_CallMethodObjArgs(scene->cache, name.store, key, entry, NULL);
        Py_XDECREF(done);
        return done == NULL ? -1 : 0;
    }
    /* Entries.__setitem__: its place in the order of eviction is that of its age. */
    int held = PyDict_Contains(scene->data, key);
    if (held < 0 || (held > 0 && PyDict_DelItem(scene->data, key) < 0)) {
        return -1;
    }
    return PyDict_SetItem(scene->data, key, entry);
}

/* LookupCache._forget. */
static int
forget(Scene *scene, PyObject *read, PyObject *key)
{
    PyObject *flight = PyDict_GetItemWithError(scene->flights, key);
    if (flight == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    return flight == read ? PyDict_DelItem(scene->flights, key) : 0;
}

/* Flight.finish: end it, and hand it to everyone who waits. */
static int
finish(PyObject *read, PyObject *waiters, PyObject *entry)
{
    set_slot(read, in_read.entry, entry);
    set_slot(read, in_read.error, Py_None);
    set_slot(read, in_read.done, Py_True);
    int status = 0;
    /* By index, with the size read anew: a waiter is somebody else's code. */
    for (Py_ssize_t place = 0; status == 0 && place < PyList_Size(waiters); place++) {
        PyObject *waiter = Py_NewRef(PyList_GetItem(waiters, place));
        if (Py_IS_TYPE(waiter, &wait_type)) {
            status = wait_is_over(waiter) ? 0 : answer_wait(waiter, read);
            Py_DECREF(waiter);
            continue;
        }
        PyObject *answer = PyObject_CallMethodNoArgs(waiter, name.done);
        int over = answer == NULL ? -1 : PyObject_IsTrue(answer);
        Py_XDECREF(answer);
        if (over == 0) {
            answer = PyObject_CallMethodOneArg(waiter, name.set_result, read);
            Py_XDECREF(answer);
            status = answer == NULL ? -1 : 0;
        }
        else if (over < 0) {
            status = -1;
        }
        Py_DECREF(waiter);
    }
    if (status == 0) {
        status = PyList_SetSlice(waiters, 0, PyList_Size(waiters), NULL);
    }
    return status;
}

/* Read.on_reply and Read._finish for a pair of plain replies that agree. */
static int
land_pair(Scene *scene, PyObject *read, int64_t pod, int64_t milliseconds)
{
    /* Held, since others' code runs below: a collection by the garbage collector, the comparison of keys, a waiter. */
    PyObject *key = Py_NewRef(get_slot(read, in_read.key));
    PyObject *sent_at = Py_NewRef(get_slot(read, in_read.sent_at));
    PyObject *waiters = Py_NewRef(get_slot(read, in_read.waiters));
    bool storable =
        get_slot(read, in_read.dirty) == Py_False && scene->max_age > 0 && (pod >= 0 || scene->negative);
    int status = take_tokens(scene);
    PyObject *entry = NULL;
    if (status == 0) {
        set_slot(read, in_read.value_read, Py_True);
        set_slot(read, in_read.batch, Py_None); /* Read._end_batch, where it does not close the batch */
        entry = make_entry(scene, sent_at, pod, milliseconds);
        status = entry == NULL ? -1 : 0;
    }
    if (status == 0 && storable) {
        status = store(scene, key, entry);
    }
    if (status == 0) {
        status = forget(scene, read, key);
    }
    if (status == 0) {
        status = finish(read, waiters, entry);
    }
    Py_XDECREF(entry);
    Py_DECREF(waiters);
    Py_DECREF(sent_at);
    Py_DECREF(key);
    return status;
}

PyDoc_STRVAR(land_doc,
             "land(lane, data, tokens)\n--\n\n"
             "Store the plain replies to lookups that stand at the front of the data. Returns how many bytes they took.");

static PyObject *
land(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyBytes_CheckExact(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "land takes a lane, bytes and tokens");
        return NULL;
    }
    if (read_type == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "learn was not called");
        return NULL;
    }
    Scene scene = {.lane = arguments[0], .tokens = arguments[2]};
    const char *begin = PyBytes_AS_STRING(arguments[1]);
    Cursor cursor = {begin, begin + PyBytes_GET_SIZE(arguments[1])};
    Py_ssize_t landed = 0;
    int status = 0;
    bool entered = false;
    while (status == 0 && cursor.at < cursor.end) {
        int64_t pod, milliseconds;
        if (!read_value(&cursor, &pod) || !read_ttl(&cursor, &milliseconds)
            || (pod < 0) != (milliseconds == -2)) /* Read._finish: such a pair never was a link */
        {
            break;
        }
        if (!entered) {
            int found = enter_scene(&scene);
            if (found <= 0) {
                status = found;
                break;
            }
            entered = true;
        }
        PyObject *read = plain_read(&scene);
        if (read == NULL) {
            status = PyErr_Occurred() ? -1 : 0;
            break;
        }
        /* Nothing has been changed before this. */
        status = land_pair(&scene, read, pod, milliseconds);
        landed = cursor.at - begin;
        Py_DECREF(read);
    }
    leave_scene(&scene);
    return status < 0 ? NULL : PyLong_FromSsize_t(landed);
}

/* --- Packing --- */

/* Append text, and return where it ends. */
static inline char *
put(char *at, const char *text, Py_ssize_t size)
{
    memcpy(at, text, (size_t)size);
    return at + size;
}

PyDoc_STRVAR(pack_doc,
             "pack(tag, service)\n--\n\n"
             "GET and PTTL of the link with this hash tag and service, in RESP.");

PyObject *
pack_lookup(const char *tag, Py_ssize_t tag_size, const char *service, Py_ssize_t service_size)
{
    Py_ssize_t key_size = 4 + tag_size + 1 + service_size; /* sf:{tag}service */
    char header[32];
    Py_ssize_t header_size = PyOS_snprintf(header, sizeof header, "$%zd\r\n", key_size);
    static const char get[] = "*2\r\n$3\r\nGET\r\n", pttl[] = "*2\r\n$4\r\nPTTL\r\n";
    Py_ssize_t size = (Py_ssize_t)(sizeof get + sizeof pttl) - 2 + 2 * (header_size + key_size + 2);
    PyObject *packed = PyBytes_FromStringAndSize(NULL, size);
    if (packed == NULL) {
        return NULL;
    }
    char *at = PyBytes_AS_STRING(packed);
    for (int command = 0; command < 2; command++) {
        at = command == 0 ? put(at, get, sizeof get - 1) : put(at, pttl, sizeof pttl - 1);
        at = put(at, header, header_size);
        at = put(at, "sf:{", 4);
        at = put(at, tag, tag_size);
        at = put(at, "}", 1);
        at = put(at, service, service_size);
        at = put(at, "\r\n", 2);
    }
    return packed;
}

static PyObject *
pack(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_CheckExact(arguments[0]) || !PyUnicode_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "pack takes bytes and a str");
        return NULL;
    }
    Py_ssize_t service_size;
    const char *service = PyUnicode_AsUTF8AndSize(arguments[1], &service_size);
    if (service == NULL) {
        return NULL;
    }
    return pack_lookup(PyBytes_AS_STRING(arguments[0]), PyBytes_GET_SIZE(arguments[0]), service, service_size);
}

/* --- The module --- */

PyDoc_STRVAR(learn_doc,
             "learn(read, entry, epoch)\n--\n\n"
             "Say which the pure classes are. Raises TypeError if one lacks a slot that is used here.");

static PyObject *
learn(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyType_Check(arguments[0]) || !PyType_Check(arguments[1]) || !PyType_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "learn takes three classes");
        return NULL;
    }
    PyTypeObject *read = (PyTypeObject *)arguments[0];
    PyTypeObject *entry = (PyTypeObject *)arguments[1];
    PyTypeObject *epoch = (PyTypeObject *)arguments[2];
    Wanted wanted[] = {
        {read, "_asking", &in_read.asking},
        {read, "batch", &in_read.batch},
        {read, "closes_batch", &in_read.closes_batch},
        {read, "done", &in_read.done},
        {read, "dirty", &in_read.dirty},
        {read, "entry", &in_read.entry},
        {read, "epoch", &in_read.epoch},
        {read, "error", &in_read.error},
        {read, "key", &in_read.key},
        {read, "lane", &in_read.lane},
        {read, "late", &in_read.late},
        {read, "sent", &in_read.sent},
        {read, "sent_at", &in_read.sent_at},
        {read, "value_read", &in_read.value_read},
        {read, "waiters", &in_read.waiters},
        {entry, "deadline", &in_entry.deadline},
        {entry, "epoch", &in_entry.epoch},
        {entry, "expires", &in_entry.expires},
        {entry, "sent", &in_entry.sent},
        {entry, "value", &in_entry.value},
        {epoch, "max_age", &in_epoch.max_age},
    };
    if (find_slots(wanted, sizeof wanted / sizeof wanted[0]) < 0 || learn_leaving(read) < 0) {
        return NULL;
    }
    Py_XSETREF(read_type, (PyTypeObject *)Py_NewRef((PyObject *)read));
    Py_XSETREF(entry_type, (PyTypeObject *)Py_NewRef((PyObject *)entry));
    Py_XSETREF(epoch_type, (PyTypeObject *)Py_NewRef((PyObject *)epoch));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"begin", (PyCFunction)(void (*)(void))begin_for, METH_FASTCALL, begin_doc},
    {"land", (PyCFunction)(void (*)(void))land, METH_FASTCALL, land_doc},
    {"learn", (PyCFunction)(void (*)(void))learn, METH_FASTCALL, learn_doc},
    {"learn_hits", (PyCFunction)(void (*)(void))learn_hits, METH_FASTCALL, learn_hits_doc},
    {"learn_misses", (PyCFunction)(void (*)(void))learn_misses, METH_VARARGS | METH_KEYWORDS, learn_misses_doc},
    {"mark_sent", (PyCFunction)(void (*)(void))mark_sent, METH_FASTCALL, mark_sent_doc},
    {"take_batch", (PyCFunction)(void (*)(void))take_batch, METH_FASTCALL, take_batch_doc},
    {"pack", (PyCFunction)(void (*)(void))pack, METH_FASTCALL, pack_doc},
    {NULL, NULL, 0, NULL},
};

/* One name to intern. */
typedef struct {
    PyObject **place;
    const char *text;
} Text;

static int
set_up(PyObject *module)
{
    /* What is static above belongs to one interpreter. Python 3.12 asks the slots below; 3.11 asks nobody. */
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "not for subinterpreters: there the pure code runs");
        return -1;
    }
    Text texts[] = {
        {&name.cache, "cache"},
        {&name.config, "_config"},
        {&name.data, "_data"},
        {&name.done, "done"},
        {&name.entries, "entries"},
        {&name.epoch, "epoch"},
        {&name.flights, "_flights"},
        {&name.negative, "negative"},
        {&name.own_writes, "_own_writes"},
        {&name.popleft, "popleft"},
        {&name.room, "_room"},
        {&name.services, "_services"},
        {&name.set_result, "set_result"},
        {&name.store, "_store"},
        {&name.troubled, "troubled"},
    };
    for (size_t place = 0; place < sizeof texts / sizeof texts[0]; place++) {
        if (*texts[place].place == NULL) {
            *texts[place].place = PyUnicode_InternFromString(texts[place].text);
            if (*texts[place].place == NULL) {
                return -1;
            }
        }
    }
    if (infinity == NULL) {
        infinity = PyFloat_FromDouble(INFINITY);
    }
    if (infinity == NULL || set_up_waiting(module) < 0 || set_up_misses(module) < 0 || set_up_leaving() < 0
        || set_up_calls(module) < 0) {
        return -1;
    }
    /* What this was compiled from, for a loader that finds it beside a newer heart.c. */
    return PyModule_AddStringConstant(module, "SOURCE", HEART_SOURCE);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)set_up},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sfroute._native.heart",
    .m_doc = "The native part of a lookup; see heart.c.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit_heart(void)
{
    return PyModuleDef_Init(&definition);
}
