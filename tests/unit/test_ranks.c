/* Processes of a recording: what a trace says of its own, the index, and ranks aligned by collective. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>

#include "collector/ranks.h"
#include "probes/op.h"
#include "trace_sample.h"

static void test_note(void **state)
{
	struct terra_process one = { .pid = 4711, .parent = 1, .rank = 3, .local_rank = -1, .world_size = 8 }, other;
	char text[TERRA_PROCESS_NOTE];

	terra_process_note(&one, text);
	assert_true(terra_process_parse(text, &other));
	assert_int_equal(other.pid, 4711);
	assert_int_equal(other.rank, 3);
	assert_int_equal(other.local_rank, -1);
	assert_int_equal(other.world_size, 8);
	assert_false(terra_process_parse("process of another kind", &other));
}

static void test_self(void **state)
{
	struct terra_process process;

	setenv("RANK", "1", 1);
	setenv("WORLD_SIZE", "many", 1);
	unsetenv("LOCAL_RANK");
	terra_process_describe(0, &process);
	assert_int_equal(process.pid, getpid());
	assert_int_equal(process.parent, getppid());
	assert_int_equal(process.rank, 1);
	assert_int_equal(process.world_size, -1);
	assert_int_equal(process.local_rank, -1);
	terra_process_describe(getpid(), &process);
	assert_int_equal(process.parent, getppid());
}

static void write_event(struct terra_trace_writer *writer, struct terra_event *event)
{
	event->parent_seq = event->enter_seq = UINT64_MAX;
	assert_int_equal(terra_trace_write(writer, event), 0);
}

/* A trace of a rank with all-reduces of these sizes; 0: a message. */
static void write_rank(const char *name, int rank, const int64_t *sizes, int n)
{
	struct terra_process process = { .pid = 100 + rank, .parent = 1, .rank = rank, .local_rank = rank,
					 .world_size = 2 };
	struct terra_event note = { .type = TERRA_EVENT_NOTE, .time_ns = 1 };
	struct terra_trace_writer *writer;
	char text[TERRA_PROCESS_NOTE], err[256];

	assert_int_equal(terra_trace_create(sample_tmp(name), sample_info(), &writer, err, sizeof(err)), 0);
	terra_process_note(&process, text);
	note.text = text;
	write_event(writer, &note);
	for (int i = 0; i < n; i++) {
		struct terra_tensor tensor = { .defined = 1, .ndim = 1, .dtype = 6, .numel = sizes[i], .size = { sizes[i] },
					       .stride = { 1 } };
		struct terra_value value = { .kind = TERRA_KIND_TENSOR_LIST, .present = 1, .count = 1, .recorded = 1,
					     .u.tensors = &tensor };
		struct terra_frame frames[] = { { "/x/torch/nn/parallel.py", "forward", 3 }, { "/home/train.py", "main", 9 } };
		struct terra_event event = { .type = TERRA_EVENT_OP_ENTER, .thread = 1,
					     .time_ns = 1000 * (uint64_t)i + (uint64_t)rank * 100,
					     .op = sizes[i] ? "c10d::allreduce_" : "c10d::send", .overload = "",
					     .n_values = 1, .values = &value, .n_frames = 2, .frames = frames };

		write_event(writer, &event);
	}
	assert_int_equal(terra_trace_finish(writer), 0);
}

static void write_index(const char *name, const char *const *files, int n)
{
	struct terra_index index = { 0 };
	char err[256];

	for (int i = 0; i < n; i++)
		assert_int_equal(terra_index_add_trace(&index, sample_tmp(files[i]), err, sizeof(err)), 0);
	assert_int_equal(terra_index_write(&index, sample_tmp(name)), 0);
	assert_int_equal(index.entries[0].process.world_size, 2);
	terra_index_free(&index);
}

static char *print(const struct terra_ranks *ranks, bool json)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	(json ? terra_ranks_json : terra_ranks_print)(ranks, "t.index", out);
	fclose(out);
	return text;
}

static void test_matching(void **state)
{
	static const char *const files[] = { "b\"1", "a" };
	struct terra_ranks ranks;
	char err[256], *text;

	/* The messages of one rank do not shift what follows. */
	write_rank("a", 0, (const int64_t[]){ 10, 0, 20, 20 }, 4);
	write_rank("b\"1", 1, (const int64_t[]){ 10, 20, 20 }, 3);
	write_index("t.index", files, 2);
	assert_true(terra_ranks_is_index(sample_tmp("t.index")));
	assert_int_equal(terra_ranks_load(sample_tmp("t.index"), &ranks, err, sizeof(err)), 0);
	assert_int_equal(ranks.n, 2);
	assert_int_equal(ranks.ranks[0].entry.process.rank, 0);
	assert_int_equal(ranks.matched, 3);
	assert_int_equal(ranks.most, 3);
	assert_int_equal(ranks.n_others, 0);
	text = print(&ranks, false);
	assert_non_null(strstr(text, "3 of 3 match"));
	assert_non_null(strstr(text, "c10d::allreduce_ [20]"));
	assert_non_null(strstr(text, "train.py:9 main"));
	assert_null(strstr(text, "MISMATCH"));
	free(text);
	terra_ranks_free(&ranks);
}

static void test_without_collectives(void **state)
{
	static const char *const files[] = { "e", "f" };
	struct terra_ranks ranks;
	char err[256], *text;

	write_rank("e", 0, NULL, 0);
	write_rank("f", 1, (const int64_t[]){ 10 }, 1);
	write_index("v.index", files, 2);
	assert_int_equal(terra_ranks_load(sample_tmp("v.index"), &ranks, err, sizeof(err)), 0);
	assert_int_equal(ranks.n, 1);
	assert_int_equal(ranks.n_others, 1);
	text = print(&ranks, false);
	assert_non_null(strstr(text, "2 traces, 1 of them with collectives"));
	assert_non_null(strstr(text, "rank 0       pid 100 "));
	assert_non_null(strstr(text, sample_info()->command));
	free(text);
	text = print(&ranks, true);
	assert_non_null(strstr(text, "\"others\":[{\"rank\":0,\"pid\":100,"));
	free(text);
	terra_ranks_free(&ranks);
}

static void test_mismatch(void **state)
{
	static const char *const files[] = { "c", "d" };
	struct terra_ranks ranks;
	char err[256], *text;

	write_rank("c", 0, (const int64_t[]){ 10, 20, 30 }, 3);
	write_rank("d", 1, (const int64_t[]){ 10, 21, 30 }, 3);
	write_index("u.index", files, 2);
	assert_int_equal(terra_ranks_load(sample_tmp("u.index"), &ranks, err, sizeof(err)), 0);
	assert_int_equal(ranks.matched, 1);
	text = print(&ranks, false);
	assert_non_null(strstr(text, "MISMATCH: collective 2"));
	assert_non_null(strstr(text, "[21]"));
	free(text);
	text = print(&ranks, true);
	assert_non_null(strstr(text, "\"mismatch\":[\"c10d::allreduce_ [20]"));
	free(text);
	terra_ranks_free(&ranks);

	write_rank("d", 1, (const int64_t[]){ 10, 20 }, 2);
	assert_int_equal(terra_ranks_load(sample_tmp("u.index"), &ranks, err, sizeof(err)), 0);
	assert_int_equal(ranks.matched, 2);
	text = print(&ranks, false);
	assert_non_null(strstr(text, "none: it has no more"));
	free(text);
	terra_ranks_free(&ranks);
}

static void test_bad_index(void **state)
{
	static const char *const bad[] = { "", "{}", "{\"terra_index\":1,\"traces\":[{\"file\":\"../x\"}]}",
					   "{\"terra_index\":1,\"traces\":[{\"file\":\"x", "{\"terra_index\":2,\"traces\":[]}",
					   "{\"terra_index\":1,\"traces\":[{\"file\":\"not-there\"}]}",
					   "{\"terra_index\":1,\"traces\":[{\"file\":\"\\" };
	struct terra_ranks ranks;
	char err[256];

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		sample_write_file(sample_tmp("bad.index"), bad[i], strlen(bad[i]));
		err[0] = 0;
		assert_true(terra_ranks_load(sample_tmp("bad.index"), &ranks, err, sizeof(err)) < 0);
		assert_true(err[0] != 0);
	}
	assert_true(terra_ranks_load(sample_tmp("none.index"), &ranks, err, sizeof(err)) < 0);
	assert_false(terra_ranks_is_index(".index"));
	assert_false(terra_ranks_is_index("train.terra"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_note),	 cmocka_unit_test(test_self),	   cmocka_unit_test(test_matching),
		cmocka_unit_test(test_mismatch), cmocka_unit_test(test_bad_index), cmocka_unit_test(test_without_collectives),
	};

	return cmocka_run_group_tests(tests, sample_tmp_create, sample_tmp_remove);
}
