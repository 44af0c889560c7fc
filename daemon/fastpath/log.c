/* Bytes of a guest's log: lines end here, are dropped, go to journald, or are Python's.
 *
 * SPDX-License-Identifier: MIT
 */
#include "poller.h"

#include <math.h>
#include <string.h>

#include "journal.h"

static const double ROUNDING = 1e-6;    /* tokens, core.bucket.ROUNDING: so near to the limit Python decides */

int call(Poller *self, Tail *tail, const char *method, double time)
{
    self->called = true;
    return call_owner(tail, method, time);
}

/* TokenBucket.refill(), of what was offered. */
static struct balance refilled(const Tail *tail, double time)
{
    struct balance now = { tail->balance, tail->balance_at };

    if (time > now.at) {
        now.tokens = fmin(tail->burst, now.tokens + (time - now.at) * tail->rate);
        now.at = time;
    }
    return now;
}

/* Whether the line that has ended may go to journald, can be paid for and costs no more than its bytes, as GuestLog._line()
 * and Delivery.put() see it; `left` is the balance then. */
static bool may_pass(const Poller *self, const Tail *tail, const char *text, Py_ssize_t length, double time,
                     struct balance *left)
{
    *left = (struct balance){ tail->balance, tail->balance_at };
    if (tail->fields == NULL || self->journal < 0 || !is_plain(text, (size_t)length))
        return false;
    if (!tail->limited)
        return true;
    *left = refilled(tail, time);
    left->tokens -= (double)line_cost(length);
    return left->tokens >= 0;
}

/* Whether a line that has ended is dropped, and that is all, as GuestLog._drop() sees it (Dropping). */
static bool is_dropped(const Tail *tail, Py_ssize_t length, double time)
{
    return time < tail->drop_until &&
           refilled(tail, time).tokens < (double)line_cost(length) + tail->report - ROUNDING;
}

/* Hand the line that has ended to journald. False: nothing was done, it is Python's. */
static bool pass_line(Poller *self, Tail *tail, const char *text, Py_ssize_t length, struct balance left)
{
    if (!send_entry(self->journal, PyBytes_AS_STRING(tail->fields), (size_t)PyBytes_GET_SIZE(tail->fields), text,
                    (size_t)length))
        return false;
    tail->balance = left.tokens;
    tail->balance_at = left.at;
    tail->paid = tail->ended = true;
    tail->lines++;
    tail->passed_lines++;
    tail->passed_bytes += length;
    tail->changed = true;
    touch(self, tail);
    return true;
}

/* The bytes of the line that has ended, in one piece. NULL and an exception where there is no memory. */
static const char *line_text(Tail *tail)
{
    Py_ssize_t have = PyByteArray_GET_SIZE(tail->partial);

    if (have == 0)
        return (const char *)pending;
    return append_pending(tail) < 0 ? NULL : PyByteArray_AS_STRING(tail->partial);
}

/* A line has ended that has bytes. 1: it was taken care of, and so was its balance; 0: nothing was done; -1 and an exception. */
static int take_line(Poller *self, Tail *tail, Py_ssize_t length, bool back, double time)
{
    const char *text = line_text(tail);
    struct balance left;

    if (text == NULL)
        return -1;
    if (!may_pass(self, tail, text, length - back, time, &left))
        return 0;
    if (!pass_line(self, tail, text, length - back, left))
        return 0;
    tail->waiting = 0;
    return PyByteArray_Resize(tail->partial, 0) < 0 ? -1 : 1;
}

int end_line(Poller *self, Tail *tail, double time)
{
    Py_ssize_t have = PyByteArray_GET_SIZE(tail->partial), length = have + tail->waiting;
    bool back;

    if (length == 0) {      /* empty lines are not recorded */
        tail->lines++;
        return 0;
    }
    back = (tail->waiting > 0 ? pending[tail->waiting - 1] : PyByteArray_AS_STRING(tail->partial)[have - 1]) == '\r';
    if (!tail->unsettled && tail->fields != NULL && length > back) {
        int taken = take_line(self, tail, length, back, time);

        if (taken != 0)
            return taken < 0 ? -1 : 0;
    }
    if (tail->unsettled || !is_dropped(tail, length - back, time)) {
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

bool fits(const Tail *tail, const unsigned char *data, size_t count, double began)
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

int overflown(void)
{
    PyErr_SetString(PyExc_RuntimeError, "more log bytes than a line has room for");
    return -1;
}

int take(Poller *self, Tail *tail, const unsigned char *data, size_t count, double began)
{
    while (count > 0) {
        const unsigned char *end = memchr(data, '\n', count);
        size_t piece = end == NULL ? count : (size_t)(end - data);

        if (!wait_for(tail, data, piece))
            return overflown();
        if (end == NULL)
            break;
        if (end_line(self, tail, began) < 0)
            return -1;
        count -= piece + 1;
        data = end + 1;
    }
    return 0;
}
