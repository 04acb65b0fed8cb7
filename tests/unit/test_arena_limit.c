/* test_arena_limit.c - control groups and process limits, as the arena reads them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "replay/arena_internal.h"

#define MB (1ull << 20)

static char folder[] = "/tmp/terra-test-limit-XXXXXX";

static const char *path_of(const char *name)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return path;
}

static void write_file(const char *name, const char *text)
{
	FILE *f = fopen(path_of(name), "w");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void find(const char *membership)
{
	char v1[PATH_MAX], v2[PATH_MAX];

	snprintf(v1, sizeof(v1), "%s/v1", folder);
	snprintf(v2, sizeof(v2), "%s/v2", folder);
	write_file("membership", membership);
	limit_find_group(path_of("membership"), v2, v1);
}

static void test_no_group(void **state)
{
	find("");
	assert_int_equal(limit_headroom(), UINT64_MAX);
	find("no colons here\n0:\n::\n:memory\n\n");
	assert_int_equal(limit_headroom(), UINT64_MAX);
	limit_find_group("/nonexistent", "/nonexistent", "/nonexistent");
	assert_int_equal(limit_headroom(), UINT64_MAX);
}

static void test_version_2(void **state)
{
	write_file("v2/a/b/memory.max", "max\n");
	write_file("v2/a/b/memory.stat", "anon 1\nfile 5\n");
	find("0::/a/b\n");
	assert_int_equal(limit_headroom(), UINT64_MAX);

	write_file("v2/a/b/memory.max", "209715200\n");
	write_file("v2/a/b/memory.stat", "file 999999999\nanon_thp 3\nanon 104857600\n");
	find("0::/a/b\n");
	assert_int_equal(limit_headroom(), 100 * MB);

	write_file("v2/a/b/memory.stat", "anon 309715200\n");
	assert_int_equal(limit_headroom(), 0);
}

static void test_the_lowest_limit_above_counts(void **state)
{
	write_file("v2/a/b/memory.max", "209715200\n");
	write_file("v2/a/b/memory.stat", "anon 104857600\n");
	write_file("v2/a/memory.max", "157286400\n");
	write_file("v2/a/memory.stat", "anon 125829120\n");
	find("0::/a/b\n");
	assert_int_equal(limit_headroom(), 30 * MB);
	find("0::/a/b/not-visible\n");
	assert_int_equal(limit_headroom(), 30 * MB);
}

static void test_version_1(void **state)
{
	write_file("v1/j/memory.limit_in_bytes", "104857600\n");
	write_file("v1/j/memory.stat", "cache 1\nrss 7\ntotal_cache 3\ntotal_rss 52428800\n");
	find("5:cpu:/j\n4:memory:/j\n0::/elsewhere\n");
	assert_int_equal(limit_headroom(), 50 * MB);
}

static void test_files_that_vanish(void **state)
{
	write_file("v1/j/memory.limit_in_bytes", "104857600\n");
	write_file("v1/j/memory.stat", "total_rss 1\n");
	find("4:memory:/j\n");
	unlink(path_of("v1/j/memory.stat"));
	assert_int_equal(limit_headroom(), UINT64_MAX);
}

static void test_process_limits(void **state)
{
	static const int resources[] = {RLIMIT_AS, RLIMIT_DATA};

	find("");
	for (int i = 0; i < 2; i++) {
		pid_t pid = fork();
		int status;

		if (!pid) {
			struct rlimit limit = {1ull << 50, 1ull << 50};

			if (setrlimit(resources[i], &limit))
				_exit(2);
			_exit(limit_headroom() >= 1ull << 50 || limit_headroom() < 1ull << 49);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int set_up(void **state)
{
	static const char *const folders[] = {"v1", "v1/j", "v2", "v2/a", "v2/a/b"};

	if (!mkdtemp(folder))
		return -1;
	for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++)
		mkdir(path_of(folders[i]), 0700);
	return 0;
}

static int tear_down(void **state)
{
	return nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_group),
		cmocka_unit_test(test_version_2),
		cmocka_unit_test(test_the_lowest_limit_above_counts),
		cmocka_unit_test(test_version_1),
		cmocka_unit_test(test_files_that_vanish),
		cmocka_unit_test(test_process_limits),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
