/* Reading an index and the collectives of its traces, and aligning them; see ranks.h. */
#include "collector/ranks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "collector/report.h"
#include "collector/trace.h"

#define INDEX_MAX (16u << 20)

bool terra_ranks_is_index(const char *path)
{
	size_t n = strlen(path);

	return n > 6 && !strcmp(path + n - 6, ".index");
}

static bool same_collective(const struct terra_collective *a, const struct terra_collective *b)
{
	return !strcmp(a->what, b->what);
}

/* Appends to a text of `size` bytes; what does not fit is cut. */
static void append(char *text, size_t size, const char *more)
{
	size_t used = strlen(text);

	snprintf(text + used, size - used, "%s", more);
}

static void append_tensor(char *text, size_t size, const struct terra_tensor *tensor)
{
	char number[REPORT_DTYPE_SIZE];

	append(text, size, " [");
	for (unsigned int i = 0; i < tensor->ndim && i < TERRA_MAX_DIM; i++) {
		snprintf(number, sizeof(number), "%s%" PRId64, i ? "," : "", tensor->size[i]);
		append(text, size, number);
	}
	append(text, size, "] ");
	append(text, size, report_dtype_name(tensor->dtype, number));
}

static void describe_value(const struct terra_value *value, char *text, size_t size, uint64_t *elements)
{
	uint32_t n = value->kind == TERRA_KIND_TENSOR_LIST ? value->recorded : value->kind == TERRA_KIND_TENSOR;
	const struct terra_tensor *tensors = value->kind == TERRA_KIND_TENSOR ? value->u.tensor : value->u.tensors;

	for (uint32_t i = 0; value->present && i < n; i++) {
		if (!tensors[i].defined)
			continue;
		append_tensor(text, size, &tensors[i]);
		*elements += tensors[i].numel > 0 ? (uint64_t)tensors[i].numel : 0;
	}
}

/* The innermost line that is the program's own, not the framework's. */
static char *describe_place(const struct terra_event *event)
{
	const struct terra_frame *frame = event->n_frames ? &event->frames[0] : NULL;
	const char *slash;
	char *text;

	for (uint32_t i = 0; i < event->n_frames; i++)
		if (!strstr(event->frames[i].file ? event->frames[i].file : "", "/torch/")) {
			frame = &event->frames[i];
			break;
		}
	if (!frame || !frame->file)
		return strdup("");
	slash = strrchr(frame->file, '/');
	if (asprintf(&text, "%s:%d %s", slash ? slash + 1 : frame->file, frame->line,
		     frame->function ? frame->function : "?") < 0)
		return NULL;
	return text;
}

static int add_collective(struct terra_rank *rank, const struct terra_event *event)
{
	struct terra_collective *item;
	char what[512];

	if (rank->n == rank->capacity) {
		uint32_t wanted = rank->capacity ? 2 * rank->capacity : 256;

		item = realloc(rank->items, wanted * sizeof(*item));
		if (!item)
			return -ENOMEM;
		rank->items = item;
		rank->capacity = wanted;
	}
	item = &rank->items[rank->n];
	*item = (struct terra_collective){ .enter_ns = event->time_ns };
	snprintf(what, sizeof(what), "%s", event->op);
	for (uint32_t i = 0; i < event->n_values; i++)
		describe_value(&event->values[i], what, sizeof(what), &item->elements);
	item->point_to_point = !strcmp(event->op, "c10d::send") || !strncmp(event->op, "c10d::recv", 10);
	item->what = strdup(what);
	item->from = describe_place(event);
	rank->n++;
	return item->what && item->from ? 0 : -ENOMEM;
}

static int take_event(struct terra_rank *rank, const struct terra_event *event)
{
	struct terra_index_entry *entry = &rank->entry;

	entry->events++;
	if (event->time_ns > entry->end_ns)
		entry->end_ns = event->time_ns;
	if (event->type == TERRA_EVENT_NOTE)
		terra_process_parse(event->text, &entry->process);
	if (event->type == TERRA_EVENT_OP_ENTER && !strncmp(event->op, "c10d::", 6))
		return add_collective(rank, event);
	return 0;
}

static int read_events(struct terra_rank *rank, struct terra_trace_reader *reader)
{
	struct terra_event event;
	int got, error = 0;

	while (!error && (got = terra_trace_next(reader, &event)) != 0)
		error = got > 0 ? take_event(rank, &event) : got == -ENOMEM ? got : 0;
	rank->entry.lost = terra_trace_lost(reader);
	rank->entry.complete = terra_trace_ended_cleanly(reader);
	return error;
}

static int read_rank(struct terra_rank *rank, const char *path, char *err, size_t err_size)
{
	const struct terra_trace_info *info;
	struct terra_trace_reader *reader;
	int error = terra_trace_open(path, &reader, err, err_size);

	if (error)
		return error;
	info = terra_trace_info(reader);
	rank->entry = (struct terra_index_entry){
		.file = strdup(path),
		.command = strdup(info->command),
		.process = { .pid = (pid_t)info->pid, .rank = -1, .local_rank = -1, .world_size = -1 },
		.start_ns = info->start_ns,
		.end_ns = info->start_ns,
	};
	error = rank->entry.file && rank->entry.command ? read_events(rank, reader) : -ENOMEM;
	if (error)
		snprintf(err, err_size, "out of memory");
	terra_trace_close(reader);
	return error;
}

static void free_rank(struct terra_rank *rank)
{
	for (uint32_t i = 0; i < rank->n; i++) {
		free(rank->items[i].what);
		free(rank->items[i].from);
	}
	free(rank->items);
	free(rank->entry.file);
	free(rank->entry.command);
}

static int by_rank(const void *a, const void *b)
{
	const struct terra_rank *one = a, *other = b;

	if (one->entry.process.rank != other->entry.process.rank)
		return one->entry.process.rank < other->entry.process.rank ? -1 : 1;
	return (one->entry.start_ns > other->entry.start_ns) - (one->entry.start_ns < other->entry.start_ns);
}

/* Takes the entry's strings. */
static int add_other(struct terra_ranks *ranks, struct terra_rank *rank)
{
	struct terra_index_entry *larger = realloc(ranks->others, (ranks->n_others + 1) * sizeof(*larger));

	if (!larger)
		return -ENOMEM;
	ranks->others = larger;
	larger[ranks->n_others++] = rank->entry;
	rank->entry.file = rank->entry.command = NULL;
	return 0;
}

static int add_trace(struct terra_ranks *ranks, const char *path, char *err, size_t err_size)
{
	struct terra_rank *larger = realloc(ranks->ranks, (ranks->n + 1) * sizeof(*larger)), *rank;
	int error;

	if (!larger) {
		snprintf(err, err_size, "out of memory");
		return -ENOMEM;
	}
	ranks->ranks = larger;
	rank = &larger[ranks->n];
	*rank = (struct terra_rank){ 0 };
	error = read_rank(rank, path, err, err_size);
	ranks->n_traces++;
	if (!error && !rank->n && add_other(ranks, rank)) {
		snprintf(err, err_size, "out of memory");
		error = -ENOMEM;
	}
	if (error || !rank->n)
		free_rank(rank);
	else
		ranks->n++;
	return error;
}

/* Messages go to the end of each list, so that the n-th collective is items[n]. */
static uint32_t sort_out_messages(struct terra_rank *rank)
{
	struct terra_collective *sorted = malloc((rank->n + 1) * sizeof(*sorted));
	uint32_t n = 0, all = 0;

	if (!sorted)
		return 0;
	for (int message = 0; message < 2; message++) {
		for (uint32_t i = 0; i < rank->n; i++)
			if (rank->items[i].point_to_point == (message == 1))
				sorted[all++] = rank->items[i];
		n = message ? n : all;
	}
	memcpy(rank->items, sorted, rank->n * sizeof(*sorted));
	free(sorted);
	return n;
}

static bool all_agree(const struct terra_ranks *ranks, uint32_t position)
{
	const struct terra_rank *first = &ranks->ranks[0];

	for (uint32_t i = 0; i < ranks->n; i++) {
		const struct terra_rank *rank = &ranks->ranks[i];

		if (position >= rank->n || rank->items[position].point_to_point || position >= first->n ||
		    !same_collective(&rank->items[position], &first->items[position]))
			return false;
	}
	return true;
}

static void match(struct terra_ranks *ranks)
{
	if (!ranks->n)
		return;
	qsort(ranks->ranks, ranks->n, sizeof(*ranks->ranks), by_rank);
	for (uint32_t i = 0; i < ranks->n; i++) {
		uint32_t n = sort_out_messages(&ranks->ranks[i]);

		ranks->most = n > ranks->most ? n : ranks->most;
	}
	while (ranks->matched < ranks->most && all_agree(ranks, ranks->matched))
		ranks->matched++;
}

/* The value of a JSON string that begins behind its quote; NULL when it is none. It is written in place of itself. */
static char *read_string(char *at, char **end)
{
	char *out = at, *begin = at;
	unsigned int code;

	for (; *at != '"'; out++) {
		if (!*at)
			return NULL;
		if (*at != '\\') {
			*out = *at++;
			continue;
		}
		if (at[1] == 'u' && sscanf(at + 2, "%4x", &code) == 1) {
			*out = (char)code; /* a control character, or a byte that is no UTF-8 as U+DCxx */
			at += 6;
		} else if (at[1]) {
			*out = at[1];
			at += 2;
		} else {
			return NULL;
		}
	}
	*out = 0;
	*end = at + 1;
	return begin;
}

static char *read_whole(const char *path, char *err, size_t err_size)
{
	FILE *file = fopen(path, "re");
	char *text = file ? malloc(INDEX_MAX + 1) : NULL;
	size_t n = 0;

	if (!text) {
		snprintf(err, err_size, "cannot read %s: %s", path, strerror(errno));
	} else {
		n = fread(text, 1, INDEX_MAX, file);
		text[n] = 0;
		if (strlen(text) != n || strncmp(text, "{\"terra_index\":1,", 17) != 0) {
			snprintf(err, err_size, "%s is no index of traces, as terra-trace writes it beside a trace", path);
			free(text);
			text = NULL;
		}
	}
	if (file)
		fclose(file);
	return text;
}

static int load_traces(const char *index, char *text, struct terra_ranks *out, char *err, size_t err_size)
{
	static const char key[] = "{\"file\":\"";
	const char *slash = strrchr(index, '/');
	int folder = slash ? (int)(slash - index) + 1 : 0, error = 0;
	char path[8192], *at = text, *file;

	while (!error && (at = strstr(at, key))) {
		file = read_string(at + strlen(key), &at);
		if (!file || strchr(file, '/') ||
		    (size_t)snprintf(path, sizeof(path), "%.*s%s", folder, index, file) >= sizeof(path)) {
			snprintf(err, err_size, "%s is damaged", index);
			return -EBADMSG;
		}
		error = add_trace(out, path, err, err_size);
	}
	return error;
}

int terra_ranks_load(const char *index, struct terra_ranks *out, char *err, size_t err_size)
{
	char *text = read_whole(index, err, err_size);
	int error;

	*out = (struct terra_ranks){ 0 };
	if (!text)
		return -EINVAL;
	error = load_traces(index, text, out, err, err_size);
	free(text);
	if (error)
		terra_ranks_free(out);
	else
		match(out);
	return error;
}

void terra_ranks_free(struct terra_ranks *ranks)
{
	for (uint32_t i = 0; i < ranks->n; i++)
		free_rank(&ranks->ranks[i]);
	free(ranks->ranks);
	for (uint32_t i = 0; i < ranks->n_others; i++) {
		free(ranks->others[i].file);
		free(ranks->others[i].command);
	}
	free(ranks->others);
	*ranks = (struct terra_ranks){ 0 };
}
