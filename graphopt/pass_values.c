/* pass_values.c - names memory: which tensors share a storage, and which write a tensor was read after.
 *
 * Addresses come again: a storage ends when a later op returns fresh memory at its address. A result is fresh unless
 * one of the op's own arguments has its storage (views, in-place ops, ops that return an argument).
 */
#include <errno.h>
#include <stdlib.h>

#include "graphopt/graph.h"
#include "graphopt/plan_ops.h"

struct slot { /* open addressing by address */
	uint64_t address;
	uint64_t bytes;
	uint32_t storage;
	uint32_t version;
};

struct names {
	struct slot *slots;
	uint32_t mask;
	uint32_t n_storages;
};

static struct slot *find(struct names *names, uint64_t address)
{
	uint32_t i = (uint32_t)((address >> 4) * 0x9e3779b97f4a7c15u >> 32) & names->mask;

	while (names->slots[i].address && names->slots[i].address != address)
		i = (i + 1) & names->mask;
	return &names->slots[i];
}

static void begin_storage(struct names *names, struct slot *slot, const struct graph_tensor *tensor)
{
	slot->address = tensor->address;
	slot->bytes = tensor->bytes;
	slot->storage = names->n_storages++;
	slot->version = 0;
}

/* Memory that nothing is known about (an empty tensor, a field that could not be read) is never the same twice. */
static void name_unknown(struct names *names, struct graph_tensor *tensor)
{
	tensor->storage = names->n_storages++;
	tensor->version = 0;
}

static void name_tensor(struct names *names, struct graph_tensor *tensor)
{
	struct slot *slot;

	if (!tensor->address) {
		name_unknown(names, tensor);
		return;
	}
	slot = find(names, tensor->address);
	if (!slot->address || slot->bytes != tensor->bytes)
		begin_storage(names, slot, tensor);
	tensor->storage = slot->storage;
	tensor->version = slot->version;
}

static bool is_argument(const struct graph_op *op, const struct graph_tensor *result)
{
	uint32_t i, k;

	for (i = 0; i < op->n_args; i++)
		for (k = 0; k < op->args[i].n; k++)
			if (op->args[i].tensor[k].address == result->address)
				return true;
	return false;
}

static void name_results(struct names *names, struct graph_op *op)
{
	uint32_t i, k;

	for (i = 0; i < op->n_results; i++) {
		struct graph_tensor *result = &op->results[i];
		bool known = is_argument(op, result);

		for (k = 0; k < i && !known; k++) /* several results in one storage: split, unbind */
			known = op->results[k].address == result->address;
		if (result->address && !known)
			begin_storage(names, find(names, result->address), result);
		name_tensor(names, result);
	}
}

/* An in-place op writes its first argument, or each tensor of that list. Ops that only change metadata write nothing.
 */
static void count_writes(struct names *names, const struct graph_op *op)
{
	struct slot *slot;
	uint32_t k;

	if (!op->n_args || !terra_plan_op_in_place(op->name) || passive_op(op->name))
		return;
	for (k = 0; k < op->args[0].n; k++) {
		slot = op->args[0].tensor[k].address ? find(names, op->args[0].tensor[k].address) : NULL;
		if (slot && slot->address)
			slot->version++;
	}
}

static uint32_t count_tensors(const struct graph *graph)
{
	uint32_t n = 0, i, j;

	for (i = 0; i < graph->n_ops; i++) {
		n += graph->ops[i].n_results;
		for (j = 0; j < graph->ops[i].n_args; j++)
			n += graph->ops[i].args[j].n;
	}
	return n;
}

int pass_values(struct graph *graph, char *err, size_t err_size)
{
	uint32_t n = count_tensors(graph), capacity = 16, i, j, k;
	struct names names = {0};

	while (capacity < n * 2)
		capacity *= 2;
	names.mask = capacity - 1;
	names.slots = calloc(capacity, sizeof(*names.slots));
	if (!names.slots)
		return -ENOMEM;
	for (i = 0; i < graph->n_ops; i++) {
		struct graph_op *op = &graph->ops[i];

		for (j = 0; j < op->n_args; j++)
			for (k = 0; k < op->args[j].n; k++)
				name_tensor(&names, &op->args[j].tensor[k]);
		count_writes(&names, op);
		name_results(&names, op);
	}
	graph->n_storages = names.n_storages;
	free(names.slots);
	return 0;
}
