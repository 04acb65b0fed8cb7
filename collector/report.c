/* report.c - one pass over a trace: counts, times by op and by call site, iterations. */
#include "collector/report.h"
#include "collector/report_values.h"
#include "collector/trace_intern.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* An op that was entered and not left yet. */
struct open_op {
	uint64_t seq;
	uint64_t time;
	uint64_t inside_ns; /* spent in ops inside */
	uint32_t kind;
	uint32_t site;      /* NO_SITE: not outermost, or without a stack */
	uint64_t module;    /* as report_modules_enter gives it */
};

#define NO_SITE UINT32_MAX
#define MAX_NESTING 64

struct open_ops {
	struct open_op *ops;
	uint32_t n, capacity;
};

/* An outermost op, by which iterations get times. */
struct mark {
	uint64_t seq;
	uint64_t time;
};

struct summary_state {
	struct trace_intern kinds;   /* op NUL overload NUL */
	struct trace_intern sites;   /* two frames */
	struct trace_intern threads; /* tid */
	struct trace_intern notes;   /* text NUL */
	struct trace_intern others;  /* likewise */
	struct trace_buffer kind_data, site_data, thread_data, note_data, other_data; /* arrays, one entry per number above */
	struct trace_buffer open;    /* struct open_ops per thread */
	struct trace_buffer marks;
	struct trace_buffer key;
	struct terra_op_stream *stream;
	struct gpu_report *gpu;
	struct report_modules *modules;
};

/* The number of a key, which is the index of its entry in `data`, and that entry; NULL when memory ran out. A new key
 * gets zeros. */
static void *entry_of(struct trace_intern *intern, struct trace_buffer *data, size_t each, const void *key, size_t size,
		      uint32_t *index)
{
	struct trace_intern_entry *entry = trace_intern_get(intern, key, size);

	if (!entry)
		return NULL;
	*index = (uint32_t)(entry - intern->entries);
	if (data->size == *index * each) {
		if (!trace_buffer_reserve(data, each))
			return NULL;
		memset(data->data + data->size, 0, each);
		data->size += each;
	}
	return data->data + *index * each;
}

static struct summary_kind *kind_of(struct summary_state *state, const struct terra_event *event, uint32_t *index)
{
	struct trace_buffer *key = &state->key;

	key->size = 0;
	trace_buffer_put(key, event->op, strlen(event->op) + 1);
	trace_buffer_put(key, event->overload, strlen(event->overload) + 1);
	if (key->failed)
		return NULL;
	return entry_of(&state->kinds, &state->kind_data, sizeof(struct summary_kind), key->data, key->size, index);
}

static struct summary_kind *kind_at(struct summary_state *state, uint32_t index)
{
	return (struct summary_kind *)state->kind_data.data + index;
}

static struct summary_thread *thread_of(struct summary_state *state, uint32_t thread, struct open_ops **open)
{
	struct summary_thread *entry;
	uint32_t index;

	entry = entry_of(&state->threads, &state->thread_data, sizeof(*entry), &thread, sizeof(thread), &index);
	if (!entry)
		return NULL;
	*open = entry_of(&state->threads, &state->open, sizeof(**open), &thread, sizeof(thread), &index);
	entry->thread = thread;
	return *open ? entry : NULL;
}

/* Call sites. */

/* Installed packages and Python's own library: not the user's program. */
static bool is_library(const char *file)
{
	return !file || file[0] == '<' || strstr(file, "/site-packages/") || strstr(file, "/dist-packages/") ||
	       strstr(file, "/lib/python");
}

const struct terra_frame *report_caller_of(const struct terra_event *event)
{
	for (uint32_t i = 1; i < event->n_frames && is_library(event->frames[i - 1].file); i++)
		if (!is_library(event->frames[i].file))
			return &event->frames[i];
	return NULL;
}

static void put_frame(struct trace_buffer *key, const struct terra_frame *frame)
{
	static const struct terra_frame none;
	const char *file, *function;

	frame = frame ? frame : &none;
	file = frame->file ? frame->file : "";
	function = frame->function ? frame->function : "";
	trace_buffer_put(key, &frame->line, sizeof(frame->line));
	trace_buffer_put(key, file, strlen(file) + 1);
	trace_buffer_put(key, function, strlen(function) + 1);
}

static const char *take_frame(const char *p, struct terra_frame *frame)
{
	memcpy(&frame->line, p, sizeof(frame->line));
	frame->file = p + sizeof(frame->line);
	frame->function = frame->file + strlen(frame->file) + 1;
	return frame->function + strlen(frame->function) + 1;
}

static int site_of(struct summary_state *state, const struct terra_event *event, uint32_t *index)
{
	struct trace_buffer *key = &state->key;
	struct summary_site *site;

	key->size = 0;
	put_frame(key, &event->frames[0]);
	put_frame(key, report_caller_of(event));
	if (key->failed)
		return -ENOMEM;
	site = entry_of(&state->sites, &state->site_data, sizeof(*site), key->data, key->size, index);
	if (!site)
		return -ENOMEM;
	site->calls++;
	return 0;
}

/* Ops. */

static struct open_op *push(struct open_ops *open)
{
	if (open->n == open->capacity) {
		uint32_t capacity = open->capacity ? open->capacity * 2 : 16;
		struct open_op *ops = realloc(open->ops, capacity * sizeof(*ops));

		if (!ops)
			return NULL;
		open->ops = ops;
		open->capacity = capacity;
	}
	return &open->ops[open->n++];
}

static int enter(struct terra_summary *s, const struct terra_event *event)
{
	struct summary_state *state = s->state;
	struct open_op op = {.seq = event->seq, .time = event->time_ns, .site = NO_SITE};
	struct mark mark = {.seq = event->seq, .time = event->time_ns};
	struct summary_kind *kind = kind_of(state, event, &op.kind);
	struct summary_thread *thread;
	struct open_ops *open;
	struct open_op *slot;

	thread = kind ? thread_of(state, event->thread, &open) : NULL;
	if (!thread)
		return -ENOMEM;
	thread->ops++;
	kind->calls += event->level == TERRA_LEVEL_CALL;
	kind->redispatches += event->level == TERRA_LEVEL_REDISPATCH;
	s->calls += event->level == TERRA_LEVEL_CALL;
	s->redispatches += event->level == TERRA_LEVEL_REDISPATCH;
	if (event->parent_seq == UINT64_MAX) {
		trace_buffer_put(&state->marks, &mark, sizeof(mark));
		if (event->n_frames == 0)
			s->without_stack++;
		else if (site_of(state, event, &op.site) != 0)
			return -ENOMEM;
	}
	slot = push(open);
	if (!slot || state->marks.failed || report_modules_enter(state->modules, event, &op.module) != 0)
		return -ENOMEM;
	*slot = op;
	s->unfinished++;
	return 0;
}

/* Whether an op of that kind is among the enclosing ones. Real nesting is shallow; a made-up file must not make this
 * slow. */
static bool inside_same_kind(const struct open_ops *open, uint32_t kind)
{
	uint32_t last = open->n > MAX_NESTING ? open->n - MAX_NESTING : 0;

	for (uint32_t i = open->n; i > last; i--)
		if (open->ops[i - 1].kind == kind)
			return true;
	return false;
}

/* The op is the last open one of its thread: those above it, whose exits are missing, were dropped. */
static void leave(struct terra_summary *s, const struct terra_event *event, struct summary_thread *thread,
		  struct open_ops *open)
{
	struct open_op op = open->ops[--open->n];
	struct summary_kind *kind = kind_at(s->state, op.kind);
	uint64_t total = event->time_ns > op.time ? event->time_ns - op.time : 0;

	s->unfinished--;
	kind->raised += event->raised;
	s->raised += event->raised;
	kind->self_ns += total > op.inside_ns ? total - op.inside_ns : 0;
	if (!inside_same_kind(open, op.kind))
		kind->total_ns += total;
	if (open->n)
		open->ops[open->n - 1].inside_ns += total;
	else
		thread->total_ns += total;
	report_modules_leave(s->state->modules, op.module, total);
	if (op.site != NO_SITE)
		((struct summary_site *)s->state->site_data.data)[op.site].total_ns += total;
}

static int compare_open(const void *a, const void *b)
{
	const struct open_op *x = a, *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static int exit_op(struct terra_summary *s, const struct terra_event *event)
{
	struct open_ops *open;
	struct summary_thread *thread = thread_of(s->state, event->thread, &open);
	struct open_op key = {.seq = event->enter_seq}, *op;

	if (!thread)
		return -ENOMEM;
	op = open->n ? bsearch(&key, open->ops, open->n, sizeof(key), compare_open) : NULL;
	if (!op)
		return 0; /* entered before the recording, or where the trace is damaged */
	open->n = (uint32_t)(op - open->ops) + 1;
	leave(s, event, thread, open);
	return 0;
}

static int count_text(struct trace_intern *texts, struct trace_buffer *data, const char *text)
{
	struct summary_note *entry;
	uint32_t index;

	entry = entry_of(texts, data, sizeof(*entry), text, strlen(text) + 1, &index);
	if (!entry)
		return -ENOMEM;
	entry->count++;
	return 0;
}

static int note(struct terra_summary *s, const struct terra_event *event)
{
	return count_text(&s->state->notes, &s->state->note_data, event->text);
}

static int other(struct terra_summary *s, const struct terra_event *event)
{
	bool overload = event->overload && event->overload[0];
	char text[1024];

	snprintf(text, sizeof(text), "%s %s%s%s%s%s", event->type == TERRA_EVENT_HOST_READ ? "read by" : "call by",
		 event->text, event->op ? " " : "", event->op ? event->op : "", overload ? "." : "",
		 overload ? event->overload : "");
	return count_text(&s->state->others, &s->state->other_data, text);
}

static int take(struct terra_summary *s, const struct terra_event *event)
{
	s->events++;
	if (event->type == TERRA_EVENT_GPU && event->gpu->untimed)
		return gpu_report_add(s->state->gpu, event);
	if (event->type == TERRA_EVENT_NOTE) /* of the recording: it may have been written long before anything happened */
		return note(s, event);
	if (s->first_ns == 0 || event->time_ns < s->first_ns)
		s->first_ns = event->time_ns;
	if (event->time_ns > s->last_ns)
		s->last_ns = event->time_ns;
	if (terra_op_stream_add(s->state->stream, event) != 0 || gpu_report_add(s->state->gpu, event) != 0)
		return -ENOMEM;
	if (event->type == TERRA_EVENT_OP_ENTER)
		return enter(s, event);
	if (event->type == TERRA_EVENT_OP_EXIT)
		return exit_op(s, event);
	if (event->type == TERRA_EVENT_HOST_READ || event->type == TERRA_EVENT_CALL)
		return other(s, event);
	return 0;
}

static int note_damage(struct terra_summary *s, const struct terra_trace_reader *reader)
{
	if (s->n_damage < SUMMARY_DAMAGE_KEPT) {
		s->damage[s->n_damage] = strdup(terra_trace_error(reader));
		if (!s->damage[s->n_damage])
			return -ENOMEM;
	}
	s->n_damage++;
	return 0;
}

static int read_all(struct terra_summary *s, struct terra_trace_reader *reader)
{
	struct terra_event event;
	int ret;

	while ((ret = terra_trace_next(reader, &event)) != 0) {
		int err = ret > 0 ? take(s, &event) : note_damage(s, reader);

		if (err)
			return err;
	}
	s->lost = terra_trace_lost(reader);
	s->missing = terra_trace_missing(reader);
	s->ended_cleanly = terra_trace_ended_cleanly(reader);
	return 0;
}

/* Results: arrays in the order in which they are reported, and strings that point into the keys. */

static int most_self(const void *a, const void *b)
{
	const struct summary_kind *x = a, *y = b;

	if (x->self_ns != y->self_ns)
		return x->self_ns > y->self_ns ? -1 : 1;
	return strcmp(x->op, y->op) ? strcmp(x->op, y->op) : strcmp(x->overload, y->overload);
}

static int most_time(const void *a, const void *b)
{
	const struct summary_site *x = a, *y = b;

	if (x->total_ns != y->total_ns)
		return x->total_ns > y->total_ns ? -1 : 1;
	return x->frame.line < y->frame.line ? -1 : x->frame.line > y->frame.line;
}

static int most_ops(const void *a, const void *b)
{
	const struct summary_thread *x = a, *y = b;

	if (x->ops != y->ops)
		return x->ops > y->ops ? -1 : 1;
	return x->thread < y->thread ? -1 : x->thread > y->thread;
}

static const char *key_at(const struct trace_intern *intern, uint32_t index)
{
	return (const char *)intern->keys.data + intern->entries[index].key;
}

static void name_kinds(struct terra_summary *s)
{
	struct summary_state *state = s->state;

	s->kinds = (struct summary_kind *)state->kind_data.data;
	s->n_kinds = state->kinds.n_entries;
	for (uint32_t i = 0; i < s->n_kinds; i++) {
		s->kinds[i].op = key_at(&state->kinds, i);
		s->kinds[i].overload = s->kinds[i].op + strlen(s->kinds[i].op) + 1;
	}
	if (s->n_kinds)
		qsort(s->kinds, s->n_kinds, sizeof(*s->kinds), most_self);
}

static void name_sites(struct terra_summary *s)
{
	struct summary_state *state = s->state;

	s->sites = (struct summary_site *)state->site_data.data;
	s->n_sites = state->sites.n_entries;
	for (uint32_t i = 0; i < s->n_sites; i++) {
		struct summary_site *site = &s->sites[i];

		take_frame(take_frame(key_at(&state->sites, i), &site->frame), &site->caller);
		if (!site->caller.file[0])
			site->caller.file = NULL;
	}
	if (s->n_sites)
		qsort(s->sites, s->n_sites, sizeof(*s->sites), most_time);
}

static void name_rest(struct terra_summary *s)
{
	struct summary_state *state = s->state;

	s->threads = (struct summary_thread *)state->thread_data.data;
	s->n_threads = (uint32_t)(state->thread_data.size / sizeof(*s->threads));
	if (s->n_threads)
		qsort(s->threads, s->n_threads, sizeof(*s->threads), most_ops);
	s->notes = (struct summary_note *)state->note_data.data;
	s->n_notes = state->notes.n_entries;
	for (uint32_t i = 0; i < s->n_notes; i++)
		s->notes[i].text = key_at(&state->notes, i);
	s->others = (struct summary_note *)state->other_data.data;
	s->n_others = state->others.n_entries;
	for (uint32_t i = 0; i < s->n_others; i++)
		s->others[i].text = key_at(&state->others, i);
}

/* Iterations. */

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static int compare_marks(const void *a, const void *b)
{
	const struct mark *x = a, *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* Time of the outermost op with that seq; 0 when none has it, as at the end of the trace. */
static uint64_t time_at(const struct terra_summary *s, uint64_t seq)
{
	struct mark key = {.seq = seq}, *found;

	found = bsearch(&key, s->state->marks.data, s->state->marks.size / sizeof(key), sizeof(key), compare_marks);
	return found ? found->time : 0;
}

static int find_iterations(struct terra_summary *s)
{
	struct terra_iterations *it = &s->iterations;
	int err = terra_op_stream_iterations(s->state->stream, s->info->pid, it);
	uint64_t *times;
	uint32_t n = 0;

	if (err)
		return err == -ENOENT ? 0 : err;
	s->has_iterations = true;
	times = malloc(it->n * sizeof(*times));
	if (!times)
		return -ENOMEM;
	for (uint32_t i = 0; i < it->n; i++) {
		uint64_t begin = time_at(s, it->items[i].begin), end = time_at(s, it->items[i].end);

		if (begin && end > begin)
			times[n++] = end - begin;
	}
	qsort(times, n, sizeof(*times), compare_u64);
	s->median_ns = n ? times[n / 2] : 0;
	free(times);
	return 0;
}

static struct terra_summary *summary_alloc(void)
{
	struct terra_summary *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->state = calloc(1, sizeof(*s->state));
	if (s->state) {
		s->state->stream = terra_op_stream_new();
		s->state->gpu = gpu_report_new();
		s->state->modules = report_modules_new();
	}
	if (s->state && s->state->stream && s->state->gpu && s->state->modules)
		return s;
	terra_summary_free(s);
	return NULL;
}

int terra_summary_new(struct terra_trace_reader *reader, struct terra_summary **out)
{
	struct terra_summary *s = summary_alloc();
	int err;

	*out = NULL;
	if (!s)
		return -ENOMEM;
	s->info = terra_trace_info(reader);
	err = read_all(s, reader);
	if (!err)
		err = find_iterations(s);
	if (err) {
		terra_summary_free(s);
		return err;
	}
	name_kinds(s);
	name_sites(s);
	name_rest(s);
	s->gpu = gpu_report_finish(s->state->gpu);
	s->modules = report_modules_finish(s->state->modules, &s->n_modules);
	*out = s;
	return 0;
}

static void state_free(struct summary_state *state)
{
	struct open_ops *open = (struct open_ops *)state->open.data;

	for (size_t i = 0; i < state->open.size / sizeof(*open); i++)
		free(open[i].ops);
	trace_intern_free(&state->kinds);
	trace_intern_free(&state->sites);
	trace_intern_free(&state->threads);
	trace_intern_free(&state->notes);
	trace_intern_free(&state->others);
	free(state->kind_data.data);
	free(state->site_data.data);
	free(state->thread_data.data);
	free(state->note_data.data);
	free(state->other_data.data);
	free(state->open.data);
	free(state->marks.data);
	free(state->key.data);
	terra_op_stream_free(state->stream);
	gpu_report_free(state->gpu);
	report_modules_free(state->modules);
	free(state);
}

void terra_summary_free(struct terra_summary *s)
{
	if (!s)
		return;
	if (s->state)
		state_free(s->state);
	for (int i = 0; i < SUMMARY_DAMAGE_KEPT; i++)
		free(s->damage[i]);
	terra_iterations_free(&s->iterations);
	free(s);
}
