/* trace_dump.c - a trace as JSON lines, one per event, for the end-to-end tests: trace_dump FILE.
 * The first line describes the trace, the last one says whether it ended cleanly. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "collector/alias.h"

static void put_string(const char *s)
{
	putchar('"');
	for (; s && *s; s++) {
		if (*s == '"' || *s == '\\' || (unsigned char)*s < 32)
			printf("\\u%04x", (unsigned char)*s);
		else
			putchar(*s);
	}
	putchar('"');
}

static void put_double(double d)
{
	if (isfinite(d))
		printf("%.17g", d);
	else
		put_string(isnan(d) ? "nan" : d > 0 ? "inf" : "-inf");
}

static void put_dims(const char *name, const int64_t *dims, int n)
{
	printf(",\"%s\":[", name);
	for (int i = 0; i < n; i++)
		printf("%s%lld", i ? "," : "", (long long)dims[i]);
	putchar(']');
}

static void put_tensor(const struct terra_tensor *t)
{
	int dims = t->ndim < TERRA_MAX_DIM ? t->ndim : TERRA_MAX_DIM;

	if (!t->defined) {
		printf("{\"tensor\":false}");
		return;
	}
	printf("{\"tensor\":true,\"ndim\":%d,\"dtype\":%d,\"device\":[%d,%d],\"requires_grad\":%d", t->ndim, t->dtype,
	       t->device_type, t->device_index, t->requires_grad);
	printf(",\"numel\":%lld,\"offset\":%lld,\"data\":%llu,\"impl\":%llu,\"storage\":%llu,\"storage_bytes\":%llu,\"storage_data\":%llu",
	       (long long)t->numel, (long long)t->storage_offset, (unsigned long long)t->data,
	       (unsigned long long)t->impl, (unsigned long long)t->storage, (unsigned long long)t->storage_bytes,
	       (unsigned long long)t->storage_data);
	put_dims("sizes", t->size, dims);
	put_dims("strides", t->stride, dims);
	putchar('}');
}

static void put_scalar(const struct terra_value *v)
{
	switch (v->scalar_tag) {
	case 'f':
		put_double(v->u.d);
		break;
	case 'z':
		printf("{\"complex\":[");
		put_double(v->u.z[0]);
		putchar(',');
		put_double(v->u.z[1]);
		printf("]}");
		break;
	case 'i':
		printf("%lld", (long long)v->u.i);
		break;
	case 'b':
		printf("%s", v->u.i ? "true" : "false");
		break;
	default:
		printf("{\"scalar\":\"%c\"}", v->scalar_tag);
	}
}

static void put_element(const struct terra_value *v, uint32_t i)
{
	switch (v->kind) {
	case TERRA_KIND_TENSOR_LIST:
	case TERRA_KIND_ITENSOR_LIST:
	case TERRA_KIND_OPT_TENSOR_LIST:
		put_tensor(&v->u.tensors[i]);
		break;
	case TERRA_KIND_DOUBLE_LIST:
	case TERRA_KIND_OPT_DOUBLE_LIST:
		put_double(v->u.doubles[i]);
		break;
	case TERRA_KIND_SCALAR_LIST:
		put_scalar(&v->u.scalars[i]);
		break;
	case TERRA_KIND_BOOL_ARRAY:
		printf("%s", v->u.ints[i] ? "true" : "false");
		break;
	default:
		printf("%lld", (long long)v->u.ints[i]);
	}
}

static void put_list(const struct terra_value *v)
{
	putchar('[');
	for (uint32_t i = 0; i < v->recorded; i++) {
		if (i)
			putchar(',');
		put_element(v, i);
	}
	putchar(']');
}

static void put_payload(const struct terra_value *v)
{
	switch (v->kind) {
	case TERRA_KIND_TENSOR:
	case TERRA_KIND_OPT_TENSOR:
		put_tensor(v->u.tensor);
		break;
	case TERRA_KIND_SCALAR:
	case TERRA_KIND_OPT_SCALAR:
		put_scalar(v);
		break;
	case TERRA_KIND_DOUBLE:
	case TERRA_KIND_OPT_DOUBLE:
		put_double(v->u.d);
		break;
	case TERRA_KIND_BOOL:
	case TERRA_KIND_OPT_BOOL:
		printf("%s", v->u.i ? "true" : "false");
		break;
	case TERRA_KIND_STRING:
	case TERRA_KIND_OPT_STRING:
		put_string(v->u.string);
		break;
	case TERRA_KIND_TENSOR_LIST:
	case TERRA_KIND_ITENSOR_LIST:
	case TERRA_KIND_OPT_TENSOR_LIST:
	case TERRA_KIND_SCALAR_LIST:
	case TERRA_KIND_INT_LIST:
	case TERRA_KIND_OPT_INT_LIST:
	case TERRA_KIND_SYMINT_LIST:
	case TERRA_KIND_OPT_SYMINT_LIST:
	case TERRA_KIND_DOUBLE_LIST:
	case TERRA_KIND_OPT_DOUBLE_LIST:
	case TERRA_KIND_BOOL_ARRAY:
		put_list(v);
		break;
	default:
		printf("%lld", (long long)v->u.i);
	}
}

static void put_value(const struct terra_value *v)
{
	printf("{\"kind\":");
	put_string(terra_kind_name(v->kind));
	printf(",\"present\":%s", v->present ? "true" : "false");
	if (v->present) {
		printf(",\"count\":%u,\"recorded\":%u,\"value\":", v->count, v->recorded);
		put_payload(v);
	}
	putchar('}');
}

static void put_frames(const struct terra_event *e)
{
	printf(",\"frames\":[");
	for (uint32_t i = 0; i < e->n_frames; i++) {
		printf("%s[", i ? "," : "");
		put_string(e->frames[i].file);
		putchar(',');
		put_string(e->frames[i].function);
		printf(",%d]", e->frames[i].line);
	}
	putchar(']');
}

static void put_values(const struct terra_event *e)
{
	printf(",\"values\":[");
	for (uint32_t i = 0; i < e->n_values; i++) {
		if (i)
			putchar(',');
		put_value(&e->values[i]);
	}
	putchar(']');
}

/* Arguments of ops that have not ended, for what their results share with them; innermost last. */
static struct {
	struct terra_event *events;
	size_t n, capacity;
} open_ops;

static void *copy_of(const void *data, size_t size)
{
	void *copy = malloc(size + 1);

	if (!copy)
		abort();
	return size ? memcpy(copy, data, size) : copy;
}

static void keep_arguments(const struct terra_event *e)
{
	struct terra_event *kept;

	if (open_ops.n == open_ops.capacity) {
		open_ops.capacity = 2 * open_ops.capacity + 64;
		open_ops.events = realloc(open_ops.events, open_ops.capacity * sizeof(*open_ops.events));
		if (!open_ops.events)
			abort();
	}
	kept = &open_ops.events[open_ops.n++];
	*kept = *e;
	kept->values = copy_of(e->values, e->n_values * sizeof(*e->values));
	for (uint32_t i = 0; i < e->n_values; i++) {
		uint32_t n;
		const struct terra_tensor *tensors = terra_value_tensors(&e->values[i], &n);

		kept->values[i].u.tensors = copy_of(tensors, n * sizeof(*tensors));
	}
}

static void forget_arguments(size_t at)
{
	struct terra_event *kept = &open_ops.events[at];

	for (uint32_t i = 0; i < kept->n_values; i++)
		free(kept->values[i].u.tensors);
	free(kept->values);
	memmove(kept, kept + 1, (--open_ops.n - at) * sizeof(*kept));
}

/* [result, element, argument, element, how] each. */
static void put_aliases(const struct terra_event *exit)
{
	static const char *const names[] = {"", "unknown", "storage", "same"};
	static struct terra_alias_pair pairs[65536];
	size_t at = open_ops.n;
	uint32_t n;

	while (at > 0 && open_ops.events[at - 1].seq != exit->enter_seq)
		at--;
	if (at == 0)
		return;
	n = terra_alias_pairs(&open_ops.events[at - 1], exit, pairs, sizeof(pairs) / sizeof(pairs[0]));
	printf(",\"alias\":[");
	for (uint32_t i = 0; i < n && i < sizeof(pairs) / sizeof(pairs[0]); i++)
		printf("%s[%u,%u,%u,%u,\"%s\"]", i ? "," : "", pairs[i].result, pairs[i].result_element,
		       pairs[i].argument, pairs[i].argument_element, names[pairs[i].alias]);
	putchar(']');
	forget_arguments(at - 1);
}

static void put_op(const struct terra_event *e)
{
	printf(",\"op\":");
	put_string(e->op);
	printf(",\"overload\":");
	put_string(e->overload);
	printf(",\"level\":%d,\"keyset\":%llu,\"raised\":%d", e->level, (unsigned long long)e->keyset, e->raised);
	if (e->type == TERRA_EVENT_OP_EXIT)
		printf(",\"enter\":%llu", (unsigned long long)e->enter_seq);
	else if (e->parent_seq != UINT64_MAX)
		printf(",\"parent\":%llu", (unsigned long long)e->parent_seq);
	if (e->autograd)
		printf(",\"node\":%llu", (unsigned long long)e->node);
	if (e->autograd && e->type == TERRA_EVENT_OP_ENTER && e->forward_seq != UINT64_MAX)
		printf(",\"forward\":%llu", (unsigned long long)e->forward_seq);
	put_frames(e);
	put_values(e);
	if (e->type == TERRA_EVENT_OP_ENTER)
		keep_arguments(e);
	else
		put_aliases(e);
}

static void put_function(const struct terra_event *e)
{
	printf(",\"how\":");
	put_string(e->text);
	if (e->op) {
		printf(",\"op\":");
		put_string(e->op);
	}
	if (e->overload) {
		printf(",\"overload\":");
		put_string(e->overload);
	}
	if (e->parent_seq != UINT64_MAX)
		printf(",\"parent\":%llu", (unsigned long long)e->parent_seq);
	put_frames(e);
	put_values(e);
}

static void put_event(const struct terra_event *e)
{
	static const char *const names[] = {"", "enter", "exit", "lost", "note", "host_read", "gpu", "call"};

	printf("{\"event\":\"%s\",\"seq\":%llu,\"thread\":%u,\"time\":%llu", names[e->type <= TERRA_EVENT_CALL ? e->type : 0],
	       (unsigned long long)e->seq, e->thread, (unsigned long long)e->time_ns);
	if (e->type == TERRA_EVENT_OP_ENTER || e->type == TERRA_EVENT_OP_EXIT)
		put_op(e);
	if (e->type == TERRA_EVENT_HOST_READ || e->type == TERRA_EVENT_CALL)
		put_function(e);
	if (e->type == TERRA_EVENT_LOST)
		printf(",\"lost\":%llu", (unsigned long long)e->lost);
	if (e->type == TERRA_EVENT_NOTE) {
		printf(",\"text\":");
		put_string(e->text);
	}
	printf("}\n");
}

static void put_info(const struct terra_trace_info *info)
{
	printf("{\"event\":\"info\",\"pid\":%u,\"threads\":%u,\"backend\":", info->pid, info->threads);
	put_string(info->backend);
	printf(",\"command\":");
	put_string(info->command);
	printf(",\"library\":");
	put_string(info->library);
	printf(",\"cpu\":");
	put_string(info->cpu);
	printf("}\n");
}

int main(int argc, char **argv)
{
	struct terra_trace_reader *reader;
	struct terra_event event;
	char err[512] = "";
	int code;

	if (argc != 2 || terra_trace_open(argv[1], &reader, err, sizeof(err))) {
		fprintf(stderr, "trace_dump: %s\n", argc == 2 ? err : "trace_dump FILE");
		return 1;
	}
	put_info(terra_trace_info(reader));
	while ((code = terra_trace_next(reader, &event)) == 1)
		put_event(&event);
	if (code < 0)
		fprintf(stderr, "trace_dump: %s\n", terra_trace_error(reader));
	printf("{\"event\":\"end\",\"clean\":%s,\"lost\":%llu}\n", terra_trace_ended_cleanly(reader) ? "true" : "false",
	       (unsigned long long)terra_trace_lost(reader));
	terra_trace_close(reader);
	return code < 0;
}
