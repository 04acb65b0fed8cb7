/* check_sgemm.c - a matrix product in tiles against the framework's, at one shape: every element's bits, and the time.
 *
 * The order in which the vendor's library adds up an element may depend on sizes, storage order, alignment and thread
 * count, never on the values. So the comparison is at the very shape, with memory aligned as replay demands, with the thread
 * count that replay demands. Special values are sprinkled thinly: an infinity reaches a whole row.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/check_sgemm.h"

#define SPRINKLED 40
#define ALIGNED 16		 /* floats: the alignment of tensor memory, 64 bytes */
#define ALL_SETS (16 << 20)	 /* bytes: beyond the caches of a core */

static int no_memory(struct product *p)
{
	return codegen_error(p->out->first, sizeof(p->out->first), -ENOMEM, "out of memory");
}

static void measure_matrices(struct product *p)
{
	const struct terra_sgemm_shape *s = &p->shape;
	struct product_matrix *all[] = {&p->a, &p->b, &p->bias};
	size_t bytes = 0;

	p->a.count = (size_t)s->lda * (size_t)(s->a_transposed ? s->k : s->m);
	p->b.count = (size_t)s->ldb * (size_t)(s->b_transposed ? s->n : s->k);
	p->bias.count = (size_t)s->n;
	for (size_t i = 0; i < 3; i++) {
		all[i]->step = (all[i]->count + ALIGNED - 1) / ALIGNED * ALIGNED;
		bytes += all[i]->step * sizeof(float);
	}
	p->n_sets = (uint32_t)(1 + ALL_SETS / bytes);
	if (p->n_sets > CHECK_SGEMM_MAX_SETS)
		p->n_sets = CHECK_SGEMM_MAX_SETS;
}

static bool take_memory(struct product *p)
{
	struct product_matrix *all[] = {&p->a, &p->b, &p->bias};

	for (size_t i = 0; i < 3; i++) {
		all[i]->data = check_memory(all[i]->step * p->n_sets);
		if (!all[i]->data)
			return false;
	}
	return true;
}

static framework_tensor matrix(const struct product *p, const struct product_matrix *m, int64_t rows, int64_t columns,
			       bool transposed, int64_t ld)
{
	const int64_t sizes[2] = {rows, columns}, strides[2] = {transposed ? 1 : ld, transposed ? ld : 1};

	return framework_from_blob(p->framework, product_data(p, m), 2, sizes, strides, FRAMEWORK_FLOAT32);
}

static bool make_tensors(struct product *p)
{
	const struct terra_sgemm_shape *s = &p->shape;
	const int64_t one = 1, small[2] = {TERRA_SGEMM_PROBE, TERRA_SGEMM_PROBE};
	const int64_t strides[2] = {TERRA_SGEMM_PROBE, 1};

	for (p->set = 0; p->set < p->n_sets; p->set++) {
		p->ta[p->set] = matrix(p, &p->a, s->m, s->k, s->a_transposed, s->lda);
		p->tb[p->set] = matrix(p, &p->b, s->k, s->n, s->b_transposed, s->ldb);
		p->tbias[p->set] = framework_from_blob(p->framework, product_data(p, &p->bias), 1, &s->n, &one,
						       FRAMEWORK_FLOAT32);
		if (!p->ta[p->set] || !p->tb[p->set] || !p->tbias[p->set])
			return false;
	}
	p->set = 0;
	p->probe = framework_empty(p->framework, 2, small, strides, FRAMEWORK_FLOAT32);
	if (p->probe)
		memset(framework_data(p->framework, p->probe), 0, sizeof(float) * TERRA_SGEMM_PROBE * TERRA_SGEMM_PROBE);
	return p->probe;
}

static int product_open(struct product *p, const char *op)
{
	char *err = p->out->first;
	size_t size = sizeof(p->out->first);
	int ret;

	measure_matrices(p);
	if (!take_memory(p) || !make_tensors(p))
		return no_memory(p);
	ret = framework_op_find(p->framework, op, &p->op, err, size);
	return ret ? ret : framework_op_find(p->framework, "aten::mm", &p->mm, err, size);
}

static void product_close(struct product *p)
{
	for (uint32_t i = 0; i < p->n_sets; i++) {
		framework_free(p->framework, p->ta[i]);
		framework_free(p->framework, p->tb[i]);
		framework_free(p->framework, p->tbias[i]);
	}
	framework_free(p->framework, p->probe);
	free(p->a.data);
	free(p->b.data);
	free(p->bias.data);
}

int product_run_eager(const struct product *p, framework_tensor *result)
{
	const struct framework_arg a = {.type = FRAMEWORK_ARG_TENSOR, .tensor = p->ta[p->set]};
	const struct framework_arg b = {.type = FRAMEWORK_ARG_TENSOR, .tensor = p->tb[p->set]};
	const struct framework_arg bias = {.type = FRAMEWORK_ARG_TENSOR, .tensor = p->tbias[p->set]};
	const struct framework_arg one = {.type = FRAMEWORK_ARG_NUMBER, .number = 1};
	const struct framework_arg mm[] = {a, b}, addmm[] = {bias, a, b, one, one};

	return framework_call(p->framework, p->op, p->with_bias ? addmm : mm, p->with_bias ? 5 : 2, result);
}

static void run_probe(void *ctx, int64_t begin, int64_t end)
{
	const struct product *p = ctx;
	const struct framework_arg arg = {.type = FRAMEWORK_ARG_TENSOR, .tensor = p->probe};
	const struct framework_arg args[] = {arg, arg};
	framework_tensor result;

	if (!framework_call(p->framework, p->mm, args, 2, &result))
		framework_free(p->framework, result);
}

void product_run_probe(const struct product *p)
{
	framework_parallel_for(p->framework, 1, 1, run_probe, (void *)p); /* on this thread alone */
}

/* A buffer of the calling thread, kept. */
static float *buffer_memory(void)
{
	static _Thread_local float *buffer;

	if (!buffer)
		buffer = check_memory((size_t)TERRA_SGEMM_BUFFER * TERRA_SGEMM_BUFFER);
	return buffer;
}

struct tiles_run {
	const struct product *p;
	float *c;
	int64_t n_tiles;
	_Atomic int64_t next; /* tile: each thread takes one after the other, as in replay */
};

static void run_part(void *ctx, int64_t begin, int64_t end)
{
	struct tiles_run *run = ctx;
	const struct product *p = run->p;
	struct terra_sgemm_args args = {.shape = p->shape, .c = run->c, .import = p->plan->import_table};
	int64_t tile;

	args.a = product_data(p, &p->a);
	args.b = product_data(p, &p->b);
	args.bias = p->with_bias ? product_data(p, &p->bias) : NULL;
	args.buffer = p->shape.buffered ? buffer_memory() : NULL;
	if (p->shape.buffered && !args.buffer)
		return;
	while ((tile = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed)) < run->n_tiles)
		p->fn(&args, tile, tile + 1);
}

int product_run_tiles(const struct product *p, framework_tensor *result)
{
	const int64_t size[2] = {p->shape.m, p->shape.n}, stride[2] = {p->shape.n, 1};
	struct tiles_run run = {.p = p, .n_tiles = terra_plan_sgemm_tiles(&p->shape)};

	*result = framework_empty(p->framework, 2, size, stride, FRAMEWORK_FLOAT32);
	if (!*result)
		return -ENOMEM;
	run.c = framework_data(p->framework, *result);
	if (!p->timed)
		memset(run.c, 0x55, (size_t)p->shape.m * (size_t)p->shape.n * sizeof(float));
	framework_parallel_for(p->framework, run.n_tiles, 1, run_part, &run);
	return 0;
}

bool product_is_same(const struct product *p, framework_tensor a, framework_tensor b)
{
	size_t count = (size_t)p->shape.m * (size_t)p->shape.n;

	return !memcmp(framework_data(p->framework, a), framework_data(p->framework, b), count * sizeof(float));
}

/* Uniform in (-1, 1): matrices are large, and normal numbers would take longer than their product. */
static void fill(const struct product *p, struct product_matrix *m, uint64_t *random)
{
	float *data = product_data(p, m);

	for (size_t i = 0; i < m->count; i++)
		data[i] = (float)(int32_t)(check_random(random) >> 32) * 0x1p-31f;
}

static void fill_set(struct product *p, uint64_t *random)
{
	fill(p, &p->a, random);
	fill(p, &p->b, random);
	fill(p, &p->bias, random);
}

static void sprinkle(const struct product *p, struct product_matrix *m, uint64_t *random)
{
	for (int i = 0; i < SPRINKLED; i++)
		check_fill(&product_data(p, m)[check_random(random) % m->count], 1, CHECK_VALUES_SPECIAL, random);
}

static void compare(struct product *p, framework_tensor eager, framework_tensor tiles)
{
	const float *want = framework_data(p->framework, eager), *have = framework_data(p->framework, tiles);
	size_t count = (size_t)p->shape.m * (size_t)p->shape.n;

	p->out->compared += count;
	if (product_is_same(p, eager, tiles))
		return;
	for (size_t i = 0; i < count; i++) {
		if (!memcmp(&want[i], &have[i], sizeof(float)))
			continue;
		if (!p->out->differing++)
			codegen_error(p->out->first, sizeof(p->out->first), 0,
				      "element %zu of %zu with %u threads: the framework has %g, the kernel %g", i,
				      count, p->shape.threads, (double)want[i], (double)have[i]);
	}
}

static int try_once(struct product *p, bool specials, uint64_t *random)
{
	framework_tensor eager = NULL, tiles = NULL;
	int ret;

	p->set = 0;
	fill_set(p, random);
	if (specials) {
		sprinkle(p, &p->a, random);
		sprinkle(p, &p->b, random);
		if (p->with_bias)
			sprinkle(p, &p->bias, random);
	}
	ret = product_run_eager(p, &eager);
	if (!ret)
		ret = product_run_tiles(p, &tiles);
	if (!ret)
		compare(p, eager, tiles);
	framework_free(p->framework, eager);
	framework_free(p->framework, tiles);
	return ret;
}

/* The fastest division, and its name in the plan. */
static int choose_tiles(struct product *p, struct terra_plan_replace *replace, uint64_t *random)
{
	char text[128], *shape;
	int ret;

	for (p->set = 0; p->set < p->n_sets; p->set++)
		fill_set(p, random);
	ret = product_choose_tiles(p);
	if (ret)
		return ret;
	terra_plan_sgemm_text(&p->shape, text, sizeof(text));
	shape = strdup(text);
	if (!shape)
		return no_memory(p);
	free(replace->shape);
	replace->shape = shape;
	return 0;
}

int check_sgemm(const struct terra_plan *plan, struct terra_plan_replace *replace, const struct check_options *options,
		struct check_result *out)
{
	struct product p = {.plan = plan, .framework = options->framework, .out = out};
	int threads = framework_threads(options->framework), ret;
	uint64_t random = options->seed;

	if (!replace->shape || !terra_plan_sgemm_shape(replace->shape, &p.shape))
		return codegen_error(out->first, sizeof(out->first), -EINVAL, "the shape is malformed");
	p.fn = (terra_sgemm_tiles_fn)(uintptr_t)replace->fn;
	p.with_bias = !strcmp(replace->op, "aten::addmm");
	framework_set_threads(options->framework, (int)p.shape.threads);
	ret = product_open(&p, replace->op);
	if (!ret && options->measure)
		ret = choose_tiles(&p, replace, &random);
	if (!ret)
		ret = try_once(&p, false, &random);
	if (!ret && !out->differing)
		ret = try_once(&p, true, &random);
	out->identical = !ret && !out->differing;
	framework_set_threads(options->framework, threads);
	product_close(&p);
	return ret;
}
