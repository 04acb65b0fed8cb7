/* The order that waiting instances must keep, by the blocks that they use (replay/blocks.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "replay/arena.h"
#include "replay/blocks.h"

static void *a, *b;

static int begin(void **state)
{
	(void)state;
	a = arena_alloc(4096);
	b = arena_alloc(4096);
	return a && b ? 0 : -1;
}

static int end(void **state)
{
	(void)state;
	blocks_release();
	return arena_free(a) && arena_free(b) ? 0 : -1;
}

static uint32_t reads(void *base, uint32_t number)
{
	return block_use(base, number, false);
}

static uint32_t writes(void *base, uint32_t number)
{
	return block_use(base, number, true);
}

static void test_nothing_is_behind_what_is_not_used(void **state)
{
	(void)state;
	assert_null(block_find(a));
	assert_false(block_is_used_behind(a, 0, true));
	assert_int_equal(writes(a, 3), 0);
	assert_non_null(block_find(a));
	assert_null(block_find(b));
}

static void test_reads_stay_behind_writes_and_not_behind_reads(void **state)
{
	(void)state;
	assert_int_equal(reads(a, 1), 0);
	assert_int_equal(reads(a, 2), 0);
	assert_int_equal(writes(a, 3), 2 + 1);
	assert_int_equal(reads(a, 5), 3 + 1);
	assert_int_equal(writes(a, 7), 5 + 1);
	assert_int_equal(writes(a, 8), 7 + 1);
}

/* It reads its target first. */
static void test_own_read_does_not_hide_anothers(void **state)
{
	(void)state;
	assert_int_equal(reads(a, 1), 0);
	assert_int_equal(reads(a, 4), 0);
	assert_int_equal(writes(a, 4), 1 + 1);
	assert_int_equal(writes(a, 4), 1 + 1);
}

static void test_own_uses_are_no_order(void **state)
{
	(void)state;
	assert_int_equal(reads(a, 2), 0);
	assert_int_equal(writes(a, 2), 0);
	assert_int_equal(reads(a, 2), 0);
	assert_int_equal(writes(a, 2), 0);
	assert_false(block_is_used_behind(a, 2, true));
}

/* An earlier instance is given more to do. */
static void test_uses_in_any_order(void **state)
{
	(void)state;
	assert_int_equal(reads(a, 6), 0);
	assert_int_equal(reads(a, 2), 0);
	assert_int_equal(reads(a, 4), 0);
	assert_false(block_is_used_behind(a, 3, false));
	assert_true(block_is_used_behind(a, 3, true));
	assert_false(block_is_used_behind(a, 6, true));
	assert_int_equal(writes(a, 6), 4 + 1); /* the last of those before it, not the one noted last */
	assert_int_equal(writes(b, 5), 0);
	assert_true(block_is_used_behind(b, 2, false));
	assert_false(block_is_used_behind(b, 5, false));
	assert_int_equal(reads(b, 9), 5 + 1);
}

static void test_blocks_are_held_until_release(void **state)
{
	void *held = arena_alloc(4096);

	(void)state;
	assert_int_equal(reads(held, 0), 0);
	assert_true(arena_free(held));
	assert_true(arena_is_dead(held));
	blocks_release();
	assert_null(block_find(held));
	assert_false(arena_contains(held, 1, NULL, NULL));
}

static void test_room_is_bounded(void **state)
{
	(void)state;
	assert_true(blocks_have_room(4096));
	assert_false(blocks_have_room(1 << 20));
}

static int make(void **state)
{
	(void)state;
	return arena_init() == 0 ? blocks_init() : -1;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(test_nothing_is_behind_what_is_not_used),
	    TEST(test_reads_stay_behind_writes_and_not_behind_reads),
	    TEST(test_own_read_does_not_hide_anothers),
	    TEST(test_own_uses_are_no_order),
	    TEST(test_uses_in_any_order),
	    TEST(test_blocks_are_held_until_release),
	    TEST(test_room_is_bounded),
	};

	return cmocka_run_group_tests(tests, make, NULL);
}
