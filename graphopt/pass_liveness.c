/* pass_liveness.c - where each value is made, read last and read by the host.
 *
 * A trace does not say when memory is given back. A value that the iteration made and reads no more is taken for dead:
 * it may be kept (a list of losses), and then the cost model hopes for too much; what is written in the end follows the
 * real use counts. Memory from before the iteration (parameters, optimizer state) lives on in its newest version.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/graph.h"

struct liveness {
	struct graph *graph;
	uint32_t *newest;  /* per storage: number of its newest value, GRAPH_NONE: none yet */
	bool *from_before; /* per storage */
};

static const char *const host_reads[] = {"aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::is_nonzero"};

static bool reads_for_host(const struct graph_op *op)
{
	size_t i;

	for (i = 0; i < sizeof(host_reads) / sizeof(host_reads[0]); i++)
		if (!strcmp(op->name, host_reads[i]))
			return true;
	return false;
}

static struct graph_value *newest_value(struct liveness *live, const struct graph_tensor *tensor)
{
	uint32_t i = live->newest[tensor->storage];

	if (i == GRAPH_NONE || live->graph->values[i].version != tensor->version)
		return NULL;
	return &live->graph->values[i];
}

static struct graph_value *add_value(struct liveness *live, const struct graph_tensor *tensor, uint32_t made)
{
	struct graph *graph = live->graph;
	struct graph_value *values = graph_grow(graph, graph->values, graph->n_values, sizeof(*values)), *value;

	if (!values)
		return NULL;
	graph->values = values;
	value = &values[graph->n_values];
	value->storage = tensor->storage;
	value->version = tensor->version;
	value->made = made;
	value->last = GRAPH_NONE;
	live->newest[tensor->storage] = graph->n_values++;
	if (made == GRAPH_NONE)
		live->from_before[tensor->storage] = true;
	return value;
}

static int note_read(struct liveness *live, const struct graph_tensor *tensor, uint32_t number)
{
	struct graph_value *value = newest_value(live, tensor);

	if (!value)
		value = add_value(live, tensor, GRAPH_NONE);
	if (!value)
		return -ENOMEM;
	value->last = number;
	value->fetched |= reads_for_host(&live->graph->ops[number]);
	return 0;
}

static int note_op(struct liveness *live, uint32_t number)
{
	const struct graph_op *op = &live->graph->ops[number];
	uint32_t j, k;

	for (j = 0; j < op->n_args; j++)
		for (k = 0; k < op->args[j].n; k++)
			if (note_read(live, &op->args[j].tensor[k], number))
				return -ENOMEM;
	for (k = 0; k < op->n_results; k++)
		if (!newest_value(live, &op->results[k]) && !add_value(live, &op->results[k], number))
			return -ENOMEM;
	return 0;
}

static void mark_living(struct liveness *live)
{
	uint32_t s;

	for (s = 0; s < live->graph->n_storages; s++)
		if (live->newest[s] != GRAPH_NONE && live->from_before[s])
			live->graph->values[live->newest[s]].lives_on = true;
}

int pass_liveness(struct graph *graph, char *err, size_t err_size)
{
	struct liveness live = {.graph = graph};
	uint32_t i;
	int ret = -ENOMEM;

	live.newest = malloc((graph->n_storages + 1) * sizeof(*live.newest));
	live.from_before = calloc(graph->n_storages + 1, sizeof(*live.from_before));
	if (!live.newest || !live.from_before)
		goto err_out;
	for (i = 0; i < graph->n_storages; i++)
		live.newest[i] = GRAPH_NONE;
	graph->n_values = 0;
	for (i = 0, ret = 0; i < graph->n_ops && !ret; i++)
		ret = note_op(&live, i);
	if (!ret)
		mark_living(&live);
err_out:
	free(live.newest);
	free(live.from_before);
	return ret;
}
