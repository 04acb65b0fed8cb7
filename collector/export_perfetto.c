/* export_perfetto.c - a Perfetto trace of TrackEvents.
 *
 * The messages are those of Perfetto's public protos (github.com/google/perfetto, protos/perfetto/trace/): trace.proto,
 * trace_packet.proto, trace_packet_defaults.proto, clock_snapshot.proto, interned_data/interned_data.proto, and of
 * track_event/: track_event.proto, debug_annotation.proto, track_descriptor.proto, process_descriptor.proto and
 * thread_descriptor.proto. The numbers below are their fields; a field's number never changes.
 *
 * All packets are one sequence, since names are interned per sequence. Times are the trace's own, of CLOCK_MONOTONIC,
 * so that the file can be merged with other recordings of the machine.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "collector/export_gpu.h"
#include "collector/export_text.h"
#include "collector/protobuf.h"

enum {
	TRACE_PACKET = 1,

	PACKET_CLOCK_SNAPSHOT = 6,
	PACKET_TIMESTAMP = 8,
	PACKET_SEQUENCE_ID = 10,
	PACKET_TRACK_EVENT = 11,
	PACKET_INTERNED_DATA = 12,
	PACKET_SEQUENCE_FLAGS = 13,
	PACKET_DEFAULTS = 59,
	PACKET_TRACK_DESCRIPTOR = 60,

	DEFAULTS_CLOCK_ID = 58,

	SNAPSHOT_CLOCK = 1,
	SNAPSHOT_PRIMARY = 2,
	CLOCK_ID = 1,
	CLOCK_TIMESTAMP = 2,

	TRACK_UUID = 1,
	TRACK_NAME = 2,
	TRACK_PROCESS = 3,
	TRACK_THREAD = 4,
	TRACK_PARENT = 5,
	PROCESS_PID = 1,
	PROCESS_COMMAND = 2,
	PROCESS_NAME = 6,
	THREAD_PID = 1,
	THREAD_TID = 2,
	THREAD_NAME = 5,

	EVENT_CATEGORY_ID = 3,
	EVENT_ANNOTATION = 4,
	EVENT_TYPE = 9,
	EVENT_NAME_ID = 10,
	EVENT_TRACK = 11,
	EVENT_FLOW = 47,

	ANNOTATION_NAME_ID = 1,
	ANNOTATION_UINT = 3,
	ANNOTATION_STRING = 6,

	INTERNED_CATEGORY = 1,
	INTERNED_NAME = 2,
	INTERNED_ANNOTATION = 3,
	ENTRY_ID = 1,
	ENTRY_NAME = 2,
};

enum {
	SEQUENCE = 1,	      /* any number but 0 */
	SEQUENCE_CLEARED = 1, /* flag: what was interned before, on this sequence, is gone */
	SEQUENCE_NEEDS_STATE = 2,
	MONOTONIC = 3, /* CLOCK_MONOTONIC among the built-in clocks */

	SLICE_BEGIN = 1,
	SLICE_END = 2,
	INSTANT = 3,
};

/* A sort of strings that are interned, each with its own numbers, from 1. */
struct strings {
	struct trace_intern intern;
	uint32_t field; /* in InternedData */
};

struct perfetto {
	struct export_text text;
	struct export_gpu_tracks gpu;
	struct strings categories, names, annotations;
	struct trace_buffer event; /* a TrackEvent */
	struct trace_buffer data;  /* the InternedData that it needs */
	struct trace_buffer packet;
};

static void free_state(void *state)
{
	struct perfetto *p = state;

	export_text_free(&p->text);
	export_gpu_free(&p->gpu);
	trace_intern_free(&p->categories.intern);
	trace_intern_free(&p->names.intern);
	trace_intern_free(&p->annotations.intern);
	free(p->event.data);
	free(p->data.data);
	free(p->packet.data);
	free(p);
}

/* Packets. */

static int write_packet(struct export_walk *walk, size_t begin)
{
	struct perfetto *p = walk->state;

	pb_end(&p->packet, begin);
	if (p->packet.failed)
		return -ENOMEM;
	fwrite(p->packet.data, 1, p->packet.size, walk->out);
	return 0;
}

static size_t begin_packet(struct perfetto *p)
{
	size_t begin;

	p->packet.size = 0;
	begin = pb_begin(&p->packet, TRACE_PACKET);
	pb_uint(&p->packet, PACKET_SEQUENCE_ID, SEQUENCE);
	return begin;
}

/* The number of a string; a new one is defined in the packet that uses it first. */
static uint64_t intern(struct perfetto *p, struct strings *strings, const char *s)
{
	uint32_t known = strings->intern.n_entries;
	struct trace_intern_entry *entry = trace_intern_get(&strings->intern, s, strlen(s));
	uint64_t id;
	size_t begin;

	if (!entry) {
		p->data.failed = true;
		return 0;
	}
	id = (uint64_t)(entry - strings->intern.entries) + 1;
	if (strings->intern.n_entries > known) {
		begin = pb_begin(&p->data, strings->field);
		pb_uint(&p->data, ENTRY_ID, id);
		pb_string(&p->data, ENTRY_NAME, s);
		pb_end(&p->data, begin);
	}
	return id;
}

static uint64_t process_track(const struct export_walk *walk)
{
	return (uint64_t)walk->info->pid << 32 | UINT32_MAX;
}

static uint64_t track_of(const struct export_walk *walk, uint32_t tid)
{
	return tid ? (uint64_t)walk->info->pid << 32 | tid : process_track(walk);
}

/* Behind all tids. */
static uint64_t gpu_track(const struct export_walk *walk, uint32_t number)
{
	return (uint64_t)walk->info->pid << 32 | 1u << 31 | number;
}

static void begin_event_at(struct perfetto *p, uint64_t type, uint64_t track)
{
	p->event.size = p->data.size = 0;
	pb_uint(&p->event, EVENT_TYPE, type);
	pb_uint(&p->event, EVENT_TRACK, track);
}

static void begin_event(struct export_walk *walk, uint64_t type, uint32_t tid)
{
	begin_event_at(walk->state, type, track_of(walk, tid));
}

/* Slices with one number are joined by arrows, in the order of time. */
static void join(struct export_walk *walk, enum export_flow flow, uint64_t id)
{
	pb_fixed64(&((struct perfetto *)walk->state)->event, EVENT_FLOW, export_flow_id(walk, flow, id));
}

static void name_event(struct perfetto *p, const char *category, const char *name)
{
	pb_uint(&p->event, EVENT_CATEGORY_ID, intern(p, &p->categories, category));
	pb_uint(&p->event, EVENT_NAME_ID, intern(p, &p->names, name));
}

static int end_event(struct export_walk *walk, uint64_t time_ns)
{
	struct perfetto *p = walk->state;
	size_t begin = begin_packet(p);

	if (p->event.failed || p->data.failed)
		return -ENOMEM;
	pb_uint(&p->packet, PACKET_SEQUENCE_FLAGS, SEQUENCE_NEEDS_STATE);
	pb_uint(&p->packet, PACKET_TIMESTAMP, time_ns);
	if (p->data.size)
		pb_bytes(&p->packet, PACKET_INTERNED_DATA, p->data.data, p->data.size);
	pb_bytes(&p->packet, PACKET_TRACK_EVENT, p->event.data, p->event.size);
	return write_packet(walk, begin);
}

static void annotate(void *context, const char *name, const char *text)
{
	struct perfetto *p = context;
	size_t begin = pb_begin(&p->event, EVENT_ANNOTATION);

	pb_uint(&p->event, ANNOTATION_NAME_ID, intern(p, &p->annotations, name));
	pb_string(&p->event, ANNOTATION_STRING, text);
	pb_end(&p->event, begin);
}

static void annotate_number(struct perfetto *p, const char *name, uint64_t v)
{
	size_t begin = pb_begin(&p->event, EVENT_ANNOTATION);

	pb_uint(&p->event, ANNOTATION_NAME_ID, intern(p, &p->annotations, name));
	pb_uint(&p->event, ANNOTATION_UINT, v);
	pb_end(&p->event, begin);
}

/* The file. */

/* Starts the sequence: its clock, which is the file's. */
static int write_first(struct export_walk *walk)
{
	struct perfetto *p = walk->state;
	size_t begin = begin_packet(p), snapshot, inner;

	pb_uint(&p->packet, PACKET_SEQUENCE_FLAGS, SEQUENCE_CLEARED);
	snapshot = pb_begin(&p->packet, PACKET_CLOCK_SNAPSHOT);
	inner = pb_begin(&p->packet, SNAPSHOT_CLOCK);
	pb_uint(&p->packet, CLOCK_ID, MONOTONIC);
	pb_uint(&p->packet, CLOCK_TIMESTAMP, walk->info->start_ns);
	pb_end(&p->packet, inner);
	pb_uint(&p->packet, SNAPSHOT_PRIMARY, MONOTONIC);
	pb_end(&p->packet, snapshot);
	inner = pb_begin(&p->packet, PACKET_DEFAULTS);
	pb_uint(&p->packet, DEFAULTS_CLOCK_ID, MONOTONIC);
	pb_end(&p->packet, inner);
	return write_packet(walk, begin);
}

static int write_process(struct export_walk *walk)
{
	struct perfetto *p = walk->state;
	size_t begin = begin_packet(p), track, process;

	track = pb_begin(&p->packet, PACKET_TRACK_DESCRIPTOR);
	pb_uint(&p->packet, TRACK_UUID, process_track(walk));
	process = pb_begin(&p->packet, TRACK_PROCESS);
	pb_uint(&p->packet, PROCESS_PID, walk->info->pid);
	pb_string(&p->packet, PROCESS_COMMAND, walk->info->command);
	pb_string(&p->packet, PROCESS_NAME, walk->info->command);
	pb_end(&p->packet, process);
	pb_end(&p->packet, track);
	return write_packet(walk, begin);
}

static int begin(struct export_walk *walk)
{
	struct perfetto *p = export_state(walk, sizeof(*p), free_state);
	int err;

	if (!p)
		return -ENOMEM;
	p->categories.field = INTERNED_CATEGORY;
	p->names.field = INTERNED_NAME;
	p->annotations.field = INTERNED_ANNOTATION;
	err = export_text_init(&p->text);
	if (!err)
		err = write_first(walk);
	return err ? err : write_process(walk);
}

static int thread(struct export_walk *walk, const struct export_thread *t)
{
	struct perfetto *p = walk->state;
	size_t begin, track, descriptor;
	char name[32];

	if (t->tid == 0)
		return 0;
	snprintf(name, sizeof(name), t->tid == walk->info->pid ? "main thread" : "thread %" PRIu32, t->tid);
	begin = begin_packet(p);
	track = pb_begin(&p->packet, PACKET_TRACK_DESCRIPTOR);
	pb_uint(&p->packet, TRACK_UUID, track_of(walk, t->tid));
	pb_uint(&p->packet, TRACK_PARENT, process_track(walk));
	descriptor = pb_begin(&p->packet, TRACK_THREAD);
	pb_uint(&p->packet, THREAD_PID, walk->info->pid);
	pb_uint(&p->packet, THREAD_TID, t->tid);
	pb_string(&p->packet, THREAD_NAME, name);
	pb_end(&p->packet, descriptor);
	pb_end(&p->packet, track);
	return write_packet(walk, begin);
}

static int enter(struct export_walk *walk, struct export_thread *t, struct export_op *op,
		 const struct terra_event *event, uint32_t depth)
{
	struct perfetto *p = walk->state;
	const char *name = export_op_name(&p->text, event);
	int err;

	if (!name)
		return -ENOMEM;
	begin_event(walk, SLICE_BEGIN, t->tid);
	name_event(p, export_level_name(op->level), name);
	if (export_begins_backward(t, op, depth))
		join(walk, EXPORT_FLOW_AUTOGRAD, op->forward_seq);
	err = export_pairs(&p->text, event, annotate, p);
	return err ? err : end_event(walk, op->start_ns);
}

static int leave(struct export_walk *walk, struct export_thread *t, struct export_op *op, uint32_t depth,
		 uint64_t end_ns, enum export_end end, const struct terra_event *event)
{
	struct perfetto *p = walk->state;
	int err = 0;

	begin_event(walk, SLICE_END, t->tid);
	if (event)
		err = export_pairs(&p->text, event, annotate, p);
	if (event && event->autograd)
		join(walk, EXPORT_FLOW_AUTOGRAD, op->seq);
	if (export_end_text(end))
		annotate(p, "end", export_end_text(end));
	return err ? err : end_event(walk, end_ns);
}

static int mark(struct export_walk *walk, const struct export_mark *m)
{
	struct perfetto *p = walk->state;

	begin_event(walk, INSTANT, m->thread);
	name_event(p, "recording", export_mark_name(m));
	if (m->type == TERRA_EVENT_LOST)
		annotate_number(p, "count", m->lost);
	else
		annotate(p, "text", m->text);
	return end_event(walk, m->time_ns);
}

static int beside(struct export_walk *walk, const struct export_thread *t, const struct terra_event *event)
{
	struct perfetto *p = walk->state;
	const char *name = export_beside_name(&p->text, event);
	int err;

	if (!name)
		return -ENOMEM;
	begin_event(walk, INSTANT, t->tid);
	name_event(p, EXPORT_BESIDE, name);
	err = export_pairs(&p->text, event, annotate, p);
	return err ? err : end_event(walk, event->time_ns);
}

/* GPU activity. */

static int describe(struct export_walk *walk, uint32_t number, uint64_t parent, const char *name)
{
	struct perfetto *p = walk->state;
	size_t begin = begin_packet(p), track;

	track = pb_begin(&p->packet, PACKET_TRACK_DESCRIPTOR);
	pb_uint(&p->packet, TRACK_UUID, gpu_track(walk, number));
	pb_uint(&p->packet, TRACK_PARENT, parent);
	pb_string(&p->packet, TRACK_NAME, name);
	pb_end(&p->packet, track);
	return write_packet(walk, begin);
}

static int describe_new(struct export_walk *walk, const struct export_gpu_place *place)
{
	int err = 0;

	if (place->group_is_new)
		err = describe(walk, place->group, process_track(walk), place->group_name);
	if (err || !place->track_is_new)
		return err;
	return describe(walk, place->track, place->group ? gpu_track(walk, place->group) : track_of(walk, place->thread),
			place->track_name);
}

static int gpu(struct export_walk *walk, const struct terra_event *event)
{
	struct perfetto *p = walk->state;
	struct export_gpu_place place;
	int err = export_gpu_place(&p->gpu, event, &place);
	const char *name;

	if (!err)
		err = describe_new(walk, &place);
	if (err)
		return err;
	name = export_gpu_name(&p->text, event->gpu);
	if (!name)
		return -ENOMEM;
	begin_event_at(p, SLICE_BEGIN, gpu_track(walk, place.track));
	name_event(p, export_gpu_category(event->gpu), name);
	if (export_gpu_is_joined(event->gpu))
		join(walk, EXPORT_FLOW_GPU, event->gpu->correlation);
	export_gpu_pairs(event, annotate, p);
	err = end_event(walk, event->time_ns);
	begin_event_at(p, SLICE_END, gpu_track(walk, place.track));
	return err ? err : end_event(walk, event->time_ns + event->gpu->duration_ns);
}

/* How the recording ended is said where it ends. */
static int end(struct export_walk *walk)
{
	struct perfetto *p = walk->state;
	const struct terra_export_result *result = walk->result;

	if (result->ended_cleanly && !result->missing)
		return 0;
	begin_event(walk, INSTANT, 0);
	name_event(p, "recording", result->ended_cleanly ? "events missing" : "ended abnormally");
	annotate_number(p, "events missing", result->missing);
	return end_event(walk, walk->last_ns ? walk->last_ns : walk->info->start_ns);
}

const struct export_writer export_perfetto = {
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
