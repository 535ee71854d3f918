/* Makes a disk full at chosen writes of a run, by LD_PRELOAD: FULL_AT="<step>:<begin of a file's name>:<n>,..." names the n-th write to such a file
   in the save of a step. That write, and no other, fails with ENOSPC. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int written[64];

static int is_full(int file) {
    const char *points = getenv("FULL_AT");
    char link[64], path[4096];
    int step, number, place = 0;
    char wanted[256];
    if (!points) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    char *aside = strstr(path, "/.tmp-"), *name = strrchr(path, '/') + 1;
    if (!aside || sscanf(aside, "/.tmp-%d-", &step) != 1) return 0;
    for (const char *point = points; point && place < 64; place++) {
        int at;
        if (sscanf(point, "%d:%255[^:]:%d", &at, wanted, &number) == 3 && at == step && !strncmp(name, wanted, strlen(wanted)))
            if (++written[place] == number) { errno = ENOSPC; return 1; }
        point = strchr(point, ',');
        if (point) point++;
    }
    return 0;
}

ssize_t write(int file, const void *data, size_t size) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "write");
    return is_full(file) ? -1 : next(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    static ssize_t (*next)(int, const struct iovec *, int);
    if (!next) next = dlsym(RTLD_NEXT, "writev");
    return is_full(file) ? -1 : next(file, parts, count);
}
