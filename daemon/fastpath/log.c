/* The bounded write, and the store that makes it count. Nothing else here writes what outlives a frame.
 *
 * SPDX-License-Identifier: MIT
 */
#include "log.h"

#include <stdatomic.h>
#include <string.h>

bool log_append(struct log *log, const void *data, size_t size)
{
    if (log->text == NULL || log->used > log->size || size > log->size - log->used)
        return false;
    memcpy(log->text + log->used, data, size);
    log->used += (uint32_t)size;
    return true;
}

void log_publish(const struct log *log)
{
    if (log->text == NULL)
        return;
    /* SIGKILL stops a process between two instructions, and the kernel keeps what was stored: the order of the stores is
     * all that matters, and the compiler must not change it. */
    atomic_signal_fence(memory_order_seq_cst);
    *(volatile uint64_t *)log->word = log->generation << 16 | log->used;
    atomic_signal_fence(memory_order_seq_cst);
}
