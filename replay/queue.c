/* queue.c - work that waits: region instances in program order, and how they are run.
 *
 * An instance is one run through the trie (match.c). It grows op by op; when no region goes on with the next op it is
 * closed: its longest accepted prefix runs as that region's kernel, ops behind it one by one by the plan's fallback
 * kernels. Everything needed to run is plain memory, so a flush never enters the framework: it may happen in a fault
 * handler.
 *
 * Several instances may be open; choose.c says which of them an op goes on with.
 *
 * Instances that touch none of each other's results form a wave and are run together on all threads.
 */
#include "replay/queue.h"

#include <immintrin.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "replay/arena.h"
#include "replay/blocks.h"
#include "probes/clock.h"
#include "replay/guard.h"
#include "replay/kernel.h"
#include "replay/place.h"
#include "replay/trial.h"

#define QUEUE_MAX 1024       /* instances */
#define QUEUE_MAX_PLAIN 96   /* when none of them began in a list */
#define QUEUE_MIN_NUMEL 64   /* smaller domains are not worth a page */
#define FEED_MAX 1024        /* bytes of a tensor outside the arena that are copied as a feed */
#define FEED_SPACE (64 * 1024)
/* A region under way is cut short only by more than this many caps: its temporaries are mostly dead when it ends, and memory
 * that was never touched costs nothing, while a cut would write them all. */
#define OPEN_CAP_FACTOR 8
#define PARALLEL_MIN 32768   /* elements of a wave below which threads do not pay */
#define PIECE_BLOCKS 16      /* of a wave that a thread takes at a time, at most: some 10 us of work */
#define PIECES_PER_THREAD 8  /* at least, where there are so many blocks */
#define SCRATCH_FLOATS ((TERRA_PLAN_MAX_OPS + TERRA_PLAN_MAX_INPUTS) * TERRA_KERNEL_BLOCK)
#define SCRATCH_THREADS 64

struct waiting waiting;

static struct {
	struct terra_plan *plan;
	size_t work_bytes, held_bytes;
	size_t outside_bytes; /* of inputs that were not waiting */
	char *feeds;
	size_t feeds_used;
	float *scratch;
	bool closed;           /* every page that had to be closed is */
	bool staged;           /* this flush works on moved pages */
	_Atomic pid_t lock;    /* tid of the holder, 0: free */
	volatile uint64_t epoch; /* flushes so far */
} queue;

static pid_t self_tid(void)
{
	static _Thread_local pid_t tid;

	if (tid == 0)
		tid = gettid(); /* not syscall(): that is one of our own wrappers */
	return tid;
}

int queue_init(struct terra_plan *plan)
{
	queue.plan = plan;
	waiting.instances = kernel_memory(QUEUE_MAX * sizeof(*waiting.instances));
	queue.feeds = kernel_memory(FEED_SPACE);
	queue.scratch = kernel_memory(sizeof(float) * SCRATCH_FLOATS * SCRATCH_THREADS);
	queue.closed = true;
	return waiting.instances && queue.feeds && queue.scratch ? blocks_init() : -1;
}

/* True when the lock was taken; false when this thread already holds it (a fault inside a hook). */
static bool queue_lock(void)
{
	pid_t me = self_tid();
	pid_t holder = 0;

	while (!atomic_compare_exchange_weak_explicit(&queue.lock, &holder, me, memory_order_acquire, memory_order_relaxed)) {
		if (holder == me)
			return false;
		holder = 0;
		_mm_pause();
	}
	return true;
}

static void queue_unlock(bool taken)
{
	if (taken)
		atomic_store_explicit(&queue.lock, 0, memory_order_release);
}

/* ---- taking an op ---- */

/* The tensor's bytes as a feed, for memory that others could write unnoticed. NULL: too large. */
static const float *feed_copy(const struct tensor_view *t, int64_t span)
{
	size_t bytes = (size_t)span * sizeof(float);
	const float *copy;

	if (bytes > FEED_MAX || queue.feeds_used + bytes > FEED_SPACE)
		return NULL;
	copy = memcpy(queue.feeds + queue.feeds_used, t->data, bytes);
	queue.feeds_used += (bytes + 63) & ~(size_t)63;
	return copy;
}

/* Whether every tensor that the op brings in is memory whose reads and writes may be late. */
static bool inputs_are_ours(const struct call *call, const struct binding *binding)
{
#ifdef TERRA_NO_GUARD_FOREIGN
	return true;
#endif
	for (uint32_t i = 0; i < call->n_args; i++) {
		const struct tensor_view *t = &call->arg[i].t;

		if (binding->token[i].type == 'i' && !arena_contains(t->data, op_bytes(call), NULL, NULL))
			return false;
		if (strchr("br", binding->token[i].type) != NULL && !arena_contains(t->data, binding->span[i] * sizeof(float), NULL, NULL) &&
		    binding->span[i] * sizeof(float) > FEED_MAX)
			return false;
	}
	return !call->in_place || arena_contains(call->arg[0].t.data, op_bytes(call), NULL, NULL);
}

/* Whether an instance before it, by number + 1, would be run in the same wave. */
static bool stays_behind(const struct instance *inst, uint32_t behind)
{
	if (behind == 0)
		return false;
	for (uint32_t i = (uint32_t)(inst - waiting.instances); i >= behind; i--)
		if (waiting.instances[i].wave_start)
			return false;
	return true;
}

static bool input_add(struct instance *inst, const struct call *call, const struct binding *binding, uint32_t i,
		      uint32_t number)
{
	const struct tensor_view *t = &call->arg[i].t;
	uint32_t j = inst->n_inputs++;
	void *base;

	inst->input_span[j] = binding->token[i].type == 'i' ? call->numel : binding->span[i];
	inst->full[j] = binding->token[i].type == 'i';
	inst->input[j] = t->data;
	if (!inst->full[j])
		inst->strided[j] = binding->strided[i];
	base = block_base(t->data, (size_t)inst->input_span[j] * sizeof(float));
#ifdef TERRA_NO_GUARD_FOREIGN
	if (base == NULL)
		return false;
#endif
	if (base == NULL) {
		/* inputs_are_ours said that it is small enough; a full feed space was flushed before. */
		inst->strided[j].data = feed_copy(t, inst->input_span[j]);
		inst->input[j] = NULL;
		return false;
	}
	/* What the op itself writes is closed as its result, altogether. */
	if (!call->in_place || i > 0)
		queue.closed &= guard_close(t->data, (size_t)inst->input_span[j] * sizeof(float), false);
	queue.work_bytes += (size_t)inst->input_span[j] * sizeof(float);
	if (block_find(base) == NULL)
		queue.outside_bytes += (size_t)inst->input_span[j] * sizeof(float);
	return stays_behind(inst, block_use(base, number, false));
}

static struct instance *instance_begin(const struct call *call, const struct choice *choice, uint64_t place)
{
	struct instance *inst = &waiting.instances[waiting.n];

	inst->node = match_root();
	inst->n_ops = inst->n_inputs = inst->n_scalars = 0;
	inst->accepted = NULL;
	inst->accepted_ops = 0;
	inst->numel = call->numel;
	inst->columns = 0;
	inst->mxcsr = _mm_getcsr() & ~_MM_EXCEPT_MASK;
	inst->place = place;
	inst->wave_start = waiting.n == 0;
	inst->open = true;
	inst->listed = false;
	waiting.n++;
	if (choice->listed)
		instance_begins_list(inst, choice->element);
	else
		waiting.growing = inst;
	return inst;
}

/* Appends the op; its result is at `data`. */
static void instance_grow(struct instance *inst, const struct call *call, const struct edge *edge,
			  const struct binding *binding, float *data)
{
	uint32_t number = (uint32_t)(inst - waiting.instances), k = inst->n_ops;
	bool ordered = false;

	/* First, as inputs often lie in the same pages and need no call then. */
	queue.closed &= guard_close(data, op_bytes(call), true);
	inst->scalar_at[k] = inst->n_scalars;
	for (uint32_t i = 0; i < call->n_args; i++) {
		uint8_t type = binding->token[i].type;

		/* A number that the edge has as a constant is in the kernel already. */
		if (edge->arg[i].type == 's' || edge->arg[i].type == 'f')
			inst->scalar[inst->n_scalars++] = call->arg[i].number;
		else if (strchr("ibr", type) != NULL && binding->token[i].index == inst->n_inputs)
			ordered |= input_add(inst, call, binding, i, number);
	}
	ordered |= stays_behind(inst, block_use(block_base(data, op_bytes(call)), number, true));
	inst->wave_start |= ordered;
	queue.work_bytes += op_bytes(call);
	if (!call->in_place)
		queue.held_bytes += op_bytes(call);
	if (edge->by_rows)
		inst->columns = call->size[call->ndim - 1];
	inst->result[k] = data;
	inst->edge[k] = edge;
	inst->node = edge->to;
	inst->n_ops = (uint8_t)(k + 1);
	if (edge->to->region != NULL) {
		inst->accepted = edge->to->region;
		inst->accepted_ops = inst->n_ops;
	}
}

/* Makes the result that the program gets. Data pointer, or NULL when it is not arena memory. */
static float *result_make(struct call *call)
{
	struct tensor_view t;

	if (call->in_place)
		return call->arg[0].t.data;
	framework_empty(call->result, call->size, call->ndim);
	if (!framework_view(call->result, &t) || !arena_contains(t.data, op_bytes(call), NULL, NULL))
		return NULL;
	return t.data;
}

static bool room_for_one_more(const struct call *call)
{
	size_t bytes = op_bytes(call);

	for (uint32_t i = 0; i < call->n_args; i++)
		if (call_arg_has_memory(&call->arg[i]))
			bytes += (size_t)tensor_span(&call->arg[i].t) * sizeof(int64_t);
	return guard_has_room(bytes, TERRA_PLAN_MAX_ARGS + 1) && waiting.n < (waiting.lists.seen ? QUEUE_MAX : QUEUE_MAX_PLAIN) &&
	       blocks_have_room(TERRA_PLAN_MAX_ARGS + 1) && queue.feeds_used + TERRA_PLAN_MAX_ARGS * FEED_MAX < FEED_SPACE;
}

/* ---- offering ---- */

static struct instance *take(const struct call *call, uint64_t place, const struct choice *choice, float *data)
{
	struct instance *inst = choice->inst;

	choose_closes_others(choice->listed);
	if (waiting.n == 0)
		guard_begin(place, data);
	if (inst == NULL)
		inst = instance_begin(call, choice, place);
	instance_grow(inst, call, choice->edge, &choice->binding, data);
	return inst;
}

static void flush_locked(enum flush_reason reason, bool alone);
static void queue_reset(void);

/* A list's results are all there at once without us, too. Ours have not been touched, and are little beside what was there
 * before: a chain of lists, each of the last one's results, is not. */
static bool held_by_lists(void)
{
	return waiting.lists.n_open > 0 && 2 * queue.held_bytes <= queue.outside_bytes;
}

/* Flushes when too much waits; at the next op, when it is enough. */
static void flush_at_caps(void)
{
	bool open = waiting.growing != NULL || waiting.lists.n_open > 0;
	bool much = queue.held_bytes >= (open ? OPEN_CAP_FACTOR : 1) * replay_config.held_cap && !held_by_lists();

	if (queue.held_bytes > replay_counts.held_peak)
		replay_counts.held_peak = queue.held_bytes;
	if (!queue.closed) /* the system refused: what can't be guarded does not wait */
		flush_locked(FLUSH_MEMORY, true);
	else if (!open)
		waiting.due = much || queue.work_bytes >= replay_config.work_cap;
	else if (much)
		flush_locked(FLUSH_MEMORY, true);
}

bool queue_is_due(void)
{
	return waiting.due;
}

void queue_list(const void *tensors, uint64_t n)
{
	if (waiting.due)
		queue_flush(FLUSH_COMPLETE);
	waiting.lists.begin = tensors;
	waiting.lists.end = waiting.lists.begin + n * sizeof(void *);
}

bool queue_offer(struct call *call)
{
	struct choice choice;
	struct instance *inst = NULL;
	uint64_t epoch, place = place_enter(call->op, call->numel);
	bool taken;
	float *data;

	if (call->numel < QUEUE_MIN_NUMEL)
		return false;
	if (waiting.due || !room_for_one_more(call))
		queue_flush(FLUSH_COMPLETE);
	if (!room_for_one_more(call))
		return false;
again:
	epoch = queue.epoch;
	choose(call, place, &choice);
	if (choice.edge == NULL || !inputs_are_ours(call, &choice.binding))
		return false;
	data = result_make(call); /* may throw: nothing of ours has changed yet */
	if (data == NULL) {
		framework_drop(call->result);
		return false;
	}
	taken = queue_lock();
	if (queue.epoch == epoch)
		inst = take(call, place, &choice, data);
	if (queue.epoch != epoch) {
		/* A signal handler of the program touched what waits, and that flushed: what we matched, and what we
		 * had begun to add, is gone. */
		queue_reset();
		queue_unlock(taken);
		if (!call->in_place)
			framework_drop(call->result);
		goto again;
	}
	replay_attention.pending++;
	replay_counts.deferred++;
	if (inst->node->n_edges == 0)
		instance_close(inst);
	flush_at_caps();
	queue_unlock(taken);
	return true;
}

/* ---- running ---- */

struct job { /* what of an instance runs as one kernel call */
	terra_kernel_fn fn;
	struct terra_kernel_args args;
	int64_t numel;
	int64_t block; /* elements between two places where it may be divided */
	int64_t first; /* its first block's number in its wave */
	uint32_t mxcsr;
};

static int64_t smaller(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static int64_t job_blocks(const struct job *job)
{
	return (job->numel + job->block - 1) / job->block;
}

/* Where the kernels find memory during this flush. */
static void *at(void *p)
{
	return queue.staged && p != NULL ? guard_staged(p) : p;
}

static bool reads_value(const struct edge *edge, uint32_t value)
{
	for (uint32_t i = 0; i < edge->n_args; i++)
		if (edge->arg[i].type == 'v' && edge->arg[i].index == value)
			return true;
	return false;
}

/* Whether a later instance has to do with the block. */
static bool used_later(const struct instance *inst, void *base)
{
	return block_is_used_behind(base, (uint32_t)(inst - waiting.instances), true);
}

/* Whether result k must reach memory: somebody still holds its block and nothing in the region overwrites it, or an op
 * behind the region's end, or a later instance, reads it. */
static bool result_is_needed(const struct instance *inst, uint32_t k, uint32_t n_fused)
{
	void *base;

	for (uint32_t m = n_fused; m < inst->n_ops; m++)
		if (reads_value(inst->edge[m], k))
			return true;
#ifdef TERRA_NO_GUARD_LIVE
	return k + 1 == n_fused;
#endif
#ifdef TERRA_NO_GUARD_HOLD
	return true;
#endif
	for (uint32_t m = k + 1; m < n_fused; m++)
		if (inst->result[m] == inst->result[k])
			return false;
	base = block_base(inst->result[k], (size_t)inst->numel * sizeof(float));
	return used_later(inst, base) || !arena_is_dead(base);
}

/* Addresses for this flush. Results keep their own in `result`: blocks are known by them. */
static void instance_locate(struct instance *inst)
{
	for (uint32_t k = 0; k < inst->n_ops; k++)
		inst->store[k] = at(inst->result[k]);
	for (uint32_t j = 0; j < inst->n_inputs; j++) {
		inst->input[j] = at(inst->input[j]);
		if (!inst->full[j])
			inst->strided[j].data = at((void *)inst->strided[j].data);
	}
}

/* By rows of `columns`, else 0; whole blocks and a little work at least. */
static int64_t block_size(int64_t columns)
{
	int64_t rows = columns > 0 && columns < TERRA_KERNEL_BLOCK ? TERRA_KERNEL_BLOCK / columns : 1;

	return columns > 0 ? columns * rows : TERRA_KERNEL_BLOCK;
}

static struct job job_for_region(struct instance *inst)
{
	struct job job = {.fn = inst->accepted->fn, .numel = inst->numel, .mxcsr = inst->mxcsr};

	for (uint32_t k = 0; k < inst->accepted_ops; k++) {
		bool needed = result_is_needed(inst, k, inst->accepted_ops);

		if (needed)
			continue;
		inst->store[k] = NULL;
		replay_region_counts[inst->accepted - queue.plan->regions].dead++;
	}
	job.block = block_size(inst->accepted->by_rows ? inst->columns : 0);
	job.args.columns = inst->columns;
	job.args.input = inst->input;
	job.args.strided = inst->strided;
	job.args.result = inst->store;
	job.args.scalar = inst->scalar;
	job.args.import = queue.plan->import_table;
	return job;
}

/* One op alone, from memory to memory: the form of it that the plan's fallback kernel was made for. */
static struct job job_for_single(struct instance *inst, uint32_t k, void **input, struct terra_strided *strided)
{
	const struct edge *edge = inst->edge[k];
	struct job job = {.fn = edge->single->fn, .numel = inst->numel, .mxcsr = inst->mxcsr};

	job.block = block_size(edge->by_rows ? inst->columns : 0);
	job.args.columns = inst->columns;
	for (uint32_t i = 0; i < edge->n_args; i++) {
		uint32_t j = edge->single_input[i];

		if (edge->arg[i].type == 'v')
			input[j] = inst->store[edge->arg[i].index];
		else if (edge->arg[i].type == 'i')
			input[j] = inst->input[edge->arg[i].index];
		else if (edge->arg[i].type == 'b' || edge->arg[i].type == 'r')
			strided[j] = inst->strided[edge->arg[i].index];
	}
	job.args.input = input;
	job.args.strided = strided;
	job.args.result = &inst->store[k];
	job.args.scalar = &inst->scalar[inst->scalar_at[k]];
	job.args.import = queue.plan->import_table;
	return job;
}

struct wave {
	struct job *jobs;
	uint32_t n;
};

static void job_run(const struct job *job, float *scratch, int64_t begin, int64_t end)
{
	struct terra_kernel_args args = job->args;
	uint32_t mxcsr = _mm_getcsr();

	args.scratch = scratch;
#ifndef TERRA_NO_GUARD_MXCSR
	_mm_setcsr(job->mxcsr);
#endif
	job->fn(&args, begin, end);
	_mm_setcsr(mxcsr);
}

/* The job that the block is of. */
static const struct job *job_of_block(const struct wave *wave, int64_t block)
{
	uint32_t low = 0, high = wave->n; /* it is one of these */

	while (high - low > 1) {
		uint32_t middle = low + (high - low) / 2;

		if (wave->jobs[middle].first <= block)
			low = middle;
		else
			high = middle;
	}
	return &wave->jobs[low];
}

/* Blocks [begin, end) of the wave, counted through its jobs. */
static void wave_run(int64_t begin, int64_t end, void *ctx)
{
	const struct wave *wave = ctx;
	float *scratch = queue.scratch + (size_t)framework_thread_number() * SCRATCH_FLOATS;

	for (const struct job *job = job_of_block(wave, begin); begin < end; job++) {
		int64_t to = smaller(end - job->first, job_blocks(job));

		job_run(job, scratch, (begin - job->first) * job->block, smaller(to * job->block, job->numel));
		begin = job->first + to;
	}
}

static void wave_execute(struct wave *wave, bool parallel)
{
	int64_t elements = 0, blocks = 0, piece;

	for (uint32_t i = 0; i < wave->n; i++) {
		elements += wave->jobs[i].numel;
		wave->jobs[i].first = blocks;
		blocks += job_blocks(&wave->jobs[i]);
	}
	if (parallel && elements >= PARALLEL_MIN) {
		piece = smaller(PIECE_BLOCKS, blocks / (framework.max_threads() * PIECES_PER_THREAD));
		framework_parallel(blocks, piece > 0 ? piece : 1, wave_run, wave);
		replay_counts.parallel++;
	} else if (blocks > 0) {
		framework_alone(blocks, wave_run, wave);
	}
	wave->n = 0;
}

static void singles_execute(struct instance *inst, bool parallel)
{
	void *input[TERRA_PLAN_MAX_ARGS];
	struct terra_strided strided[TERRA_PLAN_MAX_ARGS];

	for (uint32_t k = inst->accepted_ops; k < inst->n_ops; k++) {
		struct job job = job_for_single(inst, k, input, strided);
		struct wave wave = {&job, 1};

		wave_execute(&wave, parallel);
		replay_counts.finished_singly++;
	}
}

/* In times of one op: a region that takes half of its ops' time has saved half of them. So is one not measured. */
static double saved_by(const struct instance *inst)
{
	double gain = inst->accepted->gain > 0 ? inst->accepted->gain : 2;

	return gain > 1 ? inst->accepted_ops * (1 - 1 / gain) : 0;
}

static void instance_count(const struct instance *inst)
{
	struct region_counts *counts;

	if (inst->n_ops == 0)
		return;
	if (inst->accepted != NULL) {
		counts = &replay_region_counts[inst->accepted - queue.plan->regions];
		counts->runs++;
		counts->elements += (uint64_t)inst->numel;
		replay_counts.fused += inst->accepted_ops;
	}
	place_note(inst->place, inst->accepted ? saved_by(inst) : 0, (uint32_t)(inst->n_ops - inst->accepted_ops));
}

static void run_all(bool parallel)
{
	static struct job jobs[QUEUE_MAX]; /* under the lock, and off the small stack that a handler may have */
	struct wave wave = {jobs, 0};

	for (uint32_t i = 0; i < waiting.n; i++) {
		struct instance *inst = &waiting.instances[i];

		if (inst->wave_start)
			wave_execute(&wave, parallel);
		instance_locate(inst);
		if (inst->accepted != NULL)
			jobs[wave.n++] = job_for_region(inst);
		if (inst->accepted_ops < inst->n_ops) {
			wave_execute(&wave, parallel);
			singles_execute(inst, parallel);
		}
		instance_count(inst);
	}
	wave_execute(&wave, parallel);
}

static void queue_reset(void)
{
	guard_open();
	blocks_release();
	waiting.growing = NULL;
	waiting.lists.seen = waiting.due = false;
	waiting.lists.n_open = 0;
	queue.closed = true;
	waiting.n = 0;
	queue.work_bytes = queue.held_bytes = queue.outside_bytes = queue.feeds_used = 0;
	replay_attention.pending = 0;
}

/* Whether a flush can be sound at all places where it may be needed. */
bool queue_usable(void)
{
	return guard_can_stage();
}

/* What ended at an op can be compared with what is left alone until the same op. */
static void note_time(enum flush_reason reason)
{
	if (!replay_attention.timed)
		return;
	if (reason == FLUSH_OP || reason == FLUSH_COMPLETE)
		trial_ran(clock_now(), replay_region_ops, guard_time());
	else
		trial_spoilt();
}

/* `alone`: no other thread can be touching what waits: its pages may be open while they are filled. */
static void flush_locked(enum flush_reason reason, bool alone)
{
	if (waiting.n == 0) {
		guard_open(); /* a handler of the program came between closing ahead and the first op */
		return;
	}
	replay_counts.flushes[reason]++;
	queue.staged = !alone && guard_stage();
	if (!queue.staged)
		guard_open();
	run_all(alone);
	if (queue.staged)
		guard_publish();
	queue.epoch++;
	queue_reset();
	note_time(reason);
}

void queue_flush(enum flush_reason reason)
{
	bool taken;

	if (replay_attention.pending == 0)
		return;
	taken = queue_lock();
	flush_locked(reason, !framework_in_parallel() && replay_program_threads == 1);
	queue_unlock(taken);
}

bool queue_yield(const void *p, size_t n)
{
	bool taken = queue_lock(), yields = taken && guard_yield(p, n);

	queue_unlock(taken);
	return yields;
}

void queue_flush_here(enum flush_reason reason)
{
	bool taken = queue_lock();

	flush_locked(reason, false);
	queue_unlock(taken);
}
