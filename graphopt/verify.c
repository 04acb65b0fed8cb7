/* verify.c - compiles an assembled plan and keeps what has the framework's own bits and gains. */
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/assemble.h"
#include "graphopt/check.h"
#include "graphopt/codegen.h"
#include "graphopt/framework.h"
#include "graphopt/plan_internal.h"
#include "graphopt/verify.h"

struct verify {
	struct graph *graph;
	struct terra_plan *plan;
	const struct verify_options *options;
	struct framework *framework;
	bool drop[PLAN_MAX_REGIONS];
	bool inlined; /* kernels compute functions of the vendor's library themselves; until compile() has asked: might */
	uint32_t done, total;
	char *err;
	size_t err_size;
};

static bool stop(struct verify *verify, const char *what)
{
	const struct verify_options *options = verify->options;

	return options->progress && options->progress(options->ctx, what, verify->done++, verify->total);
}

static int fail(const struct verify *verify, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int fail(const struct verify *verify, int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(verify->err, verify->err_size, format, args);
	va_end(args);
	return code;
}

/* The graph's region behind the plan's; fallbacks have none. */
static struct graph_region *graph_region_of(const struct verify *verify, uint32_t index)
{
	uint32_t i, n = 0;

	for (i = 0; i < verify->graph->n_regions; i++)
		if (!verify->graph->regions[i].dropped && n++ == index)
			return &verify->graph->regions[i];
	return NULL;
}

static struct check_options check_options_for(const struct verify *verify, bool measure)
{
	return (struct check_options){
	    .framework = verify->framework,
	    .threads = verify->graph->threads,
	    .seed = 1,
	    .quick = verify->options->quick,
	    .inlined = verify->inlined,
	    .measure = measure,
	};
}

static int check_one(struct verify *verify, struct terra_plan_region *region, bool measure, struct check_result *result)
{
	struct check_options options = check_options_for(verify, measure);
	int ret;

	if (stop(verify, region->name))
		return fail(verify, -EINTR, "interrupted");
	ret = check_region(verify->plan, region, &options, result);
	if (ret)
		return fail(verify, ret, "region %u (%s): %s", region->id, region->name, result->first);
	return 0;
}

static const char *verdict(const struct verify *verify, const struct terra_plan_region *region,
			   const struct check_result *result)
{
	const char *why;

	if (!result->identical)
		why = graph_format(verify->graph, "its bits differ from the framework's: %s", result->first);
	else if (verify->options->measure && region->gain < VERIFY_MIN_GAIN)
		why = graph_format(verify->graph, "gains too little: measured %.2fx", region->gain);
	else
		return NULL;
	return why ? why : "out of memory";
}

/* Measured figures to the digits that they are worth. */
static double rounded(double x)
{
	double unit = x > 0 ? pow(10, floor(log10(x)) - 3) : 1;

	return round(x / unit) * unit;
}

static void round_figures(struct terra_plan_region *region)
{
	region->gain = round(region->gain * 1000) / 1000;
	region->eager_ns = rounded(region->eager_ns);
	region->fused_ns = rounded(region->fused_ns);
}

/* Without a measurement the model's expectation stands in: replay ranks regions by it. */
static void note_figures(const struct verify *verify, struct terra_plan_region *region, struct graph_region *from)
{
	if (!verify->options->measure)
		region->gain = from->gain;
	round_figures(region);
	from->gain = region->gain;
	from->eager_ns = region->eager_ns;
	from->fused_ns = region->fused_ns;
}

static int check_regions(struct verify *verify, const char **why)
{
	struct terra_plan *plan = verify->plan;
	struct check_result result;
	uint32_t r;
	int ret;

	for (r = 0; r < plan->n_regions && !plan->regions[r].fallback; r++) {
		ret = check_one(verify, &plan->regions[r], verify->options->measure, &result);
		if (ret)
			return ret;
		why[r] = verdict(verify, &plan->regions[r], &result);
		note_figures(verify, &plan->regions[r], graph_region_of(verify, r));
	}
	return 0;
}

/* A region whose ops can't be finished one by one is no region. */
static void drop_served(const struct verify *verify, uint32_t fallback, const char **why, const char *reason)
{
	const struct terra_plan *plan = verify->plan;
	uint32_t r;

	for (r = 0; r < plan->n_regions && !plan->regions[r].fallback; r++)
		if (!why[r] && plan_fallback_serves(&plan->regions[fallback], &plan->regions[r]))
			why[r] = reason;
}

static int check_fallbacks(struct verify *verify, const char **why)
{
	struct terra_plan *plan = verify->plan;
	struct check_result result;
	const char *reason;
	uint32_t r;
	int ret;

	for (r = 0; r < plan->n_regions; r++) {
		if (!plan->regions[r].fallback)
			continue;
		ret = check_one(verify, &plan->regions[r], false, &result);
		if (ret)
			return ret;
		if (result.identical)
			continue;
		reason = graph_format(verify->graph, "%s alone has other bits than the framework's: %s",
				      plan->regions[r].name, result.first);
		drop_served(verify, r, why, reason ? reason : "out of memory");
	}
	return 0;
}

static void apply(struct verify *verify, const char **why)
{
	struct terra_plan *plan = verify->plan;
	struct graph_region *from[PLAN_MAX_REGIONS];
	uint32_t r;

	for (r = 0; r < plan->n_regions; r++)
		from[r] = plan->regions[r].fallback ? NULL : graph_region_of(verify, r);
	for (r = 0; r < plan->n_regions; r++) {
		verify->drop[r] = why[r] != NULL;
		if (from[r])
			from[r]->dropped = why[r];
	}
	plan_drop_regions(plan, verify->drop);
}

static int check_all_regions(struct verify *verify)
{
	const char **why = calloc(verify->plan->n_regions + 1, sizeof(*why));
	int ret;

	if (!why)
		return fail(verify, -ENOMEM, "out of memory");
	ret = check_regions(verify, why);
	if (!ret)
		ret = check_fallbacks(verify, why);
	if (!ret)
		apply(verify, why);
	free(why);
	return ret;
}

static int check_replaces(struct verify *verify)
{
	struct check_options options = check_options_for(verify, verify->options->measure);
	struct terra_plan *plan = verify->plan;
	struct check_result result;
	uint32_t i = 0;
	int ret;

	while (i < plan->n_replaces) {
		if (stop(verify, plan->replaces[i].op))
			return fail(verify, -EINTR, "interrupted");
		ret = check_replace(plan, &plan->replaces[i], &options, &result);
		if (ret)
			return fail(verify, ret, "replacement of %s: %s", plan->replaces[i].op, result.first);
		plan->replaces[i].gain = round(plan->replaces[i].gain * 1000) / 1000;
		if (!result.identical || (verify->options->measure && plan->replaces[i].gain < VERIFY_MIN_REPLACE_GAIN))
			plan_drop_replace(plan, i);
		else
			i++;
	}
	return 0;
}

/* Memory that is freed stays with the process, as replay's allocator keeps it: otherwise the framework's side would be
 * timed with page faults that no program under replay has, or without, as the heap happens to lie. */
static void keep_freed_memory(void)
{
	mallopt(M_MMAP_MAX, 0);
	mallopt(M_TRIM_THRESHOLD, INT_MAX);
	mallopt(M_TOP_PAD, 64 << 20);
}

static int open_framework(struct verify *verify)
{
	const struct graph *graph = verify->graph;
	int ret;

	/* OpenMP threads spin for milliseconds before they sleep. Beside other work on the machine that makes thousands
	 * of short parallel loops take minutes; a shorter spin is as good where the machine is free. */
	setenv("GOMP_SPINCOUNT", "10000", 0);
	keep_freed_memory();
	if (stop(verify, "loading the framework"))
		return fail(verify, -EINTR, "interrupted");
	ret = framework_open(graph->library, &verify->framework, verify->err, verify->err_size);
	if (ret)
		return ret;
	if (strcmp(framework_build_id(verify->framework), graph->build_id))
		return fail(verify, -ESTALE, "%s is not the library that was traced any more: trace the program again",
			    graph->library);
	return 0;
}

static int add_cpu_word(struct verify *verify, const char *name, const char *value)
{
	struct terra_plan *plan = verify->plan;
	char *cpu;

	if (plan->cpu && strstr(plan->cpu, name))
		return 0;
	if (asprintf(&cpu, "%s%s%s%s", plan->cpu ? plan->cpu : "", plan->cpu && plan->cpu[0] ? " " : "", name, value) < 0)
		return fail(verify, -ENOMEM, "out of memory");
	free(plan->cpu);
	plan->cpu = cpu;
	return 0;
}

/* The framework's choice of kernels is part of what the plan is for, and the very model where that was found out for it alone;
 * the code generator names the CPU's features. */
static int add_cpu_words(struct verify *verify)
{
	char model[PLAN_CPU_MODEL_SIZE];
	int ret = add_cpu_word(verify, "capability=", framework_capability(verify->framework));

	if (ret || !verify->inlined)
		return ret;
	plan_cpu_model(model);
	return add_cpu_word(verify, "model=", model);
}

/* A plan without kernels still says where it was made. */
static int name_cpu(struct verify *verify)
{
	char vendor[13];

	plan_cpu_vendor(vendor);
	verify->plan->cpu_vendor = strdup(vendor);
	return verify->plan->cpu_vendor ? 0 : fail(verify, -ENOMEM, "out of memory");
}

static int compile(struct verify *verify)
{
	struct codegen_options options = {0};
	int ret;

	if (!verify->plan->n_regions && !verify->plan->n_replaces)
		return name_cpu(verify);
	if (verify->inlined) {
		if (stop(verify, "comparing functions of the vendor's library"))
			return fail(verify, -EINTR, "interrupted");
		ret = check_inlined(verify->framework, &verify->inlined, verify->err, verify->err_size);
		if (ret)
			return ret;
	}
	if (verify->inlined)
		options.rules = oprule_inlined(&options.n_rules);
	if (stop(verify, "compiling"))
		return fail(verify, -EINTR, "interrupted");
	return codegen_plan_with(verify->plan, &options, verify->err, verify->err_size);
}

static int run(struct verify *verify)
{
	int ret = open_framework(verify);

	if (!ret)
		ret = compile(verify);
	if (!ret)
		ret = add_cpu_words(verify);
	if (!ret)
		ret = terra_plan_link(verify->plan, framework_handle(verify->framework), verify->err, verify->err_size);
	if (!ret)
		ret = check_all_regions(verify);
	return ret ? ret : check_replaces(verify);
}

int verify_plan(struct graph *graph, struct terra_plan *plan, const struct verify_options *options, char *err,
		size_t err_size)
{
	struct verify *verify = calloc(1, sizeof(*verify));
	int ret;

	if (!verify)
		return -ENOMEM;
	verify->graph = graph;
	verify->plan = plan;
	verify->options = options;
	verify->inlined = check_inlined_concerns(plan);
	verify->total = plan->n_regions + plan->n_replaces + 2 + verify->inlined;
	verify->err = err;
	verify->err_size = err_size;
	ret = plan->n_regions > PLAN_MAX_REGIONS ? fail(verify, -EFBIG, "more regions than a plan may have")
						 : run(verify);
	if (verify->framework)
		framework_close(verify->framework);
	free(verify);
	return ret;
}
