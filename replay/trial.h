/* trial.h - whether what waits at a place gains there, found out by trying both ways.
 *
 * A plan says what a region gained where it was made, without what guarding it costs. That is small beside large tensors and
 * may be more than the gain for small ones, and depends on the machine, on the sizes and on what else is in the batch. So
 * where guarding takes more than a small part of a batch's time, batches are let wait and left alone in turn, both are timed,
 * from the first op to the op at which the batch is run, and the slower way is taken no more, until a later trial.
 *
 * A place is where a batch begins (place.h). All this decides speed, never an answer. For the one thread that may have work
 * waiting. Times are nanoseconds.
 *
 * Ops that a kernel issues while it runs are not issued when it waits. So a batch's end is told by the ops that regions have,
 * by redispatch, of which kernels issue none, and by which op it was: `region_ops` is how many of those have been issued so far,
 * with those that are replaced or on lists.
 */
#ifndef TERRA_REPLAY_TRIAL_H
#define TERRA_REPLAY_TRIAL_H

#include <stdbool.h>
#include <stdint.h>

struct trial_counts {
	uint64_t trials; /* that came to a verdict */
	uint64_t lost;   /* of those, for leaving alone */
};
extern struct trial_counts trial_counts;

/* A batch could begin with the op that is being issued. Whether it shall not. */
bool trial_leaves_alone(uint64_t place, uint64_t now, uint64_t region_ops);
/* An op is issued, and nothing was done for it yet: called for each while something is timed (attention.h). `op` is a number
 * for each op, `of_region` whether it is among those that region_ops counts. Whether what was left alone ends here:
 * trial_left_alone must be called next. */
bool trial_op(uint32_t op, bool of_region, uint64_t region_ops);
void trial_left_alone(uint64_t now);
/* A batch has run, at the op that was issued last; guarding it took `guarding`. */
void trial_ran(uint64_t now, uint64_t region_ops, uint64_t guarding);
/* What is under way can't be compared: a batch was run by something that is no op, or other threads came. */
void trial_spoilt(void);

#endif
