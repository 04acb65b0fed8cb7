/* pass_cost.c - what a region is expected to save, before anything is measured.
 *
 * Elementwise ops on large tensors are bound by memory traffic: one by one, each op reads its operands and writes its
 * result; fused, each outside tensor is read once and only what is still needed is written. Against that stands what it
 * costs to let a region wait: its memory is protected and opened again, and it is looked up op by op.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/graph.h"
#include "graphopt/plan_ops.h"

/* Orders of magnitude, not measurements: regions that pass are measured (check.h). */
#define BYTES_PER_NS 8.0	 /* memory traffic of one op */
#define CACHED_BYTES_PER_NS 32.0 /* of an op whose tensors fit the caches */
#define CACHE_BYTES (1 << 20)
#define OP_NS 1500.0	      /* dispatch inside the framework, allocation, entering the threads */
#define LOOKUP_NS 500.0	      /* per op that waits */
#define GUARD_NS 40000.0      /* per region whose tensors are large */
#define GUARD_SMALL_NS 4000.0 /* when they share their pages with others: split between the regions of a flush */
#define GUARD_LARGE_BYTES (1 << 20)

struct instance {
	const struct graph *graph;
	const struct graph_region *region;
	const uint32_t *at;
	int64_t numel;
};

static double domain_bytes(const struct instance *instance)
{
	return 4.0 * (double)instance->numel;
}

/* Tensor operands of one op with the domain's size, and what broadcasts by its own size. */
static double read_bytes(const struct graph_op *op)
{
	double bytes = 0;
	uint32_t i;

	for (i = 0; i < op->n_args; i++)
		if (op->args[i].kind == GRAPH_TENSOR)
			bytes += 4.0 * (double)op->args[i].tensor->numel;
	return bytes;
}

static double eager_bytes(const struct instance *instance)
{
	double bytes = 0;
	uint32_t k;

	for (k = 0; k < instance->region->n_ops; k++)
		bytes += read_bytes(&instance->graph->ops[instance->at[k]]) + domain_bytes(instance);
	return bytes;
}

/* Outside tensors, each once: lines are numbered by first use, so a new number is a new tensor. */
static double input_bytes(const struct instance *instance)
{
	double bytes = 0;
	uint32_t k, i;
	int seen = 0;

	for (k = 0; k < instance->region->n_ops; k++) {
		const struct terra_plan_op *line = &instance->region->lines[k];
		const struct graph_op *op = &instance->graph->ops[instance->at[k]];

		for (i = 0; i < line->n_args && i < op->n_args; i++)
			if (terra_plan_token_is_input(line->arg[i]) && atoi(line->arg[i] + 1) == seen &&
			    op->args[i].kind == GRAPH_TENSOR) {
				bytes += 4.0 * (double)op->args[i].tensor->numel;
				seen++;
			}
	}
	return bytes;
}

static const struct graph_value *find_value(const struct graph *graph, const struct graph_tensor *tensor)
{
	uint32_t i;

	for (i = 0; i < graph->n_values; i++)
		if (graph->values[i].storage == tensor->storage && graph->values[i].version == tensor->version)
			return &graph->values[i];
	return NULL;
}

/* Whether somebody reads the result after the region. Without liveness: yes. */
static bool is_written(const struct instance *instance, uint32_t k)
{
	const struct graph_op *op = &instance->graph->ops[instance->at[k]];
	const struct graph_value *value = op->n_results ? find_value(instance->graph, &op->results[0]) : NULL;
	uint32_t last = instance->at[instance->region->n_ops - 1];

	return !value || value->lives_on || value->fetched || (value->last != GRAPH_NONE && value->last > last);
}

static double fused_bytes(const struct instance *instance)
{
	double bytes = input_bytes(instance);
	uint32_t k;

	for (k = 0; k < instance->region->n_ops; k++)
		if (is_written(instance, k))
			bytes += domain_bytes(instance);
	return bytes;
}

static double traffic_ns(const struct instance *instance, double bytes)
{
	return bytes / (domain_bytes(instance) < CACHE_BYTES ? CACHED_BYTES_PER_NS : BYTES_PER_NS);
}

static double guard_ns(const struct instance *instance)
{
	return domain_bytes(instance) >= GUARD_LARGE_BYTES ? GUARD_NS : GUARD_SMALL_NS;
}

static void cost_region(const struct graph *graph, struct graph_region *region)
{
	double eager = 0, fused = 0, bytes, less;
	uint32_t i;

	region->saved_bytes = 0;
	for (i = 0; i < region->count; i++) {
		struct instance instance = {graph, region, region->at + i * region->n_ops, region->domain[i]};

		bytes = eager_bytes(&instance);
		less = fused_bytes(&instance);
		region->saved_bytes += bytes - less;
		eager += traffic_ns(&instance, bytes) + OP_NS * region->n_ops;
		fused += traffic_ns(&instance, less) + OP_NS + LOOKUP_NS * region->n_ops + guard_ns(&instance);
	}
	region->gain = fused > 0 ? eager / fused : 0;
	if (region->gain < 1)
		region->dropped = "guarding it costs more than it saves";
}

int pass_cost(struct graph *graph, char *err, size_t err_size)
{
	uint32_t i;

	for (i = 0; i < graph->n_regions; i++)
		cost_region(graph, &graph->regions[i]);
	return 0;
}
