/* regions.h - private to the passes: the canonical lines of a region as it grows op by op.
 *
 * Replay names the tensors of a running program by the same rules (replay/match.c). Whatever a line says here that
 * replay would say otherwise makes a region that never runs, not a wrong one.
 */
#ifndef TERRA_GRAPHOPT_REGIONS_H
#define TERRA_GRAPHOPT_REGIONS_H

#include "graphopt/graph.h"

struct region_memory { /* a result, or an outside tensor */
	uint32_t storage;
	int64_t offset;
	uint64_t begin, end; /* bytes of the storage */
	bool full;
	bool columns; /* column numbers: token r */
	uint8_t ndim; /* of a strided one: over the op's dims, collapsed */
	int64_t size[GRAPH_MAX_DIM], stride[GRAPH_MAX_DIM];
};

struct region_builder {
	struct graph *graph;
	uint32_t n_ops, n_inputs, n_scalars;
	int64_t columns; /* of a region by rows (plan.h), else 0 */
	bool by_blocks;	 /* it has what only blocks have: an input that broadcasts, a function of blocks */
	struct terra_plan_op line[TERRA_PLAN_MAX_OPS];
	struct region_memory result[TERRA_PLAN_MAX_OPS];
	struct region_memory input[TERRA_PLAN_MAX_INPUTS];
};

void region_begin(struct region_builder *builder, struct graph *graph);
/* Appends the op. NULL, or why the region can't go on with it (static text); the builder is then as before. */
const char *region_append(struct region_builder *builder, const struct graph_op *op);

/* Why the op can't be part of any region (static or graph-owned text), or NULL. */
const char *region_op_blocker(struct graph *graph, const struct graph_op *op);

#endif
