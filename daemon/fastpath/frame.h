/* struct ioreq as it travels on a domain's socket and stands in Xen's page: the layout, and nothing that a port means.
 *
 * Sources: xen/include/public/hvm/ioreq.h; contract section 1, "Frame".
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_FRAME_H
#define UNPLUGD_FRAME_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames are copied as they are: little-endian only (guests with a device model are x86)"
#endif

enum {
    FRAME = 32,
    PAYLOAD_LIMIT = 4096,   /* bytes behind the frame of a string write, core.ioreq.PAYLOAD_LIMIT */
};

struct frame {
    uint64_t addr;
    uint64_t data;
    uint32_t count;
    uint32_t size;
    uint32_t vp_eport;
    uint16_t pad;
    uint8_t flags;          /* the enum below */
    uint8_t type;           /* 0: port I/O */
};
_Static_assert(sizeof(struct frame) == FRAME, "struct ioreq has 32 bytes");

enum { STATE = 0x0f, REQUEST = 1, IN_PROCESS = 2, RESPONSE = 3, STRING = 0x10, READ = 0x20 };

#endif
