/* call.h - from registers to arguments. */
#ifndef TERRA_REPLAY_CALL_H
#define TERRA_REPLAY_CALL_H

#include "probes/op.h"
#include "replay/replay.h"

/* The DispatchKeySet of a redispatch, 0 when the op has none. */
uint64_t call_keyset(const struct terra_op *op, const struct hook_regs *regs);
/* What an argument refers to, or the argument itself where it is passed by value; NULL: not in memory. */
const void *call_object(const struct terra_arg *arg, const struct hook_regs *regs);
/* Fills `call`. False: something about it is not understood, so it must run as it would without us. */
bool call_read(const struct terra_op *op, const struct hook_regs *regs, struct call *call);
/* The list that is the op's first argument. False: it is none, or not known. */
bool call_list(const struct terra_op *op, const struct hook_regs *regs, const void **tensors, uint64_t *n);
/* Whether the op is known to touch no memory that is protected now. */
bool call_is_apart(const struct terra_op *op, const struct hook_regs *regs);

#endif
