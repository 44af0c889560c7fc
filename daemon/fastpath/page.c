/* Xen's ioreq page of a domain, lent by unplugd-attach: accesses are read where the hypervisor put them.
 *
 * A vCPU stands still until its access is answered. Over the socket that takes three wake-ups (of unplugd-attach, of
 * unplugd, of unplugd-attach again), each longer than the work itself; here it takes one, of unplugd, by the event
 * channel. What comes is the same struct ioreq, and serve.c answers it as a frame of the socket.
 *
 * Only what has no consequence elsewhere is carried out: reads of magic number and version, product numbers, log bytes.
 * Any other access (and any that is Python's) goes back to the lender, by the number of its vCPU, who carries it out as he
 * would without us. Each vCPU has one access at a time, so there is no order to keep between the two. The lender takes
 * the page back when his end of the socket is closed, or this one.
 *
 * Sources: xen/include/public/hvm/ioreq.h, xen/sys/privcmd.h, xen/sys/evtchn.h.
 *
 * SPDX-License-Identifier: MIT
 */
#include "poller.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "state.h"

enum { VCPUS = PAGE / FRAME, IN_PROCESS = 2, STATE = 0x0f };
enum { RESOURCE_IOREQ_SERVER = 0, FRAME_SYNCHRONOUS = 1 };     /* XENMEM_resource_ioreq_server and its frame */

struct map_resource {
    uint16_t domid;
    uint32_t type, id, index;
    uint64_t count, address;
};
_Static_assert(sizeof(struct map_resource) == 32, "struct privcmd_mmap_resource has 32 bytes");
struct notify { unsigned int port; };
#define PRIVCMD_MAP_RESOURCE _IOC(_IOC_NONE, 'P', 7, sizeof(struct map_resource))
#define EVTCHN_NOTIFY _IOC(_IOC_NONE, 'E', 4, sizeof(struct notify))

struct ioreq_page {
    volatile struct frame *slots;   /* mapped, by vCPU */
    int lender;             /* a socket: numbers of vCPUs that are his */
    bool xen;               /* these are Xen's devices; tests have none */
    int count;
    uint32_t port[VCPUS];   /* our end of a vCPU's event channel */
    uint8_t vcpu[VCPUS];
};

/* Map the page of an ioreq server by a descriptor of privcmd, restricted to the domain or not. -1 and errno. */
static int map(struct ioreq_page *page, int privcmd, unsigned domid, unsigned server)
{
    struct map_resource what = {
        .domid = (uint16_t)domid, .type = RESOURCE_IOREQ_SERVER, .id = server, .index = FRAME_SYNCHRONOUS, .count = 1,
    };
    void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, privcmd, 0);

    if (at == MAP_FAILED)
        return -1;
    page->slots = at;
    what.address = (uintptr_t)at;
    return page->xen ? ioctl(privcmd, PRIVCMD_MAP_RESOURCE, &what) : 0;
}

static int notify(int events, const struct ioreq_page *page, uint32_t port)
{
    struct notify one = { port };

    return page->xen ? ioctl(events, EVTCHN_NOTIFY, &one) : 0;
}

/* Whether it is carried out here, if the protocol's state lets it. */
static bool is_plain(const struct frame *frame)
{
    enum kind kind = recognize(frame);

    return kind == MAGIC || kind == VERSION || kind == PRODUCT || (kind == LOG && frame->addr == PORT_LOG);
}

/* As the frame of the socket that says the same. */
static struct frame frame_of(const volatile struct frame *slot)
{
    struct frame frame;

    memcpy(&frame, (const void *)slot, FRAME);
    frame.vp_eport = 0;
    frame.pad = 0;
    frame.flags = REQUEST | (frame.flags & (STRING | READ));
    if (frame.size < 8 && !(frame.flags & (READ | STRING)))
        frame.data &= ((uint64_t)1 << 8 * frame.size) - 1;
    return frame;
}

static int respond(int events, const struct ioreq_page *page, volatile struct frame *slot, uint32_t port,
                   const struct frame *response)
{
    uint8_t flags = slot->flags;

    if (flags & READ)
        slot->data = response->data;
    __atomic_store_n(&slot->flags, (uint8_t)((flags & ~STATE) | RESPONSE), __ATOMIC_RELEASE);
    return notify(events, page, port);
}

/* One vCPU's access, carried out or given to the lender. False: the page is not ours any more. */
static bool serve_slot(Poller *self, int events, struct ioreq_page *page, int which)
{
    Tail *tail = self->links[events].tail;
    volatile struct frame *slot = page->slots + page->vcpu[which];
    struct frame frame;
    Py_ssize_t served = 0, answered = 0;

    if ((__atomic_load_n(&slot->flags, __ATOMIC_ACQUIRE) & STATE) != REQUEST)
        return true;
    frame = frame_of(slot);
    if (is_plain(&frame)) {
        memcpy(self->buffer, &frame, FRAME);
        served = answer(self, tail, FRAME, &answered, now());
        if (served < 0)
            cut(self, tail, events);
        if (self->links[events].page != page)   /* Python code may have run, and closed the domain */
            return false;
    }
    if (served == FRAME && respond(events, page, slot, page->port[which], (struct frame *)self->buffer) == 0)
        return true;
    if (served == 0) {
        slot->flags = (slot->flags & ~STATE) | IN_PROCESS;
        if (send(page->lender, &page->vcpu[which], 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1)
            return true;
    }
    close_page(self, events);
    return false;
}

void serve_page(Poller *self, int events)
{
    struct ioreq_page *page = self->links[events].page;
    Tail *tail = self->links[events].tail;
    uint32_t ports[VCPUS];
    ssize_t got;
    bool ours = true;

    if (over(self, tail))
        return;
    got = read(events, ports, sizeof ports);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {         /* so many events that the kernel has lost some: the lender looks at all slots */
        close_page(self, events);
        return;
    }
    Py_INCREF(tail);
    for (size_t at = 0; ours && at < (size_t)got / sizeof *ports; at++)
        for (int which = 0; which < page->count; which++)
            if (page->port[which] == ports[at]) {
                ours = serve_slot(self, events, page, which);
                break;
            }
    /* Masked until written back: guests first. None has a second access before it was answered. */
    if (ours && write(events, ports, (size_t)got) != got)
        close_page(self, events);
    Py_DECREF(tail);
}

static void forget(struct ioreq_page *page)
{
    if (page->slots != NULL)
        munmap((void *)page->slots, PAGE);
    PyMem_Free(page);
}

void close_page(Poller *self, int events)
{
    struct ioreq_page *page = self->links[events].page;

    unlink_connection(&self->links[events]);
    epoll_ctl(self->epoll, EPOLL_CTL_DEL, events, NULL);    /* the lender has it open too */
    close(events);
    shutdown(page->lender, SHUT_RDWR);      /* it is Python's, which hears of it by that */
    forget(page);
}

/* vCPUs and ports, 5 bytes each. -1 and an exception if they make no sense. */
static int take_ports(struct ioreq_page *page, const unsigned char *ports, Py_ssize_t size)
{
    for (; size >= 5 && page->count < VCPUS && *ports < VCPUS; ports += 5, size -= 5) {
        page->vcpu[page->count] = *ports;
        memcpy(&page->port[page->count++], ports + 1, 4);
    }
    if (size == 0 && page->count > 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "not the vCPUs of an ioreq page");
    return -1;
}

/* Begin with it. -1 and errno if one of the descriptors is not what it should be. */
static int begin(const Poller *self, struct ioreq_page *page, int events, int privcmd, unsigned domid, unsigned server)
{
    struct epoll_event event = { .events = EPOLLIN, .data.fd = events };

    if (map(page, privcmd, domid, server) < 0)
        return -1;
    /* One notification too many harms no vCPU; that it can be made says that these are event channels. */
    for (int which = 0; which < page->count; which++)
        if (notify(events, page, page->port[which]) < 0)
            return -1;
    return epoll_ctl(self->epoll, EPOLL_CTL_ADD, events, &event);
}

PyObject *Poller_borrow(Poller *self, PyObject *args)
{
    struct ioreq_page *page = PyMem_Calloc(1, sizeof *page);
    const unsigned char *ports;
    Py_ssize_t size;
    PyObject *tail;
    unsigned domid, server;
    int events, privcmd, xen;

    if (page == NULL)
        return PyErr_NoMemory();
    if (!PyArg_ParseTuple(args, "iiO!iIIy#p:borrow", &events, &page->lender, &TailType, &tail, &privcmd, &domid, &server,
                          &ports, &size, &xen) ||
        take_ports(page, ports, size) < 0 || make_room(self, events) < 0) {
        forget(page);
        return NULL;
    }
    page->xen = xen;
    if (begin(self, page, events, privcmd, domid, server) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        forget(page);
        return NULL;
    }
    self->links[events] = (struct link){ .tail = (Tail *)Py_NewRef(tail), .page = page, .kind = LENT };
    Py_RETURN_NONE;
}

PyObject *Poller_give_back(Poller *self, PyObject *arg)
{
    long lender = PyLong_AsLong(arg);

    if (lender == -1 && PyErr_Occurred())
        return NULL;
    for (int fd = 0; fd < self->room; fd++)
        if (self->links[fd].kind == LENT && self->links[fd].page->lender == lender)
            close_page(self, fd);
    Py_RETURN_NONE;
}
