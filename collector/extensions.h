/* extensions.h - libraries of a process that register ops of their own, which have no entry points in libtorch. */
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

/* Calls `found` for every library that process `pid` has mapped since the last call, that registers ops, and that is not
 * in the folder of the libtorch_cpu.so at `libtorch`. Stops when `found` returns an error and passes that on; a
 * process that is over has nothing mapped. 0 or -ENOMEM. */
int terra_extensions_look(struct terra_extensions *extensions, pid_t pid, const char *libtorch,
			  int (*found)(void *context, const char *path), void *context);
void terra_extensions_free(struct terra_extensions *extensions);

/* What a trace says of one. */
void terra_extensions_remark(const char *path, char *out, size_t size);

#endif
