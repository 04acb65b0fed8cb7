/* Where ops are let wait, and where no more (replay/place.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "replay/place.h"

#define OTHER_OPS 5 /* as many as a place goes back */

/* The key of `op` behind others that tell its place. */
static uint64_t place_of(uint32_t before, uint32_t op, int64_t numel)
{
	for (uint32_t i = 0; i < OTHER_OPS; i++)
		place_enter(before + i, 4096);
	return place_enter(op, numel);
}

/* Notes runs there until the verdict; how many it took, at most `most`. */
static int runs_until_losing(uint64_t key, double saved, uint32_t in_vain, int most)
{
	int n = 0;

	while (n < most && !place_is_losing(key)) {
		place_note(key, saved, in_vain);
		n++;
	}
	return n;
}

static void test_the_same_place_has_the_same_key(void **state)
{
	(void)state;
	uint64_t key = place_of(10, 7, 4096);

	place_of(900, 8, 64);
	assert_true(place_of(10, 7, 4096) == key);
	assert_true(place_of(11, 7, 4096) != key);
	assert_true(place_of(10, 8, 4096) != key);
	assert_true(place_of(10, 7, 4097) != key);
}

static void test_what_is_always_cut_is_dropped_there_alone(void **state)
{
	(void)state;
	uint64_t losing = place_of(100, 7, 4096), other = place_of(200, 7, 4096);
	int n = runs_until_losing(losing, 0, 1, 1000);

	assert_in_range(n, 8, 100); /* not by a few accidents */
	assert_true(place_is_losing(losing));
	assert_false(place_is_losing(other));
	assert_int_equal(runs_until_losing(other, 2, 0, 1000), 1000);
}

static void test_gains_pay_for_losses(void **state)
{
	(void)state;
	uint64_t even = place_of(300, 7, 4096), deep = place_of(400, 7, 4096);

	for (int i = 0; i < 1000; i++) { /* half of the runs are cut, the others save more than that costs */
		place_note(even, i % 2 ? 4 : 0, i % 2 ? 0 : 3);
		assert_false(place_is_losing(even));
	}
	assert_int_equal(runs_until_losing(deep, 3, 4, 1000), 1000); /* cut behind a region that gained */
}

static void test_old_gains_excuse_nothing(void **state)
{
	(void)state;
	uint64_t key = place_of(500, 7, 4096);

	for (int i = 0; i < 100000; i++)
		place_note(key, 10, 0);
	assert_in_range(runs_until_losing(key, 0, 1, 1000), 8, 100);
}

static void test_a_losing_place_is_tried_again(void **state)
{
	(void)state;
	uint64_t key = place_of(600, 7, 4096);
	int again = 0, n;

	runs_until_losing(key, 0, 1, 1000);
	while (place_is_losing(key))
		again++;
	assert_in_range(again, 100, 10000);
	n = runs_until_losing(key, 0, 1, 1000); /* nothing has changed: sooner known than the first time */
	assert_in_range(n, 1, 15);
	while (place_is_losing(key))
		;
	assert_int_equal(runs_until_losing(key, 3, 0, 1000), 1000); /* the program has changed */
}

/* Many more places than the table has room for: among those that lose little, one that loses much is found alone. */
static void test_many_places(void **state)
{
	(void)state;
	uint64_t losing = place_of(700, 7, 4096);

	for (int round = 0; round < 20; round++)
		for (uint32_t i = 0; i < 20000; i++) {
			place_note(place_of(10000 + 16 * i, 7, 4096), 0, 1);
			if (i % 10000 == 0)
				place_note(losing, 0, 12);
		}
	assert_true(place_is_losing(losing));
	for (uint32_t i = 0; i < 20000; i++)
		assert_false(place_is_losing(place_of(10000 + 16 * i, 7, 4096)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_same_place_has_the_same_key),
		cmocka_unit_test(test_what_is_always_cut_is_dropped_there_alone),
		cmocka_unit_test(test_gains_pay_for_losses),
		cmocka_unit_test(test_old_gains_excuse_nothing),
		cmocka_unit_test(test_a_losing_place_is_tried_again),
		cmocka_unit_test(test_many_places),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
