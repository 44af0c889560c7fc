/* A fake of QEMU around the real clients/qemu/unplugd.c, for tests without Xen: enough of QEMU's object model, memory
 * regions and monitor to realize the device and to reach it. Its platform device only says which writes reach it.
 *
 *     fakeqemu [-restrict] [-twice] [-bare] PATH WAIT        then a line for each step, answered by one line:
 *     r ADDR SIZE    w ADDR SIZE VALUE    reset    fd PATH    connected        ADDR: as on unplugd's socket
 *
 * A write answers `ok` and what reached the platform device: `ok [OFFSET SIZE VALUE]...`. An error of QEMU is a line
 * `error: ...`; -bare: a machine without the platform device, -twice: one with a second `unplugd`.
 *
 * FAKEQEMU_DEVICE is the path of unplugd.c. The headers of QEMU that it includes are empty files, which the test makes:
 * what they would declare is above the place where it is included. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* --- objects and errors --- */
typedef struct Object { int unused; } Object;
typedef Object ObjectClass;
typedef struct Error { char text[256]; } Error;
static Error failure;
static bool twice, bare;
#define OBJECT(it) ((Object *)(it))
#define OBJECT_DECLARE_SIMPLE_TYPE(type, NAME) \
    typedef struct type type; \
    static inline type *NAME(void *it) { return it; }
#define error_setg(errp, ...) (*(errp) = &failure, (void)snprintf(failure.text, sizeof failure.text, __VA_ARGS__))
#define warn_report(...) report("warning", __VA_ARGS__)
#define info_report(...) report("info", __VA_ARGS__)
__attribute__((format(printf, 2, 3))) static void report(const char *kind, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fprintf(stderr, "%s: ", kind);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
}
__attribute__((format(printf, 1, 2))) static char *g_strdup_printf(const char *format, ...)
{
    va_list arguments;
    char *text;

    va_start(arguments, format);
    assert(vasprintf(&text, format, arguments) >= 0);
    va_end(arguments);
    return text;
}

/* --- devices --- */
typedef struct DeviceState { Object parent_obj; } DeviceState;
typedef struct DeviceClass {
    Object parent_class;
    void (*realize)(DeviceState *, Error **);
    const char *desc;
    bool hotpluggable;
    unsigned long categories[1];
} DeviceClass;
typedef struct Property { const char *name; size_t at; uint32_t preset; } Property;
typedef struct TypeInfo {
    const char *name, *parent;
    size_t instance_size;
    void (*class_init)(ObjectClass *, void *);
} TypeInfo;
static DeviceClass class;
static const TypeInfo *type;
static void (*string_setter)(Object *, const char *, Error **), (*reset_function)(void *), *reset_opaque;
static bool (*bool_getter)(Object *, Error **);
#define TYPE_DEVICE "device"
#define DEVICE_CLASS(it) ((DeviceClass *)(it))
#define DEVICE_CATEGORY_MISC 0
#define DEFINE_PROP_STRING(name, type, field) { name, offsetof(type, field), 0 }
#define DEFINE_PROP_UINT32(name, type, field, preset) { name, offsetof(type, field), preset }
#define type_init(function) __attribute__((constructor)) static void register_type(void) { function(); }
static void set_bit(long bit, unsigned long *in) { *in |= 1ul << bit; }
static const Property *properties;
#define device_class_set_props(class, list) ((void)(class), properties = (list))
static void type_register_static(const TypeInfo *it) { type = it; it->class_init(OBJECT(&class), NULL); }
static void object_class_property_add_str(ObjectClass *it, const char *name, char *(*get)(Object *, Error **),
                                          void (*set)(Object *, const char *, Error **))
{
    (void)it, (void)get;
    assert(!strcmp(name, "fd"));
    string_setter = set;
}
static void object_class_property_add_bool(ObjectClass *it, const char *name, bool (*get)(Object *, Error **),
                                           void (*set)(Object *, bool, Error **))
{
    (void)it, (void)set;
    assert(!strcmp(name, "connected"));
    bool_getter = get;
}
static void qemu_register_reset(void (*function)(void *), void *opaque)
{
    reset_function = function;
    reset_opaque = opaque;
}

/* --- memory regions: a subregion covers what is below it, but not for who dispatches to the lower one itself --- */
typedef uint64_t hwaddr;
typedef struct MemoryRegionOps {
    uint64_t (*read)(void *, hwaddr, unsigned);
    void (*write)(void *, hwaddr, uint64_t, unsigned);
    int endianness;
    struct { unsigned min_access_size, max_access_size; bool unaligned; } valid, impl;
} MemoryRegionOps;
typedef struct MemoryRegion MemoryRegion;
struct MemoryRegion {
    const MemoryRegionOps *ops;
    void *opaque;
    uint64_t size;
    MemoryRegion *above;
};
enum { DEVICE_LITTLE_ENDIAN, MO_8 = 0, MO_16 = 1, MO_LE = 0, MEMTXATTRS_UNSPECIFIED = 0 };
#define MEMORY_REGION(it) ((MemoryRegion *)(it))
static uint64_t memory_region_size(MemoryRegion *region) { return region->size; }
static void memory_region_init_io(MemoryRegion *region, Object *owner, const MemoryRegionOps *ops, void *opaque,
                                  const char *name, uint64_t size)
{
    (void)owner, (void)name;
    *region = (MemoryRegion){ops, opaque, size, NULL};
}
static void memory_region_add_subregion(MemoryRegion *region, hwaddr offset, MemoryRegion *with)
{
    assert(offset == 0 && !region->above);
    region->above = with;
}
static int memory_region_dispatch_write(MemoryRegion *region, hwaddr offset, uint64_t value, int operation, int attributes)
{
    (void)attributes;
    region->ops->write(region->opaque, offset, value, 1u << operation);
    return 0;
}

/* --- the platform device, Xen, the monitor --- */
static MemoryRegion fixed, bar;
static Object platform, device;
static char reached[256];
static uint32_t xen_domid = 7;
static bool xen_domid_restrict;
typedef struct Monitor { int passed; } Monitor;
static Monitor monitor, *current;
static uint64_t platform_read(void *opaque, hwaddr offset, unsigned size)
{
    (void)opaque, (void)offset, (void)size;
    assert(!"the platform device must not be read");
    return 0;
}
static void platform_write(void *opaque, hwaddr offset, uint64_t value, unsigned size)
{
    size_t length = strlen(reached);

    assert(opaque == &fixed);
    snprintf(reached + length, sizeof reached - length, " [%u %u %llu]", (unsigned)offset, size, (unsigned long long)value);
}
static const MemoryRegionOps platform_ops = {.read = platform_read, .write = platform_write};
static Object *object_resolve_path_type(const char *path, const char *name, bool *ambiguous)
{
    assert(!*path && !ambiguous);
    return !strcmp(name, "xen-platform") ? bare ? NULL : &platform : twice ? NULL : &device;
}
static Object *object_resolve_path_component(Object *parent, const char *name)
{
    assert(parent == &platform);
    return !strcmp(name, "xen-fixed[0]") ? OBJECT(&fixed) : !strcmp(name, "xen-pci[0]") ? OBJECT(&bar) : NULL;
}
static Monitor *monitor_cur(void) { return current; }
static int monitor_get_fd(Monitor *from, const char *name, Error **errp)
{
    if (strcmp(name, "passed") || from->passed < 0) {
        error_setg(errp, "File descriptor named '%s' has not been found", name);
        return -1;
    }
    return from->passed;
}

#include FAKEQEMU_DEVICE

/* --- the test's end --- */
static void *set_up(const char *path, const char *wait)
{
    char *state = calloc(1, type->instance_size);

    assert(state && !strcmp(properties[0].name, "path") && !strcmp(properties[1].name, "wait"));
    if (*path) {
        char *copy = strdup(path);
        memcpy(state + properties[0].at, &copy, sizeof copy);
    }
    *(uint32_t *)(void *)(state + properties[1].at) = *wait ? (uint32_t)atol(wait) : properties[1].preset;
    return state;
}

static MemoryRegion *seen_by_the_guest(unsigned long addr, hwaddr *offset)
{
    MemoryRegion *region = addr < UNPLUGD_BAR ? &fixed : &bar;

    *offset = addr - (addr < UNPLUGD_BAR ? PORTS : UNPLUGD_BAR);
    assert(region->above && *offset < region->above->size);
    return region->above;
}

/* A unix socket that leads to `path`, or, without one, a descriptor that is none. */
static int opened(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd;

    if (!*path) {
        return dup(2);
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

int main(int argc, char **argv)
{
    static char line[512], word[512];
    Error *error = NULL;
    unsigned long addr, value;
    unsigned size;
    hwaddr offset;
    void *state;

    for (; argc > 1 && argv[1][0] == '-'; argc--, argv++) {
        xen_domid_restrict |= !strcmp(argv[1], "-restrict");
        twice |= !strcmp(argv[1], "-twice");
        bare |= !strcmp(argv[1], "-bare");
    }
    assert(argc == 3);
    memory_region_init_io(&fixed, &platform, &platform_ops, &fixed, "xen-fixed", 16);
    memory_region_init_io(&bar, &platform, &platform_ops, &bar, "xen-pci", 0x100);
    setvbuf(stdout, NULL, _IOLBF, 0);
    state = set_up(argv[1], argv[2]);
    class.realize(state, &error);
    if (error) {
        printf("error: %s\n", error->text);
        return 1;
    }
    reset_function(reset_opaque);  /* as QEMU does before it starts */
    printf("realized%s\n", reached);
    while (fgets(line, sizeof line, stdin)) {
        reached[0] = '\0';
        error = NULL;
        if (sscanf(line, "r %li %u", (long *)&addr, &size) == 2) {
            MemoryRegion *region = seen_by_the_guest(addr, &offset);
            printf("0x%llx\n", (unsigned long long)region->ops->read(region->opaque, offset, size));
        } else if (sscanf(line, "w %li %u %li", (long *)&addr, &size, (long *)&value) == 3) {
            MemoryRegion *region = seen_by_the_guest(addr, &offset);
            region->ops->write(region->opaque, offset, value, size);
            printf("ok%s\n", reached);
        } else if (!strncmp(line, "reset", 5)) {
            reset_function(reset_opaque);
            printf("ok%s\n", reached);
        } else if (!strncmp(line, "connected", 9)) {
            printf("%s\n", bool_getter(state, &error) ? "yes" : "no");
        } else if (!strncmp(line, "fd", 2)) {
            word[0] = '\0';
            (void)sscanf(line, "fd %511s", word);
            current = &monitor;
            monitor.passed = opened(word);
            string_setter(state, "passed", &error);
            current = NULL;
            printf("%s\n", error ? error->text : "ok");
        } else {
            printf("?\n");
        }
    }
    unplugd_client_close(&((UnplugdState *)state)->client);
    free(((UnplugdState *)state)->path);
    free(state);
    return 0;
}
