/* Regions that go by rows: the gradient of a loss against the framework. */
#include "tests/unit/codegen_support.h"

#define LOSS "aten::nll_loss_backward f i0 r1 - #1 #-100 f | aten::_log_softmax_backward_data v0 i0 l #6"

static void gradient_of_cross_entropy_is_identical(void **state)
{
	need_framework();
	assert_identical(LOSS);
}

/* A class may stand for none, too. */
static void ignored_class_is_identical(void **state)
{
	need_framework();
	assert_identical("aten::nll_loss_backward f i0 r1 - #2 #0 f | aten::_log_softmax_backward_data v0 i0 l #6");
}

static void elementwise_ops_beside_rows_are_identical(void **state)
{
	need_framework();
	assert_identical("aten::mul.Tensor i0 s | aten::_log_softmax_backward_data v0 i1 l #6 | aten::neg v1 | "
			 "aten::_log_softmax_backward_data v2 i0 l #6 | aten::add_.Tensor v3 v0 #1");
}

/* Only the rounding in between differs. */
static void check_refuses_unfused_gradient(void **state)
{
	static const struct oprule wrong = {.op = "aten::_log_softmax_backward_data", .args = "ddlc", .constants = "6",
					    .function = "Sleef_expf8_u10", .sum = "$0",
					    .expr = "vsub($0, vmul($f($1), $r))"};

	need_framework();
	assert_refused(LOSS, &wrong, "aten::_log_softmax_backward_data");
}

/* Of no use to the sum of one number in each row: seen with numbers in all columns. */
static void check_refuses_other_sums(void **state)
{
	static const struct oprule wrong = {.op = "aten::_log_softmax_backward_data", .args = "ddlc", .constants = "6",
					    .function = "Sleef_expf8_u10", .sum = "vmul($0, vnum(1.0000001f))",
					    .expr = "vfnma($f($1), $r, $0)"};

	need_framework();
	assert_refused("aten::_log_softmax_backward_data i0 i1 l #6", &wrong, "aten::_log_softmax_backward_data");
}

static void check_refuses_an_ignored_row_that_counts(void **state)
{
	static const struct oprule wrong = {.op = "aten::nll_loss_backward", .args = "fdr-ccf", .constants = "2 *",
					    .expr = "vcolumn($2, -1, i, vneg($0))"};

	need_framework();
	assert_refused("aten::nll_loss_backward f i0 r1 - #2 #0 f", &wrong, "aten::nll_loss_backward");
}

static void what_rows_can_not_have_is_refused(void **state)
{
	assert_no_kernel("aten::exp i0 | aten::_log_softmax_backward_data v0 i1 l #6", "function for blocks");
	assert_no_kernel("aten::_log_softmax_backward_data i0 b1 l #6", "no rule");
	assert_no_kernel("aten::_log_softmax_backward_data i0 i1 #1 #6", "no rule");
	assert_no_kernel("aten::_log_softmax_backward_data i0 i1 l #7", "no rule");
	assert_no_kernel("aten::nll_loss_backward s i0 r1 - #1 #-100 f", "no rule");
	assert_no_kernel("aten::nll_loss_backward f i0 r1 - #0 #-100 f", "no rule");
	assert_no_kernel("aten::nll_loss_backward f i0 i1 - #1 #-100 f", "no rule");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_rows_can_not_have_is_refused),
	    cmocka_unit_test(gradient_of_cross_entropy_is_identical),
	    cmocka_unit_test(ignored_class_is_identical),
	    cmocka_unit_test(elementwise_ops_beside_rows_are_identical),
	    cmocka_unit_test(check_refuses_unfused_gradient),
	    cmocka_unit_test(check_refuses_other_sums),
	    cmocka_unit_test(check_refuses_an_ignored_row_that_counts),
	};

	return cmocka_run_group_tests(tests, open_framework, close_framework);
}
