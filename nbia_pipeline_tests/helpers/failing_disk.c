/* A disk that fails at one operation, or from one on: preloaded into a process, it counts the file-system operations
 * below a directory, and lets those fail that it was armed for. Until failing_disk_arm is called it does nothing.
 * See failing_disk.py for the kinds of failures. Needs glibc.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* The sorts of operations, as in failing_disk.py. */
enum { CREATE = 1, WRITE = 2, MOVE = 4, REMOVE = 8, SYNC = 16, CLOSE = 32, READ = 64 };
enum { NO, YES, SHORT };  /* whether an operation fails, or writes half */
enum { OUTSIDE, READING, WRITING };  /* what an open file is */

#define MOST_FILES 65536
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static char root[4096];
static size_t root_length;
static int sorts, error, stays, shortens, log_fd = -1;
static long first, count;
static unsigned char files[MOST_FILES];

/* Below `directory`, the operations of these sorts are counted from now on. Number `number` fails with `number_of_error`
 * (0: the process is killed), with `from_there_on` all later ones as well; with `half`, a write writes half of its
 * bytes, and the next one fails. Each operation is written to `log`, unless that is -1. */
void failing_disk_arm(const char *directory, int of_sorts, long number, int number_of_error, int from_there_on, int half,
                      int log)
{
    snprintf(root, sizeof root, "%s", directory);
    root_length = strlen(root);
    sorts = of_sorts, first = number, error = number_of_error, stays = from_there_on, shortens = half, log_fd = log;
    count = 0;
}

/* Lets nothing fail from now on, and returns how many operations there were. */
long failing_disk_disarm(void)
{
    root_length = 0;
    return count;
}

static int state(int fd) { return fd >= 0 && fd < MOST_FILES ? files[fd] : OUTSIDE; }

static int is_below(int fd, const char *path)
{
    if (!path || (path[0] != '/' && fd != AT_FDCWD))
        return state(fd) != OUTSIDE;
    return !strncmp(path, root, root_length) && (!path[root_length] || path[root_length] == '/');
}

static void report(int sort, const char *what, int fd, const char *path)
{
    char link[64], folder[4096] = "";
    if (!path || (path[0] != '/' && fd != AT_FDCWD)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, folder, sizeof folder - 1);
        folder[length > 0 ? length : 0] = 0;
    }
    dprintf(log_fd, "%d %s %s%s%s\n", sort, what, folder, path && *folder ? "/" : "", path ? path : "");
}

/* An operation on a path, or on an open file if that is NULL: counts it, and says whether it fails. */
static int fails(int sort, const char *what, int fd, const char *path)
{
    if (!root_length || !(sort & sorts) || !is_below(fd, path))
        return NO;
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (log_fd >= 0)
        report(sort, what, fd, path);
    if (number < first || (number > first + shortens && !stays))
        return NO;
    if (!error)
        kill(getpid(), SIGKILL);
    errno = error;
    return shortens && number == first ? SHORT : YES;
}

static int opened(int flags, int fd)
{
    if (fd >= 0 && fd < MOST_FILES)
        files[fd] = flags & (O_WRONLY | O_RDWR) ? WRITING : READING;
    return fd;
}

#define SORT_OF_OPEN(flags) ((flags) & (O_WRONLY | O_RDWR) ? CREATE : READ)
#define MODE(flags) int mode; va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest)

/* Only what is below is recorded as open: opened() is told by the caller. */
#define OPEN(name) \
int name(const char *path, int flags, ...) \
{ \
    MODE(flags); \
    if (!root_length || !is_below(AT_FDCWD, path)) return REAL(name)(path, flags, mode); \
    return fails(SORT_OF_OPEN(flags), "open", AT_FDCWD, path) ? -1 : opened(flags, REAL(name)(path, flags, mode)); \
}
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
int name(int at, const char *path, int flags, ...) \
{ \
    MODE(flags); \
    if (!root_length || !is_below(at, path)) return REAL(name)(at, path, flags, mode); \
    return fails(SORT_OF_OPEN(flags), "open", at, path) ? -1 : opened(flags, REAL(name)(at, path, flags, mode)); \
}
OPENAT(openat)
OPENAT(openat64)

int close(int fd)
{
    int failed = state(fd) == WRITING && fails(CLOSE, "close", fd, NULL), saved = errno;
    if (fd >= 0 && fd < MOST_FILES)
        files[fd] = OUTSIDE;
    int result = REAL(close)(fd);
    if (failed)
        errno = saved;
    return failed ? -1 : result;
}

ssize_t write(int fd, const void *from, size_t size)
{
    int failed = fails(WRITE, "write", fd, NULL);
    return failed == YES || (failed && size < 2) ? -1 : REAL(write)(fd, from, failed ? size / 2 : size);
}

#define PWRITE(name, offset_type) \
ssize_t name(int fd, const void *from, size_t size, offset_type at) \
{ \
    int failed = fails(WRITE, "write", fd, NULL); \
    return failed == YES || (failed && size < 2) ? -1 : REAL(name)(fd, from, failed ? size / 2 : size, at); \
}
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

/* Everything else fails as a whole. */
#define FAILING(type, none, name, sort, what, fd, path, declared, given) \
type name declared { return fails(sort, what, fd, path) ? none : REAL(name) given; }
#define OF_PATH(name, sort, declared, given) FAILING(int, -1, name, sort, #name, AT_FDCWD, path, declared, given)
#define OF_FILE(type, name, sort, declared, given) FAILING(type, -1, name, sort, #name, fd, NULL, declared, given)
#define AT(name, sort, declared, given) FAILING(int, -1, name, sort, #name, fd, path, declared, given)

OF_FILE(ssize_t, writev, WRITE, (int fd, const struct iovec *v, int n), (fd, v, n))
OF_FILE(int, ftruncate, WRITE, (int fd, off_t size), (fd, size))
OF_FILE(int, ftruncate64, WRITE, (int fd, off64_t size), (fd, size))
OF_FILE(ssize_t, sendfile, WRITE, (int fd, int in, off_t *at, size_t size), (fd, in, at, size))
OF_FILE(ssize_t, sendfile64, WRITE, (int fd, int in, off64_t *at, size_t size), (fd, in, at, size))
OF_FILE(ssize_t, copy_file_range, WRITE, (int in, off64_t *a, int fd, off64_t *b, size_t n, unsigned f), (in, a, fd, b, n, f))
/* Nothing is flushed: no power is cut here, and the disk has others to serve. */
#define FLUSH(name) \
int name(int fd) { return fails(SYNC, #name, fd, NULL) ? -1 : state(fd) != OUTSIDE ? 0 : REAL(name)(fd); }
FLUSH(fsync)
FLUSH(fdatasync)
FLUSH(syncfs)

OF_PATH(mkdir, CREATE, (const char *path, mode_t mode), (path, mode))
AT(mkdirat, CREATE, (int fd, const char *path, mode_t mode), (fd, path, mode))
OF_PATH(link, CREATE, (const char *old, const char *path), (old, path))
AT(linkat, CREATE, (int old, const char *from, int fd, const char *path, int f), (old, from, fd, path, f))
OF_PATH(symlink, CREATE, (const char *to, const char *path), (to, path))
/* By the new name, which says more. */
OF_PATH(rename, MOVE, (const char *old, const char *path), (old, path))
AT(renameat, MOVE, (int at, const char *old, int fd, const char *path), (at, old, fd, path))
AT(renameat2, MOVE, (int at, const char *old, int fd, const char *path, unsigned f), (at, old, fd, path, f))
OF_PATH(unlink, REMOVE, (const char *path), (path))
OF_PATH(rmdir, REMOVE, (const char *path), (path))
AT(unlinkat, REMOVE, (int fd, const char *path, int flags), (fd, path, flags))

OF_FILE(ssize_t, read, READ, (int fd, void *to, size_t size), (fd, to, size))
OF_FILE(ssize_t, pread, READ, (int fd, void *to, size_t size, off_t at), (fd, to, size, at))
OF_FILE(ssize_t, pread64, READ, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at))
FAILING(DIR *, NULL, opendir, READ, "opendir", AT_FDCWD, path, (const char *path), (path))
FAILING(DIR *, NULL, fdopendir, READ, "opendir", fd, NULL, (int fd), (fd))
OF_PATH(stat64, READ, (const char *path, struct stat64 *to), (path, to))
OF_PATH(lstat64, READ, (const char *path, struct stat64 *to), (path, to))
AT(fstatat64, READ, (int fd, const char *path, struct stat64 *to, int f), (fd, path, to, f))
