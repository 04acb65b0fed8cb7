/* place.h - where in the program it does not pay to let ops wait.
 *
 * A beginning that goes on as no region does costs its guards and gains nothing. Whether it will go on is known only by
 * what happened before at the same place. A place is the last few ops that some region has, with their sizes. It is a
 * guess and may be wrong either way: it decides speed, never an answer.
 *
 * Unit of time: about what the framework takes for one op at that place.
 */
#ifndef TERRA_REPLAY_PLACE_H
#define TERRA_REPLAY_PLACE_H

#include <stdbool.h>
#include <stdint.h>

/* An op was issued: the next place. Returns its key. Called by the one thread that may have work waiting. */
uint64_t place_enter(uint32_t op, int64_t numel);
/* Whether to let nothing begin here. */
bool place_is_losing(uint64_t key);
/* Of what began here, `saved` op times were saved by fusing, and `in_vain` ops waited and were run one by one. */
void place_note(uint64_t key, double saved, uint32_t in_vain);

#endif
