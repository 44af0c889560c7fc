/* portload: the client of the benchmarks, many port accesses and how long each took.
 *
 *   portload [-n COUNT] [-d DEPTH] [-w WARMUP] [-p PATTERN] [-a | -o] [-u] [-c CPU] [-s STATE] SOCKET...
 *
 *   -n  round trips to time (10000); each is DEPTH frames sent at once and their answers received
 *   -d  frames under way at once (1)
 *   -w  round trips before those that are timed (COUNT / 10)
 *   -p  talking: one read of the magic number in four, else bytes of guest log with a newline after every 100
 *       magic:   reads of the magic number only
 *       linux:   what a booting Linux does, six accesses: magic, version, product, build, magic, unplug
 *       lines:   string writes of log lines of 128 bytes: a serial number of 8 digits, filling, a newline
 *   -a  a round trip is one access on every SOCKET, sent on all before the first answer is received (DEPTH is ignored)
 *   -o  only the first SOCKET is spoken to, the others are connected to and stay silent
 *   -u  every frame is unlike all others: vp_eport, which the server only echoes, is a serial number; without it, all
 *       frames of a socket carry one number, as those of a guest's vCPU carry its event channel port
 *   -c  run on this CPU only
 *   -s  the state that an answer must have: 3 for unplugd (3), 1 for the echo server
 *
 * With several SOCKETs the round trips go to them in turn, over one connection each. Every answer is checked (address,
 * vp_eport, state), which costs both servers' figures the same. Prints one line of JSON; times in microseconds.
 *
 * SPDX-License-Identifier: MIT
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* struct ioreq of Xen, as it is on the socket: 32 bytes, little-endian. Not daemon/fastpath's: who checks the answers has
 * a definition of his own. */
struct frame {
    uint64_t addr;
    uint64_t data;
    uint32_t count;
    uint32_t size;
    uint32_t vp_eport;
    uint16_t pad;
    uint8_t flags;      /* bits 0-3 state, bit 4 data_is_ptr, bit 5 direction (1 = read) */
    uint8_t type;
};
_Static_assert(sizeof(struct frame) == 32, "struct ioreq has 32 bytes");

enum { READY = 1, IS_STRING = 0x10, DIR_READ = 0x20, MAGIC_PORT = 0x10, LOG_PORT = 0x12, LINE = 100, STRING = 128, MAX_DEPTH = 1024 };
enum pattern { TALKING, MAGIC, LINUX, LINES };

/* The bytes of guest log that were sent so far decide the next one; the accesses so far, whether it is a read. */
struct talk {
    enum pattern pattern;
    int unique;
    uint64_t accesses;
    uint64_t logged;
    uint32_t serial;
};

static void fail(const char *what)
{
    fprintf(stderr, "portload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        fail(path);
    }
    strcpy(address.sun_path, path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail(path);
    return fd;
}

static void next_access(struct talk *talk, struct frame *frame, int socket)
{
    memset(frame, 0, sizeof *frame);
    frame->count = htole32(1);
    frame->vp_eport = htole32(talk->unique ? talk->serial++ : (uint32_t)socket + 1);
    if (talk->pattern == LINES) {
        frame->addr = htole64(LOG_PORT);
        frame->count = htole32(STRING);
        frame->size = htole32(1);
        frame->flags = READY | IS_STRING;
    } else if (talk->pattern == LINUX) {
        static const struct { uint8_t addr, size, data, flags; } boot[] = {
            {0x10, 2, 0, READY | DIR_READ}, {0x12, 1, 0, READY | DIR_READ}, {0x12, 2, 3, READY},
            {0x10, 4, 1, READY}, {0x10, 2, 0, READY | DIR_READ}, {0x10, 2, 3, READY},
        };
        size_t step = talk->accesses % (sizeof boot / sizeof *boot);

        frame->addr = htole64(boot[step].addr);
        frame->size = htole32(boot[step].size);
        frame->data = htole64(boot[step].data);
        frame->flags = boot[step].flags;
    } else if (talk->pattern == MAGIC || talk->accesses % 4 == 0) {
        frame->addr = htole64(MAGIC_PORT);
        frame->size = htole32(2);
        frame->flags = READY | DIR_READ;
    } else {
        uint64_t column = talk->logged++ % (LINE + 1);

        frame->addr = htole64(LOG_PORT);
        frame->size = htole32(1);
        frame->data = htole64(column == LINE ? '\n' : 'a' + column % 26);
        frame->flags = READY;
    }
    talk->accesses++;
}

static void send_all(int fd, const void *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = send(fd, (const char *)data + done, bytes - done, MSG_NOSIGNAL);

        if (n < 0 && errno != EINTR)
            fail("send");
        if (n > 0)
            done += (size_t)n;
    }
}

/* The answers to `depth` frames, checked. */
static void receive(int fd, const struct frame *sent, struct frame *got, size_t depth, unsigned state)
{
    size_t bytes = depth * sizeof *sent;

    for (size_t done = 0; done < bytes;) {
        ssize_t n = read(fd, (char *)got + done, bytes - done);

        if (n == 0) {
            errno = ECONNRESET;
            fail("closed by the server");
        }
        if (n < 0 && errno != EINTR)
            fail("read");
        if (n > 0)
            done += (size_t)n;
    }
    for (size_t i = 0; i < depth; i++)
        if (got[i].addr != sent[i].addr || got[i].vp_eport != sent[i].vp_eport || (got[i].flags & 0xf) != state) {
            fprintf(stderr, "portload: answer %zu of %zu is not that of its frame\n", i + 1, depth);
            exit(1);
        }
}

/* Frames of string I/O have their line behind them. */
static void round_trip(int fd, const struct frame *sent, struct frame *got, size_t depth, unsigned state)
{
    if (sent->flags & IS_STRING) {
        static unsigned char data[MAX_DEPTH * (sizeof *sent + STRING)];
        static uint32_t lines;  /* no two are alike: journald stores what it has already only once */
        size_t bytes = 0;

        for (size_t i = 0; i < depth; i++) {
            unsigned char *line = data + bytes + sizeof *sent;

            memcpy(data + bytes, &sent[i], sizeof *sent);
            memset(line, 'x', STRING);
            for (int digit = 0; digit < 8; digit++)
                line[digit] = (unsigned char)"0123456789abcdef"[lines >> (28 - 4 * digit) & 0xf];
            lines++;
            bytes += sizeof *sent + STRING;
            data[bytes - 1] = '\n';
        }
        send_all(fd, data, bytes);
    } else {
        send_all(fd, sent, depth * sizeof *sent);
    }
    receive(fd, sent, got, depth, state);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static long number(const char *text, long least, long most)
{
    char *end;
    long value = strtol(text, &end, 10);

    if (*text == '\0' || *end != '\0' || value < least || value > most) {
        fprintf(stderr, "portload: %s: not a number from %ld to %ld\n", text, least, most);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv)
{
    static struct frame sent[MAX_DEPTH], got[MAX_DEPTH];
    long frames, count = 10000, warmup = -1, depth = 1, cpu = -1, state = 3;
    struct talk talk = { .pattern = TALKING };
    int all = 0, only_first = 0;
    struct rlimit files;
    int option, sockets, *fds;
    double *times, begin, end;

    while ((option = getopt(argc, argv, "n:d:w:p:aouc:s:")) != -1)
        switch (option) {
        case 'n': count = number(optarg, 1, 100000000); break;
        case 'd': depth = number(optarg, 1, MAX_DEPTH); break;
        case 'w': warmup = number(optarg, 0, 100000000); break;
        case 'a': all = 1; break;
        case 'o': only_first = 1; break;
        case 'u': talk.unique = 1; break;
        case 'c': cpu = number(optarg, 0, CPU_SETSIZE - 1); break;
        case 's': state = number(optarg, 0, 15); break;
        case 'p':
            if (!strcmp(optarg, "talking")) talk.pattern = TALKING;
            else if (!strcmp(optarg, "magic")) talk.pattern = MAGIC;
            else if (!strcmp(optarg, "linux")) talk.pattern = LINUX;
            else if (!strcmp(optarg, "lines")) talk.pattern = LINES;
            else {
                fprintf(stderr, "portload: %s: not a pattern\n", optarg);
                return 2;
            }
            break;
        default: return 2;
        }
    sockets = argc - optind;
    if (sockets < 1) {
        fprintf(stderr, "usage: portload [-n COUNT] [-d DEPTH] [-w WARMUP] [-p talking|magic|linux|lines] [-a | -o] [-u]"
                        " [-c CPU] [-s STATE] SOCKET...\n");
        return 2;
    }
    if (warmup < 0)
        warmup = count / 10;
    if (cpu >= 0) {
        cpu_set_t only;

        CPU_ZERO(&only);
        CPU_SET((size_t)cpu, &only);
        if (sched_setaffinity(0, sizeof only, &only))
            fail("sched_setaffinity");
    }
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    fds = calloc((size_t)sockets, sizeof *fds);
    times = calloc((size_t)count, sizeof *times);
    if (fds == NULL || times == NULL)
        fail("calloc");
    for (int i = 0; i < sockets; i++)
        fds[i] = connect_to(argv[optind + i]);

    for (int k = 0; only_first && k < sockets; k++) {   /* until all are accepted, the server is busy with that */
        next_access(&talk, sent, k);
        round_trip(fds[k], sent, got, 1, (unsigned)state);
    }
    begin = now();
    for (long i = -warmup; i < count; i++) {
        int turn = only_first ? 0 : (int)((i + warmup) % sockets);
        double start;

        if (i == 0)
            begin = now();
        if (all) {
            next_access(&talk, sent, 0);
            start = now();
            for (int k = 0; k < sockets; k++)
                send_all(fds[k], sent, sizeof *sent);
            for (int k = 0; k < sockets; k++)
                receive(fds[k], sent, got, 1, (unsigned)state);
            if (i >= 0)
                times[i] = now() - start;
            continue;
        }
        for (long k = 0; k < depth; k++)
            next_access(&talk, &sent[k], turn);
        start = now();
        round_trip(fds[turn], sent, got, (size_t)depth, (unsigned)state);
        if (i >= 0)
            times[i] = now() - start;
    }
    end = now();
    frames = all ? count * sockets : count * depth;
    qsort(times, (size_t)count, sizeof *times, by_value);
    printf("{\"frames\": %ld, \"depth\": %ld, \"sockets\": %d, \"seconds\": %.6f, \"frames_per_second\": %.0f, "
           "\"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f}\n",
           frames, depth, sockets, (end - begin) / 1e6, (double)frames / (end - begin) * 1e6,
           times[count / 2], times[(long)((double)count * 0.99)], times[count - 1]);
    return 0;
}
