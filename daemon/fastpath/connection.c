/* Connections, read here while they are armed. A frame that no row answers, and all behind it, goes to Python in order, and the
 * connection with it, until Python resumes it. "Acknowledged" (contract section 1) is the order in connection_serve(): log
 * bytes are appended and published, Python has looked at them where it must, and only then the answers are sent.
 *
 * SPDX-License-Identifier: MIT
 */
#include "poller.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static int watch(const Poller *self, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

    return epoll_ctl(self->epoll, EPOLL_CTL_ADD, fd, &event);
}

void connection_mute(Poller *self, int fd)
{
    if (!self->links[fd].muted && epoll_ctl(self->epoll, EPOLL_CTL_DEL, fd, NULL) == 0)
        self->links[fd].muted = true;
}

struct link *free_link(Poller *self, int fd)
{
    if (fd < 0 || fd >= self->room || self->links[fd].table != NULL)
        return PyErr_SetString(PyExc_ValueError, "not a descriptor, or attached already"), NULL;
    self->last = fd > self->last ? fd : self->last;
    return &self->links[fd];
}

void link_clear(struct link *link)
{
    struct link old = *link;

    *link = (struct link){ 0 };
    PyMem_Free(old.rest);
    Py_XDECREF(old.handed);
    Py_XDECREF((PyObject *)old.table);
}

/* The beginning of a frame waits for the rest of it. False where there is no memory, or it is longer than any frame. */
static bool keep_rest(struct link *link, const void *data, size_t size)
{
    if (size == 0 || size > FRAME + PAYLOAD_LIMIT)
        return size == 0;
    if (link->rest == NULL && (link->rest = PyMem_Malloc(FRAME + PAYLOAD_LIMIT)) == NULL)
        return false;
    memcpy(link->rest, data, size);
    link->rest_size = size;
    return true;
}

/* The same bytes, and the connection, in the other direction: into the buffer. Their number. */
static size_t take_rest(struct link *link, unsigned char *buffer)
{
    size_t size = link->rest_size;

    if (link->rest != NULL) {
        memcpy(buffer, link->rest, size);
        PyMem_Free(link->rest);
        link->rest = NULL;
        link->rest_size = 0;
    }
    return size;
}

/* Python has the connection from now on. `data` NULL: the client is gone. -1 and an exception. */
static int hand_over(Poller *self, int fd, PyObject *handed, const void *unsent, size_t unsent_size, const void *data,
                     size_t size)
{
    struct link *link = &self->links[fd];
    PyObject *item;
    int result;

    link->armed = false;
    if (data == NULL || unsent_size > 0)
        connection_mute(self, fd);
    item = Py_BuildValue("(Oy#y#)", link->handed, unsent == NULL ? "" : unsent, (Py_ssize_t)unsent_size, data,
                         (Py_ssize_t)size);
    result = item == NULL ? -1 : PyList_Append(handed, item);
    Py_XDECREF(item);
    return result;
}

/* Something of unplugd's own failed in the middle of a batch: the connection ends without an answer. */
static int cut(Poller *self, int fd, PyObject *handed)
{
    PyErr_WriteUnraisable((PyObject *)&TableType);
    return hand_over(self, fd, handed, NULL, 0, NULL, 0);
}

/* Answer `size` bytes of the buffer in their place. -1 and an exception if Python failed. */
static int answer_all(Poller *self, Table *table, size_t size, struct answered *all)
{
    double began = now();
    int result = 0;

    *all = (struct answered){ 0 };
    Py_INCREF((PyObject *)table);       /* Python code may let go of it */
    do {    /* once more after Python has made room */
        struct answered some;

        answer(table, self->buffer + all->used, size - all->used, self->buffer + all->size, began, &some);
        all->used += some.used;
        all->size += some.size;
        all->incomplete = some.incomplete;
        if ((all->due = some.due))
            result = wake(table);
    } while (result == 0 && all->due && all->used < size);
    if (all->used > 0)      /* else Python serves the frame, and counts it */
        observe(self, table, now() - began);
    Py_DECREF((PyObject *)table);
    return result;
}

/* Bytes that the client takes now. A client that is gone takes all: that is noticed when its connection is read. -1 and
 * errno where the kernel has no memory: the answers are lost. */
static ssize_t send_some(int fd, const void *data, size_t size)
{
    ssize_t sent = 0;

    if (size > 0)
        do
            sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
    if (sent >= 0 || errno == EAGAIN)
        return sent < 0 ? 0 : sent;
    return errno == EPIPE || errno == ECONNRESET ? (ssize_t)size : -1;
}

int connection_serve(Poller *self, int fd, PyObject *handed)
{
    struct link *link = &self->links[fd];
    Table *table = link->table;
    struct answered done;
    ssize_t got, sent;
    size_t size;
    int result;

    if (over(self, table))
        return 0;
    size = take_rest(link, self->buffer);
    got = recv(fd, self->buffer + size, READ_SIZE - size, MSG_DONTWAIT);
    if (got <= 0) {
        bool gone = got == 0 || (errno != EAGAIN && errno != EINTR);

        return gone || !keep_rest(link, self->buffer, size) ? hand_over(self, fd, handed, NULL, 0, NULL, 0) : 0;
    }
    size += (size_t)got;
    result = answer_all(self, table, size, &done);
    if (link->table != table)           /* Python code has run, and closed the connection */
        return result < 0 ? PyErr_WriteUnraisable((PyObject *)&TableType), 0 : 0;
    if (result < 0)
        return cut(self, fd, handed);
    sent = send_some(fd, self->buffer, done.size);
    if (sent < 0)
        return PyErr_SetFromErrno(PyExc_OSError), cut(self, fd, handed);
    if ((size_t)sent == done.size && (done.used == size || done.incomplete) &&
        keep_rest(link, self->buffer + done.used, size - done.used))
        return 0;
    return hand_over(self, fd, handed, self->buffer + sent, done.size - (size_t)sent, self->buffer + done.used,
                     size - done.used);
}

PyObject *Poller_attach(Poller *self, PyObject *args)
{
    int fd;
    PyObject *table, *handed;
    struct link *link;

    if (!PyArg_ParseTuple(args, "iO!O:attach", &fd, &TableType, &table, &handed) ||
        (link = free_link(self, fd)) == NULL)
        return NULL;
    if (watch(self, fd) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    *link = (struct link){ .table = (Table *)Py_NewRef(table), .handed = Py_NewRef(handed), .armed = true };
    Py_RETURN_NONE;
}

/* The link of a connection that Python has. NULL and an exception if there is none. */
static struct link *python_has(const Poller *self, int fd)
{
    if (fd < 0 || fd >= self->room || self->links[fd].table == NULL || self->links[fd].armed ||
        self->links[fd].page != NULL)
        return PyErr_SetString(PyExc_ValueError, "not a connection that was handed over"), NULL;
    return &self->links[fd];
}

PyObject *Poller_send(Poller *self, PyObject *args)
{
    int fd;
    const char *answers;
    Py_ssize_t size, sent;

    if (!PyArg_ParseTuple(args, "iy#:send", &fd, &answers, &size) || python_has(self, fd) == NULL)
        return NULL;
    sent = send_some(fd, answers, (size_t)size);
    if (sent < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (sent < size)
        connection_mute(self, fd);
    return PyLong_FromSsize_t(sent);
}

PyObject *Poller_resume(Poller *self, PyObject *args)
{
    int fd;
    const char *rest;
    Py_ssize_t size;
    struct link *link;

    if (!PyArg_ParseTuple(args, "iy#:resume", &fd, &rest, &size) || (link = python_has(self, fd)) == NULL)
        return NULL;
    if (size > FRAME + PAYLOAD_LIMIT)
        return PyErr_SetString(PyExc_ValueError, "no frame is so long"), NULL;
    if (!keep_rest(link, rest, (size_t)size))
        return PyErr_NoMemory();
    if (link->muted && watch(self, fd) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    link->muted = false;
    link->armed = true;
    Py_RETURN_NONE;
}

PyObject *Poller_detach(Poller *self, PyObject *arg)
{
    long fd = PyLong_AsLong(arg);

    if (fd == -1 && PyErr_Occurred())
        return NULL;
    if (fd >= 0 && fd < self->room && self->links[fd].table != NULL && self->links[fd].page == NULL) {
        connection_mute(self, (int)fd);
        link_clear(&self->links[fd]);
    }
    Py_RETURN_NONE;
}
