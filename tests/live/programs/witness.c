// witness MIB FILE TICK_MS    fills MIB of memory and keeps FILE and FILE.map in step with it
// witness ask                 asks a running one: prints its answer, exits 0 if it is sound
//
// A witness of one instant. At each tick it changes some pages of its memory, then writes a record (tick, checksum of
// all memory) to FILE with pwrite and the tick to FILE.map through a shared mapping. Before each write it reads both
// back and compares them with what its memory says they must hold. So a checkpoint whose files are of another moment
// than its memory is noticed at the first tick after the restore: the witness then writes FILE.MISMATCH and ticks no more.
//
// Without tolerance: a process is frozen and restored between two instructions, and a small pwrite is done or not done.
// Reading back, writing and noting are one sequence, which goes on where it stopped.
//
// It listens on /run/witness.sock (/run is a tmpfs in a container, so the socket is no part of the rw layer). Asked,
// it checks every page and says: `ok id=<this process> tick=<n> checksum=<hex> mib=<n>`, or `mismatch <why>`.

#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { WORDS = 4096 / 8, PAGES_PER_TICK = 64 };

struct record { uint64_t tick, checksum; };

static uint64_t (*page)[WORDS];   // the memory that must survive
static uint64_t *written_at;      // the tick at which each page was written last: with its number it gives the content
static uint64_t pages;
static struct record now;         // what memory is
static struct record written;     // what the files hold, as memory knows
static uint64_t id;               // tells this process from a restarted one
static char mismatch[256];        // empty while all is well
static const char *path;

static uint64_t mix(uint64_t x) { // splitmix64: pages that do not compress and are never alike
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t seed_of(uint64_t n) { return mix(id ^ mix(n) ^ mix(written_at[n] + (1ull << 48))); }

static void write_page(uint64_t n, uint64_t tick) {
    now.checksum ^= seed_of(n);                       // the checksum is the xor of all seeds: cheap to keep
    written_at[n] = tick;
    uint64_t seed = seed_of(n);
    now.checksum ^= seed;
    for (int word = 0; word < WORDS; word++) page[n][word] = seed + (uint64_t)word * 0x9e3779b97f4a7c15u;
}

static int page_is_sound(uint64_t n) {
    uint64_t seed = seed_of(n);
    for (int word = 0; word < WORDS; word++)
        if (page[n][word] != seed + (uint64_t)word * 0x9e3779b97f4a7c15u) return 0;
    return 1;
}

__attribute__((format(printf, 1, 2))) static void give_up(const char *format, ...) {
    char name[4096];
    va_list values;
    va_start(values, format);
    vsnprintf(mismatch, sizeof mismatch, format, values);
    va_end(values);
    snprintf(name, sizeof name, "%s.MISMATCH", path);
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd >= 0) {
        dprintf(fd, "%s\n", mismatch);
        close(fd);
    }
    fprintf(stderr, "witness: %s\n", mismatch);
}

static void check_memory(void) {
    uint64_t checksum = 0;
    for (uint64_t n = 0; n < pages; n++) {
        if (!page_is_sound(n)) {
            give_up("memory page %" PRIu64 " is not what tick %" PRIu64 " wrote", n, written_at[n]);
            return;
        }
        checksum ^= seed_of(n);
    }
    if (checksum != now.checksum) give_up("the pages' checksum is %016" PRIx64 ", kept was %016" PRIx64, checksum, now.checksum);
}

static void check_files(int file, int map) {
    struct record held;
    uint64_t mapped;
    if (pread(file, &held, sizeof held, 0) != sizeof held || pread(map, &mapped, sizeof mapped, 0) != sizeof mapped) {
        give_up("a file is shorter than what was written to it");
    } else if (memcmp(&held, &written, sizeof held) != 0) {
        give_up("memory wrote tick %" PRIu64 ", the file holds tick %" PRIu64, written.tick, held.tick);
    } else if (mapped != written.tick) {
        give_up("memory wrote tick %" PRIu64 ", the mapped file holds tick %" PRIu64, written.tick, mapped);
    }
}

static void write_files(int file, volatile uint64_t *mapping) {
    if (pwrite(file, &now, sizeof now, 0) != sizeof now) err(1, "write %s", path);
    *mapping = now.tick;
    written = now;
}

static void tick(int file, int map, volatile uint64_t *mapping) {
    now.tick++;
    for (uint64_t i = 0; i < PAGES_PER_TICK; i++) {
        uint64_t n = mix(now.tick * PAGES_PER_TICK + i) % pages;   // all over the memory
        if (!page_is_sound(n)) {
            give_up("memory page %" PRIu64 " is not what tick %" PRIu64 " wrote", n, written_at[n]);
            return;
        }
        write_page(n, now.tick);
    }
    // Reading back and writing stand close together: between them, wrong files would be overwritten unseen.
    check_files(file, map);
    if (!mismatch[0]) write_files(file, mapping);
}

static struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/witness.sock"};

static void answer(int listener) {
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0) return;
    if (!mismatch[0]) check_memory();
    if (mismatch[0]) dprintf(client, "mismatch %s\n", mismatch);
    else dprintf(client, "ok id=%016" PRIx64 " tick=%" PRIu64 " checksum=%016" PRIx64 " mib=%" PRIu64 "\n", id, now.tick, now.checksum, pages / 256);
    close(client);
}

static int ask(void) {
    char line[512];
    int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    // It may have only just been started.
    int tries = 0;
    while (connect(server, (struct sockaddr *)&address, sizeof address) < 0) {
        if (++tries == 200) err(1, "connect %s", address.sun_path);
        usleep(50000);
    }
    ssize_t n = read(server, line, sizeof line);
    if (n <= 0) errx(1, "no answer");
    fwrite(line, 1, (size_t)n, stdout);
    return strncmp(line, "ok ", 3) == 0 ? 0 : 1;
}

static int open_new(const char *name) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) err(1, "open %s", name);
    return fd;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "ask") == 0) return ask();
    if (argc != 4) errx(2, "witness MIB FILE TICK_MS | witness ask");
    pages = strtoull(argv[1], NULL, 10) * 256;
    path = argv[2];
    int tick_ms = atoi(argv[3]);
    if (pages == 0) errx(2, "MIB is at least 1");
    if (getrandom(&id, sizeof id, 0) != sizeof id) err(1, "getrandom");

    page = mmap(NULL, pages * sizeof *page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    written_at = calloc(pages, sizeof *written_at);
    if (page == MAP_FAILED || !written_at) err(1, "no memory");
    for (uint64_t n = 0; n < pages; n++) now.checksum ^= seed_of(n);
    for (uint64_t n = 0; n < pages; n++) write_page(n, 0);

    char map_name[4096];
    snprintf(map_name, sizeof map_name, "%s.map", path);
    int file = open_new(path), map = open_new(map_name);
    if (ftruncate(map, 4096) < 0) err(1, "truncate %s", map_name);
    volatile uint64_t *mapping = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
    if (mapping == MAP_FAILED) err(1, "map %s", map_name);
    write_files(file, mapping);

    unlink(address.sun_path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0) err(1, "bind %s", address.sun_path);
    if (listen(listener, 8) < 0) err(1, "listen");

    for (;;) {
        struct pollfd event = {.fd = listener, .events = POLLIN};
        int ready = poll(&event, 1, tick_ms);
        if (ready < 0 && errno != EINTR) err(1, "poll");
        // A question does not put a tick off: it is the restored process' first act as well.
        if (!mismatch[0]) tick(file, map, mapping);
        if (ready > 0) answer(listener);
    }
}
