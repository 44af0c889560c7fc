/* A guest's log text in mapped memory: the only memory that a guest's bytes reach and that outlives a frame. Here are the
 * bounded write, and the store that makes it count. Nothing else in C writes there.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_LOG_H
#define UNPLUGD_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { LOG_SIZE_LIMIT = 0xffff };

struct log {
    unsigned char *text;    /* the area that the text is in; NULL: there is none */
    uint32_t size;          /* bytes that the area has, at most LOG_SIZE_LIMIT */
    uint32_t used;          /* bytes of text */
    uint64_t generation;    /* which area it is */
    uint64_t *word;         /* where log_publish() writes, aligned */
};

/* Add bytes to the text. False, and nothing is written, where they do not all fit. */
static inline bool log_append(struct log *log, const void *data, size_t size)
{
    if (log->text == NULL || log->used > log->size || size > log->size - log->used)
        return false;
    memcpy(log->text + log->used, data, size);
    log->used += (uint32_t)size;
    return true;
}

/* Make the text count. The kernel keeps what was stored before a SIGKILL: the compiler must not change the order of stores. */
static inline void log_publish(const struct log *log)
{
    if (log->text == NULL)
        return;
    atomic_signal_fence(memory_order_seq_cst);
    *(volatile uint64_t *)log->word = log->generation << 16 | log->used;    /* one aligned store */
    atomic_signal_fence(memory_order_seq_cst);
}

#endif
