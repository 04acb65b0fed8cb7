/* pass_kinds.c - what each op is to a run of fusible ops: part of it, no obstacle, or its end.
 *
 * kinds finds what a rule computes; inplace, passive and small each let more ops into or between the ops of a run and
 * can be left out for what they are worth.
 */
#include <errno.h>
#include <string.h>

#include "graphopt/graph.h"
#include "graphopt/plan_ops.h"
#include "graphopt/regions.h"

#define SMALL_BYTES 256 /* smaller blocks are not replay's memory: nothing in them ever waits */

static const char in_place[] = "works in place";

int pass_kinds(struct graph *graph, char *err, size_t err_size)
{
	uint32_t i;

	for (i = 0; i < graph->n_ops; i++) {
		struct graph_op *op = &graph->ops[i];

		op->reason = region_op_blocker(graph, op);
		if (!op->reason && terra_plan_op_in_place(op->name))
			op->reason = in_place;
		op->class = op->reason ? GRAPH_STOP : GRAPH_FUSIBLE;
	}
	return 0;
}

int pass_inplace(struct graph *graph, char *err, size_t err_size)
{
	uint32_t i;

	for (i = 0; i < graph->n_ops; i++) {
		struct graph_op *op = &graph->ops[i];

		if (op->class == GRAPH_STOP && !strcmp(op->reason, in_place)) {
			op->class = GRAPH_FUSIBLE;
			op->reason = NULL;
		}
	}
	return 0;
}

/* Whether all results are memory of an argument, which the op's name does not say it writes. */
static bool returns_arguments(const struct graph_op *op)
{
	uint32_t i, j, k;
	bool found = op->n_results > 0;

	for (i = 0; i < op->n_results && found; i++) {
		found = false;
		for (j = 0; j < op->n_args && !found; j++)
			for (k = 0; k < op->args[j].n && !found; k++)
				found = op->args[j].tensor[k].storage == op->results[i].storage &&
					op->args[j].tensor[k].version == op->results[i].version;
	}
	return found && !terra_plan_op_in_place(op->name);
}

/* Known by name, as replay knows it; or an op that replay never sees and that handed back what it was given (`to` of
 * the type that the tensor has). */
static bool is_passive(const struct graph_op *op)
{
	return passive_op(op->name) || (op->call_only && returns_arguments(op));
}

int pass_passive(struct graph *graph, char *err, size_t err_size)
{
	uint32_t i;

	for (i = 0; i < graph->n_ops; i++) {
		struct graph_op *op = &graph->ops[i];

		if (op->class != GRAPH_STOP || op->raised || !is_passive(op))
			continue;
		op->class = GRAPH_PASSIVE;
		op->reason = NULL;
	}
	return 0;
}

static bool tensors_are_small(const struct graph_tensor *tensors, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		if (tensors[i].bytes >= SMALL_BYTES)
			return false;
	return true;
}

static bool is_small(const struct graph_op *op)
{
	uint32_t i;

	for (i = 0; i < op->n_args; i++)
		if (op->args[i].kind == GRAPH_OTHER || !tensors_are_small(op->args[i].tensor, op->args[i].n))
			return false;
	return tensors_are_small(op->results, op->n_results);
}

int pass_small(struct graph *graph, char *err, size_t err_size)
{
	uint32_t i;

	for (i = 0; i < graph->n_ops; i++) {
		struct graph_op *op = &graph->ops[i];

		if (op->class != GRAPH_STOP || op->raised || !is_small(op))
			continue;
		op->class = GRAPH_SMALL;
		op->reason = NULL;
	}
	return 0;
}
