/* A library to be preloaded (LD_PRELOAD): makes the n-th call of a kind fail, as a full disk, a broken one or a lack of memory
   would, or ends the process there, as a power cut would. Calls count that name a file of one folder, or a descriptor of one; of
   allocations, those of at least a size. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { NONE, OPEN, READ, WRITE, SYNC, RENAME, MAKE, TRUNCATE, ALLOCATE };
enum { LEAST_BYTES = 16384 };

static atomic_int armed;
static atomic_long calls;
static long failing_call;
static int error_number; /* 0: the process ends */
static char folder[PATH_MAX];

void arm_failing_call(int kind, long call, int error, const char *below) {
  snprintf(folder, sizeof folder, "%s", below);
  failing_call = call, error_number = error, calls = 0;
  armed = kind;
}

/* Gives how many calls there were. */
long disarm_failing_call(void) {
  armed = NONE;
  return calls;
}

static int counted_fails(void) {
  if (++calls != failing_call) return 0;
  if (error_number == 0) _exit(77);
  errno = error_number;
  return 1;
}

static int fails_at(enum kind kind, const char *path) {
  return armed == (int)kind && path && strncmp(path, folder, strlen(folder)) == 0 && counted_fails();
}

static int fails_on(enum kind kind, int descriptor) {
  if (armed != (int)kind) return 0;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return fails_at(kind, path);
}

static int no_memory(size_t bytes) { return armed == ALLOCATE && bytes >= LEAST_BYTES && counted_fails(); }

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPENS(name)                                                   \
  int name(const char *path, int flags, ...) {                        \
    va_list rest;                                                     \
    va_start(rest, flags);                                            \
    const mode_t mode = va_arg(rest, mode_t);                         \
    va_end(rest);                                                     \
    return fails_at(OPEN, path) ? -1 : NEXT(name)(path, flags, mode); \
  }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                    \
  int name(int at, const char *path, int flags, ...) {                    \
    va_list rest;                                                         \
    va_start(rest, flags);                                                \
    const mode_t mode = va_arg(rest, mode_t);                             \
    va_end(rest);                                                         \
    return fails_at(OPEN, path) ? -1 : NEXT(name)(at, path, flags, mode); \
  }
OPENS_AT(openat)
OPENS_AT(openat64)

ssize_t read(int file, void *data, size_t bytes) { return fails_on(READ, file) ? -1 : NEXT(read)(file, data, bytes); }
ssize_t pread64(int file, void *data, size_t bytes, off64_t at) {
  return fails_on(READ, file) ? -1 : NEXT(pread64)(file, data, bytes, at);
}
void *mmap(void *at, size_t bytes, int access, int flags, int file, off_t offset) {
  if (file >= 0 && fails_on(READ, file)) return MAP_FAILED;
  return NEXT(mmap)(at, bytes, access, flags, file, offset);
}
void *mmap64(void *at, size_t bytes, int access, int flags, int file, off64_t offset) {
  if (file >= 0 && fails_on(READ, file)) return MAP_FAILED;
  return NEXT(mmap64)(at, bytes, access, flags, file, offset);
}

ssize_t write(int file, const void *data, size_t bytes) { return fails_on(WRITE, file) ? -1 : NEXT(write)(file, data, bytes); }
ssize_t pwrite64(int file, const void *data, size_t bytes, off64_t at) {
  return fails_on(WRITE, file) ? -1 : NEXT(pwrite64)(file, data, bytes, at);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t bytes) {
  return fails_on(WRITE, to) ? -1 : NEXT(sendfile64)(to, from, at, bytes);
}
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *there, size_t bytes, unsigned flags) {
  return fails_on(WRITE, to) ? -1 : NEXT(copy_file_range)(from, at, to, there, bytes, flags);
}

int fsync(int file) { return fails_on(SYNC, file) ? -1 : NEXT(fsync)(file); }
int rename(const char *from, const char *to) { return fails_at(RENAME, from) ? -1 : NEXT(rename)(from, to); }
int renameat(int at, const char *from, int there, const char *to) {
  return fails_at(RENAME, from) ? -1 : NEXT(renameat)(at, from, there, to);
}
int mkdir(const char *path, mode_t mode) { return fails_at(MAKE, path) ? -1 : NEXT(mkdir)(path, mode); }
int ftruncate64(int file, off64_t bytes) { return fails_on(TRUNCATE, file) ? -1 : NEXT(ftruncate64)(file, bytes); }
int truncate64(const char *path, off64_t bytes) { return fails_at(TRUNCATE, path) ? -1 : NEXT(truncate64)(path, bytes); }

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);

void *malloc(size_t bytes) { return no_memory(bytes) ? NULL : __libc_malloc(bytes); }
void *calloc(size_t count, size_t bytes) { return no_memory(count * bytes) ? NULL : __libc_calloc(count, bytes); }
void *realloc(void *memory, size_t bytes) { return no_memory(bytes) ? NULL : __libc_realloc(memory, bytes); }
int posix_memalign(void **memory, size_t alignment, size_t bytes) {
  if (no_memory(bytes)) return ENOMEM;
  *memory = __libc_memalign(alignment, bytes);
  return *memory ? 0 : ENOMEM;
}
