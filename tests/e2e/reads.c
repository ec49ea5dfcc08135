/* Reads as a network file system may answer them, for one process: preloaded, told by reads_configure() what to do.
 *
 * The program: "KIND:SIZE:COUNT" for files whose path ends in .seg under a folder /segments/, or "" for none.
 *   zeros:N:K   the last N bytes are read as zeros, K times
 *   hole:N:K    N bytes in the middle of the last 4 N are read as zeros, K times
 *   stale:N:K   the file seems N bytes shorter, to stat and to read, K times
 *   error:E:K   every third read fails with errno E, K times
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NONE, ZEROS, HOLE, STALE, ERROR };
static int kind;
static long size, count, calls, done;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

void reads_configure(const char *text) {
    char name[16] = "";
    kind = NONE;
    calls = done = 0;
    if (sscanf(text, "%15[a-z]:%ld:%ld", name, &size, &count) != 3) return;
    kind = !strcmp(name, "zeros") ? ZEROS : !strcmp(name, "hole") ? HOLE : !strcmp(name, "stale") ? STALE : ERROR;
}

long reads_done(void) { return done; }

static int concerned(int fd) {
    char link[64], path[PATH_MAX];
    if (kind == NONE) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length < 5) return 0;
    path[length] = 0;
    return !strcmp(path + length - 4, ".seg") && strstr(path, "/segments/") != NULL;
}

/* One more time? */
static int strikes(int every) {
    pthread_mutex_lock(&guard);
    int yes = done < count && ++calls % every == 0;
    if (yes) done++;
    pthread_mutex_unlock(&guard);
    return yes;
}

static long true_size(int fd) {
    struct stat found;
    return syscall(SYS_fstat, fd, &found) ? 0 : (long)found.st_size;
}

static void wipe(char *data, long at, long got, long from, long to) {
    if (from < at) from = at;
    if (to > at + got) to = at + got;
    if (from < to) memset(data + (from - at), 0, (size_t)(to - from));
}

static ssize_t get(int fd, void *data, size_t wanted, off_t at, int positioned) {
    int ours = concerned(fd);
    if (ours && kind == ERROR && strikes(3)) {
        errno = (int)size;
        return -1;
    }
    long end = ours ? true_size(fd) : 0, from = positioned ? at : ours ? lseek(fd, 0, SEEK_CUR) : 0;
    long reached = from + (long)wanted;
    if (ours && kind == STALE && reached > end - size && strikes(1)) {
        long left = end - size - from;
        wanted = left > 0 ? ((long)wanted < left ? wanted : (size_t)left) : 0;
    }
    ssize_t got = positioned ? syscall(SYS_pread64, fd, data, wanted, at) : syscall(SYS_read, fd, data, wanted);
    if (!ours || got <= 0) return got;
    if (kind == ZEROS && from + got > end - size && strikes(1)) wipe(data, from, got, end - size, end);
    if (kind == HOLE && from + got > end - 3 * size && strikes(1)) wipe(data, from, got, end - 3 * size, end - 2 * size);
    return got;
}

ssize_t read(int fd, void *data, size_t wanted) { return get(fd, data, wanted, 0, 0); }
ssize_t pread(int fd, void *data, size_t wanted, off_t at) { return get(fd, data, wanted, at, 1); }
ssize_t pread64(int fd, void *data, size_t wanted, off64_t at) { return get(fd, data, wanted, at, 1); }

static void shorten(long long *length) {
    if (strikes(1)) *length = *length > size + 1 ? *length - size : *length;
}

int fstat(int fd, struct stat *found) {
    int result = (int)syscall(SYS_fstat, fd, found);
    if (!result && kind == STALE && concerned(fd)) {
        long long length = found->st_size;
        shorten(&length);
        found->st_size = length;
    }
    return result;
}

int fstat64(int fd, struct stat64 *found) { return fstat(fd, (struct stat *)found); }

static int is_segment(const char *path) {
    size_t length = strlen(path);
    return kind == STALE && length > 4 && !strcmp(path + length - 4, ".seg");
}

int fstatat(int dir, const char *path, struct stat *found, int flags) {
    int result = (int)syscall(SYS_newfstatat, dir, path, found, flags);
    if (!result && is_segment(path)) {
        long long length = found->st_size;
        shorten(&length);
        found->st_size = length;
    }
    return result;
}

int fstatat64(int dir, const char *path, struct stat64 *found, int flags) {
    return fstatat(dir, path, (struct stat *)found, flags);
}
int stat(const char *path, struct stat *found) { return fstatat(AT_FDCWD, path, found, 0); }
int stat64(const char *path, struct stat64 *found) { return fstatat(AT_FDCWD, path, (struct stat *)found, 0); }
int lstat(const char *path, struct stat *found) { return fstatat(AT_FDCWD, path, found, AT_SYMLINK_NOFOLLOW); }
int lstat64(const char *path, struct stat64 *found) {
    return fstatat(AT_FDCWD, path, (struct stat *)found, AT_SYMLINK_NOFOLLOW);
}
