/* The Poller, and what a batch of frames does to a guest's log.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_POLLER_H
#define UNPLUGD_POLLER_H

#include "tail.h"

enum {
    READ_SIZE = 16 * 1024,  /* connection.READ_SIZE: at most 512 accesses, then it is somebody else's turn */
    BUDGET = 500,           /* turns.BUDGET, microseconds: what one domain may take of a round */
    RECORD_COST = 64,       /* core.guestlog.RECORD_COST: the least that a line costs */
};

enum link_kind {
    ATTACHED,               /* a connection of Python's, which is served here while Python arms it */
    HELD,                   /* a connection of the Poller's own, see held.c */
    LISTENING,              /* a domain's socket */
    LENT,                   /* event channels of a domain's ioreq page, see page.c */
};

struct link {               /* by its descriptor */
    Tail *tail;             /* NULL: there is none */
    PyObject *handed;       /* called with (descriptor, responses that could not be sent, bytes from the first frame on
                               that is Python's); from then on it is Python's until armed again. Called with None in
                               place of the bytes: somebody has connected of whom Python must say if he may */
    int window;             /* bytes to read at a time; 0: not armed */
    enum link_kind kind;
    bool muted;             /* held, and not in the epoll: there was something while Python was at it */
    bool asking;            /* held, and `question` is a build number that waits for its verdict */
    struct frame question;
    int64_t product;        /* whose build number it is */
    double asked;           /* when it came */
    struct ioreq_page *page;    /* lent */
};

typedef struct {
    PyObject_HEAD
    int epoll;
    struct link *links;
    int room;               /* how many `links` there are */
    Tail *untold, **behind; /* queue of tails whose domains were not told of something, a reference each */
    int bounds;
    double bound[MAX_BOUNDS];
    bool called;            /* Python code ran: there may be new timers and callbacks */
    int queued;             /* how many these are */
    bool stepped;           /* there are some among them whose drivers have done something, which is to be told soon: */
    double served, due;     /* when nothing has come since `served` for QUIET, and at `due` at the latest */
    int held, others;       /* connections of all domains: held here, and Python's */
    int most;
    unsigned long long round;
    int journal;            /* sinks.journal.Journal's socket, connected to journald; -1: it has none */
    int alarm;              /* a timerfd: Python's next timer is due; -1: there is none */
    double rings;           /* when; 0: it is not set */
    PyObject *handed;       /* what came in serve() and is Python's, for the next poll(); NULL: nothing */
    unsigned char buffer[READ_SIZE] __attribute__((aligned(8)));
} Poller;

/* Read and answer what came on a connection. 1: nothing was done, the event is Python's; 0: done, or handed over; -1 and
 * an exception. */
int serve(Poller *self, int fd, PyObject *handed);

/* Make answers of the frames at the beginning of `size` bytes of the buffer, up to the first that is Python's, with all
 * that they do. Returns the bytes that were served, in whose place `answered` bytes of answers are now; -1 and an
 * exception if something fails: nothing may be sent then. */
Py_ssize_t answer(Poller *self, Tail *tail, Py_ssize_t size, Py_ssize_t *answered, double began);

/* Something of unplugd's own went wrong in the middle of a batch: say so, and cut the connection without an answer, as
 * asyncio does with a protocol that raises. What the batch left undone is not acknowledged. */
void cut(Poller *self, Tail *tail, int fd);

/* Whether a domain has had its share of this round: what is left is still there in the next, after the others. */
bool over(const Poller *self, Tail *tail);

/* A response, or those of a batch, took so long. */
void observe(const Poller *self, Tail *tail, double seconds);

/* A link for every descriptor up to this one. -1 and an exception where there is no memory. */
int make_room(Poller *self, int fd);

void unlink_connection(struct link *link);

/* Have `callback` called with a descriptor and bytes (`data` NULL: None). -1 and an exception if that fails. */
int hand_over(PyObject *handed, PyObject *callback, int fd, const void *unsent, Py_ssize_t unsent_size,
              const void *data, Py_ssize_t size);

/* Accept at a domain's socket. As serve(): 1: the event is Python's; 0: done; -1 and an exception. */
int accept_some(Poller *self, int fd, PyObject *handed);

/* Something came on a held connection while Python is at it: not to be looked at until that is done. */
void mute(Poller *self, int fd);

void close_held(Poller *self, int fd);

/* A held connection's next frame is a build number, and nothing is behind it: ask what its verdict is. False: it is to be
 * handed over; it may be gone after true. */
bool ask(Poller *self, int fd, const struct frame *frame);

/* Events of a lent page: carry the accesses out, or give them to the lender. */
void serve_page(Poller *self, int events);

/* Have nothing to do with a lent page any more, and let its lender know. */
void close_page(Poller *self, int events);

PyObject *Poller_borrow(Poller *self, PyObject *args);
PyObject *Poller_give_back(Poller *self, PyObject *arg);

PyObject *Poller_listen(Poller *self, PyObject *args);
PyObject *Poller_answer(Poller *self, PyObject *args);
PyObject *Poller_allow(Poller *self, PyObject *arg);
PyObject *Poller_question(Poller *self, PyObject *arg);
PyObject *Poller_take(Poller *self, PyObject *arg);
PyObject *Poller_cut(Poller *self, PyObject *arg);
PyObject *Poller_hang_up(Poller *self, PyObject *arg);

/* Remember that a tail's domain was not told of something. */
void touch(Poller *self, Tail *tail);

/* The next one of these, no longer in the queue; with a reference. NULL: there is none. */
Tail *next_untold(Poller *self);

/* Some of them have drivers that did something: tell of it if guests are quiet, or it is time. `busy`: one was served. */
void tell_in_time(Poller *self, bool busy);

/* The same, and something else comes now: what was done before it is told before it, but where a crowd boots guests come
 * first. */
void tell_before(Poller *self);

PyObject *Poller_tell(Poller *self, PyObject *ignored);

/* Call a method of a tail's domain with the time. -1 and an exception if that fails. */
int call(Poller *self, Tail *tail, const char *method, double time);

/* A newline came. -1 and an exception if something fails. */
int end_line(Poller *self, Tail *tail, double time);

/* What a line of so many bytes costs its guest. */
static inline Py_ssize_t line_cost(Py_ssize_t length)
{
    return length < RECORD_COST ? RECORD_COST : length;
}

/* A timerfd in the epoll; -1 where there can be none. */
int open_timer(const Poller *self);

/* Whether all bytes of a string write can be taken: none fills a line, and none begins one that no timer will flush. */
bool fits(const Tail *tail, const unsigned char *data, size_t count, double began);

/* -1 and the exception of bytes that do not fit after all. */
int overflown(void);

/* Bytes of guest log that fit. -1 and an exception if something fails. */
int take(Poller *self, Tail *tail, const unsigned char *data, size_t count, double began);

#endif
