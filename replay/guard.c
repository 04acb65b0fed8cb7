/* guard.c - memory that waits can't be seen: its pages are closed, and the first touch runs what waits.
 *
 * Results that wait are closed to every access, what waiting work still reads is closed to writes. Protection is in
 * granules of 2 MB, so that huge pages stay whole; what else lies in a granule pays with a flush when it is touched,
 * never with an answer.
 *
 * When the first op of a batch arrives, what such a batch needed last time is closed at once (ahead.h). What is wanted
 * closed, because something in it waits, is kept apart from what is closed: where more is closed than wanted, a touch
 * lowers that granule to what is wanted and runs nothing. Adjacent granules are closed in one call and so alike, to every
 * access where that is wanted of one: a read of an input among them pays with one fault.
 *
 * Protection is the process's: pages opened for a flush are open to all threads, half-written results included. That is
 * harmless only where no other thread can be looking. Elsewhere (a fault, which a worker inside a parallel region may have
 * caused while others go on; a second program thread) the pages are moved: MREMAP_DONTUNMAP takes them to a second
 * address range and leaves closed, empty pages behind, the kernels fill them there, and a second move publishes them.
 * Who touches them meanwhile faults and waits for the flush's lock. Nothing is copied.
 *
 * The fault handler runs the kernels itself, on the faulting thread. That is sound because they are plain arithmetic on
 * memory: no lock, no allocation, no call into the framework or Python; the floating-point mode of the ops' issuer is set
 * around each.
 */
#include "replay/guard.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ucontext.h>
#include <unistd.h>

#include "replay/ahead.h"
#include "replay/arena.h"
#include "probes/clock.h"
#include "replay/kernel.h"
#include "replay/replay.h"

#define GRANULE_SHIFT 21
#define GRANULE ((size_t)1 << GRANULE_SHIFT)
#define CLOSED_MAX 4096

enum { OPEN, READ_ONLY, NONE };

struct granule {
	uint8_t closed, wanted; /* closed is never less */
};

static struct {
	uintptr_t granule[CLOSED_MAX + AHEAD_MAX]; /* numbers of closed granules, in order of closing */
	uint32_t n;
	struct granule *state;         /* by number, counted from the arena's first granule */
	uintptr_t base, n_granules;    /* the arena's */
	struct {
		uint64_t key;
		uint32_t calls;        /* that closing takes without what is closed ahead */
		bool touched;          /* the program touched what was closed more than wanted */
		uint64_t time;         /* ns for closing and opening */
		struct ahead_run pinned[AHEAD_RUNS];
		uint32_t n_pinned;     /* closed ahead */
	} batch;
	volatile uint64_t epoch;       /* openings so far, and batches that began */
	bool can_stage;                /* this kernel can move pages and leave the range mapped */
	char *first, *second;          /* staging: the lowest closed granule, and where it has been moved to */
	size_t span;                   /* bytes of address space from `first` to the end of the highest */
	void *reserved;                /* the mapping that `second` lies in, with slack for its alignment */
} guard;

/* ---- closing and opening ---- */

static bool protect(void *p, size_t n, int prot)
{
	uint64_t began = clock_now();
	int err = arena_protect(p, n, prot);

	guard.batch.time += clock_now() - began;
	return err == 0;
}

static bool close_run(uintptr_t first, uintptr_t end, uint8_t state)
{
#ifdef TERRA_NO_GUARD_PAGES
	return true;
#endif
	if (first == end)
		return true;
	replay_counts.closings++;
	return protect((void *)(first << GRANULE_SHIFT), (end - first) << GRANULE_SHIFT, state == NONE ? PROT_NONE : PROT_READ);
}

static bool note_closed(uintptr_t g, uint8_t state)
{
	struct granule *now = &guard.state[g - guard.base];

	if (now->closed >= state)
		return false;
	if (now->closed == OPEN) {
		if (guard.n == CLOSED_MAX + AHEAD_MAX)
			return false;
		guard.granule[guard.n++] = g;
	}
	now->closed = state;
	return true;
}

static void note_wanted(uintptr_t g, uint8_t state)
{
	struct granule *now = &guard.state[g - guard.base];

	if (now->wanted < state)
		now->wanted = state;
}

static bool is_wanted(uintptr_t g, uintptr_t end, uint8_t state)
{
	while (g < end && guard.state[g - guard.base].wanted >= state)
		g++;
	return g == end;
}

/* What is noted and what the system has been told must not be seen apart: a handler of the program that touched what waits
 * in between would have pages opened that are closed right after it, for good. So it comes later. */
static bool close_granules(uintptr_t g, uintptr_t end, uint8_t state)
{
	uintptr_t run = g;
	bool closed = true;
	sigset_t signals;

	guard_hold_signals(&signals);
	for (; g < end; g++) {
		note_wanted(g, state);
		if (note_closed(g, state))
			continue;
		closed &= close_run(run, g, state);
		run = g + 1;
	}
	closed &= close_run(run, end, state);
	guard.batch.calls++;
	guard_release_signals(&signals);
	return closed;
}

bool guard_close(const void *p, size_t n, bool none)
{
	uintptr_t g = (uintptr_t)p >> GRANULE_SHIFT, end = (((uintptr_t)p + n - 1) >> GRANULE_SHIFT) + 1;
	uint8_t state = none ? NONE : READ_ONLY;

#ifdef TERRA_NO_GUARD_INPUTS
	if (!none)
		return true;
#endif
#ifdef TERRA_NO_GUARD_RESULTS
	if (none)
		return true;
#endif
	return is_wanted(g, end, state) || close_granules(g, end, state);
}

bool guard_has_room(size_t bytes, uint32_t n_ranges)
{
	return guard.n + (bytes >> GRANULE_SHIFT) + 2 * n_ranges < CLOSED_MAX;
}

static int by_number(const void *a, const void *b)
{
	uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;

	return x < y ? -1 : x > y;
}

/* Insertion sort: the list is nearly sorted or short, and qsort may allocate, which a fault handler must not. */
static void sort_closed(void)
{
	for (uint32_t i = 1; i < guard.n; i++) {
		uintptr_t g = guard.granule[i];
		uint32_t j = i;

		for (; j > 0 && by_number(&guard.granule[j - 1], &g) > 0; j--)
			guard.granule[j] = guard.granule[j - 1];
		guard.granule[j] = g;
	}
}

/* Calls fn for every run of adjacent closed granules. False as soon as one fails. */
static bool for_each_run(bool (*fn)(char *p, size_t n))
{
#ifdef TERRA_NO_GUARD_PAGES
	return true;
#endif
	for (uint32_t i = 0, first = 0; i < guard.n; i++) {
		uintptr_t next = guard.granule[i] + 1;

		if (i + 1 < guard.n && guard.granule[i + 1] == next)
			continue;
		if (!fn((char *)(guard.granule[first] << GRANULE_SHIFT), (next - guard.granule[first]) << GRANULE_SHIFT))
			return false;
		first = i + 1;
	}
	return true;
}

static bool open_run(char *p, size_t n)
{
	replay_counts.openings++;
	return protect(p, n, PROT_READ | PROT_WRITE);
}

static bool shut_run(char *p, size_t n)
{
	return protect(p, n, PROT_NONE);
}

static void *in_second(const void *p)
{
	return guard.second + ((const char *)p - guard.first);
}

/* One call moves what lies in one mapping; a run may lie in several. */
static bool move(char *from, char *to, size_t n)
{
	const int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;

	if (kernel_move(from, n, flags, to) == to)
		return true;
	for (size_t at = 0; at < n; at += GRANULE)
		if (kernel_move(from + at, GRANULE, flags, to + at) != to + at)
			return false;
	return true;
}

static bool stage_run(char *p, size_t n)
{
	return move(p, in_second(p), n) && kernel_protect(in_second(p), n, PROT_READ | PROT_WRITE) == 0;
}

static bool publish_run(char *p, size_t n)
{
	return move(in_second(p), p, n);
}

static void unpin(void)
{
	for (uint32_t i = 0; i < guard.batch.n_pinned; i++)
		arena_unpin((void *)(guard.batch.pinned[i].first << GRANULE_SHIFT),
			    (size_t)guard.batch.pinned[i].n << GRANULE_SHIFT);
	guard.batch.n_pinned = 0;
}

/* What is closed is sorted. */
static void note_batch(void)
{
	static struct ahead_set wanted; /* off the small stack that a handler may have */
	bool fits = true;

	ahead_clear(&wanted, guard.batch.calls);
	for (uint32_t i = 0; i < guard.n && fits; i++) {
		uint8_t state = guard.state[guard.granule[i] - guard.base].wanted;

		fits = state == OPEN || ahead_add(&wanted, guard.granule[i], state == NONE);
	}
	if (!fits)
		ahead_clear(&wanted, 0);
	ahead_note(guard.batch.key, &wanted, guard.batch.touched);
}

static void all_open(void)
{
	unpin();
	if (guard.n > 0)
		note_batch();
	for (uint32_t i = 0; i < guard.n; i++)
		guard.state[guard.granule[i] - guard.base] = (struct granule){OPEN, OPEN};
	guard.n = 0;
	guard.epoch++;
}

void guard_open(void)
{
	sort_closed();
	if (!for_each_run(open_run)) {
		replay_say("pages can't be opened again (%s): stopping", strerror(errno));
		abort();
	}
	all_open();
}

uint64_t guard_time(void)
{
	return guard.batch.time;
}

/* ---- closing ahead ---- */

/* Where no block that waits lies in a granule, the arena might give it back or move it, protection and all: it is pinned. */
static bool close_ahead(const struct ahead_run *run)
{
	void *p = (void *)(run->first << GRANULE_SHIFT);
	uint8_t state = run->none ? NONE : READ_ONLY;

	if (!arena_pin(p, (size_t)run->n << GRANULE_SHIFT))
		return true;
	guard.batch.pinned[guard.batch.n_pinned++] = *run;
	for (uint32_t i = 0; i < run->n; i++)
		note_closed(run->first + i, state);
	replay_counts.ahead++;
	return close_run(run->first, run->first + run->n, state);
}

void guard_begin(uint64_t place, const void *p)
{
	const struct ahead_set *set;
	sigset_t signals;
	bool closed = true;

	guard.batch.key = ahead_key(place, (uintptr_t)p >> GRANULE_SHIFT);
	guard.batch.calls = 0;
	guard.batch.time = 0;
	guard.batch.touched = false;
	guard.epoch++;
	set = ahead_find(guard.batch.key);
	if (set == NULL)
		return;
	guard_hold_signals(&signals);
	for (uint32_t i = 0; i < set->n_runs && closed; i++)
		closed = close_ahead(&set->run[i]);
	/* Refused, perhaps half-way, while what is noted as closed must be: all is opened. Nothing waits yet. */
	if (!closed)
		guard_open();
	guard_release_signals(&signals);
}

static bool protect_as_wanted(uintptr_t g)
{
#ifdef TERRA_NO_GUARD_PAGES
	return true;
#endif
	return protect((void *)(g << GRANULE_SHIFT), GRANULE,
		       guard.state[g - guard.base].wanted == OPEN ? PROT_READ | PROT_WRITE : PROT_READ);
}

/* Opens a granule as far as nothing that waits wants it closed. */
static bool lower(uintptr_t g)
{
	struct granule *now = &guard.state[g - guard.base];

	if (!protect_as_wanted(g))
		return false;
	now->closed = now->wanted;
	for (uint32_t i = 0; now->closed == OPEN && i < guard.n; i++)
		if (guard.granule[i] == g)
			guard.granule[i] = guard.granule[--guard.n];
	guard.batch.touched = true;
	guard.epoch++;
	replay_counts.lowered++;
	return true;
}

bool guard_yield(const void *p, size_t n)
{
	uintptr_t g = (uintptr_t)p >> GRANULE_SHIFT, end = (((uintptr_t)p + n - 1) >> GRANULE_SHIFT) + 1;

	sigset_t signals;
	bool yields = true;

	guard_hold_signals(&signals);
	for (; g < end && yields; g++) {
		const struct granule *now = &guard.state[g - guard.base];

		if (g - guard.base < guard.n_granules && now->closed != OPEN)
			yields = now->closed != now->wanted && lower(g);
	}
	guard_release_signals(&signals);
	return yields;
}

bool guard_can_stage(void)
{
	return guard.can_stage;
}

/* Address space for the closed granules in the order they lie, huge-page aligned. */
static bool second_range(void)
{
	char *p;

	guard.first = (char *)(guard.granule[0] << GRANULE_SHIFT);
	guard.span = (size_t)((char *)((guard.granule[guard.n - 1] + 1) << GRANULE_SHIFT) - guard.first);
	p = guard.reserved = kernel_map(NULL, guard.span + GRANULE, PROT_NONE, 0);
	guard.second = (char *)(((uintptr_t)p + GRANULE - 1) & ~(GRANULE - 1));
	return p != MAP_FAILED;
}

bool guard_stage(void)
{
	sort_closed();
	if (guard.n == 0)
		return false;
	/* No address space left: nothing has moved, the flush works in place. Only a worker of a pool that is in the same
	 * pages at this very moment could see a result before it is whole. */
	if (!second_range() || !for_each_run(shut_run))
		return false;
	/* A move that fails half-way leaves memory in two places: nothing right can follow. */
	if (!for_each_run(stage_run)) {
		replay_say("pages can't be moved (%s): stopping", strerror(errno));
		abort();
	}
	return true;
}

void guard_publish(void)
{
	if (!for_each_run(publish_run)) {
		replay_say("pages can't be moved back (%s): stopping", strerror(errno));
		abort();
	}
	kernel_unmap(guard.reserved, guard.span + GRANULE);
	all_open();
}

void *guard_staged(const void *p)
{
#ifdef TERRA_NO_GUARD_PAGES
	return (void *)p;
#endif
	return (const char *)p >= guard.first && (const char *)p < guard.first + guard.span ? in_second(p) : (void *)p;
}

bool guard_admits(const void *p, size_t n)
{
	uintptr_t g = (uintptr_t)p >> GRANULE_SHIFT, end = (((uintptr_t)p + n - 1) >> GRANULE_SHIFT) + 1;
	bool closed = false;

	if (guard.n == 0)
		return true;
	for (; g < end; g++) {
		if (g - guard.base >= guard.n_granules)
			continue;
		if (guard.state[g - guard.base].wanted != OPEN)
			return false;
		closed |= guard.state[g - guard.base].closed != OPEN;
	}
	return !closed || queue_yield(p, n);
}

/* ---- faults ---- */

static struct sigaction program_action; /* what the program thinks is installed for SIGSEGV */

/* Ours when the address is in the arena and either something waits, or it was opened since this thread ran into it. */
static bool fault_is_ours(const siginfo_t *info)
{
	static _Thread_local uint64_t epoch_of_last;
	static _Thread_local const void *last;
	bool again = last == info->si_addr && epoch_of_last == guard.epoch; /* what was done at the first try did not help */

	/* MAPERR: it came between the two halves of a move. */
	if ((info->si_code != SEGV_ACCERR && info->si_code != SEGV_MAPERR) || !arena_owns_address(info->si_addr))
		return false;
	if (again && guard.n == 0)
		return false; /* nothing of ours closed it */
	if (again || !queue_yield(info->si_addr, 1))
		queue_flush_here(FLUSH_ACCESS);
	last = info->si_addr;
	epoch_of_last = guard.epoch;
	return true;
}

static void default_action(void)
{
	struct sigaction fallback = {.sa_handler = SIG_DFL};

	guard_real_sigaction(SIGSEGV, &fallback, NULL);
}

/* As the kernel would have done with the program's own action. */
static void pass_on(int sig, siginfo_t *info, void *context)
{
	struct sigaction action = program_action;
	bool sent = info->si_code <= 0;

	if (action.sa_flags & SA_RESETHAND)
		program_action.sa_handler = SIG_DFL;
	if (action.sa_flags & SA_SIGINFO) {
		action.sa_sigaction(sig, info, context);
	} else if (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN) {
		action.sa_handler(sig);
	} else if (sent && action.sa_handler == SIG_IGN) {
		return;
	} else {
		default_action(); /* a fault repeats at once and ends the process as it would have */
		if (sent)
			tgkill(getpid(), gettid(), sig);
	}
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	int saved = errno;

	if (!fault_is_ours(info))
		pass_on(sig, info, context);
	errno = saved;
}

/* One touched page there and back: old kernels (before 5.7) can't. */
static bool try_staging(void)
{
	const int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
	char *p = kernel_memory(8192);
	bool works;

	if (p == NULL)
		return false;
	*p = 42;
	works = kernel_move(p, 4096, flags, p + 4096) == p + 4096 && p[4096] == 42 &&
		kernel_move(p + 4096, 4096, flags, p) == p && *p == 42;
	kernel_unmap(p, 8192);
	return works;
}

int guard_init(void)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER | SA_ONSTACK};

	void *base;
	size_t size;

	arena_range(&base, &size);
	guard.base = (uintptr_t)base >> GRANULE_SHIFT;
	guard.n_granules = size >> GRANULE_SHIFT;
	guard.state = kernel_memory(guard.n_granules * sizeof(*guard.state));
	if (guard.state == NULL)
		return -ENOMEM;
	guard.can_stage = try_staging();
	sigemptyset(&action.sa_mask);
	guard_unblock();
	return guard_real_sigaction(SIGSEGV, &action, &program_action) == 0 ? 0 : -errno;
}

bool guard_program_action(const struct sigaction *act, struct sigaction *old)
{
	if (old != NULL)
		*old = program_action;
	if (act != NULL)
		program_action = *act;
	return true;
}
