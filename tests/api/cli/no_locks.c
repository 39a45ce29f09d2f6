/* A disk without locks and sync, below $NO_LOCKS_BELOW: flock answers ENOLCK, syncing ENOTSUP. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_below(int fd) {
    char link[64], path[4096];
    const char *root = getenv("NO_LOCKS_BELOW");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    return root && length >= (ssize_t)strlen(root) && strncmp(path, root, strlen(root)) == 0;
}

#define OR_REFUSE(name, code)                                \
    if (is_below(fd)) {                                      \
        errno = code;                                        \
        return -1;                                           \
    }                                                        \
    int (*real)(int, ...) = (int (*)(int, ...))dlsym(RTLD_NEXT, name)

int flock(int fd, int how) { OR_REFUSE("flock", ENOLCK); return real(fd, how); }
int fsync(int fd) { OR_REFUSE("fsync", ENOTSUP); return real(fd); }
int fdatasync(int fd) { OR_REFUSE("fdatasync", ENOTSUP); return real(fd); }
