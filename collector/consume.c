/* consume.c - pairs enters with exits and puts the raw records' events into order; see consume.h for the rules. */
#include "collector/consume_private.h"
#include "collector/nodes.h"
#include "probes/functions.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* An op that is running. */
struct frame {
	uint64_t sp;
	uint64_t return_address;
	uint64_t enter_seq;
	uint32_t op;
	bool uncertain;      /* records of its thread are missing since it began: its exit may be among them */
	bool knows_next;     /* `next_node` is the number of the first Node that is made inside */
	bool in_backward;    /* as in struct terra_event's OP_ENTER: */
	uint64_t next_node, node, forward_seq;
	bool has_result;     /* `result` is what it returns, known from its arguments */
	uint32_t n_entries;  /* call stack, kept for the ops inside that have none of their own */
	struct pystack_entry *entries;
	const char *module;  /* as in struct terra_event */
	struct terra_tensor result;
};

struct thread {
	uint32_t tid;
	uint32_t n_frames;
	uint32_t capacity;
	struct frame *frames; /* outermost first */
};

/* A CPU or a thread, with the record that it is in the middle of. */
struct producer {
	uint32_t id;
	uint64_t next_seq;
	bool seen;
	bool skip;           /* a chunk is missing: what is left of this record is dropped */
	uint32_t next_chunk;
	struct terra_record first;
	uint8_t *payload;
	size_t size, capacity;
};

struct terra_consumer {
	struct terra_consumer_options options;
	struct terra_consumer_stats stats;
	struct thread *threads;
	uint32_t n_threads, threads_capacity;
	struct producer *producers;
	uint32_t n_producers, producers_capacity;
	struct consume_arena arena;
	struct nodes nodes;
	struct terra_frame stack[PYSTACK_MAX_FRAMES];
	int error;
};

static int emit(struct terra_consumer *c, struct terra_event *event)
{
	int err = c->options.sink(c->options.sink_ctx, event);

	if (err)
		c->error = err;
	else
		c->stats.events += event->seq != UINT64_MAX; /* a gate leaves out what comes before its time */
	return err;
}

/* Room for one more item of an array; items move. */
static int grow(void **items, uint32_t n, uint32_t *capacity, size_t size)
{
	uint32_t wanted = *capacity ? *capacity * 2 : 16;
	void *grown;

	if (n < *capacity)
		return 0;
	grown = realloc(*items, wanted * size);
	if (!grown)
		return -ENOMEM;
	*items = grown;
	*capacity = wanted;
	return 0;
}

/* NULL when it has not run an op. */
static struct thread *known_thread(const struct terra_consumer *c, uint32_t tid)
{
	for (uint32_t i = c->n_threads; i-- > 0;)
		if (c->threads[i].tid == tid)
			return &c->threads[i];
	return NULL;
}

static struct thread *find_thread(struct terra_consumer *c, uint32_t tid)
{
	struct thread *known = known_thread(c, tid);

	if (known)
		return known;
	if (grow((void **)&c->threads, c->n_threads, &c->threads_capacity, sizeof(*c->threads)))
		return NULL;
	c->threads[c->n_threads] = (struct thread){ .tid = tid };
	return &c->threads[c->n_threads++];
}

static struct producer *find_producer(struct terra_consumer *c, uint32_t id)
{
	for (uint32_t i = c->n_producers; i-- > 0;)
		if (c->producers[i].id == id)
			return &c->producers[i];
	if (grow((void **)&c->producers, c->n_producers, &c->producers_capacity, sizeof(*c->producers)))
		return NULL;
	c->producers[c->n_producers] = (struct producer){ .id = id };
	return &c->producers[c->n_producers++];
}

static struct frame *top(struct thread *thread)
{
	return thread->n_frames ? &thread->frames[thread->n_frames - 1] : NULL;
}

static const struct terra_op_layout *layout_of(const struct terra_consumer *c, uint32_t op)
{
	return &c->options.layouts[op];
}

static void name_event(const struct terra_consumer *c, struct terra_event *event, uint32_t op)
{
	const struct terra_op *o = &c->options.table->ops[op];

	event->op = o->name;
	event->overload = o->overload;
	event->op_index = op;
	event->level = o->level;
}

/* What the op's first result is linked to was made by the op unless it is older, or made by an op inside, which has left
 * already. Nodes of one thread are numbered in the order in which they are made. */
static int add_node(struct terra_consumer *c, const struct frame *frame, const struct consume_values *results,
		    struct terra_event *event)
{
	uint64_t address = results->node_words[0], number = results->node_words[1];

	if (results->n_node_words != 2 || !frame->knows_next || number < frame->next_node || number == UINT64_MAX ||
	    nodes_find(&c->nodes, address, number) != UINT64_MAX)
		return 0;
	event->autograd = 1;
	event->node = number;
	return nodes_add(&c->nodes, address, number, frame->enter_seq);
}

static int emit_exit(struct terra_consumer *c, struct thread *thread, const struct frame *frame, uint64_t time_ns,
		     bool raised, struct consume_values *results)
{
	struct terra_event event = { .type = TERRA_EVENT_OP_EXIT, .thread = thread->tid, .time_ns = time_ns,
				     .raised = raised, .enter_seq = frame->enter_seq, .parent_seq = UINT64_MAX,
				     .n_values = results->n_values, .values = results->values };
	int err = raised ? 0 : add_node(c, frame, results, &event);

	name_event(c, &event, frame->op);
	return err ? err : emit(c, &event);
}

/* The innermost op is over and no EXIT told so. */
static int close_silently(struct terra_consumer *c, struct thread *thread, uint64_t time_ns, bool raised)
{
	struct frame *frame = top(thread);
	struct terra_value value = { .kind = TERRA_KIND_TENSOR, .present = 1, .count = 1, .recorded = 1 };
	struct consume_values results = { .values = &value };
	int err;

	value.u.tensor = &frame->result;
	if (frame->has_result && !raised)
		results.n_values = 1;
	err = emit_exit(c, thread, frame, time_ns, raised, &results);
	free(frame->entries);
	thread->n_frames--;
	return err;
}

static bool is_raised(const struct terra_consumer *c, const struct frame *frame)
{
	return layout_of(c, frame->op)->has_exit && !frame->uncertain;
}

/* Closes the frames from `first` to the top, innermost first. One that nobody sees leave counts as raised when the op
 * around it, closed by the same event, was. */
static int close_from(struct terra_consumer *c, struct thread *thread, uint32_t first, uint64_t time_ns)
{
	int err = 0;

	while (thread->n_frames > first && !err) {
		bool raised = false;

		for (uint32_t i = first; i < thread->n_frames && !raised; i++)
			raised = is_raised(c, &thread->frames[i]);
		if (top(thread)->uncertain)
			raised = false;
		err = close_silently(c, thread, time_ns, raised);
	}
	return err;
}

/* Whether an op that begins at a frame's own stack pointer runs inside it: the frame's op has jumped to it. The return
 * address is then still the one of the frame's caller, which calls nothing else from that place. */
static bool is_tail_called(const struct terra_consumer *c, const struct frame *frame, const struct terra_record *r)
{
	return frame->sp == r->sp && frame->return_address == r->return_address && frame->op != r->op &&
	       !layout_of(c, frame->op)->has_exit;
}

/* Index of the first frame that is over when an op begins at r->sp. */
static uint32_t first_over_at_enter(const struct terra_consumer *c, const struct thread *thread,
				    const struct terra_record *r)
{
	uint32_t i = thread->n_frames;

	while (i > 0 && thread->frames[i - 1].sp <= r->sp && !is_tail_called(c, &thread->frames[i - 1], r))
		i--;
	return i;
}

static int resolve_stack(struct terra_consumer *c, const struct pystack_entry *entries, uint32_t n,
			 struct terra_event *event)
{
	event->frames = c->stack;
	for (uint32_t i = 0; i < n && i < PYSTACK_MAX_FRAMES && c->options.resolve; i++) {
		int err = c->options.resolve(c->options.resolve_ctx, &entries[i], &c->stack[event->n_frames]);

		if (err == -ENOMEM)
			return err;
		if (!err)
			event->n_frames++;
	}
	return 0;
}

/* Ops called by an op have its call stack: no Python code ran in between (where some did, they bring their own). */
static int set_stack(struct terra_consumer *c, const struct frame *parent, struct frame *frame,
		     const struct consume_values *arguments, struct terra_event *event)
{
	const struct pystack_entry *entries = arguments->entries;
	uint32_t n = arguments->n_entries;

	if (n == 0 && parent) {
		entries = parent->entries;
		n = parent->n_entries;
		frame->module = parent->module;
	} else if (n && c->options.module) {
		frame->module = c->options.module(c->options.resolve_ctx, entries, n, event->time_ns);
	}
	event->module = event->type == TERRA_EVENT_OP_ENTER ? frame->module : NULL;
	if (n == 0)
		return 0;
	frame->entries = malloc(n * sizeof(*entries));
	if (!frame->entries)
		return -ENOMEM;
	memcpy(frame->entries, entries, n * sizeof(*entries));
	frame->n_entries = n;
	return resolve_stack(c, entries, n, event);
}

/* In-place and out ops return the argument that they write to. Its address and storage are what they were at the enter. */
static void keep_result(const struct terra_consumer *c, struct frame *frame, const struct consume_values *arguments)
{
	const struct terra_op_layout *layout = layout_of(c, frame->op);
	uint32_t value = 0;

	if (layout->has_exit || layout->ret != TERRA_RET_TENSOR_REF)
		return;
	for (uint32_t i = 0; i < layout->n_args; i++) {
		if (layout->args[i].kind == TERRA_KIND_KEYSET)
			continue;
		if (value >= arguments->n_values)
			return;
		if (layout->args[i].is_mutable && arguments->values[value].kind == TERRA_KIND_TENSOR &&
		    arguments->values[value].present) {
			frame->result = *arguments->values[value].u.tensor;
			frame->has_result = true;
			return;
		}
		value++;
	}
}

/* Ops inside of an op are part of what that one is part of. */
static void set_node(const struct terra_consumer *c, const struct frame *parent, struct frame *frame,
		     const struct consume_values *arguments, struct terra_event *event)
{
	const uint64_t *words = arguments->node_words;

	frame->knows_next = arguments->n_node_words > 0;
	frame->next_node = words[0];
	if (arguments->n_node_words == 3) {
		frame->in_backward = true;
		frame->node = words[2];
		frame->forward_seq = nodes_find(&c->nodes, words[1], words[2]);
	} else if (!arguments->n_node_words && parent) {
		frame->in_backward = parent->in_backward;
		frame->node = parent->node;
		frame->forward_seq = parent->forward_seq;
	}
	event->autograd = frame->in_backward;
	event->node = frame->node;
	event->forward_seq = frame->forward_seq;
}

static int take_enter(struct terra_consumer *c, struct thread *thread, const struct terra_record *r,
		      struct consume_values *arguments)
{
	struct terra_event event = { .type = TERRA_EVENT_OP_ENTER, .thread = r->tid, .time_ns = r->time_ns,
				     .keyset = r->keyset, .parent_seq = UINT64_MAX, .n_values = arguments->n_values,
				     .values = arguments->values };
	struct frame frame = { .sp = r->sp, .return_address = r->return_address, .op = r->op };
	int err = close_from(c, thread, first_over_at_enter(c, thread, r), r->time_ns);

	if (err)
		return err;
	if (grow((void **)&thread->frames, thread->n_frames, &thread->capacity, sizeof(frame)))
		return -ENOMEM;
	if (top(thread))
		event.parent_seq = top(thread)->enter_seq;
	set_node(c, top(thread), &frame, arguments, &event);
	err = set_stack(c, top(thread), &frame, arguments, &event);
	if (!err) {
		name_event(c, &event, r->op);
		err = emit(c, &event);
	}
	if (err) {
		free(frame.entries);
		return err;
	}
	frame.enter_seq = event.seq;
	keep_result(c, &frame, arguments);
	thread->frames[thread->n_frames++] = frame;
	return 0;
}

/* Index of the frame that an exit belongs to, or n_frames. */
static uint32_t find_exit(const struct thread *thread, const struct terra_record *r)
{
	for (uint32_t i = thread->n_frames; i-- > 0 && thread->frames[i].sp <= r->sp;)
		if (thread->frames[i].sp == r->sp && thread->frames[i].op == r->op)
			return i;
	return thread->n_frames;
}

static int take_exit(struct terra_consumer *c, struct thread *thread, const struct terra_record *r,
		     struct consume_values *results)
{
	uint32_t at = find_exit(thread, r);
	struct frame *frame;
	int err;

	if (at == thread->n_frames && c->stats.lost) {
		c->stats.lost_exits++;
		return terra_consumer_lost(c, r->tid, 1, r->time_ns);
	}
	if (at == thread->n_frames) {
		c->stats.unmatched++;
		return 0;
	}
	err = close_from(c, thread, at + 1, r->time_ns);
	if (err)
		return err;
	frame = top(thread);
	err = emit_exit(c, thread, frame, r->time_ns, false, results);
	free(frame->entries);
	thread->n_frames--;
	/* Ops that jumped to this one have returned with it. */
	while (!err && top(thread) && top(thread)->sp == r->sp && !layout_of(c, top(thread)->op)->has_exit)
		err = close_silently(c, thread, r->time_ns, false);
	return err;
}

/* The name that an operator's strings say, kept in the arena; its other values go with the event. */
static void name_operator(struct consume_values *values, struct terra_event *event)
{
	const char **names[2] = { &event->op, &event->overload };

	for (uint32_t i = 0; i < 2 && i < values->n_values; i++)
		if (values->values[i].kind == TERRA_KIND_STRING && values->values[i].present)
			*names[i] = values->values[i].u.string;
}

static int take_function(struct terra_consumer *c, struct thread *thread, const struct terra_record *r,
			 struct consume_values *values)
{
	const struct terra_function *function = &terra_functions[r->op];
	struct terra_event event = { .type = function->reads ? TERRA_EVENT_HOST_READ : TERRA_EVENT_CALL, .thread = r->tid,
				     .time_ns = r->time_ns, .text = function->what, .parent_seq = UINT64_MAX };
	struct frame unused = { 0 };
	int err = close_from(c, thread, first_over_at_enter(c, thread, r), r->time_ns);

	if (err)
		return err;
	if (top(thread))
		event.parent_seq = top(thread)->enter_seq;
	if (function->reads) {
		event.n_values = values->n_values;
		event.values = values->values;
	} else {
		name_operator(values, &event);
	}
	err = set_stack(c, top(thread), &unused, values, &event);
	if (!err)
		err = emit(c, &event);
	free(unused.entries);
	return err;
}

/* What the handler's frame called is over. Threads that catch exceptions and run no op are many in some programs. */
static int take_catch(struct terra_consumer *c, const struct terra_record *r)
{
	struct thread *thread = known_thread(c, r->tid);
	uint32_t first = thread ? thread->n_frames : 0;

	while (first > 0 && thread->frames[first - 1].sp <= r->sp)
		first--;
	return thread ? close_from(c, thread, first, r->time_ns) : 0;
}

static int take_whole(struct terra_consumer *c, const struct terra_record *first, const uint8_t *payload, size_t size)
{
	struct consume_values values;
	struct thread *thread;
	int err;

	if (first->type != TERRA_RECORD_CATCH &&
	    first->op >= (first->type == TERRA_RECORD_FUNCTION ? TERRA_N_FUNCTIONS : c->options.table->n_ops)) {
		c->stats.damaged++;
		return 0;
	}
	consume_reset(&c->arena);
	err = consume_unpack(&c->arena, c->options.offsets, payload, size, &values);
	if (err == -EPROTO)
		c->stats.damaged++;
	if (err)
		return err == -EPROTO ? 0 : err;
	if (first->type == TERRA_RECORD_CATCH)
		return take_catch(c, first);
	thread = find_thread(c, first->tid);
	if (!thread)
		return -ENOMEM;
	if (first->type == TERRA_RECORD_FUNCTION)
		return take_function(c, thread, first, &values);
	return first->type == TERRA_RECORD_ENTER ? take_enter(c, thread, first, &values) :
						   take_exit(c, thread, first, &values);
}

static int append(struct producer *producer, const void *data, size_t size)
{
	size_t wanted = producer->capacity ? producer->capacity : 4 * TERRA_CHUNK_SIZE;
	uint8_t *grown;

	while (wanted < producer->size + size)
		wanted *= 2;
	if (wanted != producer->capacity) {
		grown = realloc(producer->payload, wanted);
		if (!grown)
			return -ENOMEM;
		producer->payload = grown;
		producer->capacity = wanted;
	}
	memcpy(producer->payload + producer->size, data, size);
	producer->size += size;
	return 0;
}

static int take_chunk(struct terra_consumer *c, struct producer *producer, const struct terra_record *r)
{
	size_t size = r->size - sizeof(*r);
	int err;

	if (r->chunk == 0) {
		producer->skip = false;
		producer->size = 0;
		producer->first = *r;
		if (!(r->flags & TERRA_RECORD_MORE))
			return take_whole(c, r, (const uint8_t *)(r + 1), size);
	} else if (producer->skip || r->chunk != producer->next_chunk || r->type != producer->first.type ||
		   r->op != producer->first.op || r->tid != producer->first.tid) {
		producer->skip = true;
		return 0;
	}
	producer->next_chunk = r->chunk + 1;
	err = append(producer, r + 1, size);
	if (err || r->flags & TERRA_RECORD_MORE)
		return err;
	producer->first.keyset = r->keyset;
	producer->skip = true;
	return take_whole(c, &producer->first, producer->payload, producer->size);
}

static void mark_uncertain(struct terra_consumer *c, uint32_t tid)
{
	for (uint32_t i = 0; i < c->n_threads; i++)
		for (uint32_t f = 0; f < c->threads[i].n_frames; f++)
			if (tid == 0 || c->threads[i].tid == tid)
				c->threads[i].frames[f].uncertain = true;
}

int terra_consumer_lost(struct terra_consumer *c, uint32_t thread, uint64_t n, uint64_t time_ns)
{
	struct terra_event event = { .type = TERRA_EVENT_LOST, .thread = thread, .lost = n, .time_ns = time_ns,
				     .parent_seq = UINT64_MAX };

	if (c->error || n == 0)
		return c->error;
	c->stats.lost += n;
	mark_uncertain(c, thread);
	nodes_free(&c->nodes); /* a Node that was made and never seen could be taken for another at its address */
	return emit(c, &event);
}

int terra_consumer_note(struct terra_consumer *c, const char *text, uint64_t time_ns)
{
	struct terra_event event = { .type = TERRA_EVENT_NOTE, .text = text, .time_ns = time_ns,
				     .parent_seq = UINT64_MAX };

	return c->error ? c->error : emit(c, &event);
}

/* A producer that is its own thread starts again at 0 when the kernel gives its id to a new thread. */
static int check_seq(struct terra_consumer *c, struct producer *producer, const struct terra_record *r)
{
	uint64_t expected = producer->next_seq;

	producer->next_seq = r->seq + 1;
	if (!producer->seen || r->seq <= expected) {
		producer->seen = true;
		return r->seq > expected ? terra_consumer_lost(c, 0, r->seq - expected, r->time_ns) : 0;
	}
	producer->skip = true;
	return terra_consumer_lost(c, r->producer == r->tid ? r->tid : 0, r->seq - expected, r->time_ns);
}

int terra_consumer_record(struct terra_consumer *c, const struct terra_record *r)
{
	struct producer *producer;
	int err;

	if (c->error)
		return c->error;
	if (r->type == TERRA_RECORD_LOST)
		return terra_consumer_lost(c, r->tid, r->keyset, r->time_ns);
	if (r->size < sizeof(*r) || r->size > TERRA_CHUNK_SIZE ||
	    (r->type != TERRA_RECORD_ENTER && r->type != TERRA_RECORD_EXIT && r->type != TERRA_RECORD_FUNCTION &&
	     r->type != TERRA_RECORD_CATCH)) {
		c->stats.damaged++;
		return 0;
	}
	producer = find_producer(c, r->producer);
	if (!producer)
		return -ENOMEM;
	err = check_seq(c, producer, r);
	return err ? err : take_chunk(c, producer, r);
}

const struct terra_consumer_stats *terra_consumer_stats(const struct terra_consumer *c)
{
	return &c->stats;
}

int terra_consumer_write(void *writer, struct terra_event *event)
{
	return terra_trace_write(writer, event);
}

struct terra_consumer *terra_consumer_new(const struct terra_consumer_options *options)
{
	struct terra_consumer *c = calloc(1, sizeof(*c));

	if (c)
		c->options = *options;
	return c;
}

void terra_consumer_free(struct terra_consumer *c)
{
	if (!c)
		return;
	for (uint32_t i = 0; i < c->n_threads; i++) {
		for (uint32_t f = 0; f < c->threads[i].n_frames; f++)
			free(c->threads[i].frames[f].entries);
		free(c->threads[i].frames);
	}
	for (uint32_t i = 0; i < c->n_producers; i++)
		free(c->producers[i].payload);
	free(c->threads);
	free(c->producers);
	consume_arena_free(&c->arena);
	nodes_free(&c->nodes);
	free(c);
}
