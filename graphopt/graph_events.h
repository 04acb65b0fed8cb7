/* graph_events.h - private to graph_build.c: the op events of one iteration as a tree, and values as graph arguments.
 */
#ifndef TERRA_GRAPHOPT_GRAPH_EVENTS_H
#define TERRA_GRAPHOPT_GRAPH_EVENTS_H

#include "collector/iterations.h"
#include "collector/trace.h"
#include "graphopt/graph.h"

struct op_event { /* an OP_ENTER with what its OP_EXIT added */
	uint64_t seq;
	uint64_t keyset;
	uint64_t time_ns;
	uint32_t parent; /* index, GRAPH_NONE: none in the iteration */
	uint32_t first_child, next_sibling, last_child;
	uint8_t level;
	bool exited;
	bool has_results;
	struct graph_op op;
};

struct op_events {
	struct op_event *items; /* malloc'ed; what they point to belongs to the graph */
	uint32_t n, capacity;
};

/* graph_args.c. Return 0 or -ENOMEM. */
int graph_arg_from(struct graph *graph, const struct terra_value *value, struct graph_arg *out);
int graph_results_from(struct graph *graph, const struct terra_event *event, struct graph_op *op);

/* graph_levels.c: makes the graph's ops of the events that are the program's ops as the backend sees them. */
int graph_choose_ops(struct graph *graph, const struct op_events *events);

#endif
