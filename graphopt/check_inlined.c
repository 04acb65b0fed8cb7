/* check_inlined.c - whether functions of the vendor's library can be computed in the kernels themselves.
 *
 * A function of one float32 has 2^32 cases. All that are not negative are compared, NaNs included; of the negative ones, for which
 * the library takes ten times as long to give the same NaN, one in a thousand. Formulas that match (oprules.h, inlined rules) start from
 * the processor's own approximations, so what is found holds for this model of processor alone.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/check_internal.h"
#include "graphopt/kernel_source.h"
#include "graphopt/plan_internal.h"

#define BATCH 16384 /* floats: three arrays of them stay in a core's caches */
#define HALF (1u << 31)	/* cases without the sign bit */
#define STEP 1021u	/* among those with it; prime, so that all exponents and ends of numbers come up */
#define BATCHES ((int64_t)(HALF / BATCH))
#define SIGNED_BATCHES ((int64_t)(HALF / STEP / BATCH))

struct inlined {
	struct terra_plan *plan;
	void (*vendor)(int n, const float *a, float *r, int64_t mode);
	int differs;
};

static bool inlined_fits(const struct terra_plan_op *op, const struct oprule *rules, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (oprule_fits(&rules[i], op))
			return true;
	return false;
}

bool check_inlined_concerns(const struct terra_plan *plan)
{
	size_t n;
	const struct oprule *rules = oprule_inlined(&n);

	for (uint32_t r = 0; r < plan->n_regions; r++)
		for (uint32_t k = 0; k < plan->regions[r].n_ops; k++)
			if (inlined_fits(&plan->regions[r].ops[k], rules, n))
				return true;
	return false;
}

/* A plan of the one op of the first rule, which all others share their formula with. */
static struct terra_plan *plan_of(const struct oprule *rule)
{
	struct terra_plan *plan = calloc(1, sizeof(*plan));
	struct terra_plan_region *region = plan ? calloc(1, sizeof(*region)) : NULL;

	if (!region) {
		free(plan);
		return NULL;
	}
	plan->regions = region;
	plan->n_regions = 1;
	region->n_ops = 1;
	region->ops = calloc(1, sizeof(*region->ops));
	if (region->ops) {
		region->ops[0].op = strdup(rule->op);
		region->ops[0].arg[0] = strdup("i0");
		region->ops[0].n_args = 1;
	}
	if (region->ops && region->ops[0].op && region->ops[0].arg[0])
		return plan;
	terra_plan_free(plan);
	return NULL;
}

static bool batch_is_same(const struct inlined *inlined, uint32_t first, uint32_t step)
{
	static _Thread_local float values[BATCH], want[BATCH], have[BATCH];
	void *input = values, *result = have;
	const struct terra_kernel_args args = {.input = &input,
					       .result = &result,
					       .import = inlined->plan->import_table,
					       .scratch = check_scratch()};

	for (uint32_t i = 0; i < BATCH; i++) {
		uint32_t bits = first + i * step;

		memcpy(&values[i], &bits, sizeof(bits));
	}
	inlined->vendor(BATCH, values, want, KERNEL_VML_MODE);
	inlined->plan->regions[0].fn(&args, 0, BATCH);
	return !memcmp(want, have, sizeof(want));
}

static void run_part(void *ctx, int64_t begin, int64_t end)
{
	struct inlined *inlined = ctx;

	for (int64_t i = begin; i < end && !__atomic_load_n(&inlined->differs, __ATOMIC_RELAXED); i++)
		if (i < BATCHES ? !batch_is_same(inlined, (uint32_t)(i * BATCH), 1)
				: !batch_is_same(inlined, HALF + (uint32_t)((i - BATCHES) * BATCH) * STEP, STEP))
			__atomic_store_n(&inlined->differs, 1, __ATOMIC_RELAXED);
}

int check_inlined(const struct framework *fw, bool *same, char *err, size_t err_size)
{
	size_t n;
	const struct oprule *rules = oprule_inlined(&n);
	const struct codegen_options options = {.rules = rules, .n_rules = n};
	void *handle = framework_handle(fw);
	struct inlined inlined = {.vendor = (void (*)(int, const float *, float *, int64_t))dlsym(handle, rules[0].import)};
	int ret;

	*same = false;
	if (!inlined.vendor)
		return 0;
	inlined.plan = plan_of(&rules[0]);
	if (!inlined.plan)
		return codegen_error(err, err_size, -ENOMEM, "out of memory");
	ret = codegen_plan_with(inlined.plan, &options, err, err_size);
	if (!ret)
		ret = terra_plan_link(inlined.plan, handle, err, err_size);
	if (!ret) {
		framework_parallel_for(fw, BATCHES + SIGNED_BATCHES, 64, run_part, &inlined);
		*same = !inlined.differs;
	}
	terra_plan_free(inlined.plan);
	return ret;
}
