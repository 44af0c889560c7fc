/* The Poller, and what a batch of frames does to a guest's log.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_POLLER_H
#define UNPLUGD_POLLER_H

#include "tail.h"

enum {
    READ_SIZE = 16 * 1024,  /* connection.READ_SIZE: at most 512 accesses, then it is somebody else's turn */
    RECORD_COST = 64,       /* core.guestlog.RECORD_COST: the least that a line costs */
};

struct link {               /* a connection, by its descriptor */
    Tail *tail;             /* NULL: not attached */
    PyObject *handed;       /* called with (responses that could not be sent, bytes from the first frame on that is
                               Python's); from then on the connection is Python's until it arms it again */
    int window;             /* bytes to read at a time; 0: not armed */
};

typedef struct {
    PyObject_HEAD
    int epoll;
    struct link *links;
    int room;               /* how many `links` there are */
    Tail *touched;          /* tails whose domains must be told, a reference each */
    int bounds;
    double bound[MAX_BOUNDS];
    bool called;            /* Python code ran: there may be new timers and callbacks */
    unsigned long long round;
    int journal;            /* sinks.journal.Journal's socket, connected to journald; -1: it has none */
    unsigned char buffer[READ_SIZE] __attribute__((aligned(8)));
} Poller;

/* Remember that a tail's domain must be told. */
void touch(Poller *self, Tail *tail);

/* Call a method of a tail's domain with the time. -1 and an exception if that fails. */
int call(Poller *self, Tail *tail, const char *method, double time);

/* A newline came. -1 and an exception if something fails. */
int end_line(Poller *self, Tail *tail, double time);

/* Whether all bytes of a string write can be taken: none fills a line, and none begins one that no timer will flush. */
bool fits(const Tail *tail, const unsigned char *data, size_t count, double began);

/* Bytes of guest log that fit. -1 and an exception if something fails. */
int take(Poller *self, Tail *tail, const unsigned char *data, size_t count, double began);

#endif
