/* unplugd.attach._turn: a guest's plain access, carried to unplugd and back without entering Python.
 *
 * A vCPU stands still until its access is answered, so the way is short: the event, the slot of the vCPU, one frame to
 * unplugd's socket, its response, the slot, the event. That is for single accesses to the protocol's ports that have no
 * consequence in QEMU: reads, product and build numbers, log bytes. All else (an unplug mask, the flags, strings, the
 * BAR, configuration space, what lies below 0x10) is handed over, and so is an access that unplugd does not answer at
 * once: plan.py and unplugd.py are what holds for those. tests/unit/test_attach_turn.py plays the same accesses to both.
 *
 * Runs on the event loop's thread, which waits here for a few milliseconds at most.
 *
 * SPDX-License-Identifier: MIT
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "slots and frames are read in place: little-endian only (Xen's guests with a device model are x86)"
#endif

enum {
    PAGE = 4096,
    SLOT = 32,
    VCPUS = PAGE / SLOT,
    YIELDS = 50, /* times that another process may go first before this one sleeps until unplugd's answer */
    ANSWER = 5,  /* milliseconds that unplugd's answer is waited for here; it goes on in Python afterwards */
    LINGER = 5,  /* milliseconds that the next access is waited for here: a driver seldom makes only one */
    STAY = 20,   /* milliseconds after which Python has a turn in any case */
    FIRST_PORT = 0x10, LAST_PORT = 0x16, /* plan.WINDOW, plan.LAST_PORT */
};

enum { READY = 1, IN_PROCESS = 2, RESPONSE = 3, STATE = 0x0f, DATA_IS_PTR = 0x10, READ = 0x20 };

/* struct ioreq of xen/include/public/hvm/ioreq.h, which is a frame on the socket as well */
struct ioreq {
    uint64_t addr, data;
    uint32_t count, size, eport;
    uint16_t pad;
    uint8_t bits, type;
};
_Static_assert(sizeof(struct ioreq) == SLOT, "struct ioreq has 32 bytes");

struct notify { unsigned int port; };
#define EVTCHN_NOTIFY _IOC(_IOC_NONE, 'E', 4, sizeof(struct notify)) /* xen/sys/evtchn.h */

typedef struct {
    PyObject_HEAD
    Py_buffer page;
    int events;
    bool notify;
    size_t count;
    uint32_t ports[VCPUS];
    uint8_t vcpus[VCPUS];
} Turn;

static volatile struct ioreq *slot_of(Turn *self, int vcpu) { return (struct ioreq *)self->page.buf + vcpu; }

static long milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool readable(int fd, int patience) {
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, patience) > 0;
}

/* A copy of the slot, if the access is one of those that are carried out here. */
static bool plain(volatile struct ioreq *slot, struct ioreq *request) {
    memcpy(request, (const void *)slot, SLOT);
    uint64_t end = request->addr + request->size;
    if (request->type != 0 || request->bits & DATA_IS_PTR || request->count != 1) return false;
    if (request->size != 1 && request->size != 2 && request->size != 4) return false;
    if (request->addr < FIRST_PORT || end > LAST_PORT + 1) return false;
    /* an unplug mask and the platform flags are QEMU's business too */
    return request->bits & READ || request->addr != FIRST_PORT || request->size == 4;
}

enum outcome { DONE, NOT_SENT, NOT_ANSWERED, BROKEN };

/* Ask unplugd. What came of a response that is not whole, or not what it should be, is in `response`. */
static enum outcome ask(int fd, const struct ioreq *request, struct ioreq *response, size_t *received) {
    struct ioreq frame = {
        .addr = request->addr, .count = 1, .size = request->size, .bits = READY | (request->bits & READ),
    };
    if (!(frame.bits & READ)) frame.data = request->data & (UINT64_MAX >> (64 - 8 * request->size));
    *received = 0;
    ssize_t sent = send(fd, &frame, SLOT, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return NOT_SENT;
    if (sent != SLOT) return BROKEN;
    for (int yields = 0; *received < SLOT;) {
        ssize_t got = recv(fd, (char *)response + *received, SLOT - *received, MSG_DONTWAIT);
        if (got > 0) {
            *received += got;
        } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
            return NOT_ANSWERED; /* closed: the event loop sees it too, and connects again */
        } else if (yields++ < YIELDS) {
            sched_yield(); /* unplugd needs some microseconds; to sleep and be woken takes longer */
        } else if (!readable(fd, ANSWER)) {
            return NOT_ANSWERED;
        }
    }
    bool sound = (response->bits & STATE) == RESPONSE && (frame.bits & READ || response->data == 0);
    return sound ? DONE : NOT_ANSWERED;
}

static int answer(Turn *self, int vcpu, uint32_t port, const struct ioreq *request, const struct ioreq *response) {
    volatile struct ioreq *slot = slot_of(self, vcpu);
    if (request->bits & READ) slot->data = response->data & (UINT64_MAX >> (64 - 8 * request->size));
    __atomic_store_n(&slot->bits, (uint8_t)((request->bits & ~STATE) | RESPONSE), __ATOMIC_RELEASE);
    struct notify notify = {port};
    return self->notify ? ioctl(self->events, EVTCHN_NOTIFY, &notify) : 0;
}

PyDoc_STRVAR(take_doc, "take(socket, /) -> (handed, waiting, received)\n\n"
"Carry accesses out over `socket`, on which nothing else may be asked or unanswered. Returns the vCPUs whose access is for\n"
"Python; the vCPU whose access unplugd has not answered yet, or -1; and the bytes of its response that came already.");

static PyObject *take(Turn *self, PyObject *argument) {
    int fd = (int)PyLong_AsLong(argument);
    if (fd == -1 && PyErr_Occurred()) return NULL;
    PyObject *handed = PyList_New(0);
    if (handed == NULL) return NULL;
    struct ioreq request, response;
    size_t received = 0;
    int waiting = -1;
    long end = milliseconds() + STAY;
    for (;;) {
        uint32_t ports[VCPUS];
        ssize_t got = read(self->events, ports, sizeof ports);
        if (got <= 0) break;
        bool carried = false;
        for (size_t at = 0; at < got / sizeof *ports; at++) {
            size_t which = 0;
            while (which < self->count && self->ports[which] != ports[at]) which++;
            if (which == self->count) continue;
            int vcpu = self->vcpus[which];
            volatile struct ioreq *slot = slot_of(self, vcpu);
            if ((__atomic_load_n(&slot->bits, __ATOMIC_ACQUIRE) & STATE) != READY) continue;
            slot->bits = (slot->bits & ~STATE) | IN_PROCESS;
            enum outcome outcome = NOT_SENT;
            if (waiting < 0 && plain(slot, &request)) outcome = ask(fd, &request, &response, &received);
            switch (outcome) {
            case DONE:
                if (answer(self, vcpu, ports[at], &request, &response) != 0) goto failed;
                carried = true;
                break;
            case NOT_ANSWERED:
                waiting = vcpu;
                break;
            case NOT_SENT: {
                PyObject *number = PyLong_FromLong(vcpu);
                if (number == NULL || PyList_Append(handed, number) != 0) {
                    Py_XDECREF(number);
                    goto error;
                }
                Py_DECREF(number);
                break;
            }
            case BROKEN:
                PyErr_SetString(PyExc_OSError, "unplugd's socket took a part of a frame");
                goto error;
            }
        }
        /* They stay masked until written back: guests first. None has a second access before its answer. */
        if (write(self->events, ports, got) != got) goto failed;
        if (!carried || waiting >= 0 || PyList_GET_SIZE(handed) > 0) break;
        if (milliseconds() >= end || !readable(self->events, LINGER)) break;
    }
    return Py_BuildValue("Niy#", handed, waiting, (char *)&response, (Py_ssize_t)(waiting < 0 ? 0 : received));
failed:
    PyErr_SetFromErrno(PyExc_OSError);
error:
    Py_DECREF(handed);
    return NULL;
}

static int init(Turn *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"page", "events", "ports", "notify", NULL};
    PyObject *ports, *vcpu, *port;
    int notify = 1;
    Py_buffer page;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "w*iO!|p", names, &page, &self->events, &PyDict_Type, &ports,
                                     &notify))
        return -1;
    if (self->page.obj != NULL) PyBuffer_Release(&self->page);
    self->page = page;
    self->notify = notify;
    self->count = 0;
    if (page.len != PAGE) {
        PyErr_SetString(PyExc_ValueError, "a page has 4096 bytes");
        return -1;
    }
    for (Py_ssize_t at = 0; PyDict_Next(ports, &at, &vcpu, &port);) {
        long number = PyLong_AsLong(vcpu);
        unsigned long channel = PyLong_AsUnsignedLong(port);
        if (PyErr_Occurred()) return -1;
        if (number < 0 || number >= VCPUS || channel > UINT32_MAX || self->count == VCPUS) {
            PyErr_SetString(PyExc_ValueError, "no such vCPU or event channel");
            return -1;
        }
        self->vcpus[self->count] = (uint8_t)number;
        self->ports[self->count++] = (uint32_t)channel;
    }
    return 0;
}

static void dealloc(Turn *self) {
    if (self->page.obj != NULL) PyBuffer_Release(&self->page);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef methods[] = {{"take", (PyCFunction)take, METH_O, take_doc}, {NULL}};

static PyTypeObject turn_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "unplugd.attach._turn.Turn",
    .tp_doc = "The slots of a domain (`page`), the event channels' descriptor, which does not block, and the port of each vCPU.",
    .tp_basicsize = sizeof(Turn),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)init,
    .tp_dealloc = (destructor)dealloc,
    .tp_methods = methods,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "unplugd.attach._turn", .m_size = -1};

PyMODINIT_FUNC PyInit__turn(void) {
    if (PyType_Ready(&turn_type) < 0) return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddObjectRef(made, "Turn", (PyObject *)&turn_type) < 0) Py_CLEAR(made);
    return made;
}
