/* unplugd-client.h: the device model's end of unplugd's ioreq socket (version 1), in one header.
 *
 * For a device model that emulates Xen's platform device: send each access of the guest to ports 0x10-0x1f and to the
 * platform device's I/O BAR here, and complete it with what comes back. docs/device-models.md says where to call it.
 *
 *     struct unplugd_client unplugd;
 *     unplugd_client_init(&unplugd, "/run/unplugd/dom7.sock", 10000);
 *     value = unplugd_read(&unplugd, 0x10, 2);
 *     order = unplugd_write(&unplugd, 0x10, 2, mask);      unplug what `order` says, then complete the access
 *
 * All calls block until unplugd has answered. A lost connection is made again and the request sent again: a byte of
 * guest log may so come twice, nothing is lost. While unplugd cannot be reached a call waits for `wait_ms`
 * milliseconds (-1: without bound), then does what a port without a device does: reads bring all ones, writes nothing,
 * and no unplug is ordered, so that the guest's driver stays with the emulated devices. Further calls then try once
 * each, without waiting, until unplugd is back. `given_up` says after each call whether unplugd answered it (0) or not.
 *
 * A connection without an answer for `answer_ms` milliseconds is closed, and a new one made. Once unplugd was given up,
 * a call waits one second at most for an answer. After a call that waited and got none, further calls do not try for as
 * long, one second at most: a stopped unplugd must not take all of the caller's time, whatever the guest does.
 *
 * Not thread-safe: one client a thread, or one lock. Two clients of one domain share the domain's state in unplugd.
 * Needs POSIX; C99 or C++.
 *
 * Copyright the unplugd authors. SPDX-License-Identifier: MIT */
#ifndef UNPLUGD_CLIENT_H
#define UNPLUGD_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define UNPLUGD_FRAME 32
#define UNPLUGD_PAYLOAD_LIMIT 4096
/* `answer_ms` after unplugd_client_init(). A guest that is held back because it logs too much (log.on_limit = "delay")
 * waits for less: 4096 bytes at 256 bytes/s are 16 s. */
#define UNPLUGD_ANSWER_MS 60000
#define UNPLUGD_RETRY_MS 1000          /* the same, once unplugd was given up */
#define UNPLUGD_BAR 0x10000u           /* addr of the platform device's I/O BAR: this plus the offset */

struct unplugd_client {
    struct sockaddr_un address;        /* sun_path empty: no path to connect to, see unplugd_client_adopt() */
    int fd;                            /* -1: not connected */
    int wait_ms;
    int answer_ms;                     /* at least 1 */
    int given_up;                      /* the last call found no unplugd */
    int64_t next_try;                  /* once given up: none before */
};

/* Nothing is opened before the first access. Returns 0, or -1 with errno ENAMETOOLONG. */
static inline int unplugd_client_init(struct unplugd_client *client, const char *path, int wait_ms)
{
    size_t length = path ? strlen(path) : 0;

    memset(client, 0, sizeof *client);
    client->fd = -1;
    client->wait_ms = wait_ms;
    client->answer_ms = UNPLUGD_ANSWER_MS;
    client->address.sun_family = AF_UNIX;
    if (length >= sizeof client->address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (path) {
        memcpy(client->address.sun_path, path, length + 1);
    }
    return 0;
}

/* No call on the socket may wait for ever: unplugd itself might be stopped. */
static inline void unplugd__limit(const struct unplugd_client *client)
{
    int ms = client->given_up && client->answer_ms > UNPLUGD_RETRY_MS ? UNPLUGD_RETRY_MS : client->answer_ms;
    struct timeval limit;

    limit.tv_sec = ms / 1000;
    limit.tv_usec = ms % 1000 * 1000;
    setsockopt(client->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(client->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

/* Use a connected socket, for a device model that cannot open a path any more. With an empty path it is the last one:
 * the device model gets another one from outside (a monitor command that passes a descriptor) and adopts it. */
static inline void unplugd_client_adopt(struct unplugd_client *client, int fd)
{
    if (client->fd >= 0) {
        close(client->fd);
    }
    client->fd = fd;
    client->given_up = 0;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);  /* the process that opened it may have set it */
    unplugd__limit(client);
}

static inline void unplugd_client_close(struct unplugd_client *client)
{
    if (client->fd >= 0) {
        close(client->fd);
    }
    client->fd = -1;
}

static inline int64_t unplugd__now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static inline void unplugd__put(uint8_t *at, uint64_t value, int bytes)
{
    int i;

    for (i = 0; i < bytes; i++) {
        at[i] = (uint8_t)(value >> 8 * i);
    }
}

static inline uint64_t unplugd__get(const uint8_t *at, int bytes)
{
    uint64_t value = 0;

    while (bytes--) {
        value = value << 8 | at[bytes];
    }
    return value;
}

/* What a port without a device reads as. */
static inline uint64_t unplugd__ones(unsigned size)
{
    return size >= 8 ? ~(uint64_t)0 : ((uint64_t)1 << 8 * size) - 1;
}

/* 0 or -1. */
static inline int unplugd__connect(struct unplugd_client *client)
{
    if (!client->address.sun_path[0]) {
        return -1;
    }
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0) {
        return -1;
    }
    unplugd__limit(client);
    if (connect(client->fd, (struct sockaddr *)&client->address, sizeof client->address) < 0) {
        unplugd_client_close(client);
        return -1;
    }
    return 0;
}

/* All of it, or -1: the connection is of no use any more. */
static inline int unplugd__send(int fd, const void *data, size_t size)
{
    const char *at = (const char *)data;

    while (size) {
        ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent <= 0) {
            return -1;
        }
        at += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static inline int unplugd__receive(int fd, void *data, size_t size)
{
    char *at = (char *)data;

    while (size) {
        ssize_t received = recv(fd, at, size, 0);
        if (received < 0 && errno == EINTR) {
            continue;
        }
        if (received <= 0) {
            return -1;
        }
        at += received;
        size -= (size_t)received;
    }
    return 0;
}

/* One frame and what follows it, there and back; 1 when it was answered, 0 when unplugd could not be reached. */
static inline int unplugd__exchange(struct unplugd_client *client, uint8_t *frame, const void *out, size_t out_size,
                                    void *in, size_t in_size)
{
    uint8_t answer[UNPLUGD_FRAME];
    int64_t since = unplugd__now(), spent;
    uint8_t expected = frame[30] & 0xf ? 3 : 0;

    if (client->given_up && since < client->next_try) {
        return 0;
    }
    for (;;) {
        if (client->fd >= 0 || unplugd__connect(client) == 0) {
            if (unplugd__send(client->fd, frame, UNPLUGD_FRAME) == 0 && unplugd__send(client->fd, out, out_size) == 0 &&
                unplugd__receive(client->fd, answer, UNPLUGD_FRAME) == 0 && (answer[30] & 0xf) == expected &&
                unplugd__receive(client->fd, in, in_size) == 0) {
                memcpy(frame, answer, UNPLUGD_FRAME);
                if (client->given_up) {
                    client->given_up = 0;
                    unplugd__limit(client);
                }
                return 1;
            }
            unplugd_client_close(client);
        }
        spent = unplugd__now() - since;
        if (client->given_up || (client->wait_ms >= 0 && spent >= client->wait_ms)) {
            client->given_up = 1;
            client->next_try = since + spent + (spent < UNPLUGD_RETRY_MS ? spent : UNPLUGD_RETRY_MS);
            return 0;
        }
        poll(NULL, 0, 20);
    }
}

static inline void unplugd__frame(uint8_t *frame, uint64_t addr, uint64_t data, uint32_t count, unsigned size, int read,
                                  int string)
{
    memset(frame, 0, UNPLUGD_FRAME);
    unplugd__put(frame, addr, 8);
    unplugd__put(frame + 8, data, 8);
    unplugd__put(frame + 16, count, 4);
    unplugd__put(frame + 20, size, 4);
    frame[30] = (uint8_t)(1 | (string ? 0x10 : 0) | (read ? 0x20 : 0));
}

/* A read of `size` bytes (1, 2, 4) at a port, or at UNPLUGD_BAR + offset. */
static inline uint64_t unplugd_read(struct unplugd_client *client, uint64_t addr, unsigned size)
{
    uint8_t frame[UNPLUGD_FRAME];

    unplugd__frame(frame, addr, 0, 1, size, 1, 0);
    if (!unplugd__exchange(client, frame, NULL, 0, NULL, 0)) {
        return unplugd__ones(size);
    }
    return unplugd__get(frame + 8, 8) & unplugd__ones(size);
}

/* A write. Returns the unplug order: what the device model must unplug before it completes the guest's access; 0 for
 * everything but an unplug mask that policy allows. */
static inline uint64_t unplugd_write(struct unplugd_client *client, uint64_t addr, unsigned size, uint64_t value)
{
    uint8_t frame[UNPLUGD_FRAME];

    unplugd__frame(frame, addr, value, 1, size, 0, 0);
    return unplugd__exchange(client, frame, NULL, 0, NULL, 0) ? unplugd__get(frame + 8, 8) : 0;
}

/* `rep outs`: `count` elements of `size` bytes, in the order in which the guest emits them (with the direction flag set,
 * that is from the highest address down). Any length: it is sent in as many frames as it takes. Returns the order. */
static inline uint64_t unplugd_write_string(struct unplugd_client *client, uint64_t addr, unsigned size,
                                            const void *data, uint32_t count)
{
    uint8_t frame[UNPLUGD_FRAME];
    const uint8_t *at = (const uint8_t *)data;
    uint64_t order = 0;

    while (count) {
        uint32_t part = UNPLUGD_PAYLOAD_LIMIT / size;
        part = part < count ? part : count;
        unplugd__frame(frame, addr, 0, part, size, 0, 1);
        if (unplugd__exchange(client, frame, at, (size_t)part * size, NULL, 0)) {
            order |= unplugd__get(frame + 8, 8);
        }
        at += (size_t)part * size;
        count -= part;
    }
    return order;
}

/* `rep ins`: fills `data` with `count` elements of `size` bytes. */
static inline void unplugd_read_string(struct unplugd_client *client, uint64_t addr, unsigned size, void *data,
                                       uint32_t count)
{
    uint8_t frame[UNPLUGD_FRAME];
    uint8_t *at = (uint8_t *)data;

    while (count) {
        uint32_t part = UNPLUGD_PAYLOAD_LIMIT / size;
        part = part < count ? part : count;
        unplugd__frame(frame, addr, 0, part, size, 1, 1);
        if (!unplugd__exchange(client, frame, NULL, 0, at, (size_t)part * size)) {
            memset(at, 0xff, (size_t)part * size);
        }
        at += (size_t)part * size;
        count -= part;
    }
}

/* The platform device came out of reset: unplugd forgets what the guest's driver said. Returns 1, or 0 when unplugd
 * could not be told. */
static inline int unplugd_reset(struct unplugd_client *client)
{
    uint8_t frame[UNPLUGD_FRAME] = {0};

    return unplugd__exchange(client, frame, NULL, 0, NULL, 0);
}

#endif
