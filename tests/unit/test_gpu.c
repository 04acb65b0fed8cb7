/* GPU activity in traces: the record, the ops that launched it, the merging of two files, the report. What is called recorded is
 * made by hand: nothing ran on a GPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <unistd.h>

#include "collector/gpu_kinds.h"
#include "collector/gpu_link.h"
#include "collector/gpu_merge.h"
#include "collector/gpu_session.h"
#include "collector/report.h"
#include "collector/trace_decode.h"
#include "tests/unit/gpu_sample.h"
#include "tests/unit/trace_sample.h"

#define PID 4242
#define MAIN PID
#define BACKWARD 4250

/* ---- the record ---- */

static void every_kind_is_read_as_it_was_written(void **state)
{
	const char *path = sample_tmp("kinds.terra");
	struct terra_trace_writer *writer;
	struct terra_trace_reader *reader;
	struct terra_event event;

	assert_int_equal(terra_trace_create(path, sample_info(), &writer, NULL, 0), 0);
	for (uint8_t kind = 1; kind < TERRA_GPU_KIND_END; kind++) {
		struct terra_gpu gpu = gpu_sample_full(kind);

		event = gpu_event(&gpu, kind, 1000000 - kind * 1000u);
		gpu.untimed = kind == TERRA_GPU_LINK;
		gpu.op_seq = kind > 1 ? 0 : UINT64_MAX;
		gpu.linked = kind > 1 ? 1 + kind % 2 : 0;
		assert_int_equal(terra_trace_write(writer, &event), 0);
	}
	assert_int_equal(terra_trace_finish(writer), 0);
	assert_int_equal(terra_trace_open(path, &reader, NULL, 0), 0);
	for (uint8_t kind = 1; kind < TERRA_GPU_KIND_END; kind++) {
		struct terra_gpu gpu = gpu_sample_full(kind);

		gpu.untimed = kind == TERRA_GPU_LINK;
		gpu.op_seq = kind > 1 ? 0 : UINT64_MAX;
		gpu.linked = kind > 1 ? 1 + kind % 2 : 0;
		assert_int_equal(terra_trace_next(reader, &event), 1);
		assert_int_equal(event.type, TERRA_EVENT_GPU);
		assert_int_equal(event.thread, kind);
		assert_int_equal(event.time_ns, 1000000 - kind * 1000u);
		assert_true(same_gpu(event.gpu, &gpu));
	}
	assert_int_equal(terra_trace_next(reader, &event), 0);
	assert_true(terra_trace_ended_cleanly(reader));
	terra_trace_close(reader);
}

static void what_contradicts_itself_is_refused(void **state)
{
	struct terra_trace_writer *writer;
	struct terra_gpu gpu = gpu_sample_full(TERRA_GPU_KERNEL);
	struct terra_event event = gpu_event(NULL, 1, 2);

	assert_int_equal(terra_trace_create(sample_tmp("refused.terra"), sample_info(), &writer, NULL, 0), 0);
	assert_int_equal(terra_trace_write(writer, &event), -EINVAL);
	event.gpu = &gpu;
	gpu.kind = 0;
	assert_int_equal(terra_trace_write(writer, &event), -EINVAL);
	gpu.kind = TERRA_GPU_KIND_END;
	assert_int_equal(terra_trace_write(writer, &event), -EINVAL);
	gpu.kind = TERRA_GPU_KERNEL;
	gpu.op_seq = 5; /* of an op that comes later */
	assert_int_equal(terra_trace_write(writer, &event), -EINVAL);
	gpu.op_seq = UINT64_MAX;
	assert_int_equal(terra_trace_write(writer, &event), 0);
	assert_int_equal(terra_trace_finish(writer), 0);
}

/* Decodes one record of a block that begins at event 100 and time 1000; what trace_decode returned. */
static int decode(const uint8_t *raw, size_t size, struct trace_decoder *d, struct terra_event *event)
{
	assert_int_equal(trace_decoder_init(d), 0);
	trace_decoder_begin(d, raw, size, 100, 1, 1000);
	return trace_decode(d, event);
}

/* docs/trace-format.md, byte by byte. */
static void the_record_is_as_documented(void **state)
{
	static const uint8_t raw[] = {
		0x01, 3, 'm', 'm', 0,                /* STRING 1 */
		0x16, 24, 9, 20,                     /* GPU, size; thread 9, 10 ns on */
		1, 4, 1, 0x80, 1, 5, 40,             /* kernel, op by time, name 1, 128 ns, correlation 5, 40 events back */
		1, 2, 7, 0, 0,                       /* device 0, context 2, stream 7, no graph, no node */
		8, 1, 1, 0x80, 2, 1, 1, 0, 3, 32     /* grid 8,1,1 block 256,1,1 shared 0+3 registers 32 */
	};
	struct terra_event event;
	struct trace_decoder d;
	uint8_t sized[sizeof(raw)];

	memcpy(sized, raw, sizeof(raw));
	sized[6] = (uint8_t)(sizeof(raw) - 7);
	assert_int_equal(decode(sized, sizeof(sized), &d, &event), 1);
	assert_int_equal(event.time_ns, 1010);
	assert_int_equal(event.thread, 9);
	assert_string_equal(event.gpu->name, "mm");
	assert_int_equal(event.gpu->duration_ns, 128);
	assert_int_equal(event.gpu->correlation, 5);
	assert_int_equal(event.gpu->op_seq, 60);
	assert_int_equal(event.gpu->linked, TERRA_GPU_BY_TIME);
	assert_int_equal(event.gpu->device, 0);
	assert_int_equal(event.gpu->block[0], 256);
	assert_int_equal(event.gpu->registers, 32);
	trace_decoder_free(&d);
}

static void later_kinds_and_fields_are_passed_over(void **state)
{
	static const uint8_t raw[] = { 0x16, 16, 9, 20, 99, 0, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff };
	struct terra_event event;
	struct trace_decoder d;

	assert_int_equal(decode(raw, sizeof(raw), &d, &event), 1);
	assert_int_equal(event.gpu->kind, 99);
	assert_int_equal(event.gpu->correlation, 6);
	assert_int_equal(event.gpu->device, TERRA_GPU_NO_DEVICE);
	trace_decoder_free(&d);
}

static void damaged_records_are_refused(void **state)
{
	static const uint8_t good[] = { 0x16, 13, 9, 20, 6, 0, 0, 5, 6, 0, 0, 0, 0, 0, 0 };
	static const struct {
		uint8_t at, value;
	} changes[] = {
		{ 4, 0 },      /* no kind */
		{ 5, 8 },      /* unknown flag */
		{ 6, 1 },      /* a name that is not defined */
		{ 9, 101 },    /* an op before the file */
		{ 14, 0x80 },  /* a number without end */
		{ 4, 1 },      /* a kernel without its details */
	};
	struct terra_event event;
	struct trace_decoder d;

	assert_int_equal(decode(good, sizeof(good), &d, &event), 1);
	trace_decoder_free(&d);
	for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		uint8_t raw[sizeof(good)];

		memcpy(raw, good, sizeof(good));
		raw[changes[i].at] = changes[i].value;
		assert_int_equal(decode(raw, sizeof(raw), &d, &event), -EBADMSG);
		trace_decoder_free(&d);
	}
}

/* ---- which op ---- */

/* A recording: seqs are places in the array. On the main thread mul inside linear, then an op that an exception left, then a
 * relu; on another a backward op at the same time. */
struct recorded_op {
	uint8_t type;
	uint32_t thread;
	uint64_t time_ns, enter, parent;
	const char *name;
};

#define NO UINT64_MAX
static const struct recorded_op recorded_ops[] = {
	{ TERRA_EVENT_OP_ENTER, MAIN, 1000, NO, NO, "aten::linear" },     /* 0 */
	{ TERRA_EVENT_OP_ENTER, MAIN, 1100, NO, 0, "aten::mul" },         /* 1 */
	{ TERRA_EVENT_OP_ENTER, BACKWARD, 1150, NO, NO, "aten::mm" },     /* 2 */
	{ TERRA_EVENT_OP_EXIT, MAIN, 1300, 1, NO, "aten::mul" },          /* 3 */
	{ TERRA_EVENT_OP_EXIT, MAIN, 1500, 0, NO, "aten::linear" },       /* 4 */
	{ TERRA_EVENT_OP_ENTER, MAIN, 1600, NO, NO, "aten::sum" },        /* 5 */
	{ TERRA_EVENT_OP_ENTER, MAIN, 1620, NO, 5, "aten::bad" },         /* 6: no exit */
	{ TERRA_EVENT_OP_EXIT, BACKWARD, 1650, 2, NO, "aten::mm" },       /* 7 */
	{ TERRA_EVENT_OP_EXIT, MAIN, 1700, 5, NO, "aten::sum" },          /* 8 */
	{ TERRA_EVENT_OP_ENTER, MAIN, 1800, NO, NO, "aten::relu" },       /* 9 */
	{ TERRA_EVENT_OP_EXIT, MAIN, 1900, 9, NO, "aten::relu" },         /* 10 */
	{ TERRA_EVENT_OP_ENTER, MAIN, 2000, NO, NO, "aten::raises" },     /* 11 */
	{ TERRA_EVENT_OP_ENTER, MAIN, 2100, NO, 11, "aten::empty" },      /* 12 */
	{ TERRA_EVENT_OP_EXIT, MAIN, 2200, 12, NO, "aten::empty" },       /* 13 */
	{ TERRA_EVENT_OP_EXIT, MAIN, 2600, 11, NO, "aten::raises" },      /* 14: an exception, noticed at the next op */
	{ TERRA_EVENT_OP_ENTER, MAIN, 2600, NO, NO, "aten::neg" },        /* 15 */
	{ TERRA_EVENT_OP_EXIT, MAIN, 2700, 15, NO, "aten::neg" },         /* 16 */
	{ TERRA_EVENT_OP_ENTER, MAIN, 3000, NO, NO, "aten::raises" },     /* 17 */
	{ TERRA_EVENT_OP_ENTER, MAIN, 3100, NO, 17, "aten::raises" },     /* 18 */
	{ TERRA_EVENT_OP_EXIT, MAIN, 3500, 18, NO, "aten::raises" },      /* 19 */
	{ TERRA_EVENT_OP_EXIT, MAIN, 3500, 17, NO, "aten::raises" },      /* 20 */
};

/* Calls with what they launched, and the op that did: by hand, for both ways. */
struct recorded_call {
	uint64_t correlation;
	uint32_t thread;
	uint64_t time_ns, external; /* 0: none */
	uint64_t op;
	bool stale; /* the id is of an op that may have been left */
};

static const struct recorded_call recorded_calls[] = {
	{ 11, MAIN, 1050, 1000, 0, false },  { 12, MAIN, 1200, 1100, 1, false },  { 13, BACKWARD, 1200, 1150, 2, false },
	{ 14, MAIN, 1400, 1000, 0, false },  { 15, MAIN, 1550, 0, NO, false },	  { 16, MAIN, 1610, 1600, 5, false },
	{ 17, MAIN, 1750, 0, NO, false },    { 18, MAIN, 1800, 1800, 9, false },  { 19, 4251, 1200, 0, NO, false },
	{ 20, MAIN, 1630, 1620, 5, true },   { 21, MAIN, 2150, 2100, 12, false }, { 22, MAIN, 2050, 2000, 11, false },
	{ 23, MAIN, 2400, 2000, NO, true },  { 24, MAIN, 2650, 2600, 15, false }, { 25, MAIN, 3050, 3000, 17, false },
};
#define N_CALLS (sizeof(recorded_calls) / sizeof(recorded_calls[0]))

static struct terra_event op_event(size_t i)
{
	const struct recorded_op *op = &recorded_ops[i];

	return (struct terra_event){ .type = op->type, .thread = op->thread, .time_ns = op->time_ns, .seq = i, .op = op->name,
				     .overload = "", .enter_seq = op->enter, .parent_seq = op->parent,
				     .raised = op->type == TERRA_EVENT_OP_EXIT && !strcmp(op->name, "aten::raises") };
}

static void add_calls(struct gpu_linker *linker, bool ids)
{
	for (size_t i = 0; i < N_CALLS; i++) {
		const struct recorded_call *recorded = &recorded_calls[i];
		struct terra_gpu call = gpu_sample(TERRA_GPU_RUNTIME, recorded->correlation);
		struct terra_gpu link = gpu_sample(TERRA_GPU_LINK, recorded->correlation);
		struct terra_event event = gpu_event(&call, recorded->thread, recorded->time_ns);

		assert_int_equal(gpu_linker_call(linker, &event), 0);
		link.external = recorded->external;
		event = gpu_event(&link, 0, 0);
		if (ids && recorded->external)
			assert_int_equal(gpu_linker_call(linker, &event), 0);
	}
}

static struct gpu_linker *recorded_linker(bool ids)
{
	struct gpu_linker *linker = gpu_linker_new();

	assert_non_null(linker);
	for (size_t i = 0; i < sizeof(recorded_ops) / sizeof(recorded_ops[0]); i++) {
		struct terra_event event = op_event(i);

		assert_int_equal(gpu_linker_op(linker, &event), 0);
	}
	add_calls(linker, ids);
	gpu_linker_ready(linker);
	return linker;
}

/* Recorded, not executed. */
static void external_ids_and_time_name_the_same_ops(void **state)
{
	for (int ids = 0; ids < 2; ids++) {
		struct gpu_linker *linker = recorded_linker(ids);

		for (size_t i = 0; i < N_CALLS; i++) {
			const struct recorded_call *call = &recorded_calls[i];
			struct terra_gpu kernel = gpu_sample(TERRA_GPU_KERNEL, call->correlation);
			struct terra_event event = gpu_event(&kernel, 0, call->time_ns + 5000);

			gpu_linker_find(linker, &event);
			assert_int_equal(kernel.op_seq, call->op);
			assert_int_equal(kernel.linked, call->op == NO		   ? TERRA_GPU_BY_NOTHING
							: ids && call->external && !call->stale ? TERRA_GPU_BY_EXTERNAL_ID
										   : TERRA_GPU_BY_TIME);
			assert_int_equal(gpu_linker_asked_ns(linker, &event), call->time_ns);
		}
		assert_int_equal(gpu_linker_counts(linker)->differ, 0);
		assert_int_equal(gpu_linker_counts(linker)->without, 4);
		assert_int_equal(gpu_linker_counts(linker)->by_external_id, ids ? 10 : 0);
		gpu_linker_free(linker);
	}
}

static void ways_that_differ_are_counted(void **state)
{
	struct gpu_linker *linker = gpu_linker_new();
	struct terra_gpu call = gpu_sample(TERRA_GPU_RUNTIME, 5), link = gpu_sample(TERRA_GPU_LINK, 5);
	struct terra_gpu kernel = gpu_sample(TERRA_GPU_KERNEL, 5);
	struct terra_event event;

	for (size_t i = 0; i < 6; i++) {
		event = op_event(i);
		assert_int_equal(gpu_linker_op(linker, &event), 0);
	}
	event = gpu_event(&call, MAIN, 1200); /* inside mul */
	assert_int_equal(gpu_linker_call(linker, &event), 0);
	link.external = 1000; /* linear */
	event = gpu_event(&link, 0, 0);
	assert_int_equal(gpu_linker_call(linker, &event), 0);
	gpu_linker_ready(linker);
	assert_int_equal(gpu_linker_counts(linker)->differ, 1);
	event = gpu_event(&kernel, 0, 9000);
	gpu_linker_find(linker, &event);
	assert_int_equal(kernel.op_seq, 0);
	gpu_linker_free(linker);
}

static void an_id_without_a_call_is_taken_where_it_is_of_one_thread(void **state)
{
	struct gpu_linker *linker = recorded_linker(false);

	assert_int_equal(gpu_linker_by_external_id(linker, 0, 1150, 0), 2);
	assert_int_equal(gpu_linker_by_external_id(linker, MAIN, 1150, 0), NO);
	assert_int_equal(gpu_linker_by_external_id(linker, 0, 1151, 0), NO);
	assert_int_equal(gpu_linker_by_external_id(linker, 0, 2000, 0), NO); /* an exception left it */
	assert_int_equal(gpu_linker_by_external_id(linker, 0, 2000, 2050), 11);
	assert_int_equal(gpu_linker_by_time(linker, MAIN, 999), NO);
	assert_int_equal(gpu_linker_by_time(linker, 77, 1200), NO);
	gpu_linker_free(linker);
	linker = gpu_linker_new();
	gpu_linker_ready(linker);
	assert_int_equal(gpu_linker_by_time(linker, MAIN, 1200), NO);
	gpu_linker_free(linker);
}

/* ---- merging ---- */

/* As a kill leaves it: without the end block. */
static void cut_end(const char *path)
{
	struct sample_bytes bytes = sample_read_file(path);

	assert_int_equal(truncate(path, (off_t)(bytes.size - 64 - 24)), 0);
	free(bytes.data);
}

static void write_ops(const char *path, uint32_t pid, bool finish)
{
	struct terra_trace_info info = *sample_info();
	struct terra_trace_writer *writer;

	info.pid = pid;
	assert_int_equal(terra_trace_create(path, &info, &writer, NULL, 0), 0);
	for (size_t i = 0; i < sizeof(recorded_ops) / sizeof(recorded_ops[0]); i++) {
		struct terra_event event = op_event(i);

		assert_int_equal(terra_trace_write(writer, &event), 0);
		if (i == 4)
			assert_int_equal(terra_trace_flush(writer), 0);
	}
	assert_int_equal(terra_trace_finish(writer), 0);
	if (!finish)
		cut_end(path);
}

static void write_activity(const char *path, uint32_t pid, bool finish)
{
	struct terra_event note = { .type = TERRA_EVENT_NOTE, .text = "GPU times are made up", .time_ns = 900 };
	struct terra_event lost = { .type = TERRA_EVENT_LOST, .lost = 3, .time_ns = 900 };
	struct terra_trace_info info = *sample_info();
	struct terra_trace_writer *writer;

	info.pid = pid;
	info.backend = "cupti";
	assert_int_equal(terra_trace_create(path, &info, &writer, NULL, 0), 0);
	assert_int_equal(terra_trace_write(writer, &note), 0);
	assert_int_equal(terra_trace_write(writer, &lost), 0);
	for (size_t i = 0; i < N_CALLS; i++) {
		const struct recorded_call *recorded = &recorded_calls[i];
		struct terra_gpu kernel = gpu_sample_full(TERRA_GPU_KERNEL), call = gpu_sample_full(TERRA_GPU_RUNTIME);
		struct terra_gpu link = gpu_sample(TERRA_GPU_LINK, recorded->correlation);
		struct terra_event event = gpu_event(&kernel, 0, recorded->time_ns + 5000);

		kernel.correlation = call.correlation = recorded->correlation;
		link.external = recorded->external;
		assert_int_equal(terra_trace_write(writer, &event), 0); /* CUPTI has no order among them */
		event = gpu_event(&call, recorded->thread, recorded->time_ns);
		assert_int_equal(terra_trace_write(writer, &event), 0);
		event = gpu_event(&link, 0, 900);
		if (recorded->external && i % 2)
			assert_int_equal(terra_trace_write(writer, &event), 0);
	}
	assert_int_equal(terra_trace_finish(writer), 0);
	if (!finish)
		cut_end(path);
}

struct merged {
	uint32_t kernels, calls, links, ops, notes;
	uint64_t lost;
	bool clean, has_text;
};

/* Every kernel of a merged trace has the op that it was recorded with. `text`: of a note. */
static struct merged read_merged(const char *path, const char *text)
{
	struct terra_trace_reader *reader;
	struct merged n = { 0 };
	struct terra_event event;

	assert_int_equal(terra_trace_open(path, &reader, NULL, 0), 0);
	while (terra_trace_next(reader, &event) == 1) {
		n.ops += event.type == TERRA_EVENT_OP_ENTER;
		n.notes += event.type == TERRA_EVENT_NOTE;
		n.has_text |= event.type == TERRA_EVENT_NOTE && strstr(event.text, text);
		if (event.type != TERRA_EVENT_GPU)
			continue;
		n.kernels += event.gpu->kind == TERRA_GPU_KERNEL;
		n.calls += event.gpu->kind == TERRA_GPU_RUNTIME;
		n.links += event.gpu->kind == TERRA_GPU_LINK;
		for (size_t i = 0; i < N_CALLS; i++)
			if (recorded_calls[i].correlation == event.gpu->correlation)
				assert_int_equal(event.gpu->op_seq, recorded_calls[i].op);
	}
	assert_int_equal(terra_trace_missing(reader), 0);
	n.lost = terra_trace_lost(reader);
	n.clean = terra_trace_ended_cleanly(reader);
	terra_trace_close(reader);
	return n;
}

static const struct terra_gpu_merge_options whole;

static void activity_is_put_behind_the_ops(void **state)
{
	const char *trace = sample_tmp("m.terra"), *gpu = sample_tmp("m.gpu");
	char err[512] = "";
	struct merged n;

	write_ops(trace, PID, true);
	write_activity(gpu, PID, true);
	assert_int_equal(terra_gpu_merge(trace, gpu, &whole, err, sizeof(err)), 0);
	n = read_merged(trace, "6 found by external id, 5 by thread and time, 4 not");
	assert_int_equal(n.kernels, N_CALLS);
	assert_int_equal(n.calls, N_CALLS);
	assert_int_equal(n.links, 0);
	assert_int_equal(n.ops, 11);
	assert_int_equal(n.lost, 3);
	assert_true(n.clean && n.has_text);
	assert_int_equal(n.notes, 2); /* of the file, and of the ops */
	assert_int_equal(terra_gpu_merge(trace, gpu, &whole, err, sizeof(err)), -EINVAL);
	assert_non_null(strstr(err, "already"));
}

/* A killed program's two files: what is there is there, and the end is not clean. */
static void files_that_ended_early_are_merged(void **state)
{
	const char *trace = sample_tmp("k.terra"), *gpu = sample_tmp("k.gpu");
	char err[512] = "";
	struct merged n;

	write_ops(trace, PID, false);
	write_activity(gpu, PID, false);
	assert_int_equal(terra_gpu_merge(trace, gpu, &whole, err, sizeof(err)), 0);
	n = read_merged(trace, "ends abnormally");
	assert_int_equal(n.kernels, N_CALLS);
	assert_false(n.clean);
	assert_true(n.has_text);
}

static void only_what_was_recorded_is_kept(void **state)
{
	const struct terra_gpu_merge_options recorded = { .recorded_only = true, .running = true };
	const char *trace = sample_tmp("r.terra"), *gpu = sample_tmp("r.gpu");
	struct terra_trace_info info = *sample_info();
	struct terra_trace_writer *writer;
	char err[512] = "";
	struct merged n;

	assert_int_equal(terra_trace_create(trace, &info, &writer, NULL, 0), 0);
	for (size_t i = 0; i < 9; i++) {
		struct terra_event event = op_event(i);

		assert_int_equal(terra_trace_write(writer, &event), 0);
	}
	assert_int_equal(terra_trace_finish(writer), 0);
	write_activity(gpu, PID, true);
	assert_int_equal(terra_gpu_merge(trace, gpu, &recorded, err, sizeof(err)), 0);
	n = read_merged(trace, "14 GPU activities before or after");
	assert_int_equal(n.kernels, 8); /* asked for from 1000 to 1700 */
	assert_int_equal(n.calls, 8);
	assert_true(n.has_text);
}

static void without_calls_that_is_said(void **state)
{
	const char *trace = sample_tmp("n.terra"), *gpu = sample_tmp("n.gpu");
	struct terra_gpu kernel = gpu_sample_full(TERRA_GPU_KERNEL);
	struct terra_event event = gpu_event(&kernel, 0, 1200);
	struct terra_trace_writer *writer;
	char err[512] = "";

	write_ops(trace, PID, true);
	assert_int_equal(terra_trace_create(gpu, sample_info(), &writer, NULL, 0), 0);
	assert_int_equal(terra_trace_write(writer, &event), 0);
	assert_int_equal(terra_trace_finish(writer), 0);
	assert_int_equal(terra_gpu_merge(trace, gpu, &whole, err, sizeof(err)), 0);
	assert_true(read_merged(trace, "no calls of CUDA's").has_text);
}

static void files_that_do_not_belong_together_stay_as_they_are(void **state)
{
	const char *trace = sample_tmp("x.terra"), *gpu = sample_tmp("x.gpu");
	struct sample_bytes before, after;
	char err[512] = "";

	write_ops(trace, PID, true);
	write_activity(gpu, PID + 1, true);
	before = sample_read_file(trace);
	assert_int_equal(terra_gpu_merge(trace, gpu, &whole, err, sizeof(err)), -EINVAL);
	assert_non_null(strstr(err, "another process"));
	assert_int_equal(terra_gpu_merge(trace, trace, &whole, err, sizeof(err)), 0); /* no activity in it: only notes */
	write_ops(trace, PID, true);
	before.data[before.size / 2] ^= 1;
	sample_write_file(trace, before.data, before.size);
	write_activity(gpu, PID, true);
	assert_int_equal(terra_gpu_merge(trace, gpu, &whole, err, sizeof(err)), -EINVAL);
	after = sample_read_file(trace);
	assert_int_equal(after.size, before.size);
	assert_memory_equal(after.data, before.data, before.size);
	assert_true(terra_gpu_merge("/nowhere", gpu, &whole, err, sizeof(err)) < 0);
	free(before.data);
	free(after.data);
}

static char said[512];

static void say(const char *text)
{
	snprintf(said, sizeof(said), "%s", text);
}

static void files_of_a_recording_are_collected(void **state)
{
	const char *trace = sample_tmp("a[b]*.terra");
	char child[256], gpu[3][256];

	said[0] = 0;
	snprintf(child, sizeof(child), "%s.%d", trace, PID + 1);
	for (int i = 0; i < 3; i++)
		snprintf(gpu[i], sizeof(gpu[i]), "%s.gpu.%d", trace, PID + i);
	write_ops(trace, PID, true);
	write_ops(child, PID + 1, true);
	for (int i = 0; i < 3; i++)
		write_activity(gpu[i], PID + (uint32_t)i, true);
	terra_gpu_collect(trace, false, say);
	assert_int_equal(read_merged(trace, "x").kernels, N_CALLS);
	assert_int_equal(read_merged(child, "x").kernels, N_CALLS);
	assert_int_not_equal(access(gpu[0], F_OK), 0);
	assert_int_not_equal(access(gpu[1], F_OK), 0);
	assert_int_equal(access(gpu[2], F_OK), 0); /* no trace of its process */
	assert_non_null(strstr(said, gpu[2]));
}

/* ---- words ---- */

static void kinds_are_words(void **state)
{
	const char *wrong;
	uint32_t kinds;

	assert_true(terra_gpu_parse_kinds("kernels,memcpy", &kinds, &wrong));
	assert_int_equal(kinds, TERRA_GPU_WANT_KERNELS | TERRA_GPU_WANT_MEMCPY);
	assert_true(terra_gpu_parse_kinds("none", &kinds, &wrong));
	assert_int_equal(kinds, 0);
	assert_true(terra_gpu_parse_kinds(TERRA_GPU_DEFAULT, &kinds, &wrong));
	assert_int_equal(kinds, 63);
	assert_false(terra_gpu_parse_kinds("memcpy,kernel", &kinds, &wrong));
	assert_string_equal(wrong, "kernel");
	assert_false(terra_gpu_parse_kinds("", &kinds, &wrong));
}

/* ---- the report ---- */

static char *report_of(const char *path, bool json)
{
	struct terra_trace_reader *reader;
	struct terra_summary *summary;
	struct json out = { 0 };
	char *text = NULL;
	size_t size;

	out.out = open_memstream(&text, &size);
	assert_int_equal(terra_trace_open(path, &reader, NULL, 0), 0);
	assert_int_equal(terra_summary_new(reader, &summary), 0);
	if (json)
		terra_summary_json(summary, path, &out);
	else
		terra_summary_print(summary, path, 10, out.out);
	terra_summary_free(summary);
	terra_trace_close(reader);
	fclose(out.out);
	return text;
}

static void a_report_tells_gpu_time_by_op(void **state)
{
	const char *trace = sample_tmp("p.terra"), *gpu = sample_tmp("p.gpu");
	char err[512] = "", *text;

	write_ops(trace, PID, true);
	text = report_of(trace, false);
	assert_null(strstr(text, "GPU"));
	free(text);
	write_activity(gpu, PID, true);
	assert_int_equal(terra_gpu_merge(trace, gpu, &whole, err, sizeof(err)), 0);
	text = report_of(trace, false);
	assert_non_null(strstr(text, "GPU: 15 activities, 0.015 ms; 15 calls"));
	assert_non_null(strstr(text, "0.002   13.3        2  aten::linear\n"));
	assert_non_null(strstr(text, "0.004   26.7        4  (without an op)\n"));
	assert_true(strstr(text, "15  scale(float*, int)\n") || strstr(text, "15  _Z5scalePfi\n"));
	free(text);
	text = report_of(trace, true);
	assert_non_null(strstr(text, "\"without_op\":{\"count\":4,\"total_ns\":4004,\"bytes\":0}"));
	assert_non_null(strstr(text, "{\"name\":\"aten::linear\",\"demangled\":\"aten::linear\",\"kind\":\"kernel\",\"count\":2"));
	free(text);
}

static void a_dump_has_every_kind(void **state)
{
	const char *path = sample_tmp("kinds.terra"); /* of the first case */
	struct terra_trace_reader *reader;
	char *text = NULL;
	bool damaged;
	size_t size;

	for (int json = 0; json < 2; json++) {
		FILE *out = open_memstream(&text, &size);

		assert_int_equal(terra_trace_open(path, &reader, NULL, 0), 0);
		terra_trace_dump(reader, json, out, &damaged);
		terra_trace_close(reader);
		fclose(out);
		assert_false(damaged);
		for (uint8_t kind = 1; kind < TERRA_GPU_KIND_END; kind++) {
			char want[64];

			snprintf(want, sizeof(want), json ? "\"kind\":\"%s\"" : "@ %s ", gpu_kind_name(kind));
			assert_non_null(strstr(text, want));
		}
		free(text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_kind_is_read_as_it_was_written),
		cmocka_unit_test(what_contradicts_itself_is_refused),
		cmocka_unit_test(the_record_is_as_documented),
		cmocka_unit_test(later_kinds_and_fields_are_passed_over),
		cmocka_unit_test(damaged_records_are_refused),
		cmocka_unit_test(external_ids_and_time_name_the_same_ops),
		cmocka_unit_test(ways_that_differ_are_counted),
		cmocka_unit_test(an_id_without_a_call_is_taken_where_it_is_of_one_thread),
		cmocka_unit_test(activity_is_put_behind_the_ops),
		cmocka_unit_test(files_that_ended_early_are_merged),
		cmocka_unit_test(only_what_was_recorded_is_kept),
		cmocka_unit_test(without_calls_that_is_said),
		cmocka_unit_test(files_that_do_not_belong_together_stay_as_they_are),
		cmocka_unit_test(files_of_a_recording_are_collected),
		cmocka_unit_test(kinds_are_words),
		cmocka_unit_test(a_report_tells_gpu_time_by_op),
		cmocka_unit_test(a_dump_has_every_kind),
	};

	return cmocka_run_group_tests(tests, sample_tmp_create, sample_tmp_remove);
}
