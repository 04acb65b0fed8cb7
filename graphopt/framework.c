/* framework.c - loads libtorch_cpu.so and makes tensors through its exported functions. */
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/framework_internal.h"

static int fail(char *err, size_t err_size, int code, const char *format, ...) __attribute__((format(printf, 4, 5)));

static int fail(char *err, size_t err_size, int code, const char *format, ...)
{
	va_list ap;

	if (err && err_size) {
		va_start(ap, format);
		vsnprintf(err, err_size, format, ap);
		va_end(ap);
	}
	return code;
}

static int load_library(struct framework *fw, const char *path, char *err, size_t err_size)
{
	fw->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (fw->handle)
		return 0;
	return fail(
	    err, err_size, -ENOENT,
	    "can't load %s: %s. The libraries it needs must be found: for a CUDA build, set LD_LIBRARY_PATH to the "
	    "folder with the CUDA libraries",
	    path, dlerror());
}

/* As the library itself finds it: what was loaded before it goes first (operator new of a preloaded allocator). */
static void *find_symbol(const struct framework *fw, const char *name)
{
	void *symbol = dlsym(RTLD_DEFAULT, name);

	return symbol ? symbol : dlsym(fw->handle, name);
}

static int find_symbols(struct framework *fw, char *err, size_t err_size)
{
	int32_t (*dtype[3])(void), (*cpu)(void);
	const struct {
		void *slot;
		const char *name;
	} wanted[] = {
	    {&fw->empty_strided, "aoti_torch_empty_strided"},
	    {&fw->from_blob, "aoti_torch_create_tensor_from_blob"},
	    {&fw->delete_tensor, "aoti_torch_delete_tensor_object"},
	    {&fw->data_ptr, "aoti_torch_get_data_ptr"},
	    {&fw->numel, "aoti_torch_get_numel"},
	    {&fw->parallel, "GOMP_parallel"},
	    {&fw->team_size, "omp_get_num_threads"},
	    {&fw->team_member, "omp_get_thread_num"},
	    {&fw->set_num_threads, "_ZN2at15set_num_threadsEi"},
	    {&fw->get_num_threads, "_ZN2at15get_num_threadsEv"},
	    {&fw->default_generator, "_ZN2at6detail22getDefaultCPUGeneratorEv"},
	    {&fw->set_current_seed, "_ZN2at16CPUGeneratorImpl16set_current_seedEm"},
	    {&fw->operator_new, "_Znwm"},
	    {&dtype[FRAMEWORK_FLOAT32], "aoti_torch_dtype_float32"},
	    {&dtype[FRAMEWORK_FLOAT64], "aoti_torch_dtype_float64"},
	    {&dtype[FRAMEWORK_INT64], "aoti_torch_dtype_int64"},
	    {&cpu, "aoti_torch_device_type_cpu"},
	};

	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		void *symbol = find_symbol(fw, wanted[i].name);

		if (!symbol)
			return fail(err, err_size, -ENOTSUP, "this libtorch does not export %s", wanted[i].name);
		memcpy(wanted[i].slot, &symbol, sizeof(symbol));
	}
	fw->vendor_threads = (int (*)(int))find_symbol(fw, "MKL_Set_Num_Threads_Local");
	for (size_t i = 0; i < 3; i++)
		fw->dtype_code[i] = dtype[i]();
	fw->cpu = cpu();
	return 0;
}

/* std::string at::get_cpu_capability(): libstdc++'s string begins with a pointer to its text and the length. */
static void find_capability(struct framework *fw)
{
	struct {
		const char *text;
		size_t length;
		char inside[16];
	} string = {0};
	void (*get)(void *) = (void (*)(void *))dlsym(fw->handle, "_ZN2at18get_cpu_capabilityB5cxx11Ev");

	if (!get)
		return;
	get(&string);
	if (string.text == string.inside)
		snprintf(fw->capability, sizeof(fw->capability), "%.*s", (int)string.length, string.text);
}

static int load_table(struct framework *fw, const char *path, char *err, size_t err_size)
{
	const uint8_t *id;
	int ret = terra_op_table_load(path, true, &fw->table, err, err_size);

	if (ret < 0)
		return ret;
	id = fw->table->build_id;
	for (size_t i = 0; i < fw->table->build_id_size; i++)
		snprintf(fw->build_id + 2 * i, 3, "%02x", id[i]);
	return framework_op_find(fw, "aten::_local_scalar_dense", &fw->to_scalar, err, err_size);
}

int framework_open(const char *libtorch_path, struct framework **out, char *err, size_t err_size)
{
	struct framework *fw = calloc(1, sizeof(*fw));
	int ret;

	*out = NULL;
	if (!fw)
		return fail(err, err_size, -ENOMEM, "out of memory");
	ret = load_library(fw, libtorch_path, err, err_size);
	if (!ret)
		ret = find_symbols(fw, err, err_size);
	if (!ret)
		ret = load_table(fw, libtorch_path, err, err_size);
	if (ret < 0) {
		framework_close(fw);
		return ret;
	}
	find_capability(fw);
	*out = fw;
	return 0;
}

void framework_close(struct framework *fw)
{
	struct framework_op *op, *next;

	if (!fw)
		return;
	for (op = fw->ops; op; op = next) {
		next = op->next;
		free(op);
	}
	terra_op_table_free(fw->table);
	free(fw);
}

void *framework_handle(const struct framework *fw)
{
	return fw->handle;
}

const char *framework_build_id(const struct framework *fw)
{
	return fw->build_id;
}

const char *framework_capability(const struct framework *fw)
{
	return fw->capability;
}

void framework_set_threads(struct framework *fw, int threads)
{
	fw->set_num_threads(threads);
}

int framework_threads(const struct framework *fw)
{
	return fw->get_num_threads();
}

struct range {
	const struct framework *fw;
	int64_t n, grain;
	void (*fn)(void *ctx, int64_t begin, int64_t end);
	void *ctx;
};

static void run_range(const struct range *range, int64_t begin, int64_t end)
{
	int (*vendor_threads)(int) = range->fw->vendor_threads;
	int before = vendor_threads ? vendor_threads(1) : 0;

	range->fn(range->ctx, begin, end);
	if (vendor_threads)
		vendor_threads(before);
}

static int64_t divide_up(int64_t a, int64_t b)
{
	return (a + b - 1) / b;
}

/* One thread's part, of equal ones for as many threads as have `grain` to do. */
static void run_part(void *data)
{
	const struct range *range = data;
	int64_t threads = range->fw->team_size(), most = divide_up(range->n, range->grain), part, begin;

	part = divide_up(range->n, threads < most ? threads : most);
	begin = part * range->fw->team_member();
	if (begin < range->n)
		run_range(range, begin, begin + part < range->n ? begin + part : range->n);
}

void framework_parallel_for(const struct framework *fw, int64_t n, int64_t grain,
			    void (*fn)(void *ctx, int64_t begin, int64_t end), void *ctx)
{
	struct range range = {.fw = fw, .n = n, .grain = grain, .fn = fn, .ctx = ctx};
	int threads = fw->get_num_threads();

	if (n > grain && threads > 1)
		fw->parallel(run_part, &range, (unsigned)threads, 0);
	else if (n > 0)
		run_range(&range, 0, n);
}

void framework_manual_seed(const struct framework *fw, uint64_t seed)
{
	fw->set_current_seed(*fw->default_generator(), seed);
}

framework_tensor framework_empty(const struct framework *fw, int ndim, const int64_t *sizes, const int64_t *strides,
				 enum framework_dtype dtype)
{
	void *tensor = NULL;

	return fw->empty_strided(ndim, sizes, strides, fw->dtype_code[dtype], fw->cpu, -1, &tensor) ? NULL : tensor;
}

framework_tensor framework_from_blob(const struct framework *fw, void *data, int ndim, const int64_t *sizes,
				     const int64_t *strides, enum framework_dtype dtype)
{
	void *tensor = NULL;

	return fw->from_blob(data, ndim, sizes, strides, 0, fw->dtype_code[dtype], fw->cpu, -1, &tensor) ? NULL
													 : tensor;
}

framework_tensor framework_number(const struct framework *fw, double value)
{
	const int64_t none = 0;
	framework_tensor tensor = framework_empty(fw, 0, &none, &none, FRAMEWORK_FLOAT64);

	if (tensor)
		memcpy(framework_data(fw, tensor), &value, sizeof(value));
	return tensor;
}

void framework_free(const struct framework *fw, framework_tensor tensor)
{
	if (tensor)
		fw->delete_tensor(tensor);
}

void *framework_data(const struct framework *fw, framework_tensor tensor)
{
	void *data = NULL;

	return fw->data_ptr(tensor, &data) ? NULL : data;
}

int64_t framework_numel(const struct framework *fw, framework_tensor tensor)
{
	int64_t numel = 0;

	return fw->numel(tensor, &numel) ? 0 : numel;
}
