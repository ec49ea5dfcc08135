/* Faults on demand for one process: preloaded before libc, told by shim_configure() what goes wrong, and where.
 *
 * A program is a list of settings parted by ';':
 *   root=/path            only files under this folder are concerned (default: none are)
 *   log=/path             append a record of every change under root to this file
 *   quota=N               the N-th byte written under root is the last one; then ENOSPC
 *   clock=shift:SECONDS   wall clock is off by so much; clock=freeze: it stands still
 *   rule=op:NAME,...      with match=TEXT (in the path), nth=N (from the N-th call on), count=N (so often; 0: for ever),
 *                         and one of errno=N, short=N (that many bytes at most), hang=/path (until that file is there),
 *                         always=1 (do nothing, say it worked)
 *
 * Log records, little-endian: u32 size of what follows; u8 op; u64 inode; i64 offset; u32 lengths of path, path2, data;
 * these three. Every operation and its record are one step: threads are kept out in between.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { LOG_WRITE = 1, LOG_SYNC, LOG_SYNC_FAILED, LOG_CREATE, LOG_RENAME, LOG_LINK, LOG_UNLINK, LOG_MKDIR, LOG_RMDIR,
       LOG_TRUNCATE, LOG_MARK, LOG_SYMLINK };

enum { MAX_RULES = 16 };

typedef struct {
    char op[24], match[256], hang[512];
    long nth, count, error, shortened, always, seen, done;
} rule;

static rule rules[MAX_RULES];
static int rule_count;
static char root[PATH_MAX];
static size_t root_length;
static long quota = -1;
static int log_fd = -1;
static int clock_mode; /* 1: shift, 2: freeze */
static long clock_shift;
static struct timespec frozen;
static pthread_mutex_t guard = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static volatile long hung;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static ssize_t raw_write(int fd, const void *data, size_t size) { return syscall(SYS_write, fd, data, size); }

/* -- which files are concerned -------------------------------------------------------------------------------------*/

static int concerned(const char *path) {
    return root_length && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (size < 0) size = 0;
    path[size] = 0;
    return size > 0;
}

static int fd_concerned(int fd, char *path) {
    return root_length && fd != log_fd && path_of(fd, path) && concerned(path);
}

static void resolve(int dir, const char *given, char *path) {
    char base[PATH_MAX];
    if (given[0] == '/') {
        snprintf(path, PATH_MAX, "%s", given);
        return;
    }
    if (dir == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) base[0] = 0;
    } else {
        path_of(dir, base);
    }
    if (snprintf(path, PATH_MAX, "%s/%s", base, given) >= PATH_MAX) path[0] = 0;
}

/* -- the record ----------------------------------------------------------------------------------------------------*/

static void note(uint8_t op, uint64_t inode, int64_t offset, const char *path, const char *path2, const void *data,
                 uint32_t size) {
    if (log_fd < 0) return;
    uint32_t lengths[3] = {(uint32_t)strlen(path), (uint32_t)strlen(path2), size};
    uint32_t total = 1 + 8 + 8 + 12 + lengths[0] + lengths[1] + size;
    struct iovec parts[8] = {{&total, 4}, {&op, 1}, {&inode, 8}, {&offset, 8}, {lengths, 12},
                             {(void *)path, lengths[0]}, {(void *)path2, lengths[1]}, {(void *)data, size}};
    if (syscall(SYS_writev, log_fd, parts, 8) != (long)total + 4) abort();
}

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

void shim_mark(const char *text) {
    pthread_mutex_lock(&guard);
    note(LOG_MARK, 0, 0, "", "", text, (uint32_t)strlen(text));
    pthread_mutex_unlock(&guard);
}

/* -- rules ---------------------------------------------------------------------------------------------------------*/

static int there(const char *path) {
    struct stat found;
    return !syscall(SYS_newfstatat, AT_FDCWD, path, &found, 0);
}

/* The rule that is due for this call, counted; NULL if it goes through. */
static rule *due(const char *op, const char *path) {
    rule *found = NULL;
    pthread_mutex_lock(&guard);
    for (int i = 0; i < rule_count; i++) {
        rule *r = &rules[i];
        if (strcmp(r->op, op) || (r->match[0] && !strstr(path, r->match))) continue;
        if (++r->seen < r->nth || (r->count && r->done >= r->count) || found) continue;
        r->done++;
        found = r;
    }
    pthread_mutex_unlock(&guard);
    if (found && found->hang[0]) {
        __sync_fetch_and_add(&hung, 1);
        while (!there(found->hang)) {
            struct timespec pause = {0, 2000000};
            syscall(SYS_nanosleep, &pause, NULL);
        }
        return NULL;
    }
    return found;
}

/* 1 if the call ends here, with *result and errno set. */
static int ends(rule *r, long *result) {
    if (!r) return 0;
    if (r->always) {
        *result = 0;
        return 1;
    }
    if (r->error) {
        *result = -1;
        errno = (int)r->error;
        return 1;
    }
    return 0;
}

long shim_hung(void) { return hung; }

long shim_done(int index) { return index < rule_count ? rules[index].done : -1; }

static void parse_rule(char *text) {
    if (rule_count == MAX_RULES) abort();
    rule *r = &rules[rule_count++];
    memset(r, 0, sizeof *r);
    r->nth = 1;
    r->count = 1;
    char *rest = text, *field;
    while ((field = strsep(&rest, ","))) {
        if (!strncmp(field, "op:", 3)) snprintf(r->op, sizeof r->op, "%s", field + 3);
        else if (!strncmp(field, "match=", 6)) snprintf(r->match, sizeof r->match, "%s", field + 6);
        else if (!strncmp(field, "hang=", 5)) snprintf(r->hang, sizeof r->hang, "%s", field + 5);
        else if (!strncmp(field, "nth=", 4)) r->nth = atol(field + 4);
        else if (!strncmp(field, "count=", 6)) r->count = atol(field + 6);
        else if (!strncmp(field, "errno=", 6)) r->error = atol(field + 6);
        else if (!strncmp(field, "short=", 6)) r->shortened = atol(field + 6);
        else if (!strncmp(field, "always=", 7)) r->always = atol(field + 7);
        else abort();
    }
}

/* Forget what was, and follow this program from now on. */
void shim_configure(const char *program) {
    char copy[8192], *rest = copy, *field;
    pthread_mutex_lock(&guard);
    snprintf(copy, sizeof copy, "%s", program);
    rule_count = 0;
    root_length = 0;
    root[0] = 0;
    quota = -1;
    clock_mode = 0;
    if (log_fd >= 0) syscall(SYS_close, log_fd);
    log_fd = -1;
    while ((field = strsep(&rest, ";"))) {
        if (!*field) continue;
        if (!strncmp(field, "root=", 5)) {
            snprintf(root, sizeof root, "%s", field + 5);
            root_length = strlen(root);
        } else if (!strncmp(field, "log=", 4)) {
            int fd = (int)syscall(SYS_openat, AT_FDCWD, field + 4, O_WRONLY | O_CREAT | O_APPEND, 0644);
            log_fd = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900);
            syscall(SYS_close, fd);
            if (log_fd < 0) abort();
        } else if (!strncmp(field, "quota=", 6)) {
            quota = atol(field + 6);
        } else if (!strncmp(field, "clock=shift:", 12)) {
            clock_mode = 1;
            clock_shift = atol(field + 12);
        } else if (!strcmp(field, "clock=freeze")) {
            clock_mode = 2;
            syscall(SYS_clock_gettime, CLOCK_REALTIME, &frozen);
        } else if (!strncmp(field, "rule=", 5)) {
            parse_rule(field + 5);
        } else {
            abort();
        }
    }
    pthread_mutex_unlock(&guard);
}

static void unlock_in_child(void) {
    pthread_mutex_t fresh = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
    guard = fresh;
}

__attribute__((constructor)) static void from_environment(void) {
    pthread_atfork(NULL, NULL, unlock_in_child);
    const char *program = getenv("ML_DASH_TEST_SHIM");
    if (program) shim_configure(program);
}

/* -- writing -------------------------------------------------------------------------------------------------------*/

static ssize_t put(const char *op, int fd, const void *data, size_t size, off_t at, int positioned) {
    char path[PATH_MAX];
    if (!fd_concerned(fd, path))
        return positioned ? syscall(SYS_pwrite64, fd, data, size, at) : raw_write(fd, data, size);
    long result;
    rule *r = due(op, path);
    if (ends(r, &result)) return result;
    if (r && r->shortened > 0 && (size_t)r->shortened < size) size = (size_t)r->shortened;
    int locked = log_fd >= 0 || quota >= 0;
    if (locked) pthread_mutex_lock(&guard);
    if (quota >= 0 && (size_t)quota < size) {
        size = (size_t)quota;
        if (!size) {
            pthread_mutex_unlock(&guard);
            errno = ENOSPC;
            return -1;
        }
    }
    ssize_t written = positioned ? syscall(SYS_pwrite64, fd, data, size, at) : raw_write(fd, data, size);
    int error = errno;
    if (written > 0) {
        if (quota >= 0) quota -= written;
        int64_t offset = positioned ? at : lseek(fd, 0, SEEK_CUR) - written;
        note(LOG_WRITE, inode_of(fd), offset, path, "", data, (uint32_t)written);
    }
    if (locked) pthread_mutex_unlock(&guard);
    errno = error;
    return written;
}

ssize_t write(int fd, const void *data, size_t size) { return put("write", fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return put("pwrite", fd, data, size, at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return put("pwrite", fd, data, size, at, 1); }

/* Under root, contents go through write(2) only, where faults and the record are. */
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags) {
    char path[PATH_MAX];
    if (fd_concerned(out, path)) {
        errno = EXDEV;
        return -1;
    }
    return syscall(SYS_copy_file_range, in, in_at, out, out_at, size, flags);
}

static ssize_t send(int out, int in, void *at, size_t size) {
    char path[PATH_MAX];
    if (fd_concerned(out, path)) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_sendfile, out, in, at, size);
}

ssize_t sendfile(int out, int in, off_t *at, size_t size) { return send(out, in, at, size); }
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) { return send(out, in, at, size); }

static int sync_fd(const char *op, int number, int fd) {
    char path[PATH_MAX];
    if (!fd_concerned(fd, path)) return (int)syscall(number, fd);
    long result;
    rule *r = due(op, path);
    pthread_mutex_lock(&guard);
    if (ends(r, &result)) {
        int error = errno;
        /* always=1 is a disk that lies: nothing is noted, nothing is safe. */
        if (result < 0) note(LOG_SYNC_FAILED, inode_of(fd), 0, path, "", "", 0);
        errno = error;
    } else {
        /* With a record the model decides what is safe: no need to wait for the real disk. */
        result = log_fd >= 0 ? 0 : syscall(number, fd);
        note(LOG_SYNC, inode_of(fd), 0, path, "", "", 0);
    }
    int error = errno;
    pthread_mutex_unlock(&guard);
    errno = error;
    return (int)result;
}

int fsync(int fd) { return sync_fd("fsync", SYS_fsync, fd); }
int fdatasync(int fd) { return sync_fd("fdatasync", SYS_fdatasync, fd); }

/* -- names ---------------------------------------------------------------------------------------------------------*/

static int open_at(int dir, const char *given, int flags, mode_t mode) {
    char path[PATH_MAX];
    if (!root_length) return (int)syscall(SYS_openat, dir, given, flags, mode);
    resolve(dir, given, path);
    if (!concerned(path)) return (int)syscall(SYS_openat, dir, given, flags, mode);
    long result;
    if (ends(due(flags & O_CREAT ? "create" : "open", path), &result)) return (int)result;
    pthread_mutex_lock(&guard);
    int created = (flags & O_CREAT) && !there(path);
    int fd = (int)syscall(SYS_openat, dir, given, flags, mode), error = errno;
    if (fd >= 0 && created) note(LOG_CREATE, inode_of(fd), 0, path, "", "", 0);
    else if (fd >= 0 && (flags & O_TRUNC)) note(LOG_TRUNCATE, inode_of(fd), 0, path, "", "", 0);
    pthread_mutex_unlock(&guard);
    errno = error;
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE(flags) return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE(flags) return open_at(dir, path, flags | O_LARGEFILE, mode); }

int close(int fd) {
    char path[PATH_MAX];
    long result;
    if (fd >= 0 && fd == log_fd) return 0;
    struct stat found;
    if (rule_count && fd_concerned(fd, path) && !fstat(fd, &found) && found.st_size &&
        (syscall(SYS_fcntl, fd, F_GETFL, 0) & O_ACCMODE) != O_RDONLY && ends(due("close", path), &result)) {
        /* As on NFS: the descriptor is gone, the error tells of the data that was written through it. */
        int error = errno;
        syscall(SYS_close, fd);
        errno = error;
        return (int)result;
    }
    return (int)syscall(SYS_close, fd);
}

typedef long (*action)(int, const char *, int, const char *, int);

static int two_names(const char *op, uint8_t code, action act, int dir, const char *from, int dir2, const char *to, int flags) {
    char path[PATH_MAX], path2[PATH_MAX];
    if (!root_length) return (int)act(dir, from, dir2, to, flags);
    resolve(dir, from, path);
    resolve(dir2, to, path2);
    if (!concerned(path) && !concerned(path2)) return (int)act(dir, from, dir2, to, flags);
    long result;
    if (ends(due(op, path2), &result)) return (int)result;
    pthread_mutex_lock(&guard);
    result = act(dir, from, dir2, to, flags);
    int error = errno;
    if (!result) note(code, 0, 0, path, path2, "", 0);
    pthread_mutex_unlock(&guard);
    errno = error;
    return (int)result;
}

static long act_rename(int dir, const char *from, int dir2, const char *to, int flags) {
    return syscall(SYS_renameat2, dir, from, dir2, to, flags);
}
static long act_link(int dir, const char *from, int dir2, const char *to, int flags) {
    return syscall(SYS_linkat, dir, from, dir2, to, flags);
}
static long act_symlink(int dir, const char *from, int dir2, const char *to, int flags) {
    (void)dir, (void)flags;
    return syscall(SYS_symlinkat, from, dir2, to);
}

int rename(const char *a, const char *b) { return two_names("rename", LOG_RENAME, act_rename, AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int d, const char *a, int e, const char *b) { return two_names("rename", LOG_RENAME, act_rename, d, a, e, b, 0); }
int link(const char *a, const char *b) { return two_names("link", LOG_LINK, act_link, AT_FDCWD, a, AT_FDCWD, b, 0); }
int linkat(int d, const char *a, int e, const char *b, int f) { return two_names("link", LOG_LINK, act_link, d, a, e, b, f); }
int symlink(const char *a, const char *b) { return two_names("symlink", LOG_SYMLINK, act_symlink, AT_FDCWD, a, AT_FDCWD, b, 0); }

static int one_name(const char *op, uint8_t code, int dir, const char *given, int flags, mode_t mode) {
    char path[PATH_MAX];
    long result = 0;
    path[0] = 0;
    int ours = 0;
    if (root_length) {
        resolve(dir, given, path);
        ours = concerned(path);
    }
    if (ours && ends(due(op, path), &result)) return (int)result;
    if (ours) pthread_mutex_lock(&guard);
    result = code == LOG_MKDIR ? syscall(SYS_mkdirat, dir, given, mode) : syscall(SYS_unlinkat, dir, given, flags);
    int error = errno;
    if (ours && !result) note(code == LOG_UNLINK && (flags & AT_REMOVEDIR) ? LOG_RMDIR : code, 0, 0, path, "", "", 0);
    if (ours) pthread_mutex_unlock(&guard);
    errno = error;
    return (int)result;
}

int mkdir(const char *path, mode_t mode) { return one_name("mkdir", LOG_MKDIR, AT_FDCWD, path, 0, mode); }
int mkdirat(int dir, const char *path, mode_t mode) { return one_name("mkdir", LOG_MKDIR, dir, path, 0, mode); }
int unlink(const char *path) { return one_name("unlink", LOG_UNLINK, AT_FDCWD, path, 0, 0); }
int unlinkat(int dir, const char *path, int flags) { return one_name("unlink", LOG_UNLINK, dir, path, flags, 0); }
int rmdir(const char *path) { return one_name("rmdir", LOG_UNLINK, AT_FDCWD, path, AT_REMOVEDIR, 0); }

static int cut(int fd, off_t size) {
    char path[PATH_MAX];
    if (!fd_concerned(fd, path)) return (int)syscall(SYS_ftruncate, fd, size);
    long result;
    if (ends(due("truncate", path), &result)) return (int)result;
    pthread_mutex_lock(&guard);
    struct stat found;
    off_t before = fstat(fd, &found) ? size : found.st_size;
    result = syscall(SYS_ftruncate, fd, size);
    int error = errno;
    if (!result && quota >= 0 && before > size) quota += before - size;
    if (!result) note(LOG_TRUNCATE, inode_of(fd), size, path, "", "", 0);
    pthread_mutex_unlock(&guard);
    errno = error;
    return (int)result;
}

int ftruncate(int fd, off_t size) { return cut(fd, size); }
int ftruncate64(int fd, off64_t size) { return cut(fd, size); }

static int cut_path(const char *path, off_t size) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int result = cut(fd, size), error = errno;
    syscall(SYS_close, fd);
    errno = error;
    return result;
}

int truncate(const char *path, off_t size) { return cut_path(path, size); }
int truncate64(const char *path, off64_t size) { return cut_path(path, size); }

/* -- locks and clocks ----------------------------------------------------------------------------------------------*/

int flock(int fd, int operation) {
    char path[PATH_MAX];
    long result;
    if (fd_concerned(fd, path) && ends(due("flock", path), &result)) return (int)result;
    return (int)syscall(SYS_flock, fd, operation);
}

static int control(int fd, int command, void *argument) {
    char path[PATH_MAX];
    long result;
    int locking = command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK ||
                  command == F_OFD_SETLKW || command == F_OFD_GETLK;
    if (locking && fd_concerned(fd, path) && ends(due("fcntl", path), &result)) return (int)result;
    return (int)syscall(SYS_fcntl, fd, command, argument);
}

#define ARGUMENT(after) \
    va_list more; \
    va_start(more, after); \
    void *argument = va_arg(more, void *); \
    va_end(more)

int fcntl(int fd, int command, ...) { ARGUMENT(command); return control(fd, command, argument); }
int fcntl64(int fd, int command, ...) { ARGUMENT(command); return control(fd, command, argument); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    if (clock_mode && clock == CLOCK_REALTIME && !result) {
        if (clock_mode == 1) now->tv_sec += clock_shift;
        else *now = frozen;
    }
    return result;
}
