/* What the files of the native part share: where the slots of the pure classes are. */

#ifndef SFROUTE_HEART_H
#define SFROUTE_HEART_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef Py_GIL_DISABLED
#error "not for builds without the GIL: there the pure code runs"
#endif

/* One slot to find. */
typedef struct {
    PyTypeObject *type;
    const char *name;
    Py_ssize_t *offset;
} Wanted;

/* Find them all, or none: offsets of one class are no use with another. -1 with an exception if a class lacks one. */
int find_slots(const Wanted *wanted, size_t count);

/* What a slot holds: borrowed; NULL if it was never set. */
static inline PyObject *
get_slot(PyObject *object, Py_ssize_t offset)
{
    return *(PyObject **)((char *)object + offset);
}

/* Put a new reference to `value` into a slot. */
static inline void
set_slot(PyObject *object, Py_ssize_t offset, PyObject *value)
{
    PyObject **place = (PyObject **)((char *)object + offset);
    PyObject *previous = *place;
    Py_INCREF(value);
    *place = value;
    Py_XDECREF(previous);
}

/* heart.c: GET and PTTL of a link, in RESP. `tag` is the hash tag, both are of bytes. A new bytes object. */
PyObject *pack_lookup(const char *tag, Py_ssize_t tag_size, const char *service, Py_ssize_t service_size);

/* waiting.c: what a task waits for while its lookup is under way. */
int set_up_waiting(PyObject *module);
extern PyTypeObject wait_type;
PyObject *new_wait(PyObject *wakes);                  /* NULL with an exception */
bool wait_is_over(PyObject *wait);                    /* answered or cancelled */
int answer_wait(PyObject *wait, PyObject *flight);    /* set_result; -1 with an exception */
PyObject *result_of_wait(PyObject *wait);             /* the flight; NULL with an exception */
void leave_wait(PyObject *wait);                      /* nobody is to be woken any more */

/* leaving.c: what leaves together. */
int set_up_leaving(void);
int learn_leaving(PyTypeObject *read);
PyObject *take_batch(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *mark_sent(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
extern const char take_batch_doc[], mark_sent_doc[];

/* misses.c: the begin of a lookup. */
int set_up_misses(PyObject *module);
PyObject *learn_misses(PyObject *module, PyObject *arguments, PyObject *named);
PyObject *begin_for(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
extern const char learn_misses_doc[], begin_doc[];
/* 1: it has begun, and `wait` is what to wait for, a new reference; 0: it is not plain; -1 with an exception. */
int begin_lookup(PyObject *router, PyObject *key, double now, PyObject **wait);

/* calls.c: the call of a hot method. */
int set_up_calls(PyObject *module);
PyObject *learn_hits(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
extern const char learn_hits_doc[];

#endif
