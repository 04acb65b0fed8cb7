/* plan_sample.h - a plan with something of everything, for the tests of the plan library. */
#ifndef TERRA_TESTS_PLAN_SAMPLE_H
#define TERRA_TESTS_PLAN_SAMPLE_H

#include <stdlib.h>
#include <string.h>

#include "graphopt/plan.h"

static char *sample_text(const char *text)
{
	char *copy = strdup(text);

	if (!copy)
		abort();
	return copy;
}

/* One op line, e.g. "aten::mul.Tensor i0 s". */
static void sample_op(struct terra_plan_region *region, const char *line)
{
	struct terra_plan_op *op;
	char *copy = sample_text(line), *word, *rest;

	region->ops = realloc(region->ops, (region->n_ops + 1) * sizeof(*region->ops));
	op = &region->ops[region->n_ops++];
	memset(op, 0, sizeof(*op));
	op->op = sample_text(strtok_r(copy, " ", &rest));
	while ((word = strtok_r(NULL, " ", &rest)))
		op->arg[op->n_args++] = sample_text(word);
	free(copy);
}

static struct terra_plan_region *sample_region(struct terra_plan *plan, const char *name, const char *kernel)
{
	struct terra_plan_region *region;

	plan->regions = realloc(plan->regions, (plan->n_regions + 1) * sizeof(*plan->regions));
	region = &plan->regions[plan->n_regions];
	memset(region, 0, sizeof(*region));
	region->id = plan->n_regions++;
	region->name = sample_text(name);
	region->kernel = sample_text(kernel);
	return region;
}

static void sample_name(char ***names, uint32_t *n, const char *name)
{
	*names = realloc(*names, (*n + 1) * sizeof(**names));
	(*names)[(*n)++] = sample_text(name);
}

static void sample_regions(struct terra_plan *plan)
{
	struct terra_plan_region *region = sample_region(plan, "adamw, \"optim\\adamw.py\":441\n", "terra_k0");

	sample_op(region, "aten::mul_.Tensor i0 s");
	sample_op(region, "aten::lerp_.Scalar i1 i2 s");
	sample_op(region, "aten::mul_.Tensor i3 s");
	sample_op(region, "aten::addcmul_ v2 i2 i2 s");
	sample_op(region, "aten::sqrt v3");
	sample_op(region, "aten::div.Tensor v4 s");
	sample_op(region, "aten::add_.Tensor v5 s s");
	sample_op(region, "aten::addcdiv_ v0 v1 v6 s");
	region->gain = 2.375;
	region->eager_ns = 123456.78901;
	region->fused_ns = 1e5 / 3;
	region->numel = 401408;
	region = sample_region(plan, "bias and gelu", "terra_k1");
	sample_op(region, "aten::add.Tensor i0 b1 s");
	sample_op(region, "aten::gelu v0");
	region->ops[1].arg[region->ops[1].n_args++] = sample_text("#\"tanh \\\" approximation\"");
	sample_op(region, "aten::clamp v1 #-1.5 -");
	region->numel = 7;
	region = sample_region(plan, "", "terra_k2");
	region->fallback = true;
	sample_op(region, "aten::sqrt i0");
}

static struct terra_plan *sample_plan(const void *code, size_t code_size)
{
	struct terra_plan *plan = calloc(1, sizeof(*plan));

	plan->build_id = sample_text("c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00");
	plan->cpu = sample_text("");
	plan->cpu_vendor = sample_text("GenuineIntel");
	plan->threads = 2;
	plan->source = sample_text("train.terra: python train.py --name \"\xc3\xa9t\xc3\xa9\"");
	sample_name(&plan->passive, &plan->n_passive, "aten::view");
	sample_name(&plan->passive, &plan->n_passive, "aten::t");
	sample_name(&plan->passive, &plan->n_passive, "aten::empty.memory_format");
	sample_name(&plan->lists, &plan->n_lists, "aten::_foreach_sqrt");
	sample_name(&plan->imports, &plan->n_imports, "strlen");
	sample_regions(plan);
	plan->replaces = calloc(2, sizeof(*plan->replaces));
	plan->n_replaces = 2;
	plan->replaces[0].op = sample_text("aten::bernoulli_.float");
	plan->replaces[0].form = sample_text("mt19937_bernoulli");
	plan->replaces[0].kernel = sample_text("terra_r0");
	plan->replaces[0].gain = 1.5;
	plan->replaces[1].op = sample_text("aten::mm");
	plan->replaces[1].form = sample_text("sgemm_tiles");
	plan->replaces[1].shape = sample_text("512x50257x512,n512,t512,2,512x512b");
	plan->replaces[1].kernel = sample_text("terra_r0");
	plan->replaces[1].gain = 1.25;
	plan->code = malloc(code_size);
	memcpy(plan->code, code, code_size);
	plan->code_size = code_size;
	return plan;
}

#endif
