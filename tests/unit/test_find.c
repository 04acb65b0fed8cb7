/* test_find.c - finding libtorch in trees of made-up Python installations. */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "probes/find.h"

#define TORCH "torch/lib/libtorch_cpu.so"

static char root[] = "/tmp/terra-find-XXXXXX";

/* Makes a file, with its folders, below the root. */
static void put(const char *name, const char *text, mode_t mode)
{
	char path[PATH_MAX];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", root, name);
	for (char *at = path + strlen(root) + 1; *at; at++) {
		if (*at != '/')
			continue;
		*at = '\0';
		mkdir(path, 0700);
		*at = '/';
	}
	file = fopen(path, "w");
	assert_non_null(file);
	fputs(text, file);
	fclose(file);
	assert_int_equal(chmod(path, mode), 0);
}

static void drop(const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", root, name);
	assert_int_equal(unlink(path), 0);
}

static const char *below(const char *name)
{
	static char paths[2][PATH_MAX];
	static int turn;

	turn = !turn;
	snprintf(paths[turn], sizeof(paths[turn]), "%s/%s", root, name);
	return paths[turn];
}

static void set(const char *variable, const char *name)
{
	setenv(variable, below(name), 1);
}

/* `expected` NULL: nothing is found. */
static void check(const char *python, const char *expected)
{
	char path[PATH_MAX] = "untouched";
	int code = terra_find_libtorch(python, path, sizeof(path));

	assert_int_equal(code, expected ? 0 : -ENOENT);
	assert_string_equal(path, expected ? below(expected) : "");
}

/* base/bin/python3 -> python3.12 without torch, and an environment made from it that has torch. */
static int make_trees(void **state)
{
	if (!mkdtemp(root))
		return -1;
	put("base/bin/python3.12", "", 0755);
	put("base/bin/other", "", 0755);
	assert_int_equal(symlink("python3.12", below("base/bin/python3")), 0);
	put("venv/pyvenv.cfg", "home = nowhere\ninclude-system-site-packages = false\n", 0644);
	put("venv/bin/.keep", "", 0644);
	assert_int_equal(symlink(below("base/bin/python3"), below("venv/bin/python3")), 0);
	put("venv/lib/python3.11/site-packages/" TORCH, "", 0644);
	put("venv/lib/python3.12/site-packages/" TORCH, "", 0644);
	put("venv/lib/python3.13/site-packages/" TORCH, "", 0644);
	return 0;
}

static int clear(void **state)
{
	static const char *const variables[] = {"TERRA_LIBTORCH", "PYTHONPATH", "VIRTUAL_ENV", "PYTHONUSERBASE"};

	for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++)
		unsetenv(variables[i]);
	set("PATH", "base/bin");
	set("HOME", "home");
	return 0;
}

static int remove_trees(void **state)
{
	char command[128];

	snprintf(command, sizeof(command), "/bin/rm -r %s", root);
	return system(command);
}

/* The version is that of the file which the links lead to, not the newest one around. */
static void test_environment(void **state)
{
	check(below("venv/bin/python3"), "venv/lib/python3.12/site-packages/" TORCH);
	set("VIRTUAL_ENV", "venv");
	check(NULL, "venv/lib/python3.12/site-packages/" TORCH);
	unsetenv("VIRTUAL_ENV");
	check(NULL, NULL);
	set("PATH", "venv/bin");
	check(NULL, "venv/lib/python3.12/site-packages/" TORCH);
	check("python3", "venv/lib/python3.12/site-packages/" TORCH);
	check("python3.14", NULL);
}

static void test_relative_path(void **state)
{
	assert_int_equal(chdir(below("venv/bin")), 0);
	check("./python3", "venv/lib/python3.12/site-packages/" TORCH);
	assert_int_equal(chdir(".."), 0);
	check("bin/python3", "venv/lib/python3.12/site-packages/" TORCH);
	assert_int_equal(chdir("/"), 0);
}

static void test_script(void **state)
{
	char line[PATH_MAX];

	snprintf(line, sizeof(line), "#!%s -u\nprint()\n", below("venv/bin/python3"));
	put("base/bin/torchrun", line, 0755);
	check("torchrun", "venv/lib/python3.12/site-packages/" TORCH);
	put("base/bin/torchrun", "#!/usr/bin/env python3\n", 0755);
	check("torchrun", NULL);
	set("VIRTUAL_ENV", "venv");
	snprintf(line, sizeof(line), "%s:%s", below("venv/bin"), below("base/bin"));
	setenv("PATH", line, 1);
	check("torchrun", "venv/lib/python3.12/site-packages/" TORCH);
	drop("base/bin/torchrun");
}

/* An environment without torch shows the base installation's only if it says so. */
static void test_system_packages(void **state)
{
	put("bare/pyvenv.cfg", "include-system-site-packages = false\n", 0644);
	put("bare/bin/.keep", "", 0644);
	assert_int_equal(symlink(below("base/bin/python3"), below("bare/bin/python3")), 0);
	put("base/lib/python3.12/dist-packages/" TORCH, "", 0644);
	check(below("bare/bin/python3"), NULL);
	put("bare/pyvenv.cfg", "Include-System-Site-Packages = True\n", 0644);
	check(below("bare/bin/python3"), "base/lib/python3.12/dist-packages/" TORCH);
	check(NULL, "base/lib/python3.12/dist-packages/" TORCH);
	put("home/.local/lib/python3.12/site-packages/" TORCH, "", 0644);
	check(NULL, "home/.local/lib/python3.12/site-packages/" TORCH);
	set("PYTHONUSERBASE", "nowhere");
	check(NULL, "base/lib/python3.12/dist-packages/" TORCH);
	drop("home/.local/lib/python3.12/site-packages/" TORCH);
	drop("base/lib/python3.12/dist-packages/" TORCH);
}

/* A name that does not say its version: the newest. */
static void test_unknown_version(void **state)
{
	put("odd/pyvenv.cfg", "", 0644);
	put("odd/bin/python", "", 0755);
	put("odd/lib/python3.8/site-packages/" TORCH, "", 0644);
	check(below("odd/bin/python"), "odd/lib/python3.8/site-packages/" TORCH);
	put("odd/lib/python3.11/site-packages/" TORCH, "", 0644);
	put("odd/lib/python3.9/site-packages/" TORCH, "", 0644);
	check(below("odd/bin/python"), "odd/lib/python3.11/site-packages/" TORCH);
}

static void test_variables_come_first(void **state)
{
	char path[PATH_MAX], list[PATH_MAX];

	put("extra/" TORCH, "", 0644);
	snprintf(list, sizeof(list), ":/nowhere:%s", below("extra"));
	setenv("PYTHONPATH", list, 1);
	check(below("venv/bin/python3"), "extra/" TORCH);
	put("own.so", "", 0644);
	set("TERRA_LIBTORCH", "own.so");
	check(below("venv/bin/python3"), "own.so");
	set("TERRA_LIBTORCH", "gone.so");
	assert_int_equal(terra_find_libtorch(NULL, path, sizeof(path)), -ENOENT);
	assert_string_equal(path, below("gone.so"));
}

static void test_short_buffer(void **state)
{
	char path[8] = "";

	assert_int_equal(terra_find_libtorch(below("venv/bin/python3"), path, sizeof(path)), -ENAMETOOLONG);
	assert_int_equal(terra_find_libtorch(below("venv/bin/python3"), path, 0), -ENAMETOOLONG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_environment, clear),
		cmocka_unit_test_setup(test_relative_path, clear),
		cmocka_unit_test_setup(test_script, clear),
		cmocka_unit_test_setup(test_system_packages, clear),
		cmocka_unit_test_setup(test_unknown_version, clear),
		cmocka_unit_test_setup(test_variables_come_first, clear),
		cmocka_unit_test_setup(test_short_buffer, clear),
	};

	return cmocka_run_group_tests(tests, make_trees, remove_trees);
}
