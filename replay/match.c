/* match.c - which region of the plan goes on with the op that the program issues.
 *
 * All regions form one trie over their canonical op lines (plan.h). A match needs the same op, the same data flow (which
 * memory is which value), the same constants and the same broadcast form; sizes, addresses and numbers are free. The
 * position in the program does not matter: another path through it costs fusion, never an answer.
 */
#include "replay/queue.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/plan_ops.h"

static struct node root;

/* ---- building ---- */

static bool parse_token(const char *text, struct token *token)
{
	token->type = (uint8_t)text[0];
	token->index = 0;
	token->text = text;
	if (text[0] == 'v' || terra_plan_token_is_input(text))
		token->index = (uint16_t)atoi(text + 1);
	else if (text[0] == '#' && text[1] != '"')
		token->number = strcmp(text + 1, "true") == 0 ? 1 : strtod(text + 1, NULL);
	return strchr("vibrlsf#-", text[0]) != NULL;
}

static bool same_constant(const struct token *a, const struct token *b)
{
	bool text = a->text != NULL && a->text[1] == '"';

	if (text != (b->text != NULL && b->text[1] == '"'))
		return false;
	return text ? strcmp(a->text, b->text) == 0 : a->number == b->number;
}

static bool same_token(const struct token *a, const struct token *b)
{
	if (a->type != b->type)
		return false;
	if (a->type == '#')
		return same_constant(a, b);
	return strchr("slf-", a->type) != NULL || a->index == b->index;
}

static bool same_edge(const struct edge *a, const struct edge *b)
{
	if (a->op != b->op || a->n_args != b->n_args)
		return false;
	for (uint32_t i = 0; i < a->n_args; i++)
		if (!same_token(&a->arg[i], &b->arg[i]))
			return false;
	return true;
}

static struct edge *edge_add(struct node *node, const struct edge *edge)
{
	for (uint32_t i = 0; i < node->n_edges; i++)
		if (same_edge(&node->edges[i], edge))
			return &node->edges[i];
	struct edge *edges = realloc(node->edges, (node->n_edges + 1) * sizeof(*edges));

	if (edges == NULL)
		return NULL;
	node->edges = edges;
	edges[node->n_edges] = *edge;
	edges[node->n_edges].to = calloc(1, sizeof(struct node));
	return edges[node->n_edges].to ? &edges[node->n_edges++] : NULL;
}

/* The fallback for the op, and which of its inputs each argument is. */
static struct terra_plan_region *find_single(struct terra_plan *plan, const struct terra_plan_op *op, uint8_t *input)
{
	for (uint32_t r = 0; r < plan->n_regions; r++) {
		const struct terra_plan_op *form = &plan->regions[r].ops[0];

		if (!plan->regions[r].fallback || !terra_plan_op_is_alone_form(op, form))
			continue;
		for (uint32_t i = 0; i < form->n_args; i++)
			if (terra_plan_token_is_input(form->arg[i]))
				input[i] = (uint8_t)atoi(form->arg[i] + 1);
		return &plan->regions[r];
	}
	return NULL;
}

/* 0, or why the region can't be used. */
static const char *region_add(struct terra_plan *plan, struct terra_plan_region *region,
			      int (*op_index)(const char *name, void *ctx), void *ctx)
{
	struct node *node = &root;

	for (uint32_t k = 0; k < region->n_ops; k++) {
		const struct terra_plan_op *op = &region->ops[k];
		struct edge edge = {.n_args = op->n_args};
		struct edge *added;
		int index = op_index(op->op, ctx);

		if (index < 0)
			return "an op of it is not in this library";
		edge.op = (uint32_t)index;
		edge.by_rows = terra_plan_op_by_rows(op);
		for (uint32_t i = 0; i < op->n_args; i++)
			if (!parse_token(op->arg[i], &edge.arg[i]))
				return "a token of it is not understood";
		edge.single = find_single(plan, op, edge.single_input);
		if (edge.single == NULL)
			return "an op of it has no fallback kernel";
		added = edge_add(node, &edge);
		if (added == NULL)
			return "no memory";
		node = added->to;
	}
	node->region = region;
	return NULL;
}

int match_build(struct terra_plan *plan, int (*op_index)(const char *name, void *ctx), void *ctx)
{
	int n = 0;

	for (uint32_t r = 0; r < plan->n_regions; r++) {
		const char *why;

		if (plan->regions[r].fallback)
			continue;
		why = region_add(plan, &plan->regions[r], op_index, ctx);
		if (why == NULL)
			n++;
		else
			replay_say("region %u (%s) is not used: %s", plan->regions[r].id, plan->regions[r].name, why);
	}
	return n;
}

const struct node *match_root(void)
{
	return &root;
}

/* ---- matching ---- */

static bool ranges_overlap(const void *a, size_t n, const void *b, size_t m)
{
	return (const char *)a < (const char *)b + m && (const char *)b < (const char *)a + n;
}

/* Strides of the tensor over the op's dims, outermost first, collapsed. False: too many dims remain. */
static bool strided_of(const struct tensor_view *t, const struct call *call, struct terra_strided *out, int64_t *span)
{
	int64_t last = 0;

	out->data = t->data;
	out->ndim = 0;
	for (int64_t d = 0; d < call->ndim; d++) {
		int64_t own = d - (call->ndim - t->ndim);
		int64_t stride = own < 0 || t->size[own] == 1 ? 0 : t->stride[own];
		int n = out->ndim;

		if (call->size[d] == 1)
			continue;
		last += stride * (call->size[d] - 1);
		if (n > 0 && out->stride[n - 1] == stride * call->size[d]) {
			out->size[n - 1] *= call->size[d];
			out->stride[n - 1] = stride;
			continue;
		}
		if (n == TERRA_KERNEL_MAX_DIM)
			return false;
		out->size[n] = call->size[d];
		out->stride[n] = stride;
		out->ndim = n + 1;
	}
	*span = last + 1;
	return true;
}

static bool same_strided(const struct terra_strided *a, const struct terra_strided *b)
{
	return a->data == b->data && a->ndim == b->ndim && memcmp(a->size, b->size, sizeof(*a->size) * (size_t)a->ndim) == 0 &&
	       memcmp(a->stride, b->stride, sizeof(*a->stride) * (size_t)a->ndim) == 0;
}

/* The name that a full tensor has in the instance: the newest value in its memory, an input, or the next input. */
static void name_full(const struct instance *inst, const struct call *call, const struct call_arg *arg, uint32_t next,
		      struct token *token)
{
	for (uint32_t k = inst ? inst->n_ops : 0; k-- > 0;)
		if (inst->result[k] == arg->t.data) {
			*token = (struct token){.type = 'v', .index = (uint16_t)k};
			return;
		}
	for (uint32_t j = 0; inst && j < inst->n_inputs; j++)
		if (inst->full[j] && inst->input[j] == arg->t.data) {
			*token = (struct token){.type = 'i', .index = (uint16_t)j};
			return;
		}
	*token = (struct token){.type = 'i', .index = (uint16_t)next};
}

static void name_strided(const struct instance *inst, const struct terra_strided *s, uint32_t next, struct token *token)
{
	for (uint32_t j = 0; inst && j < inst->n_inputs; j++)
		if (!inst->full[j] && inst->input[j] != NULL && same_strided(&inst->strided[j], s)) {
			*token = (struct token){.type = 'b', .index = (uint16_t)j};
			return;
		}
	*token = (struct token){.type = 'b', .index = (uint16_t)next};
}

/* Column numbers: an input that kernels get as a strided one without dims. */
static void name_columns(const struct instance *inst, const struct tensor_view *t, uint32_t i, uint32_t *next,
			 struct binding *binding)
{
	uint32_t j = 0;

	binding->strided[i] = (struct terra_strided){.data = t->data};
	binding->span[i] = t->numel * (int64_t)(sizeof(int64_t) / sizeof(float));
	while (inst && j < inst->n_inputs &&
	       (inst->full[j] || inst->input[j] == NULL || inst->input_span[j] != binding->span[i] ||
		!same_strided(&inst->strided[j], &binding->strided[i])))
		j++;
	if (inst == NULL || j == inst->n_inputs)
		j = (*next)++;
	binding->token[i] = (struct token){.type = 'r', .index = (uint16_t)j};
}

/* Names one tensor argument; new inputs are numbered from `next`. The same tensor twice in one op has one name. */
static bool name_tensor(const struct instance *inst, const struct call *call, uint32_t i, uint32_t *next,
			struct binding *binding)
{
	const struct call_arg *arg = &call->arg[i];
	struct token *token = &binding->token[i];

	for (uint32_t e = 0; e < i; e++)
		if (call->arg[e].kind == ARG_TENSOR && call->arg[e].t.data == arg->t.data && call->arg[e].full && arg->full) {
			*token = binding->token[e];
			binding->span[i] = call->numel;
			return true;
		}
	if (arg->full) {
		binding->span[i] = call->numel;
		name_full(inst, call, arg, *next, token);
	} else {
		if (!strided_of(&arg->t, call, &binding->strided[i], &binding->span[i]))
			return false;
		for (uint32_t e = 0; e < i; e++)
			if (binding->token[e].type == 'b' && same_strided(&binding->strided[e], &binding->strided[i])) {
				*token = binding->token[e];
				return true;
			}
		name_strided(inst, &binding->strided[i], *next, token);
	}
	if (token->type != 'v' && token->index == *next)
		(*next)++;
	return true;
}

/* Memory of the argument that waits as a result of the instance under another shape: the instance can't go on with it. */
static bool clashes_with_results(const struct instance *inst, const struct call_arg *arg, const struct token *token,
				 int64_t span)
{
	size_t bytes = (size_t)span * sizeof(float);

#ifdef TERRA_NO_GUARD_OVERLAP
	return false;
#endif
	for (uint32_t k = 0; k < inst->n_ops; k++) {
		size_t size = (size_t)inst->numel * sizeof(float);

		if (!ranges_overlap(arg->t.data, bytes, inst->result[k], size))
			continue;
		if (token->type != 'v' || inst->result[k] != arg->t.data)
			return true;
	}
	return false;
}

/* An in-place op may write memory that the instance reads only as the same elements in the same order. */
static bool target_clashes(const struct instance *inst, const struct call *call, const struct binding *binding)
{
	const struct call_arg *target = &call->arg[0];
	size_t bytes = (size_t)call->numel * sizeof(float);

#ifdef TERRA_NO_GUARD_OVERLAP
	return false;
#endif
	for (uint32_t i = 1; i < call->n_args; i++) {
		const struct token *token = &binding->token[i];

		if (!call_arg_has_memory(&call->arg[i]) || token->type == 's')
			continue;
		if (call->arg[i].full && call->arg[i].t.data == target->t.data)
			continue;
		if (ranges_overlap(target->t.data, bytes, call->arg[i].t.data, (size_t)binding->span[i] * sizeof(float)))
			return true;
	}
	for (uint32_t j = 0; inst && j < inst->n_inputs; j++) {
		const void *data = inst->full[j] ? inst->input[j] : inst->strided[j].data;

		if (inst->full[j] && data == target->t.data)
			continue;
		if (ranges_overlap(target->t.data, bytes, data, (size_t)inst->input_span[j] * sizeof(float)))
			return true;
	}
	return false;
}

static bool bind(const struct instance *inst, const struct call *call, struct binding *binding)
{
	uint32_t next = inst ? inst->n_inputs : 0;

	for (uint32_t i = 0; i < call->n_args; i++) {
		binding->token[i] = (struct token){.type = '-'};
		if (call->arg[i].kind == ARG_NUMBER || call->arg[i].scalar_ok)
			binding->token[i] = (struct token){.type = 's', .number = call->arg[i].number};
		else if (call->arg[i].kind == ARG_CONST)
			binding->token[i] =
				(struct token){.type = '#', .number = call->arg[i].number, .text = call->arg[i].text};
		else if (call->arg[i].kind == ARG_COLUMNS)
			name_columns(inst, &call->arg[i].t, i, &next, binding);
		else if (call->arg[i].kind == ARG_TENSOR && !name_tensor(inst, call, i, &next, binding))
			return false;
		if (inst && strchr("vibr", binding->token[i].type) != NULL &&
		    clashes_with_results(inst, &call->arg[i], &binding->token[i], binding->span[i]))
			return false;
	}
	if (next > TERRA_PLAN_MAX_INPUTS)
		return false;
	return !call->in_place || !target_clashes(inst, call, binding);
}

/* Whether each of the edge's column numbers is one: the framework raises where it is not. The edge's last constant stands
 * for none. */
static bool columns_are_valid(const struct edge *edge, const struct call *call, const struct tensor_view *t)
{
	int64_t columns = call->size[1], none = 0; /* of two dims; see below */
	const int64_t *column = (const int64_t *)(const void *)t->data;

	if (call->ndim != 2 || t->numel != call->size[0] || !guard_admits(column, (size_t)t->numel * sizeof(*column)))
		return false;
	for (uint32_t i = 0; i < edge->n_args; i++)
		if (edge->arg[i].type == '#')
			none = (int64_t)edge->arg[i].number;
#ifdef TERRA_NO_GUARD_COLUMNS
	return true;
#endif
	for (int64_t row = 0; row < t->numel; row++)
		if ((column[row] < 0 || column[row] >= columns) && column[row] != none)
			return false;
	return true;
}

static bool token_fits(const struct edge *edge, const struct call *call, uint32_t i, const struct token *have)
{
	const struct token *want = &edge->arg[i];

	switch (want->type) {
	case '#': /* the exponent of pow: a number that the kernel is specialised for */
		return (have->type == 's' || have->type == '#') && same_constant(want, have);
	case 'f':
		return have->type == 's' && call->arg[i].kind == ARG_TENSOR && call->arg[i].is_float && call->arg[i].t.ndim == 0;
	case 'l':
		return have->type == '#' && (have->number == -1 || have->number == (double)(call->ndim - 1));
	case 'r':
		return same_token(want, have) && columns_are_valid(edge, call, &call->arg[i].t);
	default:
		return same_token(want, have);
	}
}

/* Ops by rows of different lengths have the same number of elements. */
static bool rows_fit(const struct instance *inst, const struct call *call)
{
#ifdef TERRA_NO_GUARD_ROWS
	return call->ndim > 0;
#endif
	return call->ndim > 0 && (!inst || inst->columns == 0 || inst->columns == call->size[call->ndim - 1]);
}

static bool edge_fits(const struct edge *edge, const struct instance *inst, const struct call *call,
		      const struct binding *binding)
{
	if (edge->op != call->op || edge->n_args != call->n_args)
		return false;
	if (edge->by_rows && !rows_fit(inst, call))
		return false;
	for (uint32_t i = 0; i < edge->n_args; i++)
		if (!token_fits(edge, call, i, &binding->token[i]))
			return false;
	return true;
}

const struct edge *match_edge(const struct instance *inst, const struct call *call, struct binding *binding)
{
	const struct node *node = inst ? inst->node : &root;
	bool bound = false;

	for (uint32_t e = 0; e < node->n_edges; e++) {
		if (node->edges[e].op != call->op)
			continue;
		if (!bound && !bind(inst, call, binding))
			return NULL;
		bound = true;
		if (edge_fits(&node->edges[e], inst, call, binding))
			return &node->edges[e];
	}
	return NULL;
}
