/* journalload: the C sender that unplugd's way into the journal is compared with.
 *
 *   journalload [-n COUNT] [-c CPU] [-f FIELD=VALUE]... SOCKET
 *
 * Sends COUNT (10000) entries to journald's SOCKET in its native protocol (systemd.io, "Native Journal Protocol"), one
 * datagram each, as sd_journal_sendv() does: the FIELDs, and a MESSAGE of 127 characters that begins with a serial
 * number, the text of portload's pattern "lines". It waits while the socket is full, so that nothing is lost: this is
 * how fast journald stores such entries.
 *
 * SPDX-License-Identifier: MIT
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { LINE = 127, DIGITS = 8, FIELDS = 4096 };

static void fail(const char *what)
{
    fprintf(stderr, "journalload: %s: %s\n", what, strerror(errno));
    exit(1);
}

int main(int argc, char **argv)
{
    static char entry[FIELDS + sizeof "MESSAGE=" + LINE + 1];
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    long count = 10000, cpu = -1;
    size_t size = 0;
    char *serial;
    int fd;

    for (int option; (option = getopt(argc, argv, "n:c:f:")) != -1;) {
        switch (option) {
        case 'n': count = atol(optarg); break;
        case 'c': cpu = atol(optarg); break;
        case 'f':
            if (size + strlen(optarg) + 1 > FIELDS) {
                fprintf(stderr, "journalload: too many fields\n");
                return 2;
            }
            size += (size_t)sprintf(entry + size, "%s\n", optarg);
            break;
        default: return 2;
        }
    }
    if (optind != argc - 1 || strlen(argv[optind]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: journalload [-n COUNT] [-c CPU] [-f FIELD=VALUE]... SOCKET\n");
        return 2;
    }
    if (cpu >= 0) {
        cpu_set_t only;

        CPU_ZERO(&only);
        CPU_SET((size_t)cpu, &only);
        if (sched_setaffinity(0, sizeof only, &only))
            fail("sched_setaffinity");
    }
    strcpy(address.sun_path, argv[optind]);
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail(address.sun_path);
    size += (size_t)sprintf(entry + size, "MESSAGE=");
    serial = entry + size;
    memset(serial, 'x', LINE);
    size += LINE;
    entry[size++] = '\n';
    for (long i = 0; i < count; i++) {
        char digits[DIGITS + 1];

        snprintf(digits, sizeof digits, "%08lx", (unsigned long)i & 0xffffffff);
        memcpy(serial, digits, DIGITS);
        while (send(fd, entry, size, MSG_NOSIGNAL) < 0)
            if (errno != EINTR)
                fail("send");
    }
    return 0;
}
