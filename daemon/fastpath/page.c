/* Xen's ioreq page of a domain, lent by unplugd-attach: accesses are answered where the hypervisor put them, as frames of the
 * socket are. A vCPU stands still until then. That takes one wake-up, of unplugd; over the socket it takes three.
 *
 * An access that no row answers, and all string I/O, goes back to the lender, by the number of its vCPU. A vCPU has one access
 * at a time, so no order is to be kept. The page goes back when either end of the lender's socket is closed.
 *
 * Sources: xen/include/public/hvm/ioreq.h, xen/sys/privcmd.h, xen/sys/evtchn.h.
 *
 * SPDX-License-Identifier: MIT
 */
#include "poller.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PAGE = 4096, VCPUS = PAGE / FRAME };
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
    int lender;             /* a socket: numbers of vCPUs go to the lender */
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

/* As the frame of the socket that says the same. */
static struct frame frame_of(const volatile struct frame *slot)
{
    struct frame frame;

    memcpy(&frame, (const void *)slot, FRAME);
    frame.flags = REQUEST | (frame.flags & (STRING | READ));
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

/* Answer one vCPU's access, or give it to the lender. False: the page is not ours any more. */
static bool serve_slot(Poller *self, int events, struct ioreq_page *page, int which)
{
    Table *table = self->links[events].table;
    volatile struct frame *slot = page->slots + page->vcpu[which];
    struct answered done = { 0 };
    struct frame frame;

    if ((__atomic_load_n(&slot->flags, __ATOMIC_ACQUIRE) & STATE) != REQUEST)
        return true;
    frame = frame_of(slot);
    if (!(frame.flags & STRING)) {      /* its data is an address in the guest's memory */
        double began = now();
        bool good;

        answer(table, (const unsigned char *)&frame, FRAME, (unsigned char *)&frame, began, &done);
        good = !done.due || wake(table) == 0;
        observe(self, table, now() - began);
        if (!good)
            PyErr_WriteUnraisable((PyObject *)Py_TYPE(table));
        if (self->links[events].page != page)   /* Python code may have run, and closed the domain */
            return false;
        if (!good) {
            page_close(self, events);
            return false;
        }
    }
    if (done.used == FRAME && respond(events, page, slot, page->port[which], &frame) == 0)
        return true;
    if (done.used == 0) {
        slot->flags = (uint8_t)((slot->flags & ~STATE) | IN_PROCESS);
        if (send(page->lender, &page->vcpu[which], 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1)
            return true;
    }
    page_close(self, events);
    return false;
}

void page_serve(Poller *self, int events)
{
    struct ioreq_page *page = self->links[events].page;
    Table *table = self->links[events].table;
    uint32_t ports[VCPUS];
    ssize_t got;
    bool ours = true;

    if (over(self, table))
        return;
    got = read(events, ports, sizeof ports);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {         /* so many events that the kernel has lost some: the lender looks at all slots */
        page_close(self, events);
        return;
    }
    Py_INCREF((PyObject *)table);
    for (size_t at = 0; ours && at < (size_t)got / sizeof *ports; at++)
        for (int which = 0; which < page->count; which++)
            if (page->port[which] == ports[at]) {
                ours = serve_slot(self, events, page, which);
                break;
            }
    /* Masked until written back: guests first. None has a second access before it was answered. */
    if (ours && write(events, ports, (size_t)got) != got)
        page_close(self, events);
    Py_DECREF((PyObject *)table);
}

static void forget(struct ioreq_page *page)
{
    if (page->slots != NULL)
        munmap((void *)page->slots, PAGE);
    PyMem_Free(page);
}

void page_close(Poller *self, int events)
{
    struct ioreq_page *page = self->links[events].page;

    link_clear(&self->links[events]);
    epoll_ctl(self->epoll, EPOLL_CTL_DEL, events, NULL);    /* the lender has it open too */
    close(events);
    shutdown(page->lender, SHUT_RDWR);      /* Python has it open, and notices */
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
    PyObject *table;
    unsigned domid, server;
    int events, privcmd, xen;
    struct link *link;

    if (page == NULL)
        return PyErr_NoMemory();
    if (!PyArg_ParseTuple(args, "iiO!iIIy#p:borrow", &events, &page->lender, &TableType, &table, &privcmd, &domid, &server,
                          &ports, &size, &xen) ||
        take_ports(page, ports, size) < 0 || (link = free_link(self, events)) == NULL)
        return forget(page), NULL;
    page->xen = xen;
    if (begin(self, page, events, privcmd, domid, server) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return forget(page), NULL;
    }
    *link = (struct link){ .table = (Table *)Py_NewRef(table), .page = page };
    Py_RETURN_NONE;
}

PyObject *Poller_give_back(Poller *self, PyObject *arg)
{
    long lender = PyLong_AsLong(arg);

    if (lender == -1 && PyErr_Occurred())
        return NULL;
    for (int fd = 0; fd <= self->last; fd++)
        if (self->links[fd].page != NULL && self->links[fd].page->lender == lender)
            page_close(self, fd);
    Py_RETURN_NONE;
}
