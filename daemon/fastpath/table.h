/* Table: a guest's rows and its log text. answer() is the one function that answers a frame.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_TABLE_H
#define UNPLUGD_TABLE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "log.h"

enum { MAX_ROWS = 16, MAX_KINDS = 32 };

struct row {
    uint64_t addr;
    uint64_t value;         /* the answer, unless `append` */
    uint64_t *count;        /* of frames; one of the counters that Rows holds */
    uint32_t size;
    uint32_t kind;          /* bit of Table.seen */
    uint32_t left;          /* a string of so many bytes is left to Python */
    uint8_t read;           /* READ or 0, as in a frame */
    bool append;            /* a write: its bytes are added to the log, the answer is 0 */
};

typedef struct {            /* never changes, so that domains share it */
    PyObject_HEAD
    Py_buffer counts;       /* uint64_t by kind */
    int rows;
    struct row row[MAX_ROWS];
} Rows;

typedef struct {
    PyObject_HEAD
    Rows *rows;
    PyObject *woken;        /* called without arguments when the log needs Python; NULL once closed */
    Py_buffer memory;       /* that the log text is in; obj is NULL once closed */
    struct log log;
    unsigned long long wake;    /* length of the text from which on Python is called */
    double heard;           /* when the last log byte came, CLOCK_MONOTONIC */
    unsigned seen;          /* kinds of the rows that were used since Python cleared it */
    double seen_at;         /* when the last of its bits was set */
    unsigned long long round;   /* of the Poller, in which it took `spent` seconds */
    double spent;
} Table;

extern PyTypeObject RowsType, TableType;

struct answered {
    size_t used;            /* bytes of requests */
    size_t size;            /* bytes of answers */
    bool due;               /* Python must be called before the answers are sent: wake() */
    bool incomplete;        /* what follows is the beginning of a frame */
};

/* Answer the frames at the beginning of `in` that a row answers. `out` has room for as much; it may be `in` itself, or
 * before it. `time` is CLOCK_MONOTONIC. `done` is what came of it. */
void answer(Table *table, const unsigned char *in, size_t size, unsigned char *out, double time, struct answered *done);

/* Have Python look at the log. -1 and an exception if that fails: what was answered must not be sent then. What it does may
 * close the table. */
int wake(Table *table);

/* time.monotonic() */
double now(void);

#endif
