/* arena_policy.c - how much free memory the arena keeps.
 *
 * Two wishes: a training step, in which live memory rises from the parameters to its peak and falls back, must find
 * all its memory warm; and a program must not look hungrier than without us.
 *
 * Budget: resident memory (live and kept) stays below the largest live size since the program last shrank, plus a
 * twentieth and SLACK. Address space beyond that gets the memory of free spans, moved there.
 *
 * Shrinking: time is measured in bytes allocated, in epochs of half the peak, since a step allocates about as much
 * every time while its duration says nothing. The floor is the lowest live size in the last `window` epochs, which span
 * a step or more: what the program holds all the time. When live memory drops below it by more than an eighth, it is
 * not the step's oscillation: all but a little is given back, at that very free. A program whose steps are longer than
 * the window looks as if it shrank each time; it is found out by taking the memory again within a window, and the
 * window doubles (up to 64 epochs): after a few steps that stops.
 *
 * A young program has no such history: its lowest values are those of its start. There, one run of frees with no
 * allocation in between that takes away three quarters of what was live is shrinking too; but when that turns out to be
 * the program's habit (an output that holds a whole graph, replaced each time), it no longer counts.
 *
 * A slow decline moves the floor along and is never "shrinking"; so when the peak of the last N_EPOCHS epochs is far
 * below what is resident, the difference is given back as well.
 */
#include "replay/arena_internal.h"

#define SLACK (16ull << 20)
#define N_EPOCHS 16
#define WINDOW_FIRST 4
#define STRETCH_MAX 2
#define EPOCH_MIN (32ull << 20)

struct epoch {
	uint64_t min, max;
};

static struct {
	uint64_t live, resident;
	uint64_t peak; /* of live, since the program last shrank */
	uint64_t run_start; /* live when the present run of frees began */
	uint64_t trigger;   /* below it the program shrinks: an eighth under the floor */

	struct epoch epochs[N_EPOCHS]; /* ring; `epoch` is the current one */
	unsigned epoch, n_complete;
	uint64_t volume; /* bytes allocated in it */
	unsigned window, stretch;

	uint64_t returned; /* given back by the last shrinking, 0 when that is long ago... */
	uint64_t retaken;  /* ...and taken again since */
	unsigned watch;    /* epochs for which that is still watched */
	bool by_run;       /* that shrinking was a run of frees */
	bool runs_usual;

	uint64_t peak_live, peak_resident, n_alloc, n_free, n_fresh, trimmed, moved;
} policy = {.window = WINDOW_FIRST};

static uint64_t budget(uint64_t live)
{
	return live + live / 20 + SLACK;
}

static void trim_to(uint64_t resident)
{
	if (policy.resident <= resident)
		return;
	heap_trim(policy.resident - resident);
}

static void set_floor(uint64_t floor)
{
	uint64_t drop = floor / 8 > SLACK ? floor / 8 : SLACK;

	policy.trigger = floor > drop ? floor - drop : 0;
}

static void shrink(bool by_run)
{
	uint64_t before = policy.resident;

	slab_release_empty();
	trim_to(budget(policy.live));
	set_floor(policy.live);
	policy.peak = policy.run_start = policy.live;
	for (unsigned i = 0; i < N_EPOCHS; i++)
		policy.epochs[i].max = policy.live;
	if (before > policy.resident) {
		policy.returned = before - policy.resident + (policy.watch ? policy.returned : 0);
		policy.retaken = 0;
		policy.watch = policy.window;
		policy.by_run = by_run || policy.by_run;
	}
}

/* Memory was given back and then needed again soon: the window was shorter than the program's step. */
static void regret(void)
{
	policy.watch = 0;
	if (policy.by_run) {
		policy.runs_usual = true;
		policy.by_run = false;
	} else if (policy.window < N_EPOCHS) {
		policy.window *= 2;
	} else if (policy.stretch < STRETCH_MAX) {
		policy.stretch++;
	}
}

static uint64_t epoch_length(void)
{
	uint64_t length = policy.peak / 2 > EPOCH_MIN ? policy.peak / 2 : EPOCH_MIN;

	return length << policy.stretch;
}

/* Near a limit, memory that others may need soon isn't kept. `fresh` is about to be taken. */
static void respect_limit(uint64_t fresh)
{
	uint64_t room = limit_headroom(), kept = policy.resident - policy.live;

	if (room == UINT64_MAX)
		return;
	room = room > fresh ? (room - fresh) / 2 : 0;
	if (kept > room)
		heap_trim(kept - room);
}

static void next_epoch(void)
{
	uint64_t floor = UINT64_MAX, peak = 0;

	policy.n_complete++;
	for (unsigned i = 0; i < N_EPOCHS; i++) {
		const struct epoch *epoch = &policy.epochs[(policy.epoch - i) % N_EPOCHS];

		if (i < policy.window && epoch->min < floor)
			floor = epoch->min;
		if (epoch->max > peak)
			peak = epoch->max;
	}
	policy.epoch = (policy.epoch + 1) % N_EPOCHS;
	policy.epochs[policy.epoch] = (struct epoch){policy.live, policy.live};
	policy.volume = 0;
	set_floor(policy.n_complete < policy.window ? 0 : floor);
	if (policy.watch && !--policy.watch)
		policy.by_run = false;
	if (policy.resident > budget(peak + peak / 4)) {
		policy.peak = peak;
		trim_to(budget(peak));
	}
	respect_limit(0);
}

void policy_note_alloc(uint64_t bytes)
{
	struct epoch *epoch = &policy.epochs[policy.epoch];

	policy.n_alloc++;
	policy.live += bytes;
	policy.run_start = policy.live;
	if (policy.live > epoch->max)
		epoch->max = policy.live;
	if (policy.live > policy.peak)
		policy.peak = policy.live;
	if (policy.live > policy.peak_live)
		policy.peak_live = policy.live;
	policy.volume += bytes;
	if (policy.volume >= epoch_length())
		next_epoch();
}

static bool most_freed_at_once(void)
{
	return !policy.runs_usual && policy.live < policy.run_start / 4 && policy.run_start - policy.live > 2 * SLACK;
}

void policy_note_free(uint64_t bytes)
{
	struct epoch *epoch = &policy.epochs[policy.epoch];

	policy.n_free++;
	policy.live -= bytes;
	if (policy.live < epoch->min)
		epoch->min = policy.live;
	if (policy.live < policy.trigger)
		shrink(false);
	else if (most_freed_at_once())
		shrink(true);
}

uint64_t policy_recycle(uint64_t bytes, uint64_t block_bytes)
{
	uint64_t live = policy.live + block_bytes, peak = live > policy.peak ? live : policy.peak;
	uint64_t after = policy.resident + bytes, excess = after > budget(peak) ? after - budget(peak) : 0;

	policy.n_fresh++;
	if (excess < bytes)
		respect_limit(bytes - excess);
	return excess < bytes ? excess : bytes;
}

void policy_note_backed(uint64_t bytes)
{
	policy.resident += bytes;
	if (policy.resident > policy.peak_resident)
		policy.peak_resident = policy.resident;
	if (policy.watch) {
		policy.retaken += bytes;
		if (policy.retaken > policy.returned / 2)
			regret();
	}
}

void policy_note_unbacked(uint64_t bytes)
{
	policy.resident -= bytes;
	policy.trimmed += bytes;
}

void policy_note_moved(uint64_t bytes)
{
	policy.moved += bytes;
}

void policy_stats(struct arena_stats *out)
{
	*out = (struct arena_stats){
		.live_bytes = policy.live,
		.resident_bytes = policy.resident,
		.peak_live_bytes = policy.peak_live,
		.peak_resident_bytes = policy.peak_resident,
		.n_alloc = policy.n_alloc,
		.n_free = policy.n_free,
		.n_fresh = policy.n_fresh,
		.trimmed_bytes = policy.trimmed,
		.moved_bytes = policy.moved,
	};
}
