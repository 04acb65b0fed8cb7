/* ahead.h - which pages a batch of waiting work will need closed: those that the last one needed which began alike.
 *
 * Closing costs a system call and interrupts the other processors, so what would be closed piece by piece as ops arrive
 * is closed at once when the first one does. A guess: what is closed and not needed costs speed, never an answer.
 */
#ifndef TERRA_REPLAY_AHEAD_H
#define TERRA_REPLAY_AHEAD_H

#include <stdbool.h>
#include <stdint.h>

/* A batch that needs more is not remembered. */
#define AHEAD_RUNS 16
#define AHEAD_MAX 1024 /* granules */

struct ahead_run { /* adjacent granules */
	uintptr_t first;
	uint32_t n;
	bool none; /* closed to reads, too */
};

struct ahead_set { /* by address, no two runs adjacent */
	uint32_t n_runs;
	uint32_t n_granules;
	uint32_t calls; /* that it took, or would have, to close them as they were needed */
	struct ahead_run run[AHEAD_RUNS];
};

void ahead_clear(struct ahead_set *set, uint32_t calls);
/* Adds a granule, in order of their numbers. False: the set is full. */
bool ahead_add(struct ahead_set *set, uintptr_t granule, bool none);

/* A batch begins at this place with an op that writes in this granule. */
uint64_t ahead_key(uint64_t place, uintptr_t granule);
/* What to close at once; NULL: nothing, it is not known well enough or gains nothing. Valid until ahead_note. */
const struct ahead_set *ahead_find(uint64_t key);
/* The batch has ended and needed this. `touched`: the program touched what was closed and not needed. */
void ahead_note(uint64_t key, const struct ahead_set *needed, bool touched);

#endif
