/* test_catches.c - where handlers of exceptions begin: by name and symbol, in made-up libraries and in this machine's. */
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "elf_sample.h"
#include "probes/catches.h"
#include "real_torch.h"

static void libraries_by_their_names(void **state)
{
	static const char *const yes[] = { "/usr/lib/libstdc++.so.6", "libstdc++.so.6.0.30", "/a/libstdc++-4f3a.so.6.0.25",
					   "/opt/libc++abi.so.1", "/opt/libc++.so.1" };
	static const char *const no[] = { "/usr/lib/libc.so.6", "/libstdc++.so.6/libgcc_s.so.1", "/usr/libstdc++.a", "", "/" };

	for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++)
		assert_true(terra_catches_library(yes[i]));
	for (size_t i = 0; i < sizeof(no) / sizeof(no[0]); i++)
		assert_false(terra_catches_library(no[i]));
}

/* A function of that name, of some type, whose first bytes are `code`. -ENOENT or the place within the function. */
static int find_in_sample(uint16_t section, uint8_t type, const void *code, size_t size)
{
	static struct elf_sample sample;
	struct terra_elf elf;
	uint64_t offset = 0, start = 256;
	int error;

	sample_init(&sample, 1);
	sample_symbol(&sample, "__cxa_begin_catch_and_more", 64);
	sample_symbol(&sample, TERRA_BEGIN_CATCH, start);
	sample.symbols[2].st_shndx = section;
	sample.symbols[2].st_info = ELF64_ST_INFO(STB_GLOBAL, type);
	sample_finish(&sample);
	memcpy(sample.data + start, code, size);
	assert_int_equal(terra_elf_from_memory(sample.data, sample.size, &elf), 0);
	error = terra_catches_find_in(&elf, &offset);
	terra_elf_close(&elf);
	return error ? error : (int)(offset - start);
}

static void places_in_made_up_libraries(void **state)
{
	static const uint8_t marked[] = { 0xf3, 0x0f, 0x1e, 0xfa, 0x53 }, plain[] = { 0x53, 0x0f, 0x1e, 0xfa };

	assert_int_equal(find_in_sample(SAMPLE_RODATA, STT_FUNC, marked, sizeof(marked)), 4);
	assert_int_equal(find_in_sample(SAMPLE_RODATA, STT_FUNC, plain, sizeof(plain)), 0);
	assert_int_equal(find_in_sample(SHN_UNDEF, STT_FUNC, plain, sizeof(plain)), -ENOENT);
	assert_int_equal(find_in_sample(SAMPLE_RODATA, STT_OBJECT, plain, sizeof(plain)), -ENOENT);
}

/* The C++ library that this machine's programs get: the place has the function's code. */
static void place_in_the_c_plus_plus_library(void **state)
{
	void *library = dlopen("libstdc++.so.6", RTLD_NOW);
	uint8_t code[32];
	uint64_t offset;
	struct link_map *map;
	const uint8_t *function;
	size_t mark;
	FILE *file;

	if (!library)
		skip();
	function = dlsym(library, TERRA_BEGIN_CATCH);
	assert_non_null(function);
	assert_int_equal(dlinfo(library, RTLD_DI_LINKMAP, &map), 0);
	assert_int_equal(terra_catches_find(map->l_name, &offset), 0);
	assert_false(terra_catches_elsewhere(map->l_name));
	file = fopen(map->l_name, "r");
	assert_non_null(file);
	assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
	assert_int_equal(fread(code, sizeof(code), 1, file), 1);
	fclose(file);
	mark = memcmp(function, "\xf3\x0f\x1e\xfa", 4) ? 0 : 4;
	assert_memory_equal(code, function + mark, sizeof(code));
	dlclose(library);
}

static void libtorch_calls_it_elsewhere(void **state)
{
	const char *path = real_torch();
	uint64_t offset;

	if (!path)
		skip();
	assert_true(terra_catches_elsewhere(path));
	assert_int_equal(terra_catches_find(path, &offset), -ENOENT);
	assert_int_equal(terra_catches_find("/no/such/library", &offset), -ENOENT);
	assert_false(terra_catches_elsewhere("/no/such/library"));
	assert_int_equal(terra_catches_find("/proc/self/status", &offset) == 0, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(libraries_by_their_names),
		cmocka_unit_test(places_in_made_up_libraries),
		cmocka_unit_test(place_in_the_c_plus_plus_library),
		cmocka_unit_test(libtorch_calls_it_elsewhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
