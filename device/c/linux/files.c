#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

char *path_of(const char *directory, const char *name)
{
    size_t length = strlen(directory) + strlen(name) + 2;
    char *path = malloc(length);

    if (path != NULL)
        snprintf(path, length, "%s%s%s", name[0] == '/' ? "" : directory, name[0] == '/' ? "" : "/", name);
    return path;
}

int write_all(int file, const void *data, size_t length)
{
    const char *at = data;

    while (length > 0) {
        ssize_t n = write(file, at, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        at += n;
        length -= (size_t)n;
    }
    return 0;
}

char *file_read(int directory, const char *name, size_t limit, size_t *length)
{
    int file = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK), error;
    struct stat about;
    char *data = NULL;
    size_t have = 0;

    if (file < 0)
        return NULL;
    if (fstat(file, &about) != 0) {
        error = errno;
    } else if (!S_ISREG(about.st_mode) || about.st_size < 0 || (uint64_t)about.st_size > limit) {
        error = EFBIG;
    } else if ((data = malloc((size_t)about.st_size + 1)) == NULL) {
        error = ENOMEM;
    } else {
        error = 0;
        while (have < (size_t)about.st_size) {
            ssize_t n = read(file, data + have, (size_t)about.st_size - have);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0) {
                error = n < 0 ? errno : EIO;
                break;
            }
            have += (size_t)n;
        }
    }
    close(file);
    if (error != 0) {
        free(data);
        errno = error;
        return NULL;
    }
    data[have] = '\0';
    *length = have;
    return data;
}

int file_replace(int directory, const char *name, const void *data, size_t length)
{
    static const char fresh[] = ".new";
    char temporary[128];
    int file, error = 0;

    if (strlen(name) + sizeof fresh > sizeof temporary) {
        errno = ENAMETOOLONG;
        return -1;
    }
    snprintf(temporary, sizeof temporary, "%s%s", name, fresh);
    file = openat(directory, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0)
        return -1;
    if (write_all(file, data, length) != 0 || fsync(file) != 0)
        error = errno;
    if (close(file) != 0 && error == 0)
        error = errno;
    if (error == 0 && renameat(directory, temporary, directory, name) != 0)
        error = errno;
    if (error != 0) {
        (void)unlinkat(directory, temporary, 0);
        errno = error;
        return -1;
    }
    return fsync(directory);
}
