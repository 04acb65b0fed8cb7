/* regions_line.c - the canonical line of an op: which memory is which value (plan.h), and when that can't be said. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/oprules.h"
#include "graphopt/plan_ops.h"
#include "graphopt/regions.h"

#define MIN_NUMEL 64 /* smaller domains are never deferred: they are not worth a page */

static const char out_of_memory[] = "out of memory";

void region_begin(struct region_builder *builder, struct graph *graph)
{
	builder->graph = graph;
	builder->n_ops = builder->n_inputs = builder->n_scalars = 0;
	builder->columns = 0;
	builder->by_blocks = false;
}

static bool overlap(const struct region_memory *a, const struct region_memory *b)
{
	return a->storage == b->storage && a->begin < b->end && b->begin < a->end;
}

static bool same_memory(const struct region_memory *a, const struct region_memory *b)
{
	if (a->storage != b->storage || a->offset != b->offset || a->full != b->full || a->columns != b->columns)
		return false;
	return a->full || (a->ndim == b->ndim && !memcmp(a->size, b->size, a->ndim * sizeof(*a->size)) &&
			   !memcmp(a->stride, b->stride, a->ndim * sizeof(*a->stride)));
}

/* Strides over the op's dims, outermost first, dims that can be walked as one merged. */
static void collapse(const struct graph_tensor *tensor, uint8_t ndim, const int64_t *size, struct region_memory *out)
{
	int64_t stride;
	uint8_t d, n = 0;

	for (d = 0; d < ndim; d++) {
		int own = d - (ndim - tensor->ndim);

		stride = own < 0 || tensor->size[own] == 1 ? 0 : tensor->stride[own];
		if (size[d] == 1)
			continue;
		if (n && out->stride[n - 1] == stride * size[d]) {
			out->size[n - 1] *= size[d];
			out->stride[n - 1] = stride;
			continue;
		}
		out->size[n] = size[d];
		out->stride[n++] = stride;
	}
	out->ndim = n;
}

static void memory_of(const struct graph_tensor *tensor, uint8_t ndim, const int64_t *size, struct region_memory *out)
{
	memset(out, 0, sizeof(*out));
	out->storage = tensor->storage;
	out->offset = tensor->offset;
	out->full = graph_tensor_is_full(tensor, ndim, size);
	graph_tensor_range(tensor, &out->begin, &out->end);
	if (!out->full)
		collapse(tensor, ndim, size, out);
}

struct binding { /* an op on its way into the region */
	const struct graph_op *op;
	uint8_t ndim;
	int64_t size[GRAPH_MAX_DIM];
	struct region_memory memory[TERRA_PLAN_MAX_ARGS];
	bool is_tensor[TERRA_PLAN_MAX_ARGS];
	double number[TERRA_PLAN_MAX_ARGS]; /* what an s was in the trace */
	const struct oprule *rule;
	int64_t columns;		    /* of the region with this op, as in the builder */
	bool by_blocks;
	const char *letters;		    /* what the op's rules have as arguments; all of them have the same l, r and f */
	uint32_t n_inputs, n_scalars;	    /* of the region with this op */
	struct terra_plan_op line;
};

static const char *set_token(struct region_builder *builder, struct binding *binding, uint32_t i, char letter,
			     uint32_t index)
{
	binding->line.arg[i] = graph_format(builder->graph, "%c%u", letter, index);
	return binding->line.arg[i] ? NULL : out_of_memory;
}

static const char *set_text(struct region_builder *builder, struct binding *binding, uint32_t i, const char *text)
{
	binding->line.arg[i] = graph_strdup(builder->graph, text);
	return binding->line.arg[i] ? NULL : out_of_memory;
}

static char input_letter(const struct region_memory *memory)
{
	return memory->columns ? 'r' : memory->full ? 'i' : 'b';
}

/* A tensor that is neither a result of the region nor one of its inputs: a new input, or that of an earlier argument.
 */
static const char *name_new(struct region_builder *builder, struct binding *binding, uint32_t i)
{
	uint32_t e;

	for (e = 0; e < i; e++)
		if (binding->is_tensor[e] && same_memory(&binding->memory[e], &binding->memory[i])) {
			binding->line.arg[i] = binding->line.arg[e];
			return NULL;
		}
	if (binding->n_inputs == TERRA_PLAN_MAX_INPUTS)
		return "a region can't have more inputs";
	if (binding->memory[i].ndim > TERRA_KERNEL_MAX_DIM)
		return "an argument is strided over too many dimensions";
	return set_token(builder, binding, i, input_letter(&binding->memory[i]), binding->n_inputs++);
}

static const char *name_tensor(struct region_builder *builder, struct binding *binding, uint32_t i)
{
	const struct region_memory *memory = &binding->memory[i];
	uint32_t k;

	for (k = builder->n_ops; k-- > 0;) {
		if (same_memory(&builder->result[k], memory))
			return set_token(builder, binding, i, 'v', k);
		if (overlap(&builder->result[k], memory))
			return "reads part of a result of the region, or reads it in another order";
	}
	for (k = 0; k < builder->n_inputs; k++)
		if (same_memory(&builder->input[k], memory))
			return set_token(builder, binding, i, input_letter(memory), k);
	return name_new(builder, binding, i);
}

static const char *name_constant(struct region_builder *builder, struct binding *binding, uint32_t i, const char *text)
{
	binding->line.arg[i] = graph_format(builder->graph, "#%s", text);
	return binding->line.arg[i] ? NULL : out_of_memory;
}

/* Every number is one of run time at first; the rule may want it as a constant (choose_rule). */
static const char *name_number(struct region_builder *builder, struct binding *binding, uint32_t i, double number)
{
	binding->number[i] = number;
	return set_text(builder, binding, i, "s");
}

/* Column numbers: one for each row. */
static const char *name_columns(struct region_builder *builder, struct binding *binding, uint32_t i)
{
	const struct graph_tensor *tensor = binding->op->args[i].tensor;

	if (binding->op->args[i].kind != GRAPH_TENSOR || binding->ndim != 2 || strcmp(tensor->dtype, "i64") || tensor->ndim != 1 ||
	    tensor->size[0] != binding->size[0] || tensor->stride[0] != 1)
		return "its column numbers are not one int64 for each row";
	memory_of(tensor, binding->ndim, binding->size, &binding->memory[i]);
	binding->memory[i].columns = true;
	binding->is_tensor[i] = true;
	return name_tensor(builder, binding, i);
}

static const char *name_last_dim(struct region_builder *builder, struct binding *binding, uint32_t i)
{
	const struct graph_arg *arg = &binding->op->args[i];
	double dim = arg->kind == GRAPH_CONST ? strtod(arg->text, NULL) : NAN;

	if (dim != -1 && dim != binding->ndim - 1)
		return "works along another dim than the last";
	return set_text(builder, binding, i, "l");
}

static const char *name_float(struct region_builder *builder, struct binding *binding, uint32_t i)
{
	const struct graph_arg *arg = &binding->op->args[i];

	if (arg->kind != GRAPH_TENSOR || arg->tensor->ndim || strcmp(arg->tensor->dtype, "f32"))
		return "an argument is not a float32 tensor without dims";
	binding->n_scalars++;
	return set_text(builder, binding, i, "f");
}

static const char *name_arg(struct region_builder *builder, struct binding *binding, uint32_t i)
{
	const struct graph_arg *arg = &binding->op->args[i];

	switch (i < strlen(binding->letters) ? binding->letters[i] : 0) {
	case 'r':
		return name_columns(builder, binding, i);
	case 'l':
		return name_last_dim(builder, binding, i);
	case 'f':
		return name_float(builder, binding, i);
	}
	switch (arg->kind) {
	case GRAPH_ABSENT:
		return set_text(builder, binding, i, "-");
	case GRAPH_NUMBER:
		return name_number(builder, binding, i, arg->number);
	case GRAPH_CONST:
		return name_constant(builder, binding, i, arg->text);
	case GRAPH_TENSOR:
		if (graph_tensor_is_number(arg->tensor))
			return name_number(builder, binding, i, NAN); /* known when the op is issued */
		if (strcmp(arg->tensor->dtype, "f32"))
			return "an argument is not float32";
		memory_of(arg->tensor, binding->ndim, binding->size, &binding->memory[i]);
		binding->is_tensor[i] = true;
		return name_tensor(builder, binding, i);
	}
	return "has an argument that no rule has";
}

static const char *why_no_rule(struct region_builder *builder, const struct binding *binding)
{
	const char *why = oprule_excluded(binding->op->name);
	char text[256];

	if (why)
		return why;
	if (!oprule_find(binding->op->name))
		return "no rule";
	terra_plan_op_text(&binding->line, text, sizeof(text));
	why = graph_format(builder->graph, "no rule for this form: %s", text);
	return why ? why : out_of_memory;
}

static const char *choose_rule(struct region_builder *builder, struct binding *binding)
{
	const struct oprule *rule = oprule_choose(&binding->line, binding->number);
	const char *why = NULL;
	char text[40];
	uint32_t i;

	binding->rule = rule;
	if (!rule)
		return why_no_rule(builder, binding);
	for (i = 0; i < binding->line.n_args && !why; i++) {
		if (strcmp(binding->line.arg[i], "s"))
			continue;
		if (rule->args[i] != 'c') {
			binding->n_scalars++;
			continue;
		}
		snprintf(text, sizeof(text), "%.17g", binding->number[i]);
		why = name_constant(builder, binding, i, text);
	}
	if (!why && binding->n_scalars > TERRA_PLAN_MAX_SCALARS)
		why = "a region can't have more numbers";
	return why;
}

/* Memory that is written in place may be read only as the same elements in the same order. */
static const char *check_target(const struct region_builder *builder, const struct binding *binding)
{
	const struct region_memory *target = &binding->memory[0];
	uint32_t i;

	for (i = 1; i < binding->op->n_args; i++)
		if (binding->is_tensor[i] && !same_memory(&binding->memory[i], target) &&
		    overlap(&binding->memory[i], target))
			return "writes memory that it reads in another order";
	for (i = 0; i < builder->n_inputs; i++)
		if (!same_memory(&builder->input[i], target) && overlap(&builder->input[i], target))
			return "writes memory that the region reads in another order";
	return NULL;
}

/* An argument whose dims are permuted makes the framework order the result likewise. */
static bool c_ordered(const struct graph_tensor *tensor)
{
	int64_t last = INT64_MAX;
	uint8_t d;

	for (d = 0; d < tensor->ndim; d++) {
		if (tensor->size[d] == 1 || !tensor->stride[d])
			continue;
		if (tensor->stride[d] > last)
			return false;
		last = tensor->stride[d];
	}
	return true;
}

static const char *check_result(const struct binding *binding, bool in_place)
{
	const struct graph_op *op = binding->op;
	bool full = false, ordered = true;
	uint32_t i;

	if (op->n_results != 1)
		return "has not one result";
	if (strcmp(op->results[0].dtype, "f32"))
		return "its result is not float32";
	if (!graph_tensor_is_full(&op->results[0], binding->ndim, binding->size))
		return "its result is not dense in C order";
	if (in_place)
		return binding->is_tensor[0] && binding->memory[0].full ? NULL : "its target is not dense in C order";
	for (i = 0; i < op->n_args; i++) {
		full |= binding->is_tensor[i] && binding->memory[i].full;
		ordered &= !binding->is_tensor[i] || c_ordered(op->args[i].tensor);
	}
	return full && ordered ? NULL : "no argument is dense in C order with the result's shape";
}

/* A region by rows has only such ops as one loop over a row can compute, and all with the same columns. */
static const char *check_rows(const struct region_builder *builder, struct binding *binding)
{
	uint32_t i;

	binding->by_blocks = builder->by_blocks || !binding->rule->expr;
	for (i = 0; i < binding->op->n_args; i++)
		binding->by_blocks |= binding->line.arg[i][0] == 'b';
	binding->columns = builder->columns;
	if (terra_plan_op_by_rows(&binding->line))
		binding->columns = binding->size[binding->ndim - 1];
	if (builder->columns && binding->columns != builder->columns)
		return "has other columns than the region";
	return binding->columns && binding->by_blocks ? "what goes by rows neither broadcasts nor calls functions of blocks" : NULL;
}

static const char *bind(struct region_builder *builder, const struct graph_op *op, struct binding *binding)
{
	bool in_place = terra_plan_op_in_place(op->name);
	const char *why;
	uint32_t i;

	memset(binding, 0, sizeof(*binding));
	binding->op = op;
	binding->n_inputs = builder->n_inputs;
	binding->n_scalars = builder->n_scalars;
	binding->line.op = (char *)op->name; /* owned by the graph, like every text of a line */
	binding->line.n_args = (uint8_t)op->n_args;
	if (!op->n_args || op->n_args > TERRA_PLAN_MAX_ARGS)
		return "has no or too many arguments";
	binding->letters = oprule_find(op->name) ? oprule_find(op->name)->args : "";
	if (!graph_op_domain(op, binding->letters, &binding->ndim, binding->size))
		return "its arguments do not broadcast";
	for (i = 0; i < op->n_args; i++)
		if ((why = name_arg(builder, binding, i)))
			return why;
	if ((why = choose_rule(builder, binding)) || (why = check_result(binding, in_place)) ||
	    (why = check_rows(builder, binding)))
		return why;
	return in_place ? check_target(builder, binding) : NULL;
}

static void add_inputs(struct region_builder *builder, const struct binding *binding)
{
	uint32_t i, number;

	for (i = 0; i < binding->op->n_args; i++) {
		const char *token = binding->line.arg[i];

		if (terra_plan_token_is_input(token) && sscanf(token + 1, "%u", &number) == 1 &&
		    number == builder->n_inputs)
			builder->input[builder->n_inputs++] = binding->memory[i];
	}
	builder->n_scalars = binding->n_scalars;
	builder->columns = binding->columns;
	builder->by_blocks = binding->by_blocks;
}

const char *region_append(struct region_builder *builder, const struct graph_op *op)
{
	struct binding binding;
	const char *why;

	if (builder->n_ops == TERRA_PLAN_MAX_OPS)
		return "a region can't have more ops";
	why = bind(builder, op, &binding);
	if (why)
		return why;
	add_inputs(builder, &binding);
	builder->line[builder->n_ops] = binding.line;
	memory_of(&op->results[0], binding.ndim, binding.size, &builder->result[builder->n_ops]);
	builder->n_ops++;
	return NULL;
}

const char *region_op_blocker(struct graph *graph, const struct graph_op *op)
{
	struct region_builder builder;
	const char *why;

	if (op->raised)
		return "raised an exception";
	if (op->call_only)
		return "reaches its kernel without redispatch";
	if (!op->plain_keys)
		return "dispatched with other functionality than the backend's";
	if (!oprule_find(op->name)) {
		why = oprule_excluded(op->name);
		return why ? why : "no rule";
	}
	region_begin(&builder, graph);
	why = region_append(&builder, op);
	if (why)
		return why;
	return op->results[0].numel < MIN_NUMEL ? "too few elements" : NULL;
}
