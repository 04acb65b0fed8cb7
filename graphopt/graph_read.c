/* graph_read.c - reads the text form of a graph. Blanks and `#` comment lines are free, so that tests can be written by
 * hand. The first error sticks and makes the rest of the text look empty. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/graph.h"

#define MAX_ITEMS 1000000 /* of any list: a bound for hostile text, far above any iteration */

struct reader {
	const char *at;
	uint32_t line;
	int ret;
	char *err;
	size_t err_size;
	struct graph *graph;
};

static void fail(struct reader *reader, int code, const char *what)
{
	if (!reader->ret && reader->err && reader->err_size)
		snprintf(reader->err, reader->err_size, "line %u: %s", reader->line, what);
	if (!reader->ret)
		reader->ret = code;
	reader->at = "";
}

static void skip_blanks(struct reader *reader)
{
	while (*reader->at == ' ')
		reader->at++;
}

/* To the start of the next line that says something. */
static void skip_lines(struct reader *reader)
{
	for (;;) {
		skip_blanks(reader);
		if (*reader->at == '#')
			reader->at += strcspn(reader->at, "\n");
		if (*reader->at != '\n')
			return;
		reader->at++;
		reader->line++;
	}
}

static bool is_word(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("_:.-+<>", c);
}

/* Takes `text` when it is next; a word must also end there. */
static bool accept(struct reader *reader, const char *text)
{
	size_t n = strlen(text);

	skip_blanks(reader);
	if (strncmp(reader->at, text, n))
		return false;
	if (isalnum((unsigned char)text[n - 1]) && reader->at[n] && is_word(reader->at[n]))
		return false;
	reader->at += n;
	return true;
}

static void expect(struct reader *reader, const char *text)
{
	char what[64];

	if (accept(reader, text) || reader->ret)
		return;
	snprintf(what, sizeof(what), "\"%s\" is missing", text);
	fail(reader, -EINVAL, what);
}

static uint64_t read_unsigned(struct reader *reader, int base)
{
	char *end;
	uint64_t value;

	skip_blanks(reader);
	if (!strchr("0123456789abcdef", *reader->at) || !*reader->at) {
		fail(reader, -EINVAL, "a number is missing");
		return 0;
	}
	errno = 0;
	value = strtoull(reader->at, &end, base);
	if (end == reader->at || errno)
		fail(reader, -EINVAL, "a number is malformed");
	else
		reader->at = end;
	return value;
}

static uint32_t read_count(struct reader *reader)
{
	uint64_t value = read_unsigned(reader, 10);

	if (value > MAX_ITEMS)
		fail(reader, -EINVAL, "a number is too large");
	return (uint32_t)value;
}

/* Sizes and strides: bounded so that products of a few of them stay far from overflow. */
static int64_t read_size(struct reader *reader)
{
	bool negative = accept(reader, "-");
	uint64_t value = read_unsigned(reader, 10);

	if (value > (uint64_t)1 << 40)
		fail(reader, -EINVAL, "a number is too large");
	return negative ? -(int64_t)value : (int64_t)value;
}

static double read_double(struct reader *reader)
{
	char *end;
	double value;

	skip_blanks(reader);
	value = strtod(reader->at, &end);
	if (end == reader->at)
		fail(reader, -EINVAL, "a number is missing");
	else
		reader->at = end;
	return value;
}

static const char *take(struct reader *reader, size_t n)
{
	char *text = graph_strndup(reader->graph, reader->at, n);

	if (!text)
		fail(reader, -ENOMEM, "out of memory");
	else
		reader->at += n;
	return text ? text : "";
}

static const char *read_word(struct reader *reader)
{
	size_t n = 0;

	skip_blanks(reader);
	while (reader->at[n] && is_word(reader->at[n]))
		n++;
	if (!n)
		fail(reader, -EINVAL, "a word is missing");
	return take(reader, n);
}

/* Length of a quoted text with its quotes; 0 when it does not end on this line. */
static size_t quoted_span(const char *p)
{
	size_t n = 1;

	if (*p != '"')
		return 0;
	while (p[n] && p[n] != '\n' && p[n] != '"')
		n += p[n] == '\\' && p[n + 1] && p[n + 1] != '\n' ? 2 : 1;
	return p[n] == '"' ? n + 1 : 0;
}

static size_t unescape(char *out, const char *p, size_t n)
{
	char hex[3] = {0};
	size_t i, length = 0;

	for (i = 0; i < n; i++) {
		if (p[i] == '\\' && i + 3 < n && p[i + 1] == 'x') {
			memcpy(hex, p + i + 2, 2);
			out[length++] = (char)strtol(hex, NULL, 16);
			i += 3;
		} else {
			if (p[i] == '\\' && i + 1 < n)
				i++;
			out[length++] = p[i];
		}
	}
	return length;
}

static const char *read_quoted(struct reader *reader)
{
	size_t n;
	char *text;

	skip_blanks(reader);
	n = quoted_span(reader->at);
	if (!n) {
		fail(reader, -EINVAL, "a quoted text is missing or does not end");
		return "";
	}
	text = graph_alloc(reader->graph, n);
	if (!text) {
		fail(reader, -ENOMEM, "out of memory");
		return "";
	}
	unescape(text, reader->at + 1, n - 2);
	reader->at += n;
	return text;
}

/* Makes room for element n of an array and points it out; a reader that has failed gets a place to write to. */
static void *add(struct reader *reader, void *array, uint32_t *n, size_t size)
{
	void *moved = *n < MAX_ITEMS ? graph_grow(reader->graph, array, *n, size) : NULL;

	if (!moved)
		fail(reader, -ENOMEM, "out of memory");
	else
		(*n)++;
	return moved ? moved : array;
}

static uint8_t read_sizes(struct reader *reader, int64_t sizes[GRAPH_MAX_DIM])
{
	uint8_t n = 0;

	expect(reader, "[");
	while (!reader->ret && !accept(reader, "]")) {
		if (n)
			expect(reader, ",");
		if (n == GRAPH_MAX_DIM)
			fail(reader, -EINVAL, "too many dimensions");
		else
			sizes[n++] = read_size(reader);
	}
	return n;
}

static void count_elements(struct reader *reader, struct graph_tensor *tensor)
{
	int d;

	tensor->numel = 1;
	for (d = 0; d < tensor->ndim; d++) {
		if (tensor->size[d] < 0 || (tensor->size[d] && tensor->numel > ((int64_t)1 << 48) / tensor->size[d])) {
			fail(reader, -EINVAL, "a tensor has an impossible size");
			return;
		}
		tensor->numel *= tensor->size[d];
	}
}

static void set_contiguous(struct graph_tensor *tensor)
{
	uint64_t next = 1;
	int d;

	for (d = tensor->ndim; d-- > 0;) {
		tensor->stride[d] = (int64_t)next;
		next *= tensor->size[d] ? (uint64_t)tensor->size[d] : 1;
	}
}

static void read_memory(struct reader *reader, struct graph_tensor *tensor)
{
	tensor->storage = GRAPH_NONE;
	if (accept(reader, "@")) {
		tensor->address = read_unsigned(reader, 16);
		return;
	}
	expect(reader, "%");
	tensor->storage = read_count(reader);
	expect(reader, ".");
	tensor->version = read_count(reader);
}

static void read_dtype(struct reader *reader, struct graph_tensor *tensor)
{
	size_t n;

	skip_blanks(reader);
	n = *reader->at == '?' ? 1 : strspn(reader->at, "abcdefghijklmnopqrstuvwxyz0123456789");
	if (!n || n >= sizeof(tensor->dtype)) {
		fail(reader, -EINVAL, "a dtype is missing");
		return;
	}
	memcpy(tensor->dtype, reader->at, n);
	reader->at += n;
}

static void read_tensor(struct reader *reader, struct graph_tensor *tensor)
{
	uint64_t begin;

	memset(tensor, 0, sizeof(*tensor));
	read_memory(reader, tensor);
	read_dtype(reader, tensor);
	tensor->ndim = read_sizes(reader, tensor->size);
	count_elements(reader, tensor);
	set_contiguous(tensor);
	if (*reader->at == '/') {
		reader->at++;
		if (read_sizes(reader, tensor->stride) != tensor->ndim)
			fail(reader, -EINVAL, "strides do not fit the sizes");
	}
	if (accept(reader, "+"))
		tensor->offset = read_size(reader);
	graph_tensor_range(tensor, &begin, &tensor->bytes);
	if (accept(reader, ":"))
		tensor->bytes = read_unsigned(reader, 10);
}

static uint32_t read_tensors(struct reader *reader, const char *close, struct graph_tensor **out)
{
	uint32_t n = 0, i;

	while (!reader->ret && !accept(reader, close)) {
		if (n)
			expect(reader, ",");
		i = n;
		*out = add(reader, *out, &n, sizeof(**out));
		if (n > i)
			read_tensor(reader, &(*out)[i]);
	}
	return n;
}

static void read_constant(struct reader *reader, struct graph_arg *arg)
{
	size_t n = quoted_span(reader->at);

	arg->kind = GRAPH_CONST;
	if (!n)
		n = *reader->at == '[' ? strcspn(reader->at, "]\n") + 1 : strspn(reader->at, "0123456789-+.einfa");
	if (!n || strnlen(reader->at, n) < n)
		fail(reader, -EINVAL, "a constant is malformed");
	else
		arg->text = take(reader, n);
}

static void read_arg(struct reader *reader, struct graph_arg *arg)
{
	char next;

	skip_blanks(reader);
	next = *reader->at;
	if (next == '@' || next == '%') {
		arg->kind = GRAPH_TENSOR;
		arg->n = 1;
		arg->tensor = graph_alloc(reader->graph, sizeof(*arg->tensor));
		if (arg->tensor)
			read_tensor(reader, arg->tensor);
		else
			fail(reader, -ENOMEM, "out of memory");
	} else if (accept(reader, "{")) {
		arg->kind = GRAPH_TENSORS;
		arg->n = read_tensors(reader, "}", &arg->tensor);
	} else if (accept(reader, "#")) {
		read_constant(reader, arg);
	} else if (accept(reader, "?")) {
		arg->kind = GRAPH_OTHER;
	} else if (next == '-' && strchr(",) ", reader->at[1])) {
		reader->at++;
		arg->kind = GRAPH_ABSENT;
	} else {
		arg->kind = GRAPH_NUMBER;
		arg->number = read_double(reader);
	}
}

static void read_args(struct reader *reader, struct graph_op *op)
{
	uint32_t i;

	expect(reader, "(");
	while (!reader->ret && !accept(reader, ")")) {
		if (op->n_args)
			expect(reader, ",");
		i = op->n_args;
		op->args = add(reader, op->args, &op->n_args, sizeof(*op->args));
		if (op->n_args > i)
			read_arg(reader, &op->args[i]);
	}
}

static void read_class(struct reader *reader, struct graph_op *op)
{
	if (accept(reader, "!fusible"))
		op->class = GRAPH_FUSIBLE;
	else if (accept(reader, "!passive"))
		op->class = GRAPH_PASSIVE;
	else if (accept(reader, "!small"))
		op->class = GRAPH_SMALL;
	else if (accept(reader, "!stop")) {
		op->class = GRAPH_STOP;
		op->reason = read_quoted(reader);
	}
}

static void read_op(struct reader *reader)
{
	struct graph *graph = reader->graph;
	uint32_t i = graph->n_ops;
	struct graph_op *op;

	graph->ops = add(reader, graph->ops, &graph->n_ops, sizeof(*graph->ops));
	if (reader->ret)
		return;
	op = &graph->ops[i];
	op->file = op->function = "";
	if (read_count(reader) != i)
		fail(reader, -EINVAL, "ops are numbered from 0 without gaps");
	op->name = read_word(reader);
	read_args(reader, op);
	expect(reader, "->");
	expect(reader, "(");
	op->n_results = read_tensors(reader, ")", &op->results);
	op->call_only = accept(reader, "call-only");
	op->plain_keys = !op->call_only && !accept(reader, "other-keys");
	if (accept(reader, "part-of"))
		op->list = read_word(reader);
	op->raised = accept(reader, "raised");
	if (accept(reader, "ns="))
		op->ns = read_unsigned(reader, 10);
	if (accept(reader, "from")) {
		op->file = read_quoted(reader);
		op->line = (int32_t)read_count(reader);
		op->function = read_quoted(reader);
	}
	read_class(reader, op);
}

static uint32_t read_op_number(struct reader *reader)
{
	uint32_t number = read_count(reader);

	if (number >= reader->graph->n_ops)
		fail(reader, -EINVAL, "there is no op of this number");
	return number;
}

static void read_value(struct reader *reader)
{
	struct graph *graph = reader->graph;
	struct graph_value value = {.made = GRAPH_NONE, .last = GRAPH_NONE};
	uint32_t i = graph->n_values;

	expect(reader, "%");
	value.storage = read_count(reader);
	expect(reader, ".");
	value.version = read_count(reader);
	expect(reader, "made");
	if (!accept(reader, "before"))
		value.made = read_op_number(reader);
	expect(reader, "last");
	if (!accept(reader, "never"))
		value.last = read_op_number(reader);
	value.fetched = accept(reader, "fetched");
	value.lives_on = accept(reader, "lives-on");
	graph->values = add(reader, graph->values, &graph->n_values, sizeof(*graph->values));
	if (graph->n_values > i)
		graph->values[i] = value;
}

static void read_stop(struct reader *reader)
{
	struct graph *graph = reader->graph;
	uint32_t i = graph->n_stops;

	graph->stops = add(reader, graph->stops, &graph->n_stops, sizeof(*graph->stops));
	if (graph->n_stops == i)
		return;
	graph->stops[i].op = read_op_number(reader);
	graph->stops[i].reason = read_quoted(reader);
}

/* A word of a canonical line: up to a blank, where a quoted constant takes its blanks along. */
static char *read_token(struct reader *reader)
{
	size_t n, quoted;

	skip_blanks(reader);
	for (n = 0; reader->at[n] && !strchr(" \n", reader->at[n]); n++) {
		quoted = quoted_span(reader->at + n);
		if (quoted)
			n += quoted - 1;
	}
	if (!n)
		fail(reader, -EINVAL, "a token is missing");
	return (char *)take(reader, n);
}

static void read_line(struct reader *reader, struct graph_region *region)
{
	uint32_t i = region->n_ops;
	struct terra_plan_op *line;

	region->lines = add(reader, region->lines, &region->n_ops, sizeof(*region->lines));
	if (reader->ret)
		return;
	line = &region->lines[i];
	line->op = read_token(reader);
	for (skip_blanks(reader); *reader->at && *reader->at != '\n'; skip_blanks(reader)) {
		if (line->n_args == TERRA_PLAN_MAX_ARGS)
			fail(reader, -EINVAL, "too many arguments");
		else
			line->arg[line->n_args++] = read_token(reader);
	}
}

static void read_instance(struct reader *reader, struct graph_region *region)
{
	uint32_t i, n = region->count * region->n_ops, count = region->count;

	for (i = 0; i < region->n_ops && !reader->ret; i++) {
		region->at = add(reader, region->at, &n, sizeof(*region->at));
		if (!reader->ret)
			region->at[n - 1] = read_op_number(reader);
	}
	region->domain = add(reader, region->domain, &region->count, sizeof(*region->domain));
	expect(reader, "numel=");
	if (!reader->ret)
		region->domain[count] = read_size(reader);
}

static void read_region_head(struct reader *reader, struct graph_region *region)
{
	region->name = read_quoted(reader);
	expect(reader, "numel=");
	region->numel = read_size(reader);
	if (accept(reader, "saved=")) {
		region->saved_bytes = read_double(reader);
		expect(reader, "gain=");
		region->gain = read_double(reader);
	}
	if (accept(reader, "eager-ns=")) {
		region->eager_ns = read_double(reader);
		expect(reader, "fused-ns=");
		region->fused_ns = read_double(reader);
	}
	if (accept(reader, "dropped"))
		region->dropped = read_quoted(reader);
}

static void read_region(struct reader *reader)
{
	struct graph *graph = reader->graph;
	uint32_t i = graph->n_regions;
	struct graph_region *region;

	graph->regions = add(reader, graph->regions, &graph->n_regions, sizeof(*graph->regions));
	if (reader->ret)
		return;
	region = &graph->regions[i];
	read_region_head(reader, region);
	while (!reader->ret && reader->at[0] == '\n' && reader->at[1] == '\t') {
		reader->at += 2;
		reader->line++;
		if (region->n_ops && accept(reader, "at"))
			read_instance(reader, region);
		else if (region->count)
			fail(reader, -EINVAL, "a line behind the instances");
		else
			read_line(reader, region);
	}
}

static void read_head(struct reader *reader)
{
	struct graph *graph = reader->graph;

	skip_lines(reader);
	expect(reader, "terra-graph");
	expect(reader, "1");
	expect(reader, "after");
	graph->after = read_word(reader);
	skip_lines(reader);
	expect(reader, "build-id");
	graph->build_id = accept(reader, "-") ? "" : read_word(reader);
	skip_lines(reader);
	expect(reader, "threads");
	graph->threads = read_count(reader);
	skip_lines(reader);
	expect(reader, "library");
	graph->library = read_quoted(reader);
	skip_lines(reader);
	expect(reader, "source");
	graph->source = read_quoted(reader);
	skip_lines(reader);
	expect(reader, "iteration");
	graph->iteration = read_unsigned(reader, 10);
	expect(reader, "of");
	graph->iterations = read_unsigned(reader, 10);
}

static void read_body(struct reader *reader)
{
	for (skip_lines(reader); *reader->at; skip_lines(reader)) {
		if (accept(reader, "op"))
			read_op(reader);
		else if (accept(reader, "value"))
			read_value(reader);
		else if (accept(reader, "stop"))
			read_stop(reader);
		else if (accept(reader, "region"))
			read_region(reader);
		else
			fail(reader, -EINVAL, "neither op, value, stop nor region");
		skip_blanks(reader);
		if (!reader->ret && *reader->at && *reader->at != '\n')
			fail(reader, -EINVAL, "something more on this line");
	}
}

static void count_storage(struct reader *reader, const struct graph_tensor *tensor)
{
	struct graph *graph = reader->graph;

	if (tensor->storage == GRAPH_NONE) {
		if (strcmp(graph->after, "build"))
			fail(reader, -EINVAL, "a tensor has no name, and the values pass has run");
		return;
	}
	if (tensor->storage >= graph->n_storages)
		graph->n_storages = tensor->storage + 1;
}

/* Passes index by storage. */
static void count_storages(struct reader *reader)
{
	const struct graph *graph = reader->graph;
	uint32_t i, j, k;

	for (i = 0; i < graph->n_ops; i++) {
		const struct graph_op *op = &graph->ops[i];

		for (j = 0; j < op->n_args; j++)
			for (k = 0; k < op->args[j].n; k++)
				count_storage(reader, &op->args[j].tensor[k]);
		for (k = 0; k < op->n_results; k++)
			count_storage(reader, &op->results[k]);
	}
}

int graph_read(const char *text, struct graph **out, char *err, size_t err_size)
{
	struct reader reader = {.at = text, .line = 1, .err = err, .err_size = err_size};

	*out = NULL;
	reader.graph = graph_new();
	if (!reader.graph)
		return -ENOMEM;
	read_head(&reader);
	read_body(&reader);
	count_storages(&reader);
	if (reader.ret) {
		graph_free(reader.graph);
		return reader.ret;
	}
	*out = reader.graph;
	return 0;
}
