/* library.h - a libtorch that processes of a recording use: its table, offsets and backend. Private to the session. */
#ifndef TERRA_COLLECTOR_BPF_LIBRARY_H
#define TERRA_COLLECTOR_BPF_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>

#include "collector/bpf/backend.h"
#include "collector/bpf/session.h"
#include "probes/collectives.h"

struct recording;

struct library {
	struct library *next;
	char path[4096];
	struct terra_op_table *ops_table; /* of the entry points */
	struct terra_collectives collectives;
	const struct terra_op_table *table; /* both, which is what is probed */
	struct terra_offsets offsets;
	uint8_t *wanted; /* NULL: all are recorded */
	struct terra_bpf *bpf;
	struct recording *recordings[TERRA_BPF_TARGETS]; /* whose records are in the ring, by target */
};

/* 0 or -errno with a message. */
int library_open(const char *path, const struct terra_session_options *options, struct library **out, char *err,
		 size_t err_size);
void library_close(struct library *library);

/* Whether `path` is its file. */
bool library_is(const struct library *library, const char *path);

#endif
