/* Loaded by LD_PRELOAD into a test's own child process: writes down, or breaks, what it does to the files below one directory.
 *
 * DISK_DIR    the directory, absolute
 * DISK_ACKS   a file outside it: what is written there is put into the trace as a mark
 * DISK_TRACE  append every change to this file (see disk.rs for the records)
 * DISK_AT     number of the change to break, from 0
 * DISK_FAULT  what happens there: kill (nothing of it is done), killed (it is done first), torn (half of it is done),
 *             eio, enospc (it fails), short (half of it is done, and it says so)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE = 1, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, CREATE, SYNC_DIR, ALLOCATE, MARK, WRITE_THROUGH };
enum fault { NONE, KILL, KILLED, TORN, EIO_, ENOSPC_, SHORT };

#define FILES 4096
static char *paths[FILES];
static char through[FILES];
static const char *dir, *acks;
static size_t dir_len;
static int trace = -1;
static long at = -1, count;
static enum fault fault;
/* One change after the other, in the order in which they are written down. */
static pthread_mutex_t one = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

#define REAL(ret, name, ...) \
    static ret (*real_##name)(__VA_ARGS__); \
    if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name)

static ssize_t plain_write(int fd, const void *data, size_t len) {
    REAL(ssize_t, write, int, const void *, size_t);
    return real_write(fd, data, len);
}

static void init(void) {
    static int done;
    if (done) return;
    done = 1;
    dir = getenv("DISK_DIR");
    if (!dir) return;
    dir_len = strlen(dir);
    acks = getenv("DISK_ACKS");
    const char *out = getenv("DISK_TRACE"), *where = getenv("DISK_AT"), *what = getenv("DISK_FAULT");
    if (out) {
        REAL(int, open, const char *, int, ...);
        trace = real_open(out, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
    if (where && what) {
        static const char *names[] = {"", "kill", "killed", "torn", "eio", "enospc", "short"};
        at = atol(where);
        for (int i = KILL; i <= SHORT; i++)
            if (!strcmp(what, names[i])) fault = i;
    }
}

static int ours(const char *path) {
    init();
    return dir && path && !strncmp(path, dir, dir_len) && (path[dir_len] == '/' || !path[dir_len]);
}

static void put(enum kind kind, const char *path, uint64_t offset, const void *data, uint64_t len) {
    if (trace < 0) return;
    unsigned char head[1 + 4 + 8 + 8];
    uint32_t path_len = strlen(path);
    head[0] = kind;
    memcpy(head + 1, &path_len, 4);
    memcpy(head + 5, &offset, 8);
    memcpy(head + 13, &len, 8);
    struct iovec parts[] = {{head, sizeof head}, {(void *)path, path_len}, {(void *)data, data ? len : 0}};
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (real_writev(trace, parts, 3) < 0) _exit(99);
}

/* Counts one change. Answers what is to happen to it. */
static enum fault next(void) { return count++ == at ? fault : NONE; }

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static const char *path_of(int fd) { return fd >= 0 && fd < FILES ? paths[fd] : NULL; }

static void remember(int fd, const char *path, int flags) {
    if (fd < 0 || fd >= FILES) return;
    free(paths[fd]);
    paths[fd] = strdup(path);
    through[fd] = (flags & (O_DSYNC | O_SYNC)) != 0;
}

static int full_path(int at_fd, const char *path, char *out) {
    if (path[0] == '/' || at_fd == AT_FDCWD) return snprintf(out, PATH_MAX, "%s", path) < PATH_MAX;
    const char *base = path_of(at_fd);
    return base && snprintf(out, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

/* ---- opening and closing */

static int opened(int fd, int at_fd, const char *path, int flags, int existed) {
    char full[PATH_MAX];
    int saved = errno;
    pthread_mutex_lock(&one);
    init();
    if (fd >= 0 && full_path(at_fd, path, full) && (ours(full) || (acks && !strcmp(full, acks)))) {
        remember(fd, full, flags);
        if (ours(full)) {
            if (!existed) put(CREATE, full, 0, NULL, 0);
            else if (flags & O_TRUNC) put(TRUNCATE, full, 0, NULL, 0);
        }
    }
    pthread_mutex_unlock(&one);
    errno = saved;
    return fd;
}

static int exists(int at_fd, const char *path) {
    struct stat ignored;
    return fstatat(at_fd, path, &ignored, 0) == 0;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        REAL(int, name, const char *, int, ...); \
        int existed = exists(AT_FDCWD, path); \
        return opened(real_##name(path, flags, mode), AT_FDCWD, path, flags, existed); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int base, const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        REAL(int, name, int, const char *, int, ...); \
        int existed = exists(base, path); \
        return opened(real_##name(base, path, flags, mode), base, path, flags, existed); \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    REAL(int, close, int);
    pthread_mutex_lock(&one);
    if (path_of(fd)) {
        free(paths[fd]);
        paths[fd] = NULL;
    }
    int result = real_close(fd), saved = errno;
    pthread_mutex_unlock(&one);
    errno = saved;
    return result;
}

/* ---- writing */

static ssize_t do_pwrite(int fd, const void *data, size_t len, off_t offset) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off_t);
    return real_pwrite64(fd, data, len, offset);
}

/* offset -1: at the file's own position, which moves on. */
static ssize_t change_alone(int fd, const void *data, size_t len, off_t offset) {
    const char *path = path_of(fd);
    int moves = offset < 0;
    if (!path) return moves ? plain_write(fd, data, len) : do_pwrite(fd, data, len, offset);
    if (acks && !strcmp(path, acks)) {
        put(MARK, path, 0, data, len);
        return plain_write(fd, data, len);
    }
    if (moves) offset = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    enum fault now = next();
    size_t part = now == TORN || now == SHORT ? len / 2 : len;
    if (now == KILL) die();
    if (now == EIO_ || now == ENOSPC_) {
        errno = now == EIO_ ? EIO : ENOSPC;
        return -1;
    }
    ssize_t done = do_pwrite(fd, data, part, offset);
    if (done > 0) {
        put(through[fd] ? WRITE_THROUGH : WRITE, path, offset, data, done);
        if (moves) lseek(fd, offset + done, SEEK_SET);
    }
    if (now == KILLED || now == TORN) die();
    return done;
}

static ssize_t change(int fd, const void *data, size_t len, off_t offset) {
    pthread_mutex_lock(&one);
    ssize_t done = change_alone(fd, data, len, offset);
    int saved = errno;
    pthread_mutex_unlock(&one);
    errno = saved;
    return done;
}

ssize_t write(int fd, const void *data, size_t len) { return change(fd, data, len, -1); }
ssize_t pwrite(int fd, const void *data, size_t len, off_t offset) { return change(fd, data, len, offset); }
ssize_t pwrite64(int fd, const void *data, size_t len, off_t offset) { return change(fd, data, len, offset); }

static ssize_t change_all(int fd, const struct iovec *parts, int n, off_t offset) {
    size_t total = 0;
    for (int i = 0; i < n; i++) total += parts[i].iov_len;
    char *joined = malloc(total ? total : 1);
    size_t filled = 0;
    for (int i = 0; i < n; i++) {
        memcpy(joined + filled, parts[i].iov_base, parts[i].iov_len);
        filled += parts[i].iov_len;
    }
    ssize_t done = change(fd, joined, total, offset);
    int saved = errno;
    free(joined);
    errno = saved;
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return path_of(fd) ? change_all(fd, parts, n, -1) : real_writev(fd, parts, n);
}
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t offset) {
    REAL(ssize_t, pwritev, int, const struct iovec *, int, off_t);
    return path_of(fd) ? change_all(fd, parts, n, offset) : real_pwritev(fd, parts, n, offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off_t offset) { return pwritev(fd, parts, n, offset); }

/* ---- everything else: done, then written down; or not done, and said */

#define CHANGE(path, does, ...) \
    do { \
        pthread_mutex_lock(&one); \
        enum fault now = next(); \
        if (now == KILL || now == TORN) die(); \
        int result = -1; \
        if (now == EIO_ || now == ENOSPC_ || now == SHORT) { \
            errno = now == ENOSPC_ ? ENOSPC : EIO; \
        } else { \
            result = does; \
            if (result == 0) put(__VA_ARGS__); \
            if (now == KILLED) die(); \
        } \
        int saved = errno; \
        pthread_mutex_unlock(&one); \
        errno = saved; \
        return result; \
    } while (0)

#define SYNCS(name) \
    int name(int fd) { \
        REAL(int, name, int); \
        const char *path = path_of(fd); \
        struct stat what; \
        if (!path || fstat(fd, &what)) return real_##name(fd); \
        CHANGE(path, real_##name(fd), S_ISDIR(what.st_mode) ? SYNC_DIR : SYNC, path, 0, NULL, 0); \
    }
SYNCS(fsync)
SYNCS(fdatasync)

int ftruncate64(int fd, off64_t len) {
    REAL(int, ftruncate64, int, off64_t);
    const char *path = path_of(fd);
    if (!path) return real_ftruncate64(fd, len);
    CHANGE(path, real_ftruncate64(fd, len), TRUNCATE, path, len, NULL, 0);
}
int ftruncate(int fd, off_t len) { return ftruncate64(fd, len); }

int fallocate64(int fd, int mode, off64_t offset, off64_t len) {
    REAL(int, fallocate64, int, int, off64_t, off64_t);
    const char *path = path_of(fd);
    if (!path) return real_fallocate64(fd, mode, offset, len);
    CHANGE(path, real_fallocate64(fd, mode, offset, len), ALLOCATE, path, offset, NULL, len);
}
int fallocate(int fd, int mode, off_t offset, off_t len) { return fallocate64(fd, mode, offset, len); }

/* Open descriptors of a file, or of what lies below a directory, go by the new name. */
static void follow(const char *from, const char *to) {
    size_t len = strlen(from);
    for (int fd = 0; fd < FILES; fd++) {
        if (!paths[fd] || strncmp(paths[fd], from, len) || (paths[fd][len] && paths[fd][len] != '/')) continue;
        char now[PATH_MAX];
        if (snprintf(now, PATH_MAX, "%s%s", to, paths[fd] + len) >= PATH_MAX) _exit(98);
        free(paths[fd]);
        paths[fd] = strdup(now);
    }
}

static int do_rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    int result = real_rename(from, to);
    if (result == 0 && ours(from)) follow(from, to);
    return result;
}

int rename(const char *from, const char *to) {
    if (!ours(from)) return do_rename(from, to);
    CHANGE(from, do_rename(from, to), RENAME, from, 0, to, strlen(to));
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    if (!ours(path)) return real_unlink(path);
    CHANGE(path, real_unlink(path), UNLINK, path, 0, NULL, 0);
}

int unlinkat(int base, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    char full[PATH_MAX];
    if (!full_path(base, path, full) || !ours(full)) return real_unlinkat(base, path, flags);
    CHANGE(full, real_unlinkat(base, path, flags), UNLINK, full, 0, NULL, 0);
}

int rmdir(const char *path) {
    REAL(int, rmdir, const char *);
    if (!ours(path)) return real_rmdir(path);
    CHANGE(path, real_rmdir(path), UNLINK, path, 0, NULL, 0);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    if (!ours(path)) return real_mkdir(path, mode);
    CHANGE(path, real_mkdir(path, mode), MKDIR, path, 0, NULL, 0);
}
