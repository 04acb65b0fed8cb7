/* Which way is taken where a batch could begin (replay/trial.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "replay/attention.h"
#include "replay/trial.h"

enum { FIRST = 300, MIDDLE, LAST, INNER }; /* numbers of ops; INNER is issued by kernels */

struct program { /* of batches of three region ops that are run at a LAST */
	uint64_t place;
	uint64_t wait, alone, guarding; /* how long a batch takes, and of that */
	bool last_of_region;
	uint32_t middle; /* ops between the first and the last */
};

struct outcome {
	uint32_t waited, alone; /* batches */
};

static uint64_t now, region_ops;

/* An op is issued. What was left alone may end there. */
static void op(uint32_t number, bool of_region)
{
	region_ops += of_region;
	if (replay_attention.timed && trial_op(number, of_region, region_ops))
		trial_left_alone(now);
}

/* A batch could begin. Whether it is left alone; else something waits from now on. */
static bool left_alone(uint64_t place)
{
	bool alone = trial_leaves_alone(place, now, region_ops);

	replay_attention.pending = !alone;
	return alone;
}

/* What waits is run by the last op. */
static void ran(uint64_t guarding)
{
	replay_attention.pending = 0;
	trial_ran(now, region_ops, guarding);
}

/* By something else. */
static void spoilt(void)
{
	replay_attention.pending = 0;
	trial_spoilt();
}

/* One batch as the program issues it. Whether it waited. */
static bool batch(const struct program *program)
{
	bool alone;

	op(FIRST, true);
	alone = left_alone(program->place);
	for (uint32_t i = 0; i < program->middle; i++) {
		if (alone)
			op(INNER, false);
		op(MIDDLE, true);
		if (alone) /* a part of the batch may not begin */
			assert_true(trial_leaves_alone(program->place + (i + 1) * 12345, now, region_ops));
	}
	now += alone ? program->alone : program->wait;
	op(LAST, program->last_of_region);
	if (!alone)
		ran(program->guarding);
	return !alone;
}

static struct outcome run(const struct program *program, uint32_t n)
{
	struct outcome outcome = {0};

	for (uint32_t i = 0; i < n; i++)
		if (batch(program))
			outcome.waited++;
		else
			outcome.alone++;
	return outcome;
}

/* A place of its own for each test: the table lasts. */
static uint64_t a_place(void)
{
	static uint64_t n;

	return ++n * 0x9E3779B97F4A7C15ull;
}

static void test_what_loses_is_left_alone(void **state)
{
	for (int last_of_region = 0; last_of_region < 2; last_of_region++) {
		struct program program = {a_place(), 300, 100, 100, last_of_region, 3};
		struct trial_counts before = trial_counts;
		struct outcome first = run(&program, 40), then = run(&program, 500);

		assert_in_range(first.waited, 15, 30);
		assert_int_equal(then.waited, 0);
		assert_int_equal(trial_counts.trials, before.trials + 1);
		assert_int_equal(trial_counts.lost, before.lost + 1);
	}
}

static void test_what_gains_waits(void **state)
{
	struct program program = {a_place(), 100, 110, 50, false, 3};
	struct trial_counts before = trial_counts;
	struct outcome first = run(&program, 100), then = run(&program, 500);

	assert_in_range(first.alone, 20, 30); /* near each other: all samples are wanted */
	assert_int_equal(then.alone, 0);
	assert_int_equal(trial_counts.trials, before.trials + 1);
	assert_int_equal(trial_counts.lost, before.lost);
}

static void test_without_a_gain_nothing_waits(void **state)
{
	struct program program = {a_place(), 97, 100, 50, false, 3};

	run(&program, 100);
	assert_int_equal(run(&program, 500).waited, 0);
}

/* The batch loses, but not by what guarding takes: that is for the plan's measurements. */
static void test_a_small_part_for_guarding_is_no_reason_to_try(void **state)
{
	struct program program = {a_place(), 1000, 100, 30, false, 3};

	assert_int_equal(run(&program, 1000).alone, 0);
}

static void test_a_verdict_is_renewed_ever_more_rarely(void **state)
{
	struct program program = {a_place(), 200, 100, 50, false, 3};
	struct outcome first, second, third;

	first = run(&program, 1000);
	second = run(&program, 9000);
	third = run(&program, 90000);
	assert_in_range(first.waited, 15, 30);
	assert_in_range(second.waited, 16, 40);
	assert_in_range(third.waited, 16, 60);
}

/* The sizes that other programs beside it leave to it, or what the machine does, have changed. */
static void test_verdicts_change(void **state)
{
	struct program program = {a_place(), 200, 100, 50, false, 3};

	run(&program, 100);
	program.wait = 50;
	run(&program, 2000);
	assert_in_range(run(&program, 500).alone, 0, 24); /* a trial more, at most */
	program.wait = 200;
	run(&program, 3000);
	assert_in_range(run(&program, 500).waited, 0, 24);
}

/* Single samples that something else disturbed decide nothing. */
static void test_outliers(void **state)
{
	struct program program = {a_place(), 80, 100, 40, false, 3}, disturbed = program;
	uint32_t alone = 0;

	disturbed.wait = 100000;
	for (int i = 0; i < 1000; i++)
		alone += !batch(i % 5 == 0 ? &disturbed : &program);
	assert_in_range(alone, 8, 30);
}

/* Where batches end now here, now there, times can't be compared: they go on waiting. */
static void test_what_keeps_to_no_pattern_waits(void **state)
{
	struct program program = {a_place(), 300, 100, 100, false, 3}, longer = program;
	uint32_t alone = 0;

	longer.middle = 5;
	for (int i = 0; i < 5000; i++)
		alone += !batch(i % 2 ? &longer : &program);
	assert_int_equal(alone, 0);
}

/* Left alone, the program takes another path: nothing is measured, and in the end no more is tried. */
static void test_what_ends_elsewhere_is_no_sample(void **state)
{
	struct program program = {a_place(), 300, 100, 100, false, 3};
	struct trial_counts before = trial_counts;
	uint32_t alone = 0;

	for (int i = 0; i < 1000; i++) {
		op(FIRST, true);
		if (left_alone(program.place)) {
			alone++;
			for (int k = 0; k < 10; k++)
				op(MIDDLE, true);
			continue;
		}
		for (uint32_t k = 0; k < program.middle; k++)
			op(MIDDLE, true);
		now += program.wait;
		op(LAST, false);
		ran(program.guarding);
	}
	assert_in_range(alone, 1, 64);
	assert_int_equal(trial_counts.trials, before.trials);
}

/* The batch ends at an op of a region. Left alone, another comes at that place, and could begin the next batch. */
static void test_another_op_at_the_end_is_no_sample(void **state)
{
	struct program program = {a_place(), 300, 100, 100, true, 3};
	struct trial_counts before = trial_counts;
	uint32_t waited = 0;

	run(&program, 12);
	for (int i = 0; i < 1000; i++) {
		op(FIRST, true);
		if (!left_alone(program.place)) {
			waited++;
			now += program.wait;
			op(LAST, true);
			ran(program.guarding);
			continue;
		}
		op(MIDDLE, true);
		left_alone(a_place());
	}
	assert_in_range(waited, 900, 1000);
	assert_int_equal(trial_counts.trials, before.trials);
}

/* What lost once and can't be compared any more waits again. */
static void test_a_verdict_that_cannot_be_renewed_is_given_up(void **state)
{
	struct program program = {a_place(), 300, 100, 100, false, 3};

	run(&program, 40);
	assert_int_equal(run(&program, 500).waited, 0);
	for (int i = 0; i < 1000; i++) {
		bool alone;

		op(FIRST, true);
		alone = left_alone(program.place);
		if (!alone)
			spoilt();
		for (uint32_t k = 0; k < program.middle; k++)
			op(MIDDLE, true);
		op(LAST, false);
		assert_true(i < 700 || !alone);
	}
}

static void test_of_two_places_with_one_entry_one_is_tried(void **state)
{
	struct program one = {a_place(), 300, 100, 100, false, 3}, other = one;
	uint32_t alone = 0;

	other.place ^= 12345; /* the upper bits tell the entry */
	for (int i = 0; i < 200; i++) {
		alone += !batch(&one);
		assert_true(batch(&other));
	}
	assert_in_range(alone, 150, 190);
}

static void test_what_another_thread_spoilt_is_no_sample(void **state)
{
	trial_spoilt();
	trial_left_alone(now);
	assert_false(replay_attention.timed);
}

static void test_what_was_run_by_no_op_is_no_sample(void **state)
{
	struct program program = {a_place(), 300, 100, 100, false, 3};

	for (int i = 0; i < 1000; i++) {
		op(FIRST, true);
		assert_false(left_alone(program.place));
		op(MIDDLE, true);
		now += 300;
		spoilt();
		assert_false(replay_attention.timed);
	}
}

/* Its first op was refused for another reason, and runs at once. */
static void test_what_does_not_begin_is_not_timed(void **state)
{
	op(FIRST, true);
	assert_false(left_alone(a_place()));
	assert_true(replay_attention.timed);
	replay_attention.pending = 0;
	op(MIDDLE, true);
	assert_false(replay_attention.timed);
}

/* Many more places than the table has room for. */
static void test_many_places(void **state)
{
	struct program program = {a_place(), 300, 100, 100, false, 3};
	uint32_t waited = 0;

	for (int i = 0; i < 2000; i++) {
		struct program other = {a_place(), 300, 100, 100, false, 3};

		assert_true(batch(&other));
		waited += batch(&program);
	}
	assert_in_range(waited, 15, 60);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_loses_is_left_alone),
		cmocka_unit_test(test_what_gains_waits),
		cmocka_unit_test(test_without_a_gain_nothing_waits),
		cmocka_unit_test(test_a_small_part_for_guarding_is_no_reason_to_try),
		cmocka_unit_test(test_a_verdict_is_renewed_ever_more_rarely),
		cmocka_unit_test(test_verdicts_change),
		cmocka_unit_test(test_outliers),
		cmocka_unit_test(test_what_keeps_to_no_pattern_waits),
		cmocka_unit_test(test_what_ends_elsewhere_is_no_sample),
		cmocka_unit_test(test_another_op_at_the_end_is_no_sample),
		cmocka_unit_test(test_a_verdict_that_cannot_be_renewed_is_given_up),
		cmocka_unit_test(test_of_two_places_with_one_entry_one_is_tried),
		cmocka_unit_test(test_what_another_thread_spoilt_is_no_sample),
		cmocka_unit_test(test_what_was_run_by_no_op_is_no_sample),
		cmocka_unit_test(test_what_does_not_begin_is_not_timed),
		cmocka_unit_test(test_many_places),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
