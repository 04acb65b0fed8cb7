/* check_sgemm.c - a matrix product in tiles against the framework's, at one shape: every element's bits, and the time.
 *
 * The order in which the vendor's library adds up an element may depend on sizes, storage order, alignment and thread
 * count, never on the values. So the comparison is at the very shape, with memory aligned as replay demands, for each
 * thread count up to the traced one. Special values are sprinkled thinly: an infinity reaches a whole row.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/check_internal.h"

#define SPRINKLED 40
#define REPEATS 5

struct product {
	const struct terra_plan *plan;
	struct framework *framework;
	const struct framework_op *op;
	terra_sgemm_tiles_fn fn;
	struct terra_sgemm_args args;
	size_t a_count, b_count, c_count;
	float *a, *b, *want, *have;
	framework_tensor ta, tb, tc;
	struct check_result *out;
};

static framework_tensor matrix(const struct product *p, float *data, int64_t rows, int64_t columns, bool transposed,
			       int64_t ld)
{
	const int64_t sizes[2] = {rows, columns}, strides[2] = {transposed ? 1 : ld, transposed ? ld : 1};

	return framework_from_blob(p->framework, data, 2, sizes, strides, FRAMEWORK_FLOAT32);
}

static int product_open(struct product *p)
{
	const struct terra_sgemm_shape *s = &p->args.shape;
	int ret;

	p->a_count = (size_t)s->lda * (size_t)(s->a_transposed ? s->k : s->m);
	p->b_count = (size_t)s->ldb * (size_t)(s->b_transposed ? s->n : s->k);
	p->c_count = (size_t)s->m * (size_t)s->n;
	p->a = check_memory(p->a_count);
	p->b = check_memory(p->b_count);
	p->want = check_memory(p->c_count);
	p->have = check_memory(p->c_count);
	if (!p->a || !p->b || !p->want || !p->have)
		return codegen_error(p->out->first, sizeof(p->out->first), -ENOMEM, "out of memory");
	p->ta = matrix(p, p->a, s->m, s->k, s->a_transposed, s->lda);
	p->tb = matrix(p, p->b, s->k, s->n, s->b_transposed, s->ldb);
	p->tc = matrix(p, p->want, s->m, s->n, false, s->n);
	if (!p->ta || !p->tb || !p->tc)
		return codegen_error(p->out->first, sizeof(p->out->first), -ENOMEM, "out of memory");
	/* The form that writes to memory given to it: what new memory costs is no part of the comparison. */
	ret = framework_op_find(p->framework, "aten::mm.out", &p->op, p->out->first, sizeof(p->out->first));
	p->args.a = p->a;
	p->args.b = p->b;
	p->args.c = p->have;
	p->args.import = p->plan->import_table;
	return ret;
}

static void product_close(struct product *p)
{
	framework_free(p->framework, p->ta);
	framework_free(p->framework, p->tb);
	framework_free(p->framework, p->tc);
	free(p->a);
	free(p->b);
	free(p->want);
	free(p->have);
}

static int run_eager(const struct product *p)
{
	const struct framework_arg args[] = {{.type = FRAMEWORK_ARG_TENSOR, .tensor = p->ta},
					     {.type = FRAMEWORK_ARG_TENSOR, .tensor = p->tb},
					     {.type = FRAMEWORK_ARG_TENSOR, .tensor = p->tc}};
	framework_tensor result;

	return framework_call(p->framework, p->op, args, 3, &result);
}

/* A tile of memory for the calling thread, kept. */
static float *tile_memory(void)
{
	static _Thread_local float *tile;

	if (!tile)
		tile = check_memory((size_t)TERRA_SGEMM_TILE * TERRA_SGEMM_TILE);
	return tile;
}

static void run_tiles(void *ctx, int64_t begin, int64_t end)
{
	const struct product *p = ctx;
	struct terra_sgemm_args args = p->args;

	args.tile = tile_memory();
	if (args.tile)
		p->fn(&args, begin, end);
}

static void run_fused(struct product *p)
{
	framework_parallel_for(p->framework, terra_plan_sgemm_tiles(&p->args.shape), 1, run_tiles, p);
}

/* Uniform in (-1, 1): matrices are large, and normal numbers would take longer than their product. */
static void fill(float *data, size_t n, uint64_t *random)
{
	for (size_t i = 0; i < n; i++)
		data[i] = (float)(int32_t)(check_random(random) >> 32) * 0x1p-31f;
}

static void sprinkle(float *data, size_t n, uint64_t *random)
{
	for (int i = 0; i < SPRINKLED; i++)
		check_fill(&data[check_random(random) % n], 1, CHECK_VALUES_SPECIAL, random);
}

static void compare(struct product *p, uint32_t threads)
{
	p->out->compared += p->c_count;
	if (!memcmp(p->want, p->have, p->c_count * sizeof(float)))
		return;
	for (size_t i = 0; i < p->c_count; i++) {
		if (!memcmp(&p->want[i], &p->have[i], sizeof(float)))
			continue;
		if (!p->out->differing++)
			codegen_error(p->out->first, sizeof(p->out->first), 0,
				      "element %zu of %zu with %u threads: the framework has %g, the kernel %g", i,
				      p->c_count, threads, (double)p->want[i], (double)p->have[i]);
	}
}

static int try_once(struct product *p, bool specials, uint64_t *random)
{
	int ret = 0;

	fill(p->a, p->a_count, random);
	fill(p->b, p->b_count, random);
	if (specials) {
		sprinkle(p->a, p->a_count, random);
		sprinkle(p->b, p->b_count, random);
	}
	for (uint32_t threads = 1; !ret && threads <= p->args.shape.threads; threads++) {
		memset(p->have, 0x55, p->c_count * sizeof(float));
		framework_set_threads(p->framework, (int)threads);
		ret = run_eager(p);
		run_fused(p);
		if (!ret)
			compare(p, threads);
	}
	return ret;
}

static int measure(struct product *p, uint32_t repeats)
{
	double eager[REPEATS], fused[REPEATS];
	uint32_t n = repeats && repeats < REPEATS ? repeats : REPEATS;
	int ret = 0;

	for (uint32_t i = 0; !ret && i < n; i++) {
		double start = check_now_ns(), middle;

		ret = run_eager(p);
		middle = check_now_ns();
		run_fused(p);
		fused[i] = check_now_ns() - middle;
		eager[i] = middle - start;
	}
	p->out->eager_ns = ret ? 0 : check_median(eager, n);
	p->out->fused_ns = ret ? 0 : check_median(fused, n);
	return ret;
}

int check_sgemm(const struct terra_plan *plan, struct terra_plan_replace *replace, const struct check_options *options,
		struct check_result *out)
{
	struct product p = {.plan = plan, .framework = options->framework, .out = out};
	int threads = framework_threads(options->framework), ret;
	uint64_t random = options->seed;

	if (!replace->shape || !terra_plan_sgemm_shape(replace->shape, &p.args.shape))
		return codegen_error(out->first, sizeof(out->first), -EINVAL, "the shape is malformed");
	p.fn = (terra_sgemm_tiles_fn)(uintptr_t)replace->fn;
	ret = product_open(&p);
	if (!ret)
		ret = try_once(&p, false, &random);
	if (!ret && !out->differing)
		ret = try_once(&p, true, &random);
	out->identical = !ret && !out->differing;
	if (!ret && out->identical && options->measure)
		ret = measure(&p, options->repeats);
	framework_set_threads(options->framework, threads);
	product_close(&p);
	return ret;
}
