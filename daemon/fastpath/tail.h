/* A Tail: what of a domain may change without Python. Who owns what, and when, says poller.c.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_TAIL_H
#define UNPLUGD_TAIL_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <time.h>

#include "frame.h"

enum {
    LINE_LIMIT = 4095,      /* core.guestlog.LINE_LIMIT: the byte that fills a line is Python's */
    MAX_BOUNDS = 32,
    MAX_STEPS = 8,          /* of a driver that comes up, before the domain is told of them */
};

struct step {               /* what a driver did beside logging, to be told to the domain */
    int kind;               /* enum kind */
    unsigned value;         /* that it wrote */
    double time;
};

struct balance {            /* of a guest's limiter, core.bucket.TokenBucket */
    double tokens, at;
};

typedef struct tail {
    PyObject_HEAD
    PyObject *owner;        /* domain.Domain: caught_up(), line_ended(), settle(); NULL once closed */
    PyObject *ask;          /* held.Held: what a build number's verdict is, see ask() in held.c; NULL: nobody is there */
    PyObject *partial;      /* GuestLog.partial, a bytearray: appended to and cleared in place */
    Py_buffer state;        /* the mapped StateFile; obj is NULL once closed */
    /* As Python offered it, see Tail_offer. */
    uint64_t sequence;
    int area;
    bool blacklisted;
    bool logging;           /* log bytes may be taken here */
    double begin_from;      /* from then on a timer is soon enough to flush a line that begins */
    double drop_until;      /* until then (CLOCK_MONOTONIC) lines that cannot be paid for are dropped, and nothing else is due */
    double report;          /* what a line must pay beside its own cost, to pass before that */
    PyObject *fields;       /* bytes: journal fields of its lines up to MESSAGE=, which may go to journald here; NULL: they may not */
    bool limited;           /* by the balance that follows: core.bucket.TokenBucket */
    double balance, balance_at, rate, burst;
    int version;            /* that the protocol has; 0: product numbers are Python's */
    unsigned allowed;       /* what may be unplugged, before and once it is blacklisted */
    unsigned allowed_blacklisted;
    int noted;              /* the magic number's last read that is in the history: 0, 1 (blacklisted), or -1 */
    /* Its connections. */
    long long uid;          /* of its device model; -1: root's alone */
    int held;               /* that the Poller has */
    int others;             /* that Python has */
    int most;
    /* Of the batch that is being served. */
    Py_ssize_t waiting;     /* bytes in `pending`, behind those of `partial` */
    bool ended;             /* a line ended here: the rest belongs into the other area, under a new header */
    bool unsettled;         /* Python ended a line: it must settle() before anything is sent */
    long long unsaid_lines, unsaid_bytes;   /* dropped lines that no header counts yet */
    unsigned long long round;               /* of the Poller, in which it took `spent` seconds */
    double spent;
    bool paid;              /* the balance is another than the header's */
    bool touched;           /* it is in the Poller's queue */
    struct tail *next;
    /* What the domain was not told yet; zeroed from here on by catch_up(). */
    bool changed;
    double heard;           /* when the last byte came; 0 for none */
    long long lines;        /* ended here: dropped ones and empty ones */
    long long dropped_lines, dropped_bytes;
    double dropped_at;
    long long magics, logged;               /* frames */
    double seconds;         /* that batches took, in sum */
    unsigned durations[MAX_BOUNDS + 1];     /* batches by bucket of the histogram */
    long long passed_lines, passed_bytes;   /* that journald has */
    int steps;
    struct step step[MAX_STEPS];
} Tail;

extern PyTypeObject TailType;

/* time.monotonic() */
static inline double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* --- keep.c: what SIGKILL does not reach */

struct slot;                /* state.h */

/* Log bytes of the batch that is being served, whosever it is: between two batches there are none. */
extern unsigned char pending[LINE_LIMIT];

/* Once, before all else here. */
void make_crc_table(void);

/* Bytes of guest log wait in `pending`, behind those of `partial`: the only way there. False, and nothing was written, where
 * the line would not fit: a bug of the caller's, for it has asked fits(). */
bool wait_for(Tail *tail, const void *data, size_t size);

/* Bytes that are pending become part of the partial line. -1 and an exception where there is no memory. */
int append_pending(Tail *tail);

/* Whether the last commit is the one that was offered. Else somebody commits and does not offer, which is a bug; bytes
 * kept here would belong to no header, so there are none until the next offer. */
bool in_step(const Tail *tail);

/* The header that counts, for a change. */
struct slot current_slot(const Tail *tail);

/* From now on this one counts; `length` bytes of the partial line belong to it. */
void publish(Tail *tail, struct slot *slot, Py_ssize_t length);

/* Keep what the batch changed so far. -1 and an exception where there is no memory. */
int keep(Tail *tail);

/* --- steps.c: what a driver that comes up does */

/* Serve a step: the answer is in the frame, what it changes is kept. False: it is Python's. */
bool take_step(Tail *tail, enum kind kind, struct frame *frame, double time);

/* The product whose build number may be judged without Python's part of the protocol; -1: there is none. */
int64_t product_asked(const Tail *tail);

/* A build number of that product may be used. False: nothing was done, it is Python's. */
bool allow_build(Tail *tail, int64_t product, unsigned build, double time);

/* The magic number is read: a step where the history does not have it yet. */
void note_magic(Tail *tail, double time);

/* --- tail.c: what its domain is told */

/* Tell the domain what changed since it was told last. -1 and an exception if that fails. */
int catch_up(Tail *tail);

/* The same, and let it settle what the driver did. What cannot be told (for want of memory, say) is said and ends
 * nothing: it was answered, and it is kept. */
void tell(Tail *tail);

/* Call a method of a tail's domain with the time. -1 and an exception if that fails. */
int call_owner(Tail *tail, const char *method, double time);

#endif
