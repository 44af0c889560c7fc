/* unplugd.c: a device for QEMU, `-device unplugd`, that lets unplugd answer Xen's unplug protocol.
 *
 * It lies in front of QEMU's own platform device (xen-platform) and leaves its code as it is: two memory regions cover
 * the device's ports 0x10-0x1f and its I/O BAR, wherever the guest puts it. Each access goes to the domain's socket. Two
 * kinds of writes then go on to the covered ports: an unplug that unplugd ordered, and the platform flags, because only
 * xen-platform can unplug and lock the ROM. The guest's own masks never get there.
 *
 * install.sh puts this file into a QEMU source tree; README.md says how to use it.
 *
 * An access blocks QEMU's main loop until unplugd has answered, `wait` milliseconds at most while unplugd cannot be
 * reached. Then the guest finds no device. So neither a vCPU nor QEMU's monitor waits for ever.
 *
 * Copyright the unplugd authors. SPDX-License-Identifier: MIT */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "hw/pci/pci.h"
#include "hw/qdev-properties.h"
#include "hw/xen/xen.h"
#include "monitor/monitor.h"
#if __has_include("system/reset.h")
#include "system/reset.h"
#else
#include "sysemu/reset.h"
#endif
#include "unplugd-client.h"

#define TYPE_UNPLUGD "unplugd"
OBJECT_DECLARE_SIMPLE_TYPE(UnplugdState, UNPLUGD)

#define PORTS 0x10u                /* the first port of the protocol */
#define VERSION_PORT 0x12u         /* reading it changes nothing */
#define WAIT_LEAST 100u
#define WAIT_MOST 60000u

struct UnplugdState {
    DeviceState parent_obj;

    char *path;                    /* of the domain's socket */
    uint32_t wait;                 /* milliseconds */

    MemoryRegion ports, bar;       /* in front of ... */
    MemoryRegion *platform_ports;  /* ... these, and of the platform device's BAR */
    struct unplugd_client client;
    bool used;                     /* the guest wrote something since the last reset */
    bool reset_due;                /* unplugd has not heard of a reset yet */
    bool away;                     /* it was logged that unplugd is away */
};

/* A change is logged, not each access: what a guest can make QEMU write stays bounded. */
static void log_change(UnplugdState *s)
{
    if (s->away == !!s->client.given_up) {
        return;
    }
    s->away = !s->away;
    if (!s->away) {
        info_report("unplugd: answers again");
    } else if (s->client.address.sun_path[0]) {
        warn_report("unplugd: no answer at %s; the guest finds no unplug protocol until there is one", s->path);
    } else {
        warn_report("unplugd: the connection is lost, and QEMU is confined; the guest finds no unplug protocol until "
                    "another socket is passed with getfd and the property `fd`");
    }
}

/* False: there is a reset that unplugd could not be told. Its state is that of before, so nothing may be asked. */
static bool reset_told(UnplugdState *s)
{
    s->reset_due = s->reset_due && !unplugd_reset(&s->client);
    return !s->reset_due;
}

static uint64_t forward_read(UnplugdState *s, uint64_t addr, unsigned size)
{
    uint64_t value = reset_told(s) ? unplugd_read(&s->client, addr, size) : unplugd__ones(size);

    log_change(s);
    return value;
}

static void forward_write(UnplugdState *s, uint64_t addr, unsigned size, uint64_t value)
{
    uint64_t order = reset_told(s) ? unplugd_write(&s->client, addr, size, value) : 0;

    s->used = true;
    log_change(s);
    if (order) {
        memory_region_dispatch_write(s->platform_ports, 0, order & 0xffff, MO_LE | MO_16, MEMTXATTRS_UNSPECIFIED);
    } else if (size == 1 && (addr == PORTS || addr == UNPLUGD_BAR) && !s->client.given_up) {
        memory_region_dispatch_write(s->platform_ports, 0, value, MO_8, MEMTXATTRS_UNSPECIFIED);
    }
}

static uint64_t ports_read(void *opaque, hwaddr offset, unsigned size)
{
    return forward_read(opaque, PORTS + offset, size);
}

static void ports_write(void *opaque, hwaddr offset, uint64_t value, unsigned size)
{
    forward_write(opaque, PORTS + offset, size, value);
}

static uint64_t bar_read(void *opaque, hwaddr offset, unsigned size)
{
    return forward_read(opaque, UNPLUGD_BAR + offset, size);
}

static void bar_write(void *opaque, hwaddr offset, uint64_t value, unsigned size)
{
    forward_write(opaque, UNPLUGD_BAR + offset, size, value);
}

/* Whole accesses of any alignment: unplugd decides what a 4-byte write at an odd port means. */
#define REGION_OPS(name) { \
    .read = name##_read, .write = name##_write, .endianness = DEVICE_LITTLE_ENDIAN, \
    .valid = { .min_access_size = 1, .max_access_size = 4, .unaligned = true }, \
    .impl = { .min_access_size = 1, .max_access_size = 4, .unaligned = true }, \
}
static const MemoryRegionOps ports_ops = REGION_OPS(ports), bar_ops = REGION_OPS(bar);

/* All of a region of the platform device is covered. Inside the region, so that it moves with the BAR. */
static MemoryRegion *cover(UnplugdState *s, Object *platform, const char *name, MemoryRegion *with,
                           const MemoryRegionOps *ops, Error **errp)
{
    Object *region = object_resolve_path_component(platform, name);

    if (!region) {
        error_setg(errp, "unplugd: this QEMU's xen-platform has no region %s", name);
        return NULL;
    }
    memory_region_init_io(with, OBJECT(s), ops, s, "unplugd", memory_region_size(MEMORY_REGION(region)));
    memory_region_add_subregion(MEMORY_REGION(region), 0, with);
    return MEMORY_REGION(region);
}

/* The platform device came out of reset. QEMU resets it at its own start, too: there is nothing to forget then. */
static void reset(void *opaque)
{
    UnplugdState *s = opaque;
    int wait = s->client.wait_ms;

    if (!s->used) {
        return;
    }
    s->used = false;
    s->reset_due = true;
    s->client.wait_ms = 0;         /* nobody waits for this; if it fails, the next access tells it first */
    reset_told(s);
    s->client.wait_ms = wait;
    log_change(s);
}

static void unplugd_realize(DeviceState *dev, Error **errp)
{
    UnplugdState *s = UNPLUGD(dev);
    Object *platform = object_resolve_path_type("", "xen-platform", NULL);

    if (!platform) {
        error_setg(errp, "unplugd: this machine has no xen-platform (in xl.cfg: xen_platform_pci = 1)");
        return;
    }
    if (!object_resolve_path_type("", TYPE_UNPLUGD, NULL)) {
        error_setg(errp, "unplugd: this machine has one already");
        return;
    }
    if (s->wait < WAIT_LEAST || s->wait > WAIT_MOST) {
        error_setg(errp, "unplugd: wait must be from %u to %u milliseconds", WAIT_LEAST, WAIT_MOST);
        return;
    }
    if (!s->path) {
        s->path = g_strdup_printf("/run/unplugd/dom%u.sock", xen_domid);
    }
    if (unplugd_client_init(&s->client, s->path, (int)s->wait) < 0) {
        error_setg(errp, "unplugd: %s is too long for a socket's path", s->path);
        return;
    }
    s->client.answer_ms = (int)s->wait;
    s->platform_ports = cover(s, platform, "xen-fixed[0]", &s->ports, &ports_ops, errp);
    if (!s->platform_ports || !cover(s, platform, "xen-pci[0]", &s->bar, &bar_ops, errp)) {
        return;
    }
    /* Connect while QEMU can: with -xen-domid-restrict it soon has another root directory and another user. This
     * connection is then the only one until `fd` brings another, and the monitor, which would bring it, does not run
     * while an access waits. */
    unplugd_read(&s->client, VERSION_PORT, 1);
    log_change(s);
    if (xen_domid_restrict) {
        s->client.address.sun_path[0] = '\0';
        s->client.wait_ms = 0;
    }
    qemu_register_reset(reset, s);
}

/* qom-set: the name that `getfd` gave to a connected socket. */
static void set_fd(Object *obj, const char *name, Error **errp)
{
    UnplugdState *s = UNPLUGD(obj);
    Monitor *monitor = monitor_cur();
    struct sockaddr_un peer;
    socklen_t length = sizeof peer;
    int fd;

    if (!monitor || !s->platform_ports) {
        error_setg(errp, "unplugd: fd is for a monitor, once the device is there");
        return;
    }
    fd = monitor_get_fd(monitor, name, errp);
    if (fd < 0) {
        return;
    }
    if (getpeername(fd, (struct sockaddr *)&peer, &length) < 0 || peer.sun_family != AF_UNIX) {
        error_setg(errp, "unplugd: %s is not a connected unix socket", name);
        close(fd);
        return;
    }
    unplugd_client_adopt(&s->client, fd);
    if (reset_told(s)) {
        unplugd_read(&s->client, VERSION_PORT, 1);
    }
    log_change(s);
    if (s->client.given_up) {
        error_setg(errp, "unplugd: no answer from the socket that was passed");
    }
}

/* qom-get: whether a socket is open, without asking anything. */
static bool get_connected(Object *obj, Error **errp)
{
    UnplugdState *s = UNPLUGD(obj);
    char byte;

    return s->platform_ports && s->client.fd >= 0 && recv(s->client.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0;
}

#ifdef DEFINE_PROP_END_OF_LIST     /* QEMU 9.2 and before */
static Property unplugd_properties[] = {
#else
static const Property unplugd_properties[] = {
#define DEFINE_PROP_END_OF_LIST()
#endif
    DEFINE_PROP_STRING("path", UnplugdState, path),
    DEFINE_PROP_UINT32("wait", UnplugdState, wait, 10000),
    DEFINE_PROP_END_OF_LIST()
};

static void unplugd_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);

    dc->realize = unplugd_realize;
    dc->desc = "unplugd answers the Xen unplug protocol";
    dc->hotpluggable = false;
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    device_class_set_props(dc, unplugd_properties);
    object_class_property_add_str(klass, "fd", NULL, set_fd);
    object_class_property_add_bool(klass, "connected", get_connected, NULL);
}

static const TypeInfo unplugd_type = {
    .name = TYPE_UNPLUGD,
    .parent = TYPE_DEVICE,
    .instance_size = sizeof(UnplugdState),
    .class_init = unplugd_class_init,
};

static void unplugd_register(void)
{
    type_register_static(&unplugd_type);
}

type_init(unplugd_register)
