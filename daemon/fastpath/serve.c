/* What came on a connection: read, answered, sent, and what is Python's handed over.
 *
 * "Acknowledged" (contract section 1) is the order of serve(): take the bytes, hand ended lines to journald, store the
 * rest into the mapped state, count, and only then send. Stores are ordered by compiler fences; SIGKILL stops a process
 * between two instructions, and the kernel keeps what was stored.
 *
 * SPDX-License-Identifier: MIT
 */
#include "poller.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "frame.h"

Py_ssize_t answer(Poller *self, Tail *tail, Py_ssize_t size, Py_ssize_t *answered, double began)
{
    Py_ssize_t at = 0, out = 0, have = 0;
    uint64_t magic = tail->blacklisted ? MAGIC_DENIED : MAGIC_ALLOWED;
    long long magics = 0, logged = 0;
    double seconds;
    bool looked = false;    /* at the state and the partial line: memory that a magic read does not need */

    while (at + FRAME <= size) {
        struct frame frame;     /* behind a string write, the next one is not aligned */
        unsigned char byte;
        size_t payload = 0;
        enum kind kind;

        memcpy(&frame, self->buffer + at, FRAME);
        kind = recognize(&frame);
        if (kind == MAGIC) {
            magics++;
            if (tail->logging && !tail->unsettled)  /* else it is noted with `magics`: Python must settle first */
                note_magic(tail, began);
            frame.data = magic;
            frame.flags = RESPONSE | READ;
            goto answered;
        }
        if (!looked) {
            looked = true;
            have = PyByteArray_GET_SIZE(tail->partial);
            if (tail->logging && !in_step(tail))
                tail->logging = false;
        }
        if (kind == OTHER || kind == BUILD || !tail->logging)
            break;
        if (kind == VERSION || kind == PRODUCT || kind == UNPLUG) {
            if (!take_step(tail, kind, &frame, began))
                break;
            goto answered;
        }
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
            if (have + tail->waiting + 1 >= LINE_LIMIT ||
                (have + tail->waiting == 0 && began < tail->begin_from))
                break;
            if (!wait_for(tail, &byte, 1))
                return overflown();
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
    tail->spent += seconds;
    observe(self, tail, seconds);
    return at;
}

void observe(const Poller *self, Tail *tail, double seconds)
{
    int bucket = 0;

    tail->seconds += seconds;
    while (bucket < self->bounds && seconds > self->bound[bucket])
        bucket++;
    tail->durations[bucket]++;
}

void cut(Poller *self, Tail *tail, int fd)
{
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError, "a domain went while it was being served");
    PyErr_WriteUnraisable((PyObject *)Py_TYPE(tail));
    tail->waiting = 0;
    tail->unsettled = tail->ended = tail->paid = false;
    tail->logging = false;  /* until Python has settled */
    if (self->links[fd].tail != tail)
        return;             /* Python has closed it */
    self->links[fd].window = 0;
    if (self->links[fd].kind == HELD)
        close_held(self, fd);
    else if (self->links[fd].kind == LENT)
        close_page(self, fd);
    else
        shutdown(fd, SHUT_RDWR);
}

bool over(const Poller *self, Tail *tail)
{
    if (tail->round != self->round) {
        tail->round = self->round;
        tail->spent = 0;
    }
    return tail->spent * 1e6 >= BUDGET;
}

int hand_over(PyObject *handed, PyObject *callback, int fd, const void *unsent, Py_ssize_t unsent_size,
              const void *data, Py_ssize_t size)
{
    PyObject *item = Py_BuildValue(data == NULL ? "(Oiy#s)" : "(Oiy#y#)", callback, fd,
                                   unsent == NULL ? "" : unsent, unsent_size, data, size);
    int result = item == NULL ? -1 : PyList_Append(handed, item);

    Py_XDECREF(item);
    return result;
}

int serve(Poller *self, int fd, PyObject *handed)
{
    struct link *link = &self->links[fd];
    Tail *tail = link->tail;
    Py_ssize_t size, served, answered = 0, sent = 0;

    if (over(self, tail))
        return 0;
    size = recv(fd, self->buffer, (size_t)link->window, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (size <= 0) {
        if (link->kind != HELD)
            return 1;
        close_held(self, fd);
        return 0;
    }
    Py_INCREF(tail);
    served = answer(self, tail, size, &answered, now());
    link = &self->links[fd];        /* Python code may have run, and closed it: then it is somebody else's descriptor */
    if (served < 0)
        cut(self, tail, fd);
    if (served < 0 || link->tail != tail) {
        Py_DECREF(tail);
        return 0;
    }
    if (served > 0) {
        do
            sent = send(fd, self->buffer, (size_t)answered, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
        if (sent < 0 && errno != EAGAIN && link->kind == HELD) {
            close_held(self, fd);
            Py_DECREF(tail);
            return 0;
        }
        if (sent < 0)
            sent = 0;       /* full, or gone: Python finds out which */
    }
    Py_DECREF(tail);
    if (served == size && sent == answered) {     /* quick work: what made Python read in small pieces is over */
        if (link->window > 0 && link->window <= READ_SIZE / 2)
            link->window *= 2;
        return 0;
    }
    link->window = 0;
    if (size - served == FRAME && sent == answered && link->kind == HELD) {
        struct frame frame;     /* behind a string write it is not aligned */

        memcpy(&frame, self->buffer + served, FRAME);
        if (ask(self, fd, &frame))
            return 0;
    }
    return hand_over(handed, link->handed, fd, self->buffer + sent, answered - sent, self->buffer + served,
                     size - served);
}
