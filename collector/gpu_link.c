/* gpu_link.c - finds the ops that launched GPU activity. */
#include "collector/gpu_link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "collector/trace_intern.h"

#define NONE UINT32_MAX

/* An op of one thread. */
struct op {
	uint64_t seq, enter_ns;
	uint64_t open_ns; /* until when it is known to have been open: its exit, or the last event inside */
	uint32_t parent;  /* index among the thread's, NONE */
	bool ended;       /* by itself, which was seen */
};

struct thread {
	uint32_t tid;
	struct trace_buffer ops; /* struct op, by seq; times rise too */
};

struct call {
	uint64_t correlation, begin_ns;
	uint32_t thread;
};

struct link {
	uint64_t correlation, external;
};

struct gpu_linker {
	struct thread *threads;
	uint32_t n_threads;
	struct trace_buffer calls, links;
	struct gpu_link_counts counts;
};

struct gpu_linker *gpu_linker_new(void)
{
	return calloc(1, sizeof(struct gpu_linker));
}

void gpu_linker_free(struct gpu_linker *linker)
{
	if (!linker)
		return;
	for (uint32_t i = 0; i < linker->n_threads; i++)
		free(linker->threads[i].ops.data);
	free(linker->threads);
	free(linker->calls.data);
	free(linker->links.data);
	free(linker);
}

/* Ops. */

static struct op *ops_of(const struct thread *thread)
{
	return (struct op *)thread->ops.data;
}

static uint32_t n_ops(const struct thread *thread)
{
	return (uint32_t)(thread->ops.size / sizeof(struct op));
}

static struct thread *find_thread(const struct gpu_linker *linker, uint32_t tid)
{
	for (uint32_t i = 0; i < linker->n_threads; i++)
		if (linker->threads[i].tid == tid)
			return &linker->threads[i];
	return NULL;
}

static struct thread *thread_of(struct gpu_linker *linker, uint32_t tid)
{
	struct thread *thread = find_thread(linker, tid), *larger;

	if (thread)
		return thread;
	larger = realloc(linker->threads, (linker->n_threads + 1) * sizeof(*larger));
	if (!larger)
		return NULL;
	linker->threads = larger;
	thread = &larger[linker->n_threads++];
	*thread = (struct thread){ .tid = tid };
	return thread;
}

static int compare_seq(const void *a, const void *b)
{
	const struct op *x = a, *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* Index of the thread's op with that seq. */
static uint32_t index_of(const struct thread *thread, uint64_t seq)
{
	struct op key = { .seq = seq }, *found;

	found = n_ops(thread) ? bsearch(&key, ops_of(thread), n_ops(thread), sizeof(key), compare_seq) : NULL;
	return found ? (uint32_t)(found - ops_of(thread)) : NONE;
}

/* Something happened inside the op and those around it. */
static void is_open(struct thread *thread, uint32_t index, uint64_t time_ns)
{
	struct op *ops = ops_of(thread);

	for (; index != NONE && ops[index].open_ns < time_ns; index = ops[index].parent)
		ops[index].open_ns = time_ns;
}

static int enter(struct thread *thread, const struct terra_event *event)
{
	struct op op = { .seq = event->seq, .enter_ns = event->time_ns, .open_ns = event->time_ns, .parent = NONE };

	if (event->parent_seq != UINT64_MAX)
		op.parent = index_of(thread, event->parent_seq);
	is_open(thread, op.parent, event->time_ns);
	trace_buffer_put(&thread->ops, &op, sizeof(op));
	return thread->ops.failed ? -ENOMEM : 0;
}

int gpu_linker_op(struct gpu_linker *linker, const struct terra_event *event)
{
	struct thread *thread;
	uint32_t index;

	if (event->type != TERRA_EVENT_OP_ENTER && event->type != TERRA_EVENT_OP_EXIT)
		return 0;
	thread = thread_of(linker, event->thread);
	if (!thread)
		return -ENOMEM;
	if (event->type == TERRA_EVENT_OP_ENTER)
		return enter(thread, event);
	/* A raised exit may have the time when it was noticed. */
	index = event->raised ? NONE : index_of(thread, event->enter_seq);
	is_open(thread, index, event->time_ns);
	if (index != NONE)
		ops_of(thread)[index].ended = true;
	return 0;
}

/* The last op that was entered at or before the time. */
static uint32_t last_entered(const struct thread *thread, uint64_t time_ns)
{
	const struct op *ops = ops_of(thread);
	uint32_t low = 0, high = n_ops(thread);

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (ops[middle].enter_ns <= time_ns)
			low = middle + 1;
		else
			high = middle;
	}
	return low ? low - 1 : NONE;
}

/* The innermost op of those around `index`, itself included, that was open. */
static uint32_t innermost_open(const struct thread *thread, uint32_t index, uint64_t time_ns)
{
	const struct op *ops = ops_of(thread);

	while (index != NONE && ops[index].open_ns < time_ns)
		index = ops[index].parent;
	return index;
}

uint64_t gpu_linker_by_time(const struct gpu_linker *linker, uint32_t tid, uint64_t time_ns)
{
	const struct thread *thread = find_thread(linker, tid);
	uint32_t index = thread ? last_entered(thread, time_ns) : NONE;

	index = index == NONE ? NONE : innermost_open(thread, index, time_ns);
	return index == NONE ? UINT64_MAX : ops_of(thread)[index].seq;
}

/* CUPTI keeps the id of an op that an exception left until the recorder sees the thread again. */
static bool was_open(const struct op *op, uint64_t time_ns)
{
	return time_ns ? time_ns >= op->enter_ns && time_ns <= op->open_ns : op->ended;
}

static uint64_t entered_at(const struct thread *thread, uint64_t enter_ns, uint64_t time_ns)
{
	uint32_t index = last_entered(thread, enter_ns);
	const struct op *op = index == NONE ? NULL : &ops_of(thread)[index];

	return op && op->enter_ns == enter_ns && was_open(op, time_ns) ? op->seq : UINT64_MAX;
}

uint64_t gpu_linker_by_external_id(const struct gpu_linker *linker, uint32_t tid, uint64_t id, uint64_t time_ns)
{
	uint64_t found = UINT64_MAX;

	for (uint32_t i = 0; i < linker->n_threads; i++) {
		const struct thread *thread = &linker->threads[i];
		uint64_t seq = tid && tid != thread->tid ? UINT64_MAX : entered_at(thread, id, time_ns);

		if (seq != UINT64_MAX && found != UINT64_MAX)
			return UINT64_MAX;
		if (seq != UINT64_MAX)
			found = seq;
	}
	return found;
}

/* Calls. */

static bool is_call(const struct terra_gpu *gpu)
{
	return gpu->kind == TERRA_GPU_RUNTIME || gpu->kind == TERRA_GPU_DRIVER;
}

int gpu_linker_call(struct gpu_linker *linker, const struct terra_event *event)
{
	const struct terra_gpu *gpu = event->gpu;

	if (event->type != TERRA_EVENT_GPU || !gpu->correlation)
		return 0;
	if (is_call(gpu) && !gpu->untimed) {
		struct call call = { .correlation = gpu->correlation, .begin_ns = event->time_ns, .thread = event->thread };

		trace_buffer_put(&linker->calls, &call, sizeof(call));
	} else if (gpu->kind == TERRA_GPU_LINK) {
		struct link link = { .correlation = gpu->correlation, .external = gpu->external };

		trace_buffer_put(&linker->links, &link, sizeof(link));
	}
	return linker->calls.failed || linker->links.failed ? -ENOMEM : 0;
}

/* Both structs begin with the correlation. */
static int compare_correlation(const void *a, const void *b)
{
	uint64_t x, y;

	memcpy(&x, a, sizeof(x));
	memcpy(&y, b, sizeof(y));
	return x < y ? -1 : x > y;
}

static void sort(struct trace_buffer *buffer, size_t each)
{
	if (buffer->size)
		qsort(buffer->data, buffer->size / each, each, compare_correlation);
}

static const void *find(const struct trace_buffer *buffer, size_t each, uint64_t correlation)
{
	return buffer->size && correlation
		       ? bsearch(&correlation, buffer->data, buffer->size / each, each, compare_correlation)
		       : NULL;
}

static const struct call *call_of(const struct gpu_linker *linker, uint64_t correlation)
{
	return find(&linker->calls, sizeof(struct call), correlation);
}

static uint64_t count_differences(const struct gpu_linker *linker)
{
	const struct call *calls = (const struct call *)linker->calls.data;
	uint64_t n = 0;

	for (size_t i = 0; i < linker->calls.size / sizeof(*calls); i++) {
		const struct link *link = find(&linker->links, sizeof(*link), calls[i].correlation);
		uint64_t by_id = UINT64_MAX;

		if (link)
			by_id = gpu_linker_by_external_id(linker, calls[i].thread, link->external, calls[i].begin_ns);
		n += by_id != UINT64_MAX && by_id != gpu_linker_by_time(linker, calls[i].thread, calls[i].begin_ns);
	}
	return n;
}

void gpu_linker_ready(struct gpu_linker *linker)
{
	sort(&linker->calls, sizeof(struct call));
	sort(&linker->links, sizeof(struct link));
	linker->counts = (struct gpu_link_counts){ .calls = linker->calls.size / sizeof(struct call),
						   .differ = count_differences(linker) };
}

static void set_op(struct gpu_linker *linker, struct terra_gpu *gpu)
{
	const struct call *call = call_of(linker, gpu->correlation);
	const struct link *link = find(&linker->links, sizeof(*link), gpu->correlation);

	gpu->op_seq = UINT64_MAX;
	if (link)
		gpu->op_seq = gpu_linker_by_external_id(linker, call ? call->thread : 0, link->external, call ? call->begin_ns : 0);
	gpu->linked = TERRA_GPU_BY_EXTERNAL_ID;
	if (gpu->op_seq == UINT64_MAX && call) {
		gpu->op_seq = gpu_linker_by_time(linker, call->thread, call->begin_ns);
		gpu->linked = TERRA_GPU_BY_TIME;
	}
	if (gpu->op_seq == UINT64_MAX)
		gpu->linked = TERRA_GPU_BY_NOTHING;
}

void gpu_linker_find(struct gpu_linker *linker, struct terra_event *event)
{
	struct terra_gpu *gpu = event->gpu;

	set_op(linker, gpu);
	if (is_call(gpu) || gpu->kind == TERRA_GPU_OVERHEAD || gpu->kind == TERRA_GPU_LINK)
		return;
	linker->counts.by_external_id += gpu->linked == TERRA_GPU_BY_EXTERNAL_ID;
	linker->counts.by_time += gpu->linked == TERRA_GPU_BY_TIME;
	linker->counts.without += gpu->linked == TERRA_GPU_BY_NOTHING;
}

uint64_t gpu_linker_asked_ns(const struct gpu_linker *linker, const struct terra_event *event)
{
	const struct call *call = is_call(event->gpu) ? NULL : call_of(linker, event->gpu->correlation);

	if (call)
		return call->begin_ns;
	return event->gpu->untimed ? 0 : event->time_ns;
}

const struct gpu_link_counts *gpu_linker_counts(const struct gpu_linker *linker)
{
	return &linker->counts;
}
