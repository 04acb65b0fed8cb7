/* test_arena.c - the arena's calls against a model: contents, states, and what its side tables say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "replay/arena_internal.h"

#define N_SLOTS 512
#define N_PAGES (1u << 24) /* 64 GB, from the start of the range: more is never in use here */
#define CHUNK_EDGE (CHUNK_BYTES - 1)

struct slot {
	char *p;
	size_t size;
	uint64_t mark;
	bool held, dead;
};

static uint64_t random_state = 88172645463325252ull;

static uint64_t random_next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* As many small as large: the size's order of magnitude is what is drawn. */
static size_t random_size(unsigned log_max)
{
	unsigned log = 8 + random_next() % (log_max - 8);

	if (random_next() % 4 == 0) /* the round sizes that tensors have */
		return 1ull << log;
	return (1ull << log) + random_next() % (1ull << log);
}

/* The first and last word and one within tell whether anybody else wrote into the block. */
static void write_marks(struct slot *slot)
{
	slot->mark = random_next();
	memcpy(slot->p, &slot->mark, 8);
	memcpy(slot->p + slot->size / 2 - 4, &slot->mark, 8);
	memcpy(slot->p + slot->size - 8, &slot->mark, 8);
}

static void check_marks(const struct slot *slot)
{
	assert_memory_equal(slot->p, &slot->mark, 8);
	assert_memory_equal(slot->p + slot->size / 2 - 4, &slot->mark, 8);
	assert_memory_equal(slot->p + slot->size - 8, &slot->mark, 8);
}

/* Backed chunks are tiled by spans: neighbours touch and find each other, no two free ones do. */
static void check_tables(void)
{
	struct arena_stats stats;
	uint64_t backed = 0;

	for (uint32_t page = 0; page < N_PAGES;) {
		struct span *span, *right;

		if (!space_is_backed(page / CHUNK_PAGES)) {
			page += CHUNK_PAGES;
			continue;
		}
		span = span_of_page(page);
		assert_non_null(span);
		assert_int_equal(span->page, page);
		assert_in_range(span->kind, SPAN_FREE, SPAN_SLAB);
		assert_ptr_equal(span_of_page(page + span->n - 1), span);
		right = span_right(span);
		if (right) {
			assert_int_equal(right->page, page + span->n);
			assert_ptr_equal(span_left(right), span);
			assert_false(span->kind == SPAN_FREE && right->kind == SPAN_FREE);
		}
		page += span->n;
		backed += span->n * PAGE_BYTES;
	}
	arena_stats(&stats);
	assert_int_equal(backed, stats.resident_bytes);
}

static void check_place(const struct slot *slot)
{
	void *base = NULL;
	size_t size = 0, at = random_next() % slot->size;

	assert_true(arena_contains(slot->p + at, slot->size - at, &base, &size));
	assert_ptr_equal(base, slot->p);
	assert_in_range(size, slot->size, slot->size + slot->size / 4 + PAGE_BYTES);
	assert_false(arena_contains(slot->p + at, size - at + 1, NULL, NULL));
	assert_true(arena_owns_address(slot->p + at));
}

static void take(struct slot *slot, unsigned log_max)
{
	*slot = (struct slot){.size = random_size(log_max)};
	slot->p = arena_alloc(slot->size);
	assert_non_null(slot->p);
	assert_int_equal((uintptr_t)slot->p % 64, 0);
	if (slot->size % CHUNK_BYTES == 0)
		assert_int_equal((uintptr_t)slot->p & CHUNK_EDGE, 0);
	write_marks(slot);
}

static void give(struct slot *slot)
{
	check_marks(slot);
	assert_true(arena_free(slot->p));
	if (slot->held) {
		assert_true(arena_is_dead(slot->p));
		assert_true(arena_contains(slot->p, slot->size, NULL, NULL));
		slot->dead = true;
	} else {
		slot->p = NULL;
	}
}

/* Hold, or end the hold; a dead block's bytes must have stayed until then. */
static void turn_hold(struct slot *slot)
{
	if (!slot->held) {
		arena_hold(slot->p);
		slot->held = true;
		assert_false(arena_is_dead(slot->p));
		return;
	}
	check_marks(slot);
	assert_int_equal(arena_is_dead(slot->p), slot->dead);
	arena_release(slot->p);
	slot->held = false;
	if (slot->dead)
		slot->p = NULL;
}

static void fuzz(unsigned steps, unsigned log_max)
{
	static struct slot slots[N_SLOTS];

	for (unsigned step = 0; step < steps; step++) {
		struct slot *slot = &slots[random_next() % N_SLOTS];

		if (!slot->p)
			take(slot, log_max);
		else if (slot->dead || random_next() % 8 == 0)
			turn_hold(slot);
		else if (random_next() % 4 == 0)
			check_place(slot);
		else
			give(slot);
		if (step % 4096 == 0)
			check_tables();
	}
	for (unsigned i = 0; i < N_SLOTS; i++) {
		if (slots[i].p && !slots[i].dead)
			give(&slots[i]);
		if (slots[i].p)
			turn_hold(&slots[i]);
		assert_null(slots[i].p);
	}
	check_tables();
}

static void test_fuzz_small(void **state)
{
	fuzz(200000, 15);
}

static void test_fuzz_all_sizes(void **state)
{
	fuzz(100000, 23);
}

static uint64_t live_bytes(void)
{
	struct arena_stats stats;

	arena_stats(&stats);
	return stats.live_bytes;
}

static void test_nothing_is_lost(void **state)
{
	struct arena_stats stats;

	arena_stats(&stats);
	assert_int_equal(stats.live_bytes, 0);
	assert_int_equal(stats.n_alloc, stats.n_free);
	assert_true(stats.resident_bytes <= stats.peak_live_bytes + stats.peak_live_bytes / 20 + (64 << 20));
}

static void test_waste(void **state)
{
	for (size_t size = 512; size < 1 << 20; size += 1 + size / 50) {
		uint64_t before = live_bytes();
		void *p = arena_alloc(size);

		assert_in_range(live_bytes() - before, size, size + size / 8 + 64);
		arena_free(p);
	}
}

static void test_sizes_that_are_not_ours(void **state)
{
	int on_stack;
	void *elsewhere = malloc(1000);

	assert_null(arena_alloc(0));
	assert_null(arena_alloc(TERRA_ARENA_MIN - 1));
	assert_null(arena_alloc(SIZE_MAX));
	assert_null(arena_alloc(1ull << 62));
	assert_null(arena_alloc(PTRDIFF_MAX));
	assert_false(arena_free(NULL));
	assert_false(arena_free(&on_stack));
	assert_false(arena_free(elsewhere));
	assert_false(arena_contains(elsewhere, 1, NULL, NULL));
	assert_false(arena_owns_address(elsewhere));
	free(elsewhere);
}

static void test_whole_huge_pages(void **state)
{
	struct arena_stats before, after;
	char *odd = arena_alloc(CHUNK_BYTES + 5000), *p;

	arena_stats(&before);
	p = arena_alloc(2 * CHUNK_BYTES);
	arena_stats(&after);
	assert_int_equal((uintptr_t)p & CHUNK_EDGE, 0);
	assert_int_equal(after.live_bytes - before.live_bytes, 2 * CHUNK_BYTES);
	arena_free(p);
	arena_free(odd);
}

static void test_last_freed_first(void **state)
{
	static const size_t sizes[] = {300, 5000, 40000, 1 << 20, (4 << 20) + 12345};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		void *a = arena_alloc(sizes[i]), *b = arena_alloc(sizes[i]), *c = arena_alloc(sizes[i]);

		arena_free(a);
		arena_free(c);
		arena_free(b);
		assert_ptr_equal(arena_alloc(sizes[i]), b);
		assert_ptr_equal(arena_alloc(sizes[i]), c);
		assert_ptr_equal(arena_alloc(sizes[i]), a);
		arena_free(a);
		arena_free(b);
		arena_free(c);
	}
}

static void test_protect(void **state)
{
	size_t size = 3 * CHUNK_BYTES;
	char *p = arena_alloc(size);
	int pipe_ends[2];

	assert_int_equal(pipe(pipe_ends), 0);
	memset(p, 1, size);
	assert_int_equal(arena_protect(p, size, PROT_NONE), 0);
	assert_int_equal(write(pipe_ends[1], p, 1), -1); /* the kernel's own access doesn't fault, it fails */
	assert_int_equal(errno, EFAULT);
	assert_true(arena_contains(p + 100, 1, NULL, NULL));
	arena_hold(p);
	assert_true(arena_free(p)); /* touches no byte */
	arena_release(p);
	assert_int_equal(arena_protect(p, size, PROT_READ | PROT_WRITE), 0);
	assert_int_equal(arena_protect(p, 0, PROT_READ), -EINVAL);
	assert_int_equal(arena_protect(&pipe_ends, 8, PROT_READ), -EINVAL);
	close(pipe_ends[0]);
	close(pipe_ends[1]);
}

/* Forks under the arena's protocol; returns the child's wait status. */
static int in_child(void (*body)(void *), void *p)
{
	pid_t pid;
	int status;

	arena_before_fork();
	pid = fork();
	arena_after_fork(pid == 0);
	if (!pid) {
		body(p);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void free_twice(void *p)
{
	close(STDERR_FILENO);
	arena_free(p);
	arena_free(p);
}

static void free_inside(void *p)
{
	close(STDERR_FILENO);
	arena_free((char *)p + 64);
}

static void test_bad_free_ends_the_process(void **state)
{
	static const size_t sizes[] = {1000, 100000};

	for (size_t i = 0; i < 2; i++) {
		void *p = arena_alloc(sizes[i]);
		int twice = in_child(free_twice, p), inside = in_child(free_inside, p);

		assert_true(WIFSIGNALED(twice) && WTERMSIG(twice) == SIGABRT);
		assert_true(WIFSIGNALED(inside) && WTERMSIG(inside) == SIGABRT);
		arena_free(p);
	}
}

static void child_work(void *p)
{
	memset(p, 2, 1 << 20);
	arena_free(p);
	for (size_t size = 256; size < 8 << 20; size *= 2) {
		char *q = arena_alloc(size);

		memset(q, 3, size);
		arena_free(q);
	}
}

static void *keep_busy(void *stop)
{
	while (!__atomic_load_n((bool *)stop, __ATOMIC_RELAXED))
		arena_free(arena_alloc(100000));
	return NULL;
}

static void test_fork(void **state)
{
	char *p = arena_alloc(1 << 20);
	bool stop = false;
	pthread_t thread;

	memset(p, 1, 1 << 20);
	pthread_create(&thread, NULL, keep_busy, &stop); /* often holds the lock at the fork */
	for (int i = 0; i < 50; i++)
		assert_int_equal(in_child(child_work, p), 0);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	assert_int_equal(p[0], 1);
	assert_int_equal(p[(1 << 20) - 1], 1);
	arena_free(p);
}

static int set_up(void **state)
{
	return arena_init() || arena_init(); /* the second does nothing */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fuzz_small),
		cmocka_unit_test(test_fuzz_all_sizes),
		cmocka_unit_test(test_waste),
		cmocka_unit_test(test_sizes_that_are_not_ours),
		cmocka_unit_test(test_whole_huge_pages),
		cmocka_unit_test(test_last_freed_first),
		cmocka_unit_test(test_protect),
		cmocka_unit_test(test_bad_free_ends_the_process),
		cmocka_unit_test(test_fork),
		cmocka_unit_test(test_nothing_is_lost),
	};

	return cmocka_run_group_tests(tests, set_up, NULL);
}
