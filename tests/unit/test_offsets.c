/* test_offsets.c - calibration against a real libtorch: tensors that calibration never saw are read through the offsets
 * and compared with what the library's own accessors say. And what happens without a usable library.
 */
#include <dlfcn.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "probes/offsets.h"
#include "real_torch.h"

static char folder[] = "/tmp/terra-offsets-XXXXXX";

static int load(const char *path, bool use_cache, struct terra_offsets *offsets)
{
	char err[1024];
	int code = terra_offsets_load(path, use_cache, offsets, err, sizeof(err));

	if (code)
		print_error("%s\n", err);
	return code;
}

static void test_all_known(void **state)
{
	struct terra_offsets offsets;

	REQUIRE_TORCH();
	assert_int_equal(load(real_torch(), false, &offsets), 0);
	assert_true(offsets.storage.known && offsets.autograd_meta.known && offsets.ndim.known && offsets.sizes.known);
	assert_true(offsets.strides.known && offsets.storage_offset.known && offsets.numel.known);
	assert_true(offsets.data_type.known && offsets.device_type.known && offsets.device_index.known);
	assert_true(offsets.key_set.known && offsets.data_ptr.known && offsets.nbytes.known);
	assert_true(offsets.requires_grad.known && offsets.grad_fn.known && offsets.node_sequence.known);
	assert_true(offsets.current_node.known && offsets.next_sequence.known);
	assert_true(offsets.operator_definition.known && offsets.definition_name.known);
	assert_in_range(offsets.inline_dims, 1, 8);
	assert_int_not_equal(offsets.undefined_type, UINT16_MAX);
	assert_in_range(offsets.scalar.size, 16, 64);
	assert_int_equal(terra_offsets_missing(&offsets, NULL, 0), 0);
}

static void test_missing_fields_are_named(void **state)
{
	struct terra_offsets offsets;
	char text[256], *cut = text + sizeof(text) - 10;

	(void)state;
	memset(&offsets, 0xff, sizeof(offsets));
	offsets.undefined_type = 7;
	assert_int_equal(terra_offsets_missing(&offsets, text, sizeof(text)), 0);
	assert_string_equal(text, "");
	offsets.strides.known = offsets.grad_fn.known = 0;
	offsets.scalar.size = 0;
	assert_int_equal(terra_offsets_missing(&offsets, text, sizeof(text)), 3);
	assert_string_equal(text, "strides, grad_fn, scalars");
	assert_int_equal(terra_offsets_missing(&offsets, cut, 10), 3);
	assert_string_equal(cut, "strides, ");
}

/* ---- in a child with the library ---- */

struct torch {
	void *library;
	int32_t (*empty_strided)(int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, void **);
	int32_t (*from_blob)(void *, int64_t, const int64_t *, const int64_t *, int64_t, int32_t, int32_t, int32_t,
			     void **);
	int32_t (*undefined)(void **);
};

static struct torch torch;
static struct terra_offsets offsets;

static int load_torch(const char *path)
{
	char err[512];

	torch.library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
	CHECK(torch.library);
	CHECK(terra_offsets_calibrate(torch.library, &offsets, err, sizeof(err)) == 0);
	torch.empty_strided = dlsym(torch.library, "aoti_torch_empty_strided");
	torch.from_blob = dlsym(torch.library, "aoti_torch_create_tensor_from_blob");
	torch.undefined = dlsym(torch.library, "aoti_torch_new_uninitialized_tensor");
	CHECK(torch.empty_strided && torch.from_blob && torch.undefined);
	return 0;
}

/* The field of a structure as a number. */
static uint64_t read_field(const void *structure, struct terra_field field)
{
	uint64_t value = 0;

	memcpy(&value, (const char *)structure + field.offset, field.width);
	return value;
}

static const void *impl_of(const void *handle)
{
	return *(void *const *)handle;
}

static int64_t accessor(const char *name, void *handle)
{
	int32_t (*get)(void *, int64_t *) = dlsym(torch.library, name);
	int64_t value = -1;

	return get && get(handle, &value) == 0 ? value : -1;
}

static int32_t accessor32(const char *name, void *handle)
{
	int32_t (*get)(void *, int32_t *) = dlsym(torch.library, name);
	int32_t value = -1000;

	return get && get(handle, &value) == 0 ? value : -1000;
}

static int32_t number(const char *name)
{
	int32_t (*get)(void) = dlsym(torch.library, name);

	return get ? get() : -1;
}

static int check_geometry(void *handle, int64_t ndim, const int64_t *sizes, const int64_t *strides)
{
	const char *impl = impl_of(handle);
	const int64_t *got_sizes = (const int64_t *)(impl + offsets.sizes.offset);
	const int64_t *got_strides = (const int64_t *)(impl + offsets.strides.offset);

	CHECK((int64_t)read_field(impl, offsets.ndim) == ndim);
	if (ndim > offsets.inline_dims) {
		got_sizes = *(const int64_t *const *)got_sizes;
		got_strides = got_sizes + ndim;
	}
	for (int64_t i = 0; i < ndim; i++)
		CHECK(got_sizes[i] == sizes[i] && got_strides[i] == strides[i]);
	CHECK((int64_t)read_field(impl, offsets.numel) == accessor("aoti_torch_get_numel", handle));
	CHECK((int64_t)read_field(impl, offsets.storage_offset) == accessor("aoti_torch_get_storage_offset", handle));
	return 0;
}

static int check_storage(void *handle, const void *data)
{
	const void *storage = (const void *)(uintptr_t)read_field(impl_of(handle), offsets.storage);

	CHECK(storage);
	CHECK((int64_t)read_field(storage, offsets.nbytes) == accessor("aoti_torch_get_storage_size", handle));
	CHECK(read_field(storage, offsets.data_ptr) == (uintptr_t)data);
	return 0;
}

static int check_types(void *handle)
{
	const void *impl = impl_of(handle);
	uint64_t index = read_field(impl, offsets.data_type);
	size_t (*element_size)(int32_t) = dlsym(torch.library, "aoti_torch_dtype_element_size");
	int32_t dtype = accessor32("aoti_torch_get_dtype", handle);

	CHECK(index < TERRA_MAX_TYPE_META && index != offsets.undefined_type);
	CHECK(offsets.scalar_type[index] == dtype);
	CHECK(offsets.element_size[dtype] == element_size(dtype));
	CHECK((int8_t)read_field(impl, offsets.device_type) == accessor32("aoti_torch_get_device_type", handle));
	CHECK((int8_t)read_field(impl, offsets.device_index) == accessor32("aoti_torch_get_device_index", handle));
	CHECK(read_field(impl, offsets.key_set) != 0);
	return 0;
}

/* Every number of dimensions, with numbers that have nothing to do with those of the calibration. */
static int body_geometry(const char *path)
{
	static double data[4096];

	if (load_torch(path))
		return 1;
	for (int64_t ndim = 0; ndim <= 12; ndim++) {
		int64_t sizes[12], strides[12];
		void *handle;

		for (int64_t i = 0; i < ndim; i++) {
			sizes[i] = i % 2 + 1;
			strides[i] = 3 * i + ndim;
		}
		CHECK(torch.from_blob(data, ndim, sizes, strides, 2 * ndim, number("aoti_torch_dtype_float64"), 0, -1,
				      &handle) == 0);
		if (check_geometry(handle, ndim, sizes, strides) || check_storage(handle, data) || check_types(handle))
			return 1;
	}
	return 0;
}

static int body_types(const char *path)
{
	static const char *const dtypes[] = {"aoti_torch_dtype_float16",   "aoti_torch_dtype_bfloat16",
					     "aoti_torch_dtype_int64",	   "aoti_torch_dtype_bool",
					     "aoti_torch_dtype_complex64", "aoti_torch_dtype_uint8"};
	int64_t sizes[] = {4, 6}, strides[] = {6, 1};
	void *handle;

	if (load_torch(path))
		return 1;
	for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
		CHECK(torch.empty_strided(2, sizes, strides, number(dtypes[i]), 0, -1, &handle) == 0);
		if (check_types(handle))
			return 1;
	}
	CHECK(torch.empty_strided(2, sizes, strides, number(dtypes[0]), number("aoti_torch_device_type_meta"), -1,
				  &handle) == 0);
	if (check_types(handle) || check_geometry(handle, 2, sizes, strides))
		return 1;
	CHECK(torch.undefined(&handle) == 0);
	CHECK(read_field(impl_of(handle), offsets.data_type) == offsets.undefined_type);
	return 0;
}

static bool requires_grad(const void *handle)
{
	const void *meta = (const void *)(uintptr_t)read_field(impl_of(handle), offsets.autograd_meta);

	return meta && (read_field(meta, offsets.requires_grad) || read_field(meta, offsets.grad_fn));
}

static int body_autograd(const char *path)
{
	void *(*set)(void *, bool);
	void *(*relu)(void *, const void *);
	void *(*detach)(void *, const void *);
	int64_t one = 1;
	float data = 3;
	void *handle, *result = NULL, *detached = NULL;

	if (load_torch(path))
		return 1;
	set = dlsym(torch.library, "_ZN2at4_ops14requires_grad_4callERNS_6TensorEb");
	relu = dlsym(torch.library, "_ZN2at4_ops4relu4callERKNS_6TensorE");
	detach = dlsym(torch.library, "_ZN2at4_ops6detach4callERKNS_6TensorE");
	CHECK(set && relu && detach);
	CHECK(torch.from_blob(&data, 1, &one, &one, 0, number("aoti_torch_dtype_float32"), 0, -1, &handle) == 0);
	CHECK(!requires_grad(handle));
	relu(&result, handle);
	CHECK(!requires_grad(&result));
	set(handle, true);
	CHECK(requires_grad(handle));
	relu(&result, handle);
	CHECK(requires_grad(&result));
	detach(&detached, &result);
	CHECK(!requires_grad(&detached));
	set(handle, false);
	CHECK(!requires_grad(handle));
	return 0;
}

/* What the backends read at an op, read here. The Node that is evaluated takes a backward pass: tests/e2e has one. */
static int body_node(const char *path)
{
	uint64_t (*next)(void);
	void *(*set)(void *, bool), *(*relu)(void *, const void *);
	const void *meta, *node;
	int64_t one = 1;
	float data = 3;
	uint64_t number_before;
	void *handle, *result = NULL;

	if (load_torch(path))
		return 1;
	next = dlsym(torch.library, "_ZN2at15sequence_number4peekEv");
	set = dlsym(torch.library, "_ZN2at4_ops14requires_grad_4callERNS_6TensorEb");
	relu = dlsym(torch.library, "_ZN2at4_ops4relu4callERKNS_6TensorE");
	CHECK(next && set && relu && offsets.node_sequence.known && offsets.next_sequence.known &&
	      offsets.current_node.known);
	CHECK(torch.from_blob(&data, 1, &one, &one, 0, number("aoti_torch_dtype_float32"), 0, -1, &handle) == 0);
	set(handle, true);
	number_before = next();
	CHECK(number_before > 0);
	relu(&result, handle);
	CHECK(next() == number_before + 1);
	meta = (const void *)(uintptr_t)read_field(impl_of(&result), offsets.autograd_meta);
	node = (const void *)(uintptr_t)read_field(meta, offsets.grad_fn);
	CHECK(read_field(node, offsets.node_sequence) == number_before);
	return 0;
}

static int scalar_of(const char *dtype, const void *data, uint8_t *scalar)
{
	void *(*item)(void *, const void *) =
		dlsym(torch.library, "_ZN2at4_ops19_local_scalar_dense4callERKNS_6TensorE");
	void *handle;

	CHECK(item && torch.from_blob((void *)data, 0, NULL, NULL, 0, number(dtype), 0, -1, &handle) == 0);
	item(scalar, handle);
	return 0;
}

static int body_scalar(const char *path)
{
	_Alignas(16) uint8_t scalar[64];
	double real = -7.5;
	float narrow = 0.25f;
	int32_t integer = -12;
	uint8_t truth = 1;
	int32_t tag;
	double value;
	int64_t whole;

	if (load_torch(path))
		return 1;
	CHECK(scalar_of("aoti_torch_dtype_float64", &real, scalar) == 0);
	memcpy(&tag, scalar + offsets.scalar.tag_offset, sizeof(tag));
	memcpy(&value, scalar + offsets.scalar.value_offset, sizeof(value));
	CHECK(tag == offsets.scalar.tag_double && value == -7.5);
	CHECK(scalar_of("aoti_torch_dtype_float32", &narrow, scalar) == 0);
	memcpy(&tag, scalar + offsets.scalar.tag_offset, sizeof(tag));
	memcpy(&value, scalar + offsets.scalar.value_offset, sizeof(value));
	CHECK(tag == offsets.scalar.tag_double && value == 0.25);
	CHECK(scalar_of("aoti_torch_dtype_int32", &integer, scalar) == 0);
	memcpy(&tag, scalar + offsets.scalar.tag_offset, sizeof(tag));
	memcpy(&whole, scalar + offsets.scalar.value_offset, sizeof(whole));
	CHECK(tag == offsets.scalar.tag_int && whole == -12);
	CHECK(scalar_of("aoti_torch_dtype_bool", &truth, scalar) == 0);
	memcpy(&tag, scalar + offsets.scalar.tag_offset, sizeof(tag));
	CHECK(tag == offsets.scalar.tag_bool);
	return 0;
}

static void test_geometry(void **state)
{
	REQUIRE_TORCH();
	assert_int_equal(in_child(body_geometry, real_torch()), 0);
}

static void test_types(void **state)
{
	REQUIRE_TORCH();
	assert_int_equal(in_child(body_types, real_torch()), 0);
}

static void test_autograd(void **state)
{
	REQUIRE_TORCH();
	assert_int_equal(in_child(body_autograd, real_torch()), 0);
}

static void test_node(void **state)
{
	REQUIRE_TORCH();
	assert_int_equal(in_child(body_node, real_torch()), 0);
}

static void test_scalar(void **state)
{
	REQUIRE_TORCH();
	assert_int_equal(in_child(body_scalar, real_torch()), 0);
}

/* ---- the cache ---- */

static bool cache_file(char *path, size_t size)
{
	char command[256];
	FILE *list;
	bool found;

	snprintf(command, sizeof(command), "ls %s/terra/offsets-*.bin 2>/dev/null", folder);
	list = popen(command, "r");
	found = fgets(path, (int)size, list) != NULL;
	path[strcspn(path, "\n")] = '\0';
	pclose(list);
	return found;
}

/* A cached result is as the fresh one; a damaged file is noticed and replaced. */
static void test_cache(void **state)
{
	struct terra_offsets fresh, first, second;
	char path[256];
	struct stat before, after;

	REQUIRE_TORCH();
	assert_int_equal(load(real_torch(), false, &fresh), 0);
	assert_false(cache_file(path, sizeof(path)));
	assert_int_equal(load(real_torch(), true, &first), 0);
	assert_true(cache_file(path, sizeof(path)));
	assert_int_equal(stat(path, &before), 0);
	assert_int_equal(load(real_torch(), true, &second), 0);
	assert_int_equal(stat(path, &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	assert_memory_equal(&fresh, &first, sizeof(fresh));
	assert_memory_equal(&fresh, &second, sizeof(fresh));
	assert_int_equal(truncate(path, before.st_size - 3), 0);
	assert_int_equal(load(real_torch(), true, &second), 0);
	assert_memory_equal(&fresh, &second, sizeof(fresh));
	assert_int_equal(stat(path, &after), 0);
	assert_int_equal(after.st_size, before.st_size);
}

/* ---- libraries that are none ---- */

static int compile(const char *source, const char *library)
{
	char command[512];

	snprintf(command, sizeof(command), "printf '%%s' '%s' | cc -shared -fPIC -x c -o %s - 2>/dev/null", source,
		 library);
	return system(command);
}

static bool make_fake(const char *name, const char *option, char *library, size_t size)
{
	char command[512];

	snprintf(library, size, "%s/%s.so", folder, name);
	snprintf(command, sizeof(command), "cc -shared -fPIC %s -o %s %s/tests/unit/fixtures/fake_torch.c", option,
		 library, TERRA_SOURCE_DIR);
	return system(command) == 0;
}

static void check_field(struct terra_field field, unsigned offset)
{
	assert_true(field.known);
	assert_int_equal(field.offset, offset);
}

/* Another layout than PyTorch ever had: nothing may depend on knowing the real one. */
static void test_other_layout(void **state)
{
	struct terra_offsets got;
	char library[64];

	if (!make_fake("fake", "", library, sizeof(library))) {
		print_message("skipped: no C compiler\n");
		skip();
	}
	assert_int_equal(load(library, false, &got), 0);
	check_field(got.numel, 16);
	check_field(got.storage_offset, 24);
	check_field(got.device_type, 32);
	check_field(got.device_index, 33);
	check_field(got.data_type, 34);
	check_field(got.strides, 40);
	check_field(got.sizes, 64);
	check_field(got.ndim, 88);
	check_field(got.key_set, 96);
	check_field(got.storage, 104);
	check_field(got.nbytes, 8);
	check_field(got.data_ptr, 24);
	assert_int_equal(got.scalar_type[23], 3);
	assert_int_equal(got.scalar_type[21], 1);
	assert_int_equal(got.scalar_type[22], TERRA_DTYPE_UNKNOWN);
	assert_int_equal(got.undefined_type, 60);
	/* It has no autograd and no scalars, and that is what must be said. */
	assert_false(got.autograd_meta.known || got.requires_grad.known || got.grad_fn.known);
	assert_int_equal(got.scalar.size, 0);
	assert_int_equal(got.scalar.tag_double, -1);
	/* Out of line it is read as {sizes, strides} from the word at `sizes`, which here is not so. */
	assert_int_equal(got.inline_dims, 0);
}

/* Two places that always agree: no field is better than a guess. The others are not affected. */
static void test_ambiguous_field(void **state)
{
	struct terra_offsets got;
	char library[64];

	if (!make_fake("twice", "-DTWICE", library, sizeof(library))) {
		print_message("skipped: no C compiler\n");
		skip();
	}
	assert_int_equal(load(library, false, &got), 0);
	assert_false(got.numel.known);
	check_field(got.storage_offset, 24);
	check_field(got.ndim, 88);
}

/* An op that ends the child loses what its stage would have found, nothing else. */
static void test_op_that_aborts(void **state)
{
	struct terra_offsets got;
	char library[64];

	if (!make_fake("abort-in-op", "-DABORT_IN_OP", library, sizeof(library))) {
		print_message("skipped: no C compiler\n");
		skip();
	}
	assert_int_equal(load(library, false, &got), 0);
	check_field(got.numel, 16);
	check_field(got.key_set, 96);
	assert_false(got.autograd_meta.known);
}

static void test_missing_file(void **state)
{
	struct terra_offsets got;
	char err[256];

	assert_int_equal(terra_offsets_load("/nowhere/libtorch_cpu.so", true, &got, err, sizeof(err)), -ENOENT);
	assert_non_null(strstr(err, "/nowhere/libtorch_cpu.so"));
	assert_int_equal(terra_offsets_load("/dev/null", true, &got, err, sizeof(err)), -ENOEXEC);
	assert_int_equal(terra_offsets_load("/dev/null", true, &got, NULL, 0), -ENOEXEC);
}

static void test_other_library(void **state)
{
	struct terra_offsets got;
	char err[256], library[64];

	snprintf(library, sizeof(library), "%s/other.so", folder);
	if (compile("int nothing;", library)) {
		print_message("skipped: no C compiler\n");
		skip();
	}
	assert_int_equal(terra_offsets_load(library, false, &got, err, sizeof(err)), -ENOSYS);
	assert_non_null(strstr(err, "does not export aoti_torch_"));
}

/* A library that ends its process on loading ends the child, not the caller. */
static void test_library_that_aborts(void **state)
{
	struct terra_offsets got;
	char err[256], library[64];

	snprintf(library, sizeof(library), "%s/abort.so", folder);
	if (compile("void abort(void); __attribute__((constructor)) static void start(void) { abort(); }", library)) {
		print_message("skipped: no C compiler\n");
		skip();
	}
	assert_int_equal(terra_offsets_load(library, false, &got, err, sizeof(err)), -EIO);
	assert_non_null(strstr(err, "ended the process"));
}

static int make_folder(void **state)
{
	return mkdtemp(folder) ? setenv("XDG_CACHE_HOME", folder, 1) : -1;
}

static int remove_folder(void **state)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -r %s", folder);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_missing_file),
		cmocka_unit_test(test_other_library),
		cmocka_unit_test(test_library_that_aborts),
		cmocka_unit_test(test_other_layout),
		cmocka_unit_test(test_ambiguous_field),
		cmocka_unit_test(test_op_that_aborts),
		cmocka_unit_test(test_all_known),
		cmocka_unit_test(test_missing_fields_are_named),
		cmocka_unit_test(test_geometry),
		cmocka_unit_test(test_types),
		cmocka_unit_test(test_autograd),
		cmocka_unit_test(test_node),
		cmocka_unit_test(test_scalar),
		cmocka_unit_test(test_cache),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
