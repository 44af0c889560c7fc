/* When domains are told what was served for them.
 *
 * While guests keep coming nobody has to be told of them: whoever looks at a domain has it told first (Domain.guest). What a
 * driver did is told unasked too, for it is to be recorded and published: once guests are quiet, a slice at a time.
 *
 * SPDX-License-Identifier: MIT
 */
#include "poller.h"

enum { FEW = 16 };          /* domains that are told before another descriptor is Python's turn */

static const double QUIET = 0.5e-3;     /* seconds without an access, after which there is time to tell */
static const double LATEST = 0.1;       /* seconds after which what a driver did is told, however busy others are */
static const double SLICE = 0.15e-3;    /* seconds of telling after which guests are looked at again */
static const double PIECE = 0.03e-3;    /* the same where somebody tells of all, and looks at guests meanwhile (Poller_serve) */

void touch(Poller *self, Tail *tail)
{
    if (!tail->touched) {
        tail->touched = true;
        tail->next = NULL;
        self->queued++;
        if (self->untold == NULL)
            self->behind = &self->untold;
        *self->behind = (Tail *)Py_NewRef((PyObject *)tail);
        self->behind = &tail->next;
    }
    if (tail->steps > 0 && !self->stepped) {
        self->stepped = true;
        self->served = now();
        self->due = self->served + LATEST;
    }
}

Tail *next_untold(Poller *self)
{
    Tail *tail = self->untold;

    if (tail != NULL) {
        self->untold = tail->next;
        self->queued--;
        tail->touched = false;
    }
    return tail;
}

/* Tell of those who wait longest, for so long. Whether there are more. */
static bool tell_some(Poller *self, double seconds)
{
    double until = now() + seconds;
    Tail *tail;

    self->called = true;
    while ((tail = next_untold(self)) != NULL) {
        tell(tail);
        Py_DECREF(tail);
        if (now() >= until)
            break;
    }
    self->stepped = self->untold != NULL;
    return self->stepped;
}

PyObject *Poller_tell(Poller *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(self->untold != NULL && tell_some(self, PIECE));
}

void tell_in_time(Poller *self, bool busy)
{
    double time = now();

    if (busy)
        self->served = time;
    if (time - self->served >= QUIET || time >= self->due)
        tell_some(self, SLICE);
}

void tell_before(Poller *self)
{
    if (self->queued <= FEW)
        tell_some(self, SLICE);
}
