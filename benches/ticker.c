// ticker MIB    fills MIB of memory and then looks at the clock, 5,000 times a second, for ever
//
// The longest gap between two looks is how long the container stood still, as it felt it. It stands in /run/gap, three
// 64-bit numbers: the longest gap in ns, the number of looks, MIB filled so far. Whoever measures writes zero over the
// first before he begins. /run is a tmpfs, so the file is no part of the rw layer.

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 2) errx(2, "ticker MIB");
    uint64_t mib = strtoull(argv[1], NULL, 10), seed = 88172645463325252u;
    int fd = open("/run/gap", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, 4096) < 0) err(1, "/run/gap");
    volatile uint64_t *gap = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (gap == MAP_FAILED) err(1, "map /run/gap");
    for (uint64_t n = 0; n < mib; n++) {
        uint64_t *page = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) err(1, "no memory");
        for (int word = 0; word < 1 << 17; word++) {    // xorshift64: does not compress
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            page[word] = seed;
        }
        gap[2] = n + 1;
    }
    for (uint64_t last = now();;) {
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        uint64_t t = now();
        if (t - last > gap[0]) gap[0] = t - last;
        last = t;
        gap[1]++;
    }
}
