// late WAY     a write to /var/lib/WAY that lands long after the times of its file have moved; WAY is one of `ways` below
//
// It fills the file and says so (/run/ready). When it is told to (/run/go), it hands the kernel a write over the whole file,
// and then a second thread begins a write to /var/lib/beside, so that the container cannot stand still before that is done:
// /run/issued. Whoever has made the disk slow before has all the time there is to look at the file meanwhile.
//
// One write to /var/lib/before goes before it: the block layer may let the first one pass.
//
// All writes are O_DIRECT, aligned, and over blocks that are written: ext4 holds such a file for nobody else.

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SIZE = 256 << 10, OLD = 'o', NEW = 'n' };

static char path[64];
static const char before[] = "/var/lib/before", beside[] = "/var/lib/beside";
static char *buffer;
static pthread_t first;

static void note(const char *name) {
    int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) err(1, "%s", name);
    close(fd);
}

static void wait_for(const char *name) {
    while (access(name, F_OK) < 0) usleep(5000);
}

static void fill(const char *name) {
    int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    memset(buffer, OLD, SIZE);
    if (fd < 0 || write(fd, buffer, SIZE) != SIZE || fsync(fd) < 0) err(1, "%s", name);
    close(fd);
    memset(buffer, NEW, SIZE);
}

static int open_it(const char *name) {
    int fd = open(name, O_WRONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0) err(1, "%s", name);
    return fd;
}

// ------------------------------------------------------------------------------------------------ a write that waits

static void *write_here(void *name) {
    int fd = open_it(name);
    if (pwrite(fd, buffer, SIZE, 0) != SIZE) err(1, "%s", (char *)name);
    for (;;) pause();
    return NULL;
}

static void *write_apart(void *name) {
    if (unshare(CLONE_FILES) < 0) err(1, "unshare");
    return write_here(name);
}

static void start(void *(*what)(void *), const void *with) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, what, (void *)with) != 0) errx(1, "no thread");
    usleep(200000);
}

static void by_call(void) { start(write_here, path); }
static void by_call_of_thread(void) { start(write_apart, path); }

// ------------------------------------------------------------------------------------------------------------ by aio

static void submit(int fd) {
    static struct iocb one;
    struct iocb *all[] = {&one};
    aio_context_t context = 0;
    one = (struct iocb){.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = (uint32_t)fd, .aio_buf = (uintptr_t)buffer, .aio_nbytes = SIZE};
    if (syscall(SYS_io_setup, 8, &context) < 0 || syscall(SYS_io_submit, context, 1, all) != 1) err(1, "aio");
}

static void by_aio(void) { submit(open_it(path)); }

// The first thread has ended: of it nothing is told, and the others have it all.
static void *without_first(void *unused) {
    (void)unused;
    pthread_join(first, NULL);
    submit(open_it(path));
    return NULL;
}

// ------------------------------------------------------------------------------------------------------- by io_uring

static struct ring {
    int fd;
    struct io_uring_params has;
    uint32_t *queue;
    struct io_uring_sqe *entries;
} ring;

static void set_up(void) {
    ring.fd = (int)syscall(SYS_io_uring_setup, 4, &ring.has);
    if (ring.fd < 0) err(1, "io_uring_setup");
    size_t size = ring.has.sq_off.array + ring.has.sq_entries * sizeof(uint32_t);
    ring.queue = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
    ring.entries = mmap(NULL, ring.has.sq_entries * sizeof *ring.entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
    if (ring.queue == MAP_FAILED || ring.entries == MAP_FAILED) err(1, "the rings");
}

static void enter(int fd, struct io_uring_sqe entry, unsigned flags) {
    uint32_t *tail = &ring.queue[ring.has.sq_off.tail / 4], *array = &ring.queue[ring.has.sq_off.array / 4];
    ring.entries[0] = entry, array[*tail & (ring.has.sq_entries - 1)] = 0;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, fd, 1, 0, flags, NULL, 0) != 1) err(1, "io_uring_enter");
}

static struct io_uring_sqe whole(int opcode, int fd, unsigned flags) {
    return (struct io_uring_sqe){.opcode = (uint8_t)opcode, .flags = (uint8_t)flags, .fd = fd, .addr = (uintptr_t)buffer, .len = SIZE};
}

static void by_ring(void) {
    set_up();
    enter(ring.fd, whole(IORING_OP_WRITE, open_it(path), 0), 0);
}

static void by_ring_of_vectors(void) {
    static struct iovec halves[2];
    set_up();
    struct io_uring_sqe entry = whole(IORING_OP_WRITEV, open_it(path), 0);
    for (int n = 0; n < 2; n++) halves[n] = (struct iovec){buffer + n * SIZE / 2, SIZE / 2};
    entry.addr = (uintptr_t)halves, entry.len = 2;
    enter(ring.fd, entry, 0);
}

static void by_ring_of_buffers(void) {
    struct iovec all = {buffer, SIZE};
    set_up();
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &all, 1) < 0) err(1, "register a buffer");
    enter(ring.fd, whole(IORING_OP_WRITE_FIXED, open_it(path), 0), 0);
}

// The ring holds the file, and the process does not.
static void by_ring_of_files(void) {
    set_up();
    int fd = open_it(path);
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, &fd, 1) < 0) err(1, "register a file");
    close(fd);
    enter(ring.fd, whole(IORING_OP_WRITE, 0, IOSQE_FIXED_FILE), 0);
}

// The ring holds the file, and the thread the ring, by a number that is no descriptor.
static void by_ring_without_descriptor(void) {
    set_up();
    int fd = open_it(path);
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, &fd, 1) < 0) err(1, "register a file");
    close(fd);
    struct io_uring_rsrc_update at = {.offset = UINT32_MAX, .data = (uint64_t)ring.fd};
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_RING_FDS, &at, 1) != 1) err(1, "register a ring");
    close(ring.fd);
    enter((int)at.offset, whole(IORING_OP_WRITE, 0, IOSQE_FIXED_FILE), IORING_ENTER_REGISTERED_RING);
}

// Somebody else writes.
static void by_nobody(void) {}

static const struct way {
    const char *name;
    void (*begin)(void);
} ways[] = {
    {"call", by_call}, {"thread", by_call_of_thread}, {"aio", by_aio}, {"ring", by_ring}, {"vectors", by_ring_of_vectors},
    {"buffers", by_ring_of_buffers}, {"files", by_ring_of_files}, {"undescribed", by_ring_without_descriptor}, {"nobody", by_nobody},
};

static void *rest(void *begun) {
    start(write_here, beside);
    note("/run/issued");
    for (;;) pause();
    return begun;
}

static void *headless(void *unused) {
    return rest(without_first(unused));
}

int main(int argc, char **argv) {
    if (argc != 2) errx(2, "late WAY");
    buffer = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) err(1, "no memory");
    snprintf(path, sizeof path, "/var/lib/%s", argv[1]);
    fill(path), fill(before), fill(beside);
    note("/run/ready");
    wait_for("/run/go");
    pid_t child = fork();
    if (child == 0) write_here((void *)before);
    usleep(200000);
    if (strcmp(argv[1], "headless") == 0) {
        pthread_t thread;
        if (fork() > 0) for (;;) pause();
        first = pthread_self();
        if (pthread_create(&thread, NULL, headless, NULL) != 0) errx(1, "no thread");
        pthread_exit(NULL);
    }
    for (size_t n = 0; n < sizeof ways / sizeof *ways; n++) {
        if (strcmp(argv[1], ways[n].name) != 0) continue;
        ways[n].begin();
        rest(NULL);
    }
    errx(2, "no way is called %s", argv[1]);
}
