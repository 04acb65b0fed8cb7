/* product.c - matrix products in tiles (plan.h, form sgemm_tiles).
 *
 * The plan's check compared bits at one shape, with aligned memory, with a thread count, and under the framework's default
 * settings. The first three are compared with the call. Settings differ from version to version (precision of products,
 * preferred libraries), so their effect is asked for instead: right before each use the framework multiplies two small
 * matrices whose exact product fits a float32 and no shorter format.
 */
#include <stdlib.h>
#include <string.h>

#include "replay/arena.h"
#include "replay/call.h"
#include "replay/kernel.h"
#include "replay/replace.h"

#define ALIGNMENT 64
#define MAX_THREADS 64
#define PROBE TERRA_SGEMM_PROBE
#define BUFFER_FLOATS ((size_t)TERRA_SGEMM_BUFFER * TERRA_SGEMM_BUFFER)

static struct {
	bool usable;
	const struct terra_plan *plan;
	struct terra_sgemm_shape *shapes; /* of the plan's replacements of form sgemm_tiles, by the same number */
	float *buffers; /* one per thread */
	void *probe[2]; /* at::Tensor; kept */
	void *no_bias;
	float expected[PROBE][PROBE];
} product;

void product_init(const struct terra_plan *plan)
{
	product.plan = plan;
	product.shapes = calloc(plan->n_replaces + 1, sizeof(*product.shapes));
	product.usable = product.shapes != NULL && !terra_plan_vendor_settings(); /* the plan was checked without any */
	for (uint32_t i = 0; product.usable && i < plan->n_replaces; i++)
		if (plan->replaces[i].shape != NULL)
			terra_plan_sgemm_shape(plan->replaces[i].shape, &product.shapes[i]); /* valid, or not read as a plan */
}

/* ---- the probe ---- */

/* A holds odd numbers of 12 bits, B such numbers on its diagonal: each product is exact in 24 bits, and whatever is cut off
 * of a factor, or left out of a product of parts, shows. */
static float probe_number(uint32_t i, uint32_t j)
{
	return (float)(2049 + 2 * ((i * 37 + j * 101) % 1024));
}

static bool make_probe(void)
{
	const int64_t size[2] = {PROBE, PROBE};
	struct tensor_view a, b, bias;

	framework_empty(&product.no_bias, size, 1);
	for (int i = 0; i < 2; i++)
		framework_empty(&product.probe[i], size, 2);
	if (!framework_view(&product.probe[0], &a) || !framework_view(&product.probe[1], &b) ||
	    !framework_view(&product.no_bias, &bias))
		return false;
	memset(bias.data, 0, PROBE * sizeof(float));
	for (uint32_t i = 0; i < PROBE; i++) {
		for (uint32_t j = 0; j < PROBE; j++) {
			a.data[i * PROBE + j] = probe_number(i, j);
			b.data[i * PROBE + j] = i == j ? probe_number(j, 7) : 0;
			product.expected[i][j] = probe_number(i, j) * probe_number(j, 7);
		}
	}
	return true;
}

struct question {
	const struct product_original *original;
	void *result;
};

static void ask(int64_t begin, int64_t end, void *ctx)
{
	const struct product_original *original = ((struct question *)ctx)->original;
	void *result = &((struct question *)ctx)->result;

	if (original->beta == NULL)
		((product_mm_fn)original->fn)(result, framework.cpu_keyset, &product.probe[0], &product.probe[1]);
	else
		((product_addmm_fn)original->fn)(result, framework.cpu_keyset, &product.no_bias, &product.probe[0],
						 &product.probe[1], original->beta, original->alpha);
}

bool product_is_exact(const struct product_original *original)
{
	struct question question = {.original = original};
	struct tensor_view c;
	bool exact;

	if (product.probe[0] == NULL && !make_probe())
		return false;
	framework_alone(1, ask, &question); /* others would take longer to start than to multiply */
	exact = framework_view(&question.result, &c) && c.numel == PROBE * PROBE &&
		memcmp(c.data, product.expected, sizeof(product.expected)) == 0;
	framework_drop(&question.result);
	return exact;
}

/* ---- one product ---- */

struct product_call {
	struct tensor_view a, b, bias;
	bool with_bias;
	struct product_original original;
};

static bool is_stored(const struct tensor_view *t, int64_t rows, int64_t columns, bool transposed, int64_t ld)
{
	return t->size[0] == rows && t->size[1] == columns && t->stride[0] == (transposed ? 1 : ld) &&
	       t->stride[1] == (transposed ? ld : 1);
}

static bool is_for_call(const struct terra_sgemm_shape *s, const struct product_call *call)
{
	return is_stored(&call->a, s->m, s->k, s->a_transposed, s->lda) &&
	       is_stored(&call->b, s->k, s->n, s->b_transposed, s->ldb) && (!call->with_bias || call->bias.size[0] == s->n);
}

static bool read_tensor(const struct terra_op *op, uint32_t arg, const struct hook_regs *regs, int64_t ndim,
			struct tensor_view *out)
{
	const void *tensor;

	if (op->args[arg].kind != TERRA_KIND_TENSOR || op->args[arg].place != TERRA_PLACE_GPR)
		return false;
	tensor = (const void *)regs->gpr[op->args[arg].index];
	return framework_view(tensor, out) && out->dtype == framework.float32 && out->ndim == ndim &&
	       (uintptr_t)out->data % ALIGNMENT == 0 && !framework_has_names(tensor);
}

static bool is_one(const struct terra_arg *arg, const struct hook_regs *regs, const void **scalar)
{
	double number;

	*scalar = call_object(arg, regs);
	return arg->kind == TERRA_KIND_SCALAR && arg->by_ref && framework_scalar(*scalar, &number) && number == 1;
}

/* mm(A, B), or addmm(bias, A, B, beta, alpha) with both factors 1, behind the keyset. */
static bool read_call(const struct terra_op *op, const struct hook_regs *regs, struct product_call *call)
{
	uint32_t first = op->n_args == 3 ? 1 : 2;

	if ((op->n_args != 3 && op->n_args != 6) || op->ret != TERRA_RET_TENSOR || op->has_sret != 1 ||
	    op->args[0].kind != TERRA_KIND_KEYSET)
		return false;
	call->with_bias = first == 2;
	if (call->with_bias && (!read_tensor(op, 1, regs, 1, &call->bias) || call->bias.stride[0] != 1 ||
				!is_one(&op->args[4], regs, &call->original.beta) ||
				!is_one(&op->args[5], regs, &call->original.alpha)))
		return false;
	return read_tensor(op, first, regs, 2, &call->a) && read_tensor(op, first + 1, regs, 2, &call->b);
}

static bool buffers_ready(void)
{
	if (product.buffers == NULL)
		product.buffers = kernel_memory(MAX_THREADS * BUFFER_FLOATS * sizeof(float));
	return product.buffers != NULL;
}

struct job {
	terra_sgemm_tiles_fn fn;
	struct terra_sgemm_args args;
};

static void run_tiles(int64_t begin, int64_t end, void *ctx)
{
	const struct job *job = ctx;
	struct terra_sgemm_args args = job->args;

	if (args.shape.buffered)
		args.buffer = product.buffers + (size_t)framework_thread_number() * BUFFER_FLOATS;
	job->fn(&args, begin, end);
}

/* The result, or NULL where it is no aligned memory. */
static float *make_result(const struct terra_sgemm_shape *s, void *result)
{
	const int64_t size[2] = {s->m, s->n};
	struct tensor_view c;

	framework_empty(result, size, 2); /* may throw, as the framework's own would */
	if (framework_view(result, &c) && (uintptr_t)c.data % ALIGNMENT == 0)
		return c.data;
	framework_drop(result);
	return NULL;
}

/* The first of the op's replacements that is for the call. */
static const struct terra_plan_replace *find(const struct terra_plan_replace *from, const struct product_call *call)
{
	const struct terra_plan_replace *end = product.plan->replaces + product.plan->n_replaces;
	const char *op = from->op;
	int threads = framework.max_threads();

	for (; from < end; from++) {
		const struct terra_sgemm_shape *shape = &product.shapes[from - product.plan->replaces];

		if (shape->m > 0 && from->fn != NULL && (uint32_t)threads == shape->threads && is_for_call(shape, call) &&
		    strcmp(from->op, op) == 0)
			return from;
	}
	return NULL;
}

bool product_run(const struct terra_plan_replace *from, const struct terra_op *op, void *original, struct hook_regs *regs)
{
	struct product_call call = {.original.fn = (void (*)(void))(uintptr_t)original};
	const struct terra_plan_replace *replace;
	void *result = (void *)regs->gpr[0];
	struct job job = {0};

	if (!product.usable || !read_call(op, regs, &call))
		return false;
	replace = find(from, &call);
	if (replace == NULL || !product_is_exact(&call.original))
		return false;
	job.fn = (terra_sgemm_tiles_fn)(uintptr_t)replace->fn;
	job.args.shape = product.shapes[replace - product.plan->replaces];
	if (job.args.shape.buffered && !buffers_ready())
		return false;
	job.args.a = call.a.data;
	job.args.b = call.b.data;
	job.args.bias = call.with_bias ? call.bias.data : NULL;
	job.args.c = make_result(&job.args.shape, result);
	job.args.import = product.plan->import_table;
	if (job.args.c == NULL)
		return false;
	framework_parallel(terra_plan_sgemm_tiles(&job.args.shape), 1, run_tiles, &job);
	regs->ret = (uint64_t)result;
	return true;
}
