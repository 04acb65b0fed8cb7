/* ranks.h - the ranks of a distributed program side by side: their traces, aligned by collective.
 *
 * The n-th collective of one rank belongs to the n-th of every other: torch.distributed requires the same order of all
 * of a process group. Several groups with other members each are not told apart: there the order of all of them is only
 * compared up to the first difference. Point to point messages (send, recv) are counted and not matched.
 */
#ifndef TERRA_COLLECTOR_RANKS_H
#define TERRA_COLLECTOR_RANKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "collector/process.h"

/* Wherever the file is called what terra-trace calls an index. */
bool terra_ranks_is_index(const char *path);

struct terra_collective {
	char *what; /* "c10d::allreduce_ [2372] float32": what has to agree */
	char *from; /* "train.py:12 main", "" when not recorded */
	uint64_t elements; /* of the tensors that were recorded */
	uint64_t enter_ns;
	bool point_to_point;
};

struct terra_rank {
	struct terra_index_entry entry; /* file is the whole path */
	struct terra_collective *items;
	uint32_t n, capacity;
};

struct terra_ranks {
	struct terra_rank *ranks; /* traces with a collective, by rank; without any: none */
	uint32_t n, n_traces;
	struct terra_index_entry *others; /* traces without */
	uint32_t n_others;
	uint32_t matched; /* collectives, from the first on, that agree in all ranks */
	uint32_t most;	  /* that a rank has */
};

/* Reads the index and its traces. 0 or -errno with a message. */
int terra_ranks_load(const char *index, struct terra_ranks *out, char *err, size_t err_size);
void terra_ranks_free(struct terra_ranks *ranks);

void terra_ranks_print(const struct terra_ranks *ranks, const char *index, FILE *out);
void terra_ranks_json(const struct terra_ranks *ranks, const char *index, FILE *out);

#endif
