/* extensions.h - libraries of a process that are not libtorch's and that a recording has to know of: those that register ops
 * of their own, which have no entry points in libtorch, and those in which handlers of exceptions begin. */
#ifndef TERRA_COLLECTOR_EXTENSIONS_H
#define TERRA_COLLECTOR_EXTENSIONS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Files that were looked at. Zero it before the first use. */
struct terra_extensions {
	uint64_t *files;
	size_t n, capacity;
};

enum terra_extension_what {
	TERRA_EXTENSION_OPS,     /* registers ops; never one in the folder of libtorch_cpu.so */
	TERRA_EXTENSION_CATCHES, /* probes/catches.h, by its name */
};

typedef int (*terra_extension_found)(void *context, enum terra_extension_what what, const char *path);

/* Calls `found` for every such library that process `pid` has mapped since the last call, by the process' own path; the
 * libtorch_cpu.so it uses is at `libtorch`. Stops when `found` returns an error and passes that on; a
 * process that is over has nothing mapped. 0 or -ENOMEM. */
int terra_extensions_look(struct terra_extensions *extensions, pid_t pid, const char *libtorch,
			  terra_extension_found found, void *context);
void terra_extensions_free(struct terra_extensions *extensions);

/* What a trace says of one that registers ops. */
void terra_extensions_remark(const char *path, char *out, size_t size);

#endif
