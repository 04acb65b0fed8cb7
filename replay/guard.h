/* guard.h - what guard.c offers to signals.c and queue.c beyond replay.h. */
#ifndef TERRA_REPLAY_GUARD_H
#define TERRA_REPLAY_GUARD_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

/* Whether as many bytes can still be closed. */
bool guard_has_room(size_t bytes);
/* The program asks for, or sets, its SIGSEGV action: kept for faults that are not ours. */
bool guard_program_action(const struct sigaction *act, struct sigaction *old);
/* libc's sigaction (signals.c). */
int guard_real_sigaction(int sig, const struct sigaction *act, struct sigaction *old);
/* True once guard_init has run. */
extern volatile bool guard_active;

#endif
