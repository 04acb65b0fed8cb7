/* codegen_support.h - what the tests of generated kernels share: plans from text, and the framework.
 *
 * Needs a libtorch_cpu.so that can be loaded (TERRA_LIBTORCH, or where probes/find.c looks); without one the tests that
 * call the framework are skipped by name. With TERRA_TEST_FULL all lengths and values are tried that a plan's kernels
 * are tried with; that takes minutes.
 */
#ifndef TERRA_TESTS_CODEGEN_SUPPORT_H
#define TERRA_TESTS_CODEGEN_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <cpuid.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graphopt/check.h"
#include "graphopt/codegen.h"
#include "graphopt/framework.h"
#include "graphopt/oprules.h"
#include "graphopt/plan.h"
#include "probes/find.h"

static struct framework *framework;
static char why_not[512];

/* ---- plans from text ---- */

static inline void add_op(struct terra_plan_region *region, char *line)
{
	struct terra_plan_op *op;
	char *state, *word = strtok_r(line, " ", &state);

	region->ops = realloc(region->ops, (region->n_ops + 1) * sizeof(*region->ops));
	assert_non_null(region->ops);
	op = &region->ops[region->n_ops++];
	memset(op, 0, sizeof(*op));
	op->op = strdup(word);
	while ((word = strtok_r(NULL, " ", &state))) {
		assert_true(op->n_args < TERRA_PLAN_MAX_ARGS);
		op->arg[op->n_args++] = strdup(word);
	}
}

static inline struct terra_plan *plan_of(const char *const *regions, uint32_t n)
{
	struct terra_plan *plan = calloc(1, sizeof(*plan));

	assert_non_null(plan);
	plan->n_regions = n;
	plan->regions = calloc(n, sizeof(*plan->regions));
	for (uint32_t i = 0; i < n; i++) {
		char *text = strdup(regions[i]), *state;

		plan->regions[i].id = i + 1;
		plan->regions[i].numel = 1000;
		for (char *line = strtok_r(text, "|", &state); line; line = strtok_r(NULL, "|", &state))
			add_op(&plan->regions[i], line);
		free(text);
	}
	return plan;
}

static inline struct terra_plan *plan_of_one(const char *region)
{
	return plan_of(&region, 1);
}

static inline void make_code(struct terra_plan *plan, const struct codegen_options *options)
{
	char err[512] = "";

	if (codegen_plan_with(plan, options, err, sizeof(err)) < 0)
		fail_msg("%s", err);
	if (terra_plan_link(plan, framework_handle(framework), err, sizeof(err)) < 0)
		fail_msg("%s", err);
}

static inline void need_framework(void)
{
	if (!framework) {
		print_message("skipped: %s\n", why_not);
		skip();
	}
}

static inline struct check_result check(struct terra_plan *plan, uint32_t region)
{
	const struct check_options options = {
	    .framework = framework, .threads = 2, .seed = 7, .quick = !getenv("TERRA_TEST_FULL")};
	struct check_result result;

	if (check_region(plan, &plan->regions[region], &options, &result) < 0)
		fail_msg("region %u: %s", region, result.first);
	return result;
}

static inline void assert_identical(const char *text)
{
	struct terra_plan *plan = plan_of_one(text);
	struct check_result result;

	make_code(plan, NULL);
	result = check(plan, 0);
	if (!result.identical)
		fail_msg("%s: %s", text, result.first);
	assert_true(result.compared > 50000);
	terra_plan_free(plan);
}

static inline void assert_refused(const char *text, const struct oprule *wrong, const char *expected_op)
{
	const struct codegen_options options = {.rules = wrong, .n_rules = 1};
	struct terra_plan *plan = plan_of_one(text);
	struct check_result result;

	make_code(plan, &options);
	result = check(plan, 0);
	assert_false(result.identical);
	assert_true(result.differing > 0);
	if (!strstr(result.first, expected_op))
		fail_msg("%s should name %s: %s", text, expected_op, result.first);
	terra_plan_free(plan);
}

static inline void assert_no_kernel(const char *text, const char *message)
{
	struct terra_plan *plan = plan_of_one(text);
	char err[512] = "", again[512] = "";

	assert_int_equal(codegen_plan(plan, NULL, err, sizeof(err)), -EINVAL);
	if (!strstr(err, message))
		fail_msg("\"%s\" should say \"%s\"", err, message);
	assert_null(plan->code);
	assert_int_equal(codegen_verify_region(&plan->regions[0], again, sizeof(again)), -EINVAL);
	assert_string_equal(err, again);
	terra_plan_free(plan);
}

static inline int open_framework(void **state)
{
	char path[4096];

	if (terra_find_libtorch(NULL, path, sizeof(path)) < 0) {
		snprintf(why_not, sizeof(why_not), "no libtorch_cpu.so found: set TERRA_LIBTORCH");
		return 0;
	}
	if (framework_open(path, &framework, why_not, sizeof(why_not)) < 0)
		framework = NULL;
	return 0;
}

static inline int close_framework(void **state)
{
	framework_close(framework);
	return 0;
}

#endif
