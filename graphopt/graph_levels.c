/* graph_levels.c - which of the nested events are the program's ops as the backend sees them.
 *
 * One op of a program is several events: its call, then a redispatch below autograd (for in-place ops another one below
 * the version counter), and inside the kernel whatever that calls. An op made of others (linear, dropout) is a call
 * with the calls of its parts inside. What replay can defer is the innermost redispatch of an op:
 *   - a redispatch is a node unless it contains a redispatch of the same op; what happens inside a node is its own
 *     business;
 *   - a call is looked into when it contains its own redispatch, or any redispatch of an op on tensors (then it is made
 *     of those). Otherwise it reaches its kernel without redispatch and is a node that can't be deferred. Allocation
 *     inside kernels is redispatched by the choice of the backend, without tensors, and says nothing;
 *   - a redispatch of an op on a list that issues one op for each tensor of the list (_foreach_mul_) is looked into: its
 *     parts are nodes. They are issued below autograd, so a part that reaches its kernel without redispatch has the list
 *     op's keys; replay sees it at its call.
 * No dispatch key is known by number: the keys that most nodes have are the backend's own.
 *
 * A trace of one level (terra-trace --levels ops) has no redispatches, but only the calls of ops that are not made of
 * others. There the outermost call is the node, or, where an op calls itself again (autocast does, with other types), the
 * call inside; a list op is looked into as above. How such an op goes on to its kernel is not known then, and neither are
 * its keys: each counts as one that replay sees. Should it not, the region never matches.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/graph_events.h"
#include "graphopt/plan_ops.h"

struct levels {
	struct graph *graph;
	const struct op_events *events;
	uint64_t *keysets;  /* of the graph's ops; 0: no redispatch */
	uint32_t *result;   /* by event: the one that has its results, itself when none has */
	bool *of_others;    /* by event: a redispatch on tensors is inside, at any depth */
	bool *is_open;	    /* by event: is looked into */
	bool one_level;	    /* the trace has calls only */
};

#define UNKNOWN_KEYS UINT64_MAX

static bool same_op(const struct op_event *a, const struct op_event *b)
{
	return !strcmp(a->op.name, b->op.name);
}

static bool is_one_level(const struct op_events *events)
{
	uint32_t i;

	for (i = 0; i < events->n; i++)
		if (events->items[i].level == TERRA_LEVEL_REDISPATCH)
			return false;
	return true;
}

/* A redispatch, or in a trace of one level a call, of the same op directly inside. */
static bool goes_on(const struct levels *levels, uint32_t i)
{
	const struct op_event *items = levels->events->items;
	uint32_t c;

	for (c = items[i].first_child; c != GRAPH_NONE; c = items[c].next_sibling)
		if ((levels->one_level || items[c].level == TERRA_LEVEL_REDISPATCH) && same_op(&items[c], &items[i]))
			return true;
	return false;
}

static bool has_tensors(const struct graph_op *op)
{
	uint32_t i;

	for (i = 0; i < op->n_args; i++)
		if (op->args[i].n)
			return true;
	return false;
}

/* An event comes behind those that enclose it. So one pass in each direction finds what is true at any depth, and a trace
 * of ops that nest a million deep is no deeper a call. */
static void find_inside(struct levels *levels)
{
	const struct op_event *items = levels->events->items;

	for (uint32_t i = levels->events->n; i-- > 0;)
		if (items[i].parent != GRAPH_NONE &&
		    (levels->of_others[i] || (items[i].level == TERRA_LEVEL_REDISPATCH && has_tensors(&items[i].op))))
			levels->of_others[items[i].parent] = true;
}

/* A tail jump leaves no exit event of the inner levels: then the enclosing level of the same op has the result. */
static void find_outside(struct levels *levels)
{
	const struct op_event *items = levels->events->items;

	for (uint32_t i = 0; i < levels->events->n; i++) {
		uint32_t parent = items[i].parent;
		bool goes_out = !items[i].has_results && parent != GRAPH_NONE && same_op(&items[parent], &items[i]);

		levels->result[i] = goes_out ? levels->result[parent] : i;
	}
}

static bool is_node(const struct levels *levels, uint32_t i)
{
	if (goes_on(levels, i))
		return false;
	return levels->one_level || levels->events->items[i].level == TERRA_LEVEL_REDISPATCH || !levels->of_others[i];
}

/* An in-place op's result is its first argument. */
static void find_results(const struct levels *levels, uint32_t i, struct graph_op *op)
{
	const struct op_event *from = &levels->events->items[levels->result[i]];

	if (from->has_results) {
		op->n_results = from->op.n_results;
		op->results = from->op.results;
	}
	op->raised |= from->op.raised;
	if (!op->n_results && op->n_args && op->args[0].kind == GRAPH_TENSOR && terra_plan_op_in_place(op->name)) {
		op->n_results = 1;
		op->results = op->args[0].tensor;
	}
}

/* Whether an op on a list is made of calls of one other op, as many as there are tensors in the list, where that is known. */
static bool is_list_op(const struct levels *levels, uint32_t i)
{
	const struct op_event *items = levels->events->items, *first;
	const struct graph_op *op = &items[i].op;
	uint32_t c, n = 0;

	if ((!levels->one_level && items[i].level != TERRA_LEVEL_REDISPATCH) || !op->n_args ||
	    items[i].first_child == GRAPH_NONE || (op->args[0].kind != GRAPH_TENSORS && op->args[0].kind != GRAPH_OTHER))
		return false;
	first = &items[items[i].first_child];
	for (c = items[i].first_child; c != GRAPH_NONE; c = items[c].next_sibling, n++)
		if (items[c].level != TERRA_LEVEL_CALL || !same_op(&items[c], first) || !items[c].op.n_args ||
		    items[c].op.args[0].kind != GRAPH_TENSOR)
			return false;
	return op->args[0].kind == GRAPH_TENSORS ? n == op->args[0].n : n > 1;
}

static struct graph_op *add_op(struct levels *levels, uint32_t i)
{
	struct graph *graph = levels->graph;
	const struct op_event *event = &levels->events->items[i];
	struct graph_op *ops = graph_grow(graph, graph->ops, graph->n_ops, sizeof(*ops));

	if (!ops)
		return NULL;
	graph->ops = ops;
	ops[graph->n_ops] = event->op;
	find_results(levels, i, &ops[graph->n_ops]);
	ops[graph->n_ops].call_only = event->level == TERRA_LEVEL_CALL && !levels->one_level;
	levels->keysets[graph->n_ops] = levels->one_level ? UNKNOWN_KEYS :
					event->level == TERRA_LEVEL_REDISPATCH ? event->keyset : 0;
	return &ops[graph->n_ops++];
}

/* The innermost level of a part, and what the list op alone knows: its keys and where in the program it is. */
static int add_part(struct levels *levels, const struct op_event *list, uint32_t i)
{
	const struct op_event *items = levels->events->items;
	struct graph_op *op;
	uint32_t c = items[i].first_child;

	while (c != GRAPH_NONE)
		if (items[c].level == TERRA_LEVEL_REDISPATCH && same_op(&items[c], &items[i])) {
			i = c;
			c = items[i].first_child;
		} else {
			c = items[c].next_sibling;
		}
	op = add_op(levels, i);
	if (!op)
		return -ENOMEM;
	op->list = list->op.name;
	op->file = list->op.file;
	op->function = list->op.function;
	op->line = list->op.line;
	if (op->call_only)
		levels->keysets[levels->graph->n_ops - 1] = list->keyset;
	op->call_only = false;
	return 0;
}

static int visit_list(struct levels *levels, uint32_t i)
{
	const struct op_event *items = levels->events->items;
	uint32_t c;
	int ret = 0;

	for (c = items[i].first_child; c != GRAPH_NONE && !ret; c = items[c].next_sibling)
		ret = add_part(levels, &items[i], c);
	return ret;
}

/* Those that nothing encloses, and those right inside one that is looked into. */
static int visit(struct levels *levels, uint32_t i)
{
	uint32_t parent = levels->events->items[i].parent;

	if (parent != GRAPH_NONE && !levels->is_open[parent])
		return 0;
	if (is_list_op(levels, i))
		return visit_list(levels, i);
	if (is_node(levels, i))
		return add_op(levels, i) ? 0 : -ENOMEM;
	levels->is_open[i] = true;
	return 0;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The most frequent one; 0 when there is none. */
static uint64_t common_keyset(const uint64_t *keysets, uint32_t n, uint64_t *sorted)
{
	uint64_t best = 0;
	uint32_t i, run = 0, most = 0;

	memcpy(sorted, keysets, n * sizeof(*sorted));
	qsort(sorted, n, sizeof(*sorted), by_value);
	for (i = 0; i < n; i++) {
		run = i && sorted[i] == sorted[i - 1] ? run + 1 : 1;
		if (sorted[i] && run > most) {
			most = run;
			best = sorted[i];
		}
	}
	return best;
}

static int choose(struct levels *levels)
{
	struct graph *graph = levels->graph;
	uint32_t i, n = levels->events->n;
	uint64_t common;
	int ret = 0;

	find_inside(levels);
	find_outside(levels);
	for (i = 0; i < n && !ret; i++)
		ret = visit(levels, i);
	common = common_keyset(levels->keysets, graph->n_ops, levels->keysets + n);
	for (i = 0; i < graph->n_ops; i++)
		graph->ops[i].plain_keys = common && levels->keysets[i] == common;
	return ret;
}

int graph_choose_ops(struct graph *graph, const struct op_events *events)
{
	struct levels levels = {.graph = graph, .events = events, .one_level = is_one_level(events)};
	size_t n = (size_t)events->n + 1;
	int ret = -ENOMEM;

	levels.keysets = calloc(2 * n, sizeof(*levels.keysets));
	levels.result = calloc(n, sizeof(*levels.result));
	levels.of_others = calloc(n, sizeof(*levels.of_others));
	levels.is_open = calloc(n, sizeof(*levels.is_open));
	if (levels.keysets && levels.result && levels.of_others && levels.is_open)
		ret = choose(&levels);
	free(levels.keysets);
	free(levels.result);
	free(levels.of_others);
	free(levels.is_open);
	return ret;
}
