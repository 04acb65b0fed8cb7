/* guard.h - what guard.c offers to signals.c and queue.c beyond replay.h. */
#ifndef TERRA_REPLAY_GUARD_H
#define TERRA_REPLAY_GUARD_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether as many bytes can still be closed. */
bool guard_has_room(size_t bytes, uint32_t n_ranges);
/* A batch begins at this place with an op that writes at `p`: closes what it will need, if that is known. */
void guard_begin(uint64_t place, const void *p);
/* Opens [p, p + n) as far as what waits allows. False: some of it was closed no more than that, so that a touch takes a
 * flush. Under the queue's lock. */
bool guard_yield(const void *p, size_t n);
/* Moved flushes: guard_stage takes all closed pages to the second range (kernels use guard_staged addresses),
 * guard_publish puts them back, open. Only when guard_can_stage. */
bool guard_can_stage(void);
bool guard_stage(void); /* false: nothing was moved */
void guard_publish(void);
/* Lets SIGSEGV through on the calling thread. */
void guard_unblock(void);
/* Puts off the calling thread's signals, SIGSEGV excepted, until they are released. */
void guard_hold_signals(sigset_t *old);
void guard_release_signals(const sigset_t *old);
/* Where memory of the arena lies while it is staged; other addresses stay. */
void *guard_staged(const void *p);
/* The program asks for, or sets, its SIGSEGV action: kept for faults that are not ours. */
bool guard_program_action(const struct sigaction *act, struct sigaction *old);
/* libc's sigaction (signals.c). */
int guard_real_sigaction(int sig, const struct sigaction *act, struct sigaction *old);
/* True once guard_init has run. */
extern volatile bool guard_active;
/* True from the start where a plan may come to be used: masks leave SIGSEGV out. */
extern volatile bool guard_wanted;

#endif
