/* check_time.c - what a kernel gains over the framework's own ops.
 *
 * Both sides are timed in turn and warm. The framework's side is what a program pays below Python: one call for each
 * op, the results allocated and freed when their last reader is done. The kernel's side writes what the region leaves
 * behind (results that no op of it reads, and targets of in-place ops), allocated likewise.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "graphopt/check_internal.h"

#define DEFAULT_REPEATS 15
#define MAX_REPEATS 1000
#define MIN_SAMPLE_NS 200000. /* a sample is as many calls as take about this long */
#define WARM_UP_NS 50e6	      /* of both sides in turn: processors and threads that were idle are slow at first */
#define MIN_TOTAL_NS 150e6    /* samples are taken for so long at least, or until there are MAX_REPEATS */
#define GRAIN 32768	      /* elements, as the framework's own */

struct timing {
	struct framework *framework;
	const struct terra_plan *plan;
	const struct codegen_region *region;
	terra_kernel_fn fn;
	struct check_trial trial;		       /* inputs and numbers */
	framework_tensor input[TERRA_PLAN_MAX_INPUTS]; /* over trial.input[].original */
	const struct framework_op *op[TERRA_PLAN_MAX_OPS];
	uint32_t last_use[TERRA_PLAN_MAX_OPS]; /* by memory: op after which it is free; n_ops: stays */
	struct terra_strided strided[TERRA_PLAN_MAX_INPUTS];
	void *input_ptr[TERRA_PLAN_MAX_INPUTS];
	struct terra_kernel_args args;
};

double check_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static void find_last_uses(struct timing *t)
{
	const struct codegen_region *region = t->region;
	const uint32_t n_ops = region->plan->n_ops;

	for (uint32_t k = 0; k < n_ops; k++)
		t->last_use[k] = n_ops;
	for (uint32_t k = 0; k < n_ops; k++) {
		for (uint32_t i = 0; i < region->plan->ops[k].n_args; i++) {
			const struct codegen_arg *arg = &region->op[k].arg[i];
			uint32_t memory =
			    arg->token == CODEGEN_VALUE ? t->trial.target[arg->index] : TERRA_PLAN_MAX_OPS;

			if (memory < TERRA_PLAN_MAX_OPS)
				t->last_use[memory] = k;
		}
		/* The newest name of a memory: nobody has read it yet. */
		if (t->trial.target[k] < TERRA_PLAN_MAX_OPS)
			t->last_use[t->trial.target[k]] = n_ops;
	}
}

static int make_tensors(struct timing *t)
{
	for (uint32_t j = 0; j < t->region->n_inputs; j++) {
		float *memory = t->trial.input[j].original;

		t->input_ptr[j] = memory;
		t->strided[j] = check_input_strided(&t->trial, j, memory);
		t->input[j] = check_input_tensor(&t->trial, j, memory);
		if (!t->input[j])
			return -ENOMEM;
	}
	return 0;
}

static int timing_open(struct timing *t, struct check_shape shape, uint64_t seed, char *err, size_t err_size)
{
	int ret = check_trial_make(&t->trial, t->framework, t->region, shape, CHECK_VALUES_POSITIVE, seed);

	if (!ret)
		ret = make_tensors(t);
	if (ret < 0)
		return codegen_error(err, err_size, ret, "out of memory");
	for (uint32_t i = 0; i < t->region->n_scalars; i++)
		t->trial.scalar[i] = 0.75; /* in-place ops are repeated: nothing must run away */
	for (uint32_t k = 0; !ret && k < t->region->plan->n_ops; k++)
		ret = framework_op_find(t->framework, t->region->plan->ops[k].op, &t->op[k], err, err_size);
	find_last_uses(t);
	t->args = (struct terra_kernel_args){
	    .input = t->input_ptr, .strided = t->strided, .scalar = t->trial.scalar, .import = t->plan->import_table,
	    .columns = shape.columns};
	return ret;
}

static void timing_close(struct timing *t)
{
	for (uint32_t j = 0; j < t->region->n_inputs; j++)
		framework_free(t->framework, t->input[j]);
	check_trial_free(&t->trial);
}

static int run_eager(struct timing *t)
{
	const struct codegen_region *region = t->region;
	framework_tensor value[TERRA_PLAN_MAX_OPS] = {0};
	struct framework_arg args[TERRA_PLAN_MAX_ARGS];
	const uint32_t n_ops = region->plan->n_ops;
	int ret = 0;

	for (uint32_t k = 0; !ret && k < n_ops; k++) {
		check_op_args(region, k, value, t->input, t->trial.scalar, args);
		ret = framework_call(t->framework, t->op[k], args, region->plan->ops[k].n_args, &value[k]);
		for (uint32_t m = 0; m <= k; m++)
			if (t->last_use[m] == k && !region->op[m].rule->in_place)
				framework_free(t->framework, value[m]);
	}
	for (uint32_t m = 0; m < n_ops; m++)
		if (t->last_use[m] == n_ops && !region->op[m].rule->in_place)
			framework_free(t->framework, value[m]);
	return ret;
}

static void run_blocks(void *ctx, int64_t begin, int64_t end)
{
	const struct timing *t = ctx;
	struct terra_kernel_args args = t->args;
	int64_t block = check_block(&t->trial), last = end * block;

	args.scratch = check_scratch();
	t->fn(&args, begin * block, last < t->trial.numel ? last : t->trial.numel);
}

static int run_fused(struct timing *t)
{
	const int64_t sizes[2] = {t->trial.shape.rows, t->trial.shape.columns},
		      strides[2] = {t->trial.shape.columns, 1};
	framework_tensor made[TERRA_PLAN_MAX_OPS] = {0};
	void *result[TERRA_PLAN_MAX_OPS] = {0};
	const uint32_t n_ops = t->region->plan->n_ops;
	const int64_t block = check_block(&t->trial);

	for (uint32_t k = 0; k < n_ops; k++) {
		uint32_t memory = t->trial.target[k];

		if (t->trial.replaced[k])
			continue;
		if (memory >= TERRA_PLAN_MAX_OPS) {
			result[k] = t->input_ptr[memory - TERRA_PLAN_MAX_OPS];
		} else if (t->last_use[memory] == n_ops) {
			made[k] = framework_empty(t->framework, 2, sizes, strides, FRAMEWORK_FLOAT32);
			if (!made[k])
				return -ENOMEM;
			result[k] = framework_data(t->framework, made[k]);
		}
	}
	t->args.result = result;
	framework_parallel_for(t->framework, (t->trial.numel + block - 1) / block, (GRAIN + block - 1) / block, run_blocks, t);
	for (uint32_t k = 0; k < n_ops; k++)
		framework_free(t->framework, made[k]);
	return 0;
}

static int sample(struct timing *t, int (*run)(struct timing *), unsigned int calls, double *ns)
{
	double start = check_now_ns();
	int ret = 0;

	for (unsigned int i = 0; !ret && i < calls; i++)
		ret = run(t);
	*ns = (check_now_ns() - start) / calls;
	return ret;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double check_median(double *values, uint32_t n)
{
	qsort(values, n, sizeof(*values), ascending);
	return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* At least `repeats` samples of each side; *n says how many. */
static int take_samples(struct timing *t, uint32_t repeats, double *eager, double *fused, uint32_t *n)
{
	unsigned int calls;
	double once;
	int ret = sample(t, run_eager, 1, &once);

	if (!ret)
		ret = sample(t, run_fused, 1, &once);
	if (!ret)
		ret = sample(t, run_eager, 1, &once);
	calls = once > 0 && once < MIN_SAMPLE_NS ? (unsigned int)(MIN_SAMPLE_NS / once) + 1 : 1;
	for (double start = check_now_ns(); !ret && check_now_ns() - start < WARM_UP_NS;) {
		ret = sample(t, run_eager, calls, &once);
		if (!ret)
			ret = sample(t, run_fused, calls, &once);
	}
	for (double start = check_now_ns(); !ret && *n < MAX_REPEATS; (*n)++) {
		if (*n >= repeats && check_now_ns() - start >= MIN_TOTAL_NS)
			break;
		ret = sample(t, run_eager, calls, &eager[*n]);
		if (!ret)
			ret = sample(t, run_fused, calls, &fused[*n]);
	}
	return ret;
}

/* About as many rows as columns, when rows matter. What was traced is not known here. */
static struct check_shape shape_for(const struct codegen_region *region, int64_t numel)
{
	bool matter = region->by_rows;
	int64_t rows = 1;

	for (uint32_t j = 0; j < region->n_inputs; j++)
		matter |= region->letter[j] == 'b';
	while (matter && rows * rows < numel && numel % (rows * 2) == 0)
		rows *= 2;
	return (struct check_shape){rows, numel / rows};
}

int check_measure(struct terra_plan *plan, struct terra_plan_region *region, const struct codegen_region *resolved,
		  const struct check_options *options, struct check_result *out)
{
	struct timing *t = calloc(1, sizeof(*t));
	double eager[MAX_REPEATS], fused[MAX_REPEATS];
	uint32_t repeats = options->repeats ? options->repeats : DEFAULT_REPEATS;
	int64_t numel = options->numel ? options->numel : region->numel;
	uint32_t n = 0;
	int ret = -ENOMEM;

	if (!t)
		return codegen_error(out->first, sizeof(out->first), ret, "out of memory");
	if (repeats > MAX_REPEATS)
		repeats = MAX_REPEATS;
	t->framework = options->framework;
	t->plan = plan;
	t->region = resolved;
	t->fn = region->fn;
	ret = timing_open(t, shape_for(resolved, numel > 0 ? numel : 1), options->seed, out->first, sizeof(out->first));
	if (!ret)
		ret = take_samples(t, repeats, eager, fused, &n);
	if (!ret) {
		out->eager_ns = region->eager_ns = check_median(eager, n);
		out->fused_ns = region->fused_ns = check_median(fused, n);
		region->gain = out->fused_ns > 0 ? out->eager_ns / out->fused_ns : 0;
	}
	timing_close(t);
	free(t);
	return ret;
}
