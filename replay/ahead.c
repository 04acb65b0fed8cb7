/* ahead.c - what batches needed closed, by how they began. See ahead.h.
 *
 * Each batch shows, whether the set remembered was used or not, whether it would have been right: whether all of it was
 * needed. A set is used when it was right so many times in a row; a use that proves wrong doubles the number, so what
 * keeps to no pattern, or touches what will be needed later, pays ever more rarely.
 */
#include "replay/ahead.h"

#include <stddef.h>

#define ENTRIES_LOG2 8
#define ENTRIES (1 << ENTRIES_LOG2)
#define RIGHT_MAX 4096

static struct entry {
	uint64_t key;
	uint32_t right;  /* times in a row */
	uint32_t wanted; /* so many before a use; 0: the entry is free */
	bool used;       /* for the batch that is under way */
	struct ahead_set set;
} entries[ENTRIES];

void ahead_clear(struct ahead_set *set, uint32_t calls)
{
	set->n_runs = set->n_granules = 0;
	set->calls = calls;
}

bool ahead_add(struct ahead_set *set, uintptr_t granule, bool none)
{
	struct ahead_run *last = set->n_runs > 0 ? &set->run[set->n_runs - 1] : NULL;

	if (set->n_granules == AHEAD_MAX)
		return false;
	if (last != NULL && last->first + last->n == granule) {
		last->n++;
		last->none |= none;
	} else if (set->n_runs < AHEAD_RUNS) {
		set->run[set->n_runs++] = (struct ahead_run){granule, 1, none};
	} else {
		return false;
	}
	set->n_granules++;
	return true;
}

uint64_t ahead_key(uint64_t place, uintptr_t granule)
{
	return (place ^ granule) * 0x9E3779B97F4A7C15ull;
}

static struct entry *slot_of(uint64_t key)
{
	return &entries[key >> (64 - ENTRIES_LOG2)];
}

static bool is_known(const struct entry *entry, uint64_t key)
{
	return entry->wanted != 0 && entry->key == key;
}

const struct ahead_set *ahead_find(uint64_t key)
{
	struct entry *entry = slot_of(key);

	if (!is_known(entry, key) || entry->right < entry->wanted || entry->set.calls <= entry->set.n_runs)
		return NULL;
	entry->used = true;
	return &entry->set;
}

static bool run_within(const struct ahead_run *run, const struct ahead_set *set)
{
	for (uint32_t i = 0; i < set->n_runs; i++)
		if (run->first >= set->run[i].first && run->first + run->n <= set->run[i].first + set->run[i].n)
			return true;
	return false;
}

/* States are not compared: closing to reads what is only written costs little (guard.c, lower). */
static bool all_within(const struct ahead_set *part, const struct ahead_set *set)
{
	for (uint32_t i = 0; i < part->n_runs; i++)
		if (!run_within(&part->run[i], set))
			return false;
	return true;
}

static void judge(struct entry *entry, bool right)
{
	if (right && entry->right < RIGHT_MAX)
		entry->right++;
	else if (!right)
		entry->right = 0;
	if (!entry->used)
		return;
	if (right)
		entry->wanted -= entry->wanted > 1;
	else if (entry->wanted < RIGHT_MAX)
		entry->wanted *= 2;
}

void ahead_note(uint64_t key, const struct ahead_set *needed, bool touched)
{
	struct entry *entry = slot_of(key);

	if (is_known(entry, key))
		judge(entry, !touched && all_within(&entry->set, needed));
	else
		*entry = (struct entry){.key = key, .wanted = 1};
	entry->used = false;
	entry->set = *needed;
}
