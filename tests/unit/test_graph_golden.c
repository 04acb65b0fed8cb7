/* test_graph_golden.c - every pass against texts: tests/unit/golden/NAME.tg holds a graph, and behind lines
 * "--- after PASS [without PASS...]" what it is after that pass. With TERRA_GOLDEN_UPDATE=1 the expected parts are
 * written anew, to be read before they are committed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/graph.h"

static char *read_file(const char *path)
{
	FILE *file = fopen(path, "r");
	char *text = NULL;
	size_t size = 0;

	assert_non_null(file);
	assert_true(getdelim(&text, &size, '\0', file) > 0);
	fclose(file);
	return text;
}

static char *print(const struct graph *graph)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	assert_int_equal(graph_print(graph, out), 0);
	fclose(out);
	return text;
}

static struct graph *parse(const char *text)
{
	struct graph *graph;
	char err[256];

	if (graph_read(text, &graph, err, sizeof(err)))
		fail_msg("%s", err);
	return graph;
}

/* What is printed can be read, and prints the same again. */
static void assert_stable(const char *text)
{
	struct graph *graph = parse(text);
	char *again = print(graph);

	assert_string_equal(text, again);
	free(again);
	graph_free(graph);
}

/* The words behind "without" into names, NULL-terminated. */
static void read_disabled(char *words, const char *names[16])
{
	char *word, *rest;
	size_t n = 0;

	word = strtok_r(words, " ", &rest);
	while ((word = strtok_r(NULL, " ", &rest)) && n < 15)
		names[n++] = word;
	names[n] = NULL;
}

static char *run_passes(const char *input, const char *heading)
{
	struct graph *graph = parse(input);
	const char *disabled[16];
	char *words = strdup(heading), *without = strstr(words, " without "), *text, err[256];

	if (without)
		*without++ = '\0';
	read_disabled(without ? without : words + strlen(words), disabled);
	if (graph_run_passes(graph, words, disabled, err, sizeof(err)))
		fail_msg("%s: %s", heading, err);
	text = print(graph);
	graph_free(graph);
	free(words);
	return text;
}

#define MARK "\n--- after "

/* One file: its input, then each expected part. Returns the file as it should be. */
static char *check_file(const char *path, bool update)
{
	char *file = read_file(path), *part = strstr(file, MARK), *next, *heading, *expected, *result = NULL, *got;
	size_t size;
	FILE *out = open_memstream(&result, &size);

	assert_non_null(part);
	*part = '\0';
	fprintf(out, "%s\n", file);
	for (part += strlen(MARK); part; part = next) {
		next = strstr(part, MARK);
		if (next) {
			*next = '\0';
			next += strlen(MARK);
		}
		heading = part;
		expected = part + strcspn(part, "\n");
		if (*expected)
			*expected++ = '\0';
		got = run_passes(file, heading);
		assert_stable(got);
		got[strlen(got) - 1] = '\0'; /* the mark's own line feed */
		if (!next && *expected)
			expected[strlen(expected) - 1] = '\0';
		fprintf(out, "--- after %s\n%s\n", heading, got);
		if (!update && strcmp(expected, got))
			fail_msg("%s after %s:\n--- expected\n%s\n--- got\n%s", path, heading, expected, got);
		free(got);
	}
	fclose(out);
	free(file);
	return result;
}

static void test_golden(void **state)
{
	bool update = getenv("TERRA_GOLDEN_UPDATE") != NULL;
	glob_t found;
	char *text;
	FILE *out;
	size_t i;

	assert_int_equal(glob(TERRA_SOURCE_DIR "/tests/unit/golden/*.tg", 0, NULL, &found), 0);
	for (i = 0; i < found.gl_pathc; i++) {
		text = check_file(found.gl_pathv[i], update);
		if (update) {
			out = fopen(found.gl_pathv[i], "w");
			assert_non_null(out);
			fputs(text, out);
			fclose(out);
		}
		free(text);
	}
	print_message("%zu golden files\n", found.gl_pathc);
	globfree(&found);
}

static void test_pass_names(void **state)
{
	static const char *const unknown[] = {"nothing", NULL}, *const base[] = {"values", NULL};
	struct graph *graph =
	    parse("terra-graph 1 after build\nbuild-id -\nthreads 1\nlibrary \"\"\nsource \"\"\niteration 0 of 1\n");
	char err[256];

	assert_int_not_equal(graph_run_passes(graph, NULL, unknown, err, sizeof(err)), 0);
	assert_non_null(strstr(err, "no pass \"nothing\""));
	assert_int_equal(graph_run_passes(graph, NULL, base, err, sizeof(err)), 0);
	assert_string_equal(graph->after, "build"); /* the others can't do without it */
	assert_int_not_equal(graph_run_passes(graph, "nothing", NULL, err, sizeof(err)), 0);
	assert_int_equal(graph_run_passes(graph, NULL, NULL, err, sizeof(err)), 0);
	assert_string_equal(graph->after, "cost");
	graph_free(graph);
}

static const char head[] =
    "terra-graph 1 after build\nbuild-id -\nthreads 1\nlibrary \"\"\nsource \"\"\niteration 0 of 1\n";

static const struct {
	const char *text, *says;
} bad_texts[] = {
    {"op 1 aten::exp (@10 f32[4]) -> ()\n", "without gaps"},
    {"op 0 aten::exp (@10 f32[4) -> ()\n", "\",\""},
    {"op 0 aten::exp (@10 f32[1,1,1,1,1,1,1,1,1]) -> ()\n", "dimensions"},
    {"op 0 aten::exp (@10 f32[1099511627776,1099511627776]) -> ()\n", "impossible size"},
    {"op 0 aten::exp (@10 f32[4]/[1,2]) -> ()\n", "strides"},
    {"op 0 aten::exp (@10 f32[4]\n", "\",\""},
    {"op 0 aten::exp (#\"a) -> ()\n", "malformed"},
    {"op 0 aten::exp () -> () what\n", "more on this line"},
    {"value %0.0 made 7 last never\n", "no op of this number"},
    {"region \"a\" numel=4\n\taten::exp i0\n\tat 0 numel=4\n", "no op"},
    {"what\n", "neither op"},
    {"op 0 aten::exp () -> () !stop nothing\n", "quoted"},
};

static void test_bad_texts(void **state)
{
	struct graph *graph;
	char text[512], err[256];
	size_t i;

	for (i = 0; i < sizeof(bad_texts) / sizeof(bad_texts[0]); i++) {
		snprintf(text, sizeof(text), "%s%s", head, bad_texts[i].text);
		if (!graph_read(text, &graph, err, sizeof(err)))
			fail_msg("accepted: %s", bad_texts[i].text);
		if (!strstr(err, bad_texts[i].says))
			print_message("%s: %s\n", bad_texts[i].text, err);
		assert_int_equal(strncmp(err, "line ", 5), 0);
	}
}

/* Half a text, or one with a byte changed, gives a message or a graph, never more. */
static void test_damaged_texts(void **state)
{
	char *text = read_file(TERRA_SOURCE_DIR "/tests/unit/golden/adamw.tg"), *damaged, err[256];
	size_t n = strcspn(text, "-"), size, i;
	struct graph *graph;
	uint32_t random = 1;

	text[strstr(text, MARK) - text] = '\0';
	size = strlen(text);
	assert_true(n < size);
	for (i = 0; i < 4000; i++) {
		damaged = strdup(text);
		random = random * 1664525 + 1013904223;
		if (i % 4)
			damaged[(random >> 8) % size] =
			    (char)(i % 3 ? "@%[]()0-9.v\"!"[random % 13] : (char)(random >> 3));
		else
			damaged[(random >> 8) % size] = '\0';
		if (!graph_read(damaged, &graph, err, sizeof(err))) {
			graph_run_passes(graph, NULL, NULL, err, sizeof(err));
			graph_free(graph);
		}
		free(damaged);
	}
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_golden),
	    cmocka_unit_test(test_pass_names),
	    cmocka_unit_test(test_bad_texts),
	    cmocka_unit_test(test_damaged_texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
