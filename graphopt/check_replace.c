/* check_replace.c - single-op replacements against the framework: the same numbers and the same generator afterwards.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/check_internal.h"
#include "graphopt/framework_internal.h"

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define MT_WORDS 624
#define DEFAULT_REPEATS 15
#define MAX_REPEATS 1000

/* at::mt19937_data_pod, what engine() returns. Taken for this only when a seeded generator looks as it must. */
struct engine {
	uint64_t seed;
	int32_t left;
	uint8_t seeded;
	uint32_t next;
	uint32_t state[MT_WORDS];
};

struct generator {
	struct framework *framework;
	const struct framework_op *op;
	struct engine (*engine)(void *generator);
	uint32_t (*random)(void *generator);
	terra_mt19937_bernoulli_fn fn;
	struct check_result *out;
};

static int fail(struct check_result *out, int code, const char *what)
{
	snprintf(out->first, sizeof(out->first), "%s", what);
	return code;
}

static struct engine read_engine(const struct generator *g)
{
	return g->engine(*g->framework->default_generator());
}

static bool layout_is_known(const struct generator *g)
{
	struct engine engine;

	framework_manual_seed(g->framework, 0x12345678);
	engine = read_engine(g);
	return engine.seed == 0x12345678 && engine.seeded == 1 && engine.left == 1 && engine.next == 0 &&
	       engine.state[0] == 0x12345678;
}

static int generator_open(struct generator *g, const struct terra_plan_replace *replace)
{
	int ret;

	g->engine = (struct engine(*)(void *))dlsym(g->framework->handle, "_ZN2at16CPUGeneratorImpl6engineEv");
	g->random = (uint32_t(*)(void *))dlsym(g->framework->handle, "_ZN2at16CPUGeneratorImpl6randomEv");
	if (!g->engine || !g->random)
		return fail(g->out, -ENOTSUP, "this libtorch does not export its generator's state");
	ret = framework_op_find(g->framework, replace->op, &g->op, g->out->first, sizeof(g->out->first));
	if (ret < 0)
		return ret;
	return layout_is_known(g) ? 0 : fail(g->out, -ENOTSUP, "the generator's state has another layout than known");
}

static int run_eager(const struct generator *g, float *data, int64_t n, double p)
{
	const int64_t stride = 1;
	framework_tensor result, tensor = framework_from_blob(g->framework, data, 1, &n, &stride, FRAMEWORK_FLOAT32);
	const struct framework_arg args[] = {{.type = FRAMEWORK_ARG_TENSOR, .tensor = tensor},
					     {.type = FRAMEWORK_ARG_NUMBER, .number = p},
					     {.type = FRAMEWORK_ARG_ABSENT}};
	int ret = tensor ? framework_call(g->framework, g->op, args, 3, &result) : -ENOMEM;

	framework_free(g->framework, tensor);
	return ret;
}

static void compare_draws(struct generator *g, const float *want, const float *have, int64_t n, double p)
{
	for (int64_t i = 0; i < n; i++) {
		if (!memcmp(&want[i], &have[i], sizeof(float)))
			continue;
		if (!g->out->differing++)
			snprintf(g->out->first, sizeof(g->out->first),
				 "element %lld of %lld with p %.17g: the framework has %g, the kernel %g", (long long)i,
				 (long long)n, p, (double)want[i], (double)have[i]);
	}
	g->out->compared += (uint64_t)n;
}

/* `before` words are drawn first, so that draws begin anywhere in the state. */
static int try_once(struct generator *g, int64_t n, double p, uint64_t seed, unsigned int before)
{
	float *want = malloc((size_t)(n + 1) * sizeof(float)), *have = malloc((size_t)(n + 1) * sizeof(float));
	struct engine mine, after;
	int ret = want && have ? 0 : -ENOMEM;

	if (!ret) {
		framework_manual_seed(g->framework, seed);
		for (unsigned int i = 0; i < before; i++)
			g->random(*g->framework->default_generator());
		mine = read_engine(g);
		have[n] = want[n] = 0.5f;
		ret = run_eager(g, want, n, p);
		after = read_engine(g);
	}
	if (!ret) {
		g->fn(have, n, p, mine.state, &mine.left, &mine.next);
		compare_draws(g, want, have, n + 1, p);
		if ((mine.left != after.left || mine.next != after.next ||
		     memcmp(mine.state, after.state, sizeof(after.state))) &&
		    !g->out->differing++)
			snprintf(g->out->first, sizeof(g->out->first),
				 "after %lld draws the generator is in another state", (long long)n);
	}
	free(want);
	free(have);
	return ret;
}

static int try_all(struct generator *g, const struct check_options *options)
{
	static const int64_t lengths[] = {1, 2, 7, 8, 9, 31, 156, 311, 312, 313, 623, 624, 625, 1249, 5000, 65537};
	static const double p[] = {0.9, 0.5, 0.1, 0, 1, 1e-17, 0.3333333333333333, 0x1p-53, 0.9999999999999999};
	static const unsigned int before[] = {0, 1, 2, 3, 8, 622, 623, 624, 625, 1247};
	uint64_t seed = options->seed;
	int ret = 0;

	for (size_t i = 0; i < LENGTH(lengths); i++)
		for (size_t j = 0; j < LENGTH(p); j++)
			for (size_t k = 0; !ret && !g->out->differing && k < LENGTH(before); k++)
				ret = try_once(g, lengths[i], p[j], check_random(&seed), before[k]);
	return ret;
}

static int measure(struct generator *g, const struct check_options *options)
{
	int64_t n = options->numel > 0 ? options->numel : 65536;
	uint32_t repeats = options->repeats ? options->repeats : DEFAULT_REPEATS;
	float *data = malloc((size_t)n * sizeof(float));
	double eager[MAX_REPEATS], fused[MAX_REPEATS], start;
	struct engine engine = read_engine(g);
	int ret = data ? 0 : -ENOMEM;

	repeats = repeats > MAX_REPEATS ? MAX_REPEATS : repeats;
	if (!ret)
		ret = run_eager(g, data, n, 0.9);
	for (uint32_t i = 0; !ret && i < repeats; i++) {
		start = check_now_ns();
		ret = run_eager(g, data, n, 0.9);
		eager[i] = check_now_ns() - start;
		start = check_now_ns();
		g->fn(data, n, 0.9, engine.state, &engine.left, &engine.next);
		fused[i] = check_now_ns() - start;
	}
	free(data);
	if (ret)
		return ret;
	g->out->eager_ns = check_median(eager, repeats);
	g->out->fused_ns = check_median(fused, repeats);
	return 0;
}

static int check_bernoulli(struct terra_plan_replace *replace, const struct check_options *options,
			   struct check_result *out)
{
	struct generator g = {.framework = options->framework, .out = out};
	int ret;

	g.fn = (terra_mt19937_bernoulli_fn)(uintptr_t)replace->fn;
	ret = generator_open(&g, replace);
	if (!ret)
		ret = try_all(&g, options);
	out->identical = !ret && !out->differing;
	if (!ret && out->identical && options->measure)
		ret = measure(&g, options);
	return ret;
}

int check_replace(struct terra_plan *plan, struct terra_plan_replace *replace, const struct check_options *options,
		  struct check_result *out)
{
	int ret;

	memset(out, 0, sizeof(*out));
	if (!replace->fn)
		return fail(out, -EINVAL, "the plan is not linked");
	if (!strcmp(replace->form, "mt19937_bernoulli"))
		ret = check_bernoulli(replace, options, out);
	else if (!strcmp(replace->form, "sgemm_tiles"))
		ret = check_sgemm(plan, replace, options, out);
	else
		ret = fail(out, -EINVAL, "no check for replacements of this form");
	if (!ret && out->identical && options->measure)
		replace->gain = out->fused_ns > 0 ? out->eager_ns / out->fused_ns : 0;
	return ret;
}
