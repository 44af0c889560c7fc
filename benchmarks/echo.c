/* echo: the C server that unplugd is compared with.
 *
 *   echo SOCKET...
 *
 * Listens on each SOCKET and answers every complete 32-byte frame with the same 32 bytes, as fast as one thread with
 * epoll and the plain socket calls can: one read and one write for each time a connection is readable. A frame that has
 * come in part is kept until the rest is there; while the client does not read, nothing more is read from it. It does
 * nothing else, so it is the least that any server of this socket costs.
 *
 * SPDX-License-Identifier: MIT
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { FRAME = 32, BUFFER = 64 * 1024, BATCH = 64 };

struct peer {
    int fd;
    bool listening;
    size_t have;    /* bytes in the buffer that came in */
    size_t due;     /* of these, bytes that are to be sent back: whole frames */
    size_t sent;    /* of these, bytes that were */
    unsigned char *buffer;
};

static int epoll;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(struct peer *peer, int operation, unsigned events)
{
    struct epoll_event event = { .events = events, .data.ptr = peer };

    if (epoll_ctl(epoll, operation, peer->fd, &event))
        fail("epoll_ctl");
}

static struct peer *add(int fd, bool listening)
{
    struct peer *peer = calloc(1, sizeof *peer);

    if (peer == NULL)
        fail("calloc");
    peer->fd = fd;
    peer->listening = listening;
    watch(peer, EPOLL_CTL_ADD, EPOLLIN);
    return peer;
}

static void listen_on(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        fail("socket");
    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "%s: path too long\n", path);
        exit(2);
    }
    strcpy(address.sun_path, path);
    unlink(path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 128))
        fail(path);
    add(fd, true);
}

static void accept_all(struct peer *listener)
{
    for (;;) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0) {
            struct peer *peer = add(fd, false);

            peer->buffer = malloc(BUFFER);
            if (peer->buffer == NULL)
                fail("malloc");
        } else if (errno != EINTR && errno != ECONNABORTED) {
            if (errno != EAGAIN)
                fail("accept");
            return;
        }
    }
}

static void drop(struct peer *peer)
{
    close(peer->fd);
    free(peer->buffer);
    free(peer);
}

/* Send what is due. Returns false when the peer is gone. */
static bool flush(struct peer *peer)
{
    while (peer->sent < peer->due) {
        ssize_t n = send(peer->fd, peer->buffer + peer->sent, peer->due - peer->sent, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n < 0)
            return false;
        peer->sent += (size_t)n;
    }
    if (peer->have > peer->due)
        memmove(peer->buffer, peer->buffer + peer->due, peer->have - peer->due);
    peer->have -= peer->due;
    peer->due = peer->sent = 0;
    return true;
}

static void serve(struct peer *peer, unsigned events)
{
    bool was_waiting = peer->due > 0;

    if (!was_waiting && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
        ssize_t n = read(peer->fd, peer->buffer + peer->have, BUFFER - peer->have);

        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            drop(peer);
            return;
        }
        if (n > 0)
            peer->have += (size_t)n;
        peer->due = peer->have - peer->have % FRAME;
    }
    if (peer->due > 0 && !flush(peer)) {
        drop(peer);
        return;
    }
    if ((peer->due > 0) != was_waiting)
        watch(peer, EPOLL_CTL_MOD, peer->due > 0 ? EPOLLOUT : EPOLLIN);
}

int main(int argc, char **argv)
{
    struct epoll_event events[BATCH];
    struct rlimit files;

    if (argc < 2) {
        fprintf(stderr, "usage: echo SOCKET...\n");
        return 2;
    }
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        fail("epoll_create1");
    for (int i = 1; i < argc; i++)
        listen_on(argv[i]);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll, events, BATCH, -1);

        if (n < 0 && errno != EINTR)
            fail("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct peer *peer = events[i].data.ptr;

            if (peer->listening)
                accept_all(peer);
            else
                serve(peer, events[i].events);
        }
    }
}
