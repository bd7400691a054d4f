// cost FILE COMMAND...    runs COMMAND and writes what it cost to FILE: peak memory in KiB, bytes written
//
// Both count what COMMAND's own children needed, as far as it waited for them. A program as small as this one must start
// it: the kernel counts the memory of whoever forked as if it had been the child's.

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 3) errx(2, "cost FILE COMMAND...");
    pid_t child = fork();
    if (child < 0) err(1, "fork");
    if (child == 0) {
        execvp(argv[2], argv + 2);
        err(127, "%s", argv[2]);
    }
    int status;
    struct rusage usage;
    if (wait4(child, &status, 0, &usage) != child) err(1, "wait");
    FILE *io = fopen("/proc/self/io", "re"), *out = fopen(argv[1], "we");
    if (!io || !out) err(1, "%s", argv[1]);
    // What was taken back before it came to the disk counts: whether it comes there is a matter of luck.
    unsigned long long written = 0;
    for (char line[128]; fgets(line, sizeof line, io);) sscanf(line, "write_bytes: %llu", &written);
    fprintf(out, "%ld %llu\n", usage.ru_maxrss, written);
    if (fclose(out) != 0) err(1, "%s", argv[1]);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
