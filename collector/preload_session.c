/* The environment that makes a program record itself. */
#include "collector/preload_session.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "probes/op.h"

static const char *const names[] = {
	"LD_PRELOAD=",		    "TERRA_RECORD_FILE=",	"TERRA_RECORD_LEVELS=",	  "TERRA_RECORD_STACKS=",
	"TERRA_RECORD_ITERATIONS=", "TERRA_RECORD_START_AFTER=", "TERRA_RECORD_DURATION=", "TERRA_RECORD_MAX_SIZE=",
	"TERRA_RECORD_FLIGHT=",	    "TERRA_RECORD_OPS=",	"TERRA_RECORD_CHILDREN=", "TERRA_RECORD_FAILURES=",
};

#define N_VARIABLES (sizeof(names) / sizeof(*names))

static bool is_ours(const char *variable)
{
	for (size_t i = 0; i < N_VARIABLES; i++)
		if (!strncmp(variable, names[i], strlen(names[i])))
			return true;
	return false;
}

static const char *value_of(char *const *environment, const char *name)
{
	for (; *environment; environment++)
		if (!strncmp(*environment, name, strlen(name)))
			return *environment + strlen(name);
	return "";
}

__attribute__((format(printf, 2, 3))) static bool put(char ***at, const char *format, ...)
{
	va_list arguments;
	int n;

	va_start(arguments, format);
	n = vasprintf(*at, format, arguments);
	va_end(arguments);
	if (n < 0) {
		**at = NULL;
		return false;
	}
	++*at;
	return true;
}

static const char *levels_text(uint32_t levels)
{
	if (levels == TERRA_LEVELS_OPS)
		return "ops";
	if (levels == 1u << TERRA_LEVEL_CALL)
		return "call";
	return levels == 1u << TERRA_LEVEL_REDISPATCH ? "redispatch" : "call,redispatch";
}

static bool put_number(char ***at, const char *name, uint64_t n)
{
	return !n || put(at, "TERRA_RECORD_%s=%llu", name, (unsigned long long)n);
}

static bool put_limits(char ***at, const struct terra_limits *limits)
{
	return put_number(at, "ITERATIONS", limits->iterations) &&
	       put_number(at, "START_AFTER", limits->start_after) &&
	       put_number(at, "DURATION", limits->duration_ns) && put_number(at, "MAX_SIZE", limits->max_bytes) &&
	       put_number(at, "FLIGHT", limits->flight_ns);
}

static bool put_ours(char ***at, char *const *environment, const struct terra_preload_options *options)
{
	const char *preload = value_of(environment, "LD_PRELOAD=");

	return put(at, "LD_PRELOAD=%s%s%s", options->recorder, *preload ? ":" : "", preload) &&
	       put(at, "TERRA_RECORD_FILE=%s", options->output) &&
	       put(at, "TERRA_RECORD_LEVELS=%s", levels_text(options->levels)) &&
	       put(at, "TERRA_RECORD_STACKS=%d", options->stacks) && put_limits(at, &options->limits) &&
	       (!options->failures || !options->failures[0] || put(at, "TERRA_RECORD_FAILURES=%s", options->failures)) &&
	       (!options->ops || put(at, "TERRA_RECORD_OPS=%s", options->ops)) &&
	       (options->children || put(at, "TERRA_RECORD_CHILDREN=0"));
}

char **terra_preload_environment(char *const *environment, const struct terra_preload_options *options)
{
	size_t n = 0;
	char **copy, **at;
	bool ok = true;

	while (environment[n])
		n++;
	copy = calloc(n + N_VARIABLES + 1, sizeof(*copy));
	if (!copy)
		return NULL;
	at = copy;
	for (size_t i = 0; ok && i < n; i++)
		if (!is_ours(environment[i]))
			ok = put(&at, "%s", environment[i]);
	if (ok && put_ours(&at, environment, options))
		return copy;
	terra_preload_environment_free(copy);
	return NULL;
}

void terra_preload_environment_free(char **environment)
{
	for (char **at = environment; at && *at; at++)
		free(*at);
	free(environment);
}

/* Abstract: not in the file system, and gone with us. The kernel makes up a name, of five digits behind a zero byte. */
int terra_preload_listen(char *name, size_t size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	socklen_t length = sizeof(address);
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	name[0] = 0;
	if (fd >= 0 && !bind(fd, (struct sockaddr *)&address, sizeof(address.sun_family)) &&
	    !getsockname(fd, (struct sockaddr *)&address, &length))
		snprintf(name, size, "%.*s", (int)(length - offsetof(struct sockaddr_un, sun_path) - 1), address.sun_path + 1);
	return fd;
}

bool terra_preload_failed(int fd)
{
	char byte;
	bool failed = fd >= 0 && recv(fd, &byte, 1, 0) == 1;

	if (fd >= 0)
		close(fd);
	return failed;
}

void terra_preload_tell_failure(const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t n = strlen(name);
	int fd;

	if (!n || n >= sizeof(address.sun_path))
		return;
	memcpy(address.sun_path + 1, name, n);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return;
	sendto(fd, "!", 1, 0, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n));
	close(fd);
}

int terra_library_find(const char *name, char *path, size_t size)
{
	char self[4096], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n < 0)
		return -errno;
	self[n] = 0;
	for (int i = 0; i < 2; i++) {
		slash = strrchr(self, '/');
		if (!slash)
			return -ENOENT;
		*slash = 0;
	}
	if ((size_t)snprintf(path, size, "%s/lib/%s", self, name) >= size)
		return -ENAMETOOLONG;
	return access(path, R_OK) ? -errno : 0;
}

int terra_preload_find(char *path, size_t size)
{
	return terra_library_find("libterra_record.so", path, size);
}
