/* graph_args.c - recorded argument and result values as the graph has them. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/graph_events.h"

/* Numbers of c10::ScalarType. They are written into saved models, so they do not change between versions. */
static const char *const dtype_names[] = {"u8",	 "i8",	"i16",	"i32", "i64", "f16", "f32",  "f64",
					  "c32", "c64", "c128", "b8",  "qi8", "qu8", "qi32", "bf16"};

/* Memory of other devices has a dtype of its own kind: no rule has it. */
static void set_dtype(const struct terra_tensor *from, struct graph_tensor *to)
{
	size_t n = sizeof(dtype_names) / sizeof(dtype_names[0]);

	if (from->device_type != 0)
		snprintf(to->dtype, sizeof(to->dtype), "dev%u", (unsigned int)(uint8_t)from->device_type);
	else if (from->dtype < 0 || (size_t)from->dtype >= n || from->ndim > GRAPH_MAX_DIM)
		snprintf(to->dtype, sizeof(to->dtype), "?");
	else
		snprintf(to->dtype, sizeof(to->dtype), "%s", dtype_names[from->dtype]);
}

static void set_tensor(const struct terra_tensor *from, struct graph_tensor *to)
{
	uint64_t begin, end;

	memset(to, 0, sizeof(*to));
	set_dtype(from, to);
	to->storage = GRAPH_NONE;
	to->address = from->storage_data;
	to->offset = from->storage_offset;
	to->numel = from->numel;
	to->ndim = from->ndim > GRAPH_MAX_DIM ? 0 : from->ndim;
	memcpy(to->size, from->size, to->ndim * sizeof(*to->size));
	memcpy(to->stride, from->stride, to->ndim * sizeof(*to->stride));
	graph_tensor_range(to, &begin, &end);
	to->bytes = from->storage_bytes > end ? from->storage_bytes : end;
}

static struct graph_tensor *copy_tensors(struct graph *graph, const struct terra_tensor *from, uint32_t n)
{
	struct graph_tensor *to = graph_alloc(graph, (n ? n : 1) * sizeof(*to));
	uint32_t i;

	for (i = 0; to && i < n; i++)
		set_tensor(&from[i], &to[i]);
	return to;
}

/* A list that was cut by the recorder, or that holds undefined tensors, is not known. */
static bool list_is_known(const struct terra_value *value)
{
	uint32_t i;

	if (value->recorded != value->count)
		return false;
	for (i = 0; i < value->count; i++)
		if (!value->u.tensors[i].defined)
			return false;
	return true;
}

static int tensors_from(struct graph *graph, const struct terra_value *value, struct graph_arg *out)
{
	out->kind = GRAPH_OTHER;
	if (!list_is_known(value))
		return 0;
	out->kind = GRAPH_TENSORS;
	out->n = value->count;
	out->tensor = copy_tensors(graph, value->u.tensors, value->count);
	return out->tensor ? 0 : -ENOMEM;
}

static int tensor_from(struct graph *graph, const struct terra_value *value, struct graph_arg *out)
{
	if (!value->u.tensor || !value->u.tensor->defined)
		return 0;
	out->kind = GRAPH_TENSOR;
	out->n = 1;
	out->tensor = copy_tensors(graph, value->u.tensor, 1);
	return out->tensor ? 0 : -ENOMEM;
}

static int constant_from(struct graph *graph, int64_t number, struct graph_arg *out)
{
	out->kind = GRAPH_CONST;
	out->text = graph_format(graph, "%" PRId64, number);
	return out->text ? 0 : -ENOMEM;
}

static int scalar_from(struct graph *graph, const struct terra_value *value, struct graph_arg *out)
{
	if (value->scalar_tag == 'f') {
		out->kind = GRAPH_NUMBER;
		out->number = value->u.d;
	} else if (value->scalar_tag == 'i' && value->u.i > -((int64_t)1 << 53) && value->u.i < (int64_t)1 << 53) {
		out->kind = GRAPH_NUMBER;
		out->number = (double)value->u.i;
	} else {
		out->kind = GRAPH_CONST;
		out->text = "\"scalar\"";
	}
	return 0;
}

static int text_from(FILE *stream, char **text, size_t *size, struct graph *graph, struct graph_arg *out)
{
	int failed = fclose(stream);

	out->kind = GRAPH_CONST;
	out->text = failed ? NULL : graph_strndup(graph, *text, *size);
	free(*text);
	return out->text ? 0 : -ENOMEM;
}

static int list_from(struct graph *graph, const struct terra_value *value, struct graph_arg *out)
{
	char *text = NULL;
	size_t size;
	FILE *stream = open_memstream(&text, &size);
	uint32_t i;

	if (!stream)
		return -ENOMEM;
	fputc('[', stream);
	for (i = 0; i < value->recorded; i++)
		if (value->kind == TERRA_KIND_DOUBLE_LIST || value->kind == TERRA_KIND_OPT_DOUBLE_LIST)
			fprintf(stream, "%s%.17g", i ? "," : "", value->u.doubles[i]);
		else
			fprintf(stream, "%s%" PRId64, i ? "," : "", value->u.ints[i]);
	fputs(value->recorded < value->count ? ",...]" : "]", stream);
	return text_from(stream, &text, &size, graph, out);
}

static int string_from(struct graph *graph, const struct terra_value *value, struct graph_arg *out)
{
	char *text = NULL;
	size_t size;
	FILE *stream = open_memstream(&text, &size);
	const char *p;

	if (!stream)
		return -ENOMEM;
	fputc('"', stream);
	for (p = value->u.string ? value->u.string : ""; *p; p++)
		if (*p == '"' || *p == '\\')
			fprintf(stream, "\\%c", *p);
		else
			fputc(*p >= 0x20 && *p < 0x7f ? *p : '?', stream);
	fputc('"', stream);
	return text_from(stream, &text, &size, graph, out);
}

int graph_arg_from(struct graph *graph, const struct terra_value *value, struct graph_arg *out)
{
	memset(out, 0, sizeof(*out));
	if (!value->present && value->kind != TERRA_KIND_OPAQUE)
		return 0;
	switch (value->kind) {
	case TERRA_KIND_TENSOR:
	case TERRA_KIND_OPT_TENSOR:
		return tensor_from(graph, value, out);
	case TERRA_KIND_TENSOR_LIST:
	case TERRA_KIND_ITENSOR_LIST:
	case TERRA_KIND_OPT_TENSOR_LIST:
		return tensors_from(graph, value, out);
	case TERRA_KIND_SCALAR:
	case TERRA_KIND_OPT_SCALAR:
		return scalar_from(graph, value, out);
	case TERRA_KIND_DOUBLE:
	case TERRA_KIND_OPT_DOUBLE:
		out->kind = GRAPH_NUMBER;
		out->number = value->u.d;
		return 0;
	case TERRA_KIND_INT_LIST:
	case TERRA_KIND_OPT_INT_LIST:
	case TERRA_KIND_SYMINT_LIST:
	case TERRA_KIND_OPT_SYMINT_LIST:
	case TERRA_KIND_DOUBLE_LIST:
	case TERRA_KIND_OPT_DOUBLE_LIST:
	case TERRA_KIND_BOOL_ARRAY:
		return list_from(graph, value, out);
	case TERRA_KIND_STRING:
	case TERRA_KIND_OPT_STRING:
		return string_from(graph, value, out);
	case TERRA_KIND_SCALAR_LIST:
	case TERRA_KIND_GENERATOR:
		out->kind = GRAPH_CONST;
		out->text = value->kind == TERRA_KIND_GENERATOR ? "\"generator\"" : "\"scalars\"";
		return 0;
	case TERRA_KIND_OPAQUE:
	case TERRA_KIND_STORAGE:
		out->kind = GRAPH_OTHER;
		return 0;
	}
	return constant_from(graph, value->u.i, out);
}

static uint32_t count_results(const struct terra_event *event)
{
	uint32_t n = 0, i;

	for (i = 0; i < event->n_values; i++)
		if (event->values[i].kind == TERRA_KIND_TENSOR || event->values[i].kind == TERRA_KIND_OPT_TENSOR)
			n++;
		else if (event->values[i].kind == TERRA_KIND_TENSOR_LIST)
			n += event->values[i].recorded;
	return n;
}

static void add_result(struct graph_op *op, const struct terra_tensor *tensor)
{
	if (tensor && tensor->defined)
		set_tensor(tensor, &op->results[op->n_results++]);
}

int graph_results_from(struct graph *graph, const struct terra_event *event, struct graph_op *op)
{
	uint32_t i, k, n = count_results(event);

	op->n_results = 0;
	if (!n)
		return 0;
	op->results = graph_alloc(graph, n * sizeof(*op->results));
	if (!op->results)
		return -ENOMEM;
	for (i = 0; i < event->n_values; i++) {
		const struct terra_value *value = &event->values[i];

		if (value->kind == TERRA_KIND_TENSOR || value->kind == TERRA_KIND_OPT_TENSOR)
			add_result(op, value->u.tensor);
		else if (value->kind == TERRA_KIND_TENSOR_LIST)
			for (k = 0; k < value->recorded; k++)
				add_result(op, &value->u.tensors[k]);
	}
	return 0;
}
