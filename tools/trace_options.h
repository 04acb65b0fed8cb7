/* trace_options.h - what terra-trace is asked for. */
#ifndef TERRA_TOOLS_TRACE_OPTIONS_H
#define TERRA_TOOLS_TRACE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "collector/gate.h"

enum backend { BACKEND_AUTO, BACKEND_BPF, BACKEND_PRELOAD };

struct options {
	const char *output, *library;
	const char *gpu; /* kinds of activity, NULL: the usual ones */
	char *ops; /* malloc'ed; NULL: all */
	enum backend backend;
	uint32_t levels;
	struct terra_limits limits;
	size_t buffer_bytes;
	pid_t pid; /* 0: the command is started */
	bool stacks, children, quiet, list_ops, json;
	char *const *argv;
};

/* Ends the program after --help and wrong usage. */
void options_parse(int argc, char **argv, struct options *out);

/* A message to the user, on a line of its own. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

#endif
