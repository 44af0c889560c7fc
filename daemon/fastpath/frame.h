/* The frames that are served without Python: core/ioreq.py and contract section 1.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_FRAME_H
#define UNPLUGD_FRAME_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames and state are read in place: little-endian only (Xen's guests with a device model are x86)"
#endif

enum {
    FRAME = 32,
    PAYLOAD_LIMIT = 4096,   /* core.ioreq.PAYLOAD_LIMIT: bytes of one string write */
};

struct frame {
    uint64_t addr;
    uint64_t data;
    uint32_t count;
    uint32_t size;
    uint32_t vp_eport;
    uint16_t pad;
    uint8_t flags;          /* bits 0-3 state, 4 data_is_ptr, 5 dir (1 = read) */
    uint8_t type;
};
_Static_assert(sizeof(struct frame) == FRAME, "struct ioreq has 32 bytes");

enum kind { OTHER, MAGIC, LOG, LOG_STRING, VERSION, PRODUCT, UNPLUG, BUILD };
enum { REQUEST = 1, RESPONSE = 3, STRING = 0x10, READ = 0x20 };
enum { PORT_MAGIC = 0x10, PORT_LOG = 0x12, BAR_LOG = 0x10008 };     /* and product, version: 0x12; unplug, build: 0x10 */
enum { MAGIC_ALLOWED = 0x49d2, MAGIC_DENIED = 0xd249, ALL_DEVICES = 0xf };

static inline enum kind recognize(const struct frame *frame)
{
    if (frame->type != 0)
        return OTHER;
    if (frame->size == 1 && (frame->addr == PORT_LOG || frame->addr == BAR_LOG)) {
        if (frame->flags == REQUEST && frame->count == 1)
            return LOG;
        if (frame->flags == (REQUEST | STRING) && frame->count >= 1 && frame->count <= PAYLOAD_LIMIT)
            return LOG_STRING;
        if (frame->flags == (REQUEST | READ) && frame->count == 1 && frame->addr == PORT_LOG)
            return VERSION;
    } else if (frame->size == 2 && frame->count == 1) {
        if (frame->addr == PORT_MAGIC)
            return frame->flags == (REQUEST | READ) ? MAGIC : frame->flags == REQUEST ? UNPLUG : OTHER;
        if (frame->addr == PORT_LOG && frame->flags == REQUEST)
            return PRODUCT;
    } else if (frame->size == 4 && frame->count == 1 && frame->addr == PORT_MAGIC && frame->flags == REQUEST) {
        return BUILD;
    }
    return OTHER;
}

#endif
