/* installed.c - the plan that terra-opt --install left for this program, if any. */
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "graphopt/plan_ops.h"
#include "replay/replay.h"

static char arguments[65536];

/* The script among a Python command line's arguments: the first that is no option; none after -c and -m. */
static const char *script_argument(size_t size)
{
	const char *end = arguments + size;

	for (const char *p = arguments + strlen(arguments) + 1; p < end; p += strlen(p) + 1) {
		if (strcmp(p, "-c") == 0 || strcmp(p, "-m") == 0)
			return NULL;
		if (p[0] != '-')
			return p;
		if (strcmp(p, "-W") == 0 || strcmp(p, "-X") == 0)
			p += strlen(p) + 1;
	}
	return NULL;
}

const char *plan_installed_path(const char *build_id)
{
	static char path[PATH_MAX];
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, arguments, sizeof(arguments) - 1) : -1;
	const char *script;

	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return NULL;
	script = script_argument((size_t)n);
	if (script == NULL || terra_plan_install_path(script, build_id, path, sizeof(path)) != 0)
		return NULL;
	return access(path, F_OK) == 0 ? path : NULL;
}
