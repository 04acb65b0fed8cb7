/* regions.c - cuts the iteration into regions.
 *
 * A run is a sequence of fusible ops over one domain with nothing but passive and small ops between them: what replay
 * can let wait without anything happening in between. A run may hold several computations that have nothing to do with
 * each other (one parameter's update behind the other's): it is cut wherever no memory is touched on both sides, so
 * that equal computations become equal regions, however they follow each other.
 *
 * Ops on lists do one thing to all parameters, then the next: what belongs together is not in one piece. A run of their
 * parts is taken apart into ops that touch memory in common. Replay keeps an instance open for each.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/plan_internal.h"
#include "graphopt/regions.h"

struct run {
	struct graph *graph;
	uint32_t *ops; /* op numbers */
	uint32_t n;
	int64_t numel; /* of all its ops, unless they are parts of ops on lists */
	bool of_lists;
	char *err;
	size_t err_size;
};

static int64_t domain_of(const struct graph_op *op)
{
	return op->results[0].numel;
}

/* ---- regions and their instances ---- */

static struct graph_region *find_region(struct graph *graph, const struct region_builder *builder)
{
	struct terra_plan_region wanted = {.n_ops = builder->n_ops, .ops = (struct terra_plan_op *)builder->line};
	uint32_t i;

	for (i = 0; i < graph->n_regions; i++) {
		struct terra_plan_region have = {.n_ops = graph->regions[i].n_ops, .ops = graph->regions[i].lines};

		if (!plan_region_compare(&have, &wanted))
			return &graph->regions[i];
	}
	return NULL;
}

/* "aten::mul_.Tensor" to "mul_". */
static void short_name(const char *op, char *out, size_t size)
{
	const char *name = strstr(op, "::");

	name = name ? name + 2 : op;
	snprintf(out, size, "%.*s", (int)strcspn(name, "."), name);
}

/* For people: where the first instance begins, and its ops. */
static const char *name_region(struct graph *graph, const struct region_builder *builder, const struct graph_op *first)
{
	char ops[160] = "", op[64];
	const char *file = strrchr(first->file, '/');
	size_t n = 0;
	uint32_t i;

	for (i = 0; i < builder->n_ops && n < sizeof(ops); i++) {
		short_name(builder->line[i].op, op, sizeof(op));
		if (n + strlen(op) + 8 > sizeof(ops)) {
			n += (size_t)snprintf(ops + n, sizeof(ops) - n, " ...");
			break;
		}
		n += (size_t)snprintf(ops + n, sizeof(ops) - n, "%s%s", i ? " " : "", op);
	}
	if (!first->file[0])
		return graph_strdup(graph, ops);
	return graph_format(graph, "%s:%d %s", file ? file + 1 : first->file, first->line, ops);
}

static struct graph_region *add_region(struct graph *graph, const struct region_builder *builder,
				       const struct graph_op *first)
{
	struct graph_region *regions, *region;

	regions = graph_grow(graph, graph->regions, graph->n_regions, sizeof(*regions));
	if (!regions)
		return NULL;
	graph->regions = regions;
	region = &regions[graph->n_regions];
	region->n_ops = builder->n_ops;
	region->lines = graph_alloc(graph, builder->n_ops * sizeof(*region->lines));
	region->name = name_region(graph, builder, first);
	if (!region->lines || !region->name)
		return NULL;
	memcpy(region->lines, builder->line, builder->n_ops * sizeof(*region->lines));
	graph->n_regions++;
	return region;
}

static int add_instance(struct graph *graph, struct graph_region *region, const uint32_t *ops, int64_t numel)
{
	uint32_t i, n = region->count * region->n_ops;
	uint32_t *at;
	int64_t *domain;

	for (i = 0; i < region->n_ops; i++, n++) {
		at = graph_grow(graph, region->at, n, sizeof(*at));
		if (!at)
			return -ENOMEM;
		region->at = at;
		at[n] = ops[i];
	}
	domain = graph_grow(graph, region->domain, region->count, sizeof(*domain));
	if (!domain)
		return -ENOMEM;
	region->domain = domain;
	domain[region->count++] = numel;
	if (numel > region->numel)
		region->numel = numel;
	return 0;
}

/* A single op gains nothing by waiting. */
static int close_region(const struct run *run, const struct region_builder *builder, uint32_t first)
{
	struct graph_region *region;

	if (builder->n_ops < 2)
		return 0;
	region = find_region(run->graph, builder);
	if (!region)
		region = add_region(run->graph, builder, &run->graph->ops[run->ops[first]]);
	return region ? add_instance(run->graph, region, run->ops + first, run->numel) : -ENOMEM;
}

/* Ops [first, last) of the run. Where a region can't go on with an op, the next one begins there. */
static int cut_segment(struct run *run, struct region_builder *builder, uint32_t first, uint32_t last)
{
	const char *why;
	uint32_t i;
	int ret;

	region_begin(builder, run->graph);
	for (i = first; i < last; i++) {
		if (!region_append(builder, &run->graph->ops[run->ops[i]]))
			continue;
		ret = close_region(run, builder, i - builder->n_ops);
		if (ret)
			return ret;
		region_begin(builder, run->graph);
		why = region_append(builder, &run->graph->ops[run->ops[i]]);
		if (why) {
			snprintf(run->err, run->err_size, "op %u can't be fused: %s", run->ops[i], why);
			return -EINVAL; /* whoever wrote this text, it was not the kinds pass */
		}
	}
	return close_region(run, builder, last - builder->n_ops);
}

/* ---- where nothing is touched on both sides ---- */

/* Whether both ops touch a large tensor in common. What broadcasts (a bias) or is a number does not tie them. */
static bool touches(const struct graph_op *op, const struct graph_tensor *tensor)
{
	uint32_t i;

	if (op->results[0].storage == tensor->storage)
		return true;
	for (i = 0; i < op->n_args; i++)
		if (op->args[i].kind == GRAPH_TENSOR && op->args[i].tensor->storage == tensor->storage &&
		    op->args[i].tensor->numel == tensor->numel)
			return true;
	return false;
}

static bool tied(const struct graph_op *a, const struct graph_op *b)
{
	uint32_t i;

	if (touches(b, &a->results[0]))
		return true;
	for (i = 0; i < a->n_args; i++)
		if (a->args[i].kind == GRAPH_TENSOR && a->args[i].tensor->numel == domain_of(a) &&
		    touches(b, a->args[i].tensor))
			return true;
	return false;
}

/* The last op of the run that is tied to op i, looking no further than a region can reach. */
static uint32_t reach_of(const struct run *run, uint32_t i)
{
	uint32_t j = i + TERRA_PLAN_MAX_OPS < run->n ? i + TERRA_PLAN_MAX_OPS : run->n;

	while (--j > i)
		if (tied(&run->graph->ops[run->ops[i]], &run->graph->ops[run->ops[j]]))
			return j;
	return i;
}

/* ---- ops that touch memory in common ---- */

struct groups {
	uint32_t *above;   /* per op of the run: an earlier op of its group, or itself */
	uint32_t *touched; /* per storage: the last op of the run that touched it whole, GRAPH_NONE: none */
	uint32_t *ops;	   /* those of one group */
};

static uint32_t group_of(const struct groups *groups, uint32_t i)
{
	while (groups->above[i] != i)
		i = groups->above[i] = groups->above[groups->above[i]];
	return i;
}

static void join(const struct run *run, struct groups *groups, uint32_t i, const struct graph_tensor *tensor)
{
	uint32_t *last = &groups->touched[tensor->storage];
	uint32_t a, b;

	if (tensor->numel != domain_of(&run->graph->ops[run->ops[i]]))
		return;
	if (*last != GRAPH_NONE && domain_of(&run->graph->ops[run->ops[*last]]) == tensor->numel) {
		a = group_of(groups, *last);
		b = group_of(groups, i);
		groups->above[a > b ? a : b] = a > b ? b : a;
	}
	*last = i;
}

static void find_groups(const struct run *run, struct groups *groups)
{
	uint32_t i, k;

	for (i = 0; i < run->graph->n_storages; i++)
		groups->touched[i] = GRAPH_NONE;
	for (i = 0; i < run->n; i++) {
		const struct graph_op *op = &run->graph->ops[run->ops[i]];

		groups->above[i] = i;
		for (k = 0; k < op->n_args; k++)
			if (op->args[k].kind == GRAPH_TENSOR)
				join(run, groups, i, op->args[k].tensor);
		join(run, groups, i, &op->results[0]);
	}
}

static int cut_group(const struct run *run, struct region_builder *builder, const struct groups *groups, uint32_t first)
{
	struct run group = *run;
	uint32_t i;

	group.ops = groups->ops;
	group.n = 0;
	group.numel = domain_of(&run->graph->ops[run->ops[first]]);
	for (i = first; i < run->n; i++)
		if (group_of(groups, i) == first)
			group.ops[group.n++] = run->ops[i];
	return cut_segment(&group, builder, 0, group.n);
}

static int end_run_of_lists(struct run *run, struct region_builder *builder)
{
	uint32_t *memory = malloc((2 * (size_t)run->n + run->graph->n_storages + 1) * sizeof(*memory));
	struct groups groups = {memory, memory + run->n, memory + run->n + run->graph->n_storages};
	uint32_t i;
	int ret = 0;

	if (!memory)
		return -ENOMEM;
	find_groups(run, &groups);
	for (i = 0; i < run->n && !ret; i++)
		if (groups.above[i] == i)
			ret = cut_group(run, builder, &groups, i);
	run->n = 0;
	free(memory);
	return ret;
}

/* ---- runs ---- */

static int end_run(struct run *run, struct region_builder *builder)
{
	uint32_t first = 0, reach = 0, i, r;
	int ret = 0;

	if (run->of_lists)
		return end_run_of_lists(run, builder);

	for (i = 0; i < run->n && !ret; i++) {
		r = reach_of(run, i);
		reach = r > reach ? r : reach;
		if (reach > i)
			continue;
		ret = cut_segment(run, builder, first, i + 1);
		first = reach = i + 1;
	}
	run->n = 0;
	return ret;
}

static int note_stop(struct graph *graph, uint32_t op, const char *reason)
{
	struct graph_stop *stops = graph_grow(graph, graph->stops, graph->n_stops, sizeof(*stops));

	if (!stops)
		return -ENOMEM;
	graph->stops = stops;
	stops[graph->n_stops].op = op;
	stops[graph->n_stops++].reason = reason;
	return 0;
}

static int run_op(struct run *run, struct region_builder *builder, uint32_t number)
{
	const struct graph_op *op = &run->graph->ops[number];
	int ret = 0;

	if (op->class == GRAPH_PASSIVE || op->class == GRAPH_SMALL)
		return 0;
	if (op->class != GRAPH_FUSIBLE) {
		if (run->n)
			ret = note_stop(run->graph, number, op->reason ? op->reason : "not looked at");
		return ret ? ret : end_run(run, builder);
	}
	if (op->n_results != 1) {
		snprintf(run->err, run->err_size, "op %u can't be fused: has not one result", number);
		return -EINVAL;
	}
	if (run->n && (op->list != NULL) != run->of_lists)
		ret = end_run(run, builder);
	run->of_lists = op->list != NULL;
	if (run->n && !run->of_lists && domain_of(op) != run->numel) {
		ret = note_stop(run->graph, number, "another number of elements");
		if (!ret)
			ret = end_run(run, builder);
	}
	run->numel = domain_of(op);
	run->ops[run->n++] = number;
	return ret;
}

int pass_regions(struct graph *graph, char *err, size_t err_size)
{
	struct region_builder *builder = malloc(sizeof(*builder));
	struct run run = {.graph = graph, .err = err, .err_size = err_size};
	uint32_t i;
	int ret;

	run.ops = malloc((graph->n_ops + 1) * sizeof(*run.ops));
	ret = builder && run.ops ? 0 : -ENOMEM;
	graph->n_regions = graph->n_stops = 0;
	for (i = 0; i < graph->n_ops && !ret; i++)
		ret = run_op(&run, builder, i);
	if (!ret)
		ret = end_run(&run, builder);
	free(run.ops);
	free(builder);
	return ret;
}
