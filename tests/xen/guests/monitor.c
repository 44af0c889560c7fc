/* The boot-sector guest: an I/O port monitor on COM1, in real mode. One command a line, numbers in hex, one answer a line.

     rb|rw|rl PORT                 read                               = VALUE
     wb|ww|wl PORT VALUE           write                              ok
     ob|ow|ol PORT ADDR COUNT DF   rep outs from memory at ADDR       ok
     ib|iw|il PORT ADDR COUNT DF   rep ins to memory at ADDR          ok
     m ADDR HEXBYTES               put bytes into memory              ok
     d ADDR COUNT                  bytes of memory                    = HEXBYTES
     s PORT TEXT                   text, byte by byte, and a newline  ok
     t PORT COUNT                  COUNT 2-byte reads                 = cycles of the TSC
     x COMMAND                     r or w on the second vCPU          as the command
     p PORT COUNT                  both vCPUs at once: bytes `a` and `b` with a newline after each 8, magic reads in
                                   between                            = magic reads that were not 0x49d2
     R                             reset through port 0xcf9

   Interrupts are off: SeaBIOS keeps its stack in the ROM area, which a test write-protects (port 0x10, platform flags).
   Memory: 0x2000-0x5fff is the tests', 0x6000 the second vCPU's first instruction, stacks below 0x6e00 and 0x7a00. */

asm(".code16gcc\n.globl _start\n_start: cli; xorl %eax,%eax\n movl $0x7a00,%esp\n call run\n1: hlt\n jmp 1b\n"
    ".globl second\nsecond: xorl %eax,%eax\n movw %ax,%ds\n movw %ax,%es\n movw %ax,%ss\n movl $0x6e00,%esp\n call worker\n");

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

#define IN(name, type) \
    static inline type name(u16 port) { type v; asm volatile(#name " %1,%0" : "=a"(v) : "Nd"(port)); return v; }
#define OUT(name, type) \
    static inline void name(u16 port, type v) { asm volatile(#name " %0,%1" ::"a"(v), "Nd"(port)); }
IN(inb, u8) IN(inw, u16) IN(inl, u32)
OUT(outb, u8) OUT(outw, u16) OUT(outl, u32)

static u32 cycles(void) { u32 a, d; asm volatile("rdtsc" : "=a"(a), "=d"(d)); return a; }

static void wrmsr(u32 msr, u32 low, u32 high) { asm volatile("wrmsr" ::"c"(msr), "a"(low), "d"(high)); }

static void put(char c) { while (!(inb(0x3fd) & 0x20)); outb(0x3f8, c); }
static void puts(const char *s) { while (*s) put(*s++); }
static void hex(u32 v, int digits) {
    while (digits--) { u8 d = v >> 4 * digits & 15; put(d < 10 ? '0' + d : 'a' + d - 10); }
}
static char get(void) { while (!(inb(0x3fd) & 1)); return inb(0x3f8); }

static char line[400];
static char *p;

static int digit(void) {
    char c = *p;
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}
static u32 number(void) {
    u32 v = 0;
    int d;
    while (*p == ' ') p++;
    while ((d = digit()) >= 0) { v = v << 4 | d; p++; }
    return v;
}

#define STRING(ins) \
    if (df) asm volatile("std; rep " ins "; cld" : "+S"(at), "+D"(di), "+c"(n) : "d"(port) : "memory"); \
    else asm volatile("cld; rep " ins : "+S"(at), "+D"(di), "+c"(n) : "d"(port) : "memory");
static void string(char kind, char size, u16 port, u32 at, u32 n, u32 df) {
    u32 di = at;
    if (kind == 'o') {
        if (size == 'b') { STRING("outsb") } else if (size == 'w') { STRING("outsw") } else { STRING("outsl") }
    } else {
        if (size == 'b') { STRING("insb") } else if (size == 'w') { STRING("insw") } else { STRING("insl") }
    }
}

static u32 access(char kind, char size, u16 port, u32 value) {
    if (kind == 'r') return size == 'b' ? inb(port) : size == 'w' ? inw(port) : inl(port);
    if (size == 'b') outb(port, value); else if (size == 'w') outw(port, value); else outl(port, value);
    return 0;
}

static u32 hammer(u16 port, u32 count, char letter) {
    u32 i, wrong = 0;
    for (i = 1; i <= count; i++) {
        outb(port, i % 9 ? letter : '\n');
        if (inw(0x10) != 0x49d2) wrong++;
    }
    outb(port, '\n');
    return wrong;
}

/* what the second vCPU is to do, and that it has done it */
static volatile struct { char kind, size; u16 port; u32 value, result; u32 busy; } job;
static u8 second_runs;

void worker(void) {
    for (;;) {
        while (!job.busy) asm volatile("pause" ::: "memory");
        job.result = job.kind == 'p' ? hammer(job.port, job.value, 'b') : access(job.kind, job.size, job.port, job.value);
        asm volatile("" ::: "memory");
        job.busy = 0;
    }
}

static void start_second(void) {
    extern char second[];
    u32 a, d, i;
    if (second_runs) return;
    second_runs = 1;
    *(volatile u8 *)0x6000 = 0xea; /* ljmp 0:second */
    *(volatile u16 *)0x6001 = (u16)(u32)second;
    *(volatile u16 *)0x6003 = 0;
    asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(0x1b));
    wrmsr(0x1b, a | 0xc00, d); /* x2APIC, whose registers are MSRs: real mode does not reach 0xfee00000 */
    wrmsr(0x80f, 0x1ff, 0);
    wrmsr(0x830, 0xc4500, 0); /* INIT, then SIPI to 0x6000, to all but this one */
    for (i = 0; i < 1000; i++) inb(0x80);
    wrmsr(0x830, 0xc4606, 0);
}

static void order(char kind, char size, u16 port, u32 value) {
    start_second();
    job.kind = kind; job.size = size; job.port = port; job.value = value;
    asm volatile("" ::: "memory");
    job.busy = 1;
}
static u32 done(void) {
    while (job.busy) asm volatile("pause" ::: "memory");
    return job.result;
}

void run(void) {
    outb(0x3f9, 0); outb(0x3fb, 0x80); outb(0x3f8, 1); outb(0x3f9, 0); outb(0x3fb, 3); outb(0x3fa, 7); outb(0x3fc, 3);
    puts("monitor ready\n");
    for (;;) {
        int n = 0, on_second = 0;
        for (;;) { char c = get(); if (c == '\n' || c == '\r') break; if (n < (int)sizeof line - 1) line[n++] = c; }
        line[n] = 0;
        p = line;
        if (!n) continue;
        char kind = *p++;
        if (kind == 'x') { on_second = 1; while (*p == ' ') p++; kind = *p++; }
        if (kind == 'r' || kind == 'w' || kind == 'o' || kind == 'i') {
            char size = *p++;
            u16 port = number();
            u32 value = number(), result = 0;
            if (kind == 'o' || kind == 'i') { u32 count = number(), df = number(); string(kind, size, port, value, count, df); }
            else if (on_second) { order(kind, size, port, value); result = done(); }
            else result = access(kind, size, port, value);
            if (kind == 'r') { puts("= "); hex(result, size == 'b' ? 2 : size == 'w' ? 4 : 8); put('\n'); }
            else puts("ok\n");
        } else if (kind == 'm') {
            u8 *at = (u8 *)number();
            while (*p == ' ') p++;
            while (*p) { int high = digit(); p++; int low = digit(); p++; *at++ = high << 4 | low; }
            puts("ok\n");
        } else if (kind == 'd') {
            u8 *at = (u8 *)number();
            u32 count = number();
            puts("= ");
            while (count--) hex(*at++, 2);
            put('\n');
        } else if (kind == 's') {
            u16 port = number();
            if (*p == ' ') p++;
            while (*p) outb(port, *p++);
            outb(port, '\n');
            puts("ok\n");
        } else if (kind == 't') {
            u16 port = number();
            u32 count = number(), begin = cycles();
            while (count--) inw(port);
            puts("= "); hex(cycles() - begin, 8); put('\n');
        } else if (kind == 'p') {
            u16 port = number();
            u32 count = number(), wrong;
            order('p', 'b', port, count);
            wrong = hammer(port, count, 'a');
            puts("= "); hex(wrong + done(), 8); put('\n');
        } else if (kind == 'R') {
            puts("ok\n");
            outb(0xcf9, 6);
        } else puts("?\n");
    }
}
