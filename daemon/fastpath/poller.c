/* unplugd.sockets._fastpath: what a driver's start and its log are made of, served without entering Python.
 *
 * A Poller stands in the place of select.epoll in the event loop's selector (loop.py). When a device model connects,
 * it is accepted (held.c); when its connection becomes readable, the frames are read and answered (serve.c) that are a
 * read of magic number or version, a product number, an unplug mask (steps.c) or guest log (log.c), and it goes back to
 * waiting. So is a build number, once Python says that xenstore allows it. All else is Python's: the first other frame, and
 * everything behind it, is handed over with the bytes that were read, in order. Nothing here is a second opinion on the
 * protocol: what these frames do is core/stream.py's, what is kept before they are answered is statefile.py's, and
 * tests/unit/test_fastpath.py holds both to the same bytes, answers, events, counters and state.
 *
 * Who owns what, when. All of this runs on the event loop's thread with the GIL held, so it never runs beside Python, only
 * between two callbacks, or where Python lets guests in (serve), when every domain is settled (Domain.settle). A Tail is the
 * part of a domain that may change here: product and unplugged devices, the end of its partial line, all of that in the
 * mapped state, the balance of its limiter, and how many lines were dropped or went to the journal. Python offers it at the
 * end of each settle(). What changed is told to the domain (caught_up) before Python looks at it: Domain.guest asks for
 * that. So there are never two truths about a domain (tell.c).
 *
 * SPDX-License-Identifier: MIT
 */
#include "poller.h"

#include <structmember.h>

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "state.h"


enum {
    EVENTS = 256,           /* descriptors looked at in one round */
    ROUNDS = 4096,          /* rounds after which Python has a turn even where nothing asks for it */
};

static const double LONGEST = 1e6;      /* seconds; who would wait longer has no timer */

int open_timer(const Poller *self)
{
    struct epoll_event event = { .events = EPOLLIN };
    int timer = event.data.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

    if (timer >= 0 && epoll_ctl(self->epoll, EPOLL_CTL_ADD, timer, &event) < 0) {
        close(timer);
        return -1;
    }
    return timer;
}

/* Have the wait end at that time, or before: whoever waits looks at the time. False: there is no such timer.
 *
 * A timeout of epoll_wait would set and clear a timer of the kernel's for each access, and take 1 to 3 us for that. */
static bool set_alarm(Poller *self, double time)
{
    struct itimerspec at = { .it_value = { (time_t)time, (long)((time - floor(time)) * 1e9) } };

    if (self->rings > 0 && self->rings <= time)
        return true;
    if (self->alarm < 0 || timerfd_settime(self->alarm, TFD_TIMER_ABSTIME, &at, NULL) < 0)
        return false;
    self->rings = time;
    return true;
}

/* One round: wait, serve, and collect what is Python's; with `events` NULL, what is not a connection's stays ready. How many
 * descriptors were ready, -1 and an exception if something fails. */
static int one_round(Poller *self, int milliseconds, PyObject *events, PyObject *handed)
{
    static const struct link nobody;
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
        const struct link *link = fd < self->room ? &self->links[fd] : &nobody;
        bool alone = ready[i].events == EPOLLIN;

        if (fd == self->alarm) {
            uint64_t times;

            self->rings = 0;
            self->called = true;
            if (read(fd, &times, sizeof times) < 0 && errno != EAGAIN)
                return PyErr_SetFromErrno(PyExc_OSError), -1;
            continue;
        }

        if (link->kind == HELD && link->tail->owner == NULL) {  /* the domain has gone */
            close_held(self, fd);
            result = 0;
        } else if (link->kind == LENT) {
            if (link->tail->owner == NULL || !alone)
                close_page(self, fd);
            else
                serve_page(self, fd);
            result = 0;
        } else if (link->tail != NULL && link->tail->owner != NULL) {
            if (link->kind == HELD && link->window == 0) {
                mute(self, fd);
                result = 0;
            } else if (link->kind == LISTENING && alone) {
                result = accept_some(self, fd, handed);
            } else if (link->window > 0 && (alone || link->kind == HELD)) {
                result = serve(self, fd, handed);
            }
        }
        if (result == 1 && events == NULL) {
            self->called = true;
            result = 0;
        } else if (result == 1) {
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
    PyObject *events = PyList_New(0), *handed = self->handed, *result = NULL;
    double deadline = INFINITY, left = INFINITY;
    int count = 0;

    self->handed = NULL;
    if (handed != NULL)
        deadline = left = 0;
    else
        handed = PyList_New(0);
    if (events == NULL || handed == NULL)
        goto end;
    if (timeout != Py_None && left > 0) {
        left = PyFloat_AsDouble(timeout);
        if (left == -1.0 && PyErr_Occurred())
            goto end;
        deadline = now() + left;
    }
    self->called = false;
    for (int rounds = 0; rounds < ROUNDS; rounds++) {
        /* as selectors.EpollSelector: rounded up, so that a timer is due when this returns */
        int milliseconds = left <= 0 ? 0 : left > LONGEST || set_alarm(self, deadline) ? -1 : (int)ceil(left * 1e3);

        if (self->stepped && milliseconds != 0)     /* guests first, then what is to be said of them */
            milliseconds = 1;
        count = one_round(self, milliseconds, events, handed);
        if (self->stepped && count >= 0)    /* else there is an exception, with which Python must not be called */
            tell_in_time(self, count > 0);
        if (count <= 0 || self->called || PyList_GET_SIZE(events) > 0 || PyList_GET_SIZE(handed) > 0)
            break;
        if (deadline < INFINITY && (left = deadline - now()) <= 0)
            break;
    }
    if (count >= 0 && self->stepped && PyList_GET_SIZE(events) > 0)
        tell_before(self);
    if (count >= 0)
        result = PyTuple_Pack(2, events, handed);
end:
    Py_XDECREF(events);
    Py_XDECREF(handed);
    return result;
}

static PyObject *Poller_serve(Poller *self, PyObject *Py_UNUSED(ignored))
{
    int count;

    if (self->handed == NULL && (self->handed = PyList_New(0)) == NULL)
        return NULL;
    self->called = false;
    count = one_round(self, 0, NULL, self->handed);
    if (PyList_GET_SIZE(self->handed) > 0)
        self->called = true;
    else
        Py_CLEAR(self->handed);
    return count < 0 ? NULL : PyBool_FromLong(self->called);
}

int make_room(Poller *self, int fd)
{
    int room = fd < 64 ? 128 : 2 * fd;
    struct link *links;

    if (fd < 0) {
        PyErr_SetString(PyExc_ValueError, "not a descriptor");
        return -1;
    }
    if (fd < self->room)
        return 0;
    links = PyMem_Realloc(self->links, (size_t)room * sizeof *links);
    if (links == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memset(links + self->room, 0, (size_t)(room - self->room) * sizeof *links);
    self->links = links;
    self->room = room;
    return 0;
}

static PyObject *Poller_attach(Poller *self, PyObject *args)
{
    int fd;
    PyObject *tail, *handed;

    if (!PyArg_ParseTuple(args, "iO!O:attach", &fd, &TailType, &tail, &handed))
        return NULL;
    if (make_room(self, fd) < 0)
        return NULL;
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

void unlink_connection(struct link *link)
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
    for (Tail *tail = self->untold; tail != NULL; tail = tail->next)
        Py_VISIT((PyObject *)tail);
    Py_VISIT(self->handed);
    return 0;
}

static int Poller_clear(Poller *self)
{
    Tail *tail;

    while ((tail = next_untold(self)) != NULL)
        Py_DECREF(tail);
    Py_CLEAR(self->handed);
    for (int fd = 0; fd < self->room; fd++)
        if (self->links[fd].kind == HELD)
            close_held(self, fd);
        else if (self->links[fd].kind == LENT)
            close_page(self, fd);
        else
            unlink_connection(&self->links[fd]);
    return 0;
}

static void close_timers(Poller *self)
{
    if (self->alarm >= 0)
        close(self->alarm);
    self->alarm = -1;
    self->rings = 0;
}

static void Poller_dealloc(Poller *self)
{
    PyObject_GC_UnTrack(self);
    Poller_clear(self);
    close_timers(self);
    PyMem_Free(self->links);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *Poller_close(Poller *self, PyObject *Py_UNUSED(ignored))
{
    close_timers(self);
    Py_RETURN_NONE;
}

static int Poller_init(Poller *self, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *bounds;

    self->journal = self->alarm = -1;
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
    self->alarm = open_timer(self);
    return 0;
}

static PyMethodDef Poller_methods[] = {
    {"poll", (PyCFunction)Poller_poll, METH_O, "Wait, and serve meanwhile."},
    {"serve", (PyCFunction)Poller_serve, METH_NOARGS, "Serve what has come; whether there is something for Python now."},
    {"attach", (PyCFunction)Poller_attach, METH_VARARGS, "A descriptor is a connection of a domain; not armed yet."},
    {"arm", (PyCFunction)Poller_arm, METH_VARARGS, "Serve a connection so many bytes at a time, or (0) leave it to Python."},
    {"journal", (PyCFunction)Poller_journal, METH_O, "The socket that is connected to journald; -1: there is none now."},
    {"listen", (PyCFunction)Poller_listen, METH_VARARGS, "A descriptor is a domain's socket: accept, and hold them."},
    {"answer", (PyCFunction)Poller_answer, METH_VARARGS, "Answer a held connection and go on; how much was sent."},
    {"allow", (PyCFunction)Poller_allow, METH_O, "xenstore allows the build number asked for; what could not be sent."},
    {"question", (PyCFunction)Poller_question, METH_O, "The frame with the build number that was asked for."},
    {"tell", (PyCFunction)Poller_tell, METH_NOARGS, "Tell domains what they were not told, a slice; whether there is more."},
    {"take", (PyCFunction)Poller_take, METH_O, "A held connection is Python's from now on."},
    {"cut", (PyCFunction)Poller_cut, METH_O, "Close a held connection."},
    {"hang_up", (PyCFunction)Poller_hang_up, METH_O, "Close all held connections of a domain."},
    {"borrow", (PyCFunction)Poller_borrow, METH_VARARGS, "Serve a lent ioreq page."},
    {"give_back", (PyCFunction)Poller_give_back, METH_O, "Serve the page of the lender at this descriptor no more."},
    {"close", (PyCFunction)Poller_close, METH_NOARGS, "Wait for nothing any more: the event loop ends."},
    {"detach", (PyCFunction)Poller_detach, METH_O, "A connection is gone."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Poller_members[] = {
    {"held", T_INT, offsetof(Poller, held), READONLY, "Connections of all domains that it holds."},
    {"others", T_INT, offsetof(Poller, others), 0, "Connections of all domains that Python has."},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject PollerType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "unplugd.sockets._fastpath.Poller",
    .tp_basicsize = sizeof(Poller),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "Waits for an epoll's descriptors and serves connections meanwhile.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Poller_init,
    .tp_dealloc = (destructor)Poller_dealloc,
    .tp_traverse = (traverseproc)Poller_traverse,
    .tp_clear = (inquiry)Poller_clear,
    .tp_methods = Poller_methods,
    .tp_members = Poller_members,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "unplugd.sockets._fastpath",
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
                         PyModule_AddIntConstant(self, "PAYLOAD_LIMIT", PAYLOAD_LIMIT) < 0 ||
                         PyModule_AddIntConstant(self, "BUDGET", BUDGET) < 0))
        Py_CLEAR(self);
    return self;
}
