/* check_trial.c - the same numbers through the framework's ops and through the kernel. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "graphopt/check_internal.h"

#define ALIGNMENT 64
#define HUGE_PAGE ((size_t)2 << 20)

#define GUARD 16 /* floats around every memory that the kernel writes */
#define GUARD_BITS 0x7f8badad

static uint32_t bits_of(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, sizeof(bits));
	return bits;
}

/* ---- making ---- */

static void choose_stride(struct check_input *input, struct check_shape shape, bool strided, uint64_t *random)
{
	input->stride[0] = shape.columns;
	input->stride[1] = 1;
	if (!strided)
		return;
	switch (check_random(random) % CHECK_FORM_COUNT) {
	case CHECK_FORM_ROW:
		input->stride[0] = 0;
		break;
	case CHECK_FORM_COLUMN:
		input->stride[0] = 1;
		input->stride[1] = 0;
		break;
	case CHECK_FORM_SLICE:
		input->stride[0] = shape.columns + 3;
		break;
	default:
		input->stride[0] = 2 * shape.columns;
		input->stride[1] = 2;
		break;
	}
}

/* What stands for no column: the last constant of the op that has column numbers. */
static int64_t no_column(const struct codegen_region *region)
{
	int64_t none = -1;
	bool found = false;

	for (uint32_t k = 0; !found && k < region->plan->n_ops; k++)
		for (uint32_t i = 0; i < region->plan->ops[k].n_args; i++) {
			found |= region->op[k].arg[i].token == CODEGEN_COLUMNS;
			if (region->op[k].arg[i].token == CODEGEN_CONSTANT)
				none = (int64_t)strtod(region->plan->ops[k].arg[i] + 1, NULL);
		}
	return none;
}

/* One int64 for each row, as two floats' memory: a column, at times none. */
static int make_columns(struct check_trial *trial, struct check_input *input)
{
	const int64_t none = no_column(trial->region);

	input->stride[0] = 1;
	input->count = (size_t)trial->shape.rows * 2;
	input->original = check_memory(input->count);
	if (!input->original)
		return -ENOMEM;
	for (int64_t row = 0; row < trial->shape.rows; row++) {
		int64_t column = (int64_t)(check_random(&trial->random) % (uint64_t)trial->shape.columns);

		if (check_random(&trial->random) % 8 == 0)
			column = none;
		memcpy(input->original + 2 * row, &column, sizeof(column));
	}
	return 0;
}

static int make_input(struct check_trial *trial, uint32_t j, enum check_values values)
{
	struct check_input *input = &trial->input[j];

	if (trial->region->letter[j] == 'r')
		return make_columns(trial, input);
	choose_stride(input, trial->shape, trial->region->letter[j] == 'b', &trial->random);
	input->count =
	    (size_t)(1 + (trial->shape.rows - 1) * input->stride[0] + (trial->shape.columns - 1) * input->stride[1]);
	input->original = check_memory(input->count);
	if (!input->original)
		return -ENOMEM;
	check_fill(input->original, input->count, values, &trial->random);
	return 0;
}

static void find_targets(struct check_trial *trial)
{
	const struct codegen_region *region = trial->region;

	for (uint32_t k = 0; k < region->plan->n_ops; k++) {
		const struct codegen_arg *first = &region->op[k].arg[0];

		trial->target[k] = k;
		if (!region->op[k].rule->in_place)
			continue;
		if (first->token == CODEGEN_INPUT) {
			trial->target[k] = TERRA_PLAN_MAX_OPS + first->index;
			trial->input[first->index].written = true;
		} else {
			trial->target[k] = trial->target[first->index];
			trial->replaced[first->index] = true;
			if (trial->target[k] >= TERRA_PLAN_MAX_OPS)
				continue;
		}
	}
}

int check_trial_make(struct check_trial *trial, struct framework *fw, const struct codegen_region *region,
		     struct check_shape shape, enum check_values values, uint64_t seed)
{
	memset(trial, 0, sizeof(*trial));
	trial->framework = fw;
	trial->region = region;
	trial->shape = shape;
	trial->numel = shape.rows * shape.columns;
	trial->random = seed;
	for (uint32_t j = 0; j < region->n_inputs; j++)
		if (make_input(trial, j, values) < 0)
			return -ENOMEM;
	for (uint32_t k = 0; k < region->plan->n_ops; k++) {
		for (uint32_t i = 0; i < region->plan->ops[k].n_args; i++)
			if (region->op[k].arg[i].token == CODEGEN_SCALAR)
				trial->scalar[region->op[k].arg[i].index] = check_number(values, &trial->random);
		trial->expected[k] = malloc((size_t)trial->numel * sizeof(float));
		if (!trial->expected[k])
			return -ENOMEM;
	}
	find_targets(trial);
	return 0;
}

void check_trial_free(struct check_trial *trial)
{
	for (uint32_t j = 0; j < TERRA_PLAN_MAX_INPUTS; j++)
		free(trial->input[j].original);
	for (uint32_t k = 0; k < TERRA_PLAN_MAX_OPS; k++)
		free(trial->expected[k]);
	memset(trial, 0, sizeof(*trial));
}

/* ---- the framework ---- */

void check_op_args(const struct codegen_region *region, uint32_t k, framework_tensor *value, framework_tensor *input,
		   const double *scalar, struct framework_arg *args)
{
	const struct terra_plan_op *line = &region->plan->ops[k];

	for (uint32_t i = 0; i < line->n_args; i++) {
		const struct codegen_arg *arg = &region->op[k].arg[i];

		args[i] = (struct framework_arg){.type = FRAMEWORK_ARG_TENSOR};
		switch (arg->token) {
		case CODEGEN_VALUE:
			args[i].tensor = value[arg->index];
			break;
		case CODEGEN_INPUT:
		case CODEGEN_STRIDED:
		case CODEGEN_COLUMNS:
			args[i].tensor = input[arg->index];
			break;
		case CODEGEN_SCALAR:
			args[i].type = line->arg[i][0] == 'f' ? FRAMEWORK_ARG_FLOAT : FRAMEWORK_ARG_NUMBER;
			args[i].number = scalar[arg->index];
			break;
		case CODEGEN_LAST_DIM: /* of the trials' two */
			args[i] = (struct framework_arg){.type = FRAMEWORK_ARG_CONSTANT, .constant = "1"};
			break;
		case CODEGEN_CONSTANT:
			args[i] = (struct framework_arg){.type = FRAMEWORK_ARG_CONSTANT, .constant = line->arg[i] + 1};
			break;
		default:
			args[i].type = FRAMEWORK_ARG_ABSENT;
			break;
		}
	}
}

static float operand(const struct check_trial *trial, const struct codegen_arg *arg, int64_t e)
{
	const struct check_input *input = &trial->input[arg->index];
	int64_t row = e / trial->shape.columns, column = e % trial->shape.columns;

	switch (arg->token) {
	case CODEGEN_VALUE:
		return trial->expected[arg->index][e];
	case CODEGEN_INPUT:
	case CODEGEN_STRIDED:
		return input->original[row * input->stride[0] + column * input->stride[1]];
	case CODEGEN_SCALAR:
		return (float)trial->scalar[arg->index];
	default:
		return 0;
	}
}

/* Whether more than one number of the row, among those that op k works on, is a NaN or makes one when it meets another. */
static bool several_nans(const struct check_trial *trial, uint32_t k, int64_t row)
{
	const struct codegen_op *op = &trial->region->op[k];
	const int64_t first = row * trial->shape.columns;
	uint32_t n = 0;

	for (uint32_t i = 0; i < trial->region->plan->ops[k].n_args; i++) {
		if (op->arg[i].token > CODEGEN_STRIDED)
			continue;
		for (int64_t e = first; n < 2 && e < first + trial->shape.columns; e++)
			n += !isfinite(operand(trial, &op->arg[i], e));
	}
	return n > 1;
}

/* Several different NaNs met in the element on the way to value k. Which of them survives differs inside the framework
 * itself (oprules.c), so there any NaN is right. */
static bool either_nan(const struct check_trial *trial, uint32_t k, int64_t e)
{
	const struct codegen_op *op = &trial->region->op[k];
	uint32_t nan = 0;

	if (op->rule->sum)
		return several_nans(trial, k, e / trial->shape.columns);
	for (uint32_t i = 0; i < trial->region->plan->ops[k].n_args; i++) {
		float x = operand(trial, &op->arg[i], e);

		if (!isnan(x))
			continue;
		/* The framework's vector body negates a number where its tail subtracts: the sign of a NaN varies too. */
		if ((nan && (nan != bits_of(x) || op->arg[i].token == CODEGEN_SCALAR)) ||
		    (op->arg[i].token == CODEGEN_VALUE && either_nan(trial, op->arg[i].index, e)))
			return true;
		nan = bits_of(x);
	}
	return false;
}

struct tensors {
	framework_tensor input[TERRA_PLAN_MAX_INPUTS];
	float *memory[TERRA_PLAN_MAX_INPUTS];
	framework_tensor value[TERRA_PLAN_MAX_OPS];
};

static void free_tensors(const struct check_trial *trial, struct tensors *t)
{
	for (uint32_t k = 0; k < trial->region->plan->n_ops; k++)
		if (!trial->region->op[k].rule->in_place)
			framework_free(trial->framework, t->value[k]);
	for (uint32_t j = 0; j < trial->region->n_inputs; j++) {
		framework_free(trial->framework, t->input[j]);
		free(t->memory[j]);
	}
}

framework_tensor check_input_tensor(const struct check_trial *trial, uint32_t j, float *memory)
{
	const int64_t sizes[2] = {trial->shape.rows, trial->shape.columns};
	bool columns = trial->region->letter[j] == 'r';

	return framework_from_blob(trial->framework, memory, columns ? 1 : 2, sizes, trial->input[j].stride,
				   columns ? FRAMEWORK_INT64 : FRAMEWORK_FLOAT32);
}

struct terra_strided check_input_strided(const struct check_trial *trial, uint32_t j, const float *memory)
{
	struct terra_strided s = {.data = memory};

	if (trial->region->letter[j] == 'r')
		return s;
	s.ndim = 2;
	s.size[0] = trial->shape.rows;
	s.size[1] = trial->shape.columns;
	memcpy(s.stride, trial->input[j].stride, sizeof(trial->input[j].stride));
	return s;
}

static int make_tensors(const struct check_trial *trial, struct tensors *t)
{
	for (uint32_t j = 0; j < trial->region->n_inputs; j++) {
		const struct check_input *input = &trial->input[j];

		t->memory[j] = malloc(input->count * sizeof(float));
		if (!t->memory[j])
			return -ENOMEM;
		memcpy(t->memory[j], input->original, input->count * sizeof(float));
		t->input[j] = check_input_tensor(trial, j, t->memory[j]);
		if (!t->input[j])
			return -ENOMEM;
	}
	return 0;
}

static int reference_op(struct check_trial *trial, struct tensors *t, uint32_t k, char *err, size_t err_size)
{
	const struct terra_plan_op *line = &trial->region->plan->ops[k];
	struct framework_arg args[TERRA_PLAN_MAX_ARGS];
	const struct framework_op *op;
	int ret;

	ret = framework_op_find(trial->framework, line->op, &op, err, err_size);
	if (ret < 0)
		return ret;
	check_op_args(trial->region, k, t->value, t->input, trial->scalar, args);
	ret = framework_call(trial->framework, op, args, line->n_args, &t->value[k]);
	if (!ret && framework_numel(trial->framework, t->value[k]) != trial->numel)
		ret = -EINVAL;
	if (ret < 0)
		return codegen_error(err, err_size, ret, "%s can't be called with these arguments", line->op);
	memcpy(trial->expected[k], framework_data(trial->framework, t->value[k]), (size_t)trial->numel * sizeof(float));
	return 0;
}

int check_trial_reference(struct check_trial *trial, char *err, size_t err_size)
{
	struct tensors t = {0};
	int ret = make_tensors(trial, &t);

	if (ret < 0)
		codegen_error(err, err_size, ret, "out of memory");
	for (uint32_t k = 0; !ret && k < trial->region->plan->n_ops; k++)
		ret = reference_op(trial, &t, k, err, err_size);
	free_tensors(trial, &t);
	return ret;
}

/* ---- the kernel ---- */

/* Memory that the kernel may write, guards around it, at any float's alignment. */
struct guarded {
	float *memory, *data;
	size_t n;
};

static int guarded_make(struct guarded *g, const float *from, size_t n, uint64_t *random)
{
	const uint32_t guard = GUARD_BITS;
	size_t total = n + 3 * GUARD;

	g->n = n;
	g->memory = malloc(total * sizeof(float));
	if (!g->memory)
		return -ENOMEM;
	for (size_t i = 0; i < total; i++)
		memcpy(&g->memory[i], &guard, sizeof(guard));
	g->data = g->memory + GUARD + check_random(random) % GUARD;
	if (from)
		memcpy(g->data, from, n * sizeof(float));
	return 0;
}

static bool guarded_intact(const struct guarded *g)
{
	for (const float *p = g->memory; p < g->memory + g->n + 3 * GUARD;
	     p = p + 1 == g->data ? g->data + g->n : p + 1)
		if (bits_of(*p) != GUARD_BITS)
			return false;
	return true;
}

float *check_memory(size_t n)
{
	size_t size = n * sizeof(float), step = size < HUGE_PAGE ? ALIGNMENT : HUGE_PAGE;
	float *p = aligned_alloc(step, (size + step - 1) / step * step);

	if (p && step == HUGE_PAGE)
		madvise(p, size, MADV_HUGEPAGE);
	return p;
}

float *check_scratch(void)
{
	_Alignas(
	    64) static _Thread_local float scratch[(TERRA_PLAN_MAX_OPS + TERRA_PLAN_MAX_INPUTS) * TERRA_KERNEL_BLOCK];

	return scratch;
}

struct kernel_run {
	struct guarded input[TERRA_PLAN_MAX_INPUTS];
	struct guarded value[TERRA_PLAN_MAX_OPS];
	void *input_ptr[TERRA_PLAN_MAX_INPUTS];
	struct terra_strided strided[TERRA_PLAN_MAX_INPUTS];
	void *result[TERRA_PLAN_MAX_OPS];
};

static void free_run(struct kernel_run *run)
{
	for (uint32_t j = 0; j < TERRA_PLAN_MAX_INPUTS; j++)
		free(run->input[j].memory);
	for (uint32_t k = 0; k < TERRA_PLAN_MAX_OPS; k++)
		free(run->value[k].memory);
}

static int prepare_inputs(struct check_trial *trial, struct kernel_run *run)
{
	for (uint32_t j = 0; j < trial->region->n_inputs; j++) {
		const struct check_input *input = &trial->input[j];

		if (guarded_make(&run->input[j], input->original, input->count, &trial->random) < 0)
			return -ENOMEM;
		if (trial->region->letter[j] == 'i')
			run->input_ptr[j] = run->input[j].data;
		else
			run->strided[j] = check_input_strided(trial, j, run->input[j].data);
	}
	return 0;
}

/* In-place results of inputs are always live: the program has the tensor. */
static bool is_live(const struct check_trial *trial, uint32_t k, enum check_live live)
{
	if (trial->replaced[k])
		return false;
	return live == CHECK_LIVE_ALL || trial->target[k] >= TERRA_PLAN_MAX_OPS || k + 1 == trial->region->plan->n_ops;
}

static int prepare_results(struct check_trial *trial, struct kernel_run *run, enum check_live live)
{
	for (uint32_t k = 0; k < trial->region->plan->n_ops; k++) {
		if (!is_live(trial, k, live))
			continue;
		if (trial->target[k] >= TERRA_PLAN_MAX_OPS) {
			run->result[k] = run->input[trial->target[k] - TERRA_PLAN_MAX_OPS].data;
			continue;
		}
		if (guarded_make(&run->value[k], NULL, (size_t)trial->numel, &trial->random) < 0)
			return -ENOMEM;
		run->result[k] = run->value[k].data;
	}
	return 0;
}

int64_t check_block(const struct check_trial *trial)
{
	return trial->region->by_rows ? trial->shape.columns : TERRA_KERNEL_BLOCK;
}

/* In one piece, or in up to three that meet at boundaries of blocks or rows and are run last piece first. */
static void run_pieces(struct check_trial *trial, terra_kernel_fn fn, const struct terra_kernel_args *args, bool pieces)
{
	const int64_t block = check_block(trial), blocks = (trial->numel + block - 1) / block;
	int64_t end = trial->numel;

	for (int i = 0; pieces && i < 2; i++) {
		int64_t begin = (int64_t)(check_random(&trial->random) % (uint64_t)blocks) * block;

		if (begin < end) {
			fn(args, begin, end);
			end = begin;
		}
	}
	fn(args, 0, end);
}

static uint32_t ulp_distance(uint32_t a, uint32_t b)
{
	int64_t x = a >> 31 ? -(int64_t)(a & 0x7fffffff) : (int64_t)a;
	int64_t y = b >> 31 ? -(int64_t)(b & 0x7fffffff) : (int64_t)b;
	int64_t d = x > y ? x - y : y - x;

	return d > UINT32_MAX ? UINT32_MAX : (uint32_t)d;
}

static void note_difference(const struct check_trial *trial, uint32_t k, int64_t e, float want, float have,
			    struct check_result *out)
{
	uint32_t ulp = isfinite(want) && isfinite(have) ? ulp_distance(bits_of(want), bits_of(have)) : 0;

	if (!out->differing)
		snprintf(out->first, sizeof(out->first),
			 "op %u (%s), element %lld of %lld: the framework has %.9g (%08x), the kernel %.9g (%08x)", k,
			 trial->region->plan->ops[k].op, (long long)e, (long long)trial->numel, (double)want,
			 bits_of(want), (double)have, bits_of(have));
	out->differing++;
	if (ulp > out->largest_ulp)
		out->largest_ulp = ulp;
}

static void compare_value(const struct check_trial *trial, uint32_t k, const float *have, struct check_result *out)
{
	const float *want = trial->expected[k];

	out->compared += (uint64_t)trial->numel;
	if (!memcmp(want, have, (size_t)trial->numel * sizeof(float)))
		return;
	for (int64_t e = 0; e < trial->numel; e++) {
		if (bits_of(want[e]) == bits_of(have[e]))
			continue;
		if (isnan(want[e]) && isnan(have[e]) && either_nan(trial, k, e))
			continue;
		note_difference(trial, k, e, want[e], have[e], out);
	}
}

static void note_overrun(const char *what, uint32_t index, struct check_result *out)
{
	if (!out->differing++)
		snprintf(out->first, sizeof(out->first), "the kernel wrote outside of %s %u", what, index);
}

static void compare_run(const struct check_trial *trial, const struct kernel_run *run, struct check_result *out)
{
	for (uint32_t k = 0; k < trial->region->plan->n_ops; k++) {
		if (run->result[k])
			compare_value(trial, k, run->result[k], out);
		if (run->value[k].memory && !guarded_intact(&run->value[k]))
			note_overrun("result", k, out);
	}
	for (uint32_t j = 0; j < trial->region->n_inputs; j++) {
		const struct check_input *input = &trial->input[j];

		if (!guarded_intact(&run->input[j]) ||
		    (!input->written && memcmp(run->input[j].data, input->original, input->count * sizeof(float))))
			note_overrun("input", j, out);
	}
}

int check_trial_kernel(struct check_trial *trial, const struct terra_plan *plan, terra_kernel_fn fn,
		       enum check_live live, struct check_result *out)
{
	struct kernel_run *run = calloc(1, sizeof(*run));
	struct terra_kernel_args args;
	int ret = run ? 0 : -ENOMEM;

	if (!ret)
		ret = prepare_inputs(trial, run);
	if (!ret)
		ret = prepare_results(trial, run, live);
	if (!ret) {
		args = (struct terra_kernel_args){.input = run->input_ptr,
						  .strided = run->strided,
						  .result = run->result,
						  .scalar = trial->scalar,
						  .import = plan->import_table,
						  .columns = trial->shape.columns,
						  .scratch = check_scratch()};
		run_pieces(trial, fn, &args, live == CHECK_LIVE_LAST);
		compare_run(trial, run, out);
	}
	if (run)
		free_run(run);
	free(run);
	return ret;
}
