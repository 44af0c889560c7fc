/* The steps of a driver that comes up: what core/guest.py does, changed in the mapped state; the history, records and what is
 * published follow when the domain is told.
 *
 * SPDX-License-Identifier: MIT
 */
#include "tail.h"

#include <stdatomic.h>

#include "state.h"

static void add_step(Tail *tail, enum kind kind, unsigned value, double time)
{
    tail->step[tail->steps++] = (struct step){ kind, value, time };
    tail->changed = true;
}

/* Guest.write() and Platform of core/: the same change of the same state. */
bool take_step(Tail *tail, enum kind kind, struct frame *frame, double time)
{
    struct slot slot;
    unsigned value = (uint16_t)frame->data;
    uint64_t order = 0;

    if (tail->version == 0 || tail->steps == MAX_STEPS || tail->waiting > 0 || tail->ended ||
        tail->unsettled)
        return false;
    if (kind != VERSION)
        slot = current_slot(tail);
    if (kind == PRODUCT && (int64_t)value != (slot.header.product < 0 ? 0 : slot.header.product)) {
        slot.header.product = value == 0 ? -1 : (int64_t)value;
        slot.header.build = -1;
        publish(tail, &slot, PyByteArray_GET_SIZE(tail->partial));
    } else if (kind == UNPLUG) {
        order = value & ALL_DEVICES & (tail->blacklisted ? tail->allowed_blacklisted : tail->allowed);
        if (order & ~(uint64_t)slot.header.unplugged) {
            slot.header.unplugged |= (int64_t)order;
            publish(tail, &slot, PyByteArray_GET_SIZE(tail->partial));
        }
    }
    atomic_signal_fence(memory_order_seq_cst);
    frame->data = kind == VERSION ? (uint64_t)tail->version : order;
    frame->flags = kind == VERSION ? RESPONSE | READ : RESPONSE;
    if (kind != VERSION)    /* lines name the product, and come behind what is to be said of this */
        Py_CLEAR(tail->fields);
    add_step(tail, kind, value, time);
    return true;
}

int64_t product_asked(const Tail *tail)
{
    bool judged = tail->ask != NULL && tail->version != 0 && tail->logging && in_step(tail);

    return judged ? current_slot(tail).header.product : -1;
}

/* Guest.judge() with a verdict of xenstore's that allows it. */
bool allow_build(Tail *tail, int64_t product, unsigned build, double time)
{
    struct slot slot;

    if (tail->steps == MAX_STEPS || product_asked(tail) != product)
        return false;
    slot = current_slot(tail);
    slot.header.build = build;
    publish(tail, &slot, PyByteArray_GET_SIZE(tail->partial));
    atomic_signal_fence(memory_order_seq_cst);
    Py_CLEAR(tail->fields);
    add_step(tail, BUILD, build, time);
    return true;
}

void note_magic(Tail *tail, double time)
{
    if (tail->noted != tail->blacklisted && tail->steps < MAX_STEPS && in_step(tail)) {
        tail->noted = tail->blacklisted;
        add_step(tail, MAGIC, 0, time);
    }
}
