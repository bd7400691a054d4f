// churn DIR    changes files below DIR in every way there is, as fast as it can, for ever
// churn ask    has a running one compare all its files with what it knows of them: `ok …` or `mismatch …`
//
// Two processes of three threads each. A thread has a directory of its own and keeps a journal in its memory: which files
// there are, their size, mode, attribute, second name, and of every block which write it holds. It looks before it
// touches: each operation first compares the file with the journal, then changes both. The one who changes is the one who
// looks, and a process stops between two instructions, so there is nothing to tolerate: whatever differs after a restore
// is of another moment than the memory.
//
// How it changes them: write, also by another process, O_DIRECT, splice, sendfile, copy_file_range, truncate to less and to
// more, holes, zeros, blocks taken out and put in, create, O_TMPFILE, unlink, rename over another, link and unlink one of two
// names in two directories, chmod, an attribute, a rewrite that sets the old mtime again, a replacement by rename, of the same
// size and with the same time, a mapping that is made for one store. By turns the two directories that hold half of the files,
// under the same names, change places, and that of the second names gets another name. A slot's rank says how often it is
// touched: the first every few operations, the last every few seconds, so that some files are old enough to be believed.
//
// Mapped files, by their number: 0 is stored to all the time, 1 every few seconds, 2 is mapped, stored to for some seconds
// and unmapped by turns, and 3 to 5 likewise, but for milliseconds: shorter than who copies looks away. What is stored
// through a mapping to a page that is dirty already leaves no trace in any time. Another is mapped and stored to by
// processes that end. And the only descriptor of one file lies in the queue of a socket.
//
// Of the image, each thread deletes a link in /bin and makes it again, and the first takes /etc away and makes another.

#define _GNU_SOURCE
#include <dirent.h>
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
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { PROCESSES = 2, THREADS = 3, ALL = PROCESSES * THREADS, RANKS = 16, SLOTS = 4 * RANKS, BLOCK = 512, BLOCKS = 64 };
enum { MAPS = 6, BRIEF = 3, PAGES = 4, PAGE = 4096, WORDS = BLOCK / 8 };

// What a file must be. A block of generation 0 is zeros.
struct slot {
    int exists, linked, xattr;
    unsigned mode, blocks;
    uint64_t generation[BLOCKS];
};

struct map {
    int file;
    uint64_t *page;             // NULL while it is not mapped
    uint64_t held[PAGES];       // the first word of each page
    uint64_t next;              // when something is to be done with it, in ns
};

// What the processes have in common.
struct shared {
    atomic_int asked, answered[ALL];
    atomic_uint_fast64_t done[ALL];
    atomic_uint_fast64_t stored[ALL];   // what a process that has ended stored last
    char wrong[ALL][256];
} *shared;

static struct thread {
    int number, dir, is_moved, is_far;
    int source, child, child_file, queue[2], is_queued, is_deleted, etc;
    uint64_t child_held, queue_held;
    uint64_t random, generation;
    struct slot slot[SLOTS];
    struct map map[MAPS];
} threads[THREADS];

static struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/churn.sock"};

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t draw(struct thread *t) { return mix(t->random++); }

static uint64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

__attribute__((format(printf, 2, 3))) static int wrong(struct thread *t, const char *format, ...) {
    char text[200];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    snprintf(shared->wrong[t->number], sizeof shared->wrong[0], "d%d/%s", t->number, text);
    return 0;
}

// Half of the slots lie in the thread's directory, a quarter in each of two below it, under the same names; second names in
// another.
static const char *name_of(struct thread *t, int n, const char *suffix, char *name) {
    int is_second = strcmp(suffix, ".l") == 0, is_bus = (n % 4 == 3) != t->is_moved;
    const char *below = n % 2 == 0 ? "" : is_bus ? "bus/" : "sub/";
    if (is_second) sprintf(name, "%s/f%d.l", t->is_far ? "a" : "l", n);
    else sprintf(name, "%sf%d%s", below, n % 4 == 3 ? n - 2 : n, suffix);
    return name;
}

static void fill(uint64_t *words, uint64_t generation) {
    for (int i = 0; i < WORDS; i++) words[i] = generation ? mix(generation * WORDS + (uint64_t)i) : 0;
}

// ------------------------------------------------------------------------------------------------------- what must hold

static int file_is_right(struct thread *t, int n) {
    struct slot *s = &t->slot[n];
    struct stat is, other;
    char name[32], link[32];
    static _Thread_local uint64_t held[BLOCKS * WORDS + 1], right[WORDS];
    name_of(t, n, "", name), name_of(t, n, ".l", link);
    if (!s->exists) {
        if (fstatat(t->dir, name, &is, AT_SYMLINK_NOFOLLOW) == 0) return wrong(t, "%s is there, and was removed", name);
        return 1;
    }
    int fd = openat(t->dir, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return wrong(t, "%s: %s", name, strerror(errno));
    uint32_t xattr = 0;
    ssize_t size = pread(fd, held, sizeof held, 0), xattr_size = fgetxattr(fd, "user.churn", &xattr, sizeof xattr);
    fstat(fd, &is);
    close(fd);
    if (size != (ssize_t)s->blocks * BLOCK || is.st_size != size) return wrong(t, "%s has %zd bytes (%lld), right is %u", name, size, (long long)is.st_size, s->blocks * BLOCK);
    if ((is.st_mode & 07777) != s->mode) return wrong(t, "%s has mode %o, right is %o", name, is.st_mode & 07777, s->mode);
    if (s->xattr ? xattr_size != sizeof xattr || xattr != (uint32_t)s->xattr : xattr_size >= 0) return wrong(t, "%s has attribute %u of %zd bytes, right is %d", name, xattr, xattr_size, s->xattr);
    if ((int)is.st_nlink != 1 + s->linked) return wrong(t, "%s has %d names, right are %d", name, (int)is.st_nlink, 1 + s->linked);
    int there = fstatat(t->dir, link, &other, AT_SYMLINK_NOFOLLOW) == 0;
    if (there != s->linked) return wrong(t, "%s is %s", link, there ? "there, and was removed" : "gone");
    // A restore gives every file another number: two that were asked for before and after one cannot be compared. What differs
    // in truth differs again, since nobody but us changes it.
    if (there && (other.st_ino != is.st_ino || other.st_dev != is.st_dev) && (fstatat(t->dir, name, &is, AT_SYMLINK_NOFOLLOW) < 0 || fstatat(t->dir, link, &other, AT_SYMLINK_NOFOLLOW) < 0))
        return wrong(t, "%s or %s is gone", name, link);
    if (there && (other.st_ino != is.st_ino || other.st_dev != is.st_dev))
        return wrong(t, "%s and %s are two files: %llu of %llx and %llu of %llx, names %d and %d", name, link, (unsigned long long)is.st_ino, (unsigned long long)is.st_dev, (unsigned long long)other.st_ino, (unsigned long long)other.st_dev, (int)is.st_nlink, (int)other.st_nlink);
    for (unsigned b = 0; b < s->blocks; b++) {
        fill(right, s->generation[b]);
        if (memcmp(right, held + b * WORDS, BLOCK) != 0)
            return wrong(t, "%s: block %u begins with %016" PRIx64 ", right is %016" PRIx64 " of write %" PRIu64 " (now %" PRIu64 ")", name, b, held[b * WORDS], right[0], s->generation[b], t->generation);
    }
    return 1;
}

static int map_is_right(struct thread *t, int n) {
    struct map *m = &t->map[n];
    for (int p = 0; p < PAGES; p++) {
        uint64_t word;
        if (pread(m->file, &word, sizeof word, p * PAGE) != sizeof word) return wrong(t, "m%d: %s", n, strerror(errno));
        if (word != m->held[p]) return wrong(t, "m%d: page %d holds %" PRIu64 ", right is %" PRIu64, n, p, word, m->held[p]);
        if (m->page && m->page[p * PAGE / 8] != m->held[p]) return wrong(t, "m%d: the mapping holds another page %d than memory knows", n, p);
    }
    return 1;
}

// Step by step: the image's two files, the directory, another directory, a file of ours in it; then from its removal on.
enum { ETC = 4 };
static const char *const etc[ETC] = {"/etc/passwd", "/etc/group", "/etc", "/etc/ours"};

static int etc_has(struct thread *t, int n) {
    switch (n) {
    case 0: return t->etc < 1;
    case 1: return t->etc < 2;
    case 2: return t->etc != 3;
    default: return t->etc == 5;
    }
}

static const char *applet(struct thread *t, char *name) {
    static const char *const all[ALL] = {"vi", "awk", "bc", "dc", "wget", "xxd"};
    sprintf(name, "/bin/%s", all[t->number]);
    return name;
}

static int others_are_right(struct thread *t) {
    struct stat is;
    char name[32];
    uint64_t word;
    if (!t->child && (pread(t->child_file, &word, sizeof word, 0) != sizeof word || word != t->child_held))
        return wrong(t, "c holds %" PRIu64 ", right is %" PRIu64, word, t->child_held);
    int fd = openat(t->dir, "q", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || pread(fd, &word, sizeof word, 0) != sizeof word || word != t->queue_held)
        return wrong(t, "q holds %" PRIu64 ", right is %" PRIu64, word, t->queue_held);
    close(fd);
    if ((lstat(applet(t, name), &is) < 0) != t->is_deleted) return wrong(t, "%s is %s", name, t->is_deleted ? "there, and was removed" : "gone");
    if (t->number) return 1;
    for (int n = 0; n < ETC; n++)
        if (etc_has(t, n) != (access(etc[n], F_OK) == 0)) return wrong(t, "%s is %s", etc[n], etc_has(t, n) ? "gone" : "there, and was removed");
    return 1;
}

// That nothing is there which nobody made.
static int names_are_right(struct thread *t, const char *below, int step, int rest) {
    int expected = 0, found = 0, fd = openat(t->dir, below, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return wrong(t, "%s: %s", below, strerror(errno));
    for (int n = rest; n < SLOTS; n += step) expected += t->slot[n].exists && (step > 1 || t->slot[n].linked);
    DIR *list = fdopendir(fd);
    for (struct dirent *entry; (entry = readdir(list));) found += entry->d_name[0] == 'f';
    closedir(list);
    return found == expected ? 1 : wrong(t, "%s holds %d files, right are %d", below, found, expected);
}

static int all_is_right(struct thread *t) {
    int right = 1;
    for (int n = 0; right && n < SLOTS; n++) right = file_is_right(t, n);
    for (int n = 0; right && n < MAPS; n++) right = map_is_right(t, n);
    return right && others_are_right(t) && names_are_right(t, ".", 2, 0) && names_are_right(t, t->is_moved ? "bus" : "sub", 4, 1) &&
        names_are_right(t, t->is_moved ? "sub" : "bus", 4, 3) && names_are_right(t, t->is_far ? "a" : "l", 1, 0);
}

// ------------------------------------------------------------------------------------------------------- what changes it

static void die(struct thread *t, const char *what) {
    wrong(t, "%s: %s", what, strerror(errno));
    for (;;) pause();
}

static void must(struct thread *t, long result, const char *what) {
    if (result < 0) die(t, what);
}

static void write_blocks(struct thread *t, int fd, unsigned from, unsigned count, struct slot *s) {
    static _Thread_local uint64_t words[BLOCKS * WORDS] __attribute__((aligned(PAGE)));
    for (unsigned b = 0; b < count; b++) fill(words + b * WORDS, ++t->generation);
    if (pwrite(fd, words, count * BLOCK, from * BLOCK) != (ssize_t)count * BLOCK) die(t, "pwrite");
    for (unsigned b = 0; b < count; b++) s->generation[from + b] = t->generation - count + 1 + b;
    if (from + count > s->blocks) s->blocks = from + count;
}

static int open_slot(struct thread *t, int n, int flags) {
    char name[32];
    int fd = openat(t->dir, name_of(t, n, "", name), flags | O_CLOEXEC, 0600);
    must(t, fd, "open");
    return fd;
}

static void some_blocks(struct thread *t, unsigned *from, unsigned *count) {
    *from = (unsigned)(draw(t) % BLOCKS);
    *count = 1 + (unsigned)(draw(t) % (BLOCKS - *from));
}

static void do_write(struct thread *t, int n) {
    unsigned from, count;
    some_blocks(t, &from, &count);
    int fd = open_slot(t, n, O_WRONLY);
    write_blocks(t, fd, from, count, &t->slot[n]);
    close(fd);
}

static void do_direct(struct thread *t, int n) {
    int fd = open_slot(t, n, O_WRONLY | O_DIRECT);
    write_blocks(t, fd, 8 * (unsigned)(draw(t) % 8), 8, &t->slot[n]);
    close(fd);
}

// A rewrite of one block that puts the old times back: only the inode's change time tells.
static void do_secret(struct thread *t, int n) {
    struct slot *s = &t->slot[n];
    struct stat before;
    if (s->blocks == 0) return;
    int fd = open_slot(t, n, O_WRONLY);
    must(t, fstat(fd, &before), "fstat");
    write_blocks(t, fd, (unsigned)(draw(t) % s->blocks), 1, s);
    struct timespec times[2] = {before.st_atim, before.st_mtim};
    must(t, futimens(fd, times), "futimens");
    close(fd);
}

static void record(struct thread *t, struct slot *s, unsigned from, unsigned count, uint64_t first) {
    for (unsigned b = 0; b < count; b++) s->generation[from + b] = first + b;
    if (from + count > s->blocks) s->blocks = from + count;
    t->generation = first + count - 1;
}

// What will be copied to a file lies in another, at the same place.
static uint64_t source(struct thread *t, unsigned from, unsigned count) {
    struct slot unused = {0};
    uint64_t first = t->generation + 1;
    write_blocks(t, t->source, from, count, &unused);
    return first;
}

static void do_splice(struct thread *t, int n) {
    unsigned from, count;
    int pipes[2], fd = open_slot(t, n, O_WRONLY);
    some_blocks(t, &from, &count);
    uint64_t first = source(t, from, count);
    loff_t in = from * BLOCK, out = in;
    must(t, pipe2(pipes, O_CLOEXEC), "pipe");
    for (ssize_t left = count * BLOCK, some; left > 0; left -= some) {
        some = splice(t->source, &in, pipes[1], NULL, (size_t)left, 0);
        must(t, some, "splice from a file");
        for (ssize_t rest = some, one; rest > 0; rest -= one) must(t, one = splice(pipes[0], NULL, fd, &out, (size_t)rest, 0), "splice to a file");
    }
    record(t, &t->slot[n], from, count, first);
    close(pipes[0]), close(pipes[1]), close(fd);
}

static void do_copy(struct thread *t, int n) {
    unsigned from, count;
    int fd = open_slot(t, n, O_WRONLY), is_sent = draw(t) % 2 == 0;
    some_blocks(t, &from, &count);
    uint64_t first = source(t, from, count);
    loff_t in = from * BLOCK, out = in;
    must(t, lseek(fd, out, SEEK_SET), "lseek");
    for (ssize_t left = count * BLOCK, some; left > 0; left -= some) {
        some = is_sent ? sendfile(fd, t->source, &in, (size_t)left) : copy_file_range(t->source, &in, fd, &out, (size_t)left, 0);
        if (some <= 0) die(t, is_sent ? "sendfile" : "copy_file_range");
    }
    record(t, &t->slot[n], from, count, first);
    close(fd);
}

// Another process of the container writes.
static void do_delegate(struct thread *t, int n) {
    unsigned from, count;
    some_blocks(t, &from, &count);
    pid_t child = fork();
    must(t, child, "fork");
    if (child == 0) {
        int fd = open_slot(t, n, O_WRONLY);
        write_blocks(t, fd, from, count, &t->slot[n]);
        _exit(0);
    }
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) continue;
    record(t, &t->slot[n], from, count, t->generation + 1);
}

// Zeros, with and without a hole.
static void do_zeros(struct thread *t, int n) {
    struct slot *s = &t->slot[n];
    unsigned from, count;
    some_blocks(t, &from, &count);
    int fd = open_slot(t, n, O_WRONLY), how = draw(t) % 2 ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    must(t, fallocate(fd, how | FALLOC_FL_KEEP_SIZE, from * BLOCK, count * BLOCK), "fallocate");
    for (unsigned b = from; b < from + count; b++) s->generation[b] = 0;
    close(fd);
}

// Pages are taken out, or put in.
static void do_shift(struct thread *t, int n) {
    struct slot *s = &t->slot[n];
    enum { STEP = PAGE / BLOCK };
    if (s->blocks <= STEP) return;
    unsigned at = (unsigned)(draw(t) % ((s->blocks - 1) / STEP)) * STEP, after = s->blocks - at;
    int fd = open_slot(t, n, O_RDWR), is_out = draw(t) % 2 || s->blocks + STEP > BLOCKS;
    // Who cannot do it changes nothing.
    if (fallocate(fd, is_out ? FALLOC_FL_COLLAPSE_RANGE : FALLOC_FL_INSERT_RANGE, at * BLOCK, PAGE) < 0) {
        if (errno != EOPNOTSUPP) die(t, "fallocate a range");
    } else if (is_out) {
        memmove(s->generation + at, s->generation + at + STEP, (after - STEP) * sizeof *s->generation);
        memset(s->generation + s->blocks - STEP, 0, STEP * sizeof *s->generation);
        s->blocks -= STEP;
    } else {
        memmove(s->generation + at + STEP, s->generation + at, after * sizeof *s->generation);
        memset(s->generation + at, 0, STEP * sizeof *s->generation);
        s->blocks += STEP;
    }
    close(fd);
}

static void do_truncate(struct thread *t, int n) {
    struct slot *s = &t->slot[n];
    unsigned blocks = (unsigned)(draw(t) % 3 ? draw(t) % (s->blocks + 1) : draw(t) % BLOCKS);
    int fd = open_slot(t, n, O_WRONLY);
    must(t, ftruncate(fd, blocks * BLOCK), "ftruncate");
    for (unsigned b = blocks; b < BLOCKS; b++) s->generation[b] = 0;
    s->blocks = blocks;
    close(fd);
}

static void do_map(struct thread *t, int n) {
    struct slot *s = &t->slot[n];
    if (s->blocks == 0) return;
    unsigned b = (unsigned)(draw(t) % s->blocks);
    int fd = open_slot(t, n, O_RDWR);
    uint64_t *page = mmap(NULL, BLOCKS * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED) die(t, "mmap");
    fill(page + b * WORDS, ++t->generation);
    s->generation[b] = t->generation;
    must(t, munmap(page, BLOCKS * BLOCK), "munmap");
}

static void do_chmod(struct thread *t, int n) {
    char name[32];
    unsigned mode = 0600 | (unsigned)(draw(t) % 0200);
    must(t, fchmodat(t->dir, name_of(t, n, "", name), mode, 0), "chmod");
    t->slot[n].mode = mode;
}

static void do_xattr(struct thread *t, int n) {
    uint32_t value = 1 + (uint32_t)(draw(t) % 1000000);
    int fd = open_slot(t, n, O_RDONLY);
    must(t, fsetxattr(fd, "user.churn", &value, sizeof value, 0), "setxattr");
    t->slot[n].xattr = (int)value;
    close(fd);
}

static void do_link(struct thread *t, int n) {
    struct slot *s = &t->slot[n];
    char name[32], link[32];
    name_of(t, n, "", name), name_of(t, n, ".l", link);
    if (!s->linked) {
        must(t, linkat(t->dir, name, t->dir, link, 0), "link");
        s->linked = 1;
    } else if (draw(t) % 2) {
        must(t, unlinkat(t->dir, link, 0), "unlink the link");
        s->linked = 0;
    } else {
        // The first name goes, the second takes its place.
        must(t, unlinkat(t->dir, name, 0), "unlink the first of two");
        s->exists = 0;
        must(t, renameat(t->dir, link, t->dir, name), "rename the second of two");
        s->exists = 1, s->linked = 0;
    }
}

static void do_unlink(struct thread *t, int n) {
    struct slot *s = &t->slot[n];
    char name[32];
    if (s->linked) must(t, unlinkat(t->dir, name_of(t, n, ".l", name), 0), "unlink"), s->linked = 0;
    must(t, unlinkat(t->dir, name_of(t, n, "", name), 0), "unlink");
    memset(s, 0, sizeof *s);
}

static void do_create(struct thread *t, int n) {
    struct slot *s = &t->slot[n];
    unsigned from, count;
    int fd = open_slot(t, n, O_WRONLY | O_CREAT | O_EXCL);
    s->exists = 1, s->mode = 0600;
    some_blocks(t, &from, &count);
    write_blocks(t, fd, draw(t) % 2 ? 0 : from, count, s);
    close(fd);
}

// A file without a name gets one. Restored without one, it cannot: CRIU makes such a file by taking its name away.
static void do_nameless(struct thread *t, int n) {
    struct slot *s = &t->slot[n], new = {.exists = 1, .mode = 0600};
    char name[32], link[64];
    if (s->linked) return;
    must(t, unlinkat(t->dir, name_of(t, n, "", name), 0), "unlink");
    memset(s, 0, sizeof *s);
    int fd = openat(t->dir, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    must(t, fd, "O_TMPFILE");
    write_blocks(t, fd, 0, 1 + (unsigned)(draw(t) % BLOCKS), &new);
    sprintf(link, "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, link, t->dir, name, AT_SYMLINK_FOLLOW) == 0) *s = new;
    else if (errno != ENOENT) die(t, "link a file without a name");
    close(fd);
}

// Over another of the same directory, whose content goes.
static void do_rename(struct thread *t, int n) {
    int to = (int)(draw(t) % (SLOTS / 4)) * 4 + n % 4;
    char from[32], over[32];
    if (to == n || t->slot[n].linked || t->slot[to].linked || !file_is_right(t, to)) return;
    must(t, renameat(t->dir, name_of(t, n, "", from), t->dir, name_of(t, to, "", over)), "rename");
    t->slot[to] = t->slot[n];
    memset(&t->slot[n], 0, sizeof t->slot[n]);
}

// As careful programs save: a new file, synced or not, renamed over the old one.
static void do_replace(struct thread *t, int n) {
    struct slot *s = &t->slot[n], new = {.exists = 1, .mode = 0600};
    char name[32];
    if (s->linked) return;
    int fd = openat(t->dir, name_of(t, n % 4, ".new", name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(t, fd, "create");
    // As long as the old one, which only the inode's number may tell then.
    write_blocks(t, fd, 0, s->blocks ? s->blocks : 1, &new);
    char old[32];
    struct stat before;
    if (draw(t) % 2) {
        must(t, fstatat(t->dir, name_of(t, n, "", old), &before, 0), "stat");
        must(t, futimens(fd, (struct timespec[]){before.st_atim, before.st_mtim}), "futimens");
    }
    if (draw(t) % 64 == 0) must(t, fsync(fd), "fsync");
    close(fd);
    must(t, renameat(t->dir, name, t->dir, name_of(t, n, "", old)), "rename over");
    *s = new;
}

static void move_directories(struct thread *t) {
    must(t, renameat2(t->dir, "bus", t->dir, "sub", RENAME_EXCHANGE), "exchange the directories");
    t->is_moved = !t->is_moved;
    if (draw(t) % 2) return;
    must(t, renameat(t->dir, t->is_far ? "a" : "l", t->dir, t->is_far ? "l" : "a"), "rename the directory");
    t->is_far = !t->is_far;
}

// A process maps a file, stores to it for some seconds, and ends.
static void store_and_end(struct thread *t) {
    uint64_t end = now() + 1000000 * (2000 + draw(t) % 3000), word;
    volatile uint64_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, t->child_file, 0);
    if (page == MAP_FAILED) die(t, "mmap");
    for (; now() < end; usleep(500)) {
        if (pread(t->child_file, &word, sizeof word, 0) != sizeof word || word != t->child_held || *page != word) {
            wrong(t, "c holds %" PRIu64 ", right is %" PRIu64, word, t->child_held);
            break;
        }
        *page = ++t->child_held;
    }
    shared->stored[t->number] = t->child_held;
    _exit(0);
}

static void do_child(struct thread *t) {
    if (t->child && waitpid(t->child, NULL, WNOHANG) == 0) return;
    if (t->child) {
        t->child_held = shared->stored[t->number], t->child = 0;
        return;
    }
    t->child = fork();
    must(t, t->child, "fork");
    if (t->child == 0) store_and_end(t);
}

// Written to, sent to ourselves and closed; received, and written to again.
static void do_queue(struct thread *t) {
    char room[CMSG_SPACE(sizeof(int))] = {0}, byte = 0;
    struct iovec one = {&byte, 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    int fd;
    if (t->is_queued) {
        if (recvmsg(t->queue[1], &message, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&message)) die(t, "receive a descriptor");
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    } else must(t, fd = openat(t->dir, "q", O_WRONLY | O_CLOEXEC), "open q");
    uint64_t word = ++t->generation;
    if (pwrite(fd, &word, sizeof word, 0) != sizeof word) die(t, "write q");
    t->queue_held = word;
    if (!t->is_queued) {
        struct cmsghdr *has = CMSG_FIRSTHDR(&message);
        has->cmsg_level = SOL_SOCKET, has->cmsg_type = SCM_RIGHTS, has->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(has), &fd, sizeof fd);
        if (sendmsg(t->queue[0], &message, 0) != 1) die(t, "send a descriptor");
    }
    t->is_queued = !t->is_queued;
    close(fd);
}

static void do_image(struct thread *t) {
    char name[32];
    applet(t, name);
    must(t, t->is_deleted ? symlink("busybox", name) : unlink(name), name);
    t->is_deleted = !t->is_deleted;
    if (t->number) return;
    switch (t->etc) {
    case 0: must(t, unlink(etc[0]), etc[0]), t->etc = 1; return;
    case 1: must(t, unlink(etc[1]), etc[1]), t->etc = 2; return;
    case 2: must(t, rmdir("/etc"), "rmdir"), t->etc = 3; return;
    case 3: must(t, mkdir("/etc", 0755), "mkdir"), t->etc = 4; return;
    case 4: must(t, mknod(etc[3], S_IFREG | 0600, 0), etc[3]), t->etc = 5; return;
    default: must(t, unlink(etc[3]), etc[3]), t->etc = 2;
    }
}

// A layer cannot hold it, so nobody can say whether it is there after a restore.
static void do_socket(struct thread *t) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    sprintf(at.sun_path, "/proc/self/fd/%d/k", t->dir);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 && errno != EADDRINUSE) die(t, "bind");
    close(fd);
    if (unlinkat(t->dir, "k", 0) < 0 && errno != ENOENT) die(t, "unlink a socket");
}

static void store(struct thread *t, int n) {
    struct map *m = &t->map[n];
    int p = (int)(draw(t) % PAGES);
    if (m->page[p * PAGE / 8] != m->held[p] || !map_is_right(t, n)) {
        if (!shared->wrong[t->number][0]) wrong(t, "m%d: the mapping of page %d is not what memory knows", n, p);
        return;
    }
    uint64_t value = ++t->generation;
    ((volatile uint64_t *)m->page)[p * PAGE / 8] = value;
    m->held[p] = value;
}

static void map_again(struct thread *t, int n) {
    struct map *m = &t->map[n];
    m->page = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, m->file, 0);
    if (m->page == MAP_FAILED) die(t, "mmap");
}

// Mapped and stored to, and unmapped, for so many milliseconds each, or a few more.
static void take_turns(struct thread *t, struct map *m, int n, uint64_t least, uint64_t more) {
    if (m->page) store(t, n);
    if (now() < m->next) return;
    if (m->page) must(t, munmap(m->page, PAGES * PAGE), "munmap"), m->page = NULL;
    else map_again(t, n);
    m->next = now() + 1000000 * (least + draw(t) % more);
}

static void do_maps(struct thread *t) {
    struct map *slow = &t->map[1];
    store(t, 0);
    if (now() >= slow->next) store(t, 1), slow->next = now() + 1000000 * (500 + draw(t) % 4000);
    take_turns(t, &t->map[2], 2, 2000, 4000);
    for (int n = BRIEF; n < MAPS; n++) take_turns(t, &t->map[n], n, 20, 600);
}

static void (*const changes[])(struct thread *, int) = {
    do_write, do_direct, do_secret, do_truncate, do_map, do_chmod, do_xattr, do_link, do_unlink, do_rename, do_replace,
    do_splice, do_copy, do_delegate, do_zeros, do_shift, do_nameless,
};

static void change(struct thread *t) {
    int rank = __builtin_ctzll(draw(t) | 1ull << (RANKS - 1));
    int n = 4 * rank + (int)(draw(t) % 4);
    if (!file_is_right(t, n)) return;
    if (!t->slot[n].exists) do_create(t, n);
    else changes[draw(t) % (sizeof changes / sizeof *changes)](t, n);
    if (draw(t) % 1024 == 0) move_directories(t);
    if (draw(t) % 512 == 0) do_image(t);
    if (draw(t) % 256 == 0) do_queue(t);
    if (draw(t) % 64 == 0) do_child(t);
    if (draw(t) % 4096 == 0) do_socket(t);
}

static void *run(void *mine) {
    struct thread *t = mine;
    for (uint64_t n = 1;; n++) {
        int asked = shared->asked;
        if (shared->answered[t->number] != asked) {
            if (!shared->wrong[t->number][0]) all_is_right(t);
            shared->answered[t->number] = asked;
        }
        if (shared->wrong[t->number][0]) { usleep(1000); continue; }
        do_maps(t);
        change(t);
        shared->done[t->number] = n;
        if (n % 8 == 0) usleep(300);
    }
    return NULL;
}

// ------------------------------------------------------------------------------------------------------------------ begin

static void prepare(struct thread *t, int number, const char *path) {
    char name[4096];
    t->number = number;
    if (getrandom(&t->random, sizeof t->random, 0) != sizeof t->random) err(1, "getrandom");
    snprintf(name, sizeof name, "%s/d%d", path, number);
    if (mkdir(name, 0755) < 0) err(1, "mkdir %s", name);
    t->dir = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (t->dir < 0) err(1, "open %s", name);
    for (int n = 0; n < 3; n++)
        if (mkdirat(t->dir, ((const char *[]){"sub", "bus", "l"})[n], 0755) < 0) err(1, "mkdir below %s", name);
    t->source = openat(t->dir, "s", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    t->child_file = openat(t->dir, "c", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    int queued = openat(t->dir, "q", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (t->source < 0 || ftruncate(t->child_file, PAGE) < 0 || ftruncate(queued, sizeof(uint64_t)) < 0) err(1, "files in %s", name);
    close(queued);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, t->queue) < 0) err(1, "socketpair");
    for (int n = 0; n < MAPS; n++) {
        snprintf(name, sizeof name, "m%d", n);
        t->map[n].file = openat(t->dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (t->map[n].file < 0 || ftruncate(t->map[n].file, PAGES * PAGE) < 0) err(1, "make %s", name);
        map_again(t, n);
    }
    for (int n = 0; n < SLOTS; n++) do_create(t, n);
}

static void begin(int process, const char *path) {
    for (int n = 0; n < THREADS; n++) {
        pthread_t thread;
        prepare(&threads[n], process * THREADS + n, path);
        if (pthread_create(&thread, NULL, run, &threads[n]) != 0) errx(1, "no thread");
    }
}

static void answer(int client) {
    int asked = ++shared->asked;
    for (int waited = 0; waited < 20000; waited += 5) {
        int missing = 0;
        for (int n = 0; n < ALL; n++) missing += shared->answered[n] != asked;
        if (!missing) break;
        usleep(5000);
    }
    uint64_t done = 0;
    int bad = 0;
    for (int n = 0; n < ALL; n++) {
        done += shared->done[n];
        if (shared->wrong[n][0]) dprintf(client, "mismatch %s\n", shared->wrong[n]);
        else if (shared->answered[n] != asked) dprintf(client, "mismatch d%d does not answer\n", n);
        else continue;
        bad = 1;
    }
    if (!bad) dprintf(client, "ok %" PRIu64 " changes\n", done);
}

static int ask(void) {
    char text[4096];
    ssize_t size = 0, n;
    int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    for (int tries = 0; connect(server, (struct sockaddr *)&address, sizeof address) < 0; usleep(50000))
        if (++tries == 200) err(1, "connect %s", address.sun_path);
    while ((n = read(server, text + size, sizeof text - (size_t)size)) > 0) size += n;
    if (size == 0) errx(1, "no answer");
    fwrite(text, 1, (size_t)size, stdout);
    return strncmp(text, "ok ", 3) == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc != 2) errx(2, "churn DIR | churn ask");
    if (strcmp(argv[1], "ask") == 0) return ask();
    if (mkdir(argv[1], 0755) < 0) err(1, "mkdir %s", argv[1]);
    umask(0);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) err(1, "no memory");
    for (int process = 1; process < PROCESSES; process++) {
        pid_t child = fork();
        if (child < 0) err(1, "fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            begin(process, argv[1]);
            for (;;) pause();
        }
    }
    begin(0, argv[1]);
    unlink(address.sun_path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 8) < 0) err(1, "%s", address.sun_path);
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) continue;
        answer(client);
        close(client);
    }
}
