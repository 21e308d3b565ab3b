/* What the files of the native part share: where the slots of the pure classes are. */

#ifndef SFROUTE_HEART_H
#define SFROUTE_HEART_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

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

/* calls.c: the call of a hot method. */
int set_up_calls(PyObject *module);
PyObject *learn_hits(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
extern const char learn_hits_doc[];

#endif
