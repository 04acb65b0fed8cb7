/* real_torch.h - the libtorch of this machine, for tests of what only a real one shows. They skip without one. */
#ifndef TERRA_TESTS_REAL_TORCH_H
#define TERRA_TESTS_REAL_TORCH_H

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probes/find.h"

/* TERRA_LIBTORCH, the active environment, python3, or the environment that tools/setup makes. NULL: none. */
static inline const char *real_torch(void)
{
	static char path[PATH_MAX];
	char python[PATH_MAX];
	const char *home = getenv("HOME");

	if (*path || terra_find_libtorch(NULL, path, sizeof(path)) == 0)
		return path;
	snprintf(python, sizeof(python), "%s/.cache/terra/venv/bin/python3", home ? home : "");
	return terra_find_libtorch(python, path, sizeof(path)) == 0 ? path : NULL;
}

/* Runs `body` in a child, which loads libtorch there and not in the test. 0: it returned 0. */
static inline int in_child(int (*body)(const char *path), const char *path)
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		int code = body(path);

		fflush(NULL);
		_exit(code);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

#define REQUIRE_TORCH() \
	do { \
		if (!real_torch()) { \
			print_message("skipped: no libtorch_cpu.so found (set TERRA_LIBTORCH)\n"); \
			skip(); \
		} \
	} while (0)

/* In a child: says what differed and where, and makes the body fail. */
#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
			return 1; \
		} \
	} while (0)

#endif
