/* test_alias.c - which results share memory with which arguments. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "collector/alias.h"

static struct terra_tensor tensor(uint64_t impl, uint64_t storage, uint64_t data)
{
	return (struct terra_tensor){ .impl = impl, .storage = storage, .storage_data = data, .defined = 1 };
}

static void two_tensors(void **state)
{
	struct terra_tensor a = tensor(1, 10, 100), view = tensor(2, 10, 100), other = tensor(3, 30, 300);
	struct terra_tensor second_storage = tensor(4, 40, 100), unread = tensor(5, 0, 0), undefined = { 0 };
	struct terra_tensor empty = tensor(6, 60, 0), empty_too = tensor(7, 70, 0);

	assert_int_equal(terra_alias_of(&a, &a), TERRA_ALIAS_SAME);
	assert_int_equal(terra_alias_of(&a, &view), TERRA_ALIAS_STORAGE);
	assert_int_equal(terra_alias_of(&a, &second_storage), TERRA_ALIAS_STORAGE);
	assert_int_equal(terra_alias_of(&a, &other), TERRA_ALIAS_NONE);
	assert_int_equal(terra_alias_of(&a, &unread), TERRA_ALIAS_UNKNOWN);
	assert_int_equal(terra_alias_of(&a, &undefined), TERRA_ALIAS_NONE);
	assert_int_equal(terra_alias_of(&undefined, &undefined), TERRA_ALIAS_NONE);
	assert_int_equal(terra_alias_of(&empty, &empty_too), TERRA_ALIAS_NONE);
}

/* f(Tensor[] {a, b}, int, Tensor? absent, Tensor? view of a) -> (Tensor a, Tensor[] {new, view of b}) */
static void pairs_of_an_op(void **state)
{
	struct terra_tensor list[2] = { tensor(1, 10, 100), tensor(2, 20, 200) }, view = tensor(3, 10, 100);
	struct terra_tensor result = list[0], results[2] = { tensor(4, 40, 400), tensor(5, 20, 200) };
	struct terra_value arguments[4] = {
		{ .kind = TERRA_KIND_TENSOR_LIST, .present = 1, .count = 5, .recorded = 2, .u.tensors = list },
		{ .kind = TERRA_KIND_INT, .present = 1, .u.i = 7 },
		{ .kind = TERRA_KIND_OPT_TENSOR },
		{ .kind = TERRA_KIND_OPT_TENSOR, .present = 1, .u.tensor = &view },
	};
	struct terra_value returned[2] = {
		{ .kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &result },
		{ .kind = TERRA_KIND_TENSOR_LIST, .present = 1, .count = 2, .recorded = 2, .u.tensors = results },
	};
	struct terra_event enter = { .n_values = 4, .values = arguments }, exit = { .n_values = 2, .values = returned };
	static const struct terra_alias_pair expected[] = {
		{ 0, 0, 0, 0, TERRA_ALIAS_SAME }, { 0, 0, 3, 0, TERRA_ALIAS_STORAGE }, { 1, 1, 0, 1, TERRA_ALIAS_STORAGE },
	};
	struct terra_alias_pair pairs[4] = { 0 };

	assert_int_equal(terra_alias_pairs(&enter, &exit, pairs, 4), 3);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(pairs[i].result, expected[i].result);
		assert_int_equal(pairs[i].result_element, expected[i].result_element);
		assert_int_equal(pairs[i].argument, expected[i].argument);
		assert_int_equal(pairs[i].argument_element, expected[i].argument_element);
		assert_int_equal(pairs[i].alias, expected[i].alias);
	}
	pairs[1] = (struct terra_alias_pair){ .alias = 77 };
	assert_int_equal(terra_alias_pairs(&enter, &exit, pairs, 1), 3);
	assert_int_equal(pairs[1].alias, 77);
	assert_int_equal(terra_alias_pairs(&enter, &(struct terra_event){ 0 }, NULL, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_tensors),
		cmocka_unit_test(pairs_of_an_op),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
