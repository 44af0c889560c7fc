/* Lines that come quickly go to journald in a row.
 *
 * journald is woken for each entry that finds it waiting, on another CPU, and that is a large part of what a line costs. A
 * guest that has a line stored and sends the next one at once is therefore answered with its line kept in the mapped state:
 * there it is as safe from SIGKILL as a partial line is (state.py). journald gets all that was gathered when there are
 * MOST, when the area is full, after LONGEST, and before anything but this guest's accesses is looked at, be it another
 * guest or Python. So nobody ever sees a domain whose lines are under way.
 *
 * SPDX-License-Identifier: MIT
 */
#include "poller.h"

#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "journal.h"

enum { MOST = 32 };         /* lines: sending them takes 70 us, which another guest may have to wait */

static const double QUICKLY = 0.2e-3;       /* seconds since the line before */
static const long LONGEST = 1000 * 1000;    /* nanoseconds that a line is kept */

void close_gathering(Poller *self)
{
    Py_CLEAR(self->gathering);
    if (self->timer >= 0)
        close(self->timer);
    self->timer = -1;
}

bool gather(Poller *self, Tail *tail, struct balance left, double time)
{
    Py_ssize_t size = PyByteArray_GET_SIZE(tail->partial) + tail->waiting;

    if (size + 1 >= LINE_LIMIT || tail->gathered_lines == MOST || !self->alone || self->timer < 0)
        return false;
    if (tail->gathered == 0) {
        struct itimerspec soon = { .it_value.tv_nsec = LONGEST };

        if (time - tail->line_at > QUICKLY || self->gathering != NULL ||
            timerfd_settime(self->timer, 0, &soon, NULL) < 0)
            return false;
        self->gathering = (Tail *)Py_NewRef((PyObject *)tail);
        tail->before = (struct balance){ tail->balance, tail->balance_at };
    }
    pending[tail->waiting++] = '\n';
    tail->gathered = size + 1;
    tail->gathered_lines++;
    tail->balance = left.tokens;
    tail->balance_at = left.at;
    return true;
}

/* journald did not take the rest: it is Python's, which charges it and keeps it where it waits. */
static int leave_to_python(Poller *self, Tail *tail, Py_ssize_t from, double spent, double time)
{
    char *text = PyByteArray_AS_STRING(tail->partial);
    Py_ssize_t rest = PyByteArray_GET_SIZE(tail->partial) - from;

    memmove(text, text + from, (size_t)rest);
    if (PyByteArray_Resize(tail->partial, rest) < 0)
        return -1;
    tail->balance = tail->before.tokens - spent;
    tail->balance_at = tail->before.at;
    return catch_up(tail) < 0 ? -1 : call(self, tail, "lines_left", time);
}

int hand_in(Poller *self, double time)
{
    Tail *tail = self->gathering;
    Py_ssize_t gathered = tail->gathered, from = 0, rest;
    const char *text;
    double spent = 0;
    int result = -1;

    if (keep(tail) < 0)
        return -1;
    self->gathering = NULL;
    tail->gathered = tail->gathered_lines = 0;
    touch(self, tail);
    tail->changed = true;
    tail->heard = time;     /* it has committed, in the middle of a batch perhaps: Python is to follow */
    text = PyByteArray_AS_STRING(tail->partial);
    while (from < gathered) {
        const char *line = text + from;
        Py_ssize_t length = (const char *)memchr(line, '\n', (size_t)(gathered - from)) - line;

        if (!send_entry(self->journal, PyBytes_AS_STRING(tail->fields), (size_t)PyBytes_GET_SIZE(tail->fields), line,
                        (size_t)length)) {
            result = leave_to_python(self, tail, from, spent, time);
            goto end;
        }
        from += length + 1;
        if (tail->limited)
            spent += (double)line_cost(length);
        note_sent(tail, from);
        tail->lines++;
        tail->passed_lines++;
        tail->passed_bytes += length;
    }
    rest = PyByteArray_GET_SIZE(tail->partial) - gathered;
    memcpy(pending, text + gathered, (size_t)rest);
    if (PyByteArray_Resize(tail->partial, 0) < 0)
        goto end;
    tail->waiting = rest;
    tail->ended = tail->paid = true;
    result = keep(tail);
end:
    Py_DECREF(tail);
    return result;
}

void hand_in_now(Poller *self)
{
    Tail *tail = (Tail *)Py_NewRef((PyObject *)self->gathering);
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    if (hand_in(self, now()) < 0) {
        if (PyErr_Occurred())
            PyErr_WriteUnraisable((PyObject *)Py_TYPE(tail));
        tail->logging = false;  /* until Python has settled */
    }
    PyErr_Restore(type, value, traceback);
    Py_DECREF(tail);
}

void drop_ungathered(Tail *tail)
{
    const char *text = PyByteArray_AS_STRING(tail->partial);
    Py_ssize_t size = PyByteArray_GET_SIZE(tail->partial);

    if (tail->gathered > size)
        tail->gathered = size;
    while (tail->gathered > 0 && text[tail->gathered - 1] != '\n')
        tail->gathered--;
}
