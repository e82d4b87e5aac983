// Takes note of what is brought to the disk: `INODE SECONDS` for a file, `sync SECONDS` for all. See torn.py.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void note(const char *what) {
    int before = errno, file = open("/var/lib/cuts-synced", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    struct timespec now;
    char line[80];
    if (file >= 0) {
        clock_gettime(CLOCK_REALTIME, &now);
        int length = snprintf(line, sizeof line, "%s %lld.%09ld\n", what, (long long)now.tv_sec, now.tv_nsec);
        if (write(file, line, length) < 0) {}
        close(file);
    }
    errno = before;
}

static void note_file(int file) {
    struct stat status;
    char what[40];
    if (fstat(file, &status) == 0) {
        snprintf(what, sizeof what, "%llu", (unsigned long long)status.st_ino);
        note(what);
    }
}

int fsync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    int result = real(file);
    note_file(file);
    return result;
}

int fdatasync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    int result = real(file);
    note_file(file);
    return result;
}

void sync(void) {
    void (*real)(void) = dlsym(RTLD_NEXT, "sync");
    real();
    note("sync");
}
