// many [established]    holds many kinds of kernel state at once
// many check            asks a running one to try each of them: a line each, exit 0 if all work
//
// What it holds: threads that count; two threads that hand a turn to and fro with a condition variable; a listening
// TCP socket with a thread that answers; a listening unix socket; pipes to and from a child process that echoes; an
// open file without a name; a shared mapping of a file; an armed timer, an event counter, an epoll; with `established`
// also a TCP connection to itself, which CRIU dumps only with --tcp-established.
//
// `id` is drawn at the start: the same before and after means the process was restored, not started anew. `ticks`
// never goes back.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

enum { THREADS = 4, PORT = 7777, MAP_SIZE = 1 << 16, UNLINKED_SIZE = 100000 };

static const char map_path[] = "/var/lib/many.map";
static const char unlinked_path[] = "/var/lib/many.unlinked";
static struct sockaddr_un unix_address = {.sun_family = AF_UNIX, .sun_path = "/run/many.sock"};
static struct sockaddr_in tcp_address;

static uint64_t id;
static atomic_uint_fast64_t ticks, counted[THREADS];
static int to_child = -1, from_child = -1, unlinked = -1, map_file = -1, events = -1, timer = -1, pair[2] = {-1, -1};
static uint64_t *map;

static pthread_mutex_t turn_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static uint64_t turns;

static void nap(int ms) { usleep((useconds_t)ms * 1000); }

// ---------------------------------------------------------------------------------------------- what runs all the time

static void *count(void *mine) {
    for (;; nap(1)) atomic_fetch_add((atomic_uint_fast64_t *)mine, 1);
    return NULL;
}

static void *take_turns(void *parity) {
    for (;;) {
        pthread_mutex_lock(&turn_lock);
        while (turns % 2 != (uint64_t)(uintptr_t)parity) pthread_cond_wait(&turn_changed, &turn_lock);
        turns++;
        pthread_cond_signal(&turn_changed);
        pthread_mutex_unlock(&turn_lock);
        nap(2);
    }
    return NULL;
}

static void *serve_tcp(void *listener) {
    for (;;) {
        int client = accept4((int)(intptr_t)listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) { nap(10); continue; }
        dprintf(client, "%016" PRIx64 "\n", id);
        close(client);
    }
    return NULL;
}

static void echo_child(int in, int out) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    uint64_t n;
    while (read(in, &n, sizeof n) == sizeof n) {
        n = n * 3 + 1;
        if (write(out, &n, sizeof n) != sizeof n) break;
    }
    _exit(0);
}

// ------------------------------------------------------------------------------------------------------- what is tried

static char report[4096];
static int bad;

__attribute__((format(printf, 3, 4))) static void say(const char *what, int good, const char *format, ...) {
    size_t used = strlen(report);
    used += (size_t)snprintf(report + used, sizeof report - used, "%s %s ", good ? "ok" : "BAD", what);
    va_list values;
    va_start(values, format);
    used += (size_t)vsnprintf(report + used, sizeof report - used, format, values);
    va_end(values);
    snprintf(report + used, sizeof report - used, "\n");
    bad |= !good;
}

static uint64_t content(uint64_t n) { return (n + 1) * 0x9e3779b97f4a7c15u ^ id; }

static void try_threads(void) {
    uint64_t before[THREADS], turns_before = turns;
    for (int i = 0; i < THREADS; i++) before[i] = counted[i];
    for (int waited = 0, moved = 0; waited < 2000 && moved < THREADS; waited += 10) {
        nap(10);
        moved = 0;
        for (int i = 0; i < THREADS; i++) moved += counted[i] > before[i];
    }
    for (int i = 0; i < THREADS; i++)
        if (counted[i] <= before[i]) { say("threads", 0, "thread %d counts no more", i); return; }
    say("threads", 1, "%d count", THREADS);
    for (int waited = 0; waited < 2000 && turns < turns_before + 2; waited += 10) nap(10);
    say("turns", turns >= turns_before + 2, "%" PRIu64, turns);
}

static void try_tcp(void) {
    char line[64] = "", expected[64];
    snprintf(expected, sizeof expected, "%016" PRIx64 "\n", id);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval patience = {.tv_sec = 2};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&tcp_address, sizeof tcp_address) < 0) {
        say("tcp", 0, "connect: %s", strerror(errno));
    } else {
        ssize_t n = read(fd, line, sizeof line - 1);
        say("tcp", n > 0 && strcmp(line, expected) == 0, "port %d", PORT);
    }
    close(fd);
}

static void try_pipe(void) {
    uint64_t sent = ticks, got = 0;
    if (write(to_child, &sent, sizeof sent) != sizeof sent) { say("pipe", 0, "write: %s", strerror(errno)); return; }
    ssize_t n = read(from_child, &got, sizeof got);
    say("pipe", n == sizeof got && got == sent * 3 + 1, "the child echoes");
}

static void try_unlinked(void) {
    static uint64_t held[UNLINKED_SIZE / 8];
    uint64_t wrong = 0;
    ssize_t n = pread(unlinked, held, sizeof held, 0);
    for (uint64_t i = 0; i < UNLINKED_SIZE / 8; i++) wrong += held[i] != content(i);
    say("unlinked", n == sizeof held && wrong == 0 && access(unlinked_path, F_OK) < 0, "%zd bytes, %" PRIu64 " words wrong", n, wrong);
}

// The mapping must be right, and still be the file: what is stored here is read there.
static void try_mapping(void) {
    uint64_t words = MAP_SIZE / 8, wrong = 0, read_back = 0;
    for (uint64_t i = 1; i < words; i++) wrong += map[i] != content(i);
    map[0]++;
    int by_name = open(map_path, O_RDONLY | O_CLOEXEC);
    ssize_t n = pread(by_name, &read_back, sizeof read_back, 0);
    say("mapping", wrong == 0 && n == sizeof read_back && read_back == map[0], "%" PRIu64 " words wrong, stored %" PRIu64 ", read %" PRIu64, wrong, map[0], read_back);
    close(by_name);
}

static void try_events(void) {
    uint64_t add = 7, got = 0;
    if (write(events, &add, sizeof add) != sizeof add) { say("eventfd", 0, "write: %s", strerror(errno)); return; }
    ssize_t n = read(events, &got, sizeof got);
    say("eventfd", n == sizeof got && got == 42 + 7, "%" PRIu64, got);   // 42 was in it from the start
    uint64_t back = 42;
    if (write(events, &back, sizeof back) != sizeof back) say("eventfd", 0, "write: %s", strerror(errno));
}

// Armed for an hour ahead. Not a periodic timer: one that expires in the freeze is dumped with no time left, and CRIU
// restores that as disarmed.
static void try_timer(void) {
    struct itimerspec left = {0};
    timerfd_gettime(timer, &left);
    say("timer", left.it_value.tv_sec > 0 && left.it_value.tv_sec < 3600, "%lld s left", (long long)left.it_value.tv_sec);
}

static void try_established(void) {
    if (pair[0] < 0) return;
    uint64_t sent = ticks, got = 0;
    ssize_t n = write(pair[0], &sent, sizeof sent) == sizeof sent ? read(pair[1], &got, sizeof got) : -1;
    say("established", n == sizeof got && got == sent, "a TCP connection");
}

static void check(int listener) {
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0) return;
    report[0] = 0;
    bad = 0;
    say("unix", 1, "you asked over it");
    try_threads();
    try_tcp();
    try_pipe();
    try_unlinked();
    try_mapping();
    try_events();
    try_timer();
    try_established();
    dprintf(client, "%s%s id=%016" PRIx64 " ticks=%" PRIu64 "\n", report, bad ? "BAD" : "all ok", id, (uint64_t)ticks);
    close(client);
}

static int ask(void) {
    char text[8192];
    size_t used = 0;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    // It may have only just been started.
    int tries = 0;
    while (connect(fd, (struct sockaddr *)&unix_address, sizeof unix_address) < 0) {
        if (++tries == 200) err(1, "connect %s", unix_address.sun_path);
        usleep(50000);
    }
    for (ssize_t n; used < sizeof text - 1 && (n = read(fd, text + used, sizeof text - 1 - used)) > 0;) used += (size_t)n;
    text[used] = 0;
    fputs(text, stdout);
    return strstr(text, "all ok ") ? 0 : 1;
}

// --------------------------------------------------------------------------------------------------------------- start

static void start_thread(void *(*run)(void *), void *with) {
    pthread_t thread;
    if ((errno = pthread_create(&thread, NULL, run, with)) != 0) err(1, "thread");
}

static void start_child(void) {
    int there[2], back[2];
    if (pipe2(there, O_CLOEXEC) < 0 || pipe2(back, O_CLOEXEC) < 0) err(1, "pipe");
    pid_t child = fork();
    if (child < 0) err(1, "fork");
    if (child == 0) {
        close(there[1]);
        close(back[0]);
        echo_child(there[0], back[1]);
    }
    close(there[0]);
    close(back[1]);
    to_child = there[1];
    from_child = back[0];
}

static void make_files(void) {
    unlinked = open(unlinked_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    map_file = open(map_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (unlinked < 0 || map_file < 0) err(1, "files in /var/lib");
    for (uint64_t i = 0; i < UNLINKED_SIZE / 8; i++) {
        uint64_t word = content(i);
        if (write(unlinked, &word, sizeof word) != sizeof word) err(1, "write");
    }
    if (unlink(unlinked_path) < 0 || ftruncate(map_file, MAP_SIZE) < 0) err(1, "files in /var/lib");
    map = mmap(NULL, MAP_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, map_file, 0);
    if (map == MAP_FAILED) err(1, "map");
    for (uint64_t i = 1; i < MAP_SIZE / 8; i++) map[i] = content(i);
}

static int listen_at(int family, void *address, socklen_t size) {
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, address, size) < 0 || listen(fd, 16) < 0) err(1, "listen");
    return fd;
}

static void establish(int listener) {
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(pair[0], (struct sockaddr *)&tcp_address, sizeof tcp_address) < 0) err(1, "connect");
    pair[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (pair[1] < 0) err(1, "accept");
}

static void watch(int epoll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) err(1, "epoll");
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "check") == 0) {
        return ask();
    }
    signal(SIGPIPE, SIG_IGN);
    if (getrandom(&id, sizeof id, 0) != sizeof id) err(1, "getrandom");
    tcp_address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    start_child();                                   // before the threads: a fork copies only its own
    make_files();
    if ((events = eventfd(42, EFD_CLOEXEC)) < 0) err(1, "eventfd");
    int tcp = listen_at(AF_INET, &tcp_address, sizeof tcp_address);
    if (argc == 2 && strcmp(argv[1], "established") == 0) establish(tcp);
    for (int i = 0; i < THREADS; i++) start_thread(count, &counted[i]);
    start_thread(take_turns, (void *)0);
    start_thread(take_turns, (void *)1);
    start_thread(serve_tcp, (void *)(intptr_t)tcp);

    struct itimerspec in_an_hour = {.it_value.tv_sec = 3600};
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    if (timer < 0 || timerfd_settime(timer, 0, &in_an_hour, NULL) < 0) err(1, "timer");
    unlink(unix_address.sun_path);
    int local = listen_at(AF_UNIX, &unix_address, sizeof unix_address), epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll, timer);
    watch(epoll, local);

    for (;;) {
        struct epoll_event event;
        int ready = epoll_wait(epoll, &event, 1, 10);
        atomic_fetch_add(&ticks, 1);
        if (ready == 1 && event.data.fd == local) check(local);
    }
}
