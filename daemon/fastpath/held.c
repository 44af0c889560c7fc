/* Connections that the Poller holds by itself: accepted, read, answered and closed without Python.
 *
 * A device model that may connect without a doubt (root, or this domain's own uid, and room for it) is accepted here;
 * any other is Python's to judge (listener.py). What a held connection brings beside the ordinary goes to Python as an
 * errand (held.py), one at a time, and until the errand is done nothing is read from it. Only one of which more than
 * that remains, half a frame for instance, is taken over by Python for good.
 *
 * SPDX-License-Identifier: MIT
 */
#define _GNU_SOURCE
#include "poller.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ACCEPTS = 4 };       /* listener.ACCEPTS: of one domain in a round */

static int watch(const Poller *self, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

    return epoll_ctl(self->epoll, EPOLL_CTL_ADD, fd, &event);
}

static bool welcome(const Poller *self, const Tail *tail, int peer)
{
    struct ucred credentials;
    socklen_t size = sizeof credentials;

    return tail->held + tail->others < tail->most && self->held + self->others < self->most &&
           getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0 &&
           (credentials.uid == 0 || (long long)credentials.uid == tail->uid);
}

/* True: it is held now. False: nothing was done. */
static bool hold(Poller *self, int peer, Tail *tail, PyObject *handed)
{
    if (make_room(self, peer) < 0) {
        PyErr_Clear();
        return false;
    }
    if (watch(self, peer) < 0)
        return false;
    self->links[peer] = (struct link){
        .tail = (Tail *)Py_NewRef((PyObject *)tail), .handed = Py_NewRef(handed), .window = READ_SIZE, .kind = HELD,
    };
    tail->held++;
    self->held++;
    return true;
}

int accept_some(Poller *self, int fd, PyObject *handed)
{
    for (int n = 0; n < ACCEPTS; n++) {
        Tail *tail = self->links[fd].tail;
        PyObject *callback = self->links[fd].handed;
        int peer = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (peer < 0)       /* out of descriptors, or of memory: Python meets the same, and waits */
            return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED ? 0 : 1;
        if (welcome(self, tail, peer) && hold(self, peer, tail, callback))
            continue;
        if (hand_over(handed, callback, peer, NULL, 0, NULL, 0) < 0) {
            close(peer);
            return -1;
        }
    }
    return 0;
}

void mute(Poller *self, int fd)
{
    if (!self->links[fd].muted && epoll_ctl(self->epoll, EPOLL_CTL_DEL, fd, NULL) == 0)
        self->links[fd].muted = true;
}

static void release(Poller *self, int fd)
{
    self->links[fd].tail->held--;
    self->held--;
    unlink_connection(&self->links[fd]);
}

void close_held(Poller *self, int fd)
{
    release(self, fd);
    close(fd);
}

/* The descriptor of a held connection, -1 and an exception if it is none. */
static int held_by(const Poller *self, PyObject *arg)
{
    long fd = PyLong_AsLong(arg);

    if (fd == -1 && PyErr_Occurred())
        return -1;
    if (fd < 0 || fd >= self->room || self->links[fd].kind != HELD) {
        PyErr_SetString(PyExc_ValueError, "not a connection that is held");
        return -1;
    }
    return (int)fd;
}

PyObject *Poller_listen(Poller *self, PyObject *args)
{
    int fd, most, in_all;
    long long uid;
    PyObject *tail, *handed, *asked;

    if (!PyArg_ParseTuple(args, "iO!OOLii:listen", &fd, &TailType, &tail, &handed, &asked, &uid, &most, &in_all) ||
        make_room(self, fd) < 0)
        return NULL;
    Py_XSETREF(((Tail *)tail)->ask, Py_NewRef(asked));
    ((Tail *)tail)->uid = uid;
    ((Tail *)tail)->most = most;
    self->most = in_all;
    Py_INCREF(tail);
    Py_INCREF(handed);
    unlink_connection(&self->links[fd]);
    self->links[fd] = (struct link){ .tail = (Tail *)tail, .handed = handed, .kind = LISTENING };
    Py_RETURN_NONE;
}

/* Send what a held connection waits for, and read from it again. How much was sent; it is gone if all of it was not and
 * cannot be. -1 and an exception if it cannot be watched. */
static Py_ssize_t go_on(Poller *self, int fd, const void *data, Py_ssize_t size)
{
    struct link *link = &self->links[fd];
    ssize_t sent = 0;

    if (size > 0) {
        do
            sent = send(fd, data, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
        if (sent < 0 && errno != EAGAIN) {      /* it is gone */
            close_held(self, fd);
            return size;
        }
        if (sent < size)
            return sent < 0 ? 0 : sent;
    }
    if (link->muted && watch(self, fd) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    link->muted = false;
    link->window = READ_SIZE;
    return size;
}

PyObject *Poller_answer(Poller *self, PyObject *args)
{
    PyObject *which;
    const char *data;
    Py_ssize_t size;
    int fd;

    if (!PyArg_ParseTuple(args, "Oy#:answer", &which, &data, &size) || (fd = held_by(self, which)) < 0)
        return NULL;
    size = go_on(self, fd, data, size);
    return size < 0 ? NULL : PyLong_FromSsize_t(size);
}

bool ask(Poller *self, int fd, const struct frame *frame)
{
    struct link *link = &self->links[fd];
    Tail *tail = link->tail;
    PyObject *asked, *answer;
    bool taken;

    if (recognize(frame) != BUILD || (link->product = product_asked(tail)) < 0)
        return false;
    link->question = *frame;
    link->asked = now();
    link->asking = true;
    self->called = true;
    asked = Py_NewRef(tail->ask);   /* what it does may close the domain */
    answer = PyObject_CallFunction(asked, "iLI", fd, (long long)link->product, (unsigned)frame->data);
    taken = answer == Py_True;
    if (answer == NULL)
        PyErr_WriteUnraisable((PyObject *)Py_TYPE(tail));
    Py_DECREF(asked);
    Py_XDECREF(answer);
    if (!taken)
        self->links[fd].asking = false;
    return taken;
}

/* The descriptor of a connection that asks, -1 and an exception if it does not. */
static int asked_by(const Poller *self, PyObject *arg)
{
    int fd = held_by(self, arg);

    if (fd >= 0 && !self->links[fd].asking) {
        PyErr_SetString(PyExc_ValueError, "asks for nothing");
        return -1;
    }
    return fd;
}

PyObject *Poller_allow(Poller *self, PyObject *arg)
{
    int fd = asked_by(self, arg);
    struct link *link;
    struct frame frame;
    Py_ssize_t sent;
    double time = now();

    if (fd < 0)
        return NULL;
    link = &self->links[fd];
    frame = link->question;
    if (!allow_build(link->tail, link->product, (unsigned)frame.data, time))
        Py_RETURN_NONE;
    link->asking = false;
    touch(self, link->tail);
    observe(self, link->tail, time - link->asked);
    frame.data = 0;
    frame.flags = RESPONSE;
    sent = go_on(self, fd, &frame, FRAME);
    return sent < 0 ? NULL : PyBytes_FromStringAndSize((const char *)&frame + sent, FRAME - sent);
}

PyObject *Poller_question(Poller *self, PyObject *arg)
{
    int fd = asked_by(self, arg);

    if (fd < 0)
        return NULL;
    self->links[fd].asking = false;
    return PyBytes_FromStringAndSize((const char *)&self->links[fd].question, FRAME);
}

PyObject *Poller_take(Poller *self, PyObject *arg)
{
    int fd = held_by(self, arg);

    if (fd < 0)
        return NULL;
    mute(self, fd);
    release(self, fd);
    Py_RETURN_NONE;
}

PyObject *Poller_cut(Poller *self, PyObject *arg)
{
    int fd = held_by(self, arg);

    if (fd < 0)
        return NULL;
    close_held(self, fd);
    Py_RETURN_NONE;
}

PyObject *Poller_hang_up(Poller *self, PyObject *arg)
{
    if (!PyObject_TypeCheck(arg, &TailType)) {
        PyErr_SetString(PyExc_TypeError, "not a Tail");
        return NULL;
    }
    for (int fd = 0; fd < self->room && ((Tail *)arg)->held > 0; fd++)
        if (self->links[fd].kind == HELD && self->links[fd].tail == (Tail *)arg)
            close_held(self, fd);
    Py_RETURN_NONE;
}
