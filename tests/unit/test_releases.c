/* Calls after which an op's results are what they were: known by name, in this very file's symbol table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <link.h>

#include "collector/bpf/releases.h"

#define POINTER_TO(class) "_ZN3c1013intrusive_ptrINS_" class "ENS_6detail34intrusive_target_default_null_typeIS1_EEE"

/* A function with that name in the symbol table. */
#define NAMED(function, name)                                                                                         \
	void function(void) __asm__(name);                                                                            \
	__attribute__((noinline, used)) void function(void) { __asm__ volatile(""); }

NAMED(integer, "_ZN3c106SymInt8release_Ev")
NAMED(integer_clone, "_ZN3c106SymInt8release_Ev.isra.0")
NAMED(integer_other, "_ZN3c106SymInt8release_Evi")
NAMED(node, POINTER_TO("11SymNodeImpl") "15reset_not_null_EPS1_")
NAMED(generator, POINTER_TO("13GeneratorImpl") "6reset_Ev")
NAMED(generator_clone, POINTER_TO("13GeneratorImpl") "15reset_not_null_EPS1_.constprop.3")
NAMED(generator_other, POINTER_TO("13GeneratorImpl") "7retain_Ev")
NAMED(tensor, "_ZN3c1013intrusive_ptrINS_10TensorImplENS_19UndefinedTensorImplEE6reset_Ev")
NAMED(storage, POINTER_TO("11StorageImpl") "6reset_Ev")

static int first_base(struct dl_phdr_info *info, size_t size, void *context)
{
	*(uint64_t *)context = info->dlpi_addr;
	return 1;
}

static bool releases(const struct releases *known, void (*function)(void))
{
	uint64_t base;

	dl_iterate_phdr(first_base, &base);
	return releases_is(known, (uint64_t)(uintptr_t)function - base);
}

static void test_names(void **state)
{
	struct terra_elf elf;
	struct releases known;

	assert_int_equal(terra_elf_open("/proc/self/exe", &elf), 0);
	assert_int_equal(releases_open(&known, &elf), 0);
	assert_true(releases(&known, integer));
	assert_true(releases(&known, integer_clone));
	assert_true(releases(&known, node));
	assert_true(releases(&known, generator));
	assert_true(releases(&known, generator_clone));
	assert_false(releases(&known, integer_other));
	assert_false(releases(&known, generator_other));
	/* What a result refers to. */
	assert_false(releases(&known, tensor));
	assert_false(releases(&known, storage));
	assert_false(releases_is(&known, 0));
	assert_false(releases_is(&known, UINT64_MAX));
	releases_close(&known);
	terra_elf_close(&elf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
