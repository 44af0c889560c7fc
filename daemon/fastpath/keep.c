/* Keeping what changed in the mapped state, where SIGKILL does not reach it: statefile.py's StateFile, whose layout it is.
 *
 * SPDX-License-Identifier: MIT
 */
#include "tail.h"

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "state.h"

unsigned char pending[LINE_LIMIT];

static uint32_t crc_table[8][256];     /* what a byte becomes, with so many bytes behind it */

void make_crc_table(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;

        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
        crc_table[0][n] = crc;
    }
    for (int behind = 1; behind < 8; behind++)
        for (uint32_t n = 0; n < 256; n++)
            crc_table[behind][n] = crc_table[behind - 1][n] >> 8 ^ crc_table[0][crc_table[behind - 1][n] & 0xFF];
}

static uint32_t crc32(const struct header *header)     /* zlib.crc32, eight bytes at a time */
{
    const char *data = (const char *)header;
    uint32_t crc = 0xFFFFFFFFu;

    _Static_assert(sizeof *header % 8 == 0, "nothing is left over");
    for (size_t at = 0; at < sizeof *header; at += 8) {
        uint64_t word;

        memcpy(&word, data + at, sizeof word);
        word ^= crc;
        crc = 0;
        for (int byte = 0; byte < 8; byte++)
            crc ^= crc_table[7 - byte][word >> 8 * byte & 0xFF];
    }
    return ~crc;
}

bool wait_for(Tail *tail, const void *data, size_t size)
{
    if (size > sizeof pending - (size_t)tail->waiting)
        return false;
    memcpy(pending + tail->waiting, data, size);
    tail->waiting += (Py_ssize_t)size;
    return true;
}

int append_pending(Tail *tail)
{
    Py_ssize_t have = PyByteArray_GET_SIZE(tail->partial);

    if (tail->waiting == 0)
        return 0;
    if (PyByteArray_Resize(tail->partial, have + tail->waiting) < 0)
        return -1;
    memcpy(PyByteArray_AS_STRING(tail->partial) + have, pending, (size_t)tail->waiting);
    tail->waiting = 0;
    return 0;
}

bool in_step(const Tail *tail)
{
    const char *map = tail->state.buf;
    const struct header *last = (const void *)(map + (tail->sequence & 1) * SLOT);
    const struct header *other = (const void *)(map + (~tail->sequence & 1) * SLOT);

    return last->sequence == tail->sequence && other->sequence < tail->sequence;
}

struct slot current_slot(const Tail *tail)
{
    struct slot slot;

    memcpy(&slot, (const char *)tail->state.buf + (tail->sequence & 1) * SLOT, sizeof slot);
    return slot;
}

void publish(Tail *tail, struct slot *slot, Py_ssize_t length)
{
    slot->header.sequence = ++tail->sequence;
    slot->header.area = tail->area;
    slot->header.length = length;
    slot->checksum = crc32(&slot->header);
    atomic_signal_fence(memory_order_seq_cst);
    memcpy((char *)tail->state.buf + (tail->sequence & 1) * SLOT, slot,
           offsetof(struct slot, checksum) + sizeof slot->checksum);
}

/* StateFile.commit() of a guest of which only the partial line, the balance and what was dropped have changed. */
static void commit(Tail *tail, Py_ssize_t length)
{
    struct slot slot = current_slot(tail);

    slot.header.unsaid_lines += tail->unsaid_lines;
    slot.header.unsaid_bytes += tail->unsaid_bytes;
    if (tail->paid) {
        slot.header.balance = tail->balance;
        slot.header.balance_at = tail->balance_at;
        tail->paid = false;
    }
    slot.header.charged = 0;    /* by the frames of a line that has ended */
    tail->unsaid_lines = tail->unsaid_bytes = 0;
    publish(tail, &slot, length);
}

/* StateFile.grow(): one aligned store, it is there or it is not. */
static void store_word(const Tail *tail)
{
    *(volatile uint64_t *)((char *)tail->state.buf + WORD) =
        (tail->sequence & 0xFFFFFFFFu) << LENGTH_BITS | (uint64_t)PyByteArray_GET_SIZE(tail->partial);
}

int keep(Tail *tail)
{
    char *map = tail->state.buf;
    Py_ssize_t have, more = tail->waiting;
    bool ended = tail->ended;

    if (!ended && more == 0)
        return 0;
    have = PyByteArray_GET_SIZE(tail->partial);
    if (tail->owner == NULL || have + more > PAGE) {    /* the domain went during a callback; or a bug: never beyond the area */
        PyErr_SetString(PyExc_RuntimeError, "the state of a domain has no room for its log");
        return -1;
    }
    if (append_pending(tail) < 0)
        return -1;
    tail->ended = false;
    tail->area ^= ended;    /* nothing that a valid header refers to is overwritten; `have` is 0 then */
    memcpy(map + PAGE + tail->area * PAGE + have, PyByteArray_AS_STRING(tail->partial) + have, (size_t)more);
    atomic_signal_fence(memory_order_seq_cst);
    if (ended)
        commit(tail, more);
    else
        store_word(tail);
    atomic_signal_fence(memory_order_seq_cst);
    return 0;
}
