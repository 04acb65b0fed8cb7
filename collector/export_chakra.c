/* export_chakra.c - an MLCommons Chakra execution trace.
 *
 * The messages are those of github.com/mlcommons/chakra, schema/protobuf/et_def.proto. The file is a GlobalMetadata and
 * then Nodes, each with its length before it. A node is an outermost op of the trace; inputs and outputs are written as
 * PyTorch's ExecutionTraceObserver writes them. What a GPU did is a node that depends on the one that launched it.
 *
 * A trace names the innermost op that launched something, and long after that op was over. Which node an op is part of waits in a
 * temporary file until then, so that memory stays bounded.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "collector/export_gpu.h"
#include "collector/export_observer.h"
#include "collector/export_text.h"
#include "collector/protobuf.h"

enum {
	METADATA_ATTR = 2,

	NODE_ID = 1,
	NODE_NAME = 2,
	NODE_TYPE = 3,
	NODE_CTRL_DEPS = 4,
	NODE_DATA_DEPS = 5,
	NODE_START = 6,
	NODE_DURATION = 7,
	NODE_INPUTS = 8,
	NODE_OUTPUTS = 9,
	NODE_ATTR = 10,

	IO_VALUES = 1,
	IO_SHAPES = 2,
	IO_TYPES = 3,

	ATTR_NAME = 1,
	ATTR_INT64 = 9,
	ATTR_UINT64 = 13,
	ATTR_BOOL = 27,
	ATTR_STRING = 29,
};

enum node_type {
	METADATA_NODE = 1,
	COMP_NODE = 4,
	COMM_SEND_NODE = 5,
	COMM_RECV_NODE = 6,
	COMM_COLL_NODE = 7,
};

enum collective {
	ALL_REDUCE = 0,
	REDUCE = 1,
	ALL_GATHER = 2,
	GATHER = 3,
	SCATTER = 4,
	BROADCAST = 5,
	ALL_TO_ALL = 6,
	REDUCE_SCATTER = 7,
	BARRIER = 9,
};

/* PyTorch's communication ops, by the beginning of their names; the first that fits. */
static const struct communication {
	const char *name;
	enum node_type type;
	enum collective collective;
} communications[] = {
	{"c10d::allreduce", COMM_COLL_NODE, ALL_REDUCE},
	{"c10d::reduce_scatter", COMM_COLL_NODE, REDUCE_SCATTER},
	{"c10d::_reduce_scatter", COMM_COLL_NODE, REDUCE_SCATTER},
	{"c10d::reduce", COMM_COLL_NODE, REDUCE},
	{"c10d::allgather", COMM_COLL_NODE, ALL_GATHER},
	{"c10d::_allgather", COMM_COLL_NODE, ALL_GATHER},
	{"c10d::gather", COMM_COLL_NODE, GATHER},
	{"c10d::scatter", COMM_COLL_NODE, SCATTER},
	{"c10d::broadcast", COMM_COLL_NODE, BROADCAST},
	{"c10d::alltoall", COMM_COLL_NODE, ALL_TO_ALL},
	{"c10d::barrier", COMM_COLL_NODE, BARRIER},
	{"c10d::monitored_barrier", COMM_COLL_NODE, BARRIER},
	{"c10d::send", COMM_SEND_NODE, 0},
	{"c10d::recv", COMM_RECV_NODE, 0},
	{"_c10d_functional::all_reduce", COMM_COLL_NODE, ALL_REDUCE},
	{"_c10d_functional::reduce_scatter", COMM_COLL_NODE, REDUCE_SCATTER},
	{"_c10d_functional::all_gather", COMM_COLL_NODE, ALL_GATHER},
	{"_c10d_functional::all_to_all", COMM_COLL_NODE, ALL_TO_ALL},
	{"_c10d_functional::broadcast", COMM_COLL_NODE, BROADCAST},
};

/* Damage is no event and has no number; its nodes are numbered from here, above every seq. */
#define DAMAGE_ID (UINT64_C(1) << 63)

/* Events that have a place in the temporary file; what a damaged or made-up trace numbers higher is in no node's past. */
#define OUTERMOST_MAX (UINT64_C(1) << 40)

struct chakra {
	struct export_text text;
	struct trace_buffer node;    /* the Node that is being made */
	struct trace_buffer message; /* with its length, as it is written */
	struct trace_buffer deps;
	uint64_t n_damage;
	FILE *outermost; /* of each event by seq, uint64_t: seq of its outermost op plus 1; 0 for what is no op */
	uint64_t n_outermost;
};

/* A node between its op's enter and its exit. */
struct begun {
	size_t size;
	uint8_t bytes[];
};

static void free_state(void *state)
{
	struct chakra *c = state;

	export_text_free(&c->text);
	free(c->node.data);
	free(c->message.data);
	free(c->deps.data);
	if (c->outermost)
		fclose(c->outermost);
	free(c);
}

static int write_message(struct export_walk *walk, const struct trace_buffer *bytes)
{
	struct chakra *c = walk->state;

	c->message.size = 0;
	pb_varint(&c->message, bytes->size);
	trace_buffer_put(&c->message, bytes->data, bytes->size);
	if (bytes->failed || c->message.failed)
		return -ENOMEM;
	fwrite(c->message.data, 1, c->message.size, walk->out);
	return 0;
}

/* Attributes. */

static void attr_number(struct trace_buffer *out, uint32_t field, const char *name, uint32_t kind, uint64_t v)
{
	size_t begin = pb_begin(out, field);

	pb_string(out, ATTR_NAME, name);
	pb_uint(out, kind, v);
	pb_end(out, begin);
}

static void attr_string(struct trace_buffer *out, uint32_t field, const char *name, const char *s)
{
	size_t begin = pb_begin(out, field);

	pb_string(out, ATTR_NAME, name);
	pb_string(out, ATTR_STRING, s);
	pb_end(out, begin);
}

/* Inputs and outputs. */

static int put_text(struct chakra *c, uint32_t field, const char *s)
{
	if (!s)
		return -ENOMEM;
	pb_string(&c->node, field, s);
	return 0;
}

static int put_io(struct export_walk *walk, uint32_t field, const struct terra_event *event)
{
	struct chakra *c = walk->state;
	size_t begin = pb_begin(&c->node, field);
	int err = put_text(c, IO_VALUES, observer_values(&c->text, walk->flow, event));

	if (!err)
		err = put_text(c, IO_SHAPES, observer_shapes(&c->text, event));
	if (!err)
		err = put_text(c, IO_TYPES, observer_types(&c->text, event));
	pb_end(&c->node, begin);
	return err;
}

/* Nodes. */

static const struct communication *communication_of(const char *op)
{
	for (size_t i = 0; i < sizeof(communications) / sizeof(communications[0]); i++)
		if (strncmp(op, communications[i].name, strlen(communications[i].name)) == 0)
			return &communications[i];
	return NULL;
}

static void put_communication(struct trace_buffer *node, const struct communication *communication,
			      const struct terra_event *event)
{
	if (communication->type == COMM_COLL_NODE)
		attr_number(node, NODE_ATTR, "comm_type", ATTR_INT64, communication->collective);
	attr_number(node, NODE_ATTR, "comm_size", ATTR_INT64, observer_bytes(event));
}

/* A repeated number: packed, as proto3 has it. */
static void put_numbers(struct trace_buffer *node, uint32_t field, const uint64_t *numbers, size_t n)
{
	size_t begin;

	if (n == 0)
		return;
	begin = pb_begin(node, field);
	for (size_t i = 0; i < n; i++)
		pb_varint(node, numbers[i]);
	pb_end(node, begin);
}

static int put_dependencies(struct export_walk *walk, const struct export_thread *t, const struct terra_event *event)
{
	struct chakra *c = walk->state;

	put_numbers(&c->node, NODE_CTRL_DEPS, &t->last_outermost, t->last_outermost != UINT64_MAX);
	c->deps.size = 0;
	if (export_producers(walk, event, &c->deps) != 0)
		return -ENOMEM;
	put_numbers(&c->node, NODE_DATA_DEPS, (uint64_t *)c->deps.data, c->deps.size / sizeof(uint64_t));
	return 0;
}

static void put_pair(void *context, const char *name, const char *text)
{
	struct chakra *c = context;

	if (strcmp(name, "at") == 0)
		attr_string(&c->node, NODE_ATTR, "python_line", text);
	else if (strcmp(name, "from") == 0)
		attr_string(&c->node, NODE_ATTR, "program_line", text);
}

static int put_attributes(struct export_walk *walk, const struct export_thread *t, const struct terra_event *event)
{
	struct chakra *c = walk->state;

	attr_number(&c->node, NODE_ATTR, "is_cpu_op", ATTR_BOOL, 1); /* what is recorded is the host's call */
	attr_number(&c->node, NODE_ATTR, "tid", ATTR_INT64, t->tid);
	attr_string(&c->node, NODE_ATTR, "overload", event->overload);
	if (event->autograd && event->node != UINT64_MAX)
		attr_number(&c->node, NODE_ATTR, "seq_id", ATTR_INT64, event->node);
	return export_pairs(&c->text, event, put_pair, c);
}

static int begin_node(struct export_walk *walk, const struct export_thread *t, const struct export_op *op,
		      const struct terra_event *event)
{
	const struct communication *communication = communication_of(event->op);
	struct chakra *c = walk->state;
	int err;

	c->node.size = 0;
	pb_uint(&c->node, NODE_ID, op->seq);
	pb_string(&c->node, NODE_NAME, event->op);
	pb_uint(&c->node, NODE_TYPE, communication ? communication->type : COMP_NODE);
	pb_uint(&c->node, NODE_START, op->start_ns / 1000);
	if (communication)
		put_communication(&c->node, communication, event);
	err = put_dependencies(walk, t, event);
	if (!err)
		err = put_io(walk, NODE_INPUTS, event);
	return err ? err : put_attributes(walk, t, event);
}

/* Behind what was written before; a gap, for events that are no ops, reads as zeros. After a read, which is for an event behind what was
 * written, there is a gap too, and so a seek. */
static int remember_outermost(struct chakra *c, uint64_t seq, uint64_t outermost)
{
	const uint64_t entry = outermost + 1;

	if (seq < c->n_outermost || seq >= OUTERMOST_MAX) /* no recorder numbers so */
		return 0;
	if (seq > c->n_outermost && fseeko(c->outermost, (off_t)(seq * sizeof(entry)), SEEK_SET) != 0)
		return -errno;
	if (fwrite(&entry, sizeof(entry), 1, c->outermost) != 1)
		return -EIO;
	c->n_outermost = seq + 1;
	return 0;
}

static int enter(struct export_walk *walk, struct export_thread *t, struct export_op *op,
		 const struct terra_event *event, uint32_t depth)
{
	struct chakra *c = walk->state;
	struct begun *begun;
	int err = remember_outermost(c, op->seq, t->ops[0].seq);

	if (depth || err)
		return err;
	err = begin_node(walk, t, op, event);
	begun = err || c->node.failed ? NULL : malloc(sizeof(*begun) + c->node.size);
	if (!begun)
		return -ENOMEM;
	begun->size = c->node.size;
	memcpy(begun->bytes, c->node.data, c->node.size);
	op->data = begun;
	return 0;
}

/* The number that the observer calls seq_id: of the Node that the op made. Ops of a backward pass have that of the Node that they
 * were run for, which begin_node wrote. */
static void put_sequence(struct trace_buffer *node, const struct export_op *op, const struct terra_event *exit)
{
	if (exit && exit->autograd && exit->node != UINT64_MAX && !op->in_backward)
		attr_number(node, NODE_ATTR, "seq_id", ATTR_INT64, exit->node);
}

static int leave(struct export_walk *walk, struct export_thread *t, struct export_op *op, uint32_t depth,
		 uint64_t end_ns, enum export_end end, const struct terra_event *event)
{
	struct chakra *c = walk->state;
	const struct begun *begun = op->data;

	if (depth)
		return 0;
	c->node.size = 0;
	trace_buffer_put(&c->node, begun->bytes, begun->size);
	free(op->data);
	op->data = NULL;
	pb_uint(&c->node, NODE_DURATION, (end_ns - op->start_ns) / 1000);
	attr_number(&c->node, NODE_ATTR, "duration_ns", ATTR_UINT64, end_ns - op->start_ns);
	put_sequence(&c->node, op, event);
	if (event && put_io(walk, NODE_OUTPUTS, event) != 0)
		return -ENOMEM;
	if (export_end_text(end))
		attr_string(&c->node, NODE_ATTR, "end", export_end_text(end));
	return write_message(walk, &c->node);
}

/* Losses, notes and damage are in the trace as nodes without dependencies. */

static void put_mark(struct trace_buffer *node, const char *name, uint64_t id, const struct export_mark *m)
{
	pb_uint(node, NODE_ID, id);
	pb_string(node, NODE_NAME, name);
	pb_uint(node, NODE_TYPE, METADATA_NODE);
	pb_uint(node, NODE_START, m->time_ns / 1000);
	attr_number(node, NODE_ATTR, "tid", ATTR_INT64, m->thread);
	if (m->type == TERRA_EVENT_LOST)
		attr_number(node, NODE_ATTR, "count", ATTR_UINT64, m->lost);
	else
		attr_string(node, NODE_ATTR, "text", m->text);
}

static int mark(struct export_walk *walk, const struct export_mark *m)
{
	struct chakra *c = walk->state;

	c->node.size = 0;
	if (m->type == TERRA_EVENT_LOST)
		put_mark(&c->node, "terra::lost", m->seq, m);
	else if (m->type == TERRA_EVENT_NOTE)
		put_mark(&c->node, "terra::note", m->seq, m);
	else
		put_mark(&c->node, "terra::damage", DAMAGE_ID + c->n_damage++, m);
	return write_message(walk, &c->node);
}

/* Reads of memory and calls past the typed entry points are no ops, hence no nodes that depend on others. */
static int beside(struct export_walk *walk, const struct export_thread *t, const struct terra_event *event)
{
	const bool is_read = event->type == TERRA_EVENT_HOST_READ;
	struct export_mark m = {.type = event->type, .thread = t->tid, .time_ns = event->time_ns};
	struct chakra *c = walk->state;

	m.text = export_beside_name(&c->text, event);
	if (!m.text)
		return -ENOMEM;
	c->node.size = 0;
	put_mark(&c->node, is_read ? "terra::host_read" : "terra::call", event->seq, &m);
	return write_message(walk, &c->node);
}

/* The node of the op that launched it; UINT64_MAX: none is known, or it is not written yet, being open. */
static uint64_t launched_by(struct export_walk *walk, uint64_t op)
{
	struct chakra *c = walk->state;
	uint64_t entry = 0;

	if (op >= c->n_outermost || fseeko(c->outermost, (off_t)(op * sizeof(entry)), SEEK_SET) != 0 ||
	    fread(&entry, sizeof(entry), 1, c->outermost) != 1 || !entry)
		return UINT64_MAX;
	return export_is_open(walk, entry - 1) ? UINT64_MAX : entry - 1;
}

/* Numbers of the launch, as the timelines have them; what the node itself says is not said twice. */
static void put_gpu_pair(void *context, const char *name, const char *text)
{
	struct chakra *c = context;

	if (strcmp(name, "seq") != 0)
		attr_string(&c->node, NODE_ATTR, name, text);
}

static bool is_work(const struct terra_gpu *gpu)
{
	return !gpu->untimed && gpu->kind >= TERRA_GPU_KERNEL &&
	       (gpu->kind <= TERRA_GPU_MEMSET || gpu->kind == TERRA_GPU_GRAPH);
}

/* Kernels, copies, sets and graphs; calls are part of the ops that make them, and overhead is no work. */
static int gpu(struct export_walk *walk, const struct terra_event *event)
{
	const struct terra_gpu *gpu = event->gpu;
	struct chakra *c = walk->state;
	uint64_t node;
	int err;

	if (!is_work(gpu)) {
		walk->result->left_out += gpu->untimed;
		return 0;
	}
	node = gpu->op_seq == UINT64_MAX ? UINT64_MAX : launched_by(walk, gpu->op_seq);
	c->node.size = 0;
	pb_uint(&c->node, NODE_ID, event->seq);
	err = put_text(c, NODE_NAME, export_gpu_name(&c->text, gpu));
	pb_uint(&c->node, NODE_TYPE, COMP_NODE);
	put_numbers(&c->node, NODE_CTRL_DEPS, &node, node != UINT64_MAX);
	pb_uint(&c->node, NODE_START, event->time_ns / 1000);
	pb_uint(&c->node, NODE_DURATION, gpu->duration_ns / 1000);
	attr_number(&c->node, NODE_ATTR, "is_cpu_op", ATTR_BOOL, 0);
	attr_number(&c->node, NODE_ATTR, "stream", ATTR_INT64, gpu->stream);
	attr_number(&c->node, NODE_ATTR, "duration_ns", ATTR_UINT64, gpu->duration_ns);
	export_gpu_pairs(event, put_gpu_pair, c);
	return err ? err : write_message(walk, &c->node);
}

static int begin(struct export_walk *walk)
{
	struct chakra *c = export_state(walk, sizeof(*c), free_state);
	int err;

	if (!c)
		return -ENOMEM;
	err = export_text_init(&c->text);
	if (err)
		return err;
	c->outermost = tmpfile();
	if (!c->outermost)
		return -errno;
	attr_string(&c->node, METADATA_ATTR, "schema", "terra-trace");
	attr_number(&c->node, METADATA_ATTR, "pid", ATTR_UINT64, walk->info->pid);
	attr_number(&c->node, METADATA_ATTR, "start_ts", ATTR_UINT64, walk->info->start_ns / 1000);
	attr_string(&c->node, METADATA_ATTR, "command", walk->info->command);
	attr_string(&c->node, METADATA_ATTR, "library", walk->info->library);
	attr_string(&c->node, METADATA_ATTR, "cpu", walk->info->cpu);
	attr_string(&c->node, METADATA_ATTR, "backend", walk->info->backend);
	return write_message(walk, &c->node);
}

static int thread(struct export_walk *walk, const struct export_thread *t)
{
	return 0;
}

/* A trace that stops early says so at its end. */
static int end(struct export_walk *walk)
{
	const struct export_mark m = {.time_ns = walk->last_ns ? walk->last_ns : walk->info->start_ns,
				      .text = "the recording ended abnormally"};
	const struct chakra *c = walk->state;

	if (ferror(c->outermost))
		return -EIO;
	return walk->result->ended_cleanly ? 0 : mark(walk, &m);
}

const struct export_writer export_chakra = {
	.begin = begin,
	.thread = thread,
	.enter = enter,
	.leave = leave,
	.mark = mark,
	.beside = beside,
	.gpu = gpu,
	.end = end,
	.dataflow = true,
};
