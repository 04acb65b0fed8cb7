/* test_functions.c - the functions beside the ops: where they are in a library, and how a gap is told. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "probes/functions.h"
#include "real_torch.h"

static void gaps_in_words(void **state)
{
	uint8_t seen[TERRA_N_FUNCTIONS];
	char text[512], cut[20];

	memset(seen, TERRA_FUNCTION_SEEN, sizeof(seen));
	terra_functions_gap(seen, text, sizeof(text));
	assert_string_equal(text, "");
	seen[0] = TERRA_FUNCTION_ABSENT;                      /* the one way of numpy() */
	seen[2] = TERRA_FUNCTION_ABSENT;                      /* one of DLPack's: this version has others */
	seen[TERRA_N_FUNCTIONS - 1] = TERRA_FUNCTION_UNSEEN;  /* one of TorchScript's, that is used */
	terra_functions_gap(seen, text, sizeof(text));
	assert_string_equal(text, "reads of memory through numpy, ops through TorchScript");
	terra_functions_gap(seen, cut, sizeof(cut));
	assert_string_equal(cut, "reads of memory thr");
}

static void library_beside(void **state)
{
	char path[64];

	assert_int_equal(terra_functions_library("/lib/torch/libtorch_cpu.so", "libtorch_python.so", path, sizeof(path)), 0);
	assert_string_equal(path, "/lib/torch/libtorch_python.so");
	assert_int_equal(terra_functions_library("libtorch_cpu.so", "a.so", path, sizeof(path)), 0);
	assert_string_equal(path, "a.so");
	assert_int_equal(terra_functions_library("/lib/torch/libtorch_cpu.so", "b.so", path, 10), -ENAMETOOLONG);
}

/* Found, written, read again: the same each time. */
static void places_through_the_cache(const char *path, const uint64_t *expected)
{
	char folder[] = "/tmp/terra-functions-XXXXXX", command[192];

	assert_non_null(mkdtemp(folder));
	setenv("XDG_CACHE_HOME", folder, 1);
	for (int i = 0; i < 2; i++) {
		uint64_t offsets[TERRA_N_FUNCTIONS] = { 0 };

		terra_functions_find(path, "libtorch_python.so", true, offsets);
		for (size_t k = 0; k < TERRA_N_FUNCTIONS; k++)
			assert_int_equal(offsets[k], strcmp(terra_functions[k].library, "libtorch_python.so") ? 0 : expected[k]);
	}
	unsetenv("XDG_CACHE_HOME");
	snprintf(command, sizeof(command), "ls %s/terra/functions-* >/dev/null && rm -r %s", folder, folder);
	assert_int_equal(system(command), 0);
}

/* Exported ones by .dynsym; those inside of libtorch_python by .symtab, which another build may have left out. */
static void places_in_a_real_library(void **state)
{
	uint64_t offsets[TERRA_N_FUNCTIONS] = { 0 };
	char path[4096];
	int n;

	REQUIRE_TORCH();
	n = terra_functions_find(real_torch(), "libtorch_cpu.so", false, offsets);
	assert_in_range(n, 4, TERRA_N_FUNCTIONS);
	assert_int_equal(terra_functions_library(real_torch(), "libtorch_python.so", path, sizeof(path)), 0);
	assert_in_range(terra_functions_find(path, "libtorch_python.so", false, offsets), 1, TERRA_N_FUNCTIONS - n);
	assert_true(offsets[0]);
	places_through_the_cache(path, offsets);
	for (size_t i = 0; i < TERRA_N_FUNCTIONS; i++)
		for (size_t k = 0; k < i; k++)
			assert_true(!offsets[i] || offsets[i] != offsets[k]);
	assert_int_equal(terra_functions_find("/nowhere", "libtorch_cpu.so", false, offsets), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gaps_in_words),
		cmocka_unit_test(library_beside),
		cmocka_unit_test(places_in_a_real_library),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
