// spawn MS    begins a program 100 times a second or so, by vfork; its child takes MS milliseconds until it does
// spawn ever  the child never begins one
//
// How many programs have ended is in /var/lib/spawn, ten digits and a newline. A parent that waits for its child to begin a
// program is stopped by nobody: a checkpoint comes in between, or says why there is none.

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void take(long ms) {
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    while (nanosleep(&time, &time)) {}
}

int main(int argc, char **argv) {
    if (argc != 2) errx(2, "usage: spawn MS|ever|end");
    if (!strcmp(argv[1], "end")) return 0;
    int is_for_ever = !strcmp(argv[1], "ever");
    long ms = atol(argv[1]);
    int file = open("/var/lib/spawn", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) err(1, "/var/lib/spawn");
    char text[16];
    for (unsigned count = 0;; count++) {
        if (pwrite(file, text, snprintf(text, sizeof text, "%010u\n", count), 0) != 11) err(1, "write");
        take(7);
        pid_t child = vfork();
        if (child < 0) err(1, "vfork");
        if (!child) {
            take(is_for_ever ? 1000000000 : ms);
            execl("/bin/spawn", "spawn", "end", (char *)NULL);
            _exit(1);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status) errx(1, "the child: %d", status);
    }
}
