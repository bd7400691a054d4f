// suspect            does what an intruder does, and what CRIU refuses
// suspect check      asks a running one whether it still runs: `ok <ticks> <pid>`
// suspect linger     only waits, with a known word in a register
//
// It runs from a file that it has unlinked, /var/lib/.hidden. It holds: a secret on its heap that stands in no file; an
// unlinked file with a hole; a memfd; memory shared with a child, which alone has touched it; 64 GiB of which three pages
// are touched; listeners on TCP and a unix socket; an io_uring; threads that wait, one with a known word in a register.
//
// Its contents are rows of `line <n>\n`, so that whoever reads them back can make the same.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { PORT = 4444, IO_URING_SETUP = 425 };

static const char hidden[] = "/var/lib/.hidden", socket_path[] = "/run/suspect.sock";
static atomic_uint_fast64_t ticks;

// Found by the names of these.
char *secret, *desert, *shared;
uint64_t known = 0x5ec2e7c0ffee1234;

static void *wait_with_a_word(void *unused) {
    (void)unused;
#if defined __x86_64__
    __asm__ volatile("mov %0, %%r12\n1: mov $34, %%eax\nsyscall\njmp 1b" : : "r"(known) : "r12", "rax", "rcx", "r11", "memory");
#elif defined __aarch64__
    __asm__ volatile("mov x19, %0\n1: mov x0, #0\nmov x1, #0\nmov x2, #0\nmov x3, #0\nmov x4, #0\nmov x8, #73\nsvc #0\nb 1b"
                     : : "r"(known) : "x0", "x1", "x2", "x3", "x4", "x8", "x19", "memory");
#endif
    for (;;) pause();
    return NULL;
}

static void *wait_only(void *name) {
    prctl(PR_SET_NAME, name);
    for (;;) pause();
    return NULL;
}

static void start(void *(*what)(void *), void *with) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, what, with) != 0) errx(1, "no thread");
}

static void fill(int fd, int from, int to) {
    for (int n = from; n < to; n++) dprintf(fd, "line %d\n", n);
}

static int listen_at(int family, const void *address, socklen_t length) {
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, address, length) < 0 || listen(fd, 8) < 0) err(1, "listen");
    return fd;
}

static struct sockaddr_un unix_address(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, socket_path);
    return address;
}

static int check(void) {
    struct sockaddr_un address = unix_address();
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct timeval patience = {.tv_sec = 2};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    char answer[100] = "";
    if (connect(fd, (void *)&address, sizeof address) < 0 || read(fd, answer, sizeof answer - 1) <= 0) err(1, "check");
    fputs(answer, stdout);
    return 0;
}

static void hide(char **argv) {
    char *room = malloc(1 << 24);
    int from = open("/proc/self/exe", O_RDONLY), to = open(hidden, O_WRONLY | O_CREAT | O_TRUNC, 0700);
    for (ssize_t n; (n = read(from, room, 1 << 24)) > 0;)
        if (write(to, room, (size_t)n) != n) err(1, "write");
    close(from);
    close(to);
    setenv("SUSPECT_HIDDEN", "1", 1);
    execv(hidden, argv);
    err(1, "exec");
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "check") == 0) return check();
    if (argc > 1 && strcmp(argv[1], "linger") == 0) wait_with_a_word(NULL);
    if (!getenv("SUSPECT_HIDDEN")) hide(argv);
    unlink(hidden);
    signal(SIGPIPE, SIG_IGN);

    // No string of the program itself: only its memory has it whole.
    secret = malloc(64);
    for (int n = 0; n < 32; n++) snprintf(secret + n, 2, "%c", "correct-horse.battery_staple/42."[31 - n]);

    int gone = open("/var/lib/gone", O_RDWR | O_CREAT | O_TRUNC, 0600);
    fill(gone, 0, 5000);
    if (lseek(gone, 8 << 20, SEEK_SET) < 0) err(1, "lseek");
    fill(gone, 5000, 5010);
    unlink("/var/lib/gone");

    fill(memfd_create("payload", 0), 0, 3000);
    int left = open("/var/lib/left", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    fill(left, 0, 3);
    close(left);

    shared = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_NAME, "odd \xff\nname");
        strcpy(shared + (600 << 10), "written by the child");
        for (;;) pause();
    }

    size_t size = 64UL << 30;
    desert = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (desert == MAP_FAILED) err(1, "64 GiB");
    strcpy(desert, "first");
    strcpy(desert + size / 2, "an oasis");
    strcpy(desert + size - 100, "last");

    uint8_t params[120] = {0};
    if (syscall(IO_URING_SETUP, 8, params) < 0) warn("io_uring");

    struct sockaddr_in tcp = {.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    listen_at(AF_INET, &tcp, sizeof tcp);
    unlink(socket_path);
    struct sockaddr_un address = unix_address();
    int listener = listen_at(AF_UNIX, &address, sizeof address);

    start(wait_with_a_word, NULL);
    start(wait_only, "waiter-1");
    start(wait_only, "waiter-2");
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) continue;
        dprintf(client, "ok %lu %d\n", (unsigned long)++ticks, getpid());
        close(client);
    }
}
