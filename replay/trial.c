/* trial.c - which way is faster at a place, and when that is asked. See trial.h.
 *
 * What is compared are medians of times between the same two ops of the program, Python between them included. A place where
 * batches end at different ops can't be compared and keeps its batches.
 */
#include "replay/trial.h"

#include <stddef.h>

#include "replay/attention.h"

#define ENTRIES_LOG2 8
#define ENTRIES (1 << ENTRIES_LOG2)
#define STRENGTH_NEW 2	  /* of two places with one entry that take turns, one keeps it, and the other goes untried */
#define STRENGTH_MAX 64	  /* times that others must come before a place loses its entry */
#define LOOK 8		  /* batches that are looked at before it is asked whether a trial is due */
#define SUSPECT 16	  /* it is when guarding took more than this part of the time of most */
#define SAMPLES 24	  /* of each way */
#define SAMPLES_MIN 8	  /* enough where one way takes a quarter more time than the other */
#define FAILURES_MAX 64	  /* windows that could not be compared before a trial is given up */
#define MARGIN 16	  /* waiting must gain this part: what is left alone is still looked up */
#define REST_MIN 1024	  /* batches from a verdict to the next trial; doubled when that has the same verdict */
#define REST_MAX (1 << 20)

enum way { WAIT, ALONE, WAYS };

struct end { /* of a batch: the op at which it ran */
	uint32_t op;
	bool of_region;
	uint32_t region_ops; /* behind the first op, itself included */
	uint32_t same;	     /* times that this op was issued until then, itself included */
};

static struct entry {
	uint64_t key;
	uint32_t strength; /* 0: the entry is free */
	bool ended;	   /* one batch at least */
	struct end end;	   /* of the last one */
	uint32_t rest, resting; /* batches that go by without a trial: after a verdict, and still to come */
	uint32_t looked, suspect; /* batches, and those of them whose guarding took much */
	bool trying, lost;
	uint32_t failures, n[WAYS];
	uint64_t sample[WAYS][SAMPLES];
} entries[ENTRIES];

static struct {
	struct entry *entry; /* NULL: nothing is being timed */
	enum way way;
	uint64_t begin, first; /* time, and number of the first op among those of regions */
	uint32_t op, same;     /* the last op; those that are the one at which the last batch ended */
	bool of_region;
} window;

/* While fewer ops of regions than this were issued, all are left alone: a part of a batch might gain less than all of it, and
 * cost as much. */
static uint64_t alone_until;

struct trial_counts trial_counts;
volatile struct replay_attention replay_attention;

static struct entry *entry_of(uint64_t key)
{
	struct entry *entry = &entries[key >> (64 - ENTRIES_LOG2)];

	if (entry->strength != 0 && entry->key == key) {
		entry->strength += entry->strength < STRENGTH_MAX;
		return entry;
	}
	if (entry->strength != 0 && --entry->strength != 0)
		return NULL;
	*entry = (struct entry){.key = key, .strength = STRENGTH_NEW};
	return entry;
}

/* ---- verdicts ---- */

static uint64_t median(uint64_t *x, uint32_t n)
{
	for (uint32_t i = 1; i < n; i++)
		for (uint32_t j = i; j > 0 && x[j - 1] > x[j]; j--) {
			uint64_t larger = x[j - 1];

			x[j - 1] = x[j];
			x[j] = larger;
		}
	return x[n / 2];
}

static void rest(struct entry *entry, uint32_t batches)
{
	entry->trying = false;
	entry->rest = entry->resting = batches < REST_MAX ? batches : REST_MAX;
	entry->looked = entry->suspect = entry->failures = entry->n[WAIT] = entry->n[ALONE] = 0;
}

/* What does not gain is not used. */
static void judge(struct entry *entry, bool lost)
{
	bool same = lost == entry->lost;

	trial_counts.trials++;
	trial_counts.lost += lost;
	entry->lost = lost;
	rest(entry, entry->rest != 0 && same ? 2 * entry->rest : REST_MIN);
}

static void judge_if_clear(struct entry *entry)
{
	uint64_t wait = median(entry->sample[WAIT], entry->n[WAIT]), alone = median(entry->sample[ALONE], entry->n[ALONE]);

	if (entry->n[WAIT] == SAMPLES || 4 * wait > 5 * alone || 4 * alone > 5 * wait)
		judge(entry, MARGIN * wait >= (MARGIN - 1) * alone);
}

static void look(struct entry *entry, uint64_t time, uint64_t guarding)
{
	entry->suspect += guarding * SUSPECT > time;
	if (++entry->looked < LOOK)
		return;
	entry->trying = 2 * entry->suspect > LOOK;
	entry->looked = entry->suspect = 0;
}

static void take_sample(struct entry *entry, enum way way, uint64_t time)
{
	uint32_t n = entry->n[way];

	if (n < SAMPLES) {
		entry->sample[way][n] = time;
		entry->n[way] = n + 1;
	}
	if (entry->n[WAIT] == entry->n[ALONE] && entry->n[WAIT] >= SAMPLES_MIN)
		judge_if_clear(entry);
}

static void fail(struct entry *entry)
{
	if (!entry->trying || ++entry->failures < FAILURES_MAX)
		return;
	entry->lost = false; /* if it was: not any more that we know */
	rest(entry, REST_MIN);
}

/* ---- windows ---- */

static struct entry *window_close(void)
{
	struct entry *entry = window.entry;

	window.entry = NULL;
	replay_attention.timed = 0;
	return entry;
}

void trial_spoilt(void)
{
	struct entry *entry = window_close();

	if (entry != NULL)
		fail(entry);
}

/* The way that has fewer samples. */
static enum way next_way(const struct entry *entry)
{
	return entry->ended && entry->n[ALONE] < entry->n[WAIT] ? ALONE : WAIT;
}

static bool rests(struct entry *entry)
{
	if (entry->resting == 0)
		return false;
	if (--entry->resting == 0)
		entry->trying = entry->lost; /* what is not let wait can't be looked at */
	return true;
}

static void window_open(struct entry *entry, uint64_t now, uint64_t region_ops)
{
	window.entry = entry;
	window.way = entry->trying ? next_way(entry) : WAIT;
	window.begin = now;
	window.first = region_ops;
	window.same = 0;
	replay_attention.timed = 1;
}

bool trial_leaves_alone(uint64_t place, uint64_t now, uint64_t region_ops)
{
	struct entry *entry;
	bool alone;

	if (region_ops < alone_until)
		return true;
	trial_spoilt(); /* what is being timed took another path */
	entry = entry_of(place);
	if (entry == NULL)
		return false;
	if (rests(entry)) {
		alone = entry->lost;
	} else {
		window_open(entry, now, region_ops);
		alone = window.way == ALONE;
	}
	/* The op at which a batch ended may begin the next. */
	alone_until = alone ? region_ops + entry->end.region_ops + !entry->end.of_region : 0;
	return alone;
}

static struct end end_here(uint64_t region_ops)
{
	return (struct end){window.op, window.of_region, (uint32_t)(region_ops - window.first), window.same};
}

static bool same_end(struct end a, struct end b)
{
	return a.op == b.op && a.region_ops == b.region_ops && a.same == b.same;
}

bool trial_op(uint32_t op, bool of_region, uint64_t region_ops)
{
	const struct entry *entry = window.entry;

	if (entry == NULL)
		return false;
	window.op = op;
	window.of_region = of_region;
	window.same += op == entry->end.op;
	if (window.way == WAIT) {
		if (replay_attention.pending == 0)
			trial_spoilt(); /* its first op did not wait, for another reason than ours */
		return false;
	}
	if (same_end(end_here(region_ops), entry->end))
		return true;
	if (region_ops - window.first > entry->end.region_ops)
		trial_spoilt();
	return false;
}

void trial_left_alone(uint64_t now)
{
	struct entry *entry = window_close();

	if (entry != NULL) /* another thread may have spoilt it just now */
		take_sample(entry, ALONE, now - window.begin);
}

void trial_ran(uint64_t now, uint64_t region_ops, uint64_t guarding)
{
	struct entry *entry = window.entry;
	struct end end = end_here(region_ops);
	bool same;

	if (entry == NULL || window.way == ALONE)
		return;
	same = entry->ended && same_end(end, entry->end);
	if (entry->end.op != end.op)
		end.same = 0; /* others were counted: known next time */
	window_close();
	entry->ended = true;
	entry->end = end;
	if (!same)
		fail(entry);
	else if (entry->trying)
		take_sample(entry, WAIT, now - window.begin);
	else
		look(entry, now - window.begin, guarding);
}
