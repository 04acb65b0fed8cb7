/* What of a recording is kept: limits, the flight recorder, patterns over operators. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <sys/stat.h>

#include "collector/gate.h"
#include "collector/op_filter.h"
#include "trace_sample.h"

#define THREAD 7
#define MS 1000000u

static struct terra_trace_writer *writer;
static struct terra_gate *gate;
static uint64_t now;

static int event(uint8_t type, const char *op, uint64_t enter, uint64_t *seq)
{
	struct terra_event made = { .type = type, .thread = THREAD, .time_ns = now += MS, .op = op, .overload = "",
				    .parent_seq = UINT64_MAX, .enter_seq = enter };
	int error = terra_gate_take(gate, &made);

	*seq = made.seq;
	return error;
}

/* One op, left again. */
static int op(const char *name)
{
	uint64_t enter = 0, seq;
	int error = event(TERRA_EVENT_OP_ENTER, name, UINT64_MAX, &enter);

	return error ? error : event(TERRA_EVENT_OP_EXIT, name, enter, &seq);
}

static void begin(const struct terra_limits *limits, const char *path)
{
	char err[256];

	now = 1000 * (uint64_t)MS;
	assert_int_equal(terra_trace_create(path, sample_info(), &writer, err, sizeof(err)), 0);
	gate = terra_gate_new(limits, writer, THREAD);
	assert_non_null(gate);
}

static void end(void)
{
	terra_gate_finish(gate, now);
	terra_gate_free(gate);
	assert_int_equal(terra_trace_finish(writer), 0);
}

struct content {
	uint64_t events, enters, exits, lost, first_ns, last_ns;
	char notes[1024];
};

static void read_back(const char *path, struct content *out)
{
	struct terra_trace_reader *reader;
	struct terra_event got;
	char err[256];
	int ret;

	*out = (struct content){ 0 };
	assert_int_equal(terra_trace_open(path, &reader, err, sizeof(err)), 0);
	while ((ret = terra_trace_next(reader, &got)) > 0) {
		out->events++;
		if (got.type == TERRA_EVENT_NOTE) {
			strncat(out->notes, got.text, sizeof(out->notes) - strlen(out->notes) - 1);
			continue;
		}
		out->first_ns = out->first_ns ? out->first_ns : got.time_ns;
		out->last_ns = got.time_ns;
		out->enters += got.type == TERRA_EVENT_OP_ENTER;
		out->exits += got.type == TERRA_EVENT_OP_EXIT;
		if (got.type == TERRA_EVENT_OP_EXIT)
			assert_true(got.enter_seq < got.seq);
	}
	assert_int_equal(ret, 0);
	out->lost = terra_trace_lost(reader);
	assert_true(terra_trace_ended_cleanly(reader));
	terra_trace_close(reader);
}

static void test_duration(void **state)
{
	struct terra_limits limits = { .duration_ns = 10 * MS };
	struct content content;
	int n = 0;

	begin(&limits, sample_tmp("duration"));
	while (!op("aten::mm"))
		n++;
	assert_string_equal(terra_gate_reason(gate), "--duration");
	assert_int_equal(op("aten::mm"), -ECANCELED);
	assert_int_equal(terra_gate_time(gate, now), -ECANCELED);
	end();
	read_back(sample_tmp("duration"), &content);
	assert_in_range(n, 4, 6);
	assert_true(content.last_ns - content.first_ns <= 10 * MS);
	assert_non_null(strstr(content.notes, "stopped by --duration"));
	assert_string_equal(terra_gate_stopped_by(content.notes), "--duration");
	assert_null(terra_gate_stopped_by("stopped by --duration"));
}

static void test_time_passes_without_events(void **state)
{
	struct terra_limits limits = { .duration_ns = 10 * MS };

	begin(&limits, sample_tmp("idle"));
	assert_int_equal(terra_gate_time(gate, now + 50 * MS), 0); /* nothing has begun */
	assert_int_equal(op("aten::mm"), 0);
	assert_int_equal(terra_gate_time(gate, now + 5 * MS), 0);
	assert_int_equal(terra_gate_time(gate, now + 50 * MS), -ECANCELED);
	end();
}

static void test_size(void **state)
{
	struct terra_limits limits = { .max_bytes = 64 << 10 };
	struct content content;
	struct stat file;
	char name[64];
	int n = 0;

	begin(&limits, sample_tmp("size"));
	do
		snprintf(name, sizeof(name), "aten::%08x%08x", (unsigned)random(), (unsigned)random());
	while (!op(name) && ++n < 1000000);
	end();
	assert_int_equal(stat(sample_tmp("size"), &file), 0);
	assert_in_range(file.st_size, 48 << 10, 64 << 10);
	read_back(sample_tmp("size"), &content);
	assert_non_null(strstr(content.notes, "stopped by --max-size"));
	assert_in_range(content.enters, n, n + 1);
}

/* An iteration of 100 ops, so that they are found once there are enough of them. */
static void iterate(int n)
{
	char name[32];

	for (int i = 0; i < n && !terra_gate_reason(gate); i++)
		for (int k = 0; k < 100; k++) {
			snprintf(name, sizeof(name), "aten::op%d", k);
			op(name);
		}
}

static void test_start_after(void **state)
{
	struct terra_limits limits = { .start_after = 100, .iterations = 20 };
	struct content content;
	uint64_t seq, left_open;

	begin(&limits, sample_tmp("start"));
	assert_int_equal(event(TERRA_EVENT_OP_ENTER, "aten::outer", UINT64_MAX, &left_open), 0);
	assert_true(left_open == UINT64_MAX);
	iterate(1000);
	assert_string_equal(terra_gate_reason(gate), "--iterations");
	assert_true(terra_gate_iterations(gate) >= 20);
	end();
	read_back(sample_tmp("start"), &content);
	assert_in_range(content.enters, 2000, 2300);
	assert_non_null(strstr(content.notes, "begins behind"));

	begin(&limits, sample_tmp("never"));
	iterate(50);
	assert_int_equal(event(TERRA_EVENT_OP_EXIT, "aten::outer", left_open, &seq), 0);
	end();
	read_back(sample_tmp("never"), &content);
	assert_int_equal(content.enters + content.exits, 0);
	assert_non_null(strstr(content.notes, "nothing was recorded"));
}

/* The exit of an op whose enter was left out has no place in the trace. */
static void test_exit_of_what_was_left_out(void **state)
{
	struct terra_limits limits = { .start_after = 100 };
	struct content content;
	uint64_t seq;

	begin(&limits, sample_tmp("exit"));
	iterate(300);
	assert_int_equal(event(TERRA_EVENT_OP_EXIT, "aten::outer", UINT64_MAX, &seq), 0);
	assert_true(seq == UINT64_MAX);
	end();
	read_back(sample_tmp("exit"), &content);
	assert_true(content.enters > 0);
	assert_true(content.exits - content.enters <= 1);
}

static void begin_kept(uint64_t keep_ns, uint64_t bytes)
{
	struct terra_limits limits = { .flight_ns = keep_ns, .max_bytes = bytes };

	now = 1000 * (uint64_t)MS;
	assert_int_equal(terra_trace_create_kept(sample_info(), keep_ns, bytes, &writer), 0);
	gate = terra_gate_new(&limits, writer, THREAD);
	assert_non_null(gate);
}

static void note(const char *text)
{
	struct terra_event made = { .type = TERRA_EVENT_NOTE, .time_ns = now, .text = text, .parent_seq = UINT64_MAX };

	assert_int_equal(terra_gate_take(gate, &made), 0);
}

static void lose(uint64_t n)
{
	struct terra_event made = { .type = TERRA_EVENT_LOST, .time_ns = now, .lost = n, .parent_seq = UINT64_MAX };

	assert_int_equal(terra_gate_take(gate, &made), 0);
}

static void write_kept(const char *path, struct content *content)
{
	struct terra_trace_counts counts;
	char err[256];

	assert_int_equal(terra_trace_write_kept(writer, path, &counts, err, sizeof(err)), 0);
	read_back(path, content);
	assert_int_equal(counts.events, content->events);
	assert_int_equal(counts.lost, content->lost);
}

static void test_flight_recorder(void **state)
{
	struct content content;
	uint64_t outer, seq;

	begin_kept(1000 * MS, 0);
	note("a fact");
	assert_int_equal(event(TERRA_EVENT_OP_ENTER, "aten::outer", UINT64_MAX, &outer), 0);
	for (int i = 0; i < 5000; i++) {
		assert_int_equal(op("aten::mm"), 0);
		if (i == 1000 || i == 4990)
			lose(7);
		if (i % 100 == 0)
			assert_int_equal(terra_trace_flush(writer), 0);
	}
	/* What is older than the limit when it ends has no exit. */
	assert_int_equal(event(TERRA_EVENT_OP_EXIT, "aten::outer", outer, &seq), 0);
	write_kept(sample_tmp("kept"), &content);
	assert_true(content.last_ns == now - MS);
	assert_in_range(content.last_ns - content.first_ns, 900 * MS, 1000 * MS);
	assert_int_equal(content.enters, content.exits);
	assert_int_equal(content.lost, 7);
	assert_non_null(strstr(content.notes, "a fact"));
	assert_non_null(strstr(content.notes, "the last 1 seconds"));
	op("aten::mm");
	write_kept(sample_tmp("kept"), &content);
	assert_true(content.last_ns == now);
	assert_int_not_equal(access(sample_tmp("kept.part"), F_OK), 0);
	end();
}

static void test_flight_recorder_is_bounded(void **state)
{
	struct content content;
	struct stat file;
	char name[64];

	begin_kept(1000000 * (uint64_t)MS, 256 << 10);
	for (int i = 0; i < 100000; i++) {
		snprintf(name, sizeof(name), "aten::%08x%08x", (unsigned)random(), (unsigned)random());
		assert_int_equal(op(name), 0);
	}
	write_kept(sample_tmp("bounded"), &content);
	assert_int_equal(stat(sample_tmp("bounded"), &file), 0);
	assert_in_range(file.st_size, 64 << 10, 320 << 10);
	assert_in_range(content.enters, 1000, 50000);
	end();
}

static void test_nowhere_to_write_what_is_kept(void **state)
{
	char err[256] = "";

	begin_kept(1000 * MS, 0);
	op("aten::mm");
	assert_true(terra_trace_write_kept(writer, "/no/such/folder/t", NULL, err, sizeof(err)) < 0);
	assert_non_null(strstr(err, "/no/such/folder"));
	end();
}

static struct terra_op ops[] = { { .name = "aten::add", .overload = "Tensor" },
				 { .name = "aten::add_", .overload = "Tensor" },
				 { .name = "aten::mm", .overload = "" },
				 { .name = "vision::nms", .overload = "" } };
static const struct terra_op_table table = { .n_ops = 4, .ops = ops };

#define ALL (1u << TERRA_LEVEL_CALL)

static void expect_mask_at(const char *patterns, uint32_t levels, const char *expected)
{
	char err[256], got[5] = "";
	uint8_t *mask;

	assert_int_equal(terra_op_filter(&table, patterns, levels, &mask, err, sizeof(err)), 0);
	for (int i = 0; i < 4; i++)
		got[i] = mask[i] ? '1' : '0';
	assert_string_equal(got, expected);
	free(mask);
}

static void expect_mask(const char *patterns, const char *expected)
{
	expect_mask_at(patterns, ALL, expected);
}

static void test_filter(void **state)
{
	char err[256];
	uint8_t *mask;

	expect_mask("aten::add", "1000");
	expect_mask("add*", "1100");
	expect_mask("add.Tensor,nms", "1001");
	expect_mask("aten::*", "1110");
	expect_mask("*", "1111");
	expect_mask(",mm,", "0010");
	assert_int_equal(terra_op_filter(&table, "mm,conv*", ALL, &mask, err, sizeof(err)), -ENOENT);
	assert_null(mask);
	assert_non_null(strstr(err, "conv*"));
}

/* What is named is recorded, also where a pattern would not be. */
static void test_filter_and_levels(void **state)
{
	char err[256];
	uint8_t *mask;

	ops[2].composite = 1;
	ops[3].level = TERRA_LEVEL_REDISPATCH;
	expect_mask_at("aten::mm", TERRA_LEVELS_OPS, "0010");
	expect_mask_at("*", TERRA_LEVELS_OPS, "1100");
	expect_mask_at("*", ALL, "1110");
	expect_mask_at("*", 1u << TERRA_LEVEL_REDISPATCH, "0001");
	assert_int_equal(terra_op_filter(&table, "add,mm*", TERRA_LEVELS_OPS, &mask, err, sizeof(err)), -ENOENT);
	assert_non_null(strstr(err, "mm*: --levels leaves"));
	assert_int_equal(terra_op_filter(&table, "nms", TERRA_LEVELS_OPS, &mask, err, sizeof(err)), -ENOENT);
	ops[2].composite = 0;
	ops[3].level = TERRA_LEVEL_CALL;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_duration),
		cmocka_unit_test(test_time_passes_without_events),
		cmocka_unit_test(test_size),
		cmocka_unit_test(test_start_after),
		cmocka_unit_test(test_exit_of_what_was_left_out),
		cmocka_unit_test(test_flight_recorder),
		cmocka_unit_test(test_flight_recorder_is_bounded),
		cmocka_unit_test(test_nowhere_to_write_what_is_kept),
		cmocka_unit_test(test_filter),
		cmocka_unit_test(test_filter_and_levels),
	};

	return cmocka_run_group_tests(tests, sample_tmp_create, sample_tmp_remove);
}
