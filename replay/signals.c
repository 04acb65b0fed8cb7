/* signals.c - SIGSEGV stays ours and unblocked, whatever the program does with signals.
 *
 * A thread that blocks SIGSEGV dies at once on a closed page, and a handler installed later (faulthandler, pytest, a JVM)
 * would replace ours. So the program's own SIGSEGV action is kept aside and called for faults that are not ours, and
 * SIGSEGV is left out of the masks that it sets. With nothing to guard (no plan in use) all calls pass unchanged.
 */
#include "replay/guard.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

#include "replay/replay.h"

volatile bool guard_active, guard_wanted;

#ifdef TERRA_NO_GUARD_SIGNALS
#define WATCHED false
#define WANTED false
#else
#define WATCHED guard_active
#define WANTED guard_wanted
#endif

#define REAL(name, type)                                                                                               \
	static type real;                                                                                              \
	if (real == NULL)                                                                                              \
		real = (type)dlsym(RTLD_NEXT, name)

typedef int (*sigaction_fn)(int, const struct sigaction *, struct sigaction *);
typedef int (*mask_fn)(int, const sigset_t *, sigset_t *);

int guard_real_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	REAL("sigaction", sigaction_fn);
	return real(sig, act, old);
}

REPLAY_EXPORT int sigaction(int sig, const struct sigaction *restrict act, struct sigaction *restrict old)
{
	if (sig == SIGSEGV && WATCHED) {
		guard_program_action(act, old);
		return 0;
	}
	return guard_real_sigaction(sig, act, old);
}

REPLAY_EXPORT sighandler_t signal(int sig, sighandler_t handler)
{
	typedef sighandler_t (*signal_fn)(int, sighandler_t);
	REAL("signal", signal_fn);

	if (sig == SIGSEGV && WATCHED) {
		struct sigaction act = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;

		guard_program_action(&act, &old);
		return old.sa_handler;
	}
	return real(sig, handler);
}

void guard_unblock(void)
{
#ifndef TERRA_NO_GUARD_SIGNALS
	sigset_t set;
	REAL("pthread_sigmask", mask_fn);

	sigemptyset(&set);
	sigaddset(&set, SIGSEGV);
	real(SIG_UNBLOCK, &set, NULL);
#endif
}

void guard_hold_signals(sigset_t *old)
{
	sigset_t set;
	REAL("pthread_sigmask", mask_fn);

	sigfillset(&set);
	sigdelset(&set, SIGSEGV);
	real(SIG_BLOCK, &set, old);
}

void guard_release_signals(const sigset_t *old)
{
	REAL("pthread_sigmask", mask_fn);

	real(SIG_SETMASK, old, NULL);
}

/* `set` without SIGSEGV where that would block it. */
static const sigset_t *unblocked(int how, const sigset_t *set, sigset_t *copy)
{
	if (set == NULL || how == SIG_UNBLOCK || !WANTED || sigismember(set, SIGSEGV) != 1)
		return set;
	*copy = *set;
	sigdelset(copy, SIGSEGV);
	return copy;
}

REPLAY_EXPORT int sigprocmask(int how, const sigset_t *restrict set, sigset_t *restrict old)
{
	sigset_t copy;
	REAL("sigprocmask", mask_fn);

	return real(how, unblocked(how, set, &copy), old);
}

REPLAY_EXPORT int pthread_sigmask(int how, const sigset_t *restrict set, sigset_t *restrict old)
{
	sigset_t copy;
	REAL("pthread_sigmask", mask_fn);

	return real(how, unblocked(how, set, &copy), old);
}
