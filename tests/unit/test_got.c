/* test_got.c - GOT patching on real libraries: lazy slots, RELRO slots, -fno-plt slots, libraries loaded later. */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "probes/got.h"

typedef int (*add_fn)(int, int);
typedef int (*twice_fn)(int);
typedef void *(*address_fn)(void);

static struct got_patch patches[2];

static int replaced_add(int a, int b)
{
	return 1000 + ((add_fn)patches[0].original)(a, b);
}

static int replaced_twice(int a)
{
	return 5000 + ((twice_fn)patches[1].original)(a);
}

static void *load(const char *caller)
{
	char path[512];
	void *handle;

	snprintf(path, sizeof(path), "%s/libgot_caller_%s.so", TERRA_FIXTURE_DIR, caller);
	handle = dlopen(path, RTLD_LOCAL | RTLD_LAZY);
	if (!handle)
		fail_msg("%s", dlerror());
	return handle;
}

static void *find(void *handle, const char *function, const char *caller)
{
	char name[128];
	void *address;

	snprintf(name, sizeof(name), "%s_%s", function, caller);
	address = dlsym(handle, name);
	assert_non_null(address);
	return address;
}

static int setup(void **state)
{
	patches[0] = (struct got_patch){ .symbol = "got_callee_add", .replacement = (void *)replaced_add };
	patches[1] = (struct got_patch){ .symbol = "got_callee_twice", .replacement = (void *)replaced_twice };
	return 0;
}

/* 'r' when the page of a byte is read-only now, 'w' when it can be written, by the kernel's own account. */
static char page_access(const void *address)
{
	uintptr_t start, end, at = (uintptr_t)address;
	char line[1024], perms[8], found = '?';
	FILE *maps = fopen("/proc/self/maps", "r");

	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %7s", &start, &end, perms) == 3 && at >= start && at < end)
			found = perms[1] == 'w' ? 'w' : 'r';
	fclose(maps);
	return found;
}

static void check_caller(const char *caller, int bind_first)
{
	void *handle = load(caller);
	add_fn add = (add_fn)find(handle, "call_add", caller);
	twice_fn twice = (twice_fn)find(handle, "call_twice", caller);
	void *real_add;

	if (bind_first)
		assert_int_equal(add(1, 2), 3);
	assert_true(got_patch(patches, 2, NULL) >= 2);
	real_add = dlsym(handle, "got_callee_add");
	assert_ptr_equal(patches[0].original, real_add);
	assert_int_equal(add(1, 2), 1003);
	/* callee's own call of add is a slot too */
	assert_int_equal(twice(4), 5000 + 1000 + 8);
	assert_ptr_equal(((address_fn)find(handle, "address_of_add", caller))(), (void *)replaced_add);
	assert_int_equal(got_patch(patches, 2, NULL), 0);
	assert_true(got_unpatch(patches, 2) >= 2);
	assert_int_equal(add(1, 2), 3);
	assert_int_equal(twice(4), 8);
	dlclose(handle);
}

static void lazy_slots_are_patched_before_they_are_bound(void **state)
{
	check_caller("lazy", 0);
}

static void bound_slots_are_patched(void **state)
{
	check_caller("lazy", 1);
}

static void relro_slots_are_patched(void **state)
{
	check_caller("now", 0);
}

static void noplt_slots_are_patched(void **state)
{
	check_caller("noplt", 0);
}

/* address_of_add reads its GLOB_DAT slot: `mov slot(%rip), %rax`, the slot's address is what we need to look at. */
static void relro_is_closed_again(void **state)
{
	void *handle = load("now");
	uint8_t *code = find(handle, "address_of_add", "now");
	void **slot = NULL;
	int32_t distance;

	for (int i = 0; i < 24 && !slot; i++) {
		memcpy(&distance, code + i + 3, sizeof(distance));
		if (code[i] == 0x48 && code[i + 1] == 0x8b && code[i + 2] == 0x05)
			slot = (void **)(code + i + 7 + distance);
	}
	assert_non_null(slot);
	assert_int_equal(page_access(slot), 'r');
	assert_true(got_patch(patches, 2, NULL) > 0);
	assert_ptr_equal(*slot, (void *)replaced_add);
	assert_int_equal(page_access(slot), 'r');
	assert_true(got_unpatch(patches, 2) > 0);
	assert_ptr_equal(*slot, patches[0].original);
	dlclose(handle);
}

static void only_one_library(void **state)
{
	void *lazy = load("lazy"), *now = load("now");

	assert_true(got_patch(patches, 2, "libgot_caller_now.so") > 0);
	assert_int_equal(((add_fn)find(now, "call_add", "now"))(1, 1), 1002);
	assert_int_equal(((add_fn)find(lazy, "call_add", "lazy"))(1, 1), 2);
	got_unpatch(patches, 2);
	dlclose(lazy);
	dlclose(now);
}

static void libraries_loaded_later(void **state)
{
	struct got_watch watch = { 0 };
	void *lazy = load("lazy"), *late;
	int first = got_patch_new_libraries(patches, 2, NULL, &watch);

	assert_true(first > 0);
	assert_int_equal(got_patch_new_libraries(patches, 2, NULL, &watch), 0);
	late = load("late");
	assert_int_equal(((add_fn)find(late, "call_add", "late"))(1, 1), 2);
	assert_true(got_patch_new_libraries(patches, 2, NULL, &watch) > 0);
	assert_int_equal(((add_fn)find(late, "call_add", "late"))(1, 1), 1002);
	/* after an unload the list has moved: a library loaded then is still found */
	dlclose(late);
	late = load("late");
	assert_true(got_patch_new_libraries(patches, 2, NULL, &watch) > 0);
	assert_int_equal(((add_fn)find(late, "call_add", "late"))(1, 1), 1002);
	got_unpatch(patches, 2);
	dlclose(late);
	dlclose(lazy);
}

static int replaced_exactly(int a, int b)
{
	return 7000 + ((add_fn)patches[0].original)(a, b);
}

/* A library with a function of its own of that name keeps it, bound or not; the slots of others lead to the original. */
static void check_exact(const char *caller, int bind_first)
{
	void *own = load("own"), *other = load(caller);
	add_fn own_add = (add_fn)find(own, "call_add", "own"), add = (add_fn)find(other, "call_add", caller);

	patches[0] = (struct got_patch){ .symbol = "got_callee_add", .replacement = (void *)replaced_exactly,
					 .original = dlsym(other, "got_callee_add"), .exact = true };
	assert_ptr_not_equal(patches[0].original, dlsym(own, "got_callee_add"));
	if (bind_first) {
		assert_int_equal(own_add(1, 2), 3);
		assert_int_equal(add(1, 2), 3);
	}
	assert_true(got_patch(patches, 1, NULL) >= 2); /* the caller's two, the callee's own */
	assert_int_equal(add(1, 2), 7003);
	assert_int_equal(own_add(1, 2), 3);
	assert_ptr_equal(((address_fn)find(own, "address_of_add", "own"))(), dlsym(own, "got_callee_add"));
	assert_int_equal(got_patch(patches, 1, NULL), 0);
	assert_true(got_unpatch(patches, 1) >= 2);
	assert_int_equal(add(1, 2), 3);
	assert_int_equal(own_add(1, 2), 3);
	dlclose(other);
	dlclose(own);
}

static void other_functions_of_that_name_stay(void **state)
{
	check_exact("lazy", 0);
	check_exact("lazy", 1);
	check_exact("now", 0);
	check_exact("noplt", 0);
}

static void unknown_symbols_are_no_error(void **state)
{
	struct got_patch none = { .symbol = "got_callee_that_is_not_there", .replacement = (void *)replaced_add };
	void *handle = load("lazy");

	assert_int_equal(got_patch(&none, 1, NULL), 0);
	assert_int_equal(none.n_slots, 0);
	assert_null(none.original);
	assert_int_equal(got_patch(NULL, 0, NULL), 0);
	dlclose(handle);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(lazy_slots_are_patched_before_they_are_bound, setup),
		cmocka_unit_test_setup(bound_slots_are_patched, setup),
		cmocka_unit_test_setup(relro_slots_are_patched, setup),
		cmocka_unit_test_setup(noplt_slots_are_patched, setup),
		cmocka_unit_test_setup(relro_is_closed_again, setup),
		cmocka_unit_test_setup(only_one_library, setup),
		cmocka_unit_test_setup(libraries_loaded_later, setup),
		cmocka_unit_test_setup(other_functions_of_that_name_stay, setup),
		cmocka_unit_test_setup(unknown_symbols_are_no_error, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
