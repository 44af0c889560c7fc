/* unplugd._fastpath: the accesses that a talking guest makes all day, served without entering Python.
 *
 * A Poller stands in the place of select.epoll in the event loop's selector (fastpath.py). When a device model's
 * connection becomes readable, it reads and answers the frames that are a magic read or write guest log, and
 * goes back to waiting. All else is Python's: the first other frame, and everything behind it, is handed over with the
 * bytes that were read, in order. Nothing here is a second opinion on the protocol: what these frames do is
 * core/stream.py's, what is kept before they are answered is state.py's, and tests/unit/test_fastpath.py holds both to
 * the same bytes, answers, events, counters and state.
 *
 * Who owns what, when. All of this runs on the event loop's thread with the GIL held, so it never runs beside Python,
 * only between two callbacks, when every domain is settled (Domain.settle). A Tail is the part of a domain that may
 * change here: the end of its partial line, its copy in the mapped state, the balance of its limiter, and how many lines
 * were dropped or went to the journal. Python offers it at the end of each settle(); what changed is told to the domain
 * (caught_up) before any Python code runs again, be it a callback from here or the return of poll(). So there are never
 * two truths about a domain.
 *
 * "Acknowledged" (contract section 1) is the order of serve(): take the bytes, hand ended lines to journald, store the
 * rest into the mapped state, count, and only then send. Stores are ordered by compiler fences; SIGKILL stops a process
 * between two instructions, and the kernel keeps what was stored.
 *
 * SPDX-License-Identifier: MIT
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "_journal.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames and state are read in place: little-endian only (Xen's guests with a device model are x86)"
#endif

enum {
    FRAME = 32,
    READ_SIZE = 16 * 1024,  /* connection.READ_SIZE: at most 512 accesses, then it is somebody else's turn */
    LINE_LIMIT = 4095,      /* core.guestlog.LINE_LIMIT: the byte that fills a line is Python's */
    RECORD_COST = 64,       /* core.guestlog.RECORD_COST: the least that a line costs */
    PAYLOAD_LIMIT = 4096,   /* core.ioreq.PAYLOAD_LIMIT: bytes of one string write */
    EVENTS = 256,           /* descriptors looked at in one round */
    BUDGET = 500,           /* turns.BUDGET, microseconds: what one domain may take of a round */
    ROUNDS = 256,           /* rounds after which Python has a turn even where nothing asks for it */
    MAX_BOUNDS = 32,
};

/* --- frames: core/ioreq.py and contract section 1 */

struct frame {
    uint64_t addr;
    uint64_t data;
    uint32_t count;
    uint32_t size;
    uint32_t vp_eport;
    uint16_t pad;
    uint8_t flags;          /* bits 0-3 state, 4 data_is_ptr, 5 dir (1 = read) */
    uint8_t type;
};
_Static_assert(sizeof(struct frame) == FRAME, "struct ioreq has 32 bytes");

enum { OTHER, MAGIC, LOG, LOG_STRING };
enum { REQUEST = 1, RESPONSE = 3, STRING = 0x10, READ = 0x20 };
enum { PORT_MAGIC = 0x10, PORT_LOG = 0x12, BAR_LOG = 0x10008 };
enum { MAGIC_ALLOWED = 0x49d2, MAGIC_DENIED = 0xd249 };

static int recognize(const struct frame *frame)
{
    if (frame->type != 0)
        return OTHER;
    if (frame->size == 1 && (frame->addr == PORT_LOG || frame->addr == BAR_LOG)) {
        if (frame->flags == REQUEST && frame->count == 1)
            return LOG;
        if (frame->flags == (REQUEST | STRING) && frame->count >= 1 && frame->count <= PAYLOAD_LIMIT)
            return LOG_STRING;
    } else if (frame->flags == (REQUEST | READ) && frame->count == 1 && frame->size == 2 && frame->addr == PORT_MAGIC) {
        return MAGIC;
    }
    return OTHER;
}

/* --- state: the layout is state.py's, where it is explained */

enum { PAGE = 4096, SLOT = 512, WORD = 2 * SLOT, LENGTH_BITS = 12, STATE_SIZE = 3 * PAGE };

struct header {
    char magic[8];
    uint64_t sequence;
    char boot[16];
    char uuid[64];
    int64_t product, build, blacklisted, unplugged, flags;
    double balance, balance_at;
    int64_t charged, unsaid_lines, unsaid_bytes, throttled;
    char reason[128];
    int64_t area, length;
};
struct slot {
    struct header header;
    uint32_t checksum;
};
_Static_assert(sizeof(struct header) == 328 && offsetof(struct slot, checksum) == 328, "state.py: _HEADER");

static uint32_t crc_table[256];

static void make_crc_table(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;

        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
        crc_table[n] = crc;
    }
}

static uint32_t crc32(const void *data, size_t size)   /* zlib.crc32 */
{
    uint32_t crc = 0xFFFFFFFFu;

    for (const unsigned char *p = data; size-- > 0; p++)
        crc = crc >> 8 ^ crc_table[(crc ^ *p) & 0xFF];
    return ~crc;
}

/* --- Tail: what of a domain may change here */

typedef struct tail {
    PyObject_HEAD
    PyObject *owner;        /* domain.Domain: caught_up(), line_ended(), settle(); NULL once closed */
    PyObject *partial;      /* GuestLog.partial, a bytearray: appended to and cleared in place */
    Py_buffer state;        /* the mapped StateFile; obj is NULL once closed */
    /* As Python offered it, see Tail_offer. */
    uint64_t sequence;
    int area;
    bool blacklisted;
    bool logging;           /* log bytes may be taken here */
    double begin_from;      /* from then on a timer is soon enough to flush a line that begins */
    double drop_until;      /* until then (CLOCK_MONOTONIC) no line can pass, and nothing else is due */
    PyObject *fields;       /* bytes: journal fields of its lines, which may go to journald here; NULL: they may not */
    bool limited;           /* by the balance that follows: core.bucket.TokenBucket */
    double balance, balance_at, rate, burst;
    /* Of the batch that is being served. */
    Py_ssize_t waiting;     /* bytes in `pending`, behind those of `partial` */
    bool ended;             /* a line ended here: the rest belongs into the other area, under a new header */
    bool unsettled;         /* Python ended a line: it must settle() before anything is sent */
    long long unsaid_lines, unsaid_bytes;   /* dropped lines that no header counts yet */
    unsigned long long round;               /* of the Poller, in which it took `spent` seconds */
    double spent;
    bool paid;              /* the balance is another than the header's */
    bool touched;           /* it is in Poller.touched */
    struct tail *next;
    /* What the domain was not told yet; zeroed from here on by catch_up(). */
    bool changed;
    double heard;           /* when the last byte came; 0 for none */
    long long lines;        /* ended here: dropped ones and empty ones */
    long long dropped_lines, dropped_bytes;
    double dropped_at;
    long long magics, logged;               /* frames */
    double seconds;         /* that batches took, in sum */
    unsigned durations[MAX_BOUNDS + 1];     /* batches by bucket of the histogram */
    long long passed_lines, passed_bytes;   /* that journald has */
} Tail;

/* Log bytes of the batch that is being served, whosever it is: between two batches there are none. */
static unsigned char pending[LINE_LIMIT];

static double now(void)    /* time.monotonic() */
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int Tail_clear(Tail *self)
{
    if (self->state.obj != NULL)
        PyBuffer_Release(&self->state);
    Py_CLEAR(self->owner);
    Py_CLEAR(self->partial);
    Py_CLEAR(self->fields);
    return 0;
}

static int Tail_traverse(Tail *self, visitproc visit, void *arg)
{
    Py_VISIT(self->owner);
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
    double begin_from, drop_until;

    if (!PyArg_ParseTuple(args, "Kippdd:offer", &sequence, &area, &blacklisted, &logging, &begin_from, &drop_until))
        return NULL;
    self->sequence = sequence;
    self->area = area & 1;
    self->blacklisted = blacklisted;
    self->logging = logging;
    self->begin_from = begin_from;
    self->drop_until = drop_until;
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

static PyObject *Tail_close(Tail *self, PyObject *Py_UNUSED(ignored))
{
    Tail_clear(self);
    Py_RETURN_NONE;
}

static PyMethodDef Tail_methods[] = {
    {"offer", (PyCFunction)Tail_offer, METH_VARARGS, "The domain is settled, and this is how it may go on."},
    {"offer_lines", (PyCFunction)Tail_offer_lines, METH_VARARGS, "After offer(): lines may go to journald, and cost that."},
    {"close", (PyCFunction)Tail_close, METH_NOARGS, "Let go of the domain and its state."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject TailType = {
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
};

/* Bytes that are pending become part of the partial line. -1 and an exception where there is no memory. */
static int append_pending(Tail *tail)
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

/* Whether the last commit is the one that was offered. Else somebody commits and does not offer, which is a bug; bytes
 * kept here would belong to no header, so there are none until the next offer. */
static bool in_step(const Tail *tail)
{
    const char *map = tail->state.buf;
    const struct header *last = (const void *)(map + (tail->sequence & 1) * SLOT);
    const struct header *other = (const void *)(map + (~tail->sequence & 1) * SLOT);

    return last->sequence == tail->sequence && other->sequence < tail->sequence;
}

/* StateFile.commit() of a guest of which only the partial line, the balance and what was dropped have changed. */
static void commit(Tail *tail, Py_ssize_t length)
{
    char *map = tail->state.buf;
    struct slot slot;

    memcpy(&slot, map + (tail->sequence & 1) * SLOT, sizeof slot);
    slot.header.sequence = ++tail->sequence;
    slot.header.unsaid_lines += tail->unsaid_lines;
    slot.header.unsaid_bytes += tail->unsaid_bytes;
    if (tail->paid) {
        slot.header.balance = tail->balance;
        slot.header.balance_at = tail->balance_at;
        tail->paid = false;
    }
    slot.header.charged = 0;    /* by the frames of a line that has ended */
    slot.header.area = tail->area;
    slot.header.length = length;
    slot.checksum = crc32(&slot.header, sizeof slot.header);
    tail->unsaid_lines = tail->unsaid_bytes = 0;
    atomic_signal_fence(memory_order_seq_cst);
    memcpy(map + (tail->sequence & 1) * SLOT, &slot, offsetof(struct slot, checksum) + sizeof slot.checksum);
}

/* Keep what the batch changed so far, where SIGKILL does not reach it. -1 and an exception where there is no memory. */
static int keep(Tail *tail)
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
    else    /* StateFile.grow(): one aligned store, it is there or it is not */
        *(volatile uint64_t *)(map + WORD) =
            (tail->sequence & 0xFFFFFFFFu) << LENGTH_BITS | (uint64_t)(have + more);
    atomic_signal_fence(memory_order_seq_cst);
    return 0;
}

/* --- Poller */

struct link {               /* a connection, by its descriptor */
    Tail *tail;             /* NULL: not attached */
    PyObject *handed;       /* called with (responses that could not be sent, bytes from the first frame on that is
                               Python's); from then on the connection is Python's until it arms it again */
    int window;             /* bytes to read at a time; 0: not armed */
};

typedef struct {
    PyObject_HEAD
    int epoll;
    struct link *links;
    int room;               /* how many `links` there are */
    Tail *touched;          /* tails whose domains must be told, a reference each */
    int bounds;
    double bound[MAX_BOUNDS];
    bool called;            /* Python code ran: there may be new timers and callbacks */
    unsigned long long round;
    int journal;            /* sinks.journal.Journal's socket, connected to journald; -1: it has none */
    unsigned char buffer[READ_SIZE] __attribute__((aligned(8)));
} Poller;

static void touch(Poller *self, Tail *tail)
{
    if (!tail->touched) {
        tail->touched = true;
        tail->next = self->touched;
        self->touched = (Tail *)Py_NewRef((PyObject *)tail);
    }
}

/* Tell the domain what changed since it was told last. -1 and an exception if that fails. */
static int catch_up(Tail *tail)
{
    PyObject *durations, *done;

    if (!tail->changed || tail->owner == NULL)
        return 0;
    durations = PyList_New(0);
    for (int i = 0; durations != NULL && i <= MAX_BOUNDS; i++)
        if (tail->durations[i] > 0) {
            PyObject *pair = Py_BuildValue("(iI)", i, tail->durations[i]);

            if (pair == NULL || PyList_Append(durations, pair) < 0)
                Py_CLEAR(durations);
            Py_XDECREF(pair);
        }
    if (durations == NULL)
        return -1;
    done = PyObject_CallMethod(tail->owner, "caught_up", "((dLLLd)(Ki)(LLdN)(LLdd))",
                               tail->heard, tail->lines, tail->dropped_lines, tail->dropped_bytes, tail->dropped_at,
                               (unsigned long long)tail->sequence, tail->area,
                               tail->magics, tail->logged, tail->seconds, durations,
                               tail->passed_lines, tail->passed_bytes, tail->balance, tail->balance_at);
    memset(&tail->changed, 0, sizeof *tail - offsetof(Tail, changed));
    if (done == NULL)
        return -1;
    Py_DECREF(done);
    return 0;
}

static int catch_up_all(Poller *self)
{
    int result = 0;

    while (self->touched != NULL) {
        Tail *tail = self->touched;

        self->touched = tail->next;
        tail->touched = false;
        if (result == 0)
            result = catch_up(tail);
        Py_DECREF(tail);
    }
    return result;
}

/* Call a method of a tail's domain with the time. -1 and an exception if that fails. */
static int call(Poller *self, Tail *tail, const char *method, double time)
{
    PyObject *owner = tail->owner, *done;

    self->called = true;
    Py_INCREF(owner);
    done = PyObject_CallMethod(owner, method, "d", time);
    Py_DECREF(owner);
    Py_XDECREF(done);
    return done == NULL || tail->owner == NULL ? -1 : 0;
}

/* Hand the line that has ended to journald, if it may pass, can be paid for and costs no more than its bytes, as
 * GuestLog._line() and Delivery.put() would. False: nothing was done, it is Python's. */
static bool pass_line(Poller *self, Tail *tail, const char *text, Py_ssize_t length, double time)
{
    double balance = tail->balance, at = tail->balance_at;
    Py_ssize_t cost = length < RECORD_COST ? RECORD_COST : length;

    if (tail->fields == NULL || self->journal < 0 || !is_plain(text, (size_t)length))
        return false;
    if (tail->limited) {
        if (time > at) {    /* TokenBucket.refill() */
            balance = fmin(tail->burst, balance + (time - at) * tail->rate);
            at = time;
        }
        if (balance < (double)cost)
            return false;
        balance -= (double)cost;
    }
    if (!send_entry(self->journal, PyBytes_AS_STRING(tail->fields), (size_t)PyBytes_GET_SIZE(tail->fields), text,
                    (size_t)length))
        return false;
    tail->balance = balance;
    tail->balance_at = at;
    tail->paid = true;
    tail->passed_lines++;
    tail->passed_bytes += length;
    return true;
}

/* A newline came. -1 and an exception if something fails. */
static int end_line(Poller *self, Tail *tail, double time)
{
    Py_ssize_t have = PyByteArray_GET_SIZE(tail->partial), length = have + tail->waiting;
    bool back;

    if (length == 0) {      /* empty lines are not recorded */
        tail->lines++;
        return 0;
    }
    back = (tail->waiting > 0 ? pending[tail->waiting - 1] : PyByteArray_AS_STRING(tail->partial)[have - 1]) == '\r';
    if (!tail->unsettled && tail->fields != NULL && length > back) {
        const char *text = (const char *)pending;

        if (have > 0) {     /* in two parts: make it one */
            if (append_pending(tail) < 0)
                return -1;
            have = length;
            text = PyByteArray_AS_STRING(tail->partial);
        }
        if (pass_line(self, tail, text, length - back, time)) {
            if (have > 0 && PyByteArray_Resize(tail->partial, 0) < 0)
                return -1;
            tail->waiting = 0;
            tail->ended = true;
            tail->lines++;
            tail->changed = true;
            touch(self, tail);
            return 0;
        }
    }
    if (tail->unsettled || time >= tail->drop_until) {
        /* Python knows what was dropped, and keeps all of it when it settles. */
        if (catch_up(tail) < 0 || append_pending(tail) < 0)
            return -1;
        tail->ended = tail->paid = false;
        tail->unsaid_lines = tail->unsaid_bytes = 0;
        tail->unsettled = true;
        return call(self, tail, "line_ended", time);
    }
    length -= back;
    if (PyByteArray_Resize(tail->partial, 0) < 0)
        return -1;
    tail->waiting = 0;
    tail->ended = true;
    tail->lines++;
    if (length > 0) {
        tail->dropped_lines++;
        tail->dropped_bytes += length;
        tail->unsaid_lines++;
        tail->unsaid_bytes += length;
        tail->dropped_at = time;
    }
    return 0;
}

/* Whether all bytes of a string write can be taken: none fills a line, and none begins one that no timer will flush. */
static bool fits(const Tail *tail, const unsigned char *data, size_t count, double began)
{
    size_t length = (size_t)(PyByteArray_GET_SIZE(tail->partial) + tail->waiting);

    for (const unsigned char *end; (end = memchr(data, '\n', count)) != NULL; length = 0) {
        if (length + (size_t)(end - data) >= LINE_LIMIT)
            return false;
        count -= (size_t)(end + 1 - data);
        data = end + 1;
    }
    return length + count < LINE_LIMIT && (length > 0 || count == 0 || began >= tail->begin_from);
}

/* Bytes of guest log that fit. -1 and an exception if something fails. */
static int take(Poller *self, Tail *tail, const unsigned char *data, size_t count, double began)
{
    while (count > 0) {
        const unsigned char *end = memchr(data, '\n', count);
        size_t piece = end == NULL ? count : (size_t)(end - data);

        memcpy(pending + tail->waiting, data, piece);
        tail->waiting += (Py_ssize_t)piece;
        if (end == NULL)
            break;
        if (end_line(self, tail, began) < 0)
            return -1;
        count -= piece + 1;
        data = end + 1;
    }
    return 0;
}

/* Make answers of the frames at the beginning of `size` bytes, up to the first that is Python's, with all that they
 * do. Returns the bytes that were served, in whose place `answered` bytes of answers are now; -1 and an exception if
 * something fails: nothing may be sent then. */
static Py_ssize_t answer(Poller *self, Tail *tail, Py_ssize_t size, Py_ssize_t *answered, double began)
{
    Py_ssize_t at = 0, out = 0, have = PyByteArray_GET_SIZE(tail->partial);
    uint64_t magic = tail->blacklisted ? MAGIC_DENIED : MAGIC_ALLOWED;
    long long magics = 0, logged = 0;
    int bucket = 0;
    double seconds;

    if (tail->logging && !in_step(tail))
        tail->logging = false;
    while (at + FRAME <= size) {
        struct frame frame;     /* behind a string write, the next one is not aligned */
        unsigned char byte;
        size_t payload = 0;
        int kind;

        memcpy(&frame, self->buffer + at, FRAME);
        kind = recognize(&frame);
        if (kind == MAGIC) {
            magics++;
            frame.data = magic;
            frame.flags = RESPONSE | READ;
            goto answered;
        }
        if (kind == OTHER || !tail->logging)
            break;
        if (kind == LOG_STRING) {
            const unsigned char *data = self->buffer + at + FRAME;

            payload = frame.count;
            if (at + FRAME + (Py_ssize_t)payload > size || !fits(tail, data, payload, began))
                break;
            if (take(self, tail, data, payload, began) < 0)
                return -1;
            have = PyByteArray_GET_SIZE(tail->partial);
        } else if ((byte = (unsigned char)frame.data) == '\n') {
            if (end_line(self, tail, began) < 0)
                return -1;
            have = PyByteArray_GET_SIZE(tail->partial);
        } else {
            Py_ssize_t length = have + tail->waiting;

            if (length + 1 >= LINE_LIMIT || (length == 0 && began < tail->begin_from))
                break;
            pending[tail->waiting++] = byte;
        }
        logged++;
        frame.data = 0;
        frame.flags = RESPONSE | (frame.flags & STRING);
answered:
        memcpy(self->buffer + out, &frame, FRAME);
        out += FRAME;
        at += FRAME + (Py_ssize_t)payload;
    }
    *answered = out;
    if (at == 0)
        return 0;
    if (tail->unsettled) {
        tail->unsettled = false;
        if (append_pending(tail) < 0 || call(self, tail, "settle", began) < 0)
            return -1;
    } else if (keep(tail) < 0)
        return -1;
    touch(self, tail);
    tail->changed = true;
    if (logged > 0)
        tail->heard = began;
    tail->magics += magics;
    tail->logged += logged;
    seconds = now() - began;
    tail->seconds += seconds;
    tail->spent += seconds;
    while (bucket < self->bounds && seconds > self->bound[bucket])
        bucket++;
    tail->durations[bucket]++;
    return at;
}

/* Something of unplugd's own went wrong in the middle of a batch: say so, and cut the connection without an answer, as
 * asyncio does with a protocol that raises. What the batch left undone is not acknowledged. */
static void cut(Tail *tail, int fd)
{
    PyErr_WriteUnraisable((PyObject *)Py_TYPE(tail));
    tail->waiting = 0;
    tail->unsettled = tail->ended = tail->paid = false;
    tail->logging = false;  /* until Python has settled */
    shutdown(fd, SHUT_RDWR);
}

/* Whether a domain has had its share of this round: what is left is still there in the next, after the others. */
static bool over(const Poller *self, Tail *tail)
{
    if (tail->round != self->round) {
        tail->round = self->round;
        tail->spent = 0;
    }
    return tail->spent * 1e6 >= BUDGET;
}

/* Read and answer what came on a connection. 1: nothing was done, the event is Python's; 0: done, or handed over. */
static int serve(Poller *self, int fd, PyObject *handed)
{
    struct link *link = &self->links[fd];
    Tail *tail = link->tail;
    PyObject *callback, *item;
    Py_ssize_t size, served, answered = 0, sent = 0;

    if (over(self, tail))
        return 0;
    size = recv(fd, self->buffer, (size_t)link->window, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (size <= 0)
        return 1;
    Py_INCREF(tail);
    served = answer(self, tail, size, &answered, now());
    link = &self->links[fd];        /* Python code may have run */
    if (served < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "a domain went while it was being served");
        cut(tail, fd);
        if (link->tail == tail)
            link->window = 0;
        Py_DECREF(tail);
        return 0;
    }
    if (served > 0) {
        do
            sent = send(fd, self->buffer, (size_t)answered, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
        if (sent < 0)
            sent = 0;       /* full, or gone: Python finds out which */
    }
    Py_DECREF(tail);
    if (link->tail != tail)
        return 0;
    if (served == size && sent == answered) {     /* quick work: what made Python read in small pieces is over */
        if (link->window > 0 && link->window <= READ_SIZE / 2)
            link->window *= 2;
        return 0;
    }
    link->window = 0;
    callback = link->handed;
    item = Py_BuildValue("(Oy#y#)", callback, self->buffer + sent, answered - sent,
                         self->buffer + served, size - served);
    if (item == NULL || PyList_Append(handed, item) < 0) {
        Py_XDECREF(item);
        return -1;
    }
    Py_DECREF(item);
    return 0;
}

/* One round: wait, serve, and collect what is Python's. How many descriptors were ready, -1 and an exception if
 * something fails. */
static int one_round(Poller *self, int milliseconds, PyObject *events, PyObject *handed)
{
    struct epoll_event ready[EVENTS];
    int count;

    self->round++;
    if (milliseconds == 0) {
        count = epoll_wait(self->epoll, ready, EVENTS, 0);
    } else {
        Py_BEGIN_ALLOW_THREADS
        count = epoll_wait(self->epoll, ready, EVENTS, milliseconds);
        Py_END_ALLOW_THREADS
    }
    if (count < 0) {
        if (errno == EINTR)
            return PyErr_CheckSignals() < 0 ? -1 : 0;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    for (int i = 0; i < count; i++) {
        int fd = ready[i].data.fd, result = 1;
        bool ours = fd < self->room && self->links[fd].tail != NULL && self->links[fd].window > 0;

        if (ours && ready[i].events == EPOLLIN && self->links[fd].tail->owner != NULL)
            result = serve(self, fd, handed);
        if (result == 1) {
            PyObject *event = Py_BuildValue("(iI)", fd, ready[i].events);

            result = event == NULL || PyList_Append(events, event) < 0 ? -1 : 0;
            Py_XDECREF(event);
        }
        if (result < 0)
            return -1;
    }
    return count;
}

static PyObject *Poller_poll(Poller *self, PyObject *timeout)
{
    PyObject *events = PyList_New(0), *handed = PyList_New(0), *result = NULL;
    double deadline = INFINITY, left = INFINITY;
    int count = 0;

    if (events == NULL || handed == NULL)
        goto end;
    if (timeout != Py_None) {
        left = PyFloat_AsDouble(timeout);
        if (left == -1.0 && PyErr_Occurred())
            goto end;
        deadline = now() + left;
    }
    self->called = false;
    for (int rounds = 0; rounds < ROUNDS; rounds++) {
        /* as selectors.EpollSelector: rounded up, so that a timer is due when this returns */
        int milliseconds = left <= 0 ? 0 : left > 1e6 ? -1 : (int)ceil(left * 1e3);

        count = one_round(self, milliseconds, events, handed);
        if (count <= 0 || self->called || PyList_GET_SIZE(events) > 0 || PyList_GET_SIZE(handed) > 0)
            break;
        if (deadline < INFINITY && (left = deadline - now()) <= 0)
            break;
    }
    if (catch_up_all(self) == 0 && count >= 0)
        result = PyTuple_Pack(2, events, handed);
end:
    Py_XDECREF(events);
    Py_XDECREF(handed);
    return result;
}

static PyObject *Poller_attach(Poller *self, PyObject *args)
{
    int fd;
    PyObject *tail, *handed;

    if (!PyArg_ParseTuple(args, "iO!O:attach", &fd, &TailType, &tail, &handed))
        return NULL;
    if (fd < 0) {
        PyErr_SetString(PyExc_ValueError, "not a descriptor");
        return NULL;
    }
    if (fd >= self->room) {
        int room = fd < 64 ? 128 : 2 * fd;
        struct link *links = PyMem_Realloc(self->links, (size_t)room * sizeof *links);

        if (links == NULL)
            return PyErr_NoMemory();
        memset(links + self->room, 0, (size_t)(room - self->room) * sizeof *links);
        self->links = links;
        self->room = room;
    }
    Py_INCREF(tail);
    Py_INCREF(handed);
    Py_XDECREF((PyObject *)self->links[fd].tail);
    Py_XDECREF(self->links[fd].handed);
    self->links[fd] = (struct link){ .tail = (Tail *)tail, .handed = handed };
    Py_RETURN_NONE;
}

static PyObject *Poller_arm(Poller *self, PyObject *args)
{
    int fd, window;

    if (!PyArg_ParseTuple(args, "ii:arm", &fd, &window))
        return NULL;
    if (fd >= 0 && fd < self->room)
        self->links[fd].window = window < 0 ? 0 : window > READ_SIZE ? READ_SIZE : window;
    Py_RETURN_NONE;
}

static void unlink_connection(struct link *link)
{
    PyObject *tail = (PyObject *)link->tail, *handed = link->handed;

    *link = (struct link){ 0 };
    Py_XDECREF(tail);
    Py_XDECREF(handed);
}

static PyObject *Poller_detach(Poller *self, PyObject *arg)
{
    long fd = PyLong_AsLong(arg);

    if (fd == -1 && PyErr_Occurred())
        return NULL;
    if (fd >= 0 && fd < self->room)
        unlink_connection(&self->links[fd]);
    Py_RETURN_NONE;
}

static PyObject *Poller_journal(Poller *self, PyObject *arg)
{
    long fd = PyLong_AsLong(arg);

    if (fd == -1 && PyErr_Occurred())
        return NULL;
    self->journal = (int)fd;
    Py_RETURN_NONE;
}

static int Poller_traverse(Poller *self, visitproc visit, void *arg)
{
    for (int fd = 0; fd < self->room; fd++) {
        Py_VISIT((PyObject *)self->links[fd].tail);
        Py_VISIT(self->links[fd].handed);
    }
    return 0;
}

static int Poller_clear(Poller *self)
{
    for (int fd = 0; fd < self->room; fd++)
        unlink_connection(&self->links[fd]);
    return 0;
}

static void Poller_dealloc(Poller *self)
{
    PyObject_GC_UnTrack(self);
    Poller_clear(self);
    PyMem_Free(self->links);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int Poller_init(Poller *self, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *bounds;

    self->journal = -1;
    if (!PyArg_ParseTuple(args, "iO!:Poller", &self->epoll, &PyTuple_Type, &bounds))
        return -1;
    if (PyTuple_GET_SIZE(bounds) > MAX_BOUNDS) {
        PyErr_SetString(PyExc_ValueError, "too many bounds");
        return -1;
    }
    self->bounds = (int)PyTuple_GET_SIZE(bounds);
    for (int i = 0; i < self->bounds; i++) {
        self->bound[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(bounds, i));
        if (PyErr_Occurred())
            return -1;
    }
    return 0;
}

static PyMethodDef Poller_methods[] = {
    {"poll", (PyCFunction)Poller_poll, METH_O, "Wait, and serve meanwhile."},
    {"attach", (PyCFunction)Poller_attach, METH_VARARGS, "A descriptor is a connection of a domain; not armed yet."},
    {"arm", (PyCFunction)Poller_arm, METH_VARARGS, "Serve a connection so many bytes at a time, or (0) leave it to Python."},
    {"journal", (PyCFunction)Poller_journal, METH_O, "The socket that is connected to journald; -1: there is none now."},
    {"detach", (PyCFunction)Poller_detach, METH_O, "A connection is gone."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject PollerType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "unplugd._fastpath.Poller",
    .tp_basicsize = sizeof(Poller),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "Waits for an epoll's descriptors and serves connections meanwhile.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Poller_init,
    .tp_dealloc = (destructor)Poller_dealloc,
    .tp_traverse = (traverseproc)Poller_traverse,
    .tp_clear = (inquiry)Poller_clear,
    .tp_methods = Poller_methods,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "unplugd._fastpath",
    .m_doc = "The accesses that a talking guest makes all day, served without entering Python.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__fastpath(void)
{
    PyObject *self = PyModule_Create(&module);

    make_crc_table();
    if (self != NULL && (PyModule_AddType(self, &TailType) < 0 || PyModule_AddType(self, &PollerType) < 0 ||
                         PyModule_AddIntConstant(self, "STATE_SIZE", STATE_SIZE) < 0 ||
                         PyModule_AddIntConstant(self, "READ_SIZE", READ_SIZE) < 0 ||
                         PyModule_AddIntConstant(self, "LINE_LIMIT", LINE_LIMIT) < 0 ||
                         PyModule_AddIntConstant(self, "RECORD_COST", RECORD_COST) < 0 ||
                         PyModule_AddIntConstant(self, "PAYLOAD_LIMIT", PAYLOAD_LIMIT) < 0))
        Py_CLEAR(self);
    return self;
}
