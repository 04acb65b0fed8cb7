/* Closed pages and signals of the program (replay/guard.c, replay/signals.c): the only user is this program. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

/* Not in an archive: signals.c replaces sigaction and its kin in whatever it is linked to. */
#include "replay/guard.c"
#include "replay/signals.c"

#define SIZE GRANULE

struct replay_counts replay_counts;
static volatile uint32_t flushes;
static volatile char *memory; /* of the arena */
static volatile bool raise_at_closing, raise_at_opening;
static volatile sig_atomic_t handled;

void replay_say(const char *format, ...)
{
}

bool queue_yield(const void *p, size_t n)
{
	return guard_yield(p, n);
}

void queue_flush_here(enum flush_reason reason)
{
	flushes++;
	guard_open();
}

/* A signal comes right before the system is told. */
int __real_kernel_protect(void *p, size_t n, int prot);
int __wrap_kernel_protect(void *p, size_t n, int prot);

int __wrap_kernel_protect(void *p, size_t n, int prot)
{
	if ((raise_at_closing && prot == PROT_NONE) || (raise_at_opening && prot != PROT_NONE)) {
		raise_at_closing = raise_at_opening = false;
		raise(SIGUSR1);
	}
	return __real_kernel_protect(p, n, prot);
}

static void touch_memory(int sig)
{
	*memory = 2;
	handled++;
}

static int set_up(void **state)
{
	struct sigaction action = {.sa_handler = touch_memory};

	if (arena_init() || guard_init())
		return -1;
	guard_active = true; /* cmocka's own handler is the program's */
	memory = arena_alloc(SIZE);
	return !memory || sigaction(SIGUSR1, &action, NULL);
}

static int open_all(void **state)
{
	guard_open();
	flushes = 0;
	handled = 0;
	return 0;
}

static void a_touch_flushes(void **state)
{
	guard_begin(1, (void *)memory);
	assert_true(guard_close((void *)memory, SIZE, true));
	assert_int_equal(*memory, 0);
	assert_int_equal(flushes, 1);
	*memory = 1;
	assert_int_equal(flushes, 1);
}

static void inputs_can_be_read(void **state)
{
	guard_begin(2, (void *)memory);
	assert_true(guard_close((void *)memory, SIZE, false));
	assert_int_equal(*memory, 1);
	assert_int_equal(flushes, 0);
	*memory = 0;
	assert_int_equal(flushes, 1);
}

static void a_handler_comes_before_or_after_closing(void **state)
{
	guard_begin(3, (void *)memory);
	raise_at_closing = true;
	assert_true(guard_close((void *)memory, SIZE, true));
	assert_int_equal(handled, 1);
	assert_int_equal(flushes, 1);
	*memory = 3; /* would end the process if it were closed and not known to be */
	assert_int_equal(flushes, 1);
}

/* Two batches that need it closed teach to close it ahead of need. */
static void learn(uint64_t place)
{
	for (int i = 0; i < 2; i++) {
		guard_begin(place, (void *)memory);
		guard_close((void *)memory, 1, false);
		guard_close((void *)memory, 1, true);
		guard_open();
	}
}

static void a_handler_comes_before_or_after_closing_ahead(void **state)
{
	learn(4);
	raise_at_closing = true;
	guard_begin(4, (void *)memory);
	assert_int_equal(replay_counts.ahead, 1);
	assert_int_equal(handled, 1);
	*memory = 4;
	assert_int_equal(flushes, 0); /* nothing waits: it was opened again */
}

static void a_handler_comes_before_or_after_opening(void **state)
{
	uint64_t ahead = replay_counts.ahead;

	learn(5);
	guard_begin(5, (void *)memory);
	assert_int_equal(replay_counts.ahead, ahead + 1);
	assert_true(guard_close((void *)memory, 1, false)); /* closed more than that */
	raise_at_opening = true;
	assert_int_equal(*memory, 2); /* opened for reading, and the handler writes */
	assert_int_equal(handled, 1);
	assert_int_equal(flushes, 1);
	*memory = 5;
	assert_int_equal(flushes, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_teardown(a_touch_flushes, open_all),
	    cmocka_unit_test_teardown(inputs_can_be_read, open_all),
	    cmocka_unit_test_teardown(a_handler_comes_before_or_after_closing, open_all),
	    cmocka_unit_test_teardown(a_handler_comes_before_or_after_closing_ahead, open_all),
	    cmocka_unit_test_teardown(a_handler_comes_before_or_after_opening, open_all),
	};

	return cmocka_run_group_tests(tests, set_up, NULL);
}
