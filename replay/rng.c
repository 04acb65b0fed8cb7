/* rng.c - random numbers by a kernel of the plan instead of the framework's own (plan.h, form mt19937_bernoulli).
 *
 * The default generator's state is taken out through exported accessors, advanced by the kernel
 * exactly as the framework would, and put back. Nothing is delayed, so nothing else needs to know.
 */
#include "replay/replace.h"

#define MT_WORDS 624

struct engine { /* at::mt19937_data_pod; checked at every use by the ranges that its fields keep */
	uint64_t seed;
	int32_t left;
	uint8_t seeded;
	uint32_t next;
	uint32_t state[MT_WORDS];
};

static struct {
	void **(*default_generator)(void);
	struct engine (*get)(void *generator);
	void (*set)(void *generator, struct engine engine);
} rng;

void rng_init(void)
{
	struct {
		void *slot;
		const char *name;
	} wanted[] = {
		{&rng.default_generator, "_ZN2at6detail22getDefaultCPUGeneratorEv"},
		{&rng.get, "_ZN2at16CPUGeneratorImpl6engineEv"},
		{&rng.set, "_ZN2at16CPUGeneratorImpl10set_engineENS_14mt19937_engineE"},
	};

	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		if (framework_resolve(wanted[i].slot, wanted[i].name))
			continue;
		rng.default_generator = NULL;
		return;
	}
}

static bool contiguous(const struct tensor_view *t)
{
	int64_t next = 1;

	for (int64_t d = t->ndim; d-- > 0;) {
		if (t->size[d] != 1 && t->stride[d] != next)
			return false;
		next *= t->size[d];
	}
	return t->numel > 0;
}

bool rng_bernoulli(const struct terra_plan_replace *replace, const struct terra_op *op, struct hook_regs *regs)
{
	terra_mt19937_bernoulli_fn fill = (terra_mt19937_bernoulli_fn)(uintptr_t)replace->fn;
	const struct terra_arg *self = &op->args[1], *p = &op->args[2], *generator = &op->args[3];
	const void *tensor = (const void *)regs->gpr[self->index];
	const uint8_t *optional = (const uint8_t *)regs->gpr[generator->index];
	struct engine engine;
	struct tensor_view t;
	void *impl;

	if (rng.default_generator == NULL || op->n_args != 4 || self->kind != TERRA_KIND_TENSOR || self->place != TERRA_PLACE_GPR ||
	    p->kind != TERRA_KIND_DOUBLE || p->place != TERRA_PLACE_SSE || generator->kind != TERRA_KIND_GENERATOR ||
	    generator->place != TERRA_PLACE_GPR || optional[sizeof(void *)] != 0)
		return false;
	if (!(regs->xmm[p->index][0] >= 0 && regs->xmm[p->index][0] <= 1) || !framework_view(tensor, &t) ||
	    t.dtype != framework.float32 || !contiguous(&t))
		return false;
	impl = *rng.default_generator();
	engine = rng.get(impl);
	if (engine.seeded != 1 || engine.left < 0 || engine.left > MT_WORDS || engine.next > MT_WORDS)
		return false;
	fill(t.data, t.numel, regs->xmm[p->index][0], engine.state, &engine.left, &engine.next);
	rng.set(impl, engine);
	regs->ret = (uint64_t)tensor;
	return true;
}
