/* cache.c - checksummed cache files; see cache.h. */
#include "probes/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "TERRAC1\n"
#define MAX_SIZE ((uint64_t)256 << 20)

struct cache_header {
	char magic[8];
	struct terra_cache_key key;
	uint64_t size;
	uint64_t checksum; /* of the contents */
};

/* A multiply-rotate hash over words: guards against damage, not against an attacker, who could rewrite it anyway. */
static uint64_t hash_bytes(const void *data, size_t size)
{
	const uint8_t *at = data;
	uint64_t hash = 0x9e3779b97f4a7c15u ^ size;

	for (; size > 0;) {
		size_t n = size < sizeof(uint64_t) ? size : sizeof(uint64_t);
		uint64_t word = 0;

		memcpy(&word, at, n);
		hash = (hash ^ word) * 0xff51afd7ed558ccdu;
		hash ^= hash >> 29;
		at += n;
		size -= n;
	}
	return hash;
}

int terra_cache_key_make(const struct terra_elf *elf, uint64_t layout, struct terra_cache_key *key)
{
	memset(key, 0, sizeof(*key));
	if (elf->build_id_size == 0)
		return -ENODATA;
	memcpy(key->build_id, elf->build_id, elf->build_id_size);
	key->file_size = elf->size;
	key->symbols_hash = hash_bytes(elf->symbols, elf->n_symbols * sizeof(*elf->symbols));
	key->layout = layout;
	return 0;
}

static int folder_path(char *path, size_t size)
{
	const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	int n;

	/* With elevated rights the environment is someone else's. */
	if (getauxval(AT_SECURE))
		return -EPERM;
	if (base && base[0] == '/')
		n = snprintf(path, size, "%s/terra", base);
	else if (home && home[0] == '/')
		n = snprintf(path, size, "%s/.cache/terra", home);
	else
		return -ENOENT;
	return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

static int file_path(const char *kind, const struct terra_cache_key *key, char *path, size_t size)
{
	char hex[2 * TERRA_BUILD_ID_MAX + 1];
	size_t used;
	int n, err = folder_path(path, size);

	if (err)
		return err;
	for (size_t i = 0; i < TERRA_BUILD_ID_MAX; i++)
		snprintf(hex + 2 * i, 3, "%02x", key->build_id[i]);
	used = strlen(path);
	n = snprintf(path + used, size - used, "/%s-%s.bin", kind, hex);
	return n < 0 || (size_t)n >= size - used ? -ENAMETOOLONG : 0;
}

static int read_all(int fd, void *buffer, size_t size)
{
	uint8_t *at = buffer;

	while (size > 0) {
		ssize_t n = read(fd, at, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		at += n;
		size -= (size_t)n;
	}
	return 0;
}

static int write_all(int fd, const void *buffer, size_t size)
{
	const uint8_t *at = buffer;

	while (size > 0) {
		ssize_t n = write(fd, at, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		at += n;
		size -= (size_t)n;
	}
	return 0;
}

/* Only a file that nobody else could have written is believed. */
static bool is_private(int fd, size_t contents)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() &&
	       (st.st_mode & (S_IWGRP | S_IWOTH)) == 0 &&
	       (uint64_t)st.st_size == sizeof(struct cache_header) + contents;
}

static int read_contents(int fd, const struct terra_cache_key *key, void **data, size_t *size)
{
	struct cache_header header;
	void *contents;
	int err = read_all(fd, &header, sizeof(header));

	if (err)
		return err;
	if (memcmp(header.magic, MAGIC, sizeof(header.magic)) != 0 || memcmp(&header.key, key, sizeof(*key)) != 0)
		return -ESTALE;
	if (header.size == 0 || header.size > MAX_SIZE || !is_private(fd, header.size))
		return -EBADMSG;
	contents = malloc(header.size);
	if (!contents)
		return -ENOMEM;
	err = read_all(fd, contents, header.size);
	if (!err && hash_bytes(contents, header.size) != header.checksum)
		err = -EBADMSG;
	if (err) {
		free(contents);
		return err;
	}
	*data = contents;
	*size = header.size;
	return 0;
}

int terra_cache_read(const char *kind, const struct terra_cache_key *key, void **data, size_t *size)
{
	char path[PATH_MAX];
	int fd, err = file_path(kind, key, path, sizeof(path));

	if (err)
		return err;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return -errno;
	err = read_contents(fd, key, data, size);
	close(fd);
	return err;
}

/* mkdir -p for the folder of `path`. */
static int make_folder(const char *path)
{
	char part[PATH_MAX];
	size_t size = strlen(path);

	if (size >= sizeof(part))
		return -ENAMETOOLONG;
	for (size_t i = 1; i < size; i++) {
		if (path[i] != '/')
			continue;
		memcpy(part, path, i);
		part[i] = '\0';
		if (mkdir(part, 0700) < 0 && errno != EEXIST)
			return -errno;
	}
	return 0;
}

int terra_cache_write(const char *kind, const struct terra_cache_key *key, const void *data, size_t size)
{
	struct cache_header header = {.key = *key, .size = size, .checksum = hash_bytes(data, size)};
	char path[PATH_MAX], temporary[PATH_MAX + 8];
	int fd, err = file_path(kind, key, path, sizeof(path));

	if (!err)
		err = make_folder(path);
	if (err)
		return err;
	memcpy(header.magic, MAGIC, sizeof(header.magic));
	snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path);
	fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	err = write_all(fd, &header, sizeof(header));
	if (!err)
		err = write_all(fd, data, size);
	if (close(fd) < 0 && !err)
		err = -errno;
	if (!err && rename(temporary, path) < 0)
		err = -errno;
	if (err)
		unlink(temporary);
	return err;
}
