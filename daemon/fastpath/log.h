/* A guest's log text in mapped memory: the only memory that a guest's bytes reach and that outlives a frame.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_LOG_H
#define UNPLUGD_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct log {
    unsigned char *text;    /* the area that the text is in; NULL: there is none */
    uint32_t size;          /* bytes that the area has, at most LOG_SIZE_LIMIT */
    uint32_t used;          /* bytes of text */
    uint64_t generation;    /* which area it is */
    uint64_t *word;         /* where publish() writes, aligned */
};

enum { LOG_SIZE_LIMIT = 0xffff };

/* Add bytes to the text. False, and nothing is written, where they do not all fit. */
bool log_append(struct log *log, const void *data, size_t size);

/* Make the text count, so that it survives SIGKILL: generation << 16 | used, in one aligned store. */
void log_publish(const struct log *log);

#endif
