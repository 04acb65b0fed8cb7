/* assemble.c - builds the plan of a graph. Everything in a plan is malloc'ed piece by piece: readers, the code
 * generator and terra_plan_free take it apart that way. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/assemble.h"
#include "graphopt/plan_internal.h"
#include "graphopt/plan_ops.h"

#define SGEMM_MIN_WORK (4 << 20) /* multiplications; below it what a replacement costs by itself shows */
#define SGEMM_MAX_SHAPES 32	 /* the check of one takes up to seconds */

static bool copy_op(const struct terra_plan_op *from, struct terra_plan_op *to)
{
	uint32_t i;

	memset(to, 0, sizeof(*to));
	to->op = strdup(from->op);
	for (i = 0; i < from->n_args; i++) {
		to->arg[i] = strdup(from->arg[i]);
		if (!to->arg[i])
			return false;
		to->n_args++;
	}
	return to->op;
}

static struct terra_plan_region *add_region(struct terra_plan *plan, const char *name, uint32_t n_ops)
{
	struct terra_plan_region *regions = realloc(plan->regions, (plan->n_regions + 1) * sizeof(*regions)), *region;

	if (!regions)
		return NULL;
	plan->regions = regions;
	region = memset(&regions[plan->n_regions], 0, sizeof(*region));
	region->id = plan->n_regions++;
	region->name = strdup(name);
	region->ops = calloc(n_ops, sizeof(*region->ops));
	return region->name && region->ops ? region : NULL;
}

static int add_graph_region(struct terra_plan *plan, const struct graph_region *from)
{
	struct terra_plan_region *region = add_region(plan, from->name, from->n_ops);

	if (!region)
		return -ENOMEM;
	region->numel = from->numel;
	for (; region->n_ops < from->n_ops; region->n_ops++)
		if (!copy_op(&from->lines[region->n_ops], &region->ops[region->n_ops]))
			return -ENOMEM;
	return 0;
}

static bool has_fallback(const struct terra_plan *plan, const struct terra_plan_op *op)
{
	uint32_t r;

	for (r = 0; r < plan->n_regions; r++)
		if (plan->regions[r].fallback && terra_plan_op_is_alone_form(op, &plan->regions[r].ops[0]))
			return true;
	return false;
}

static int add_fallback(struct terra_plan *plan, const struct terra_plan_op *op, int64_t numel)
{
	char token[TERRA_PLAN_MAX_ARGS][8];
	struct terra_plan_region *region;
	struct terra_plan_op form;
	uint32_t i;

	if (has_fallback(plan, op))
		return 0;
	form = *op;
	terra_plan_op_stand_alone(op, token);
	for (i = 0; i < op->n_args; i++)
		form.arg[i] = token[i][0] ? token[i] : op->arg[i];
	region = add_region(plan, op->op, 1);
	if (!region)
		return -ENOMEM;
	region->fallback = true;
	region->numel = numel;
	region->n_ops = 1;
	return copy_op(&form, &region->ops[0]) ? 0 : -ENOMEM;
}

static int add_fallbacks(struct terra_plan *plan, const struct graph_region *from)
{
	uint32_t k;
	int ret = 0;

	for (k = 0; k < from->n_ops && !ret; k++)
		ret = add_fallback(plan, &from->lines[k], from->numel);
	return ret;
}

static int add_passive(struct terra_plan *plan)
{
	const char *const *names;
	size_t i, n;

	names = passive_list(&n);
	plan->passive = calloc(n, sizeof(*plan->passive));
	for (i = 0; plan->passive && i < n; i++, plan->n_passive++) {
		plan->passive[i] = strdup(names[i]);
		if (!plan->passive[i])
			return -ENOMEM;
	}
	return plan->passive ? 0 : -ENOMEM;
}

static bool has_list(const struct terra_plan *plan, const char *name)
{
	uint32_t i;

	for (i = 0; i < plan->n_lists; i++)
		if (!strcmp(plan->lists[i], name))
			return true;
	return false;
}

/* Replay does not flush for it, so its parts must be ops that replay sees. */
static bool list_can_wait(const struct graph *graph, const char *name)
{
	uint32_t i;

	for (i = 0; i < graph->n_ops; i++)
		if (graph->ops[i].list && !strcmp(graph->ops[i].list, name) && graph->ops[i].class == GRAPH_STOP)
			return false;
	return true;
}

/* Ops on lists whose parts are in the graph, each once. */
static int add_lists(struct terra_plan *plan, const struct graph *graph)
{
	char **lists;
	uint32_t i;

	for (i = 0; i < graph->n_ops; i++) {
		if (!graph->ops[i].list || has_list(plan, graph->ops[i].list) || !list_can_wait(graph, graph->ops[i].list))
			continue;
		lists = realloc(plan->lists, (plan->n_lists + 1) * sizeof(*lists));
		if (!lists)
			return -ENOMEM;
		plan->lists = lists;
		lists[plan->n_lists] = strdup(graph->ops[i].list);
		if (!lists[plan->n_lists++])
			return -ENOMEM;
	}
	return 0;
}

static struct terra_plan_replace *add_replace(struct terra_plan *plan, const char *op, const char *form)
{
	struct terra_plan_replace *replaces = realloc(plan->replaces, (plan->n_replaces + 1) * sizeof(*replaces));

	if (!replaces)
		return NULL;
	plan->replaces = replaces;
	replaces = memset(&replaces[plan->n_replaces++], 0, sizeof(*replaces));
	replaces->op = strdup(op);
	replaces->form = strdup(form);
	return replaces->op && replaces->form ? replaces : NULL;
}

static bool graph_has(const struct graph *graph, const char *op)
{
	uint32_t i;

	for (i = 0; i < graph->n_ops; i++)
		if (!strcmp(graph->ops[i].name, op) && graph->ops[i].plain_keys)
			return true;
	return false;
}

static int add_bernoulli(struct terra_plan *plan, const struct graph *graph)
{
	if (!graph_has(graph, "aten::bernoulli_.float"))
		return 0;
	return add_replace(plan, "aten::bernoulli_.float", "mt19937_bernoulli") ? 0 : -ENOMEM;
}

/* How a matrix is stored, as the framework tells it to the vendor's library. False: in neither way. */
static bool stored(const struct graph_tensor *t, bool *transposed, int64_t *ld)
{
	if (t->ndim != 2 || strcmp(t->dtype, "f32") || t->size[0] < 2 || t->size[1] < 2)
		return false;
	*transposed = t->stride[1] != 1;
	*ld = *transposed ? t->stride[1] : t->stride[0];
	return *transposed ? t->stride[0] == 1 && *ld >= t->size[0] : *ld >= t->size[1];
}

static bool is_one(const struct graph_arg *arg)
{
	return arg->kind == GRAPH_NUMBER && arg->number == 1;
}

/* mm(A, B), or addmm(bias, A, B) with both factors 1: where A is among the arguments, or -1. */
static int first_matrix(const struct graph_op *op)
{
	const struct graph_tensor *bias = op->n_args ? op->args[0].tensor : NULL;

	if (!strcmp(op->name, "aten::mm") && op->n_args == 2)
		return 0;
	if (strcmp(op->name, "aten::addmm") || op->n_args != 5 || op->args[0].kind != GRAPH_TENSOR || bias->ndim != 1 ||
	    bias->stride[0] != 1 || strcmp(bias->dtype, "f32") || !is_one(&op->args[3]) || !is_one(&op->args[4]))
		return -1;
	return 1;
}

/* A division to begin with; the check looks for the best one. */
static void sgemm_divide(struct terra_sgemm_shape *shape)
{
	int64_t share = (shape->n + shape->threads - 1) / shape->threads;

	shape->rows = shape->m;
	shape->columns = share < shape->n ? (share + 15) / 16 * 16 : shape->n;
	if (shape->columns > shape->n)
		shape->columns = shape->n;
}

static bool sgemm_shape(const struct graph_op *op, uint32_t threads, struct terra_sgemm_shape *out)
{
	const struct graph_tensor *a, *b;
	int first = first_matrix(op);

	memset(out, 0, sizeof(*out));
	if (first < 0 || !op->plain_keys || op->call_only || op->args[first].kind != GRAPH_TENSOR ||
	    op->args[first + 1].kind != GRAPH_TENSOR)
		return false;
	a = op->args[first].tensor;
	b = op->args[first + 1].tensor;
	if (!stored(a, &out->a_transposed, &out->lda) || !stored(b, &out->b_transposed, &out->ldb))
		return false;
	out->m = a->size[0];
	out->k = a->size[1];
	out->n = b->size[1];
	out->threads = threads ? threads : 1;
	sgemm_divide(out);
	return b->size[0] == out->k && (!first || op->args[0].tensor->size[0] == out->n) &&
	       (double)out->m * (double)out->n * (double)out->k >= SGEMM_MIN_WORK;
}

static bool has_product(const struct terra_plan *plan, const char *op, const char *shape)
{
	uint32_t i;

	for (i = 0; i < plan->n_replaces; i++)
		if (plan->replaces[i].shape && !strcmp(plan->replaces[i].op, op) && !strcmp(plan->replaces[i].shape, shape))
			return true;
	return false;
}

/* Matrix products, each shape once: the check says which of them gain. */
static int add_products(struct terra_plan *plan, const struct graph *graph)
{
	struct terra_plan_replace *replace;
	struct terra_sgemm_shape shape;
	char text[128];
	uint32_t i, n = 0;

	for (i = 0; i < graph->n_ops && n < SGEMM_MAX_SHAPES; i++) {
		if (!sgemm_shape(&graph->ops[i], graph->threads, &shape))
			continue;
		terra_plan_sgemm_text(&shape, text, sizeof(text));
		if (has_product(plan, graph->ops[i].name, text) || !terra_plan_sgemm_shape(text, &shape))
			continue;
		replace = add_replace(plan, graph->ops[i].name, "sgemm_tiles");
		if (!replace)
			return -ENOMEM;
		replace->shape = strdup(text);
		if (!replace->shape)
			return -ENOMEM;
		n++;
	}
	return 0;
}

static int add_replaces(struct terra_plan *plan, const struct graph *graph)
{
	int ret = add_bernoulli(plan, graph);

	return ret ? ret : add_products(plan, graph);
}

static int fill(struct terra_plan *plan, const struct graph *graph)
{
	uint32_t i;
	int ret = add_passive(plan);

	if (!ret)
		ret = add_lists(plan, graph);
	plan->build_id = strdup(graph->build_id);
	plan->source = strdup(graph->source);
	if (!plan->build_id || !plan->source)
		return -ENOMEM;
	for (i = 0; i < graph->n_regions && !ret; i++)
		if (!graph->regions[i].dropped)
			ret = add_graph_region(plan, &graph->regions[i]);
	for (i = 0; i < graph->n_regions && !ret; i++)
		if (!graph->regions[i].dropped)
			ret = add_fallbacks(plan, &graph->regions[i]);
	return ret ? ret : add_replaces(plan, graph);
}

int assemble_plan(const struct graph *graph, struct terra_plan **out)
{
	struct terra_plan *plan = calloc(1, sizeof(*plan));
	int ret = plan ? fill(plan, graph) : -ENOMEM;

	if (ret)
		terra_plan_free(plan);
	*out = ret ? NULL : plan;
	return ret;
}

/* ---- changes ---- */

bool plan_fallback_serves(const struct terra_plan_region *fallback, const struct terra_plan_region *region)
{
	uint32_t k;

	for (k = 0; k < region->n_ops; k++)
		if (terra_plan_op_is_alone_form(&region->ops[k], &fallback->ops[0]))
			return true;
	return false;
}

static bool is_needed(const struct terra_plan *plan, uint32_t index, const bool *drop)
{
	uint32_t r;

	if (drop[index] || !plan->regions[index].fallback)
		return !drop[index];
	for (r = 0; r < plan->n_regions; r++)
		if (!drop[r] && !plan->regions[r].fallback &&
		    plan_fallback_serves(&plan->regions[index], &plan->regions[r]))
			return true;
	return false;
}

void plan_drop_regions(struct terra_plan *plan, const bool *drop)
{
	bool keep[PLAN_MAX_REGIONS];
	uint32_t r, n = 0;

	for (r = 0; r < plan->n_regions; r++)
		keep[r] = is_needed(plan, r, drop);
	for (r = 0; r < plan->n_regions; r++) {
		if (keep[r])
			plan->regions[n++] = plan->regions[r];
		else
			plan_region_free(&plan->regions[r]);
	}
	plan->n_regions = n;
}

void plan_drop_replace(struct terra_plan *plan, uint32_t index)
{
	struct terra_plan_replace *replace = &plan->replaces[index];

	plan_replace_free(replace);
	plan->n_replaces--;
	memmove(replace, replace + 1, (plan->n_replaces - index) * sizeof(*replace));
}
