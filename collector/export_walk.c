/* export_walk.c - a trace as properly nested ops per thread. */
#include "collector/export_gpu.h"
#include "collector/export_walk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	const struct export_writer *writer;
	bool binary;
} formats[TERRA_EXPORT_COUNT] = {
	[TERRA_EXPORT_PERFETTO] = {"perfetto", &export_perfetto, true},
	[TERRA_EXPORT_CHROME] = {"chrome", &export_chrome, false},
	[TERRA_EXPORT_CHAKRA] = {"chakra", &export_chakra, true},
	[TERRA_EXPORT_JSON] = {"json", &export_json, false},
};

const char *terra_export_name(unsigned int format)
{
	return format < TERRA_EXPORT_COUNT ? formats[format].name : NULL;
}

bool terra_export_is_binary(enum terra_export_format format)
{
	return formats[format].binary;
}

/* Threads. */

static struct export_thread *threads_of(struct export_walk *walk)
{
	return (struct export_thread *)walk->thread_data.data;
}

static int add_thread(struct export_walk *walk, uint32_t tid, struct export_thread **out)
{
	struct export_thread thread = {.tid = tid, .last_outermost = UINT64_MAX};

	trace_buffer_put(&walk->thread_data, &thread, sizeof(thread));
	if (walk->thread_data.failed)
		return -ENOMEM;
	*out = threads_of(walk) + walk->thread_data.size / sizeof(thread) - 1;
	return walk->writer->thread(walk, *out);
}

static int thread_of(struct export_walk *walk, const struct terra_event *event, struct export_thread **out)
{
	struct trace_intern_entry *entry = trace_intern_get(&walk->threads, &event->thread, sizeof(event->thread));
	size_t index;
	int err = 0;

	if (!entry)
		return -ENOMEM;
	index = (size_t)(entry - walk->threads.entries);
	if (walk->thread_data.size == index * sizeof(**out))
		err = add_thread(walk, event->thread, out);
	if (err)
		return err;
	*out = threads_of(walk) + index;
	return 0;
}

/* The time of an event is made one that does not go back on its thread. */
static void order(struct export_walk *walk, struct export_thread *thread, struct terra_event *event)
{
	if (event->time_ns < thread->last_ns)
		event->time_ns = thread->last_ns;
	thread->last_ns = event->time_ns;
	if (event->time_ns > walk->last_ns)
		walk->last_ns = event->time_ns;
}

/* Ops. */

static struct export_op *push(struct export_thread *thread)
{
	if (thread->n_ops == thread->capacity) {
		uint32_t capacity = thread->capacity ? thread->capacity * 2 : 16;
		struct export_op *ops = realloc(thread->ops, capacity * sizeof(*ops));

		if (!ops)
			return NULL;
		thread->ops = ops;
		thread->capacity = capacity;
	}
	thread->ops[thread->n_ops] = (struct export_op){0};
	return &thread->ops[thread->n_ops++];
}

/* The innermost open op of the thread is over. */
static int leave(struct export_walk *walk, struct export_thread *thread, uint64_t end_ns, enum export_end end,
		 const struct terra_event *event)
{
	struct export_op *op = &thread->ops[thread->n_ops - 1];
	int err = 0;

	walk->result->without_exit += end == EXPORT_NO_EXIT;
	walk->result->open += end == EXPORT_OPEN;
	if (walk->flow && event)
		err = terra_dataflow_exit(walk->flow, &op->call, event, thread->ops[0].seq);
	else if (walk->flow)
		terra_dataflow_drop(walk->flow, &op->call);
	if (!err)
		err = walk->writer->leave(walk, thread, op, thread->n_ops - 1, end_ns, end, event);
	if (err)
		return err; /* what it holds is freed with the walk */
	thread->n_ops--;
	if (thread->n_ops == 0)
		thread->last_outermost = op->seq;
	return 0;
}

/* Ops inside the first `n` are over. */
static int leave_above(struct export_walk *walk, struct export_thread *thread, uint32_t n, uint64_t end_ns,
		       enum export_end end)
{
	int err = 0;

	while (thread->n_ops > n && !err)
		err = leave(walk, thread, end_ns, end, NULL);
	return err;
}

static int compare_ops(const void *a, const void *b)
{
	const struct export_op *x = a, *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* How many open ops there are up to the one with that seq; 0: it is none of them. */
static uint32_t find_op(const struct export_thread *thread, uint64_t seq)
{
	const struct export_op key = {.seq = seq};
	const struct export_op *found;

	if (thread->n_ops == 0)
		return 0;
	found = bsearch(&key, thread->ops, thread->n_ops, sizeof(key), compare_ops);
	return found ? (uint32_t)(found - thread->ops) + 1 : 0;
}

/* Producers. */

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void sort_unique(struct trace_buffer *numbers)
{
	uint64_t *v = (uint64_t *)numbers->data;
	size_t n = numbers->size / sizeof(*v), kept = 0;

	if (n == 0)
		return;
	qsort(v, n, sizeof(*v), compare_u64);
	for (size_t i = 0; i < n; i++)
		if (kept == 0 || v[kept - 1] != v[i])
			v[kept++] = v[i];
	numbers->size = kept * sizeof(*v);
}

int export_producers(struct export_walk *walk, const struct terra_event *event, struct trace_buffer *out)
{
	struct terra_dataflow_ids ids;
	uint32_t n;
	int err = 0;

	for (uint32_t i = 0; i < event->n_values; i++) {
		const struct terra_tensor *tensors = terra_value_tensors(&event->values[i], &n);

		for (uint32_t k = 0; k < n && !err; k++) {
			if (!tensors[k].defined)
				continue;
			err = terra_dataflow_look(walk->flow, &tensors[k], &ids);
			if (!err && ids.producer != TERRA_DATAFLOW_NONE)
				trace_buffer_put(out, &ids.producer, sizeof(ids.producer));
		}
	}
	sort_unique(out);
	return err || out->failed ? -ENOMEM : 0;
}

/* Ops that are open although the new op is not inside them: their exits are missing. When the enclosing op's own enter
 * is missing, those that are open may or may not be around it, and stay until an exit tells. */
static int close_before(struct export_walk *walk, struct export_thread *thread, const struct terra_event *event)
{
	uint32_t around = 0;

	if (event->parent_seq != UINT64_MAX) {
		around = find_op(thread, event->parent_seq);
		if (around == 0)
			return 0;
	}
	return leave_above(walk, thread, around, event->time_ns, EXPORT_NO_EXIT);
}

static int enter_op(struct export_walk *walk, struct export_thread *thread, const struct terra_event *event)
{
	struct export_op *op;
	int err = close_before(walk, thread, event);

	if (err)
		return err;
	op = push(thread);
	if (!op)
		return -ENOMEM;
	op->seq = event->seq;
	op->start_ns = event->time_ns;
	op->level = event->level;
	op->in_backward = event->autograd;
	op->forward_seq = event->autograd ? event->forward_seq : UINT64_MAX;
	walk->result->ops++;
	if (walk->flow)
		err = terra_dataflow_enter(walk->flow, event, &op->call);
	return err ? err : walk->writer->enter(walk, thread, op, event, thread->n_ops - 1);
}

static int exit_op(struct export_walk *walk, struct export_thread *thread, const struct terra_event *event)
{
	uint32_t n = event->enter_seq == UINT64_MAX ? 0 : find_op(thread, event->enter_seq);
	int err;

	if (n == 0) {
		walk->result->without_enter++;
		if (walk->flow)
			terra_dataflow_drop(walk->flow, NULL);
		return 0;
	}
	err = leave_above(walk, thread, n, event->time_ns, EXPORT_NO_EXIT);
	return err ? err : leave(walk, thread, event->time_ns, event->raised ? EXPORT_RAISED : EXPORT_RETURNED, event);
}

static int mark(struct export_walk *walk, const struct terra_event *event)
{
	const struct export_mark m = {
	    .type = event->type,
	    .thread = event->thread,
	    .time_ns = event->time_ns,
	    .seq = event->seq,
	    .lost = event->lost,
	    .text = event->text,
	};

	if (walk->flow && event->type == TERRA_EVENT_LOST)
		terra_dataflow_forget(walk->flow);
	return walk->writer->mark(walk, &m);
}

/* GPU activity comes in no order, and is on no thread's stack of ops. */
static int take_gpu(struct export_walk *walk, const struct terra_event *event)
{
	const struct export_writer *writer = walk->writer;

	if (!writer->gpu || (writer->timeline && (event->gpu->untimed || !export_gpu_has_track(event->gpu)))) {
		walk->result->left_out++;
		return 0;
	}
	return writer->timeline ? export_window_add(walk, event) : writer->gpu(walk, event);
}

static int take(struct export_walk *walk, struct terra_event *event)
{
	struct export_thread *thread;
	int err = thread_of(walk, event, &thread);

	if (err)
		return err;
	if (event->type == TERRA_EVENT_GPU)
		return take_gpu(walk, event);
	order(walk, thread, event);
	switch (event->type) {
	case TERRA_EVENT_OP_ENTER:
		return enter_op(walk, thread, event);
	case TERRA_EVENT_OP_EXIT:
		return exit_op(walk, thread, event);
	case TERRA_EVENT_LOST:
	case TERRA_EVENT_NOTE:
		return mark(walk, event);
	case TERRA_EVENT_HOST_READ:
	case TERRA_EVENT_CALL:
		return walk->writer->beside(walk, thread, event);
	default:
		walk->result->unknown++;
		return 0;
	}
}

static int damage(struct export_walk *walk, const char *message)
{
	const struct export_mark m = {.time_ns = walk->last_ns ? walk->last_ns : walk->info->start_ns, .text = message};

	walk->result->n_damage++;
	if (walk->flow)
		terra_dataflow_forget(walk->flow);
	return walk->writer->mark(walk, &m);
}

bool export_is_open(struct export_walk *walk, uint64_t seq)
{
	for (size_t i = 0; i < walk->thread_data.size / sizeof(struct export_thread); i++)
		if (find_op(threads_of(walk) + i, seq) != 0)
			return true;
	return false;
}

bool export_begins_backward(const struct export_thread *thread, const struct export_op *op, uint32_t depth)
{
	return op->forward_seq != UINT64_MAX && (depth == 0 || thread->ops[depth - 1].forward_seq != op->forward_seq);
}

/* Other processes' traces may be merged with this one, so the process is part of it. */
uint64_t export_flow_id(const struct export_walk *walk, enum export_flow flow, uint64_t id)
{
	return ((uint64_t)flow << 62) ^ ((uint64_t)walk->info->pid << 40) ^ id;
}

static int read_all(struct export_walk *walk, struct terra_trace_reader *reader)
{
	struct terra_event event;
	int ret, err = 0;

	while (!err && !ferror(walk->out) && (ret = terra_trace_next(reader, &event)) != 0)
		err = ret > 0 ? take(walk, &event) : damage(walk, terra_trace_error(reader));
	return err;
}

static int finish(struct export_walk *walk, struct terra_trace_reader *reader)
{
	struct terra_export_result *result = walk->result;
	size_t n = walk->thread_data.size / sizeof(struct export_thread);
	int err = 0;

	for (size_t i = 0; i < n && !err; i++)
		err = leave_above(walk, threads_of(walk) + i, 0, walk->last_ns, EXPORT_OPEN);
	if (!err)
		err = export_window_flush(walk);
	result->lost = terra_trace_lost(reader);
	result->missing = terra_trace_missing(reader);
	result->ended_cleanly = terra_trace_ended_cleanly(reader);
	return err ? err : walk->writer->end(walk);
}

void *export_state(struct export_walk *walk, size_t size, void (*free_state)(void *state))
{
	walk->state = calloc(1, size);
	walk->free_state = walk->state ? free_state : NULL;
	return walk->state;
}

static void walk_free(struct export_walk *walk)
{
	for (size_t i = 0; i < walk->thread_data.size / sizeof(struct export_thread); i++) {
		struct export_thread *thread = threads_of(walk) + i;

		for (uint32_t k = 0; k < thread->n_ops; k++) {
			free(thread->ops[k].data);
			free(thread->ops[k].call.refs);
		}
		free(thread->ops);
	}
	if (walk->free_state)
		walk->free_state(walk->state);
	export_window_free(walk->window);
	terra_dataflow_free(walk->flow);
	trace_intern_free(&walk->threads);
	free(walk->thread_data.data);
}

int terra_export(struct terra_trace_reader *reader, enum terra_export_format format, FILE *out,
		 struct terra_export_result *result)
{
	struct export_walk walk = {
	    .writer = formats[format].writer,
	    .info = terra_trace_info(reader),
	    .out = out,
	    .result = result,
	};
	int err = 0;

	*result = (struct terra_export_result){0};
	if (walk.writer->dataflow) {
		walk.flow = terra_dataflow_new();
		err = walk.flow ? 0 : -ENOMEM;
	}
	if (!err)
		err = walk.writer->begin(&walk);
	if (!err)
		err = read_all(&walk, reader);
	if (!err)
		err = finish(&walk, reader);
	walk_free(&walk);
	if (!err && (fflush(out) != 0 || ferror(out)))
		err = errno ? -errno : -EIO;
	return err;
}
