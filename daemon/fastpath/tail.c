/* Tail: the Python type, and keeping what changed in the mapped state.
 *
 * SPDX-License-Identifier: MIT
 */
#include "tail.h"

#include <structmember.h>

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "state.h"

unsigned char pending[LINE_LIMIT];

static uint32_t crc_table[8][256];     /* what a byte becomes, with so many bytes behind it */

void make_crc_table(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;

        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
        crc_table[0][n] = crc;
    }
    for (int behind = 1; behind < 8; behind++)
        for (uint32_t n = 0; n < 256; n++)
            crc_table[behind][n] = crc_table[behind - 1][n] >> 8 ^ crc_table[0][crc_table[behind - 1][n] & 0xFF];
}

static uint32_t crc32(const struct header *header)     /* zlib.crc32, eight bytes at a time */
{
    const char *data = (const char *)header;
    uint32_t crc = 0xFFFFFFFFu;

    _Static_assert(sizeof *header % 8 == 0, "nothing is left over");
    for (size_t at = 0; at < sizeof *header; at += 8) {
        uint64_t word;

        memcpy(&word, data + at, sizeof word);
        word ^= crc;
        crc = 0;
        for (int byte = 0; byte < 8; byte++)
            crc ^= crc_table[7 - byte][word >> 8 * byte & 0xFF];
    }
    return ~crc;
}

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
    .tp_name = "unplugd._fastpath.Tail",
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

int append_pending(Tail *tail)
{
    Py_ssize_t have = PyByteArray_GET_SIZE(tail->partial);

    if (tail->waiting == 0)
        return 0;
    if (PyByteArray_Resize(tail->partial, have + tail->waiting) < 0)
        return -1;
    memcpy(PyByteArray_AS_STRING(tail->partial) + have, pending, (size_t)tail->waiting);
    tail->waiting = 0;
    return 0;
}

bool in_step(const Tail *tail)
{
    const char *map = tail->state.buf;
    const struct header *last = (const void *)(map + (tail->sequence & 1) * SLOT);
    const struct header *other = (const void *)(map + (~tail->sequence & 1) * SLOT);

    return last->sequence == tail->sequence && other->sequence < tail->sequence;
}

/* The header that counts, for a change. */
static struct slot current(const Tail *tail)
{
    struct slot slot;

    memcpy(&slot, (const char *)tail->state.buf + (tail->sequence & 1) * SLOT, sizeof slot);
    return slot;
}

/* From now on this one counts; `length` bytes of the partial line belong to it. */
static void publish(Tail *tail, struct slot *slot, Py_ssize_t length)
{
    slot->header.sequence = ++tail->sequence;
    slot->header.area = tail->area;
    slot->header.length = length;
    slot->checksum = crc32(&slot->header);
    atomic_signal_fence(memory_order_seq_cst);
    memcpy((char *)tail->state.buf + (tail->sequence & 1) * SLOT, slot,
           offsetof(struct slot, checksum) + sizeof slot->checksum);
}

/* StateFile.commit() of a guest of which only the partial line, the balance and what was dropped have changed. */
static void commit(Tail *tail, Py_ssize_t length)
{
    struct slot slot = current(tail);

    slot.header.unsaid_lines += tail->unsaid_lines;
    slot.header.unsaid_bytes += tail->unsaid_bytes;
    if (tail->paid) {
        slot.header.balance = tail->balance;
        slot.header.balance_at = tail->balance_at;
        tail->paid = false;
    }
    slot.header.charged = 0;    /* by the frames of a line that has ended */
    tail->unsaid_lines = tail->unsaid_bytes = 0;
    publish(tail, &slot, length);
}

/* StateFile.grow(): one aligned store, it is there or it is not. */
static void store_word(const Tail *tail, Py_ssize_t sent)
{
    *(volatile uint64_t *)((char *)tail->state.buf + WORD) =
        (uint64_t)sent << (32 + LENGTH_BITS) | (tail->sequence & 0xFFFFFFFFu) << LENGTH_BITS |
        (uint64_t)PyByteArray_GET_SIZE(tail->partial);
}

void note_sent(Tail *tail, Py_ssize_t size)
{
    store_word(tail, size);
}

int keep(Tail *tail)
{
    char *map = tail->state.buf;
    Py_ssize_t have = PyByteArray_GET_SIZE(tail->partial), more = tail->waiting;
    bool ended = tail->ended;

    if (!ended && more == 0)
        return 0;
    if (append_pending(tail) < 0)
        return -1;
    tail->ended = false;
    tail->area ^= ended;    /* nothing that a valid header refers to is overwritten; `have` is 0 then */
    memcpy(map + PAGE + tail->area * PAGE + have, PyByteArray_AS_STRING(tail->partial) + have, (size_t)more);
    atomic_signal_fence(memory_order_seq_cst);
    if (ended)
        commit(tail, more);
    else
        store_word(tail, 0);
    atomic_signal_fence(memory_order_seq_cst);
    return 0;
}

static void add_step(Tail *tail, enum kind kind, unsigned value, double time)
{
    tail->step[tail->steps++] = (struct step){ kind, value, time };
    tail->changed = true;
}

/* Guest.write() and Platform of core/: the same change of the same state. The history, records and what is published
 * follow when the domain is told. */
bool take_step(Tail *tail, enum kind kind, struct frame *frame, double time)
{
    struct slot slot;
    unsigned value = (uint16_t)frame->data;
    uint64_t order = 0;

    if (tail->version == 0 || tail->steps == MAX_STEPS || tail->waiting > 0 || tail->gathered > 0 || tail->ended || tail->unsettled)
        return false;
    if (kind != VERSION)
        slot = current(tail);
    if (kind == PRODUCT && (int64_t)value != (slot.header.product < 0 ? 0 : slot.header.product)) {
        slot.header.product = value == 0 ? -1 : (int64_t)value;
        slot.header.build = -1;
        publish(tail, &slot, PyByteArray_GET_SIZE(tail->partial));
    } else if (kind == UNPLUG) {
        order = value & ALL_DEVICES & (tail->blacklisted ? tail->allowed_blacklisted : tail->allowed);
        if (order & ~(uint64_t)slot.header.unplugged) {
            slot.header.unplugged |= (int64_t)order;
            publish(tail, &slot, PyByteArray_GET_SIZE(tail->partial));
        }
    }
    atomic_signal_fence(memory_order_seq_cst);
    frame->data = kind == VERSION ? (uint64_t)tail->version : order;
    frame->flags = kind == VERSION ? RESPONSE | READ : RESPONSE;
    if (kind != VERSION)    /* lines name the product, and come behind what is to be said of this */
        Py_CLEAR(tail->fields);
    add_step(tail, kind, value, time);
    return true;
}

int64_t product_asked(const Tail *tail)
{
    return tail->ask != NULL && tail->version != 0 && tail->logging && tail->gathered == 0 && in_step(tail) ? current(tail).header.product : -1;
}

/* Guest.judge() with a verdict of xenstore's that allows it. */
bool allow_build(Tail *tail, int64_t product, unsigned build, double time)
{
    struct slot slot;

    if (tail->steps == MAX_STEPS || product_asked(tail) != product)
        return false;
    slot = current(tail);
    slot.header.build = build;
    publish(tail, &slot, PyByteArray_GET_SIZE(tail->partial));
    atomic_signal_fence(memory_order_seq_cst);
    Py_CLEAR(tail->fields);
    add_step(tail, BUILD, build, time);
    return true;
}

void note_magic(Tail *tail, double time)
{
    if (tail->noted != tail->blacklisted && tail->steps < MAX_STEPS) {
        tail->noted = tail->blacklisted;
        add_step(tail, MAGIC, 0, time);
    }
}

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
    return done == NULL ? -1 : 0;
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
