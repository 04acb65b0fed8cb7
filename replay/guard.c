/* guard.c - memory that waits can't be seen: its pages are closed, and the first touch runs what waits.
 *
 * Results that wait are closed to every access, what waiting work still reads is closed to writes. Protection is in
 * granules of 2 MB, so that huge pages stay whole; what else lies in a granule pays with a flush when it is touched,
 * never with an answer. Protection is the process's: while a flush runs its pages are open to all threads, which is
 * why nothing waits while a second program thread exists (threads.c).
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
#include <sys/mman.h>
#include <sys/ucontext.h>

#include "replay/arena.h"
#include "replay/replay.h"

#define GRANULE_SHIFT 21
#define GRANULE ((size_t)1 << GRANULE_SHIFT)
#define SLOTS 32768 /* power of two: 64 GB of distinct granules before two share a slot */
#define CLOSED_MAX 4096

enum { OPEN, READ_ONLY, NONE };

static struct {
	uintptr_t granule[CLOSED_MAX]; /* numbers of closed granules, in order of closing */
	uint32_t n;
	uint8_t state[SLOTS];          /* by number modulo SLOTS: the strictest of the granules that share the slot */
	volatile uint64_t epoch;       /* openings so far */
} guard;

/* ---- closing and opening ---- */

static void close_run(uintptr_t first, uintptr_t end, uint8_t state)
{
#ifdef TERRA_NO_GUARD_PAGES
	return;
#endif
	if (first == end)
		return;
	arena_protect((void *)(first << GRANULE_SHIFT), (end - first) << GRANULE_SHIFT, state == NONE ? PROT_NONE : PROT_READ);
}

static bool note_closed(uintptr_t g, uint8_t state)
{
	uint8_t *now = &guard.state[g % SLOTS];

	if (*now >= state)
		return false;
	if (*now == OPEN) {
		if (guard.n == CLOSED_MAX)
			return false;
		guard.granule[guard.n++] = g;
	}
	*now = state;
	return true;
}

void guard_close(const void *p, size_t n, bool none)
{
	uintptr_t g = (uintptr_t)p >> GRANULE_SHIFT, end = (((uintptr_t)p + n - 1) >> GRANULE_SHIFT) + 1, run = g;
	uint8_t state = none ? NONE : READ_ONLY;

#ifdef TERRA_NO_GUARD_INPUTS
	if (!none)
		return;
#endif
#ifdef TERRA_NO_GUARD_RESULTS
	if (none)
		return;
#endif
	for (; g < end; g++) {
		if (note_closed(g, state))
			continue;
		close_run(run, g, state);
		run = g + 1;
	}
	close_run(run, end, state);
}

bool guard_has_room(size_t bytes)
{
	return guard.n + (bytes >> GRANULE_SHIFT) + 2 < CLOSED_MAX;
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

void guard_open(void)
{
	sort_closed();
	for (uint32_t i = 0, first = 0; i < guard.n; i++) {
		uintptr_t next = guard.granule[i] + 1;

		guard.state[guard.granule[i] % SLOTS] = OPEN;
		if (i + 1 < guard.n && guard.granule[i + 1] == next)
			continue;
#ifndef TERRA_NO_GUARD_PAGES
		arena_protect((void *)(guard.granule[first] << GRANULE_SHIFT), (next - guard.granule[first]) << GRANULE_SHIFT,
			      PROT_READ | PROT_WRITE);
#endif
		first = i + 1;
	}
	guard.n = 0;
	guard.epoch++;
}

bool guard_covers(const void *p, size_t n)
{
	uintptr_t g = (uintptr_t)p >> GRANULE_SHIFT, end = (((uintptr_t)p + n - 1) >> GRANULE_SHIFT) + 1;

	if (guard.n == 0)
		return false;
	for (; g < end; g++)
		if (guard.state[g % SLOTS] != OPEN)
			return true;
	return false;
}

/* ---- faults ---- */

static struct sigaction program_action; /* what the program thinks is installed for SIGSEGV */

/* Ours when the address is in the arena and either something waits, or a flush opened it since this thread ran into it. */
static bool fault_is_ours(const siginfo_t *info)
{
	static _Thread_local uint64_t epoch_of_last;
	static _Thread_local const void *last;

	if (info->si_code != SEGV_ACCERR || !arena_owns_address(info->si_addr))
		return false;
	if (guard.n == 0 && last == info->si_addr && epoch_of_last == guard.epoch)
		return false; /* nothing of ours closed it: the second try failed too */
	queue_flush_here(FLUSH_ACCESS);
	last = info->si_addr;
	epoch_of_last = guard.epoch;
	return true;
}

static void pass_on(int sig, siginfo_t *info, void *context)
{
	if (program_action.sa_flags & SA_SIGINFO) {
		program_action.sa_sigaction(sig, info, context);
	} else if (program_action.sa_handler != SIG_DFL && program_action.sa_handler != SIG_IGN) {
		program_action.sa_handler(sig);
	} else {
		struct sigaction fallback = {.sa_handler = SIG_DFL};

		guard_real_sigaction(SIGSEGV, &fallback, NULL); /* back at the instruction, it dies as it would have */
	}
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	int saved = errno;

	if (!fault_is_ours(info))
		pass_on(sig, info, context);
	errno = saved;
}

int guard_init(void)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER};

	sigemptyset(&action.sa_mask);
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
