/* plan_path.c - where installed plans live. terra-opt writes there and replay looks there, by the same rule. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/plan_internal.h"
#include "graphopt/plan_ops.h"

#define FNV_OFFSET 0xcbf29ce484222325u
#define FNV_PRIME 0x100000001b3u

/* FNV-1a, over the text and its terminator, so that two texts in a row can't be read as two others. */
static uint64_t fnv1a(uint64_t hash, const char *text)
{
	do {
		hash = (hash ^ (unsigned char)*text) * FNV_PRIME;
	} while (*text++);
	return hash;
}

/* The XDG specification has relative paths ignored. */
static int cache_folder(char *out, size_t n)
{
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	int length;

	if (cache && cache[0] == '/')
		length = snprintf(out, n, "%s/terra/plans", cache);
	else if (home && home[0] == '/')
		length = snprintf(out, n, "%s/.cache/terra/plans", home);
	else
		return -ENOENT;
	return (size_t)length < n ? 0 : -ENAMETOOLONG;
}

int terra_plan_install_path(const char *script_path, const char *build_id_hex, char *out, size_t n)
{
	char real[PATH_MAX], folder[PATH_MAX];
	uint64_t hash;
	int ret;

	if (!realpath(script_path, real))
		return -errno;
	ret = cache_folder(folder, sizeof(folder));
	if (ret)
		return ret;
	hash = fnv1a(fnv1a(FNV_OFFSET, real), build_id_hex);
	ret = snprintf(out, n, "%s/%016llx.plan", folder, (unsigned long long)hash);
	return (size_t)ret < n ? 0 : -ENAMETOOLONG;
}
