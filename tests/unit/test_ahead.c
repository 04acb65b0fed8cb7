/* What is closed ahead, and when no more (replay/ahead.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "replay/ahead.h"

static const struct ahead_set three = {.n_runs = 2, .calls = 4, .run = {{100, 2, true}, {110, 1, false}}};
static const struct ahead_set more = {.n_runs = 2, .calls = 4, .run = {{99, 4, true}, {110, 1, true}}};
static const struct ahead_set fewer = {.n_runs = 1, .calls = 2, .run = {{101, 1, true}}};
static const struct ahead_set scattered = {.n_runs = 2, .calls = 2, .run = {{100, 1, true}, {110, 1, true}}};

/* Of a batch of its own for each test: the table lasts. */
static uint64_t a_key(void)
{
	static uintptr_t granule = 1000;

	return ahead_key(12345, granule++);
}

/* A batch that began like this and needed that. Whether it was closed ahead. */
static bool batch(uint64_t key, const struct ahead_set *needed, bool touched)
{
	bool used = ahead_find(key) != NULL;

	ahead_note(key, needed, used && touched);
	return used;
}

static int uses(uint64_t key, int n, const struct ahead_set *needed, bool touched)
{
	int used = 0;

	for (int i = 0; i < n; i++)
		used += batch(key, needed, touched);
	return used;
}

static void test_the_third_time_it_is_known(void **state)
{
	(void)state;
	uint64_t key = a_key();
	const struct ahead_set *set;

	assert_null(ahead_find(key));
	assert_int_equal(uses(key, 2, &three, false), 0);
	set = ahead_find(key);
	assert_non_null(set);
	assert_int_equal(set->n_runs, 2);
	assert_int_equal(set->run[0].first, 100);
	assert_int_equal(set->run[0].n, 2);
	assert_true(set->run[0].none);
	assert_false(set->run[1].none);
	assert_null(ahead_find(a_key()));
	ahead_note(key, &three, false);
	assert_int_equal(uses(key, 1000, &three, false), 1000);
}

static void test_adjacent_granules_are_one_run(void **state)
{
	(void)state;
	struct ahead_set set;

	ahead_clear(&set, 7);
	assert_true(ahead_add(&set, 5, false) && ahead_add(&set, 6, true) && ahead_add(&set, 8, false));
	assert_int_equal(set.calls, 7);
	assert_int_equal(set.n_runs, 2);
	assert_int_equal(set.run[0].n, 2);
	assert_true(set.run[0].none);
	assert_int_equal(set.run[1].first, 8);
	assert_false(set.run[1].none);
}

static void test_sets_are_bounded(void **state)
{
	(void)state;
	struct ahead_set set;
	uintptr_t n = 0;

	for (ahead_clear(&set, 1); ahead_add(&set, 2 * n, true); n++)
		;
	assert_int_equal(n, AHEAD_RUNS);
	n = 0;
	for (ahead_clear(&set, 1); ahead_add(&set, n, true); n++)
		;
	assert_int_equal(n, AHEAD_MAX);
	assert_int_equal(set.n_runs, 1);
}

static void test_place_and_granule_tell_batches_apart(void **state)
{
	(void)state;
	assert_true(ahead_key(1, 7) == ahead_key(1, 7));
	assert_true(ahead_key(1, 7) != ahead_key(2, 7));
	assert_true(ahead_key(1, 7) != ahead_key(1, 8));
}

static void test_no_use_where_no_call_is_saved(void **state)
{
	(void)state;
	assert_int_equal(uses(a_key(), 100, &scattered, false), 0);
}

static void test_what_grows_was_right(void **state)
{
	(void)state;
	uint64_t key = a_key();

	uses(key, 2, &three, false);
	assert_true(batch(key, &more, false));
	assert_true(batch(key, &more, false));
	assert_int_equal(ahead_find(key)->run[0].first, 99);
}

static void test_no_pattern_no_use(void **state)
{
	(void)state;
	uint64_t key = a_key();
	int used = 0;

	for (int i = 0; i < 1000; i++)
		used += batch(key, i % 2 ? &three : &fewer, false);
	assert_in_range(used, 0, 1);
}

/* Wrong uses are ever rarer, whatever comes between them. */
static void test_wrong_uses_back_off(void **state)
{
	(void)state;
	uint64_t always = a_key(), third = a_key();
	int used = 0;

	assert_in_range(uses(always, 10000, &three, true), 5, 20);
	for (int i = 0; i < 1000; i++)
		used += batch(third, i % 3 < 2 ? &three : &fewer, false);
	assert_in_range(used, 1, 5);
}

static void test_right_uses_make_up_for_it(void **state)
{
	(void)state;
	uint64_t key = a_key();

	uses(key, 1000, &three, true);
	uses(key, 1000, &three, false);
	assert_true(batch(key, &three, true));
	assert_false(batch(key, &three, false));
	assert_int_equal(uses(key, 1000, &three, false), 999);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_the_third_time_it_is_known),
	    cmocka_unit_test(test_adjacent_granules_are_one_run),
	    cmocka_unit_test(test_sets_are_bounded),
	    cmocka_unit_test(test_place_and_granule_tell_batches_apart),
	    cmocka_unit_test(test_no_use_where_no_call_is_saved),
	    cmocka_unit_test(test_what_grows_was_right),
	    cmocka_unit_test(test_no_pattern_no_use),
	    cmocka_unit_test(test_wrong_uses_back_off),
	    cmocka_unit_test(test_right_uses_make_up_for_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
