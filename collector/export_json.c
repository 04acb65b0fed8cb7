/* export_json.c - everything that the trace holds, as lines of JSON: docs/export-json.md.
 *
 * An op is one line, written when it is over; what is known at its enter waits as text until then, with the tensors that its
 * results may share memory with.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "collector/alias.h"
#include "collector/dataflow.h"
#include "collector/export_text.h"
#include "collector/report_gpu.h"
#include "collector/report_values.h"

#define FORMAT "terra-trace"
#define FORMAT_VERSION 1
#define ALIASES_MAX 256 /* of an op */

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

static void member_null(struct json *json, const char *key)
{
	json_key(json, key);
	json_null(json);
}

static struct json *open_line(struct export_walk *walk, const char *type)
{
	struct json *json = &((struct lines *)walk->state)->json;

	json_open(json, '{');
	json_member_string(json, "type", type);
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
	struct lines *lines = export_state(walk, sizeof(*lines), free_state);
	struct json *json;

	if (!lines)
		return -ENOMEM;
	lines->json.out = walk->out;
	json = open_line(walk, "trace");
	json_member_string(json, "format", FORMAT);
	json_member_u64(json, "version", FORMAT_VERSION);
	json_member_string(json, "backend", walk->info->backend);
	json_member_string(json, "command", walk->info->command);
	json_member_string(json, "library", walk->info->library);
	json_member_string(json, "build_id", walk->info->build_id);
	json_member_string(json, "cpu", walk->info->cpu);
	json_member_u64(json, "pid", walk->info->pid);
	json_member_u64(json, "omp_threads", walk->info->threads);
	json_member_u64(json, "start_ns", walk->info->start_ns);
	close_line(json);
	return export_text_init(&lines->text);
}

static int thread(struct export_walk *walk, const struct export_thread *t)
{
	struct json *json;

	if (t->tid == 0)
		return 0;
	json = open_line(walk, "thread");
	json_member_u64(json, "thread", t->tid);
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

static void member_seq(struct json *json, const char *key, uint64_t seq)
{
	if (seq != UINT64_MAX)
		json_member_u64(json, key, seq);
	else
		member_null(json, key);
}

/* Members that only some ops have, known at the enter. */
static void members_of_some(struct json *json, const struct terra_event *event)
{
	if (event->module) {
		json_key(json, "module");
		json_string(json, event->module);
	}
	if (event->autograd) {
		json_key(json, "backward");
		json_open(json, '{');
		member_seq(json, "node", event->node);
		member_seq(json, "forward", event->forward_seq);
		json_close(json, '}');
	}
}

/* An op between its enter and its exit. */
struct begun {
	struct terra_event args; /* of its values, those that have tensors */
	char *text;
};

/* All in one piece of memory: the struct, the values, their tensors, the text. */
static struct begun *begin_op(const struct terra_event *event, const char *text)
{
	const size_t values = event->n_values * sizeof(struct terra_value), length = strlen(text) + 1;
	struct terra_tensor *tensors;
	struct begun *begun;
	size_t all = 0;
	uint32_t n;

	for (uint32_t i = 0; i < event->n_values; i++) {
		terra_value_tensors(&event->values[i], &n);
		all += n;
	}
	begun = malloc(sizeof(*begun) + values + all * sizeof(*tensors) + length);
	if (!begun)
		return NULL;
	*begun = (struct begun){.args = {.n_values = event->n_values, .values = (struct terra_value *)(begun + 1)}};
	tensors = (struct terra_tensor *)(begun->args.values + event->n_values);
	begun->text = (char *)(tensors + all);
	memcpy(begun->text, text, length);
	for (uint32_t i = 0; i < event->n_values; i++, tensors += n) {
		const struct terra_tensor *from = terra_value_tensors(&event->values[i], &n);
		struct terra_value *value = &begun->args.values[i];

		*value = event->values[i];
		value->present = n > 0;
		if (!n)
			continue;
		memcpy(tensors, from, n * sizeof(*tensors));
		value->u.tensors = tensors; /* of one tensor too: either member is the pointer */
	}
	return begun;
}

static void json_alias(struct json *json, const struct terra_alias_pair *pair)
{
	static const char *const names[] = {
	    [TERRA_ALIAS_UNKNOWN] = "unknown",
	    [TERRA_ALIAS_STORAGE] = "storage",
	    [TERRA_ALIAS_SAME] = "same",
	};

	json_open(json, '{');
	json_member_u64(json, "result", pair->result);
	json_member_u64(json, "result_element", pair->result_element);
	json_member_u64(json, "arg", pair->argument);
	json_member_u64(json, "arg_element", pair->argument_element);
	json_member_string(json, "shares", names[pair->alias]);
	json_close(json, '}');
}

/* Nothing for an op whose results are all new. */
static void member_aliases(struct json *json, const struct begun *begun, const struct terra_event *exit)
{
	struct terra_alias_pair pairs[ALIASES_MAX];
	uint32_t n = terra_alias_pairs(&begun->args, exit, pairs, ALIASES_MAX);

	if (!n)
		return;
	json_key(json, "aliases");
	json_open(json, '[');
	for (uint32_t i = 0; i < n && i < ALIASES_MAX; i++)
		json_alias(json, &pairs[i]);
	json_close(json, ']');
	if (n > ALIASES_MAX)
		json_member_u64(json, "aliases_left_out", n - ALIASES_MAX);
}

static int enter(struct export_walk *walk, struct export_thread *t, struct export_op *op,
		 const struct terra_event *event, uint32_t depth)
{
	struct lines *lines = walk->state;
	struct json json = {.out = export_text_begin(&lines->text)};
	const char *text;
	int err = 0;

	json_open(&json, '{');
	json_member_string(&json, "type", "op");
	json_member_u64(&json, "id", op->seq);
	if (depth)
		json_member_u64(&json, "parent", t->ops[depth - 1].seq);
	else
		member_null(&json, "parent");
	json_member_u64(&json, "thread", t->tid);
	json_member_string(&json, "op", event->op);
	json_member_string(&json, "overload", event->overload);
	json_level(&json, event->level);
	json_key(&json, "keyset");
	json_hex(&json, event->keyset);
	json_member_u64(&json, "start_ns", op->start_ns);
	members_of_some(&json, event);
	json_values(&json, "args", event);
	report_json_stack(&json, event);
	if (depth == 0)
		err = member_producers(walk, &json, event);
	text = export_text_end(&lines->text);
	op->data = text && !err ? begin_op(event, text) : NULL;
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
	const struct begun *begun = op->data;

	fputs(begun->text, json->out);
	json->comma = true;
	json_member_u64(json, "end_ns", end_ns);
	json_member_string(json, "end", ends[end]);
	if (end == EXPORT_RETURNED)
		json_values(json, "results", event);
	else
		member_null(json, "results");
	if (event && event->autograd)
		member_seq(json, "node", event->node);
	if (end == EXPORT_RETURNED)
		member_aliases(json, begun, event);
	free(op->data);
	op->data = NULL;
	return close_line(json);
}

static int mark(struct export_walk *walk, const struct export_mark *m)
{
	const bool is_lost = m->type == TERRA_EVENT_LOST, is_note = m->type == TERRA_EVENT_NOTE;
	struct json *json = open_line(walk, is_lost ? "lost" : is_note ? "note" : "damage");

	if (is_lost || is_note) {
		json_member_u64(json, "id", m->seq);
		json_member_u64(json, "thread", m->thread);
		json_member_u64(json, "time_ns", m->time_ns);
	}
	if (is_lost)
		json_member_u64(json, "count", m->lost);
	else
		json_member_string(json, "text", m->text);
	return close_line(json);
}

/* Reads of memory by the program, and calls past the typed entry points. */
static int beside(struct export_walk *walk, const struct export_thread *t, const struct terra_event *event)
{
	const bool is_read = event->type == TERRA_EVENT_HOST_READ;
	struct json *json = open_line(walk, is_read ? "host_read" : "call");

	json_member_u64(json, "id", event->seq);
	member_seq(json, "parent", event->parent_seq);
	json_member_u64(json, "thread", t->tid);
	json_member_u64(json, "time_ns", event->time_ns);
	json_member_string(json, "how", event->text);
	if (is_read) {
		json_values(json, "args", event);
	} else {
		json_member_string(json, "op", event->op);
		json_member_string(json, "overload", event->overload);
	}
	report_json_stack(json, event);
	return close_line(json);
}

static int gpu(struct export_walk *walk, const struct terra_event *event)
{
	struct json *json = open_line(walk, "gpu");

	json_member_u64(json, "id", event->seq);
	json_member_u64(json, "thread", event->thread);
	if (event->gpu->untimed)
		member_null(json, "start_ns");
	else
		json_member_u64(json, "start_ns", event->time_ns);
	report_gpu_json_event(event->gpu, json);
	return close_line(json);
}

static int end(struct export_walk *walk)
{
	const struct terra_export_result *result = walk->result;
	struct json *json = open_line(walk, "end");

	json_key(json, "ended_cleanly");
	json_bool(json, result->ended_cleanly);
	json_member_u64(json, "ops", result->ops);
	json_member_u64(json, "lost", result->lost);
	json_member_u64(json, "missing", result->missing);
	json_member_u64(json, "exits_alone", result->without_enter);
	json_member_u64(json, "events_unknown", result->unknown);
	return close_line(json);
}

const struct export_writer export_json = {
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
