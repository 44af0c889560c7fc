/* System calls that fail as they do where the kernel has no memory: LD_PRELOAD, $FAILSHIM names a file of pairs of native
 * int32, an errno and how many calls from now on fail with it: first for accept4(2), then for epoll_ctl(2) that adds, then for
 * send(2) or write(2) of an answer whose vp_eport is MARK. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

struct order {
    int32_t error;
    int32_t calls;
};
enum { ACCEPT, WATCH, ANSWER, ORDERS };

static const uint32_t MARK = 0x6d656d21;

static struct order *orders;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAILSHIM");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, ORDERS * sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (map != MAP_FAILED)
        orders = map;
}

static int fails(int which)
{
    if (!orders || __atomic_load_n(&orders[which].calls, __ATOMIC_ACQUIRE) <= 0)
        return 0;
    __atomic_sub_fetch(&orders[which].calls, 1, __ATOMIC_ACQ_REL);
    errno = orders[which].error;
    return 1;
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    int (*real)(int, struct sockaddr *, socklen_t *, int) = (int (*)(int, struct sockaddr *, socklen_t *, int))
        dlsym(RTLD_NEXT, "accept4");

    return fails(ACCEPT) ? -1 : real(fd, address, length, flags);
}

int epoll_ctl(int fd, int operation, int watched, struct epoll_event *event)
{
    int (*real)(int, int, int, struct epoll_event *) = (int (*)(int, int, int, struct epoll_event *))
        dlsym(RTLD_NEXT, "epoll_ctl");

    return operation == EPOLL_CTL_ADD && fails(WATCH) ? -1 : real(fd, operation, watched, event);
}

static int is_marked(const void *data, size_t size)
{
    return size >= 32 && memcmp((const char *)data + 24, &MARK, sizeof MARK) == 0;
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    ssize_t (*real)(int, const void *, size_t, int) = (ssize_t (*)(int, const void *, size_t, int))dlsym(RTLD_NEXT, "send");

    return is_marked(data, size) && fails(ANSWER) ? -1 : real(fd, data, size, flags);
}

ssize_t write(int fd, const void *data, size_t size)
{
    ssize_t (*real)(int, const void *, size_t) = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");

    return is_marked(data, size) && fails(ANSWER) ? -1 : real(fd, data, size);
}
