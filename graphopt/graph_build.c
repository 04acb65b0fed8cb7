/* graph_build.c - from a trace to the graph of its steady iteration: one reading finds the iteration, the next its ops.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/graph_events.h"

#define MAX_EVENTS 4000000 /* of one iteration */

struct build {
	const char *path;
	struct graph *graph;
	struct terra_iteration steady;
	uint32_t thread;
	struct op_events events;
	char *err;
	size_t err_size;
};

static int fail(const struct build *build, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int fail(const struct build *build, int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(build->err, build->err_size, format, args);
	va_end(args);
	return code;
}

/* ---- first reading ---- */

static int add_all(const struct build *build, struct terra_trace_reader *reader, struct terra_op_stream *stream)
{
	struct terra_event event;
	int ret;

	while ((ret = terra_trace_next(reader, &event)) > 0)
		if (terra_op_stream_add(stream, &event))
			return fail(build, -ENOMEM, "out of memory");
	/* What lies before the damage is as good as ever: recorders end early. */
	return 0;
}

static int take_steady(struct build *build, const struct terra_op_stream *stream, uint32_t pid)
{
	struct terra_iterations iterations = {0};
	int ret = terra_op_stream_iterations(stream, pid, &iterations);

	if (ret == -ENOENT || (!ret && !iterations.n))
		return fail(
		    build, -ENODATA,
		    "no iteration repeats in this trace: record at least three iterations of the program's main loop");
	if (ret)
		return fail(build, ret, "looking for iterations: %s", strerror(-ret));
	build->steady = iterations.items[iterations.steady];
	build->thread = iterations.thread;
	build->graph->iteration = iterations.steady;
	build->graph->iterations = iterations.n;
	terra_iterations_free(&iterations);
	return 0;
}

static int find_iteration(struct build *build, struct terra_trace_reader *reader)
{
	struct terra_op_stream *stream = terra_op_stream_new();
	int ret;

	if (!stream)
		return fail(build, -ENOMEM, "out of memory");
	ret = add_all(build, reader, stream);
	if (!ret)
		ret = take_steady(build, stream, terra_trace_info(reader)->pid);
	terra_op_stream_free(stream);
	return ret;
}

static int copy_info(struct build *build, const struct terra_trace_info *info)
{
	struct graph *graph = build->graph;
	const char *name = strrchr(build->path, '/');

	graph->after = "build";
	graph->build_id = graph_strdup(graph, info->build_id ? info->build_id : "");
	graph->library = graph_strdup(graph, info->library ? info->library : "");
	graph->source =
	    graph_format(graph, "%s: %s", name ? name + 1 : build->path, info->command ? info->command : "");
	graph->threads = info->threads;
	if (!graph->build_id || !graph->library || !graph->source)
		return fail(build, -ENOMEM, "out of memory");
	return 0;
}

/* ---- second reading ---- */

static struct op_event *find_event(struct op_events *events, uint64_t seq)
{
	uint32_t low = 0, high = events->n, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (events->items[middle].seq < seq)
			low = middle + 1;
		else
			high = middle;
	}
	return low < events->n && events->items[low].seq == seq ? &events->items[low] : NULL;
}

static struct op_event *add_event(struct op_events *events)
{
	uint32_t capacity = events->capacity ? events->capacity * 2 : 1024;
	struct op_event *items;

	if (events->n == events->capacity) {
		items = realloc(events->items, capacity * sizeof(*items));
		if (!items)
			return NULL;
		events->items = items;
		events->capacity = capacity;
	}
	memset(&events->items[events->n], 0, sizeof(*events->items));
	return &events->items[events->n++];
}

static void hang_below_parent(struct op_events *events, struct op_event *event, uint64_t parent_seq)
{
	struct op_event *parent = parent_seq == UINT64_MAX ? NULL : find_event(events, parent_seq);
	uint32_t self = (uint32_t)(event - events->items);

	event->parent = event->first_child = event->last_child = event->next_sibling = GRAPH_NONE;
	if (!parent)
		return;
	event->parent = (uint32_t)(parent - events->items);
	if (parent->last_child == GRAPH_NONE)
		parent->first_child = self;
	else
		events->items[parent->last_child].next_sibling = self;
	parent->last_child = self;
}

/* The innermost frame that is not one of the framework's thin wrappers around ops. */
static const struct terra_frame *choose_frame(const struct terra_event *event)
{
	static const char *const wrappers[] = {"/torch/nn/functional.py", "/torch/_tensor.py", "/torch/functional.py"};
	uint32_t i;
	size_t k, n, w = sizeof(wrappers) / sizeof(wrappers[0]);

	for (i = 0; i < event->n_frames; i++) {
		const char *file = event->frames[i].file ? event->frames[i].file : "";

		for (k = 0; k < w; k++) {
			n = strlen(wrappers[k]);
			if (strlen(file) >= n && !strcmp(file + strlen(file) - n, wrappers[k]))
				break;
		}
		if (k == w)
			return &event->frames[i];
	}
	return event->n_frames ? &event->frames[0] : NULL;
}

static int set_frame(struct graph *graph, const struct terra_event *event, struct graph_op *op)
{
	const struct terra_frame *frame = choose_frame(event);

	op->file = op->function = "";
	if (!frame)
		return 0;
	op->file = graph_strdup(graph, frame->file ? frame->file : "");
	op->function = graph_strdup(graph, frame->function ? frame->function : "");
	op->line = frame->line > 0 ? frame->line : 0;
	return op->file && op->function ? 0 : -ENOMEM;
}

static int set_args(struct graph *graph, const struct terra_event *event, struct graph_op *op)
{
	uint32_t i;

	op->n_args = event->n_values;
	if (!op->n_args)
		return 0;
	op->args = graph_alloc(graph, op->n_args * sizeof(*op->args));
	if (!op->args)
		return -ENOMEM;
	for (i = 0; i < op->n_args; i++)
		if (graph_arg_from(graph, &event->values[i], &op->args[i]))
			return -ENOMEM;
	return 0;
}

static int enter(struct build *build, const struct terra_event *event)
{
	struct graph *graph = build->graph;
	struct op_event *item;
	const char *overload = event->overload ? event->overload : "";

	if (build->events.n == MAX_EVENTS)
		return fail(build, -EFBIG, "an iteration of more than %d events", MAX_EVENTS);
	item = add_event(&build->events);
	if (!item)
		return fail(build, -ENOMEM, "out of memory");
	item->seq = event->seq;
	item->keyset = event->keyset;
	item->time_ns = event->time_ns;
	item->level = event->level;
	hang_below_parent(&build->events, item, event->parent_seq);
	item->op.name = graph_format(graph, "%s%s%s", event->op, overload[0] ? "." : "", overload);
	if (!item->op.name || set_args(graph, event, &item->op) || set_frame(graph, event, &item->op))
		return fail(build, -ENOMEM, "out of memory");
	return 0;
}

static int leave(struct build *build, const struct terra_event *event)
{
	struct op_event *item = find_event(&build->events, event->enter_seq);

	if (!item)
		return 0;
	item->exited = true;
	item->op.raised = event->raised;
	item->op.ns = event->time_ns > item->time_ns ? event->time_ns - item->time_ns : 0;
	if (graph_results_from(build->graph, event, &item->op))
		return fail(build, -ENOMEM, "out of memory");
	item->has_results = item->op.n_results > 0;
	return 0;
}

static int take_event(struct build *build, const struct terra_event *event)
{
	bool inside = event->seq >= build->steady.begin && event->seq < build->steady.end;

	if (event->type == TERRA_EVENT_LOST && inside)
		return fail(build, -ENODATA, "events are missing in the middle of the steady iteration: record again");
	if (event->thread != build->thread)
		return 0;
	if (event->type == TERRA_EVENT_OP_ENTER && inside)
		return enter(build, event);
	if (event->type == TERRA_EVENT_OP_EXIT)
		return leave(build, event);
	return 0;
}

static int collect(struct build *build, struct terra_trace_reader *reader)
{
	struct terra_event event;
	int ret = 0;

	while (!ret && terra_trace_next(reader, &event) > 0)
		ret = take_event(build, &event);
	return ret;
}

static int read_twice(struct build *build)
{
	struct terra_trace_reader *reader;
	int ret = terra_trace_open(build->path, &reader, build->err, build->err_size);

	if (ret)
		return ret;
	ret = copy_info(build, terra_trace_info(reader));
	if (!ret)
		ret = find_iteration(build, reader);
	terra_trace_close(reader);
	if (ret)
		return ret;
	ret = terra_trace_open(build->path, &reader, build->err, build->err_size);
	if (ret)
		return ret;
	ret = collect(build, reader);
	terra_trace_close(reader);
	return ret;
}

int graph_build(const char *trace_path, struct graph **out, char *err, size_t err_size)
{
	struct build build = {.path = trace_path, .err = err, .err_size = err_size};
	int ret;

	*out = NULL;
	build.graph = graph_new();
	if (!build.graph)
		return fail(&build, -ENOMEM, "out of memory");
	ret = read_twice(&build);
	if (!ret && graph_choose_ops(build.graph, &build.events))
		ret = fail(&build, -ENOMEM, "out of memory");
	free(build.events.items);
	if (ret)
		graph_free(build.graph);
	else
		*out = build.graph;
	return ret;
}
