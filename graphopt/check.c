/* check.c - which lengths, values and thread counts a region is tried with.
 *
 * Lengths lie around every place where the framework or a kernel changes course: a vector and two vectors of 8 and 16
 * lanes, a kernel block, the buffer of the vendor's vector functions, the 32,768 elements from which the framework
 * splits a tensor over threads, and the splits themselves.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>

#include "graphopt/check_internal.h"

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define FLUSH_DENORMALS 0x8040 /* MXCSR: flush to zero, denormals are zero */
#define EVERY_LENGTH_TO 40
#define LONG 16384

static const int64_t quick_lengths[] = {1, 2, 7, 9, 16, 17, 33, 511, 513, 1025, 65552 + 7};
static const int64_t more_lengths[] = {47,    48,    49,    63,	   64,	  65,	  127,	       128,	  129,	 255,
				       256,   257,   500,   511,   512,	  513,	  1000,	       1023,	  1024,	 1025,
				       2047,  2048,  2049,  4095,  4096,  4097,	  8191,	       8193,	  32767, 32768,
				       32769, 32783, 32784, 32785, 65535, 65536,  65537,       65551,	  65552, 65553,
				       65568, 98303, 98304, 98305, 99999, 100003, 131072 + 15, 196608 + 9};
static const struct check_shape quick_shapes[] = {{1, 17}, {3, 5}, {40, 1}, {7, 64}, {5, 512}, {3, 511}, {2, 32769}};
static const struct check_shape more_shapes[] = {{1, 1},    {2, 1},	{1, 513},   {513, 1},	{2, 8},	    {9, 7},
						 {600, 3},  {100, 10},	{64, 512},  {17, 1024}, {31, 768},  {128, 300},
						 {5, 4099}, {4, 16384}, {3, 32768}, {65537, 1}, {2, 49153}, {129, 511},
						 {2, 131077}};

struct session {
	struct terra_plan *plan;
	struct terra_plan_region *region;
	const struct check_options *options;
	struct codegen_region *resolved;
	struct check_result *out;
	uint64_t seed;
	int threads;
};

static int try_once(struct session *s, struct check_shape shape, enum check_values values, bool flush_denormals)
{
	struct check_trial *trial = malloc(sizeof(*trial));
	unsigned int mxcsr = _mm_getcsr();
	int ret;

	if (!trial)
		return -ENOMEM;
	ret = check_trial_make(trial, s->options->framework, s->resolved, shape, values, check_random(&s->seed));
	if (flush_denormals)
		_mm_setcsr(mxcsr | FLUSH_DENORMALS);
	if (!ret)
		ret = check_trial_reference(trial, s->out->first, sizeof(s->out->first));
	if (!ret)
		ret = check_trial_kernel(trial, s->plan, s->region->fn, CHECK_LIVE_ALL, s->out);
	if (!ret)
		ret = check_trial_kernel(trial, s->plan, s->region->fn, CHECK_LIVE_LAST, s->out);
	_mm_setcsr(mxcsr);
	check_trial_free(trial);
	free(trial);
	return ret;
}

/* What is done to one element is found out with short tensors; long ones are about where a tensor is cut. */
static bool has_turn(const struct session *s, int64_t numel, enum check_values values)
{
	if (numel <= LONG)
		return true;
	return values == CHECK_VALUES_MIXED || (values == CHECK_VALUES_ORDINARY && !s->options->quick);
}

static int try_shape(struct session *s, struct check_shape shape)
{
	const int64_t numel = shape.rows * shape.columns;
	int ret = 0;

	for (int v = 0; !ret && v < CHECK_VALUES_COUNT; v++) {
		enum check_values values = (enum check_values)v;

		if (!has_turn(s, numel, values))
			continue;
		framework_set_threads(s->options->framework, 1);
		ret = try_once(s, shape, values, false);
		if (!ret && values >= CHECK_VALUES_MIXED && numel <= LONG && !s->options->inlined)
			ret = try_once(s, shape, values, true);
		framework_set_threads(s->options->framework, s->threads);
		if (!ret && s->threads > 1 && numel > LONG)
			ret = try_once(s, shape, values, false);
	}
	return ret;
}

/* Stops at the first length that shows a difference: one is enough to refuse a kernel. */
static int try_lengths(struct session *s, const int64_t *lengths, size_t n)
{
	int ret = 0;

	for (size_t i = 0; !ret && !s->out->differing && i < n; i++)
		ret = try_shape(s, (struct check_shape){1, lengths[i]});
	return ret;
}

static int try_shapes(struct session *s, const struct check_shape *shapes, size_t n)
{
	int ret = 0;

	for (size_t i = 0; !ret && !s->out->differing && i < n; i++)
		ret = try_shape(s, shapes[i]);
	return ret;
}

static bool has_rows(const struct codegen_region *region)
{
	for (uint32_t j = 0; j < region->n_inputs; j++)
		if (region->letter[j] == 'b')
			return true;
	return region->by_rows;
}

static int try_all(struct session *s)
{
	int ret;

	if (has_rows(s->resolved)) {
		ret = try_shapes(s, quick_shapes, LENGTH(quick_shapes));
		return ret || s->options->quick ? ret : try_shapes(s, more_shapes, LENGTH(more_shapes));
	}
	ret = try_lengths(s, quick_lengths, LENGTH(quick_lengths));
	if (ret || s->options->quick)
		return ret;
	for (int64_t n = 1; !ret && n <= EVERY_LENGTH_TO; n++)
		ret = try_lengths(s, &n, 1);
	return ret ? ret : try_lengths(s, more_lengths, LENGTH(more_lengths));
}

static int fail(struct check_result *out, int code, const char *what)
{
	snprintf(out->first, sizeof(out->first), "%s", what);
	return code;
}

static int session_open(struct session *s)
{
	struct codegen_imports imports = {0};
	int ret;

	s->resolved = malloc(sizeof(*s->resolved));
	if (!s->resolved)
		return fail(s->out, -ENOMEM, "out of memory");
	ret = codegen_resolve(s->region, NULL, &imports, s->resolved, s->out->first, sizeof(s->out->first));
	codegen_imports_free(&imports);
	return ret;
}

int check_region(struct terra_plan *plan, struct terra_plan_region *region, const struct check_options *options,
		 struct check_result *out)
{
	const int threads = framework_threads(options->framework);
	struct session s = {.plan = plan, .region = region, .options = options, .out = out, .seed = options->seed};
	int ret;

	memset(out, 0, sizeof(*out));
	if (!region->fn || !plan->import_table)
		return fail(out, -EINVAL, "the plan is not linked");
	s.threads = options->threads ? (int)options->threads : threads;
	ret = session_open(&s);
	if (!ret)
		ret = try_all(&s);
	framework_set_threads(options->framework, s.threads);
	out->identical = !ret && !out->differing;
	if (!ret && options->measure)
		ret = check_measure(plan, region, s.resolved, options, out);
	framework_set_threads(options->framework, threads);
	free(s.resolved);
	return ret;
}
