/* test_assemble.c - plans made of graphs: every op of a region can be finished alone, and dropping a region takes along
 * what only it needed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/assemble.h"
#include "graphopt/plan_internal.h"
#include "graphopt/show.h"

static struct graph *golden_graph(const char *name)
{
	char path[512], *text = NULL, err[256];
	struct graph *graph;
	size_t size = 0;
	FILE *file;

	snprintf(path, sizeof(path), "%s/tests/unit/golden/%s.tg", TERRA_SOURCE_DIR, name);
	file = fopen(path, "r");
	assert_non_null(file);
	assert_true(getdelim(&text, &size, '\0', file) > 0);
	fclose(file);
	*strstr(text, "\n--- after ") = '\0';
	if (graph_read(text, &graph, err, sizeof(err)) || graph_run_passes(graph, NULL, NULL, err, sizeof(err)))
		fail_msg("%s", err);
	free(text);
	return graph;
}

static struct terra_plan *golden_plan(const char *name)
{
	struct graph *graph = golden_graph(name);
	struct terra_plan *plan;

	assert_int_equal(assemble_plan(graph, &plan), 0);
	graph_free(graph); /* the plan stands alone */
	return plan;
}

/* As the writer would have it, had a compiler run. */
static void assert_valid(struct terra_plan *plan)
{
	char err[256];
	uint32_t r;

	for (r = 0; r < plan->n_regions; r++)
		if (!plan->regions[r].kernel)
			plan->regions[r].kernel = strdup("k");
	for (r = 0; r < plan->n_replaces; r++)
		if (!plan->replaces[r].kernel)
			plan->replaces[r].kernel = strdup("k");
	plan->code_size = 1;
	if (plan_check(plan, err, sizeof(err)))
		fail_msg("%s", err);
	plan->code_size = 0;
}

static uint32_t count(const struct terra_plan *plan, bool fallback)
{
	uint32_t r, n = 0;

	for (r = 0; r < plan->n_regions; r++)
		n += plan->regions[r].fallback == fallback;
	return n;
}

static void assert_all_ops_served(const struct terra_plan *plan)
{
	uint32_t r, k, f;

	for (r = 0; r < plan->n_regions; r++)
		for (k = 0; k < plan->regions[r].n_ops && !plan->regions[r].fallback; k++) {
			struct terra_plan_region one = {.n_ops = 1, .ops = &plan->regions[r].ops[k]};

			for (f = 0; f < plan->n_regions; f++)
				if (plan->regions[f].fallback && plan_fallback_serves(&plan->regions[f], &one))
					break;
			assert_true(f < plan->n_regions);
		}
}

static void test_plans(void **state)
{
	static const char *const names[] = {"adamw", "gelu", "dropout", "foreach"};
	struct terra_plan *plan;
	size_t i;

	for (i = 0; i < 4; i++) {
		plan = golden_plan(names[i]);
		assert_true(count(plan, false) > 0);
		assert_valid(plan);
		assert_all_ops_served(plan);
		assert_true(plan->n_passive > 20);
		assert_int_equal(plan->n_lists, i == 3 ? 8 : 0); /* each once */
		terra_plan_free(plan);
	}
}

static void test_fallback_forms(void **state)
{
	struct terra_plan *plan = golden_plan("adamw");
	bool found = false;
	uint32_t r;

	for (r = 0; r < plan->n_regions; r++) /* aten::addcmul_ v2 i2 i2 s */
		if (plan->regions[r].fallback && !strcmp(plan->regions[r].ops[0].op, "aten::addcmul_")) {
			assert_string_equal(plan->regions[r].ops[0].arg[0], "i0");
			assert_string_equal(plan->regions[r].ops[0].arg[1], "i1");
			assert_string_equal(plan->regions[r].ops[0].arg[2], "i1");
			assert_string_equal(plan->regions[r].ops[0].arg[3], "s");
			found = true;
		}
	assert_true(found);
	assert_int_equal(count(plan, true), 7); /* eight ops, of which the two mul_ have one form */
	terra_plan_free(plan);
}

static void test_drop(void **state)
{
	struct terra_plan *plan = golden_plan("dropout");
	bool drop[64] = {true};
	uint32_t fallbacks = count(plan, true);

	assert_int_equal(count(plan, false), 2);
	assert_string_equal(plan->regions[0].ops[0].op, "aten::div_.Tensor");
	plan_drop_regions(plan, drop);
	assert_int_equal(count(plan, false), 1);
	assert_true(count(plan, true) < fallbacks);
	assert_string_equal(plan->regions[0].ops[0].op, "aten::add.Tensor");
	assert_int_equal(plan->regions[0].id, 1); /* numbers stay */
	assert_valid(plan);
	assert_all_ops_served(plan);
	plan_drop_regions(plan, drop);
	assert_int_equal(plan->n_regions, 0);
	assert_valid(plan);
	terra_plan_free(plan);
}

static uint32_t replaces_of(const struct terra_plan *plan, const char *op)
{
	uint32_t i, n = 0;

	for (i = 0; i < plan->n_replaces; i++)
		n += !strcmp(plan->replaces[i].op, op);
	return n;
}

static void test_replacement(void **state)
{
	struct terra_plan *plan = golden_plan("dropout"), *none = golden_plan("gelu");
	uint32_t products = plan->n_replaces - 1;

	assert_int_equal(replaces_of(plan, "aten::bernoulli_.float"), 1);
	assert_string_equal(plan->replaces[0].op, "aten::bernoulli_.float");
	assert_int_equal(replaces_of(none, "aten::bernoulli_.float"), 0);
	plan_drop_replace(plan, 0);
	assert_int_equal(plan->n_replaces, products);
	assert_int_equal(replaces_of(plan, "aten::bernoulli_.float"), 0);
	terra_plan_free(plan);
	terra_plan_free(none);
}

#define ADDMM(number, bias, beta, alpha)                                                                               \
	"op " number " aten::addmm (@500 " bias ", @1000 f32[64,784], @2000 f32[784,300]/[1,784], " beta ", " alpha           \
	") -> (@100000 f32[64,300]) from \"m.py\" 1 \"f\"\n"

/* Large products, each shape once, as they are stored; small ones, other types and odd strides are left out. */
static void test_products(void **state)
{
	static const char text[] =
	    "terra-graph 1 after build\nbuild-id c0ffee\nthreads 2\nlibrary \"l\"\nsource \"s\"\niteration 1 of 3\n"
	    "op 0 aten::mm (@1000 f32[512,64], @2000 f32[64,9001]/[1,64]) -> (@100000 f32[512,9001]) from \"m.py\" 1 \"f\"\n"
	    "op 1 aten::mm (@1000 f32[512,64], @2000 f32[64,9001]/[1,64]) -> (@100000 f32[512,9001]) from \"m.py\" 1 \"f\"\n"
	    "op 2 aten::mm (@1000 f32[512,64], @2000 f32[64,64]) -> (@100000 f32[512,64]) from \"m.py\" 1 \"f\"\n"
	    "op 3 aten::mm (@1000 f64[512,64], @2000 f64[64,9001]) -> (@100000 f64[512,9001]) from \"m.py\" 1 \"f\"\n"
	    "op 4 aten::mm (@1000 f32[512,64]/[128,2], @2000 f32[64,9001]) -> (@100000 f32[512,9001]) from \"m.py\" 1 \"f\"\n"
	    "op 5 aten::mm (@1000 f32[9001,512]/[1,9001], @2000 f32[512,512]) -> (@100000 f32[9001,512]) from \"m.py\" 1 \"f\"\n"
	    ADDMM("6", "f32[300]", "1", "1") ADDMM("7", "f32[300]", "1", "0.5") ADDMM("8", "f32[300]", "0", "1")
	    ADDMM("9", "f32[1]", "1", "1") ADDMM("10", "f32[64,300]", "1", "1") ADDMM("11", "f32[300]/[2]", "1", "1");
	struct graph *graph;
	struct terra_plan *plan;
	char err[256];

	if (graph_read(text, &graph, err, sizeof(err)) || graph_run_passes(graph, NULL, NULL, err, sizeof(err)))
		fail_msg("%s", err);
	assert_int_equal(assemble_plan(graph, &plan), 0);
	assert_int_equal(plan->n_replaces, 3);
	assert_string_equal(plan->replaces[0].op, "aten::mm");
	assert_string_equal(plan->replaces[0].shape, "512x9001x64,n64,t64,2,512x4512");
	assert_string_equal(plan->replaces[1].shape, "9001x512x512,t9001,n512,2,9001x256");
	assert_string_equal(plan->replaces[2].op, "aten::addmm");
	assert_string_equal(plan->replaces[2].shape, "64x300x784,n784,t784,2,64x160");
	assert_valid(plan);
	terra_plan_free(plan);
	graph_free(graph);
}

static void test_dropped_stay_out(void **state)
{
	struct graph *graph = golden_graph("gelu");
	struct terra_plan *plan;
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	graph->regions[0].dropped = "for a \"test\"";
	assert_int_equal(assemble_plan(graph, &plan), 0);
	assert_int_equal(count(plan, false), 1);
	assert_int_equal(plan->regions[0].n_ops, 11);
	show_plan(plan, graph, out);
	show_plan_json(plan, graph, out);
	fclose(out);
	assert_non_null(strstr(text, "for a \"test\""));
	assert_non_null(strstr(text, "for a \\\"test\\\""));
	free(text);
	terra_plan_free(plan);
	graph_free(graph);
}

static void test_command_script(void **state)
{
	char script[64];

	assert_true(command_script("python train.py --lr 3", script, sizeof(script)));
	assert_string_equal(script, "train.py");
	assert_true(command_script("/usr/bin/python3 -u -X dev -W error a/train.py -c", script, sizeof(script)));
	assert_string_equal(script, "a/train.py");
	assert_false(command_script("python -c print(1)", script, sizeof(script)));
	assert_false(command_script("python -m train", script, sizeof(script)));
	assert_false(command_script("python", script, sizeof(script)));
	assert_false(command_script("", script, sizeof(script)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_plans),
	    cmocka_unit_test(test_fallback_forms),
	    cmocka_unit_test(test_drop),
	    cmocka_unit_test(test_replacement),
	    cmocka_unit_test(test_products),
	    cmocka_unit_test(test_dropped_stay_out),
	    cmocka_unit_test(test_command_script),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
