/* test_arena_threads.c - the arena under several threads; run under ThreadSanitizer too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>

#include "replay/arena.h"

#define N_THREADS 4
#define N_SHARED 64
#define N_ROUNDS 20000

/* Blocks pass from thread to thread through a table; whoever finds one checks and frees it. */
static uint64_t *table[N_SHARED];
static unsigned n_wrong;

static void wrong(void)
{
	__atomic_add_fetch(&n_wrong, 1, __ATOMIC_RELAXED);
}

static uint64_t draw(uint64_t *state)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return *state >> 20;
}

/* First word: the block's own address. Last word: as the first. Second: words in it. */
static uint64_t *make(uint64_t *random)
{
	size_t size = (256ull << draw(random) % 11) + draw(random) % 4096 * 8;
	uint64_t *p = arena_alloc(size);
	void *base;

	if (!arena_contains((char *)p + size / 2, 8, &base, NULL) || base != p)
		wrong();
	p[0] = p[size / 8 - 1] = (uintptr_t)p;
	p[1] = size / 8;
	return p;
}

static void check(uint64_t *p)
{
	if (p[0] != (uintptr_t)p || p[p[1] - 1] != (uintptr_t)p || !arena_contains(p, p[1] * 8, NULL, NULL))
		wrong();
}

static void *pass_blocks(void *seed)
{
	uint64_t random = (uintptr_t)seed;

	for (int i = 0; i < N_ROUNDS; i++) {
		uint64_t *p = make(&random), *old;

		old = __atomic_exchange_n(&table[draw(&random) % N_SHARED], p, __ATOMIC_ACQ_REL);
		if (!old)
			continue;
		check(old);
		arena_free(old);
	}
	return NULL;
}

/* The other thread frees what is held here: the bytes must stay until the release. */
static void *hold_blocks(void *seed)
{
	uint64_t random = (uintptr_t)seed;

	for (int i = 0; i < N_ROUNDS; i++) {
		uint64_t *p = make(&random), *old;

		arena_hold(p);
		old = __atomic_exchange_n(&table[draw(&random) % N_SHARED], p, __ATOMIC_ACQ_REL);
		if (old) {
			check(old);
			arena_free(old);
		}
		check(p);
		arena_release(p);
	}
	return NULL;
}

/* Any address may be asked about at any time: the answer about a free one is worth nothing, but nothing breaks. */
static void *ask_anywhere(void *arg)
{
	uint64_t random = 99;
	char *around = arena_alloc(1 << 20);

	for (int i = 0; i < 4 * N_ROUNDS; i++) {
		char *p = around + draw(&random) % (512 << 20) - (256 << 20);

		arena_contains(p, 8, NULL, NULL);
		arena_is_dead(p);
	}
	arena_free(around);
	return NULL;
}

static void run_threads(void *(*first)(void *), void *(*others)(void *))
{
	pthread_t threads[N_THREADS];
	struct arena_stats stats;

	for (uintptr_t i = 0; i < N_THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, i ? others : first, (void *)(i + 1)), 0);
	for (int i = 0; i < N_THREADS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < N_SHARED; i++) {
		if (table[i])
			arena_free(table[i]);
		table[i] = NULL;
	}
	assert_int_equal(n_wrong, 0);
	arena_stats(&stats);
	assert_int_equal(stats.live_bytes, 0);
	assert_int_equal(stats.n_alloc, stats.n_free);
}

static void test_blocks_pass_between_threads(void **state)
{
	run_threads(pass_blocks, pass_blocks);
}

static void test_held_blocks_freed_by_others(void **state)
{
	run_threads(pass_blocks, hold_blocks);
}

static void test_questions_without_lock(void **state)
{
	run_threads(ask_anywhere, pass_blocks);
}

static int set_up(void **state)
{
	return arena_init();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_blocks_pass_between_threads),
		cmocka_unit_test(test_held_blocks_freed_by_others),
		cmocka_unit_test(test_questions_without_lock),
	};

	return cmocka_run_group_tests(tests, set_up, NULL);
}
