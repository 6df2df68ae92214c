/* A disk that keeps what was flushed and nothing else: LD_PRELOAD it, and name by FAULT_DISK_OF a
 * folder, and by FAULT_DISK another one, which then holds what a power loss would leave of it.
 *
 * FAULT_DISK/tree has the files of the folder. A file comes there when it is flushed, with the
 * content and the name that it has then; a folder that is flushed has its present names there, and
 * of files that never were flushed they are empty. FAULT_DISK/files holds each file by its identity,
 * so that it keeps its content under another name. A folder that gets another name keeps what it
 * has, as the journal of a file system gives it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BLOCK = 65536 };

static char root[PATH_MAX], disk[PATH_MAX];

__attribute__((constructor)) static void read_environment(void) {
    const char *folder = getenv("FAULT_DISK_OF"), *kept = getenv("FAULT_DISK");
    if (folder && kept && !(realpath(folder, root) && realpath(kept, disk))) abort();
}

static void must(int holds, const char *what) {
    if (holds) return;
    perror(what);
    abort();
}

static void join(char *found, const char *folder, const char *name) {
    must(snprintf(found, PATH_MAX, "%s/%s", folder, name) < PATH_MAX, name);
}

/* Where the disk has a path; 0 if the path is not below the folder. */
static int on_disk(const char *path, char *found) {
    size_t length = strlen(root);
    if (!length || strncmp(path, root, length) || (path[length] && path[length] != '/')) return 0;
    return snprintf(found, PATH_MAX, "%s/tree%s", disk, path + length) < PATH_MAX;
}

/* Make the folders above a path. Several users write there: Postgres does not run as root. */
static void make_folders(char *path) {
    for (char *at = path + strlen(disk) + 1; (at = strchr(at, '/')); *at++ = '/') {
        *at = 0;
        if (!mkdir(path, 0777)) chmod(path, 0777);
    }
}

static void remove_tree(const char *path) {
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char below[PATH_MAX];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        join(below, path, entry->d_name);
        remove_tree(below);
    }
    if (folder) closedir(folder);
    remove(path);
}

/* Write what a file is known by: numbers of inodes are used again, with another time of birth. */
int identify(int folder, const char *name, int flags, char *found, size_t size) {
    struct statx status;
    if (statx(folder, name, flags, STATX_INO | STATX_BTIME, &status)) return 0;
    return snprintf(found, size, "%s/files/%llu-%lld.%09u", disk,
                    (unsigned long long)status.stx_ino, (long long)status.stx_btime.tv_sec,
                    status.stx_btime.tv_nsec) < (int)size;
}

static int open_kept(const char *kept) {
    int file = open(kept, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    must(file >= 0, kept);
    fchmod(file, 0666);
    return file;
}

/* Bring what is kept of a file up to date. The lock: of two flushes the later one has all. */
static void keep_content(int file, const char *kept) {
    static __thread char now[BLOCK], before[BLOCK];
    int copy = open_kept(kept);
    must(!flock(copy, LOCK_EX), "flock");
    char again[64];
    snprintf(again, sizeof again, "/proc/self/fd/%d", file);
    int source = open(again, O_RDONLY | O_CLOEXEC);
    must(source >= 0, again);
    off_t at = 0;
    for (ssize_t got; (got = pread(source, now, BLOCK, at)) > 0; at += got)
        if (pread(copy, before, got, at) != got || memcmp(now, before, got))
            must(pwrite(copy, now, got, at) == got, kept);
    must(!ftruncate(copy, at), kept);
    close(source);
    close(copy);
}

/* Give a file that is kept a name, in place of what has it. */
static void give_name(const char *kept, char *name) {
    struct stat wanted, found;
    if (!stat(kept, &wanted) && !lstat(name, &found) && wanted.st_ino == found.st_ino) return;
    char draft[PATH_MAX], thread[32];
    snprintf(thread, sizeof thread, "draft-%ld", syscall(SYS_gettid));
    join(draft, disk, thread);
    unlink(draft);
    must(!link(kept, draft), kept);
    if (rename(draft, name)) {
        make_folders(name);
        remove_tree(name);
        must(!rename(draft, name), name);
    }
}

static void keep_names(const char *path, const char *kept_folder) {
    char name[PATH_MAX], kept[PATH_MAX], target[PATH_MAX];
    DIR *folder = opendir(path);
    must(folder != NULL, path);
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        join(name, kept_folder, entry->d_name);
        if (entry->d_type == DT_DIR) {
            join(target, name, "");
            make_folders(target);
        } else if (entry->d_type == DT_REG &&
                   identify(dirfd(folder), entry->d_name, AT_SYMLINK_NOFOLLOW, kept, sizeof kept)) {
            close(open_kept(kept));
            give_name(kept, name);
        }
    }
    DIR *before = opendir(kept_folder);
    for (struct dirent *entry; before && (entry = readdir(before));)
        if (faccessat(dirfd(folder), entry->d_name, F_OK, AT_SYMLINK_NOFOLLOW) && errno == ENOENT) {
            join(name, kept_folder, entry->d_name);
            remove_tree(name);
        }
    if (before) closedir(before);
    closedir(folder);
}

static void keep(int file) {
    char descriptor[64], path[PATH_MAX], name[PATH_MAX], kept[PATH_MAX];
    int error = errno;
    struct stat status;
    snprintf(descriptor, sizeof descriptor, "/proc/self/fd/%d", file);
    ssize_t length = readlink(descriptor, path, sizeof path - 1);
    if (length > 0 && !fstat(file, &status)) {
        path[length] = 0;
        if (status.st_nlink && on_disk(path, name)) {
            if (S_ISDIR(status.st_mode)) {
                join(kept, name, "");
                make_folders(kept);
                keep_names(path, name);
            } else if (S_ISREG(status.st_mode) && identify(file, "", AT_EMPTY_PATH, kept, sizeof kept)) {
                keep_content(file, kept);
                give_name(kept, name);
            }
        }
    }
    errno = error;
}

int fsync(int file) {
    int failed = (int)syscall(SYS_fsync, file);
    if (!failed) keep(file);
    return failed;
}

int fdatasync(int file) {
    int failed = (int)syscall(SYS_fdatasync, file);
    if (!failed) keep(file);
    return failed;
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    char before[PATH_MAX], after[PATH_MAX], old[PATH_MAX], new[PATH_MAX];
    struct stat status;
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    int is_folder = !lstat(from, &status) && S_ISDIR(status.st_mode) && realpath(from, before);
    int failed = real(from, to);
    if (!failed && is_folder && realpath(to, after) && on_disk(before, old) && on_disk(after, new)) {
        make_folders(new);
        real(old, new);
    }
    return failed;
}
