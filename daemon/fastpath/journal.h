/* Entries for journald, without Python: what of core/escape.py and sinks/journal.py an ordinary line of a guest needs.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_JOURNAL_H
#define UNPLUGD_JOURNAL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* Whether a line is stored as it is, whatever the sink: printable ASCII, no backslash (Delivery.cost()). */
static inline bool is_plain(const char *text, size_t size)
{
    unsigned bad = 0;

    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)text[i];

        bad |= (unsigned char)(byte - 0x20) > 0x7e - 0x20 || byte == '\\';
    }
    return !bad;
}

/* One datagram in journald's native protocol: `fields` as DomainRecords.line_fields() made them, then a plain line.
 * Never waits. False: journald does not have it. */
static inline bool send_entry(int journald, const char *fields, size_t size, const char *line, size_t length)
{
    static const char end[] = "\n";
    struct iovec parts[] = {
        { .iov_base = (void *)fields, .iov_len = size },
        { .iov_base = (void *)line, .iov_len = length },
        { .iov_base = (void *)end, .iov_len = 1 },
    };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = sizeof parts / sizeof *parts };
    ssize_t sent;

    do
        sent = sendmsg(journald, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

#endif
