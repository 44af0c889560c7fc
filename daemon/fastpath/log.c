/* Bytes of a guest's log: lines end here, are dropped, go to journald, or are Python's.
 *
 * SPDX-License-Identifier: MIT
 */
#include "poller.h"

#include <math.h>
#include <string.h>

#include "journal.h"

int call(Poller *self, Tail *tail, const char *method, double time)
{
    self->called = true;
    return call_owner(tail, method, time);
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

int take(Poller *self, Tail *tail, const unsigned char *data, size_t count, double began)
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
