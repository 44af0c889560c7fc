/* Rows and Table: constants are answered, log bytes are appended. What they mean, Python knows (core/answers.py).
 *
 * SPDX-License-Identifier: MIT
 */
#include "table.h"

#include <structmember.h>

#include <time.h>

#include "frame.h"

double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* --- answers */

static const struct row *look_up(const Rows *rows, const struct frame *frame)
{
    for (int at = 0; at < rows->rows; at++) {
        const struct row *row = &rows->row[at];

        if (row->addr == frame->addr && row->size == frame->size && row->read == (frame->flags & READ))
            return row;
    }
    return NULL;
}

void answer(Table *table, const unsigned char *in, size_t size, unsigned char *out, double time, struct answered *done)
{
    bool logged = false;

    *done = (struct answered){ 0 };
    while (table->rows != NULL && size - done->used >= FRAME) {
        struct frame frame;
        const struct row *row;
        size_t payload = 0;

        memcpy(&frame, in + done->used, FRAME);      /* behind a payload it is not aligned */
        if (frame.type != 0 || (frame.flags & STATE) != REQUEST || (row = look_up(table->rows, &frame)) == NULL)
            break;
        if (frame.flags & STRING) {
            if (!row->append || frame.count == 0 || frame.count > PAYLOAD_LIMIT || frame.count == row->left)
                break;
            payload = frame.count;
            if (size - done->used - FRAME < payload) {
                done->incomplete = true;
                break;
            }
        } else if (frame.count != 1) {
            break;
        }
        if (row->append) {
            size_t bytes = payload > 0 ? payload : 1;
            const void *data = payload > 0 ? (const void *)(in + done->used + FRAME) : &frame.data;

            if (!log_append(&table->log, data, bytes))
                break;
            logged = true;
            done->due = done->due || memchr(data, '\n', bytes) != NULL || table->log.used >= table->wake;
        }
        if (!(table->seen & 1u << row->kind)) {
            table->seen |= 1u << row->kind;
            table->seen_at = time;
        }
        ++*row->count;
        frame.data = row->append ? 0 : row->value;
        frame.flags = (uint8_t)((frame.flags & ~STATE) | RESPONSE);
        memcpy(out + done->size, &frame, FRAME);
        done->size += FRAME;
        done->used += FRAME + payload;
    }
    if (done->used < size && size - done->used < FRAME)
        done->incomplete = true;
    if (logged) {
        table->heard = time;
        log_publish(&table->log);
    }
}

int wake(Table *table)
{
    PyObject *woken = table->woken, *done;

    if (woken == NULL)
        return PyErr_SetString(PyExc_RuntimeError, "the table is closed"), -1;
    Py_INCREF(woken);       /* what it does may close the table */
    done = PyObject_CallNoArgs(woken);
    Py_DECREF(woken);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* --- Rows */

/* A row from (read, addr, size, value or None, kind, left). -1 and an exception. */
static int take_row(Rows *self, PyObject *item)
{
    struct row *row = &self->row[self->rows];
    unsigned long long addr;
    unsigned size, kind, left = 0;
    int read;
    PyObject *value;

    if (!PyTuple_Check(item))
        return PyErr_SetString(PyExc_TypeError, "a row is a tuple"), -1;
    if (!PyArg_ParseTuple(item, "pKIOI|I:row", &read, &addr, &size, &value, &kind, &left))
        return -1;
    if (kind >= MAX_KINDS || (Py_ssize_t)kind >= self->counts.len / (Py_ssize_t)sizeof(uint64_t))
        return PyErr_SetString(PyExc_ValueError, "a row's kind has no counter"), -1;
    *row = (struct row){
        .addr = addr, .size = size, .kind = kind, .left = left, .read = read ? READ : 0, .append = value == Py_None,
        .count = (uint64_t *)self->counts.buf + kind,
    };
    if (row->append && (read || size != 1))
        return PyErr_SetString(PyExc_ValueError, "only a write of one byte is appended"), -1;
    if (!row->append) {
        row->value = PyLong_AsUnsignedLongLong(value);
        if (PyErr_Occurred())
            return -1;
    }
    self->rows++;
    return 0;
}

static int Rows_init(Rows *self, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *rows, *counts;

    if (self->counts.obj != NULL)
        return PyErr_SetString(PyExc_RuntimeError, "rows never change"), -1;
    if (!PyArg_ParseTuple(args, "O!O:Rows", &PyTuple_Type, &rows, &counts) ||
        PyObject_GetBuffer(counts, &self->counts, PyBUF_WRITABLE) < 0)
        return -1;
    if (PyTuple_GET_SIZE(rows) > MAX_ROWS || (uintptr_t)self->counts.buf % sizeof(uint64_t) != 0)
        return PyErr_SetString(PyExc_ValueError, "too many rows, or counters that are not aligned"), -1;
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(rows); at++)
        if (take_row(self, PyTuple_GET_ITEM(rows, at)) < 0)
            return -1;
    return 0;
}

static void Rows_dealloc(Rows *self)
{
    if (self->counts.obj != NULL)
        PyBuffer_Release(&self->counts);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyTypeObject RowsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "unplugd.sockets._fastpath.Rows",
    .tp_basicsize = sizeof(Rows),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Rows((read, addr, size, value or None, kind, left), ...), counters by kind): what is answered without Python.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Rows_init,
    .tp_dealloc = (destructor)Rows_dealloc,
};

/* --- Table */

static int Table_clear(Table *self)
{
    self->log = (struct log){ 0 };
    if (self->memory.obj != NULL)
        PyBuffer_Release(&self->memory);
    Py_CLEAR(self->woken);
    Py_CLEAR(self->rows);
    return 0;
}

static int Table_traverse(Table *self, visitproc visit, void *arg)
{
    Py_VISIT(self->woken);
    return 0;
}

static void Table_dealloc(Table *self)
{
    PyObject_GC_UnTrack(self);
    Table_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int Table_init(Table *self, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *memory, *woken;
    Py_ssize_t word;

    if (!PyArg_ParseTuple(args, "OnO:Table", &memory, &word, &woken))
        return -1;
    Table_clear(self);
    if (PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) < 0)
        return -1;
    if (word < 0 || word > self->memory.len - (Py_ssize_t)sizeof(uint64_t) ||
        ((uintptr_t)self->memory.buf + (size_t)word) % sizeof(uint64_t) != 0) {
        PyErr_SetString(PyExc_ValueError, "the word is not in the memory, or not aligned");
        PyBuffer_Release(&self->memory);        /* place() needs both */
        return -1;
    }
    self->log.word = (uint64_t *)((char *)self->memory.buf + word);
    self->woken = Py_NewRef(woken);
    return 0;
}

static PyObject *Table_place(Table *self, PyObject *args)
{
    unsigned long long generation;
    Py_ssize_t at, size, used;

    if (!PyArg_ParseTuple(args, "Knnn:place", &generation, &at, &size, &used))
        return NULL;
    if (self->memory.obj == NULL || at < 0 || size < 0 || size > LOG_SIZE_LIMIT || at > self->memory.len - size ||
        used < 0 || used > size)
        return PyErr_SetString(PyExc_ValueError, "the area is not in the memory"), NULL;
    self->log.text = (unsigned char *)self->memory.buf + at;
    self->log.size = (uint32_t)size;
    self->log.used = (uint32_t)used;
    self->log.generation = generation;
    log_publish(&self->log);
    Py_RETURN_NONE;
}

static PyObject *Table_answer(Table *self, PyObject *args)
{
    Py_buffer in;
    Py_ssize_t at;
    PyObject *out, *result = NULL;
    struct answered done;

    if (!PyArg_ParseTuple(args, "y*n:answer", &in, &at))
        return NULL;
    if (at < 0 || at > in.len)
        at = in.len;
    out = PyBytes_FromStringAndSize(NULL, in.len - at);
    if (out != NULL) {
        answer(self, (const unsigned char *)in.buf + at, (size_t)(in.len - at), (unsigned char *)PyBytes_AS_STRING(out),
               now(), &done);
        if (_PyBytes_Resize(&out, (Py_ssize_t)done.size) == 0 && (!done.due || wake(self) == 0))
            result = Py_BuildValue("(On)", out, (Py_ssize_t)done.used);
        Py_XDECREF(out);
    }
    PyBuffer_Release(&in);
    return result;
}

static PyObject *Table_close(Table *self, PyObject *Py_UNUSED(ignored))
{
    Table_clear(self);
    Py_RETURN_NONE;
}

static PyObject *Table_use(Table *self, PyObject *rows)
{
    if (!PyObject_TypeCheck(rows, &RowsType))
        return PyErr_SetString(PyExc_TypeError, "not Rows"), NULL;
    Py_XSETREF(self->rows, (Rows *)Py_NewRef(rows));
    Py_RETURN_NONE;
}

static PyMethodDef Table_methods[] = {
    {"place", (PyCFunction)Table_place, METH_VARARGS, "The log text goes on in this area."},
    {"answer", (PyCFunction)Table_answer, METH_VARARGS, "Answer frames from an offset on: answers, bytes used."},
    {"use", (PyCFunction)Table_use, METH_O, "Answer by these rows from now on."},
    {"close", (PyCFunction)Table_close, METH_NOARGS, "Let go of the memory: nothing is answered any more."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Table_members[] = {
    {"text", T_UINT, offsetof(Table, log) + offsetof(struct log, used), READONLY, "Bytes of log text."},
    {"wake", T_ULONGLONG, offsetof(Table, wake), 0, "Length of the text from which on Python is called."},
    {"heard", T_DOUBLE, offsetof(Table, heard), READONLY, "When the last log byte came."},
    {"seen", T_UINT, offsetof(Table, seen), 0, "Kinds of the rows that were used, a bit each."},
    {"seen_at", T_DOUBLE, offsetof(Table, seen_at), READONLY, "When the last bit of `seen` was set."},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject TableType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "unplugd.sockets._fastpath.Table",
    .tp_basicsize = sizeof(Table),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "Table(memory, offset of the word, woken): a guest's rows and log text.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Table_init,
    .tp_dealloc = (destructor)Table_dealloc,
    .tp_traverse = (traverseproc)Table_traverse,
    .tp_clear = (inquiry)Table_clear,
    .tp_methods = Table_methods,
    .tp_members = Table_members,
};
