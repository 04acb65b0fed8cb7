/* export_json.c - everything that the trace holds, as lines of JSON: docs/export-json.md.
 *
 * An op is one line, written when it is over; what is known at its enter waits as text until then.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "collector/export_text.h"
#include "collector/report_values.h"

#define FORMAT "terra-trace"
#define FORMAT_VERSION 1

struct lines {
	struct export_text text;
	struct json json; /* to the file */
};

static void free_state(void *state)
{
	struct lines *lines = state;

	export_text_free(&lines->text);
	free(lines);
}

static void member_string(struct json *json, const char *key, const char *s)
{
	json_key(json, key);
	json_string(json, s);
}

static void member_u64(struct json *json, const char *key, uint64_t v)
{
	json_key(json, key);
	json_u64(json, v);
}

static void member_null(struct json *json, const char *key)
{
	json_key(json, key);
	json_null(json);
}

static struct json *open_line(struct export_walk *walk, const char *type)
{
	struct json *json = &((struct lines *)walk->state)->json;

	json_open(json, '{');
	member_string(json, "type", type);
	return json;
}

static int close_line(struct json *json)
{
	json_close(json, '}');
	fputc('\n', json->out);
	json->comma = false;
	return 0;
}

static int begin(struct export_walk *walk)
{
	struct lines *lines = calloc(1, sizeof(*lines));
	struct json *json;

	if (!lines)
		return -ENOMEM;
	walk->state = lines;
	walk->free_state = free_state;
	lines->json.out = walk->out;
	json = open_line(walk, "trace");
	member_string(json, "format", FORMAT);
	member_u64(json, "version", FORMAT_VERSION);
	member_string(json, "backend", walk->info->backend);
	member_string(json, "command", walk->info->command);
	member_string(json, "library", walk->info->library);
	member_string(json, "build_id", walk->info->build_id);
	member_string(json, "cpu", walk->info->cpu);
	member_u64(json, "pid", walk->info->pid);
	member_u64(json, "omp_threads", walk->info->threads);
	member_u64(json, "start_ns", walk->info->start_ns);
	close_line(json);
	return export_text_init(&lines->text);
}

static int thread(struct export_walk *walk, const struct export_thread *t)
{
	struct json *json;

	if (t->tid == 0)
		return 0;
	json = open_line(walk, "thread");
	member_u64(json, "thread", t->tid);
	return close_line(json);
}

/* Ops. */

static int member_producers(struct export_walk *walk, struct json *json, const struct terra_event *event)
{
	struct trace_buffer producers = {0};
	int err = export_producers(walk, event, &producers);

	json_key(json, "data_deps");
	json_open(json, '[');
	for (size_t i = 0; i < producers.size / sizeof(uint64_t) && !err; i++)
		json_u64(json, ((uint64_t *)producers.data)[i]);
	json_close(json, ']');
	free(producers.data);
	return err;
}

static void json_values(struct json *json, const char *key, const struct terra_event *event)
{
	json_key(json, key);
	json_open(json, '[');
	for (uint32_t i = 0; i < event->n_values; i++)
		report_json_value(json, &event->values[i]);
	json_close(json, ']');
}

static void json_level(struct json *json, uint8_t level)
{
	json_key(json, "level");
	if (level <= TERRA_LEVEL_REDISPATCH)
		json_string(json, export_level_name(level));
	else
		json_u64(json, level);
}

static int enter(struct export_walk *walk, struct export_thread *t, struct export_op *op,
		 const struct terra_event *event, uint32_t depth)
{
	struct lines *lines = walk->state;
	struct json json = {.out = export_text_begin(&lines->text)};
	const char *text;
	int err = 0;

	json_open(&json, '{');
	member_string(&json, "type", "op");
	member_u64(&json, "id", op->seq);
	if (depth)
		member_u64(&json, "parent", t->ops[depth - 1].seq);
	else
		member_null(&json, "parent");
	member_u64(&json, "thread", t->tid);
	member_string(&json, "op", event->op);
	member_string(&json, "overload", event->overload);
	json_level(&json, event->level);
	json_key(&json, "keyset");
	json_hex(&json, event->keyset);
	member_u64(&json, "start_ns", op->start_ns);
	json_values(&json, "args", event);
	report_json_stack(&json, event);
	if (depth == 0)
		err = member_producers(walk, &json, event);
	text = export_text_end(&lines->text);
	op->data = text && !err ? strdup(text) : NULL;
	return op->data ? 0 : -ENOMEM;
}

static int leave(struct export_walk *walk, struct export_thread *t, struct export_op *op, uint32_t depth,
		 uint64_t end_ns, enum export_end end, const struct terra_event *event)
{
	static const char *const ends[] = {
	    [EXPORT_RETURNED] = "returned",
	    [EXPORT_RAISED] = "raised",
	    [EXPORT_NO_EXIT] = "no exit",
	    [EXPORT_OPEN] = "open",
	};
	struct json *json = &((struct lines *)walk->state)->json;

	fputs(op->data, json->out);
	free(op->data);
	op->data = NULL;
	json->comma = true;
	member_u64(json, "end_ns", end_ns);
	member_string(json, "end", ends[end]);
	if (end == EXPORT_RETURNED)
		json_values(json, "results", event);
	else
		member_null(json, "results");
	return close_line(json);
}

static int mark(struct export_walk *walk, const struct export_mark *m)
{
	const bool is_lost = m->type == TERRA_EVENT_LOST, is_note = m->type == TERRA_EVENT_NOTE;
	struct json *json = open_line(walk, is_lost ? "lost" : is_note ? "note" : "damage");

	if (is_lost || is_note) {
		member_u64(json, "id", m->seq);
		member_u64(json, "thread", m->thread);
		member_u64(json, "time_ns", m->time_ns);
	}
	if (is_lost)
		member_u64(json, "count", m->lost);
	else
		member_string(json, "text", m->text);
	return close_line(json);
}

static int end(struct export_walk *walk)
{
	const struct terra_export_result *result = walk->result;
	struct json *json = open_line(walk, "end");

	json_key(json, "ended_cleanly");
	json_bool(json, result->ended_cleanly);
	member_u64(json, "ops", result->ops);
	member_u64(json, "lost", result->lost);
	member_u64(json, "missing", result->missing);
	member_u64(json, "exits_alone", result->without_enter);
	member_u64(json, "events_unknown", result->unknown);
	return close_line(json);
}

const struct export_writer export_json = {
	.begin = begin,
	.thread = thread,
	.enter = enter,
	.leave = leave,
	.mark = mark,
	.end = end,
	.dataflow = true,
};
