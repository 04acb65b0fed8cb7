/* plan_file.c - plan files on disk: who may have written one, and writing one so that nobody sees half of it. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graphopt/plan_internal.h"

/* A plan is native code that will run with the reader's rights: it must come from the reader or from root. */
static int check_owner(const struct stat *st, char *err, size_t err_size)
{
	if (st->st_uid != geteuid() && st->st_uid != 0)
		return plan_error(err, err_size, -EPERM,
				  "owned by user %u, and a plan holds code: copy it to a file of your own",
				  (unsigned int)st->st_uid);
	if (st->st_mode & (S_IWGRP | S_IWOTH))
		return plan_error(err, err_size, -EPERM, "others can write it, and a plan holds code: chmod go-w it");
	return 0;
}

static int check_file(int fd, bool any_owner, size_t *size, char *err, size_t err_size)
{
	struct stat st;

	if (fstat(fd, &st))
		return plan_error(err, err_size, -errno, "%s", strerror(errno));
	if (!S_ISREG(st.st_mode))
		return plan_error(err, err_size, -EINVAL, "not a regular file");
	if ((uint64_t)st.st_size > PLAN_HEADER_SIZE + PLAN_MAX_TEXT + 16 + PLAN_MAX_CODE)
		return plan_error(err, err_size, -EFBIG, "too large for a plan");
	*size = (size_t)st.st_size;
	return any_owner ? 0 : check_owner(&st, err, err_size);
}

/* Bytes read, or -errno. A file that shrinks meanwhile gives fewer; the header check says so. */
static ssize_t read_all(int fd, uint8_t *bytes, size_t size)
{
	size_t done = 0;
	ssize_t n;

	while (done < size) {
		n = read(fd, bytes + done, size - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

static int read_checked(int fd, bool any_owner, struct terra_plan **out, char *err, size_t err_size)
{
	uint8_t *bytes = NULL;
	size_t size = 0;
	ssize_t n;
	int ret = check_file(fd, any_owner, &size, err, err_size);

	if (ret)
		return ret;
	bytes = malloc(size + 1);
	if (!bytes)
		return plan_error(err, err_size, -ENOMEM, "out of memory");
	n = read_all(fd, bytes, size);
	ret = n < 0 ? plan_error(err, err_size, (int)n, "%s", strerror((int)-n))
		    : plan_decode(bytes, (size_t)n, out, err, err_size);
	free(bytes);
	return ret;
}

int terra_plan_read(const char *path, bool any_owner, struct terra_plan **out, char *err, size_t err_size)
{
	int fd, ret;

	*out = NULL;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a FIFO must not block a program's start */
	if (fd < 0)
		return plan_error(err, err_size, -errno, "%s", strerror(errno));
	ret = read_checked(fd, any_owner, out, err, err_size);
	close(fd);
	return ret;
}

static int write_all(int fd, const uint8_t *bytes, size_t size)
{
	ssize_t n;

	while (size) {
		n = write(fd, bytes, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		bytes += n;
		size -= (size_t)n;
	}
	return fsync(fd) ? -errno : 0;
}

static int write_and_rename(const char *temporary, int fd, const char *path, const uint8_t *bytes, size_t size)
{
	int ret = write_all(fd, bytes, size);

	if (!ret && fchmod(fd, 0600))
		ret = -errno;
	if (close(fd) && !ret)
		ret = -errno;
	if (!ret && rename(temporary, path))
		ret = -errno;
	if (ret)
		unlink(temporary);
	return ret;
}

static int write_bytes(const char *path, const uint8_t *bytes, size_t size)
{
	size_t n = strlen(path) + sizeof(".XXXXXX");
	char *temporary = malloc(n);
	int fd, ret;

	if (!temporary)
		return -ENOMEM;
	snprintf(temporary, n, "%s.XXXXXX", path);
	fd = mkostemp(temporary, O_CLOEXEC);
	ret = fd < 0 ? -errno : write_and_rename(temporary, fd, path, bytes, size);
	free(temporary);
	return ret;
}

int terra_plan_write(const struct terra_plan *plan, const char *path, char *err, size_t err_size)
{
	sigset_t all, before;
	uint8_t *bytes;
	size_t size;
	int ret = plan_encode(plan, &bytes, &size, err, err_size);

	if (ret)
		return ret;
	/* An interrupt must not leave the temporary file behind: it waits until the rename. */
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	ret = write_bytes(path, bytes, size);
	sigprocmask(SIG_SETMASK, &before, NULL);
	free(bytes);
	if (ret)
		return plan_error(err, err_size, ret, "%s", strerror(-ret));
	return 0;
}
