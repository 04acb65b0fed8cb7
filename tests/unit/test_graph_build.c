/* test_graph_build.c - from nested events to the program's ops: traces written here with every way an op can nest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "collector/trace.h"
#include "graphopt/graph.h"
#include "graphopt/graph_report.h"
#include "tests/fuzz/trace_input.h"
#include "trace_sample.h"

#define BACKEND_KEYS 0x10001u
#define VERSION_COUNTER_KEYS 0x800010001u
#define ITERATIONS 6
#define THREAD 77
#define MADE_OF_OTHERS "aten::feature"

static char path[] = "/tmp/terra-graph-XXXXXX";
static struct terra_trace_writer *writer;
static uint64_t seq, stack[16], now;
static struct terra_event entered[16];
static int depth;
static bool with_lists; /* the iteration ends with ops on lists */
static bool one_level;	/* calls alone, of ops that are not made of others */

static bool left_out(const struct terra_event *event)
{
	return one_level && (event->level == TERRA_LEVEL_REDISPATCH || !strcmp(event->op, MADE_OF_OTHERS));
}

static struct terra_tensor tensor_at(uint64_t address, int64_t n)
{
	return (struct terra_tensor){
	    .impl = address + 1,
	    .storage = address + 2,
	    .data = address,
	    .storage_data = address,
	    .storage_bytes = (uint64_t)n * 4,
	    .numel = n,
	    .size = {n},
	    .stride = {1},
	    .ndim = 1,
	    .dtype = 6,
	    .device_index = -1,
	    .defined = 1,
	};
}

static struct terra_value value_of(struct terra_tensor *tensor)
{
	return (struct terra_value){
	    .kind = TERRA_KIND_TENSOR, .present = 1, .count = 1, .recorded = 1, .u.tensor = tensor};
}

static void put(struct terra_event *event)
{
	event->thread = THREAD;
	event->time_ns = now += 100;
	assert_int_equal(terra_trace_write(writer, event), 0);
	seq++;
}

/* What is left out has the number of the op around it, so that those inside find that. */
static void open_op(struct terra_event *event)
{
	entered[depth] = *event;
	stack[depth++] = left_out(event) ? event->parent_seq : seq;
	if (!left_out(event))
		put(event);
}

/* Enters an op of up to two tensors (0: none). */
static void enter(const char *op, const char *overload, uint8_t level, uint64_t keyset, uint64_t a, uint64_t b)
{
	struct terra_tensor tensors[2] = {tensor_at(a, 1000), tensor_at(b, 1000)};
	struct terra_value values[2] = {value_of(&tensors[0]), value_of(&tensors[1])};
	struct terra_frame frames[2] = {{"/site/torch/nn/functional.py", "relu", 10}, {"train.py", "step", 20}};
	struct terra_event event = {
	    .type = TERRA_EVENT_OP_ENTER,
	    .level = level,
	    .op = op,
	    .overload = overload,
	    .keyset = keyset,
	    .parent_seq = depth ? stack[depth - 1] : UINT64_MAX,
	    .n_values = a ? (b ? 2u : 1u) : 0,
	    .values = values,
	    .n_frames = 2,
	    .frames = frames,
	};

	open_op(&event);
}

static void leave(uint64_t result, bool raised)
{
	struct terra_tensor tensor = tensor_at(result, 1000);
	struct terra_value value = value_of(&tensor);
	struct terra_event event = {
	    .type = TERRA_EVENT_OP_EXIT,
	    .enter_seq = stack[depth - 1],
	    .op = entered[depth - 1].op,
	    .overload = entered[depth - 1].overload,
	    .level = entered[depth - 1].level,
	    .raised = raised,
	    .n_values = result ? 1 : 0,
	    .values = &value,
	};

	depth--;
	if (!left_out(&event))
		put(&event);
}

#define CALL TERRA_LEVEL_CALL
#define AGAIN TERRA_LEVEL_REDISPATCH

/* call, redispatch, and a kernel that allocates and calls another op inside. */
static void plain_op(const char *op, uint64_t a, uint64_t result)
{
	enter(op, "", CALL, 0, a, 0);
	enter(op, "", AGAIN, BACKEND_KEYS, a, 0);
	enter("aten::empty", "memory_format", CALL, 0, 0, 0);
	enter("aten::empty", "memory_format", AGAIN, BACKEND_KEYS, 0, 0);
	leave(result, false);
	leave(result, false);
	enter("aten::copy_", "", CALL, 0, result, a);
	leave(result, false);
	leave(result, false);
	leave(result, false);
}

/* The backend level of an in-place op leaves by a tail jump: only the outermost level has an exit. */
static void in_place_op(void)
{
	enter("aten::relu_", "", CALL, 0, 0x3000, 0);
	enter("aten::relu_", "", AGAIN, VERSION_COUNTER_KEYS, 0x3000, 0);
	enter("aten::relu_", "", AGAIN, BACKEND_KEYS, 0x3000, 0);
	depth -= 2;
	leave(0x3000, false);
}

static void op_made_of_others(void)
{
	enter(MADE_OF_OTHERS, "", CALL, 0, 0x1000, 0);
	plain_op("aten::neg", 0x3000, 0x4000);
	plain_op("aten::abs", 0x4000, 0x5000);
	leave(0x5000, false);
}

/* Reaches its kernel without redispatch; the kernel allocates, which is redispatched by the choice of the backend. */
static void call_only_op(void)
{
	enter("aten::flash", "", CALL, 0, 0x5000, 0);
	enter("aten::empty", "memory_format", CALL, 0, 0, 0);
	enter("aten::empty", "memory_format", AGAIN, BACKEND_KEYS, 0, 0);
	leave(0x6000, false);
	leave(0x6000, false);
	leave(0x6000, false);
}

static void no_op(void)
{
	enter("aten::to", "dtype", CALL, 0, 0x6000, 0);
	leave(0x6000, false);
}

/* An op on a list, whose tensors are what the parts begin with. */
static void enter_list(const char *op, uint8_t level, uint64_t keyset, uint64_t a, uint64_t b)
{
	struct terra_tensor tensors[2] = {tensor_at(a, 1000), tensor_at(b, 1000)};
	struct terra_value list = {
	    .kind = TERRA_KIND_TENSOR_LIST, .present = 1, .count = 2, .recorded = 2, .u.tensors = tensors};
	struct terra_frame frame = {"optim.py", "update", 30};
	struct terra_event event = {
	    .type = TERRA_EVENT_OP_ENTER,
	    .level = level,
	    .op = op,
	    .overload = "",
	    .keyset = keyset,
	    .parent_seq = depth ? stack[depth - 1] : UINT64_MAX,
	    .n_values = 1,
	    .values = &list,
	    .n_frames = 1,
	    .frames = &frame,
	};

	open_op(&event);
}

/* In place: each part is redispatched once more. The last leaves the list op's kernel by a tail jump. */
static void list_op_in_place(void)
{
	enter_list("aten::_foreach_neg_", CALL, 0, 0x7000, 0x8000);
	enter_list("aten::_foreach_neg_", AGAIN, BACKEND_KEYS, 0x7000, 0x8000);
	for (uint64_t at = 0x7000; at <= 0x8000; at += 0x1000) {
		enter("aten::neg_", "", CALL, 0, at, 0);
		enter("aten::neg_", "", AGAIN, BACKEND_KEYS, at, 0);
		leave(at, false);
		leave(at, false);
	}
	leave(0, false);
	leave(0, false);
}

/* New results: the parts go to their kernels, which may call what they like. */
static void list_op(void)
{
	enter_list("aten::_foreach_sqrt", CALL, 0, 0x7000, 0x8000);
	enter_list("aten::_foreach_sqrt", AGAIN, BACKEND_KEYS, 0x7000, 0x8000);
	for (uint64_t at = 0x7000; at <= 0x8000; at += 0x1000) {
		enter("aten::sqrt", "", CALL, 0, at, 0);
		enter("aten::_to_copy", "", AGAIN, BACKEND_KEYS, at, 0);
		leave(at + 0x2000, false);
		leave(at + 0x2000, false);
	}
	leave(0x9000, false);
	leave(0x9000, false);
}

/* Made of others, but not one for each tensor. */
static void op_on_a_list(void)
{
	enter_list("aten::stack", CALL, 0, 0x7000, 0x8000);
	enter_list("aten::stack", AGAIN, BACKEND_KEYS, 0x7000, 0x8000);
	enter("aten::copy_", "", CALL, 0, 0x9000, 0x7000);
	leave(0x9000, false);
	leave(0xb000, false);
	leave(0xb000, false);
}

static void raising_op(void)
{
	enter("aten::exp", "", CALL, 0, 0x6000, 0);
	enter("aten::exp", "", AGAIN, BACKEND_KEYS, 0x6000, 0);
	leave(0, true);
	leave(0, true);
}

static void one_iteration(void)
{
	plain_op("aten::exp", 0x1000, 0x3000);
	in_place_op();
	op_made_of_others();
	call_only_op();
	no_op();
	raising_op();
	if (with_lists) {
		list_op_in_place();
		list_op();
		op_on_a_list();
	}
}

static void write_trace(int iterations, bool lose)
{
	struct terra_trace_info info = {
	    .backend = "preload",
	    .command = "python train.py",
	    .library = "/lib/libtorch_cpu.so",
	    .build_id = "c0ffee",
	    .cpu = "",
	    .pid = THREAD,
	    .threads = 2,
	};
	struct terra_event lost = {.type = TERRA_EVENT_LOST, .lost = 5};
	int i;

	seq = now = 0;
	depth = 0;
	assert_int_equal(terra_trace_create(path, &info, &writer, NULL, 0), 0);
	for (i = 0; i < iterations; i++) {
		one_iteration();
		if (lose && i > 0) {
			put(&lost);
			plain_op("aten::exp", 0x1000, 0x3000);
		}
	}
	assert_int_equal(terra_trace_finish(writer), 0);
}

static struct graph *build(void)
{
	struct graph *graph;
	char err[256] = "";

	if (graph_build(path, &graph, err, sizeof(err)))
		fail_msg("%s", err);
	return graph;
}

/* The iteration may begin at any of its ops: looks an op up by name. */
static const struct graph_op *find(const struct graph *graph, const char *name)
{
	uint32_t i;

	for (i = 0; i < graph->n_ops; i++)
		if (!strcmp(graph->ops[i].name, name) && !graph->ops[i].raised)
			return &graph->ops[i];
	fail_msg("no %s among the ops", name);
	return NULL;
}

static void test_nodes(void **state)
{
	static const char *const names[] = {"aten::exp", "aten::relu_", "aten::neg",
					    "aten::abs", "aten::flash", "aten::to.dtype"};
	struct graph *graph;
	size_t i;

	write_trace(ITERATIONS, false);
	graph = build();
	assert_int_equal(graph->n_ops, 7);
	for (i = 0; i < 6; i++)
		assert_int_equal(find(graph, names[i])->n_results, 1);
	assert_true(find(graph, "aten::exp")->plain_keys);
	assert_true(find(graph, "aten::relu_")->plain_keys);
	assert_int_equal(find(graph, "aten::relu_")->results[0].address, 0x3000);
	assert_true(find(graph, "aten::flash")->call_only);
	assert_true(find(graph, "aten::to.dtype")->call_only);
	assert_false(find(graph, "aten::neg")->call_only);
	assert_string_equal(find(graph, "aten::neg")->file, "train.py"); /* not the wrapper */
	assert_int_equal(find(graph, "aten::neg")->line, 20);
	assert_int_equal(find(graph, "aten::exp")->ns, 700);
	assert_string_equal(graph->build_id, "c0ffee");
	assert_int_equal(graph->threads, 2);
	for (i = 0; i < graph->n_ops && !graph->ops[i].raised; i++)
		continue;
	assert_true(i < graph->n_ops);
	graph_free(graph);
}

static void write_deep_trace(uint32_t depth_of_ops)
{
	struct terra_trace_info info = {.backend = "bpf", .command = "", .library = "", .build_id = "", .cpu = "", .pid = THREAD};
	struct terra_tensor tensor = tensor_at(0x1000, 1000);
	struct terra_value value = value_of(&tensor);
	char name[32];
	uint32_t i, k, random;

	seq = now = 0;
	assert_int_equal(terra_trace_create(path, &info, &writer, NULL, 0), 0);
	for (i = 0; i < 3; i++)
		for (k = 0, random = 1; k < depth_of_ops; k++) {
			bool innermost = k + 1 == depth_of_ops;
			struct terra_event event = {.type = TERRA_EVENT_OP_ENTER, .op = name, .overload = "",
						    .parent_seq = k ? seq - 1 : UINT64_MAX,
						    .level = innermost ? AGAIN : CALL,
						    .n_values = innermost, .values = &value};

			random = random * 1103515245 + 12345;
			snprintf(name, sizeof(name), "aten::op%u", random >> 26); /* no period within */
			put(&event);
		}
	assert_int_equal(terra_trace_finish(writer), 0);
}

static void *build_in_thread(void *arg)
{
	struct graph *graph;
	char err[256];

	if (graph_build(path, &graph, err, sizeof(err)))
		return NULL;
	*(uint32_t *)arg = graph->n_ops;
	graph_free(graph);
	return arg;
}

/* Ops inside ops, far deeper than programs have them, and an op of the backend's in the innermost: no call for each of them
 * that has not returned, for which the stack would be too small. */
static void test_deep(void **state)
{
	pthread_attr_t attributes;
	pthread_t thread;
	uint32_t n_ops = 0;

	write_deep_trace(20000);
	assert_int_equal(pthread_attr_init(&attributes), 0);
	assert_int_equal(pthread_attr_setstacksize(&attributes, 512 << 10), 0);
	assert_int_equal(pthread_create(&thread, &attributes, build_in_thread, &n_ops), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	pthread_attr_destroy(&attributes);
	assert_int_equal(n_ops, 1);
}

static void test_lists(void **state)
{
	struct graph *graph;
	uint32_t i, parts = 0;
	char err[256];

	with_lists = true;
	write_trace(ITERATIONS, false);
	with_lists = false;
	graph = build();
	assert_int_equal(graph->n_ops, 7 + 2 + 2 + 1);
	for (i = 0; i < graph->n_ops; i++)
		parts += graph->ops[i].list != NULL;
	assert_int_equal(parts, 4);
	assert_string_equal(find(graph, "aten::neg_")->list, "aten::_foreach_neg_");
	assert_string_equal(find(graph, "aten::sqrt")->list, "aten::_foreach_sqrt");
	assert_true(find(graph, "aten::sqrt")->plain_keys && !find(graph, "aten::sqrt")->call_only);
	assert_int_equal(find(graph, "aten::sqrt")->n_results, 1);
	assert_string_equal(find(graph, "aten::sqrt")->file, "optim.py");
	assert_null(find(graph, "aten::stack")->list);
	/* Each tensor's two ops are a region's instance. */
	assert_int_equal(graph_run_passes(graph, NULL, NULL, err, sizeof(err)), 0);
	for (i = 0; i < graph->n_regions && strcmp(graph->regions[i].lines[0].op, "aten::neg_"); i++)
		continue;
	assert_true(i < graph->n_regions);
	assert_int_equal(graph->regions[i].n_ops, 2);
	assert_int_equal(graph->regions[i].count, 2);
	graph_free(graph);
}

/* Without redispatches the same ops are found, but for how they reach their kernel. */
static void test_one_level(void **state)
{
	static const char *const names[] = {"aten::exp", "aten::relu_", "aten::neg", "aten::abs", "aten::flash", "aten::to.dtype",
					    "aten::stack"};
	struct graph *graph;
	uint32_t i, parts = 0;
	char err[256];

	with_lists = one_level = true;
	write_trace(ITERATIONS, false);
	with_lists = one_level = false;
	graph = build();
	assert_int_equal(graph->n_ops, 7 + 2 + 2 + 1);
	for (i = 0; i < sizeof(names) / sizeof(*names); i++)
		assert_true(find(graph, names[i])->plain_keys && !find(graph, names[i])->call_only);
	for (i = 0; i < graph->n_ops; i++)
		parts += graph->ops[i].list != NULL;
	assert_int_equal(parts, 4);
	assert_int_equal(graph_run_passes(graph, NULL, NULL, err, sizeof(err)), 0);
	assert_int_equal(find(graph, "aten::relu_")->class, GRAPH_FUSIBLE);
	assert_int_equal(find(graph, "aten::flash")->class, GRAPH_STOP);
	assert_int_equal(graph->n_regions, 2);
	graph_free(graph);
}

static void test_classes(void **state)
{
	struct graph *graph;
	char err[256];

	write_trace(ITERATIONS, false);
	graph = build();
	assert_int_equal(graph_run_passes(graph, NULL, NULL, err, sizeof(err)), 0);
	assert_int_equal(find(graph, "aten::relu_")->class, GRAPH_FUSIBLE);
	assert_int_equal(find(graph, "aten::flash")->class, GRAPH_STOP);
	assert_int_equal(find(graph, "aten::to.dtype")->class, GRAPH_PASSIVE);
	assert_int_equal(graph->n_regions, 1);
	assert_int_equal(graph->regions[0].n_ops, 4);
	assert_string_equal(graph->regions[0].lines[3].op, "aten::abs");
	graph_free(graph);
}

static void test_report(void **state)
{
	struct terra_graph_report *report;
	char err[256];

	write_trace(ITERATIONS, false);
	assert_int_equal(terra_graph_report(path, &report, err, sizeof(err)), 0);
	assert_int_equal(report->n_ops, 7);
	assert_int_equal(report->n_passive, 1);
	assert_int_equal(report->n_fusible, 4);
	assert_int_equal(report->n_regions, 1);
	assert_string_equal(report->regions[0].ops[0].line, "aten::exp i0");
	assert_string_equal(report->regions[0].ops[0].file, "train.py");
	assert_true(report->regions[0].traced_ns > 0);
	assert_true(report->in_regions_ns == (report->regions[0].dropped ? 0 : report->regions[0].traced_ns));
	assert_true(report->others_ns > report->regions[0].traced_ns);
	assert_true(report->products_ns == 0 && report->replaced_ns == 0);
	assert_int_equal(report->n_blockers, 1);
	assert_string_equal(report->blockers[0].op, "aten::flash");
	assert_int_equal(report->blockers[0].count, 1);
	terra_graph_report_free(report);
	assert_int_not_equal(terra_graph_report("/nonexistent", &report, err, sizeof(err)), 0);
	assert_null(report);
}

static void test_no_iteration(void **state)
{
	struct graph *graph;
	char err[256];

	write_trace(1, false);
	assert_int_equal(graph_build(path, &graph, err, sizeof(err)), -ENODATA);
	assert_non_null(strstr(err, "iteration"));
	assert_null(graph);
}

static void test_lost_events(void **state)
{
	struct graph *graph;
	char err[256];

	write_trace(ITERATIONS, true);
	assert_int_equal(graph_build(path, &graph, err, sizeof(err)), -ENODATA);
	assert_non_null(strstr(err, "missing"));
}

/* A trace cut anywhere gives a graph or a message. */
static void test_cut_traces(void **state)
{
	struct graph *graph;
	char err[256];
	long size, n;
	FILE *file;

	write_trace(ITERATIONS, false);
	file = fopen(path, "r");
	assert_non_null(file);
	fseek(file, 0, SEEK_END);
	size = ftell(file);
	fclose(file);
	for (n = size - 1; n >= 0; n -= 1 + size / 200) {
		assert_int_equal(truncate(path, n), 0);
		err[0] = '\0';
		if (graph_build(path, &graph, err, sizeof(err)))
			assert_true(err[0]);
		else
			graph_free(graph);
	}
}

static void write_records(const uint8_t *records, size_t size, uint32_t n_events)
{
	size_t file_size;
	uint8_t *file = input_build(records, size, n_events, &file_size);

	sample_write_file(path, file, file_size);
	free(file);
}

/* A number of the file that is some other: of a size, a place, an op, a kind of value. */
static void change(uint8_t *records, size_t size, uint32_t *random)
{
	*random = *random * 1664525u + 1013904223u;
	records[(*random >> 8) % size] = *random & 1 ? (uint8_t)(*random >> 1 & 0xf) : (uint8_t)(*random >> 1);
}

/* Traces whose checksums are right and whose events are not: a graph, which goes through all passes, or a message. */
static void test_changed_traces(void **state)
{
	uint32_t n_events, random = 1, graphs = 0;
	struct sample_bytes file;
	uint8_t *records, *changed;
	struct graph *graph;
	char err[256];
	size_t size;

	with_lists = true;
	write_trace(ITERATIONS, false);
	with_lists = false;
	file = sample_read_file(path);
	records = input_records(file.data, &size, &n_events);
	free(file.data);
	changed = malloc(size);
	assert_non_null(changed);
	for (int round = 0; round < 2000; round++) {
		memcpy(changed, records, size);
		for (int i = 0; i <= round % 3; i++)
			change(changed, size, &random);
		write_records(changed, size, n_events);
		err[0] = '\0';
		if (graph_build(path, &graph, err, sizeof(err)) != 0) {
			assert_true(err[0]);
			continue;
		}
		graphs++;
		if (graph_run_passes(graph, NULL, NULL, err, sizeof(err)) != 0)
			assert_true(err[0]);
		graph_free(graph);
	}
	assert_in_range(graphs, 100, 1999);
	print_message("%u of 2000 changed traces still gave a graph\n", graphs);
	free(changed);
	free(records);
}

static int make_file(void **state)
{
	int fd = mkstemp(path);

	return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state)
{
	return unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_nodes),	 cmocka_unit_test(test_lists),	     cmocka_unit_test(test_classes),
	    cmocka_unit_test(test_deep),
	    cmocka_unit_test(test_one_level),
	    cmocka_unit_test(test_report),
	    cmocka_unit_test(test_no_iteration), cmocka_unit_test(test_lost_events), cmocka_unit_test(test_cut_traces),
	    cmocka_unit_test(test_changed_traces),
	};

	return cmocka_run_group_tests(tests, make_file, remove_file);
}
