/* export_chrome.c - JSON of Chrome's trace event format: a pair of begin and end for each op ("Trace Event Format", the
 * document that chrome://tracing links).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "collector/export_gpu.h"
#include "collector/export_text.h"
#include "collector/report_json.h"

/* Devices as processes and tracks as threads have numbers that the kernel gives to none (they end at 2^22). */
#define GPU_PID (1u << 30)

struct chrome {
	struct export_text text;
	struct export_gpu_tracks gpu;
	struct json json;
};

static void member(struct json *json, const char *key, const char *s)
{
	json_key(json, key);
	json_string(json, s);
}

static void pair(void *context, const char *name, const char *text)
{
	member(context, name, text);
}

static void free_state(void *state)
{
	struct chrome *chrome = state;

	export_text_free(&chrome->text);
	export_gpu_free(&chrome->gpu);
	free(chrome);
}

/* Microseconds since the start of the recording, exactly. What is older counts backwards. */
static void member_time(struct json *json, const char *key, uint64_t time_ns, uint64_t start_ns)
{
	bool before = time_ns < start_ns;
	uint64_t ns = before ? start_ns - time_ns : time_ns - start_ns;

	json_key(json, key);
	json->comma = true;
	fprintf(json->out, "%s%" PRIu64 ".%03" PRIu64, before ? "-" : "", ns / 1000, ns % 1000);
}

/* The beginning of an event, up to its arguments; one event a line. */
static struct json *open_event_of(struct export_walk *walk, const char *phase, uint32_t pid, uint32_t tid)
{
	struct chrome *chrome = walk->state;
	struct json *json = &chrome->json;

	json_open(json, '{');
	member(json, "ph", phase);
	json_key(json, "pid");
	json_u64(json, pid);
	json_key(json, "tid");
	json_u64(json, tid);
	return json;
}

static struct json *open_event(struct export_walk *walk, const char *phase, uint32_t tid)
{
	return open_event_of(walk, phase, walk->info->pid, tid);
}

static void close_event(struct json *json)
{
	json_close(json, '}'); /* of args */
	json_close(json, '}');
	fputc('\n', json->out);
}

static void open_args(struct json *json)
{
	json_key(json, "args");
	json_open(json, '{');
}

static void name_of(struct export_walk *walk, const char *what, uint32_t pid, uint32_t tid, const char *name)
{
	struct json *json = open_event_of(walk, "M", pid, tid);

	member(json, "name", what);
	open_args(json);
	member(json, "name", name);
	close_event(json);
}

static int begin(struct export_walk *walk)
{
	struct chrome *chrome = export_state(walk, sizeof(*chrome), free_state);
	struct json *json;

	if (!chrome)
		return -ENOMEM;
	json = &chrome->json;
	json->out = walk->out;
	json_open(json, '{');
	member(json, "displayTimeUnit", "ns");
	json_key(json, "traceEvents");
	json_open(json, '[');
	name_of(walk, "process_name", walk->info->pid, walk->info->pid, walk->info->command);
	return export_text_init(&chrome->text);
}

static int thread(struct export_walk *walk, const struct export_thread *t)
{
	char name[32];

	snprintf(name, sizeof(name), t->tid == walk->info->pid ? "main thread" : "thread %" PRIu32, t->tid);
	if (t->tid)
		name_of(walk, "thread_name", walk->info->pid, t->tid, name);
	return 0;
}

/* An end of the arrow from a forward op to the backward ones, at the slice around it: "s" where it starts, "f" where it ends. Both
 * are at the begin of their slices: at its end a slice may count as over. */
static void arrow(struct export_walk *walk, const char *phase, uint32_t tid, uint64_t time_ns, uint64_t forward)
{
	struct json *json = open_event(walk, phase, tid);

	member_time(json, "ts", time_ns, walk->info->start_ns);
	member(json, "name", "forward to backward");
	member(json, "cat", "autograd");
	json_key(json, "id");
	json_hex(json, export_flow_id(walk, EXPORT_FLOW_AUTOGRAD, forward));
	if (*phase == 'f')
		member(json, "bp", "e");
	json_close(json, '}');
	fputc('\n', json->out);
}

static int enter(struct export_walk *walk, struct export_thread *t, struct export_op *op,
		 const struct terra_event *event, uint32_t depth)
{
	struct chrome *chrome = walk->state;
	const char *name = export_op_name(&chrome->text, event);
	struct json *json;
	int err;

	if (!name)
		return -ENOMEM;
	json = open_event(walk, "B", t->tid);
	member_time(json, "ts", op->start_ns, walk->info->start_ns);
	member(json, "name", name);
	member(json, "cat", export_level_name(op->level));
	open_args(json);
	err = export_pairs(&chrome->text, event, pair, json);
	close_event(json);
	if (export_begins_backward(t, op, depth))
		arrow(walk, "f", t->tid, op->start_ns, op->forward_seq);
	return err;
}

static int leave(struct export_walk *walk, struct export_thread *t, struct export_op *op, uint32_t depth,
		 uint64_t end_ns, enum export_end end, const struct terra_event *event)
{
	struct chrome *chrome = walk->state;
	struct json *json;
	int err = 0;

	if (event && event->autograd)
		arrow(walk, "s", t->tid, op->start_ns, op->seq);
	json = open_event(walk, "E", t->tid);
	member_time(json, "ts", end_ns, walk->info->start_ns);
	open_args(json);
	if (event)
		err = export_pairs(&chrome->text, event, pair, json);
	if (export_end_text(end))
		member(json, "end", export_end_text(end));
	close_event(json);
	return err;
}

static int mark(struct export_walk *walk, const struct export_mark *m)
{
	struct json *json = open_event(walk, "i", m->thread ? m->thread : walk->info->pid);

	member_time(json, "ts", m->time_ns, walk->info->start_ns);
	member(json, "name", export_mark_name(m));
	member(json, "cat", "recording");
	member(json, "s", m->thread ? "t" : "p");
	open_args(json);
	if (m->type == TERRA_EVENT_LOST) {
		json_key(json, "count");
		json_u64(json, m->lost);
	} else {
		member(json, "text", m->text);
	}
	close_event(json);
	return 0;
}

static int beside(struct export_walk *walk, const struct export_thread *t, const struct terra_event *event)
{
	struct chrome *chrome = walk->state;
	const char *name = export_beside_name(&chrome->text, event);
	struct json *json;
	int err;

	if (!name)
		return -ENOMEM;
	json = open_event(walk, "i", t->tid);
	member_time(json, "ts", event->time_ns, walk->info->start_ns);
	member(json, "name", name);
	member(json, "cat", EXPORT_BESIDE);
	member(json, "s", "t");
	open_args(json);
	err = export_pairs(&chrome->text, event, pair, json);
	close_event(json);
	return err;
}

static int gpu(struct export_walk *walk, const struct terra_event *event)
{
	struct chrome *chrome = walk->state;
	struct export_gpu_place place;
	int err = export_gpu_place(&chrome->gpu, event, &place);
	uint32_t pid = place.group ? GPU_PID + place.group : walk->info->pid, tid = GPU_PID + place.track;
	const char *name = err ? NULL : export_gpu_name(&chrome->text, event->gpu);
	struct json *json;

	if (!name)
		return -ENOMEM;
	if (place.group_is_new)
		name_of(walk, "process_name", pid, tid, place.group_name);
	if (place.track_is_new)
		name_of(walk, "thread_name", pid, tid, place.track_name);
	json = open_event_of(walk, "X", pid, tid);
	member_time(json, "ts", event->time_ns, walk->info->start_ns);
	member_time(json, "dur", event->gpu->duration_ns, 0);
	member(json, "name", name);
	member(json, "cat", export_gpu_category(event->gpu));
	if (export_gpu_is_joined(event->gpu)) {
		json_key(json, "bind_id"); /* not an arrow's ends of their own: a slice of no length would be around none */
		json_hex(json, export_flow_id(walk, EXPORT_FLOW_GPU, event->gpu->correlation));
		json_key(json, export_gpu_is_call(event->gpu) ? "flow_out" : "flow_in");
		json_bool(json, true);
	}
	open_args(json);
	export_gpu_pairs(event, pair, json);
	close_event(json);
	return 0;
}

static int end(struct export_walk *walk)
{
	struct chrome *chrome = walk->state;
	const struct terra_export_result *result = walk->result;
	struct json *json = &chrome->json;

	json_close(json, ']');
	json_key(json, "otherData");
	json_open(json, '{');
	member(json, "backend", walk->info->backend);
	member(json, "library", walk->info->library);
	member(json, "cpu", walk->info->cpu);
	member(json, "ended", result->ended_cleanly ? "cleanly" : "abnormally");
	json_key(json, "events_lost");
	json_u64(json, result->lost);
	json_key(json, "events_missing");
	json_u64(json, result->missing);
	json_close(json, '}');
	json_close(json, '}');
	fputc('\n', json->out);
	return 0;
}

const struct export_writer export_chrome = {
	.begin = begin,
	.thread = thread,
	.enter = enter,
	.leave = leave,
	.mark = mark,
	.beside = beside,
	.gpu = gpu,
	.timeline = true,
	.end = end,
};
