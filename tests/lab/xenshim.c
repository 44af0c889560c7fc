/*
 * xenshim.c - a stand-in for the hypervisor, so that Debian's unmodified xenstored and oxenstored (Xen 4.17 to 4.20)
 * run on a machine without Xen. Preloaded with LD_PRELOAD, it takes the place of the functions of libxenctrl, libxengnttab and
 * libxenevtchn that a xenstored needs to know which domains there are, to reach their rings, and to be told of events.
 *
 * What there would be in a hypervisor is in files below the directory $XENSHIM_DIR:
 *
 *   domains           byte number <domid> is that domain's state: r(unning), s(hut down), c(rashed), d(ying); 0 = none
 *   rings/<domid>     the page of struct xenstore_domain_interface (xen/include/public/io/xs_wire.h) of that domain
 *   events            a FIFO: a uint32 written to it is the number of an event channel port that fires in xenstored
 *   kicks/<domid>     a FIFO, made by whoever speaks as that domain: xenstored's notifications for it, a byte each
 *
 * tests/lab/xenstored.py is the other side of it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define XC_WANT_COMPAT_MAP_FOREIGN_API
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define PAGE 4096
#define DOMIDS 0x7ff0 /* DOMID_FIRST_RESERVED */

/* Ports: one for VIRQ_DOM_EXC ("look which domains have changed"), and one for each domain's ring. */
#define PORT_DOM_EXC 1
#define PORT_RING(domid) (1000 + (domid))

/* Handles are opaque to their users; every library gets the same one. */
static int handle;

struct path {
    char text[512];
};

static struct path path_of(const char *format, ...)
{
    struct path path;
    const char *directory = getenv("XENSHIM_DIR");
    va_list args;
    int used;

    if (!directory) {
        fputs("xenshim: XENSHIM_DIR is not set\n", stderr);
        abort();
    }
    used = snprintf(path.text, sizeof(path.text), "%s/", directory);
    va_start(args, format);
    vsnprintf(path.text + used, sizeof(path.text) - used, format, args);
    va_end(args);
    return path;
}

/* open() is ours, below; this is the real one. */
static int real_open(const char *path, int flags, mode_t mode)
{
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

/* --- domains ----------------------------------------------------------------------------------------------------- */

/* The states of all domains. xenstored asks for every domain at every introduction: this must not cost a system call. */
static const volatile char *states(void)
{
    static const volatile char *map;
    struct stat file;
    void *mapped;
    int fd;

    if (map)
        return map;
    fd = real_open(path_of("domains").text, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0 || fstat(fd, &file) != 0 || file.st_size < DOMIDS) {
        fputs("xenshim: no domains\n", stderr);
        abort();
    }
    mapped = mmap(NULL, DOMIDS, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        abort();
    close(fd);
    map = mapped;
    return map;
}

/* The lowest domid that is not below `first`; DOMIDS if there is none. */
static uint32_t next_domain(uint32_t first)
{
    while (first < DOMIDS && !states()[first])
        first++;
    return first;
}

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild_logger, unsigned open_flags)
{
    return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch)
{
    return 0;
}

#if XEN_DOMCTL_INTERFACE_VERSION < 0x16
/* How the xenstored of Xen 4.17 asks. */
int xc_domain_getinfo(xc_interface *xch, uint32_t first_domid, unsigned int max_doms, xc_dominfo_t *info)
{
    uint32_t domid = next_domain(first_domid);
    unsigned int n;

    for (n = 0; n < max_doms && domid < DOMIDS; n++) {
        char state = states()[domid];

        memset(&info[n], 0, sizeof(info[n]));
        info[n].domid = domid;
        info[n].running = state == 'r';
        info[n].dying = state == 'd';
        info[n].crashed = state == 'c';
        info[n].shutdown = state == 's' || state == 'c';
        domid = next_domain(domid + 1);
    }
    if (n == 0) {
        errno = ESRCH;
        return -1;
    }
    return n;
}
#endif

static void describe(uint32_t domid, xc_domaininfo_t *info)
{
    memset(info, 0, sizeof(*info));
    info->domain = domid;
    switch (states()[domid]) {
    case 'r':
        info->flags = XEN_DOMINF_running;
        break;
    case 'd':
        info->flags = XEN_DOMINF_dying;
        break;
    case 'c':
        info->flags = XEN_DOMINF_shutdown | (SHUTDOWN_crash << XEN_DOMINF_shutdownshift);
        break;
    default:
        info->flags = XEN_DOMINF_shutdown;
        break;
    }
}

/* How later ones ask. */
int xc_domain_getinfo_single(xc_interface *xch, uint32_t domid, xc_domaininfo_t *info)
{
    if (domid >= DOMIDS || !states()[domid]) {
        errno = ESRCH;
        return -1;
    }
    /* whoever only asks whether there is such a domain gives no place for an answer */
    if (info)
        describe(domid, info);
    return 0;
}

/* How oxenstored asks. */
int xc_domain_getinfolist(xc_interface *xch, uint32_t first_domain, unsigned int max_domains, xc_domaininfo_t *info)
{
    uint32_t domid = next_domain(first_domain);
    unsigned int n;

    for (n = 0; n < max_domains && domid < DOMIDS; n++) {
        describe(domid, &info[n]);
        domid = next_domain(domid + 1);
    }
    return n;
}

/* --- rings ------------------------------------------------------------------------------------------------------- */

static int open_ring(uint32_t domid)
{
    int fd = real_open(path_of("rings/%u", domid).text, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (fd >= 0 && ftruncate(fd, PAGE) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void *map_ring(uint32_t domid, int protection)
{
    int fd = open_ring(domid);
    void *page;

    if (fd < 0)
        return NULL;
    page = mmap(NULL, PAGE, protection, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

/* oxenstored maps a ring as the foreign page it is; the number of the page says nothing here. */
void *xc_map_foreign_range(xc_interface *xch, uint32_t dom, int size, int prot, unsigned long mfn)
{
    return map_ring(dom, prot);
}

/* xenstored maps it by its reserved grant. */
xengnttab_handle *xengnttab_open(xentoollog_logger *logger, unsigned open_flags)
{
    return (xengnttab_handle *)&handle;
}

int xengnttab_close(xengnttab_handle *xgt)
{
    return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t nr_grants)
{
    return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot)
{
    if (domid >= DOMIDS || !states()[domid]) {
        errno = EINVAL;
        return NULL;
    }
    return map_ring(domid, prot);
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start_address, uint32_t count)
{
    return munmap(start_address, (size_t)count * PAGE);
}

/* --- event channels ---------------------------------------------------------------------------------------------- */

static int events = -1;

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int open_flags)
{
    struct path fifo = path_of("events");
    int cloexec = open_flags & XENEVTCHN_NO_CLOEXEC ? 0 : O_CLOEXEC;

    if (mkfifo(fifo.text, 0600) != 0 && errno != EEXIST)
        return NULL;
    events = real_open(fifo.text, O_RDWR | cloexec, 0);
    return events < 0 ? NULL : (xenevtchn_handle *)&handle;
}

xenevtchn_handle *xenevtchn_fdopen(struct xentoollog_logger *logger, int fd, unsigned open_flags)
{
    events = fd;
    return (xenevtchn_handle *)&handle;
}

int xenevtchn_close(xenevtchn_handle *xce)
{
    return close(events);
}

int xenevtchn_fd(xenevtchn_handle *xce)
{
    return events;
}

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq)
{
    return PORT_DOM_EXC;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, evtchn_port_t remote_port)
{
    return PORT_RING(domid);
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
    uint32_t port;

    return read(events, &port, sizeof(port)) == sizeof(port) ? (xenevtchn_port_or_error_t)port : -1;
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
    int fd;

    if (port < PORT_RING(0))
        return 0;
    /* Nobody may be listening, and a full FIFO says all there is to say. */
    fd = real_open(path_of("kicks/%u", port - PORT_RING(0)).text, O_WRONLY | O_NONBLOCK | O_CLOEXEC, 0);
    if (fd >= 0) {
        ssize_t ignored = write(fd, "", 1);

        (void)ignored;
        close(fd);
    }
    return 0;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
    return 0;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
    return 0;
}

/* --- libc -------------------------------------------------------------------------------------------------------- */

/* dom0's own ring and port are files of Linux's xenfs. */
static int shim_open(const char *path, int flags, mode_t mode)
{
    int ends[2];

    if (strcmp(path, "/proc/xen/xsd_kva") == 0)
        return open_ring(0);
    if (strcmp(path, "/proc/xen/xsd_port") != 0)
        return real_open(path, flags, mode);
    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    if (write(ends[1], "1", 1) != 1) {
        close(ends[0]);
        ends[0] = -1;
    }
    close(ends[1]);
    return ends[0];
}

static mode_t mode_argument(int flags, va_list args)
{
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(args, mode_t) : 0;
}

int open(const char *path, int flags, ...)
{
    va_list args;
    mode_t mode;

    va_start(args, flags);
    mode = mode_argument(flags, args);
    va_end(args);
    return shim_open(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list args;
    mode_t mode;

    va_start(args, flags);
    mode = mode_argument(flags, args);
    va_end(args);
    return shim_open(path, flags, mode);
}

/* oxenstored 4.18 and later looks for a plugin of its own in the place where its package would have installed it;
 * $XENSHIM_ROOT is where that package was unpacked. */
static const char *unpacked(const char *path, struct path *place)
{
    static const char installed[] = "/usr/lib/xen-";
    const char *root = getenv("XENSHIM_ROOT");

    if (!root || !path || strncmp(path, installed, sizeof(installed) - 1) != 0)
        return path;
    snprintf(place->text, sizeof(place->text), "%s%s", root, path);
    return place->text;
}

DIR *opendir(const char *name)
{
    DIR *(*real)(const char *) = dlsym(RTLD_NEXT, "opendir");
    struct path place;

    return real(unpacked(name, &place));
}

int stat64(const char *path, struct stat64 *buf)
{
    struct path place;

    return fstatat64(AT_FDCWD, unpacked(path, &place), buf, 0);
}

void *dlopen(const char *file, int mode)
{
    void *(*real)(const char *, int) = dlsym(RTLD_NEXT, "dlopen");
    struct path place;

    return real(unpacked(file, &place), mode);
}

/* oxenstored insists on a higher limit of open files, which a container may not grant; it does not need it here. */
int setrlimit(__rlimit_resource_t resource, const struct rlimit *limits)
{
    return 0;
}
