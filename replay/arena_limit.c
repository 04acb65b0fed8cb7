/* arena_limit.c - how much more memory the process may take.
 *
 * A limit that the program meets without us must not be met earlier with us: memory kept for reuse counts against it,
 * and neither malloc nor the kernel's control group asks us before failing. So near a limit little is kept.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "replay/arena_internal.h"

static struct {
	uint64_t limit;
	char usage_file[PATH_MAX]; /* empty: no limit */
	const char *usage_key;
} group;

/* libc's own: replay wraps the plain name, and its wrapper may look up symbols, which the arena's lock forbids. */
ssize_t __read(int fd, void *p, size_t n);

/* Reads a small file of /proc or /sys without malloc or stdio. */
static bool read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = __read(fd, text, size - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	return n > 0;
}

/* The value after `key` at the start of a line; UINT64_MAX when there is none or it isn't a number ("max"). */
static uint64_t value_of(const char *text, const char *key)
{
	size_t n = strlen(key);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, n) && line[n] >= '0' && line[n] <= '9')
			return strtoull(line + n, NULL, 10);
	}
	return UINT64_MAX;
}

/* Takes the group's limit when it is lower than those of the groups looked at before. */
static void look_at_group(const char *dir, const char *limit_file, const char *usage_key)
{
	char path[PATH_MAX], text[64];
	uint64_t limit;

	if (snprintf(path, sizeof(path), "%s/%s", dir, limit_file) >= (int)sizeof(path) ||
	    !read_text(path, text, sizeof(text)))
		return;
	limit = value_of(text, "");
	if (limit >= group.limit ||
	    snprintf(group.usage_file, sizeof(group.usage_file), "%s/memory.stat", dir) >= (int)sizeof(group.usage_file))
		return;
	group.limit = limit;
	group.usage_key = usage_key;
}

/* A limit of any group above counts as well. In a container the path may not be visible: then its root is. */
static void look_at_groups(const char *root, const char *name, const char *limit_file, const char *usage_key)
{
	char dir[PATH_MAX];
	int n = snprintf(dir, sizeof(dir), "%s%s", root, name);

	while (n < (int)sizeof(dir) && strlen(dir) >= strlen(root)) {
		char *slash;

		look_at_group(dir, limit_file, usage_key);
		slash = strrchr(dir, '/');
		if (!slash || slash == dir)
			break;
		*slash = 0;
	}
}

void limit_find_group(const char *membership, const char *v2_root, const char *v1_root)
{
	char text[4096];

	group.limit = UINT64_MAX;
	group.usage_file[0] = 0;
	if (!read_text(membership, text, sizeof(text)))
		return;
	for (char *line = text, *end; *line; line = end) {
		char *controllers = strchr(line, ':');

		end = strchrnul(line, '\n');
		if (*end)
			*end++ = 0;
		if (controllers && !strncmp(controllers, "::", 2))
			look_at_groups(v2_root, controllers + 2, "memory.max", "anon ");
		else if (controllers && !strncmp(controllers, ":memory:", 8))
			look_at_groups(v1_root, controllers + 8, "memory.limit_in_bytes", "total_rss ");
	}
}

void limit_init(void)
{
	struct sysinfo info;

	limit_find_group("/proc/self/cgroup", "/sys/fs/cgroup", "/sys/fs/cgroup/memory");
	if (!sysinfo(&info) && group.limit >= (uint64_t)info.totalram * info.mem_unit)
		group.usage_file[0] = 0; /* the machine itself is smaller */
}

static uint64_t left_of(uint64_t limit, uint64_t used)
{
	return limit > used ? limit - used : 0;
}

static uint64_t group_headroom(void)
{
	char text[8192];
	uint64_t used;

	if (!group.usage_file[0] || !read_text(group.usage_file, text, sizeof(text)))
		return UINT64_MAX;
	used = value_of(text, group.usage_key);
	return used == UINT64_MAX ? used : left_of(group.limit, used);
}

/* Address space and data, in pages: fields 1 and 6 of statm. */
static uint64_t process_headroom(void)
{
	struct rlimit as, data;
	unsigned long pages[6] = {0};
	uint64_t room, data_room;
	char text[256], *at = text;

	if (getrlimit(RLIMIT_AS, &as) || getrlimit(RLIMIT_DATA, &data))
		return UINT64_MAX;
	if (as.rlim_cur == RLIM_INFINITY && data.rlim_cur == RLIM_INFINITY)
		return UINT64_MAX;
	if (!read_text("/proc/self/statm", text, sizeof(text)))
		return UINT64_MAX;
	for (int i = 0; i < 6; i++)
		pages[i] = strtoul(at, &at, 10);
	room = left_of(as.rlim_cur, pages[0] * PAGE_BYTES);
	data_room = left_of(data.rlim_cur, pages[5] * PAGE_BYTES);
	return room < data_room ? room : data_room;
}

uint64_t limit_headroom(void)
{
	uint64_t process = process_headroom(), control_group = group_headroom();

	return process < control_group ? process : control_group;
}
