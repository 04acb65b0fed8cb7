/* replace.h - ops that are run at once by a kernel of the plan instead of the framework's own (plan.h, `replace`). */
#ifndef TERRA_REPLAY_REPLACE_H
#define TERRA_REPLAY_REPLACE_H

#include "probes/op.h"
#include "replay/hooks.h"
#include "replay/replay.h"

/* What the forms need of the framework; those that lack something never run. */
void replace_init(const struct terra_plan *plan);
/* Whether the op was run: `replace` is the first of its replacements. `original`: the framework's own. Nothing
 * waits that the op could touch, the keyset is the backend's own, the floating-point mode the default. */
bool replace_run(const struct terra_plan_replace *replace, const struct terra_op *op, void *original,
		 struct hook_regs *regs);

/* rng.c: bernoulli_(Tensor self, float p, Generator? generator), contiguous, the default generator. */
void rng_init(void);
bool rng_bernoulli(const struct terra_plan_replace *replace, const struct terra_op *op, struct hook_regs *regs);

/* product.c: mm(Tensor self, Tensor mat2), addmm(Tensor self, Tensor mat1, Tensor mat2, Scalar beta, Scalar alpha). */
void product_init(const struct terra_plan *plan);
/* By the first of the plan's replacements, from `from` on, that is of the same op and for this call. */
bool product_run(const struct terra_plan_replace *from, const struct terra_op *op, void *original, struct hook_regs *regs);
/* Their redispatches: result, keyset, tensors, Scalars. */
typedef void (*product_mm_fn)(void *result, uint64_t keyset, const void *a, const void *b);
typedef void (*product_addmm_fn)(void *result, uint64_t keyset, const void *bias, const void *a, const void *b,
				 const void *beta, const void *alpha);
struct product_original {
	void (*fn)(void);
	const void *beta, *alpha; /* of an addmm: Scalars that are 1; NULL: it is an mm */
};
/* Whether the framework multiplies in full precision now. */
bool product_is_exact(const struct product_original *original);

#endif
