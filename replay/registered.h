/* registered.h - whether the kernel that the dispatcher would run for an op is still the framework's own.
 *
 * A plan was checked against the framework's kernels. Programs and extensions may register others for the same ops
 * (torch.library, TORCH_LIBRARY_IMPL), also while the program runs: those are asked, as they would be without us.
 */
#ifndef TERRA_REPLAY_REGISTERED_H
#define TERRA_REPLAY_REGISTERED_H

#include "probes/op.h"
#include "replay/replay.h"

/* The keys between autograd and the backend: passed over unless an op has a kernel for them. */
#define REGISTERED_BETWEEN 2
extern const char *const registered_between[REGISTERED_BETWEEN];

/* What is known of an op; zeroed at first. */
struct registered {
	enum { REGISTERED_UNKNOWN, REGISTERED_FOUND, REGISTERED_MISSING } state;
	const void *entry; /* c10::impl::OperatorEntry */
	struct registered_kernel { /* as it was when last looked into */
		const void *at;
		uint64_t words[4];
		bool own;
	} backend, between[REGISTERED_BETWEEN];
};

/* Whether a call that reaches the CPU's kernel runs the framework's own. Some 50 ns. */
bool registered_is_own(struct registered *op, const struct terra_op *of);
/* Whether the op has no kernels between autograd and the backend, neither the framework's nor others': the keys there are
 * passed over. */
bool registered_passes_over(struct registered *op, const struct terra_op *of);

#endif
