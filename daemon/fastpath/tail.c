/* Tail: the Python type, and what its domain is told.
 *
 * SPDX-License-Identifier: MIT
 */
#include "tail.h"

#include <structmember.h>

#include <stdint.h>
#include <string.h>

#include "state.h"

static int Tail_clear(Tail *self)
{
    if (self->state.obj != NULL)
        PyBuffer_Release(&self->state);
    Py_CLEAR(self->owner);
    Py_CLEAR(self->ask);
    Py_CLEAR(self->partial);
    Py_CLEAR(self->fields);
    return 0;
}

static int Tail_traverse(Tail *self, visitproc visit, void *arg)
{
    Py_VISIT(self->owner);
    Py_VISIT(self->ask);
    Py_VISIT(self->partial);
    return 0;
}

static void Tail_dealloc(Tail *self)
{
    PyObject_GC_UnTrack(self);
    Tail_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int Tail_init(Tail *self, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *owner, *partial, *state;

    if (!PyArg_ParseTuple(args, "OO!O:Tail", &owner, &PyByteArray_Type, &partial, &state))
        return -1;
    Tail_clear(self);
    if (PyObject_GetBuffer(state, &self->state, PyBUF_WRITABLE) < 0)
        return -1;
    if (self->state.len != STATE_SIZE || (uintptr_t)self->state.buf % sizeof(uint64_t) != 0) {
        PyBuffer_Release(&self->state);
        PyErr_SetString(PyExc_ValueError, "not the mapping of a state");
        return -1;
    }
    self->owner = Py_NewRef(owner);
    self->partial = Py_NewRef(partial);
    return 0;
}

static PyObject *Tail_offer(Tail *self, PyObject *args)
{
    unsigned long long sequence;
    int area, blacklisted, logging;
    int noted;
    double begin_from;

    if (!PyArg_ParseTuple(args, "Kippdi:offer", &sequence, &area, &blacklisted, &logging, &begin_from, &noted))
        return NULL;
    self->sequence = sequence;
    self->area = area & 1;
    self->blacklisted = blacklisted;
    self->logging = logging;
    self->begin_from = begin_from;
    self->drop_until = 0;
    self->noted = noted;
    Py_CLEAR(self->fields);
    Py_RETURN_NONE;
}

static PyObject *Tail_offer_lines(Tail *self, PyObject *args)
{
    PyObject *fields;
    int limited;
    double balance, balance_at, rate, burst;

    if (!PyArg_ParseTuple(args, "Spdddd:offer_lines", &fields, &limited, &balance, &balance_at, &rate, &burst))
        return NULL;
    Py_XSETREF(self->fields, Py_NewRef(fields));
    self->limited = limited;
    self->balance = balance;
    self->balance_at = balance_at;
    self->rate = rate;
    self->burst = burst;
    Py_RETURN_NONE;
}

static PyObject *Tail_offer_drops(Tail *self, PyObject *args)
{
    if (!PyArg_ParseTuple(args, "dddddd:offer_drops", &self->drop_until, &self->report, &self->balance, &self->balance_at,
                          &self->rate, &self->burst))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *Tail_rules(Tail *self, PyObject *args)
{
    if (!PyArg_ParseTuple(args, "iII:rules", &self->version, &self->allowed, &self->allowed_blacklisted))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *Tail_close(Tail *self, PyObject *Py_UNUSED(ignored))
{
    Tail_clear(self);
    Py_RETURN_NONE;
}

static PyObject *Tail_tell(Tail *self, PyObject *Py_UNUSED(ignored))
{
    tell(self);
    Py_RETURN_NONE;
}

static PyMethodDef Tail_methods[] = {
    {"offer", (PyCFunction)Tail_offer, METH_VARARGS, "The domain is settled, and this is how it may go on."},
    {"offer_drops", (PyCFunction)Tail_offer_drops, METH_VARARGS, "After offer(): lines that cannot pay may be dropped."},
    {"offer_lines", (PyCFunction)Tail_offer_lines, METH_VARARGS, "After offer(): lines may go to journald, and cost that."},
    {"rules", (PyCFunction)Tail_rules, METH_VARARGS, "What the configuration decides about the protocol."},
    {"tell", (PyCFunction)Tail_tell, METH_NOARGS, "Tell the domain what it was not told yet."},
    {"close", (PyCFunction)Tail_close, METH_NOARGS, "Let go of the domain and its state."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Tail_members[] = {
    {"changed", T_BOOL, offsetof(Tail, changed), READONLY, "There is something that the domain was not told."},
    {"held", T_INT, offsetof(Tail, held), READONLY, "Connections that the Poller has."},
    {"others", T_INT, offsetof(Tail, others), 0, "Connections that Python has."},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject TailType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "unplugd.sockets._fastpath.Tail",
    .tp_basicsize = sizeof(Tail),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "What of a domain may change outside of Python.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Tail_init,
    .tp_dealloc = (destructor)Tail_dealloc,
    .tp_traverse = (traverseproc)Tail_traverse,
    .tp_clear = (inquiry)Tail_clear,
    .tp_methods = Tail_methods,
    .tp_members = Tail_members,
};

static PyObject *told_steps(const Tail *tail)
{
    PyObject *steps = PyTuple_New(tail->steps);

    for (int i = 0; steps != NULL && i < tail->steps; i++) {
        PyObject *step = Py_BuildValue("(iId)", tail->step[i].kind, tail->step[i].value, tail->step[i].time);

        if (step == NULL)
            Py_CLEAR(steps);
        else
            PyTuple_SET_ITEM(steps, i, step);
    }
    return steps;
}

int catch_up(Tail *tail)
{
    PyObject *durations, *steps, *method, *told, *done = NULL;

    if (!tail->changed || tail->owner == NULL)
        return 0;
    steps = told_steps(tail);
    if (steps == NULL)
        return -1;
    durations = PyList_New(0);
    for (int i = 0; durations != NULL && i <= MAX_BOUNDS; i++)
        if (tail->durations[i] > 0) {
            PyObject *pair = Py_BuildValue("(iI)", i, tail->durations[i]);

            if (pair == NULL || PyList_Append(durations, pair) < 0)
                Py_CLEAR(durations);
            Py_XDECREF(pair);
        }
    if (durations == NULL) {
        Py_DECREF(steps);
        return -1;
    }
    told = Py_BuildValue("((dLLLd)(Ki)(LLdN)(LLdd)N)",
                         tail->heard, tail->lines, tail->dropped_lines, tail->dropped_bytes, tail->dropped_at,
                         (unsigned long long)tail->sequence, tail->area,
                         tail->magics, tail->logged, tail->seconds, durations,
                         tail->passed_lines, tail->passed_bytes, tail->balance, tail->balance_at, steps);
    method = told == NULL ? NULL : PyObject_GetAttrString(tail->owner, "caught_up");
    if (method != NULL) {
        /* before the call: whoever looks at the domain meanwhile must not be told all of it once more */
        memset(&tail->changed, 0, sizeof *tail - offsetof(Tail, changed));
        done = PyObject_CallObject(method, told);
        Py_DECREF(method);
    }
    Py_XDECREF(told);
    Py_XDECREF(done);
    return done == NULL || tail->owner == NULL ? -1 : 0;    /* what it did may have closed the domain */
}

int call_owner(Tail *tail, const char *method, double time)
{
    PyObject *owner = tail->owner, *done;

    Py_INCREF(owner);
    done = PyObject_CallMethod(owner, method, "d", time);
    Py_DECREF(owner);
    Py_XDECREF(done);
    return done == NULL || tail->owner == NULL ? -1 : 0;
}

void tell(Tail *tail)
{
    bool stepped = tail->steps > 0 && tail->owner != NULL;

    if (catch_up(tail) < 0 || (stepped && call_owner(tail, "settle", now()) < 0)) {
        if (PyErr_Occurred())
            PyErr_WriteUnraisable((PyObject *)Py_TYPE(tail));
        tail->logging = false;  /* until Python has settled */
    }
}
