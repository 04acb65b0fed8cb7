/* Generated kernels against the framework: what must be bit-identical is, and the check tells when it is not. */
#include "tests/unit/codegen_support.h"

#define ADAMW                                                                                                          \
	"aten::mul_.Tensor i0 s | aten::lerp_.Scalar i1 i2 #0.1 | aten::mul_.Tensor i3 s | aten::addcmul_ v2 i2 i2 s " \
	"| "                                                                                                           \
	"aten::sqrt v3 | aten::div.Tensor v4 s | aten::add_.Tensor v5 s #1 | aten::addcdiv_ v0 v1 v6 s"
#define GELU                                                                                                           \
	"aten::mul.Tensor i0 s | aten::pow.Tensor_Scalar i0 #3 | aten::mul.Tensor v1 s | aten::add.Tensor i0 v2 s | "  \
	"aten::mul.Tensor v3 s | aten::tanh v4 | aten::add.Tensor v5 s #1 | aten::mul.Tensor v0 v6"

/* ---- regions of real programs ---- */

static void adamw_is_identical(void **state)
{
	need_framework();
	assert_identical(ADAMW);
}

static void gelu_is_identical(void **state)
{
	need_framework();
	assert_identical(GELU);
}

static void dropout_and_residual_are_identical(void **state)
{
	need_framework();
	assert_identical("aten::div_.Scalar i0 s | aten::mul.Tensor i1 v0 | aten::add.Tensor v1 i2 s");
}

static void broadcast_is_identical(void **state)
{
	need_framework();
	assert_identical(
	    "aten::add.Tensor i0 b1 #1 | aten::mul.Tensor b2 v0 | aten::tanh v1 | aten::sub.Tensor v2 b1 #1 | "
	    "aten::sqrt b3 | aten::add_.Tensor v3 v4 s");
}

/* ---- every rule ---- */

struct lines {
	char text[1024][128];
	const char *line[1024];
	uint32_t n;
};

/* A line for the rule: tensors of the domain where tensors can be, except for argument `odd`, which is a number (if
 * it can be one) or a broadcast tensor. Nothing is added when that argument can't be so. */
static void add_line(struct lines *lines, const struct oprule *rule, int odd, char odd_token, const char *constant)
{
	char *out = lines->text[lines->n];
	size_t n = (size_t)snprintf(out, 128, "%s", rule->op);
	bool used = odd < 0, domain = false;
	int tensor = 0, constants = 0;

	for (int i = 0; rule->args[i]; i++) {
		char letter = rule->args[i];

		if (i == odd && (letter == 'e' || (letter == 't' && odd_token == 'b' && !(rule->in_place && i == 0)))) {
			used = true;
			n += (size_t)(odd_token == 'b' ? snprintf(out + n, 128 - n, " b%d", tensor++)
						       : snprintf(out + n, 128 - n, " s"));
		} else if (strchr("tde", letter)) {
			n += (size_t)snprintf(out + n, 128 - n, " i%d", tensor++);
			domain = true;
		} else if (letter == 'c') {
			n += (size_t)(constants++ ? snprintf(out + n, 128 - n, " #-100")
						  : snprintf(out + n, 128 - n, " #%.*s", (int)strcspn(constant, " "), constant));
		} else if (letter == 'r') {
			n += (size_t)snprintf(out + n, 128 - n, " r%d", tensor++);
		} else {
			n += (size_t)snprintf(out + n, 128 - n, " %c", letter);
		}
	}
	if (used && (domain || odd_token == 'b'))
		lines->line[lines->n++] = out;
}

static void add_lines(struct lines *lines, const struct oprule *rule, const char *constant)
{
	add_line(lines, rule, -1, 0, constant);
	for (int i = 0; rule->args[i]; i++) {
		add_line(lines, rule, i, 'b', constant);
		add_line(lines, rule, i, 's', constant);
	}
}

static void every_rule_is_identical(void **state)
{
	struct lines *lines = calloc(1, sizeof(*lines));
	const struct oprule *rules;
	struct terra_plan *plan;
	uint32_t failed = 0;
	size_t n;

	need_framework();
	rules = oprule_table(&n);
	for (size_t i = 0; i < n; i++) {
		bool any = rules[i].constants && rules[i].constants[0] == '!';

		add_lines(lines, &rules[i], any ? "0.3" : rules[i].constants);
		if (any)
			add_lines(lines, &rules[i], "0.5");
	}
	plan = plan_of(lines->line, lines->n);
	make_code(plan, NULL);
	for (uint32_t i = 0; i < plan->n_regions; i++) {
		struct check_result result = check(plan, i);

		if (!result.identical)
			print_error("%s: %s\n", lines->line[i], result.first);
		else
			assert_true(result.compared > 50000);
		failed += !result.identical;
	}
	assert_int_equal(failed, 0);
	terra_plan_free(plan);
	free(lines);
}

/* ---- the check sees what is wrong ---- */

/* The vendor's square root is not always the correctly rounded one. */
static void check_refuses_ieee_sqrt(void **state)
{
	static const struct oprule wrong = {.op = "aten::sqrt", .args = "t", .expr = "vsqrt($0)"};

	need_framework();
	assert_refused("aten::sqrt i0", &wrong, "aten::sqrt");
	assert_refused(ADAMW, &wrong, "aten::");
}

/* Where the vendor's square root is what the inlined rules say, kernels with it are right in the default floating-point mode, and
 * in that alone: the check of other modes tells. */
static void inlined_roots(void **state)
{
	struct check_options options = {.framework = framework, .seed = 5, .quick = true, .inlined = true};
	struct codegen_options codegen = {0};
	struct check_result result;
	struct terra_plan *plan;
	char err[512] = "";
	bool same;

	need_framework();
	if (check_inlined(framework, &same, err, sizeof(err)))
		fail_msg("%s", err);
	if (!same) {
		print_message("skipped: the vendor's library computes roots in another way on this machine\n");
		skip();
	}
	plan = plan_of_one(ADAMW);
	assert_true(check_inlined_concerns(plan));
	codegen.rules = oprule_inlined(&codegen.n_rules);
	make_code(plan, &codegen);
	assert_int_equal(plan->n_imports, 0);
	assert_int_equal(check_region(plan, &plan->regions[0], &options, &result), 0);
	assert_true(result.identical);
	options.inlined = false;
	assert_int_equal(check_region(plan, &plan->regions[0], &options, &result), 0);
	assert_false(result.identical);
	terra_plan_free(plan);
	plan = plan_of_one("aten::exp i0");
	assert_false(check_inlined_concerns(plan));
	terra_plan_free(plan);
}

static void check_refuses_unfused_addcmul(void **state)
{
	static const struct oprule wrong = {
	    .op = "aten::addcmul", .args = "ttts", .expr = "vadd(vmul(vmul($1, $3), $2), $0)"};

	need_framework();
	assert_refused("aten::addcmul i0 i1 i2 s", &wrong, "aten::addcmul");
}

static void check_refuses_fused_addcdiv(void **state)
{
	static const struct oprule wrong = {
	    .op = "aten::addcdiv", .args = "ttts", .expr = "vfma($3, vdiv($1, $2), $0)"};

	need_framework();
	assert_refused("aten::addcdiv i0 i1 i2 s", &wrong, "aten::addcdiv");
}

/* Only which NaN survives differs; and only for signed zeros. */
static void check_refuses_other_operand_order(void **state)
{
	static const struct oprule zero = {.op = "aten::relu", .args = "t", .expr = "vmax($0, vnum(0))"};
	static const struct oprule nan = {.op = "aten::relu", .args = "t", .expr = "vsel_lt($0, vnum(0), vnum(0), $0)"};
	static const struct oprule sign = {.op = "aten::neg", .args = "t", .expr = "vsub(vnum(0), $0)"};

	need_framework();
	assert_refused("aten::relu i0", &zero, "aten::relu");
	assert_refused("aten::relu i0", &nan, "aten::relu");
	assert_refused("aten::neg i0", &sign, "aten::neg");
}

/* A kernel that is right but for its last element, and one that writes one element too many. */
static void off_by_one(const struct terra_kernel_args *args, int64_t begin, int64_t end)
{
	const float *in = args->input[0];

	for (int64_t i = begin; args->result[0] && i < end; i++)
		((float *)args->result[0])[i] = i == 32768 ? 0 : -in[i];
}

static void one_too_many(const struct terra_kernel_args *args, int64_t begin, int64_t end)
{
	const float *in = args->input[0];

	for (int64_t i = begin; args->result[0] && i < end; i++)
		((float *)args->result[0])[i] = -in[i];
	if (args->result[0])
		((float *)args->result[0])[end] = 0;
}

static void check_refuses_wrong_kernels(void **state)
{
	struct terra_plan *plan = plan_of_one("aten::neg i0");
	struct check_result result;

	need_framework();
	make_code(plan, NULL);
	plan->regions[0].fn = off_by_one;
	result = check(plan, 0);
	assert_false(result.identical);
	plan->regions[0].fn = one_too_many;
	result = check(plan, 0);
	assert_false(result.identical);
	assert_non_null(strstr(result.first, "outside"));
	terra_plan_free(plan);
}

static void measurement_is_filled_in(void **state)
{
	const struct check_options options = {
	    .framework = framework, .threads = 1, .quick = true, .measure = true, .repeats = 3, .numel = 65536};
	struct terra_plan *plan;
	struct check_result result;

	need_framework();
	plan = plan_of_one(ADAMW);
	make_code(plan, NULL);
	assert_int_equal(check_region(plan, &plan->regions[0], &options, &result), 0);
	assert_true(result.identical);
	assert_true(result.eager_ns > 1000 && result.fused_ns > 1000);
	assert_true(plan->regions[0].gain == result.eager_ns / result.fused_ns);
	terra_plan_free(plan);
}

/* ---- without the framework ---- */

static void code_and_names_are_filled_in(void **state)
{
	static const char *const regions[] = {GELU, ADAMW, "aten::add.Tensor i0 b1 #1"};
	struct terra_plan *plan = plan_of(regions, 3);
	char err[512] = "";

	assert_int_equal(codegen_plan(plan, NULL, err, sizeof(err)), 0);
	assert_memory_equal(plan->code, "\177ELF", 4);
	assert_true(plan->code_size > 1000);
	assert_int_equal(plan->n_imports, 2);
	assert_string_equal(plan->imports[0], "vmsTanh");
	assert_string_equal(plan->imports[1], "vmsSqrt");
	assert_string_equal(plan->regions[1].kernel, "terra_region_2");
	assert_int_equal(plan->regions[1].n_inputs, 4);
	assert_int_equal(plan->regions[1].n_scalars, 6);
	assert_int_equal(plan->regions[2].n_inputs, 2);
	assert_non_null(strstr(plan->cpu, "avx2"));
	/* Once more over a plan that has code: nothing is left over. */
	assert_int_equal(codegen_plan(plan, NULL, err, sizeof(err)), 0);
	assert_int_equal(plan->n_imports, 2);
	terra_plan_free(plan);
}

static void work_dir_keeps_the_source(void **state)
{
	char dir[] = "/tmp/terra-test-codegen-XXXXXX", path[128], err[512] = "";
	struct terra_plan *plan = plan_of_one("aten::neg i0");
	static const char *const files[] = {"kernels.c", "kernels.so", "messages.txt"};
	struct stat st;

	assert_non_null(mkdtemp(dir));
	assert_int_equal(codegen_plan(plan, dir, err, sizeof(err)), 0);
	for (size_t i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
		assert_int_equal(stat(path, &st), 0);
		unlink(path);
	}
	assert_int_equal(rmdir(dir), 0);
	terra_plan_free(plan);
}

static void impossible_regions_are_refused(void **state)
{
	assert_no_kernel("aten::mm i0 i1", "aten::mm");
	assert_no_kernel("aten::sigmoid i0", "depend on position");
	assert_no_kernel("aten::pow.Tensor_Scalar i0 #4", "exponents");
	assert_no_kernel("aten::mul.Tensor s s", "no rule");
	assert_no_kernel("aten::mul.Tensor i0", "no rule");
	assert_no_kernel("aten::add_.Tensor b0 i1 s", "no rule");
	assert_no_kernel("aten::addcmul i0 i1 b2 s", "no rule");
	assert_no_kernel("aten::add.Tensor i0 b1 s", "no rule");
	assert_no_kernel("aten::neg v0", "makes no sense");
	assert_no_kernel("aten::neg i1", "makes no sense");
	assert_no_kernel("aten::neg i0 | aten::neg v1", "makes no sense");
	assert_no_kernel("aten::add.Tensor i0 b0 #1", "makes no sense");
}

static void compiler_trouble_is_told(void **state)
{
	const struct codegen_options absent = {.compiler = "/nonexistent/cc"}, failing = {.compiler = "false"};
	struct terra_plan *plan = plan_of_one("aten::neg i0");
	char err[512] = "";

	assert_int_equal(codegen_plan_with(plan, &absent, err, sizeof(err)), -ENOENT);
	assert_non_null(strstr(err, "/nonexistent/cc"));
	assert_int_equal(codegen_plan_with(plan, &failing, err, sizeof(err)), -ENOEXEC);
	assert_null(plan->code);
	terra_plan_free(plan);
}

static void constants_are_compared_as_numbers(void **state)
{
	struct terra_plan_op op = {
	    .op = (char *)"aten::pow.Tensor_Scalar", .n_args = 2, .arg = {(char *)"i0", (char *)"#0.5"}};

	assert_string_equal(oprule_match(&op)->import, "vmsSqrt");
	op.arg[1] = (char *)"#5e-1";
	assert_string_equal(oprule_match(&op)->import, "vmsSqrt");
	op.arg[1] = (char *)"#2";
	assert_non_null(oprule_match(&op)->expr);
	op.arg[1] = (char *)"#2.5";
	assert_null(oprule_match(&op));
	op.arg[1] = (char *)"s";
	assert_null(oprule_match(&op));
	assert_null(oprule_find("aten::sigmoid"));
	assert_non_null(oprule_excluded("aten::sigmoid_"));
	assert_null(oprule_excluded("aten::sigmoid_backward"));
	assert_non_null(oprule_excluded("aten::gt.Scalar"));
}

static void numbers_become_constants_where_they_must(void **state)
{
	struct terra_plan_op op = {
	    .op = (char *)"aten::add.Tensor", .n_args = 3, .arg = {(char *)"i0", (char *)"s", (char *)"s"}};
	const double one[] = {0, 0.7, 1}, half[] = {0, 0.7, 0.5};

	assert_null(oprule_match(&op));
	assert_null(oprule_choose(&op, half));
	assert_string_equal(oprule_choose(&op, one)->args, "eec");
	op.arg[2] = (char *)"#1";
	assert_string_equal(oprule_match(&op)->args, "eec");
	/* Two tensors of the domain: alpha may be anything, and stays a number. */
	op.arg[1] = (char *)"i1";
	op.arg[2] = (char *)"s";
	assert_string_equal(oprule_choose(&op, half)->args, "eds");
	assert_string_equal(oprule_match(&op)->args, "eds");
}

static void lerp_is_not_fused_where_bits_depend_on_position(void **state)
{
	struct terra_plan_op op = {
	    .op = (char *)"aten::lerp_.Scalar", .n_args = 3, .arg = {(char *)"i0", (char *)"i1", (char *)"s"}};
	const double one[] = {0, 0, 1}, tenth[] = {0, 0, 1 - 0.9}, nan[] = {0, 0, NAN};

	assert_null(oprule_choose(&op, one));
	assert_null(oprule_choose(&op, nan));
	assert_string_equal(oprule_choose(&op, tenth)->args, "ttc");
	assert_null(oprule_match(&op));
}

static void fused_order_is_read_from_memory_correctly(void **state)
{
	/* Values that cross a framework function, in-place over memory that later ops read under the new name. */
	need_framework();
	assert_identical("aten::mul.Tensor i0 i1 | aten::exp v0 | aten::add_.Tensor i0 v1 s | aten::tanh_ v2 | "
			 "aten::mul.Tensor v3 v0 | aten::neg_ v4 | aten::div_.Tensor v5 v3 | aten::erf_ v6");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(code_and_names_are_filled_in),
	    cmocka_unit_test(work_dir_keeps_the_source),
	    cmocka_unit_test(impossible_regions_are_refused),
	    cmocka_unit_test(compiler_trouble_is_told),
	    cmocka_unit_test(constants_are_compared_as_numbers),
	    cmocka_unit_test(numbers_become_constants_where_they_must),
	    cmocka_unit_test(lerp_is_not_fused_where_bits_depend_on_position),
	    cmocka_unit_test(adamw_is_identical),
	    cmocka_unit_test(gelu_is_identical),
	    cmocka_unit_test(dropout_and_residual_are_identical),
	    cmocka_unit_test(broadcast_is_identical),
	    cmocka_unit_test(fused_order_is_read_from_memory_correctly),
	    cmocka_unit_test(every_rule_is_identical),
	    cmocka_unit_test(check_refuses_ieee_sqrt),
	    cmocka_unit_test(inlined_roots),
	    cmocka_unit_test(check_refuses_unfused_addcmul),
	    cmocka_unit_test(check_refuses_fused_addcdiv),
	    cmocka_unit_test(check_refuses_other_operand_order),
	    cmocka_unit_test(check_refuses_wrong_kernels),
	    cmocka_unit_test(measurement_is_filled_in),
	};

	return cmocka_run_group_tests(tests, open_framework, close_framework);
}
