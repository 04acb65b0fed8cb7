/* export_walk.h - a trace as properly nested ops per thread, for the formats; private to the exports.
 *
 * Whatever the trace lacks, an op is left after all ops inside it, never before it was entered, and exactly once; on
 * one thread times never go back.
 */
#ifndef TERRA_COLLECTOR_EXPORT_WALK_H
#define TERRA_COLLECTOR_EXPORT_WALK_H

#include "collector/dataflow.h"
#include "collector/export.h"
#include "collector/trace_intern.h"

enum export_end {
	EXPORT_RETURNED,
	EXPORT_RAISED,
	EXPORT_NO_EXIT, /* it is over, as what follows on its thread shows, but its exit is not in the trace */
	EXPORT_OPEN,	/* the trace ends */
};

struct export_thread {
	uint32_t tid;
	uint64_t last_ns;
	uint64_t last_outermost; /* seq of the outermost op that was left last; UINT64_MAX: none yet */
	struct export_op *ops;	 /* open ones, outermost first */
	uint32_t n_ops, capacity;
};

/* An op that was entered and not left yet. */
struct export_op {
	uint64_t seq;
	uint64_t start_ns;
	uint64_t forward_seq; /* in a backward pass: of the op that made the Node; UINT64_MAX: not known, or in none */
	uint8_t level;
	bool in_backward;
	void *data;			 /* the format's own, from malloc: what leave() needs and frees */
	struct terra_dataflow_call call; /* formats with dataflow */
};

/* A fact about the recording: a NOTE, a LOST, or damage (type 0). */
struct export_mark {
	uint8_t type;
	uint32_t thread; /* 0: not of one thread */
	uint64_t time_ns;
	uint64_t seq; /* not of damage, which is no event */
	uint64_t lost;
	const char *text; /* of notes and damage */
};

struct export_walk;

/* Functions return 0, -ENOMEM, or -errno of a temporary file; errors of the stream are found by the walk. `depth` is the number of
 * ops around. */
struct export_writer {
	int (*begin)(struct export_walk *walk);
	/* Before the first op or mark of a thread. */
	int (*thread)(struct export_walk *walk, const struct export_thread *thread);
	int (*enter)(struct export_walk *walk, struct export_thread *thread, struct export_op *op,
		     const struct terra_event *event, uint32_t depth);
	/* `event` is the OP_EXIT, NULL for EXPORT_NO_EXIT and EXPORT_OPEN. */
	int (*leave)(struct export_walk *walk, struct export_thread *thread, struct export_op *op, uint32_t depth,
		     uint64_t end_ns, enum export_end end, const struct terra_event *event);
	int (*mark)(struct export_walk *walk, const struct export_mark *mark);
	/* A HOST_READ or CALL; its time does not go back on its thread. */
	int (*beside)(struct export_walk *walk, const struct export_thread *thread, const struct terra_event *event);
	/* A GPU activity or call, with its own time. NULL: they are left out, and counted. */
	int (*gpu)(struct export_walk *walk, const struct terra_event *event);
	int (*end)(struct export_walk *walk);
	bool dataflow; /* keep walk->flow up to date */
	bool timeline; /* GPU activity by time, as far as a window of bounded size sorts it, and none without times */
};

extern const struct export_writer export_perfetto, export_chrome, export_chakra, export_json;

struct export_walk {
	const struct export_writer *writer;
	const struct terra_trace_info *info;
	FILE *out;
	struct terra_export_result *result;
	struct terra_dataflow *flow;
	struct trace_intern threads;	 /* by tid */
	struct trace_buffer thread_data; /* struct export_thread */
	struct export_window *window;	 /* of GPU activity; timelines */
	uint64_t last_ns;		 /* latest time of all threads */
	void *state;			 /* the format's own, of export_state */
	void (*free_state)(void *state);
};

/* For begin: the format's own, zeroed, which free_state frees. NULL when out of memory. */
void *export_state(struct export_walk *walk, size_t size, void (*free_state)(void *state));

/* Appends to `out` who made the tensors that the op gets: seqs (uint64_t) of outermost ops, each once, in order. 0 or
 * -ENOMEM. */
int export_producers(struct export_walk *walk, const struct terra_event *event, struct trace_buffer *out);

/* Whether an op with that seq is open on any thread. */
bool export_is_open(struct export_walk *walk, uint64_t seq);

/* Whether the op is the outermost of those that autograd runs for one Node, and the Node's maker is known: where an arrow
 * from forward to backward ends. */
bool export_begins_backward(const struct export_thread *thread, const struct export_op *op, uint32_t depth);

/* Arrows of a timeline, by what their ends have in common. */
enum export_flow {
	EXPORT_FLOW_AUTOGRAD = 1, /* seq of the forward op */
	EXPORT_FLOW_GPU = 2,	  /* correlation */
};
uint64_t export_flow_id(const struct export_walk *walk, enum export_flow flow, uint64_t id);

#endif
