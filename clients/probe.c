/* probe: drives unplugd-client.h by hand, or for its tests. probe SOCKET WAIT_MS; then a line for each access:
 *
 *     r ADDR SIZE    w ADDR SIZE VALUE    o ADDR SIZE TEXT    i ADDR SIZE COUNT    reset      numbers as in C
 *
 * Prints what each brought, one line each. */
#include "unplugd-client.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    static char line[65536], text[65536];
    struct unplugd_client client;
    long addr, value;
    unsigned size;

    if (argc != 3 || unplugd_client_init(&client, argv[1], atoi(argv[2])) < 0) {
        fprintf(stderr, "usage: probe SOCKET WAIT_MS\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "r %li %u", &addr, &size) == 2) {
            printf("0x%llx\n", (unsigned long long)unplugd_read(&client, (uint64_t)addr, size));
        } else if (sscanf(line, "w %li %u %li", &addr, &size, &value) == 3) {
            printf("%llu\n", (unsigned long long)unplugd_write(&client, (uint64_t)addr, size, (uint64_t)value));
        } else if (sscanf(line, "o %li %u %65535s", &addr, &size, text) == 3) {
            uint32_t count = (uint32_t)(strlen(text) / size);
            printf("%llu\n", (unsigned long long)unplugd_write_string(&client, (uint64_t)addr, size, text, count));
        } else if (sscanf(line, "i %li %u %li", &addr, &size, &value) == 3) {
            uint8_t *data = malloc((size_t)value * size + 1);
            long i;
            unplugd_read_string(&client, (uint64_t)addr, size, data, (uint32_t)value);
            for (i = 0; i < value * (long)size; i++) {
                printf("%02x", data[i]);
            }
            printf("\n");
            free(data);
        } else if (!strncmp(line, "reset", 5)) {
            printf("%d\n", unplugd_reset(&client));
        } else {
            printf("?\n");
        }
    }
    unplugd_client_close(&client);
    return 0;
}
