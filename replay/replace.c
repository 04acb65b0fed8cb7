/* replace.c - which replacement of the plan runs an op. */
#include "replay/replace.h"

#include <string.h>

void replace_init(const struct terra_plan *plan)
{
	rng_init();
	product_init(plan);
}

static bool run(const struct terra_plan_replace *replace, const struct terra_op *op, void *original, struct hook_regs *regs)
{
	if (replace->fn == NULL)
		return false;
	if (strcmp(replace->form, "mt19937_bernoulli") == 0)
		return rng_bernoulli(replace, op, regs);
	if (strcmp(replace->form, "sgemm_tiles") == 0)
		return product_run(replace, op, original, regs);
	return false;
}

bool replace_run(const struct terra_plan_replace *replace, const struct terra_op *op, void *original,
		 struct hook_regs *regs)
{
	if (!run(replace, op, original, regs))
		return false;
	replay_counts.replaced++;
	return true;
}
