/* test_arena_memory.c - how much memory the arena keeps, and what becomes of it: programs in miniature, each in a
 * process of its own (the arena's history counts), whose numbers are judged here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "replay/arena_internal.h"

#define MB (1ull << 20)
#define SLACK (32 * MB) /* what a program may keep over the rule: the policy's slack and half-filled huge pages */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0 /* their shadow memory makes RSS and address space limits say nothing */
#endif

/* What a program in the child saw, at up to this many moments. */
#define N_MOMENTS 8

struct report {
	struct arena_stats at[N_MOMENTS];
	uint64_t rss[N_MOMENTS];
	uint64_t faults[N_MOMENTS];
	unsigned n;
	bool failed;
};

static struct report *report;

static uint64_t rss_now(void)
{
	char text[128] = "";
	unsigned long total, resident = 0;
	int fd = open("/proc/self/statm", O_RDONLY);

	if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 && sscanf(text, "%lu %lu", &total, &resident) != 2)
		resident = 0;
	close(fd);
	return resident * PAGE_BYTES;
}

static void moment(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	arena_stats(&report->at[report->n]);
	report->faults[report->n] = usage.ru_minflt;
	report->rss[report->n++] = rss_now();
}

#define expect(condition) expect_at(condition, __LINE__)

static void expect_at(bool condition, int line)
{
	if (condition)
		return;
	fprintf(stderr, "line %d: not as expected\n", line);
	report->failed = true;
}

static void run(void (*program)(void))
{
	int status;
	pid_t pid;

	memset(report, 0, sizeof(*report));
	pid = fork();
	if (!pid) {
		if (arena_init())
			_exit(1);
		program();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_false(report->failed);
}

/* Blocks held in a program's variable. */
struct blocks {
	void *p[4096];
	unsigned n;
};

static struct blocks parameters, moments, gradients, activations;

static void add(struct blocks *blocks, size_t size, bool touch)
{
	void *p = arena_alloc(size);

	expect(p);
	if (!p)
		return;
	if (touch)
		memset(p, 1, size);
	blocks->p[blocks->n++] = p;
}

static void drop_all(struct blocks *blocks)
{
	while (blocks->n)
		arena_free(blocks->p[--blocks->n]);
}

static uint64_t random_state = 1;

static uint64_t draw(uint64_t below)
{
	random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
	return (random_state >> 33) % below;
}

/* A training program: layers of `width` bytes of parameters, activations of `batch` bytes per layer. */
struct model {
	unsigned layers;
	size_t width;
	bool touch, jitter;
};

static void load(const struct model *m)
{
	for (unsigned i = 0; i < m->layers; i++) {
		add(&parameters, m->width, m->touch);
		add(&parameters, 4096 + i, m->touch);
	}
}

static void forward(const struct model *m, size_t batch)
{
	for (unsigned i = 0; i < m->layers; i++) {
		struct blocks temporary = {.n = 0};

		add(&activations, batch + (m->jitter ? draw(64) : 0), m->touch);
		add(&temporary, batch / 2 + 4096, m->touch);
		add(&activations, batch / 7 + 300, m->touch);
		drop_all(&temporary);
	}
}

static void backward(const struct model *m, size_t batch)
{
	while (activations.n) {
		struct blocks temporary = {.n = 0};

		add(&temporary, batch, m->touch);
		if (activations.n % 2) {
			add(&gradients, m->width, m->touch);
			add(&gradients, 4096, m->touch);
		}
		arena_free(activations.p[--activations.n]);
		drop_all(&temporary);
	}
}

static void step(const struct model *m, size_t batch)
{
	drop_all(&gradients); /* zero_grad */
	forward(m, batch);
	backward(m, batch);
	for (unsigned i = 0; i < m->layers; i++) {
		struct blocks temporary = {.n = 0};

		if (moments.n < 2 * m->layers) {
			add(&moments, m->width, m->touch);
			add(&moments, m->width, m->touch);
		}
		add(&temporary, m->width, m->touch);
		add(&temporary, m->width, m->touch);
		drop_all(&temporary);
	}
}

static void drop_model(void)
{
	drop_all(&parameters);
	drop_all(&gradients);
	drop_all(&moments);
}

/* Where each block lies settles over a few dozen steps; then nothing changes any more. */
static void train(const struct model *m, size_t batch, int steps)
{
	load(m);
	for (int i = 0; i < steps; i++)
		step(m, batch);
	moment();
	for (int i = 0; i < 10; i++)
		step(m, batch);
	moment();
}

static void train_large(void)
{
	const struct model m = {.layers = 12, .width = 3 * MB + 4096};

	train(&m, 9 * MB, 50);
}

static void test_steps_settle(void **state)
{
	run(train_large);
	assert_int_equal(report->at[0].trimmed_bytes, report->at[1].trimmed_bytes);
	assert_int_equal(report->at[0].n_fresh, report->at[1].n_fresh);
}

enum { PIECES = 40 };

static void take_pieces(unsigned char **p)
{
	for (int i = 0; i < PIECES; i++) {
		p[i] = arena_alloc(4 * MB);
		expect(p[i]);
		memset(p[i], i, 4 * MB);
	}
}

/* Free memory in pieces, each smaller than the request, and no budget for more: the pieces are moved together. What lives
 * between them stays where it is, and what was moved away is used again. */
static void large_between_small(void)
{
	unsigned char *p[PIECES], *large;

	take_pieces(p);
	for (int i = 0; i < PIECES; i += 2)
		arena_free(p[i]);
	moment();
	large = arena_alloc(60 * MB);
	moment();
	expect(large);
	memset(large, 0xff, 60 * MB);
	moment();
	for (int i = 1; i < PIECES; i += 2)
		for (uint64_t at = 0; at < 4 * MB; at += 4096)
			expect(p[i][at] == i && p[i][at + 4095] == i);
	arena_free(large);
	for (int i = 0; i < PIECES; i += 2) {
		p[i] = arena_alloc(4 * MB);
		memset(p[i], i, 4 * MB);
	}
	moment();
}

static void test_pieces_are_moved_together(void **state)
{
	run(large_between_small);
	assert_int_equal(report->at[1].trimmed_bytes, 0);
	assert_true(report->at[1].moved_bytes >= 30 * MB);
	assert_true(report->at[1].resident_bytes <= report->at[1].peak_live_bytes * 21 / 20 + SLACK);
	if (SANITIZED)
		return;
	assert_true(report->rss[2] <= report->rss[0] + SLACK);
	assert_true(report->rss[3] <= report->rss[0] + SLACK);
}

/* Free memory that is pinned is neither moved nor given back: protection that it got would go along, or be lost. */
static void pinned_between_small(void)
{
	unsigned char *p[PIECES], *large;

	take_pieces(p);
	for (int i = 0; i < PIECES; i += 2) {
		arena_free(p[i]);
		expect(arena_pin(p[i], 2 * MB)); /* of two huge pages one */
		mprotect(p[i], 2 * MB, PROT_NONE);
	}
	large = arena_alloc(60 * MB);
	expect(large);
	memset(large, 0xff, 60 * MB);
	moment();
	arena_free(large);
	for (int i = 1; i < PIECES; i += 2)
		arena_free(p[i]);
	moment();
	for (int i = 0; i < PIECES; i += 2) {
		expect(mprotect(p[i], 2 * MB, PROT_READ | PROT_WRITE) == 0); /* still there */
		expect(p[i][0] == i && p[i][2 * MB - 1] == i);
		arena_unpin(p[i], 2 * MB);
	}
	arena_free(arena_alloc(400 * MB));
	moment();
	expect(!arena_pin(p[0], 800 * MB));
}

static void test_pinned_pieces_stay(void **state)
{
	run(pinned_between_small);
	assert_in_range(report->at[0].moved_bytes, 10 * MB, 40 * MB); /* the other halves */
	assert_true(report->at[1].resident_bytes >= 40 * MB);
	assert_true(report->at[1].trimmed_bytes > 0);
}

static void train_and_drop(void)
{
	const struct model m = {.layers = 12, .width = 3 * MB + 4096, .touch = true};

	train(&m, 9 * MB, 3);
	drop_model();
	moment();
}

static void test_steps_find_their_memory_warm(void **state)
{
	run(train_and_drop);
	assert_in_range(report->at[1].n_fresh - report->at[0].n_fresh, 0, 10); /* of 1,100 allocations */
	if (!SANITIZED)
		assert_in_range(report->faults[1] - report->faults[0], 0, 100);
}

static void test_a_dropped_model_goes_back(void **state)
{
	run(train_and_drop);
	assert_int_equal(report->at[2].live_bytes, 0);
	assert_true(report->at[1].resident_bytes > 250 * MB);
	assert_true(report->at[2].resident_bytes <= SLACK);
	if (!SANITIZED)
		assert_true(report->rss[1] - report->rss[2] > 220 * MB);
}

static void train_once_and_drop(void)
{
	const struct model m = {.layers = 12, .width = 3 * MB};

	load(&m);
	step(&m, 9 * MB);
	moment();
	drop_model();
	moment();
}

static void test_a_model_dropped_after_one_step(void **state)
{
	run(train_once_and_drop);
	assert_true(report->at[0].resident_bytes > 120 * MB);
	assert_true(report->at[1].resident_bytes <= SLACK);
}

static void drop_one_of_two(void)
{
	const struct model m = {.layers = 12, .width = 4 * MB};
	struct blocks teacher = {.n = 0};

	load(&m);
	for (int i = 0; i < 100; i++)
		add(&teacher, 2 * MB, false);
	for (int i = 0; i < 6; i++)
		step(&m, 5 * MB);
	drop_all(&teacher);
	moment();
	for (int i = 0; i < 20; i++)
		step(&m, 5 * MB);
	moment();
}

static void test_a_part_of_the_program_dropped(void **state)
{
	run(drop_one_of_two);
	assert_true(report->at[0].resident_bytes <= report->at[0].live_bytes * 21 / 20 + SLACK);
	assert_true(report->at[1].resident_bytes <= 330 * MB);
}

static void random_steps(void)
{
	const struct model m = {.layers = 10, .width = 2 * MB + 70000, .jitter = true};

	load(&m);
	for (int i = 0; i < 300; i++)
		step(&m, (1 + draw(16)) * (8 + draw(120)) * 5000);
	moment();
	drop_model();
	moment();
}

static void test_random_batches_stay_in_budget(void **state)
{
	run(random_steps);
	print_message("peak live %llu MB, peak resident %llu MB, given back %llu MB in 300 steps\n",
		      (unsigned long long)(report->at[0].peak_live_bytes / MB),
		      (unsigned long long)(report->at[0].peak_resident_bytes / MB),
		      (unsigned long long)(report->at[0].trimmed_bytes / MB));
	assert_true(report->at[0].peak_resident_bytes <= report->at[0].peak_live_bytes * 21 / 20 + SLACK);
	assert_true(report->at[1].resident_bytes <= SLACK);
}

/* An output that holds a graph of everything before it, replaced each time: one run of frees, most of what is live. */
static void replace_outputs(void)
{
	const struct model m = {.layers = 16, .width = MB};

	load(&m);
	for (int i = 0; i < 40; i++) {
		forward(&m, 8 * MB);
		drop_all(&activations);
		if (i == 3 || i == 39)
			moment();
	}
}

static void test_outputs_replaced_are_no_shrinking(void **state)
{
	run(replace_outputs);
	assert_true(report->at[0].trimmed_bytes > 0); /* else this tests nothing */
	assert_int_equal(report->at[0].trimmed_bytes, report->at[1].trimmed_bytes);
}

/* A step that allocates ten times its peak: more than the first window spans. */
static void long_step(const struct model *m)
{
	forward(m, 8 * MB);
	for (int i = 0; i < 1000; i++) {
		struct blocks temporary = {.n = 0};

		add(&temporary, 2 * MB, false);
		drop_all(&temporary);
	}
	drop_all(&activations);
}

static void long_steps(void)
{
	const struct model m = {.layers = 16, .width = 4 * MB};

	load(&m);
	for (int i = 0; i < 12; i++)
		long_step(&m);
	moment();
	for (int i = 0; i < 12; i++)
		long_step(&m);
	moment();
}

static void test_long_steps_are_learned(void **state)
{
	run(long_steps);
	assert_int_equal(report->at[0].trimmed_bytes, report->at[1].trimmed_bytes);
}

static void decline(void)
{
	struct blocks kept = {.n = 0};

	for (int i = 0; i < 400; i++)
		add(&kept, 2 * MB, false);
	while (kept.n) {
		struct blocks temporary = {.n = 0};

		arena_free(kept.p[--kept.n]);
		for (int i = 0; i < 100; i++) {
			add(&temporary, 1 * MB, false);
			drop_all(&temporary);
		}
		if (kept.n == 100)
			moment();
	}
}

static void test_slow_decline(void **state)
{
	run(decline);
	assert_true(report->at[0].resident_bytes < 200 * MB * 3 / 2 + SLACK);
}

static void set_limit(int resource, uint64_t more)
{
	unsigned long pages[6] = {0};
	char text[256] = "";
	struct rlimit limit;
	int fd = open("/proc/self/statm", O_RDONLY);

	expect(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	expect(sscanf(text, "%lu %lu %lu %lu %lu %lu", pages, pages + 1, pages + 2, pages + 3, pages + 4, pages + 5) == 6);
	getrlimit(resource, &limit);
	limit.rlim_cur = pages[resource == RLIMIT_AS ? 0 : 5] * PAGE_BYTES + more;
	expect(!setrlimit(resource, &limit));
}

/* Live memory falls and rises within a limit that leaves 64 MB; others need memory meanwhile. */
static void near_limit(int resource)
{
	const struct model m = {.layers = 8, .width = 2 * MB, .touch = true};
	void *other;

	set_limit(resource, 300 * MB + 64 * MB);
	for (int i = 0; i < 75; i++)
		add(&activations, 4 * MB, m.touch);
	moment();
	drop_all(&activations);
	moment();
	other = mmap(NULL, 200 * MB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	expect(other != MAP_FAILED);
	for (int i = 0; i < 25; i++)
		add(&activations, 4 * MB, m.touch);
	munmap(other, 200 * MB);
	drop_all(&activations);
	add(&activations, 150 * MB, m.touch); /* another shape: what is kept must make way */
	add(&activations, 140 * MB, m.touch);
	drop_all(&activations);
	expect(!arena_alloc(500 * MB));
	load(&m);
	for (int i = 0; i < 3; i++)
		step(&m, 4 * MB);
	moment();
}

static void near_address_space_limit(void)
{
	near_limit(RLIMIT_AS);
}

static void near_data_limit(void)
{
	near_limit(RLIMIT_DATA);
}

static void test_address_space_limit(void **state)
{
	if (SANITIZED)
		skip();
	run(near_address_space_limit);
	assert_true(report->at[0].live_bytes == 300 * MB);
}

static void test_data_limit(void **state)
{
	if (SANITIZED)
		skip();
	run(near_data_limit);
	assert_true(report->at[0].live_bytes == 300 * MB);
}

/* Somebody maps right where the arena would grow. */
static void crowded(void)
{
	char *first = arena_alloc(2 * MB), *p;
	void *in_the_way = first + 6 * MB, *got;

	got = mmap(in_the_way, MB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	expect(got == in_the_way);
	memset(got, 7, MB);
	for (int i = 0; i < 40; i++) {
		p = arena_alloc((1 + i % 4) * 2 * MB);
		expect(p && (p + (1 + i % 4) * 2 * MB <= (char *)got || p >= (char *)got + MB));
		memset(p, 1, (1 + i % 4) * 2 * MB);
	}
	for (size_t i = 0; i < MB; i++)
		expect(((char *)got)[i] == 7);
	expect(!arena_contains(got, 1, NULL, NULL));
}

static void test_others_in_the_range(void **state)
{
	run(crowded);
}

static void without_huge_pages(void)
{
	expect(!prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	train_and_drop();
}

static void test_without_huge_pages(void **state)
{
	run(without_huge_pages);
	assert_true(report->at[2].resident_bytes <= SLACK);
	if (SANITIZED)
		return;
	assert_in_range(report->faults[1] - report->faults[0], 0, 20000);
	assert_true(report->rss[1] - report->rss[2] > 220 * MB);
}

static int set_up(void **state)
{
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return report == MAP_FAILED;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_steps_settle),
		cmocka_unit_test(test_pieces_are_moved_together),
		cmocka_unit_test(test_pinned_pieces_stay),
		cmocka_unit_test(test_steps_find_their_memory_warm),
		cmocka_unit_test(test_a_dropped_model_goes_back),
		cmocka_unit_test(test_a_model_dropped_after_one_step),
		cmocka_unit_test(test_a_part_of_the_program_dropped),
		cmocka_unit_test(test_random_batches_stay_in_budget),
		cmocka_unit_test(test_outputs_replaced_are_no_shrinking),
		cmocka_unit_test(test_long_steps_are_learned),
		cmocka_unit_test(test_slow_decline),
		cmocka_unit_test(test_address_space_limit),
		cmocka_unit_test(test_data_limit),
		cmocka_unit_test(test_others_in_the_range),
		cmocka_unit_test(test_without_huge_pages),
	};

	return cmocka_run_group_tests(tests, set_up, NULL);
}
