/* unplugd.sockets._fastpath: constants answered and log bytes appended without entering Python. The Poller stands in the place
 * of select.epoll in the event loop's selector, and serves connections (connection.c) and lent pages (page.c) by their tables
 * (table.c). All of it runs on the loop's thread with the GIL held: between two callbacks, or where long work calls serve().
 *
 * SPDX-License-Identifier: MIT
 */
#include "poller.h"

#include <structmember.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    EVENTS = 256,           /* descriptors looked at in one round */
    MAX_LINKS = 1 << 20,    /* descriptors that can have a link */
    ROUNDS = 4096,          /* rounds after which Python has a turn even where nothing asks for it */
};

static const double LONGEST = 1e6;      /* seconds; a longer wait has no timer */

static int open_alarm(const Poller *self)
{
    struct epoll_event event = { .events = EPOLLIN };
    int alarm = event.data.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

    if (alarm >= 0 && epoll_ctl(self->epoll, EPOLL_CTL_ADD, alarm, &event) < 0) {
        close(alarm);
        return -1;
    }
    return alarm;
}

/* Have the wait end at that time, or before: the time is looked at then. False: there is no such timer.
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

static void alarm_rang(Poller *self)
{
    uint64_t times;

    self->rings = 0;
    self->called = true;
    if (read(self->alarm, &times, sizeof times) < 0)
        return;             /* it was set again since: the next round finds it */
}

/* What is ready at one descriptor. 1: for Python; 0: done; -1 and an exception. */
static int look_at(Poller *self, int fd, uint32_t events, PyObject *handed)
{
    const struct link *link;

    if (fd == self->alarm)
        return alarm_rang(self), 0;
    if (fd >= self->room || self->links[fd].table == NULL)
        return 1;
    link = &self->links[fd];
    if (link->page != NULL) {
        if (link->table->woken == NULL || events != EPOLLIN)    /* the domain has gone, or the event channels have */
            page_close(self, fd);
        else
            page_serve(self, fd);
        return 0;
    }
    if (link->armed)
        return connection_serve(self, fd, handed);
    if (link->muted)        /* Python waits for it, to send */
        return 1;
    connection_mute(self, fd);
    return 0;
}

/* One round: wait, serve, and collect what is for Python. With `events` NULL, other descriptors stay ready. How many were
 * ready; -1 and an exception if something fails. */
static int one_round(Poller *self, int milliseconds, PyObject *events, PyObject *handed)
{
    struct epoll_event ready[EVENTS];
    int count;

    if (self->serving)          /* by Python code that a connection's answers wait for: the buffer has them */
        return PyErr_SetString(PyExc_RuntimeError, "the Poller is serving already"), -1;
    if (milliseconds == 0) {
        count = epoll_wait(self->epoll, ready, EVENTS, 0);
    } else {
        Py_BEGIN_ALLOW_THREADS
        count = epoll_wait(self->epoll, ready, EVENTS, milliseconds);
        Py_END_ALLOW_THREADS
    }
    self->round++;
    if (count < 0 && errno == EINTR)
        return PyErr_CheckSignals() < 0 ? -1 : 0;
    if (count < 0)
        return PyErr_SetFromErrno(PyExc_OSError), -1;
    /* The last first: a guest that never stops is at the head of the kernel's list, others must not wait for its batch. */
    for (int i = count - 1; i >= 0; i--) {
        int result;

        self->serving = true;
        result = look_at(self, ready[i].data.fd, ready[i].events, handed);
        self->serving = false;
        if (result == 1 && events == NULL) {
            self->called = true;
        } else if (result == 1) {
            PyObject *event = Py_BuildValue("(iI)", ready[i].data.fd, ready[i].events);

            if (event == NULL || PyList_Append(events, event) < 0)
                result = -1;
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

        count = one_round(self, milliseconds, events, handed);
        if (count <= 0 || self->called || PyList_GET_SIZE(events) > 0 || PyList_GET_SIZE(handed) > 0)
            break;
        if (deadline < INFINITY && (left = deadline - now()) <= 0)
            break;
    }
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

static PyObject *Poller_close(Poller *self, PyObject *Py_UNUSED(ignored))
{
    if (self->durations.obj != NULL && self->alarm >= 0)
        close(self->alarm);
    self->alarm = -1;
    Py_RETURN_NONE;
}

static void Poller_dealloc(Poller *self)
{
    for (int fd = 0; self->links != NULL && fd <= self->last; fd++)
        if (self->links[fd].page != NULL)
            page_close(self, fd);
        else
            link_clear(&self->links[fd]);
    free(self->links);
    Py_XDECREF(self->handed);
    Py_XDECREF(Poller_close(self, NULL));
    if (self->durations.obj != NULL)
        PyBuffer_Release(&self->durations);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int Poller_init(Poller *self, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *bounds, *durations;
    struct rlimit limit;
    size_t room;

    if (self->durations.obj != NULL)
        return PyErr_SetString(PyExc_RuntimeError, "a Poller is made once"), -1;
    self->alarm = self->last = -1;
    if (!PyArg_ParseTuple(args, "iO!O:Poller", &self->epoll, &PyTuple_Type, &bounds, &durations) ||
        PyObject_GetBuffer(durations, &self->durations, PyBUF_WRITABLE) < 0)
        return -1;
    if (PyTuple_GET_SIZE(bounds) > MAX_BOUNDS ||
        self->durations.len != (PyTuple_GET_SIZE(bounds) + 2) * (Py_ssize_t)sizeof(uint64_t) ||
        (uintptr_t)self->durations.buf % sizeof(uint64_t) != 0)
        return PyErr_SetString(PyExc_ValueError, "durations are a number for each bound and two more"), -1;
    self->bounds = (int)PyTuple_GET_SIZE(bounds);
    for (int i = 0; i < self->bounds; i++) {
        self->bound[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(bounds, i));
        if (PyErr_Occurred())
            return -1;
    }
    /* a link for each descriptor that there can be: pages of them that are not used cost nothing */
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 ||
        (self->links = calloc(room = limit.rlim_max < MAX_LINKS ? limit.rlim_max : MAX_LINKS, sizeof *self->links)) == NULL)
        return PyErr_NoMemory(), -1;
    self->room = (int)room;
    self->alarm = open_alarm(self);
    return 0;
}

static PyMethodDef Poller_methods[] = {
    {"poll", (PyCFunction)Poller_poll, METH_O, "Wait, and serve meanwhile: events, and what was handed over."},
    {"serve", (PyCFunction)Poller_serve, METH_NOARGS, "Serve what has come; whether Python has something to do now."},
    {"attach", (PyCFunction)Poller_attach, METH_VARARGS, "Serve a connection of a domain."},
    {"send", (PyCFunction)Poller_send, METH_VARARGS, "Send answers on a connection that Python has; bytes sent."},
    {"resume", (PyCFunction)Poller_resume, METH_VARARGS, "Serve a connection on that Python had."},
    {"detach", (PyCFunction)Poller_detach, METH_O, "A connection is gone."},
    {"borrow", (PyCFunction)Poller_borrow, METH_VARARGS, "Serve a lent ioreq page."},
    {"give_back", (PyCFunction)Poller_give_back, METH_O, "Serve the page of the lender at this descriptor no more."},
    {"close", (PyCFunction)Poller_close, METH_NOARGS, "Close its timer: the event loop ends."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Poller_members[] = {
    {"called", T_BOOL, offsetof(Poller, called), 0, "Python has something to do: poll() returns."},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject PollerType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "unplugd.sockets._fastpath.Poller",
    .tp_basicsize = sizeof(Poller),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Poller(epoll, bounds, durations): waits for an epoll's descriptors and serves connections meanwhile.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Poller_init,
    .tp_dealloc = (destructor)Poller_dealloc,
    .tp_methods = Poller_methods,
    .tp_members = Poller_members,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "unplugd.sockets._fastpath",
    .m_doc = "Answers constants and appends log bytes without entering Python.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__fastpath(void)
{
    PyObject *self = PyModule_Create(&module);

    if (self != NULL && (PyModule_AddType(self, &RowsType) < 0 || PyModule_AddType(self, &TableType) < 0 ||
                         PyModule_AddType(self, &PollerType) < 0))
        Py_CLEAR(self);
    return self;
}
