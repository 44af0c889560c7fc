/* What the loop (loop.c), its connections (connection.c) and its pages (page.c) share: the Poller and its links.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_POLLER_H
#define UNPLUGD_POLLER_H

#include "frame.h"
#include "table.h"

enum {
    READ_SIZE = 5 * 1024,   /* bytes read at a time: at most 160 accesses, then others have their turn */
    BUDGET = 500,           /* microseconds that one domain may take of a round */
    MAX_BOUNDS = 32,
};

struct ioreq_page;          /* page.c */

struct link {               /* by its descriptor */
    Table *table;           /* NULL: there is none */
    PyObject *handed;       /* of a connection: called with (answers not sent, bytes from a frame on that has no row) */
    unsigned char *rest;    /* of a connection: the beginning of a frame; NULL: there is none */
    size_t rest_size;
    bool armed;             /* a connection that is read here, else Python has it */
    bool muted;             /* not in the epoll, so that Python may wait for the descriptor */
    struct ioreq_page *page;    /* not NULL: the descriptor has the events of a lent page */
};

typedef struct {
    PyObject_HEAD
    int epoll;
    int alarm;              /* a timerfd: Python's next timer is due; -1: there is none */
    double rings;           /* when; 0: it is not set */
    struct link *links;
    int room;               /* how many `links` there are */
    int last;               /* the highest descriptor that had one */
    unsigned long long round;
    bool serving;           /* a connection or page is being served: the buffer is in use */
    bool called;            /* Python has something to do: set by the event loop's call_soon() and call_at() */
    PyObject *handed;       /* what came in serve() and is Python's, for the next poll(); NULL: nothing */
    Py_buffer durations;    /* uint64_t: batches by bucket; then nanoseconds in sum */
    int bounds;
    double bound[MAX_BOUNDS];
    unsigned char buffer[READ_SIZE] __attribute__((aligned(8)));
} Poller;

/* Whether a domain has had its share of this round: what is left is still there in the next, after the others. */
static inline bool over(const Poller *self, Table *table)
{
    if (table->round != self->round) {
        table->round = self->round;
        table->spent = 0;
    }
    return table->spent * 1e6 >= BUDGET;
}

/* A batch of accesses took so long. */
static inline void observe(const Poller *self, Table *table, double seconds)
{
    uint64_t *bucket = self->durations.buf;
    int at = 0;

    while (at < self->bounds && seconds > self->bound[at])
        at++;
    bucket[at]++;
    bucket[self->bounds + 1] += (uint64_t)(seconds * 1e9);
    table->spent += seconds;
}

/* --- connection.c */

/* Read and answer what came; what is for Python is appended to `handed`. -1 and an exception where there is no memory. */
int connection_serve(Poller *self, int fd, PyObject *handed);

/* A descriptor that Python has is ready: not to be looked at until it is resumed. */
void connection_mute(Poller *self, int fd);

/* Forget what the Poller has of a descriptor. */
void link_clear(struct link *link);

/* The link of a descriptor that is to have one. NULL and an exception if it has one, or can have none. */
struct link *free_link(Poller *self, int fd);

PyObject *Poller_attach(Poller *self, PyObject *args);
PyObject *Poller_send(Poller *self, PyObject *args);
PyObject *Poller_resume(Poller *self, PyObject *args);
PyObject *Poller_detach(Poller *self, PyObject *arg);

/* --- page.c */

/* Events came: answer the accesses, or give them to the lender. */
void page_serve(Poller *self, int events);

/* Give the page back. */
void page_close(Poller *self, int events);

PyObject *Poller_borrow(Poller *self, PyObject *args);
PyObject *Poller_give_back(Poller *self, PyObject *arg);

#endif
