/* The summary of a trace: times, call sites, what is missing, and the JSON and text that show them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "collector/report.h"
#include "trace_sample.h"

struct script {
	struct terra_trace_writer *writer;
	uint64_t clock;
};

static void begin(struct script *s, const char *name)
{
	assert_int_equal(terra_trace_create(sample_tmp(name), sample_info(), &s->writer, NULL, 0), 0);
	s->clock = 1000;
}

static uint64_t write_event(struct script *s, struct terra_event event)
{
	event.time_ns = s->clock;
	assert_int_equal(terra_trace_write(s->writer, &event), 0);
	return event.seq;
}

static uint64_t enter(struct script *s, const char *op, uint64_t parent, uint32_t thread)
{
	static struct terra_frame frames[] = {
		{"/usr/lib/python3/site-packages/torch/nn/modules/linear.py", "forward", 125},
		{"/usr/lib/python3/site-packages/torch/nn/modules/module.py", "_call_impl", 1762},
		{"/home/user/train.py", "main", 22},
		{"/home/user/train.py", "<module>", 31},
	};
	struct terra_event event = {.type = TERRA_EVENT_OP_ENTER, .op = op, .overload = "", .parent_seq = parent,
				    .thread = thread, .level = parent != UINT64_MAX};

	if (parent == UINT64_MAX && strcmp(op, "aten::linear") == 0) {
		event.frames = frames;
		event.n_frames = 4;
	} else if (parent == UINT64_MAX && strcmp(op, "aten::neg") == 0) {
		event.frames = frames + 2;
		event.n_frames = 2;
	}
	return write_event(s, event);
}

static void leave(struct script *s, const char *op, uint64_t enter_seq, uint32_t thread, bool raised)
{
	write_event(s, (struct terra_event){.type = TERRA_EVENT_OP_EXIT, .op = op, .overload = "", .thread = thread,
					    .enter_seq = enter_seq, .raised = raised});
}

/* linear 1000 ns, of which addmm 600, of which t 100; neg 50; on another thread copy_, 30, inside linear's time. */
static void step(struct script *s, uint32_t thread)
{
	uint64_t linear, addmm, t, copy;

	linear = enter(s, "aten::linear", UINT64_MAX, thread);
	s->clock += 200;
	addmm = enter(s, "aten::addmm", linear, thread);
	copy = enter(s, "aten::copy_", UINT64_MAX, thread + 1);
	s->clock += 30;
	leave(s, "aten::copy_", copy, thread + 1, false);
	s->clock += 170;
	t = enter(s, "aten::t", addmm, thread);
	s->clock += 100;
	leave(s, "aten::t", t, thread, false);
	s->clock += 300;
	leave(s, "aten::addmm", addmm, thread, false);
	s->clock += 200;
	leave(s, "aten::linear", linear, thread, false);
	linear = enter(s, "aten::neg", UINT64_MAX, thread);
	s->clock += 50;
	leave(s, "aten::neg", linear, thread, false);
	s->clock += 500;
}

static struct terra_summary *summary_of(const char *name, struct terra_trace_reader **reader)
{
	struct terra_summary *summary;
	char err[320] = "";

	if (terra_trace_open(sample_tmp(name), reader, err, sizeof(err)) != 0)
		fail_msg("%s", err);
	assert_int_equal(terra_summary_new(*reader, &summary), 0);
	return summary;
}

static const struct summary_kind *kind(const struct terra_summary *s, const char *op)
{
	for (uint32_t i = 0; i < s->n_kinds; i++)
		if (strcmp(s->kinds[i].op, op) == 0)
			return &s->kinds[i];
	fail_msg("no op %s", op);
	return NULL;
}

static void expect_kind(const struct terra_summary *s, const char *op, uint64_t calls, uint64_t redispatches,
			uint64_t self_ns, uint64_t total_ns)
{
	const struct summary_kind *k = kind(s, op);

	assert_int_equal(k->calls, calls);
	assert_int_equal(k->redispatches, redispatches);
	assert_int_equal(k->self_ns, self_ns);
	assert_int_equal(k->total_ns, total_ns);
}

static void test_times(void **state)
{
	struct terra_trace_reader *reader;
	struct terra_summary *summary;
	struct script s;

	begin(&s, "times");
	for (int i = 0; i < 10; i++)
		step(&s, 4242);
	assert_int_equal(terra_trace_finish(s.writer), 0);
	summary = summary_of("times", &reader);
	expect_kind(summary, "aten::linear", 10, 0, 4000, 10000);
	expect_kind(summary, "aten::addmm", 0, 10, 5000, 6000);
	expect_kind(summary, "aten::t", 0, 10, 1000, 1000);
	expect_kind(summary, "aten::neg", 10, 0, 500, 500);
	expect_kind(summary, "aten::copy_", 10, 0, 300, 300);
	assert_string_equal(summary->kinds[0].op, "aten::addmm");
	assert_string_equal(summary->kinds[1].op, "aten::linear");
	assert_int_equal(summary->n_threads, 2);
	assert_int_equal(summary->threads[0].thread, 4242);
	assert_int_equal(summary->threads[0].ops, 40);
	assert_int_equal(summary->threads[0].total_ns, 10500);
	assert_int_equal(summary->unfinished, 0);
	assert_int_equal(summary->calls, 30);
	assert_int_equal(summary->redispatches, 20);
	assert_true(summary->has_iterations);
	assert_int_equal(summary->iterations.n, 10);
	assert_int_equal(summary->iterations.period, 4);
	assert_int_equal(summary->median_ns, 1550);
	assert_true(summary->ended_cleanly);
	terra_summary_free(summary);
	terra_trace_close(reader);
}

static void test_sites(void **state)
{
	struct terra_trace_reader *reader;
	struct terra_summary *summary;
	struct script s;

	begin(&s, "sites");
	for (int i = 0; i < 3; i++)
		step(&s, 1);
	assert_int_equal(terra_trace_finish(s.writer), 0);
	summary = summary_of("sites", &reader);
	assert_int_equal(summary->n_sites, 2);
	assert_int_equal(summary->sites[0].frame.line, 125);
	assert_string_equal(summary->sites[0].frame.function, "forward");
	assert_string_equal(summary->sites[0].caller.file, "/home/user/train.py");
	assert_int_equal(summary->sites[0].caller.line, 22);
	assert_int_equal(summary->sites[0].total_ns, 3000);
	assert_int_equal(summary->sites[0].calls, 3);
	assert_int_equal(summary->sites[1].frame.line, 22);
	assert_null(summary->sites[1].caller.file);
	assert_int_equal(summary->sites[1].total_ns, 150);
	assert_int_equal(summary->without_stack, 3); /* copy_ */
	terra_summary_free(summary);
	terra_trace_close(reader);
}

/* Exits that never came, exits of nothing, exceptions, an op inside another of its kind, losses and notes. */
static void test_irregular(void **state)
{
	struct terra_trace_reader *reader;
	struct terra_summary *summary;
	struct script s;
	uint64_t outer, inner, lost;

	begin(&s, "irregular");
	leave(&s, "aten::before", UINT64_MAX, 1, false);
	outer = enter(&s, "aten::add", UINT64_MAX, 1);
	s.clock += 10;
	inner = enter(&s, "aten::add", outer, 1);
	s.clock += 10;
	lost = enter(&s, "aten::mul", inner, 1);
	s.clock += 10;
	leave(&s, "aten::add", inner, 1, true);
	leave(&s, "aten::mul", lost, 1, false); /* too late: its enclosing op is over */
	s.clock += 10;
	leave(&s, "aten::add", outer, 1, true);
	enter(&s, "aten::open", UINT64_MAX, 1);
	write_event(&s, (struct terra_event){.type = TERRA_EVENT_LOST, .lost = 17});
	write_event(&s, (struct terra_event){.type = TERRA_EVENT_NOTE, .text = "twice"});
	write_event(&s, (struct terra_event){.type = TERRA_EVENT_NOTE, .text = "once"});
	s.clock += 5000;
	write_event(&s, (struct terra_event){.type = TERRA_EVENT_NOTE, .text = "twice"});
	assert_int_equal(terra_trace_flush(s.writer), 0);
	assert_int_equal(terra_trace_finish(s.writer), 0);
	summary = summary_of("irregular", &reader);
	expect_kind(summary, "aten::add", 1, 1, 40, 40);
	expect_kind(summary, "aten::mul", 0, 1, 0, 0);
	assert_int_equal(kind(summary, "aten::add")->raised, 2);
	assert_int_equal(summary->raised, 2);
	assert_int_equal(summary->unfinished, 2);
	assert_int_equal(summary->lost, 17);
	assert_int_equal(summary->n_notes, 2);
	assert_string_equal(summary->notes[0].text, "twice");
	assert_int_equal(summary->notes[0].count, 2);
	assert_int_equal(summary->notes[1].count, 1);
	assert_int_equal(summary->last_ns - summary->first_ns, 40); /* without the notes */
	assert_false(summary->has_iterations);
	terra_summary_free(summary);
	terra_trace_close(reader);
}

static void test_cut_trace(void **state)
{
	struct terra_trace_reader *reader;
	struct terra_summary *summary;
	struct sample_bytes file;

	assert_int_equal(sample_write_trace(sample_tmp("whole"), 100, 10), 0);
	file = sample_read_file(sample_tmp("whole"));
	file.data[file.size / 2] ^= 1;
	sample_write_file(sample_tmp("cut"), file.data,
			  file.size - 100); /* the end marker and some of the last block */
	summary = summary_of("cut", &reader);
	assert_false(summary->ended_cleanly);
	assert_int_equal(summary->n_damage, 1);
	assert_int_equal(summary->missing, 10);
	assert_int_equal(summary->events, 80);
	terra_summary_free(summary);
	terra_trace_close(reader);
	free(file.data);
}

/* What is printed, as a string. */
static char *printed(const char *name, void (*print)(struct terra_summary *summary, FILE *out))
{
	struct terra_trace_reader *reader;
	struct terra_summary *summary = summary_of(name, &reader);
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	assert_non_null(out);
	print(summary, out);
	fclose(out);
	terra_summary_free(summary);
	terra_trace_close(reader);
	return text;
}

static void print_text(struct terra_summary *summary, FILE *out)
{
	terra_summary_print(summary, "file.terra", 2, out);
}

static void print_json(struct terra_summary *summary, FILE *out)
{
	struct json json = {.out = out};

	terra_summary_json(summary, "file.terra", &json);
}

static void expect_words(char *text, const char *const *words)
{
	for (; *words; words++)
		if (!strstr(text, *words))
			fail_msg("'%s' is not in:\n%s", *words, text);
	free(text);
}

static void test_print(void **state)
{
	static const char *const text[] = {"python train.py --epochs 3", "preload", "50 (30 calls, 20 redispatches)",
					   "10 of 4 ops on thread 4242, median 0.002 ms", "end          clean",
					   "torch/nn/modules/linear.py:125 forward  from /home/user/train.py:22 main",
					   "... and 3 more (--top 5 shows all)", NULL};
	static const char *const json[] = {"\"ended_cleanly\":true", "\"period\":4", "\"self_ns\":5000",
					   "\"caller\":{\"file\":\"/home/user/train.py\",\"line\":22,", NULL};
	struct script s;

	begin(&s, "printed");
	for (int i = 0; i < 10; i++)
		step(&s, 4242);
	assert_int_equal(terra_trace_finish(s.writer), 0);
	expect_words(printed("printed", print_text), text);
	expect_words(printed("printed", print_json), json);
}

static char *json_of(void (*fill)(struct json *json))
{
	char *text = NULL;
	size_t size;
	struct json json = {.out = open_memstream(&text, &size)};

	assert_non_null(json.out);
	fill(&json);
	fclose(json.out);
	return text;
}

static void fill_numbers(struct json *json)
{
	json_open(json, '[');
	json_double(json, 1);
	json_double(json, -0.0);
	json_double(json, 0.1);
	json_double(json, 1e300);
	json_double(json, __builtin_nan(""));
	json_double(json, -__builtin_inf());
	json_u64(json, UINT64_MAX);
	json_i64(json, INT64_MIN);
	json_hex(json, 255);
	json_close(json, ']');
}

static void fill_strings(struct json *json)
{
	json_open(json, '{');
	json_key(json, "a\"\\\n");
	json_string(json, "gr\xc3\xbc\xc3\x9f");
	json_key(json, "b");
	json_bytes(json, "\xff\xc3|\xc0\x80|\xed\xa0\x80|\xf4\x90\x80\x80|\0|\xe2\x82", 19);
	json_key(json, "c");
	json_string(json, NULL);
	json_close(json, '}');
}

static void test_json(void **state)
{
	char *text = json_of(fill_numbers);

	assert_string_equal(text, "[1.0,-0.0,0.10000000000000001,1.0000000000000001e+300,\"NaN\",\"-Infinity\","
				  "18446744073709551615,-9223372036854775808,\"0xff\"]");
	free(text);
	text = json_of(fill_strings);
	assert_string_equal(text,
			    "{\"a\\\"\\\\\\u000a\":\"gr\xc3\xbc\xc3\x9f\",\"b\":\"\\udcff\\udcc3|\\udcc0\\udc80|"
			    "\\udced\\udca0\\udc80|\\udcf4\\udc90\\udc80\\udc80|\\u0000|\\udce2\\udc82\",\"c\":null}");
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_times),
		cmocka_unit_test(test_sites),
		cmocka_unit_test(test_irregular),
		cmocka_unit_test(test_cut_trace),
		cmocka_unit_test(test_print),
		cmocka_unit_test(test_json),
	};

	return cmocka_run_group_tests(tests, sample_tmp_create, sample_tmp_remove);
}
