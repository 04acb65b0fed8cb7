/* report_gpu.c - GPU activity in a report: sums by kernel and by op, and events one by one. */
#include "collector/report_gpu.h"

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "collector/report.h"
#include "collector/trace_intern.h"

/* The op of an OP_ENTER, for activities that come behind it. */
struct entered {
	uint64_t seq;
	uint32_t kind; /* number of its name in `ops` */
};

struct gpu_report {
	struct trace_intern ops, names;
	struct trace_buffer entered, op_data, name_data, key;
	struct report_gpu_sums sums;
};

struct gpu_report *gpu_report_new(void)
{
	return calloc(1, sizeof(struct gpu_report));
}

void gpu_report_free(struct gpu_report *r)
{
	if (!r)
		return;
	trace_intern_free(&r->ops);
	trace_intern_free(&r->names);
	free(r->entered.data);
	free(r->op_data.data);
	free(r->name_data.data);
	free(r->key.data);
	free(r);
}

static const char *const kind_names[] = { "?", "kernel", "memcpy", "memset", "runtime", "driver", "graph", "overhead", "link" };

const char *gpu_kind_name(unsigned int kind)
{
	return kind_names[kind < sizeof(kind_names) / sizeof(kind_names[0]) ? kind : 0];
}

const char *gpu_copy_name(unsigned int kind)
{
	static const char *const names[] = { "?", "host to device", "device to host", "host to array", "array to host",
					     "array to array", "array to device", "device to array", "device to device",
					     "host to host", "peer to peer" };

	return names[kind < sizeof(names) / sizeof(names[0]) ? kind : 0];
}

/* Runs on a device. */
static bool is_work(const struct terra_gpu *gpu)
{
	return gpu->kind == TERRA_GPU_KERNEL || gpu->kind == TERRA_GPU_MEMCPY || gpu->kind == TERRA_GPU_MEMSET ||
	       gpu->kind == TERRA_GPU_GRAPH;
}

/* The entry of the name that `key` holds, made anew with zeros. */
static struct report_gpu_sum *sum_of(struct gpu_report *r, struct trace_intern *intern, struct trace_buffer *data,
				     uint32_t *index)
{
	struct trace_intern_entry *entry = r->key.failed ? NULL : trace_intern_get(intern, r->key.data, r->key.size);

	if (!entry)
		return NULL;
	*index = (uint32_t)(entry - intern->entries);
	if (data->size == *index * sizeof(struct report_gpu_sum)) {
		const struct report_gpu_sum none = { 0 };

		trace_buffer_put(data, &none, sizeof(none));
	}
	return data->failed ? NULL : (struct report_gpu_sum *)data->data + *index;
}

static int enter(struct gpu_report *r, const struct terra_event *event)
{
	struct entered entered = { .seq = event->seq };

	r->key.size = 0;
	trace_buffer_put(&r->key, event->op, strlen(event->op));
	if (event->overload[0]) {
		trace_buffer_put(&r->key, ".", 1);
		trace_buffer_put(&r->key, event->overload, strlen(event->overload));
	}
	trace_buffer_put(&r->key, "", 1);
	if (!sum_of(r, &r->ops, &r->op_data, &entered.kind))
		return -ENOMEM;
	trace_buffer_put(&r->entered, &entered, sizeof(entered));
	return r->entered.failed ? -ENOMEM : 0;
}

static int compare_entered(const void *a, const void *b)
{
	const struct entered *x = a, *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static void add(struct report_gpu_sum *sum, const struct terra_gpu *gpu)
{
	sum->count++;
	sum->total_ns += gpu->duration_ns;
	sum->bytes += gpu->bytes;
	sum->kind = gpu->kind;
}

/* Kernels by name, the others by what they do. */
static void put_work_name(struct trace_buffer *key, const struct terra_gpu *gpu)
{
	const char *name = gpu->name && gpu->kind == TERRA_GPU_KERNEL ? gpu->name : gpu_kind_name(gpu->kind);

	key->size = 0;
	trace_buffer_put(key, name, strlen(name));
	if (gpu->kind == TERRA_GPU_MEMCPY) {
		trace_buffer_put(key, " ", 1);
		trace_buffer_put(key, gpu_copy_name(gpu->copy_kind), strlen(gpu_copy_name(gpu->copy_kind)));
	}
	trace_buffer_put(key, "", 1);
}

static int add_work(struct gpu_report *r, const struct terra_event *event)
{
	const struct terra_gpu *gpu = event->gpu;
	struct entered key = { .seq = gpu->op_seq }, *op = NULL;
	struct report_gpu_sum *sum;
	uint32_t index;

	put_work_name(&r->key, gpu);
	sum = sum_of(r, &r->names, &r->name_data, &index);
	if (!sum)
		return -ENOMEM;
	add(sum, gpu);
	add(&r->sums.all, gpu);
	if (gpu->op_seq != UINT64_MAX && r->entered.size)
		op = bsearch(&key, r->entered.data, r->entered.size / sizeof(key), sizeof(key), compare_entered);
	add(op ? (struct report_gpu_sum *)r->op_data.data + op->kind : &r->sums.without_op, gpu);
	return 0;
}

int gpu_report_add(struct gpu_report *r, const struct terra_event *event)
{
	if (event->type == TERRA_EVENT_OP_ENTER)
		return enter(r, event);
	if (event->type != TERRA_EVENT_GPU)
		return 0;
	if (is_work(event->gpu))
		return add_work(r, event);
	if (event->gpu->kind == TERRA_GPU_OVERHEAD)
		add(&r->sums.overhead, event->gpu);
	else if (event->gpu->kind == TERRA_GPU_RUNTIME || event->gpu->kind == TERRA_GPU_DRIVER)
		add(&r->sums.calls, event->gpu);
	return 0;
}

/* Results. */

static int most_time(const void *a, const void *b)
{
	const struct report_gpu_sum *x = a, *y = b;

	if (x->total_ns != y->total_ns)
		return x->total_ns > y->total_ns ? -1 : 1;
	return strcmp(x->name, y->name);
}

/* Names, order, and those with a count only: most ops launch nothing. */
static uint32_t finish_sums(struct trace_intern *intern, struct trace_buffer *data)
{
	struct report_gpu_sum *sums = (struct report_gpu_sum *)data->data;
	uint32_t n = 0;

	for (uint32_t i = 0; i < intern->n_entries; i++) {
		if (!sums[i].count)
			continue;
		sums[n] = sums[i];
		sums[n++].name = (const char *)intern->keys.data + intern->entries[i].key;
	}
	if (n)
		qsort(sums, n, sizeof(*sums), most_time);
	return n;
}

const struct report_gpu_sums *gpu_report_finish(struct gpu_report *r)
{
	r->sums.n_ops = finish_sums(&r->ops, &r->op_data);
	r->sums.ops = (struct report_gpu_sum *)r->op_data.data;
	r->sums.n_works = finish_sums(&r->names, &r->name_data);
	r->sums.works = (struct report_gpu_sum *)r->name_data.data;
	return &r->sums;
}

/* C++'s own function, where its library is; kernel names are mangled. To be freed; NULL: as it is. */
char *gpu_demangled(const char *name)
{
	static char *(*demangle)(const char *, char *, size_t *, int *);
	static bool looked;
	int status;

	if (!looked) {
		void *library = dlopen("libstdc++.so.6", RTLD_NOW | RTLD_LOCAL);

		looked = true;
		demangle = library ? (char *(*)(const char *, char *, size_t *, int *))dlsym(library, "__cxa_demangle") : NULL;
	}
	return demangle && strncmp(name, "_Z", 2) == 0 ? demangle(name, NULL, NULL, &status) : NULL;
}

static void print_name(const char *name, FILE *out)
{
	char *plain = gpu_demangled(name);

	report_print_plain(plain ? plain : name, out);
	free(plain);
}

static void print_sums(const struct report_gpu_sum *sums, uint32_t n, unsigned int top, uint64_t all_ns, FILE *out)
{
	for (uint32_t i = 0; i < n && i < top; i++) {
		fprintf(out, "  %10.3f %6.1f %8" PRIu64 "  ", (double)sums[i].total_ns / 1e6,
			all_ns ? 100.0 * (double)sums[i].total_ns / (double)all_ns : 0.0, sums[i].count);
		print_name(sums[i].name, out);
		fputc('\n', out);
	}
	if (n > top)
		fprintf(out, "  ... and %" PRIu32 " more (--top %" PRIu32 " shows all)\n", n - top, n);
}

void report_gpu_print(const struct report_gpu_sums *sums, unsigned int top, FILE *out)
{
	uint64_t all = sums->all.total_ns;

	if (!sums->all.count && !sums->calls.count && !sums->overhead.count)
		return;
	fprintf(out, "\nGPU: %" PRIu64 " activities, %.3f ms; %" PRIu64 " calls, %.3f ms; overhead of CUPTI and driver %.3f ms\n",
		sums->all.count, (double)all / 1e6, sums->calls.count, (double)sums->calls.total_ns / 1e6,
		(double)sums->overhead.total_ns / 1e6);
	fprintf(out, "  %10s %6s %8s  by op that launched it\n", "ms", "%", "times");
	print_sums(sums->ops, sums->n_ops, top, all, out);
	if (sums->without_op.count)
		fprintf(out, "  %10.3f %6.1f %8" PRIu64 "  (without an op)\n", (double)sums->without_op.total_ns / 1e6,
			all ? 100.0 * (double)sums->without_op.total_ns / (double)all : 0.0, sums->without_op.count);
	fprintf(out, "  %10s %6s %8s  by kernel, copy and set\n", "ms", "%", "times");
	print_sums(sums->works, sums->n_works, top, all, out);
}

/* JSON. */

static void member_sum(struct json *json, const struct report_gpu_sum *sum)
{
	json_member_u64(json, "count", sum->count);
	json_member_u64(json, "total_ns", sum->total_ns);
	json_member_u64(json, "bytes", sum->bytes);
}

static void json_sum(struct json *json, const char *key, const struct report_gpu_sum *sum)
{
	json_key(json, key);
	json_open(json, '{');
	member_sum(json, sum);
	json_close(json, '}');
}

static void json_sums(struct json *json, const char *key, const struct report_gpu_sum *sums, uint32_t n)
{
	json_key(json, key);
	json_open(json, '[');
	for (uint32_t i = 0; i < n; i++) {
		char *plain = gpu_demangled(sums[i].name);

		json_open(json, '{');
		json_key(json, "name");
		json_string(json, sums[i].name);
		json_key(json, "demangled");
		json_string(json, plain ? plain : sums[i].name);
		json_key(json, "kind");
		json_string(json, gpu_kind_name(sums[i].kind));
		member_sum(json, &sums[i]);
		json_close(json, '}');
		free(plain);
	}
	json_close(json, ']');
}

void report_gpu_json(const struct report_gpu_sums *sums, struct json *json)
{
	json_key(json, "gpu");
	if (!sums->all.count && !sums->calls.count && !sums->overhead.count) {
		json_null(json);
		return;
	}
	json_open(json, '{');
	json_sum(json, "all", &sums->all);
	json_sum(json, "calls", &sums->calls);
	json_sum(json, "overhead", &sums->overhead);
	json_sum(json, "without_op", &sums->without_op);
	json_sums(json, "by_op", sums->ops, sums->n_ops);
	json_sums(json, "by_work", sums->works, sums->n_works);
	json_close(json, '}');
}

/* One event. */

void report_gpu_print_event(const struct terra_gpu *gpu, FILE *out)
{
	fprintf(out, "@ %s ", gpu_kind_name(gpu->kind));
	report_print_plain(gpu->name ? gpu->name : "?", out);
	if (gpu->untimed)
		fputs(" untimed", out);
	else
		fprintf(out, " %" PRIu64 "ns", gpu->duration_ns);
	fprintf(out, " correlation=%" PRIu64, gpu->correlation);
	if (gpu->op_seq != UINT64_MAX)
		fprintf(out, " op=%" PRIu64 "%s", gpu->op_seq,
			gpu->linked == TERRA_GPU_BY_EXTERNAL_ID ? " by id" : gpu->linked == TERRA_GPU_BY_TIME ? " by time" : "");
	if (gpu->device != TERRA_GPU_NO_DEVICE)
		fprintf(out, " device=%" PRIu32 " context=%" PRIu32 " stream=%" PRIu32, gpu->device, gpu->context, gpu->stream);
	if (gpu->graph)
		fprintf(out, " graph=%" PRIu32 " node=%" PRIu64, gpu->graph, gpu->graph_node);
	if (gpu->kind == TERRA_GPU_KERNEL)
		fprintf(out, " grid=%" PRIu32 ",%" PRIu32 ",%" PRIu32 " block=%" PRIu32 ",%" PRIu32 ",%" PRIu32 " shared=%" PRIu32
			"+%" PRIu32 " registers=%" PRIu32, gpu->grid[0], gpu->grid[1], gpu->grid[2], gpu->block[0], gpu->block[1],
			gpu->block[2], gpu->static_shared, gpu->dynamic_shared, gpu->registers);
	if (gpu->kind == TERRA_GPU_MEMCPY)
		fprintf(out, " %s", gpu_copy_name(gpu->copy_kind));
	if (gpu->kind == TERRA_GPU_MEMCPY || gpu->kind == TERRA_GPU_MEMSET)
		fprintf(out, " bytes=%" PRIu64, gpu->bytes);
	if (gpu->kind == TERRA_GPU_RUNTIME || gpu->kind == TERRA_GPU_DRIVER)
		fprintf(out, " result=%" PRIu32, gpu->result);
}

static void json_three(struct json *json, const char *key, const uint32_t *v)
{
	json_key(json, key);
	json_open(json, '[');
	for (int i = 0; i < 3; i++)
		json_u64(json, v[i]);
	json_close(json, ']');
}

static void json_device(struct json *json, const char *key, uint32_t device)
{
	json_key(json, key);
	if (device == TERRA_GPU_NO_DEVICE)
		json_null(json);
	else
		json_u64(json, device);
}

static void json_details(const struct terra_gpu *gpu, struct json *json)
{
	if (gpu->kind == TERRA_GPU_KERNEL) {
		json_three(json, "grid", gpu->grid);
		json_three(json, "block", gpu->block);
		json_member_u64(json, "static_shared", gpu->static_shared);
		json_member_u64(json, "dynamic_shared", gpu->dynamic_shared);
		json_member_u64(json, "registers", gpu->registers);
	} else if (gpu->kind == TERRA_GPU_MEMCPY) {
		json_member_u64(json, "copy_kind", gpu->copy_kind);
		json_member_u64(json, "source_kind", gpu->source_kind);
		json_member_u64(json, "target_kind", gpu->target_kind);
		json_member_u64(json, "bytes", gpu->bytes);
		json_device(json, "source_device", gpu->source_device);
		json_device(json, "target_device", gpu->target_device);
	} else if (gpu->kind == TERRA_GPU_MEMSET) {
		json_member_u64(json, "target_kind", gpu->target_kind);
		json_member_u64(json, "bytes", gpu->bytes);
		json_member_u64(json, "value", gpu->value);
	} else if (gpu->kind == TERRA_GPU_LINK) {
		json_member_u64(json, "external", gpu->external);
	} else if (gpu->kind != TERRA_GPU_GRAPH) {
		json_member_u64(json, "function", gpu->function);
		json_member_u64(json, "result", gpu->result);
	}
}

void report_gpu_json_event(const struct terra_gpu *gpu, struct json *json)
{
	static const char *const linked[] = { NULL, "id", "time" };

	json_key(json, "kind");
	json_string(json, gpu_kind_name(gpu->kind));
	json_key(json, "name");
	json_string(json, gpu->name);
	json_key(json, "timed");
	json_bool(json, !gpu->untimed);
	json_member_u64(json, "duration_ns", gpu->duration_ns);
	json_member_u64(json, "correlation", gpu->correlation);
	json_key(json, "op");
	if (gpu->op_seq == UINT64_MAX)
		json_null(json);
	else
		json_u64(json, gpu->op_seq);
	json_key(json, "linked_by");
	json_string(json, linked[gpu->linked <= TERRA_GPU_BY_TIME ? gpu->linked : 0]);
	json_device(json, "device", gpu->device);
	json_member_u64(json, "context", gpu->context);
	json_member_u64(json, "stream", gpu->stream);
	json_member_u64(json, "graph", gpu->graph);
	json_member_u64(json, "graph_node", gpu->graph_node);
	if (gpu->kind < TERRA_GPU_KIND_END)
		json_details(gpu, json);
}
