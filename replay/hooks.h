/* hooks.h - installing the hooks, and what they call. */
#ifndef TERRA_REPLAY_HOOKS_H
#define TERRA_REPLAY_HOOKS_H

#include "probes/op.h"
#include "replay/replay.h"

/* Reads the op table and gives every redispatch entry point its stub. 0 or -errno with a message. */
int hooks_prepare(const struct terra_plan *plan, char *why, size_t size);
/* The number that calls of this op carry, -1 when the library has no such op. Valid after hooks_prepare. */
int hooks_op_number(const char *name, void *unused);
/* Redirects the calls. Slots written, or -errno. */
int hooks_install(void);

/* Called by trampoline.S for every op that a region has, and for all others while something waits. 1: answered. */
int hook_enter(uint32_t number, struct hook_regs *regs);

#endif
