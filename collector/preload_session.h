/* preload_session.h - how the preload backend is asked to record: through the environment of the program. */
#ifndef TERRA_COLLECTOR_PRELOAD_SESSION_H
#define TERRA_COLLECTOR_PRELOAD_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "collector/gate.h"

struct terra_preload_options {
	const char *recorder; /* libterra_record.so */
	const char *output;   /* absolute path of the trace file */
	uint32_t levels;      /* which entry points, as terra_op_chosen has it */
	bool stacks;
	bool children;	      /* record the processes that the program starts */
	const char *ops;      /* patterns as in op_filter.h; NULL: all */
	const char *failures; /* where recorders tell that they failed; "" or NULL: nowhere */
	struct terra_limits limits; /* of each process */
};

/* A copy of `environment` with the recorder in front of what LD_PRELOAD holds. malloc'ed as one array whose strings are
 * freed by terra_preload_environment_free. NULL when out of memory. */
char **terra_preload_environment(char *const *environment, const struct terra_preload_options *options);
void terra_preload_environment_free(char **environment);

/* A socket for recorders that fail, and its name: a file could not be written by one whose disk is full. Negative where there is
 * none, and then "" is the name. */
int terra_preload_listen(char *name, size_t size);
/* Whether one did. Closes the socket. */
bool terra_preload_failed(int fd);
/* In the recorder. */
void terra_preload_tell_failure(const char *name);

/* The recorder that was installed or built with the running program: ../lib beside its folder. 0 or -errno. */
int terra_preload_find(char *path, size_t size);
/* Likewise any library of ours. */
int terra_library_find(const char *name, char *path, size_t size);

#endif
