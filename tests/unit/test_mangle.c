/* test_mangle.c - mangled op names to kinds and places. The names are real ones; what they must give was worked out by
 * hand from the C++ declarations and the System V ABI.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "probes/mangle.h"

static const char *const gpr[] = {"rdi", "rsi", "rdx", "rcx", "r8", "r9"};

static void append_place(const struct terra_arg *arg, char *text, size_t size)
{
	size_t used = strlen(text);

	text += used;
	size -= used;
	if (arg->place == TERRA_PLACE_GPR)
		snprintf(text, size, "%s%s%s", gpr[arg->index], arg->words == 2 ? ":" : "",
			 arg->words == 2 ? gpr[arg->index + 1] : "");
	else if (arg->place == TERRA_PLACE_SSE)
		snprintf(text, size, "xmm%u", arg->index);
	else if (arg->place == TERRA_PLACE_GPR_SSE)
		snprintf(text, size, "xmm%u:%s", arg->index, gpr[arg->index2]);
	else if (arg->place == TERRA_PLACE_STACK)
		snprintf(text, size, "+%u", arg->offset);
	else
		snprintf(text, size, "?");
}

/* Signature as "Tensor rsi, int[] rdx:rcx" with '!' for mutable. */
static const char *spell(const char *mangled, uint8_t has_sret, struct terra_op *op)
{
	static char text[4096];
	struct terra_signature signature;
	size_t used = 0;

	memset(op, 0, sizeof(*op));
	text[0] = '\0';
	if (terra_mangle_parse(mangled, &signature))
		return "no op";
	op->level = signature.level;
	terra_places_assign(&signature, has_sret, op);
	for (unsigned i = 0; i < op->n_args; i++) {
		used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s%s ", i ? ", " : "",
					 terra_kind_name(op->args[i].kind), op->args[i].is_mutable ? "!" : "");
		append_place(&op->args[i], text, sizeof(text));
		used = strlen(text);
	}
	return text;
}

static void check(const char *mangled, uint8_t has_sret, const char *expected)
{
	struct terra_op op;

	assert_string_equal(spell(mangled, has_sret, &op), expected);
	assert_int_equal(op.complete, 1);
}

static void test_simple(void **state)
{
	check("_ZN2at4_ops10mul_Tensor4callERKNS_6TensorES4_", 1, "Tensor rsi, Tensor rdx");
	check("_ZN2at4_ops11mul__Tensor4callERNS_6TensorERKS2_", 0, "Tensor! rdi, Tensor rsi");
	check("_ZN2at4_ops4relu10redispatchEN3c1014DispatchKeySetERKNS_6TensorE", 1, "DispatchKeySet rsi, Tensor rdx");
	check("_ZN2at4_ops19is_vulkan_available4callEv", 0, "");
}

static void test_class_and_level(void **state)
{
	struct terra_signature signature;

	assert_int_equal(
		terra_mangle_parse("_ZN2at4_ops10_copy_from10redispatchEN3c1014DispatchKeySetERKNS_6TensorES6_b",
				   &signature),
		0);
	assert_int_equal(signature.level, TERRA_LEVEL_REDISPATCH);
	assert_int_equal(signature.class_size, strlen("_copy_from"));
	assert_memory_equal(signature.class_name, "_copy_from", strlen("_copy_from"));
	assert_true(signature.whole);
	assert_int_equal(signature.n_parameters, 4);
	assert_int_equal(signature.parameters[3].kind, TERRA_KIND_BOOL);
}

/* Lists and strings are two words, and go to the stack whole: pin_memory is behind what filled the registers. */
static void test_empty_strided(void **state)
{
	check("_ZN2at4_ops13empty_strided4callEN3c108ArrayRefINS2_6SymIntEEES5_St8optionalINS2_10ScalarTypeEES6_INS2_"
	      "6LayoutEE"
	      "S6_INS2_6DeviceEES6_IbE",
	      1, "SymInt[] rsi:rdx, SymInt[] rcx:r8, ScalarType? r9, Layout? +0, Device? +8, bool? +16");
}

/* A two-word argument that finds one register left leaves it to the next one-word argument. */
static void test_register_left_over(void **state)
{
	struct terra_op op;

	/* f(Tensor, Tensor, Tensor, Tensor, int[], int) behind sret */
	assert_string_equal(spell("_ZN2at4_ops1x4callERKNS_6TensorES4_S4_S4_N3c108ArrayRefIlEEl", 1, &op),
			    "Tensor rsi, Tensor rdx, Tensor rcx, Tensor r8, int[] +0, int r9");
}

static void test_optional_double(void **state)
{
	check("_ZN2at4_ops19upsample_bilinear2d4callERKNS_6TensorEN3c108ArrayRefINS5_6SymIntEEEbSt8optionalIdESA_", 1,
	      "Tensor rsi, SymInt[] rdx:rcx, bool r8, float? xmm0:r9, float? +0");
	/* The second float? finds no general register and goes to the stack; xmm1 is then the plain double's. */
	check("_ZN2at4_ops1x4callERKNS_6TensorES4_S4_S4_St8optionalIdES6_d", 1,
	      "Tensor rsi, Tensor rdx, Tensor rcx, Tensor r8, float? xmm0:r9, float? +0, float xmm1");
}

static void test_by_value_in_memory(void **state)
{
	check("_ZN2at4_ops15sum_dim_IntList4callERKNS_6TensorEN3c1016OptionalArrayRefIlEEbSt8optionalINS5_"
	      "10ScalarTypeEE",
	      1, "Tensor rsi, int[]? +0, bool rdx, ScalarType? rcx");
	check("_ZN2at4_ops20convolution_backward4callERKNS_6TensorES4_S4_N3c1016OptionalArrayRefINS5_6SymIntEEENS5_"
	      "8ArrayRefIS7_E"
	      "ESA_SA_bSA_S7_St5arrayIbLm3EE",
	      1,
	      "Tensor rsi, Tensor rdx, Tensor rcx, SymInt[]? +0, SymInt[] r8:r9, SymInt[] +24, SymInt[] +40, bool +56, "
	      "SymInt[] +64, SymInt +80, bool[N] +88");
}

static void test_strings_and_generators(void **state)
{
	check("_ZN2at4_ops4gelu4callERKNS_6TensorESt17basic_string_viewIcSt11char_traitsIcEE", 1,
	      "Tensor rsi, str rdx:rcx");
	check("_ZN2at4_ops15div_Tensor_mode4callERKNS_6TensorES4_St8optionalISt17basic_string_viewIcSt11char_"
	      "traitsIcEEE",
	      1, "Tensor rsi, Tensor rdx, str? +0");
	check("_ZN2at4_ops11bernoulli_p4callERKNS_6TensorEdSt8optionalINS_9GeneratorEE", 1,
	      "Tensor rsi, float xmm0, Generator? rdx");
	check("_ZN2at4_ops11bernoulli_p10redispatchEN3c1014DispatchKeySetERKNS_6TensorEdSt8optionalINS_9GeneratorEE", 1,
	      "DispatchKeySet rsi, Tensor rdx, float xmm0, Generator? rcx");
}

static void test_lists(void **state)
{
	check("_ZN2at4_ops28_foreach_addcdiv__ScalarList4callEN3c108ArrayRefINS_6TensorEEES5_S5_NS3_INS2_6ScalarEEE", 0,
	      "Tensor[] rdi:rsi, Tensor[] rdx:rcx, Tensor[] r8:r9, Scalar[] +0");
	check("_ZN2at4_ops12index_Tensor4callERKNS_6TensorERKN3c104ListISt8optionalIS2_EEE", 1,
	      "Tensor rsi, Tensor?[] rdx");
	check("_ZN2at4_ops3cat4callERKN3c108IListRefINS_6TensorEEEl", 1, "ITensor[] rsi, int rdx");
}

static void test_optional_numbers_and_storage(void **state)
{
	check("_ZN2at4_ops6argmax4callERKNS_6TensorESt8optionalIlEb", 1, "Tensor rsi, int? rdx:rcx, bool r8");
	check("_ZN2at4_ops12slice_Tensor4callERKNS_6TensorElSt8optionalIN3c106SymIntEES8_S7_", 1,
	      "Tensor rsi, int rdx, SymInt? rcx, SymInt? r8, SymInt r9");
	check("_ZN2at4_ops19set__source_Storage4callERNS_6TensorEN3c107StorageE", 0, "Tensor! rdi, Storage rsi");
}

static void test_more_than_eight_doubles(void **state)
{
	check("_ZN2at4_ops1x4callEdddddddddb", 0,
	      "float xmm0, float xmm1, float xmm2, float xmm3, float xmm4, float xmm5, float xmm6, float xmm7, float "
	      "+0, "
	      "bool rdi");
}

/* Types of no use to a graph still travel in a known way; unknown ones hide everything behind them. */
static void test_opaque(void **state)
{
	struct terra_op op;

	assert_string_equal(spell("_ZN2at4_ops11all_dimname4callERKNS_6TensorENS_7DimnameEb", 1, &op),
			    "Tensor rsi, opaque rdx, bool rcx");
	assert_int_equal(op.complete, 0);
	assert_string_equal(spell("_ZN2at4_ops1x4callERKNS_6TensorENS_5NovelEb", 1, &op),
			    "Tensor rsi, opaque ?, opaque ?");
	assert_int_equal(op.complete, 0);
	assert_string_equal(spell("_ZN2at4_ops1x4callERKNS_5NovelEb", 0, &op), "opaque rdi, bool rsi");
	assert_int_equal(op.complete, 0);
	/* c10::optional had layouts of its own: never read as std::optional. */
	assert_string_equal(spell("_ZN2at4_ops1x4callEN3c108optionalIdEEb", 0, &op), "opaque ?, opaque ?");
}

static void test_unknown_sret(void **state)
{
	struct terra_op op;

	assert_string_equal(spell("_ZN2at4_ops4relu4callERKNS_6TensorE", 0xff, &op), "opaque ?");
	assert_int_equal(op.has_sret, 0xff);
	assert_int_equal(op.complete, 0);
}

static void test_not_an_op(void **state)
{
	static const char *const names[] = {
		"",
		"_Z",
		"main",
		"_ZN2at4_ops",
		"_ZN2at4_ops4relu",
		"_ZN2at4_ops4relu4call",
		"_ZN2at4_ops4relu4callB",
		"_ZN2at4_ops4relu5calleERKNS_6TensorE",
		"_ZN2at4_ops99relu4callEv",
		"_ZN2at4_ops04relu4callEv",
		"_ZN2at4_ops99999999999999999999999relu4callEv",
		"_ZN2at3foo4relu4callEv",
	};
	struct terra_signature signature;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		assert_int_equal(terra_mangle_parse(names[i], &signature), -ENOENT);
}

/* Broken parameter lists: what was read before stands, the rest is one unknown argument. */
static void test_malformed_parameters(void **state)
{
	static const char *const tails[] = {
		"S_",
		"S9_",
		"SZZZZZZZZZZ_",
		"S",
		"S?_",
		"N",
		"NS",
		"N3c10",
		"N3c108ArrayRefI",
		"N3c108ArrayRefIlE",
		"RK",
		"K",
		"E",
		"I",
		"IE",
		"St",
		"StS_",
		"St8optionalI",
		"St8optionalIb",
		"NIE",
		"1",
		"9",
		"9x",
		"L",
		"Li1E",
		"St5arrayIbLm",
		"St5arrayIbLm3",
		"St5arrayIbLz3EE",
		"DpT_",
		"FvvE",
		"\xff\xfe",
	};
	char name[256];

	for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
		struct terra_signature signature;
		struct terra_op op = {.level = 0};

		snprintf(name, sizeof(name), "_ZN2at4_ops1x4callERKNS_6TensorE%s", tails[i]);
		assert_int_equal(terra_mangle_parse(name, &signature), 0);
		terra_places_assign(&signature, 0, &op);
		assert_int_equal(op.n_args, 2);
		assert_int_equal(op.args[0].kind, TERRA_KIND_TENSOR);
		assert_int_equal(op.args[1].kind, TERRA_KIND_OPAQUE);
		assert_int_equal(op.complete, 0);
	}
}

static void test_bool_array_bounds(void **state)
{
	struct terra_op op;

	check("_ZN2at4_ops1x4callESt5arrayIbLm8EEb", 0, "bool[N] rdi, bool rsi");
	check("_ZN2at4_ops1x4callESt5arrayIbLm9EEb", 0, "bool[N] rdi:rsi, bool rdx");
	spell("_ZN2at4_ops1x4callESt5arrayIbLm17EEb", 0, &op);
	assert_int_equal(op.args[0].place, TERRA_PLACE_UNKNOWN);
	spell("_ZN2at4_ops1x4callESt5arrayIbLm0EEb", 0, &op);
	assert_int_equal(op.args[0].place, TERRA_PLACE_UNKNOWN);
	spell("_ZN2at4_ops1x4callESt5arrayIbLm99999999999999999999EEb", 0, &op);
	assert_int_equal(op.args[0].place, TERRA_PLACE_UNKNOWN);
}

/* The number of a substitution, which is written less one: S_ is 0, S0_ is 1. */
static char digit(int index)
{
	return "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index - 1];
}

/* Each level doubles the text: 2^30 characters if it were not bounded. */
static void test_exponential_name(void **state)
{
	char name[2048] = "_ZN2at4_ops1x4callE1aILl1EE";
	struct terra_signature signature;
	size_t used = strlen(name);

	/* S2_ is a, S3_ a<1l>; each template is the next candidate and takes the one before twice. */
	for (int i = 3; i < TERRA_MAX_ARGS; i++)
		used += (size_t)snprintf(name + used, sizeof(name) - used, "S2_IS%c_S%c_E", digit(i + 1), digit(i + 1));
	assert_int_equal(terra_mangle_parse(name, &signature), 0);
	assert_false(signature.whole);
	/* 4 bytes doubled until 16 KiB are full: far enough to know that substitutions did expand. */
	assert_in_range(signature.n_parameters, 8, 14);
}

static void test_deep_name(void **state)
{
	char name[4096] = "_ZN2at4_ops1x4callE";
	struct terra_signature signature;

	memset(name + strlen(name), 'P', 4000);
	assert_int_equal(terra_mangle_parse(name, &signature), 0);
	assert_false(signature.whole);
}

static void test_too_many_parameters(void **state)
{
	char name[128] = "_ZN2at4_ops1x4callE";
	struct terra_signature signature;

	memset(name + strlen(name), 'l', TERRA_MAX_ARGS);
	assert_int_equal(terra_mangle_parse(name, &signature), 0);
	assert_int_equal(signature.n_parameters, TERRA_MAX_ARGS);
	strcat(name, "l");
	assert_int_equal(terra_mangle_parse(name, &signature), -E2BIG);
}

/* Every prefix of a real name either is no op or yields no more than the whole does. */
static void test_prefixes(void **state)
{
	static const char name[] =
		"_ZN2at4_ops20convolution_backward4callERKNS_6TensorES4_S4_N3c1016OptionalArrayRefINS5_6SymIntEEENS5_"
		"8ArrayRefIS7_EESA_SA_bSA_S7_St5arrayIbLm3EE";

	for (size_t size = 0; size < sizeof(name); size++) {
		/* An allocation of exactly this size lets a sanitizer see a read past the end. */
		char *copy = malloc(size + 1);
		struct terra_signature signature;
		struct terra_op op;

		memcpy(copy, name, size);
		copy[size] = '\0';
		if (terra_mangle_parse(copy, &signature) == 0) {
			memset(&op, 0, sizeof(op));
			terra_places_assign(&signature, 1, &op);
			assert_in_range(op.n_args, 0, 11);
		}
		free(copy);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_simple),
		cmocka_unit_test(test_class_and_level),
		cmocka_unit_test(test_empty_strided),
		cmocka_unit_test(test_register_left_over),
		cmocka_unit_test(test_optional_double),
		cmocka_unit_test(test_by_value_in_memory),
		cmocka_unit_test(test_strings_and_generators),
		cmocka_unit_test(test_lists),
		cmocka_unit_test(test_optional_numbers_and_storage),
		cmocka_unit_test(test_more_than_eight_doubles),
		cmocka_unit_test(test_opaque),
		cmocka_unit_test(test_unknown_sret),
		cmocka_unit_test(test_not_an_op),
		cmocka_unit_test(test_malformed_parameters),
		cmocka_unit_test(test_bool_array_bounds),
		cmocka_unit_test(test_exponential_name),
		cmocka_unit_test(test_deep_name),
		cmocka_unit_test(test_too_many_parameters),
		cmocka_unit_test(test_prefixes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
