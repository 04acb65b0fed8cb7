/* dispatch.h - where the dispatcher would send a call.
 *
 * Ops that the parts of a list op need are issued below autograd. In-place ones are redispatched once more, to count
 * versions; others go to the backend's kernel from their `call`, and no keyset is passed that would say so.
 */
#ifndef TERRA_REPLAY_DISPATCH_H
#define TERRA_REPLAY_DISPATCH_H

#include "probes/op.h"
#include "replay/replay.h"

/* Learns what is needed, at the first use, from within an op: makes tensors. False: no call's way is known. */
bool dispatch_known(void);
/* Whether a call goes to the CPU's kernel at once, with nobody watching, where the op has no kernels between autograd and that
 * (registered_passes_over). */
bool dispatch_to_cpu(const struct terra_op *op, const struct hook_regs *regs);

#endif
