/* The mapped state of a domain; the layout is statefile.py's, where it is explained.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_STATE_H
#define UNPLUGD_STATE_H

#include <stddef.h>
#include <stdint.h>

enum { PAGE = 4096, SLOT = 512, WORD = 2 * SLOT, LENGTH_BITS = 12, STATE_SIZE = 3 * PAGE };

struct header {
    char magic[8];
    uint64_t sequence;
    char boot[16];
    char uuid[64];
    int64_t product, build, blacklisted, unplugged, flags;
    double balance, balance_at;
    int64_t charged, unsaid_lines, unsaid_bytes, throttled;
    char reason[128];
    int64_t area, length;
};
struct slot {
    struct header header;
    uint32_t checksum;
};
_Static_assert(sizeof(struct header) == 328 && offsetof(struct slot, checksum) == 328, "statefile.py: _HEADER");

#endif
