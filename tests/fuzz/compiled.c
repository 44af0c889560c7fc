/* Coverage-guided fuzzing of the compiled part (daemon/fastpath): Poller, connections, tables and ioreq pages, linked with
 * libFuzzer, AddressSanitizer and UBSan. tests/fuzz/compiled.py builds and runs it.
 *
 * An input is a program: it fills the queues of connections with frames, sends pieces of them, and decides what the owner
 * of the table does when it is called. This file plays the owner (domains/domain.py) and the connection's Python half
 * (sockets/connection.py), and it reads the frames a second time:
 *
 *   - each whole frame gets exactly one answer, in order, with the right data;
 *   - the log text that the owner sees is what was sent, byte by byte;
 *   - no byte of the memory changes but the log's area and the word; the word is generation << 16 | length.
 *
 * The areas are small where the input says so, and lie between bytes that must not change: an overflow within the mapped
 * memory, which no sanitizer sees, is found too.
 *
 * SPDX-License-Identifier: MIT
 */
#define _GNU_SOURCE
#include "poller.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS = 4, QUEUE = 1 << 16, LOG = 1 << 18, AREA_LIMIT = 8192, GUARD = 64, WORD = 16, GUARDED = 0xA5 };
enum { PORT = 0x7777, CONSTANT_PORT = 0x1234, BAR_PORT = 0x10008, VCPUS = 4 };   /* nothing here is the protocol's */
enum { RECORD, COMPACT, NOTHING, RAISE, CLOSE_TABLE, DETACH_ALL, ATTACH_MORE, ACTIONS };

#define REQUIRE(condition)                                                        \
    do {                                                                          \
        if (!(condition)) {                                                       \
            fprintf(stderr, "line %d: it does not hold: %s\n", __LINE__, #condition); \
            if (PyErr_Occurred())                                                 \
                PyErr_Print();                                                    \
            abort();                                                              \
        }                                                                         \
    } while (0)

struct bytes {
    unsigned char *data;
    size_t size, room;
};

static struct connection {
    int ours, theirs;           /* the device model's end; the Poller's end, -1 where there is none */
    bool ended;                 /* it gets no more answers */
    struct bytes queue;         /* to be sent */
    struct bytes sent;          /* sent, of which no whole frame was read a second time */
    struct bytes answers;       /* expected, and not yet come */
} connections[CONNECTIONS];

static struct {
    Table *table;
    PyObject *memory;           /* bytearray: guard, word, guard, area, guard, area, guard */
    size_t area_size, at[2];
    int area;
    uint64_t generation;
    size_t recorded;            /* of the text in the area */
    struct bytes log;           /* what was recorded, in all */
    struct bytes expected;      /* what the log must be */
    bool doubtful;              /* a connection ended in the middle of a batch: part of what it sent may be missing */
    size_t least;               /* and what must be there */
    int actions[8], next_action;
    uint64_t value;             /* what CONSTANT_PORT reads, after all that was sent */
    uint64_t row_value;         /* and by the rows that are used */
    bool closed;
} owner;

static struct {
    int events, lender;         /* the lender's ends; -1 where no page is lent */
    int lender_fd;              /* the Poller's end, which Python would have */
    struct frame *slots;
} page;

static const unsigned char *input, *input_end;
static Poller *poller;
static int epoll;
static PyObject *counts, *durations, *bounds;
static int spare[64], spares;   /* descriptors that the owner attached in a callback */

static unsigned take(void)
{
    return input < input_end ? *input++ : 0;
}

static unsigned take_u16(void)
{
    unsigned low = take();

    return low | take() << 8;
}

static void append(struct bytes *to, const void *data, size_t size)
{
    if (to->size + size > to->room) {
        to->room = 2 * (to->size + size) + 64;
        REQUIRE((to->data = realloc(to->data, to->room)) != NULL);
    }
    if (size > 0)
        memcpy(to->data + to->size, data, size);
    to->size += size;
}

static void drop(struct bytes *from, size_t size)
{
    memmove(from->data, from->data + size, from->size - size);
    from->size -= size;
}

/* --- the frames, read a second time */

/* Bytes of the request at the beginning; 0: it is not all there; -1: a fault of the device model. */
static long whole(const unsigned char *data, size_t size, struct frame *frame)
{
    size_t payload = 0;

    if (size < FRAME)
        return 0;
    memcpy(frame, data, FRAME);
    if ((frame->flags & STATE) != REQUEST || frame->type != 0 || frame->count == 0 ||
        (frame->size != 1 && frame->size != 2 && frame->size != 4 && frame->size != 8))
        return -1;
    if (frame->flags & STRING) {
        if ((uint64_t)frame->count * frame->size > PAYLOAD_LIMIT)
            return -1;
        payload = frame->flags & READ ? 0 : frame->count * frame->size;
    } else if (frame->count != 1) {
        return -1;
    }
    return size < FRAME + payload ? 0 : (long)(FRAME + payload);
}

static bool is_log(const struct frame *frame)
{
    return !(frame->flags & READ) && frame->size == 1 && (frame->addr == PORT || frame->addr == BAR_PORT);
}

static bool is_constant(const struct frame *frame)
{
    return (frame->flags & (READ | STRING)) == READ && frame->addr == CONSTANT_PORT && frame->size == 2;
}

static void answer_frame(struct bytes *to, struct frame frame)
{
    frame.data = is_constant(&frame) ? owner.value : 0;
    frame.flags = (uint8_t)((frame.flags & ~STATE) | RESPONSE);
    append(to, &frame, FRAME);
}

/* What only Python does: a write of two bytes changes the constant, and so the rows. */
static bool changes_rows(const struct frame *frame)
{
    return !(frame->flags & (READ | STRING)) && frame->addr == CONSTANT_PORT && frame->size == 2;
}

static void expect(struct connection *one)
{
    struct frame frame;
    long size;

    while ((size = whole(one->sent.data, one->sent.size, &frame)) > 0) {
        if (changes_rows(&frame))
            owner.value = frame.data & 0xffff;
        answer_frame(&one->answers, frame);
        if (is_log(&frame))
            append(&owner.expected, frame.flags & STRING ? one->sent.data + FRAME : (unsigned char *)&frame.data,
                   frame.flags & STRING ? (size_t)size - FRAME : 1);
        drop(&one->sent, (size_t)size);
    }
}

/* --- the owner of the table */

static unsigned char *memory(void)
{
    return (unsigned char *)PyByteArray_AS_STRING(owner.memory);
}

static void guarded(size_t begin, size_t end)
{
    for (size_t at = begin; at < end; at++)
        REQUIRE(memory()[at] == GUARDED);
}

static void check_memory(void)
{
    uint64_t word;

    guarded(0, WORD);
    guarded(WORD + 8, owner.at[0]);
    guarded(owner.at[0] + owner.area_size, owner.at[1]);
    guarded(owner.at[1] + owner.area_size, owner.at[1] + owner.area_size + GUARD);
    memcpy(&word, memory() + WORD, 8);
    if (!owner.closed) {
        REQUIRE(owner.table->log.used <= owner.area_size);
        REQUIRE(word == (owner.generation << 16 | owner.table->log.used));
    }
    REQUIRE((word & 0xffff) <= owner.area_size);
}

static void call(PyObject *result)
{
    REQUIRE(result != NULL);
    Py_DECREF(result);
}

static void use_rows(uint64_t value)
{
    /* READ or not, address, size, value or None, kind */
    PyObject *rows = Py_BuildValue("((iKIKI)(iKIOI)(iKIOI))", 1, (unsigned long long)CONSTANT_PORT, 2u,
                                   (unsigned long long)value, 0u, 0, (unsigned long long)PORT, 1u, Py_None, 1u, 0,
                                   (unsigned long long)BAR_PORT, 1u, Py_None, 2u);
    PyObject *made = PyObject_CallFunction((PyObject *)&RowsType, "OO", rows, counts);

    REQUIRE(rows != NULL && made != NULL);
    owner.row_value = value;
    call(PyObject_CallMethod((PyObject *)owner.table, "use", "O", made));
    Py_DECREF(rows);
    Py_DECREF(made);
}

static void place(size_t used)
{
    call(PyObject_CallMethod((PyObject *)owner.table, "place", "Knnn", (unsigned long long)owner.generation,
                             (Py_ssize_t)owner.at[owner.area], (Py_ssize_t)owner.area_size, (Py_ssize_t)used));
}

static void record(void)
{
    size_t used = owner.table->log.used;

    append(&owner.log, memory() + owner.at[owner.area] + owner.recorded, used - owner.recorded);
    owner.recorded = used;
}

/* The open line, as far as half of the area has room for it, goes into the other area. */
static void compact(void)
{
    size_t open = 0;
    unsigned char *text = memory() + owner.at[owner.area];

    record();
    while (open < owner.recorded && open < owner.area_size / 2 && text[owner.recorded - open - 1] != '\n')
        open++;
    memcpy(memory() + owner.at[owner.area ^ 1], text + owner.recorded - open, open);
    owner.area ^= 1;
    owner.generation++;
    owner.recorded = open;
    place(open);
}

static void detach(struct connection *one)
{
    if (one->theirs < 0)
        return;
    call(PyObject_CallMethod((PyObject *)poller, "detach", "i", one->theirs));
    close(one->theirs);
    one->theirs = -1;
    one->ended = true;
}

static void close_table(void)
{
    record();
    owner.closed = true;
    call(PyObject_CallMethod((PyObject *)owner.table, "close", NULL));
}

static PyObject *woken(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    int action = owner.actions[owner.next_action++ % 8], pair[2];

    check_memory();
    switch (action) {
    case COMPACT:
        compact();
        break;
    case NOTHING:               /* later, as Domain where its turn is over; what has no room comes to Python then */
        break;
    case RAISE:
        owner.doubtful = true;
        PyErr_SetString(PyExc_ValueError, "the owner fails");
        return NULL;
    case CLOSE_TABLE:
        owner.doubtful = true;
        close_table();
        break;
    case DETACH_ALL:
        owner.doubtful = true;
        record();
        for (int i = 0; i < CONNECTIONS; i++)
            detach(&connections[i]);
        break;
    case ATTACH_MORE:
        record();
        if (spares + 1 < 64 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0) {
            int high = fcntl(pair[0], F_DUPFD, 200 + 4 * spares);

            close(pair[0]);
            REQUIRE(high >= 0);
            call(PyObject_CallMethod((PyObject *)poller, "attach", "iOO", high, owner.table, Py_None));
            spare[spares++] = high;
            spare[spares++] = pair[1];
        }
        break;
    default:
        record();
    }
    if (!owner.closed)
        owner.table->wake = take() & 1 ? owner.table->log.used + 1 : owner.area_size / 2 + 1;
    Py_RETURN_NONE;
}

static PyMethodDef woken_method = {"woken", woken, METH_NOARGS, NULL};

/* --- the Python half of a connection */

static void log_by_python(const unsigned char *data, size_t size)
{
    compact();
    REQUIRE(owner.recorded + size <= owner.area_size);
    memcpy(memory() + owner.at[owner.area] + owner.recorded, data, size);
    place(owner.recorded + size);
    record();
}

static void read_answers(struct connection *one)
{
    unsigned char got[1 << 14];
    ssize_t size;

    while ((size = recv(one->ours, got, sizeof got, MSG_DONTWAIT)) > 0) {
        REQUIRE((size_t)size <= one->answers.size);
        REQUIRE(memcmp(got, one->answers.data, (size_t)size) == 0);
        drop(&one->answers, (size_t)size);
    }
    if (!one->ended)
        REQUIRE(size < 0);      /* nothing has closed it */
}

/* Serve what was handed over, as sockets/connection.py does. */
static void serve_handed(struct connection *one, const char *unsent, size_t unsent_size, const unsigned char *data,
                         size_t size)
{
    struct bytes out = { 0 };
    struct frame frame;
    size_t at = 0;
    bool fault = false;

    append(&out, unsent, unsent_size);
    while (!owner.closed && one->theirs >= 0) {
        PyObject *result = PyObject_CallMethod((PyObject *)owner.table, "answer", "y#n", data, (Py_ssize_t)size,
                                               (Py_ssize_t)at);
        const char *answers;
        Py_ssize_t answers_size, used;
        long length;

        if (result == NULL) {   /* the owner failed */
            PyErr_Clear();
            fault = true;
            break;
        }
        REQUIRE(PyArg_ParseTuple(result, "y#n", &answers, &answers_size, &used));
        append(&out, answers, (size_t)answers_size);
        Py_DECREF(result);
        at += (size_t)used;
        if (owner.closed || one->theirs < 0)
            break;
        length = whole(data + at, size - at, &frame);
        fault = length < 0;
        if (length <= 0)
            break;
        if (is_log(&frame))
            log_by_python(frame.flags & STRING ? data + at + FRAME : (unsigned char *)&frame.data,
                          frame.flags & STRING ? (size_t)length - FRAME : 1);
        else
            REQUIRE(!is_constant(&frame));      /* a row answers it */
        if (changes_rows(&frame))
            use_rows(frame.data & 0xffff);
        answer_frame(&out, frame);
        at += (size_t)length;
    }
    for (size_t done = 0; done < out.size && !owner.closed && one->theirs >= 0;) {
        PyObject *sent = PyObject_CallMethod((PyObject *)poller, "send", "iy#", one->theirs, out.data + done,
                                             (Py_ssize_t)(out.size - done));

        REQUIRE(sent != NULL);
        done += PyLong_AsSize_t(sent);
        Py_DECREF(sent);
        if (done < out.size)
            read_answers(one);
    }
    free(out.data);
    if (owner.closed || one->theirs < 0)
        return;
    if (fault)
        detach(one);
    else
        call(PyObject_CallMethod((PyObject *)poller, "resume", "iy#", one->theirs, data + at, (Py_ssize_t)(size - at)));
}

/* What a batch that was cut short left of the log: a prefix of what was sent, and at least what was answered. */
static void settle(void)
{
    if (!owner.closed)
        record();
    REQUIRE(owner.log.size <= owner.expected.size);
    REQUIRE(owner.doubtful || owner.log.size == owner.expected.size);
    REQUIRE(owner.log.size == 0 || memcmp(owner.log.data, owner.expected.data, owner.log.size) == 0);
    owner.expected.size = owner.log.size;
    REQUIRE(owner.doubtful || owner.value == owner.row_value);
    owner.value = owner.row_value;
    owner.doubtful = false;
}

static void poll_once(double timeout)
{
    PyObject *result = PyObject_CallMethod((PyObject *)poller, "poll", "d", timeout), *handed;

    REQUIRE(result != NULL);
    handed = PyTuple_GET_ITEM(result, 1);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(handed); i++) {
        const char *unsent, *data;
        Py_ssize_t unsent_size, size;
        int which;

        if (PyTuple_GET_ITEM(PyList_GET_ITEM(handed, i), 0) == Py_None)
            continue;
        REQUIRE(PyArg_ParseTuple(PyList_GET_ITEM(handed, i), "iy#z#", &which, &unsent, &unsent_size, &data, &size));
        if (connections[which].theirs < 0)
            continue;           /* it was detached meanwhile */
        if (data == NULL)
            detach(&connections[which]);
        else
            serve_handed(&connections[which], unsent, (size_t)unsent_size, (const unsigned char *)data, (size_t)size);
    }
    Py_DECREF(result);
}

/* Until nothing is left to be read. */
static void run(struct connection *one)
{
    for (int rounds = 0, left = 1; left > 0 && one->theirs >= 0 && !owner.closed; rounds++) {
        REQUIRE(rounds < 10000);
        poll_once(0);
        read_answers(one);
        if (one->theirs < 0 || ioctl(one->theirs, FIONREAD, &left) < 0)
            break;
    }
    check_memory();
    settle();
    if (one->theirs >= 0 && !one->ended && !owner.closed)
        REQUIRE(one->answers.size == 0);
}

static void send_some(struct connection *one, size_t size)
{
    if (one->theirs < 0 || one->ended || owner.closed)
        return;
    if (size > one->queue.size)
        size = one->queue.size;
    if (size == 0)
        return;
    REQUIRE(send(one->ours, one->queue.data, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size);
    append(&one->sent, one->queue.data, size);
    drop(&one->queue, size);
    expect(one);
    run(one);
}

/* --- the page */

static void lend(void)
{
    int events[2], lender[2], memfd;
    unsigned char ports[5 * VCPUS];
    PyObject *result;

    if (page.events >= 0 || owner.closed)
        return;
    for (int i = 0; i < VCPUS; i++) {
        uint32_t port = 100 + (uint32_t)i;

        ports[5 * i] = (unsigned char)(VCPUS - 1 - i);
        memcpy(ports + 5 * i + 1, &port, 4);
    }
    REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, events) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, lender) == 0);
    REQUIRE((memfd = memfd_create("page", 0)) >= 0 && ftruncate(memfd, 4096) == 0);
    page.slots = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    REQUIRE(page.slots != MAP_FAILED);
    result = PyObject_CallMethod((PyObject *)poller, "borrow", "iiOiIIy#i", events[1], lender[1], owner.table, memfd, 1u, 2u,
                                 ports, (Py_ssize_t)sizeof ports, 0);
    call(result);
    close(memfd);
    page.events = events[0];
    page.lender = lender[0];
    page.lender_fd = lender[1];
}

static void take_back(void)
{
    if (page.events < 0)
        return;
    call(PyObject_CallMethod((PyObject *)poller, "give_back", "i", page.lender_fd));
    munmap(page.slots, 4096);
    close(page.events);
    close(page.lender);
    close(page.lender_fd);
    page.events = -1;
}

/* An access in a slot, whatever it holds, and the event. */
static void access_page(void)
{
    unsigned vcpu = take() % VCPUS;
    struct frame frame = { .addr = PORT, .size = 1, .count = 1, .flags = REQUEST }, *slot, then;
    uint32_t port = 100 + (VCPUS - 1 - vcpu), back;
    unsigned kind = take();
    unsigned char answer;
    size_t logged;

    if (page.events < 0 || owner.closed)
        return;
    slot = page.slots + vcpu;
    if (kind & 1)
        frame.data = kind & 2 ? '\n' : take();
    else if (kind & 2)
        frame = (struct frame){ .addr = CONSTANT_PORT, .size = 2, .count = 1, .flags = REQUEST | READ };
    else
        for (size_t at = 0; at < FRAME; at++)
            ((unsigned char *)&frame)[at] = (unsigned char)take();
    *slot = frame;
    logged = owner.log.size;
    if (send(page.events, &port, sizeof port, MSG_NOSIGNAL) < 0)
        return;
    for (int rounds = 0; rounds < 3; rounds++)
        poll_once(0);
    check_memory();
    if (!owner.closed)
        record();
    then = *slot;
    REQUIRE(then.addr == frame.addr && then.size == frame.size && then.count == frame.count);
    if ((frame.flags & STATE) != REQUEST) {
        REQUIRE(memcmp(&then, &frame, FRAME) == 0);
    } else if ((then.flags & STATE) == RESPONSE) {
        if (frame.flags & READ)
            REQUIRE(then.data == owner.value && is_constant(&frame));
        else
            REQUIRE(owner.log.size == logged + 1 && owner.log.data[logged] == (frame.data & 0xff));
    } else if ((then.flags & STATE) == IN_PROCESS) {
        REQUIRE(recv(page.lender, &answer, 1, MSG_DONTWAIT) == 1 && answer == vcpu);
        /* no row answers it, or the log has no room */
        REQUIRE(frame.type != 0 || frame.count != 1 || frame.flags & STRING || !(is_constant(&frame) || is_log(&frame)) ||
                owner.table->log.used == owner.area_size);
    }
    if (owner.log.size > owner.expected.size)   /* expect() does not see pages */
        append(&owner.expected, owner.log.data + owner.expected.size, owner.log.size - owner.expected.size);
    if (recv(page.events, &back, sizeof back, MSG_DONTWAIT) != sizeof back)
        take_back();            /* the Poller gave it back: the owner failed or has closed */
    owner.doubtful = false;
}

/* --- one input */

static void connect_one(struct connection *one)
{
    int pair[2], size = 1 << 18;
    PyObject *which = PyLong_FromSsize_t(one - connections);

    if (one->theirs >= 0 || owner.closed) {
        Py_DECREF(which);
        return;
    }
    if (one->ours >= 0)
        close(one->ours);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    size = take() & 1 ? 1 << 18 : 4096;         /* a client that reads late has its answers wait */
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    call(PyObject_CallMethod((PyObject *)poller, "attach", "iOO", pair[1], owner.table, which));
    Py_DECREF(which);
    one->ours = pair[0];
    one->theirs = pair[1];
    one->ended = false;
    one->queue.size = one->sent.size = one->answers.size = 0;
}

static void begin(void)
{
    static const size_t sizes[] = { AREA_LIMIT, AREA_LIMIT, 2 * PAYLOAD_LIMIT + 64, AREA_LIMIT + 1 };
    PyObject *function = PyCFunction_New(&woken_method, NULL);
    unsigned mode = take();

    owner.area_size = sizes[mode & 3];
    owner.at[0] = WORD + 8 + GUARD;
    owner.at[1] = owner.at[0] + owner.area_size + GUARD;
    owner.memory = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(owner.at[1] + owner.area_size + GUARD));
    memset(memory(), GUARDED, owner.at[1] + owner.area_size + GUARD);
    owner.area = 0;
    owner.generation = take();
    owner.recorded = 0;
    owner.log.size = owner.expected.size = 0;
    owner.doubtful = owner.closed = false;
    owner.value = 0x49;
    owner.next_action = 0;
    for (int i = 0; i < 8; i++) {
        unsigned action = take();

        owner.actions[i] = action < 128 ? (int)(action % 3) : (int)(action % ACTIONS);
    }
    owner.table = (Table *)PyObject_CallFunction((PyObject *)&TableType, "OnO", owner.memory, (Py_ssize_t)WORD, function);
    Py_DECREF(function);
    REQUIRE(owner.table != NULL);
    place(0);
    use_rows(owner.value);
    owner.table->wake = 1;
    for (int i = 0; i < CONNECTIONS; i++)
        connect_one(&connections[i]);
}

static void end(void)
{
    take_back();
    for (int i = 0; i < CONNECTIONS; i++) {
        detach(&connections[i]);
        if (connections[i].ours >= 0)
            close(connections[i].ours);
        connections[i].ours = -1;
    }
    for (int i = 0; i < spares; i += 2)
        call(PyObject_CallMethod((PyObject *)poller, "detach", "i", spare[i]));
    for (; spares > 0; spares--)
        close(spare[spares - 1]);
    owner.closed = true;
    call(PyObject_CallMethod((PyObject *)owner.table, "close", NULL));
    check_memory();
    Py_CLEAR(owner.table);
    REQUIRE(Py_REFCNT(owner.memory) == 1);
    Py_CLEAR(owner.memory);
}

static void queue_frame(struct bytes *queue, struct frame frame)
{
    append(queue, &frame, FRAME);
}

static void queue_string(struct bytes *queue, unsigned size, unsigned every)
{
    unsigned char text[PAYLOAD_LIMIT];
    struct frame frame = { .addr = every & 1 ? PORT : BAR_PORT, .size = 1, .count = size, .flags = REQUEST | STRING };
    static unsigned char letter;

    for (unsigned at = 0; at < size; at++)
        text[at] = every > 1 && at % every == every - 1 ? '\n' : (unsigned char)('a' + letter++ % 26);
    queue_frame(queue, frame);
    append(queue, text, size);
}

static void step(void)
{
    unsigned op = take();
    struct connection *one = &connections[op >> 4 & 3];
    unsigned count;

    if (one->queue.size > QUEUE || owner.expected.size > LOG)
        send_some(one, 1 << 14);
    switch (op & 15) {
    case 0: case 1: case 2:
        count = take_u16() % PAYLOAD_LIMIT + 1;
        queue_string(&one->queue, count, take());
        break;
    case 3:
        queue_string(&one->queue, PAYLOAD_LIMIT - take() % 3, op & 64 ? 0xffff : take());
        break;
    case 4:
        for (count = take(); count > 0; count--)
            queue_frame(&one->queue, (struct frame){ .addr = PORT, .data = count % 7 ? 'x' : '\n', .size = 1, .count = 1,
                                                     .flags = REQUEST | (op & 0xc0) });
        break;
    case 5:
        for (count = take() & 63; count > 0; count--)
            queue_frame(&one->queue, (struct frame){ .addr = CONSTANT_PORT, .size = 2, .count = 1, .flags = REQUEST | READ,
                                                     .vp_eport = count, .pad = 7 });
        break;
    case 6:
        queue_frame(&one->queue, (struct frame){ .addr = CONSTANT_PORT, .data = take_u16(), .size = 2, .count = 1,
                                                 .flags = REQUEST });
        break;
    case 7:                     /* what the input says, as it is */
        for (count = take() & 63; count > 0; count--) {
            unsigned char byte = (unsigned char)take();

            append(&one->queue, &byte, 1);
        }
        break;
    case 8: case 9:
        send_some(one, take());
        break;
    case 10: case 11:
        send_some(one, take_u16());
        break;
    case 12:
        send_some(one, 1 << 15);
        break;
    case 13:
        connect_one(one);
        break;
    case 14:
        lend();
        access_page();
        break;
    default:
        if (op & 128) {
            take_back();
        } else if (op & 64) {
            shutdown(one->ours, SHUT_WR);
            one->ended = true;
            one->queue.size = 0;
        } else {
            poll_once(0.0001);
        }
    }
}

PyMODINIT_FUNC PyInit__fastpath(void);
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    double bound[] = { 1e-5, 1e-3 };
    PyObject *hook, *module, *type;

    (void)argc, (void)argv;
    setenv("PYTHONMALLOC", "malloc", 1);        /* so that objects of Python are guarded too */
    Py_InitializeEx(0);
    REQUIRE((module = PyInit__fastpath()) != NULL && (type = PyObject_GetAttrString(module, "Poller")) != NULL);
    /* what the owner raises is expected: sys.unraisablehook has nothing to print */
    hook = PyRun_String("__import__('sys').__setattr__('unraisablehook', lambda raised: None)", Py_eval_input,
                        PyDict_New(), NULL);
    call(hook);
    counts = PyByteArray_FromStringAndSize(NULL, 8 * 4);
    durations = PyByteArray_FromStringAndSize(NULL, 8 * 4);
    memset(PyByteArray_AS_STRING(counts), 0, 8 * 4);
    memset(PyByteArray_AS_STRING(durations), 0, 8 * 4);
    bounds = Py_BuildValue("(dd)", bound[0], bound[1]);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    poller = (Poller *)PyObject_CallFunction(type, "iOO", epoll, bounds, durations);
    REQUIRE(poller != NULL);
    page.events = -1;
    for (int i = 0; i < CONNECTIONS; i++)
        connections[i].ours = connections[i].theirs = -1;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input = data;
    input_end = data + size;
    begin();
    while (input < input_end && !owner.closed)
        step();
    for (int i = 0; i < CONNECTIONS && !owner.closed; i++)
        send_some(&connections[i], 1 << 15);
    end();
    return 0;
}
