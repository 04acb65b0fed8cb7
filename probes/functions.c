/* The table of functions, and where they are in a file. */
#include "probes/functions.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probes/cache.h"
#include "probes/elf_file.h"

#define CACHE_KIND "functions"
#define OFFSETS_SIZE (TERRA_N_FUNCTIONS * sizeof(uint64_t))

#define CPU "libtorch_cpu.so"
#define PYTHON "libtorch_python.so"

/* clang-format off */
const struct terra_function terra_functions[TERRA_N_FUNCTIONS] = {
	{ PYTHON, "_ZN5torch5utils15tensor_to_numpyERKN2at6TensorEb", "numpy", 1, TERRA_FUNCTION_TENSOR },
	{ PYTHON, "_ZN5torch5utils14tensor_to_listERKN2at6TensorE", "tolist", 1, TERRA_FUNCTION_TENSOR },
	{ CPU, "_ZN2at8toDLPackERKNS_6TensorE", "dlpack", 1, TERRA_FUNCTION_TENSOR },
	{ CPU, "_ZN2at17toDLPackVersionedERKNS_6TensorE", "dlpack", 1, TERRA_FUNCTION_TENSOR },
	{ CPU, "_ZN2at17toDLPackNonOwningERKNS_6TensorEP8DLTensor", "dlpack", 1, TERRA_FUNCTION_TENSOR },
	{ PYTHON, "_Z11storage_getRKN3c107StorageEl", "storage element", 1, TERRA_FUNCTION_STORAGE },
	{ PYTHON, "_ZN5torch8autogradL20THPVariable_data_ptrEP7_objectS2_", "data_ptr", 1, TERRA_FUNCTION_PLAIN },
	{ PYTHON, "_ZL18THPStorage_dataPtrP7_objectS0_", "storage data_ptr", 1, TERRA_FUNCTION_PLAIN },
	{ CPU, "_ZN6caffe29serialize19PyTorchStreamWriter11writeRecordERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIc"
	       "EEEPKvmb", "file", 1, TERRA_FUNCTION_BYTES },
	{ PYTHON, "_ZN5torch3jit24invokeOperatorFromPythonEN3c108ArrayRefISt10shared_ptrINS0_8OperatorEEEERKN8pybind114args"
		  "ERKNS7_6kwargsESt8optionalINS1_11DispatchKeyEE", "torch.ops", 0, TERRA_FUNCTION_OPERATORS },
	{ CPU, "_ZN5torch3jit16InterpreterState3runERSt6vectorIN3c106IValueESaIS4_EE", "TorchScript", 0,
	  TERRA_FUNCTION_PLAIN },
	{ CPU, "_ZN5torch3jit16InterpreterState8runAsyncERSt6vectorIN3c106IValueESaIS4_EE", "TorchScript", 0,
	  TERRA_FUNCTION_PLAIN },
};
/* clang-format on */

int terra_functions_library(const char *libtorch, const char *name, char *path, size_t size)
{
	const char *slash = strrchr(libtorch, '/');
	int folder = slash ? (int)(slash + 1 - libtorch) : 0;

	return (size_t)snprintf(path, size, "%.*s%s", folder, libtorch, name) < size ? 0 : -ENAMETOOLONG;
}

struct search {
	const struct terra_elf *elf;
	const char *library;
	uint64_t *offsets;
	int found;
};

static int note_symbol(void *context, const Elf64_Sym *symbol, const char *name)
{
	struct search *search = context;

	for (size_t i = 0; i < TERRA_N_FUNCTIONS; i++)
		if (!search->offsets[i] && strcmp(terra_functions[i].library, search->library) == 0 &&
		    strcmp(terra_functions[i].symbol, name) == 0)
			search->found += terra_elf_file_offset(search->elf, symbol->st_value, &search->offsets[i]);
	return 0;
}

static int find_in(const struct terra_elf *elf, uint32_t type, const char *library, uint64_t *offsets)
{
	struct search search = { .elf = elf, .library = library, .offsets = offsets };

	terra_elf_functions(elf, type, note_symbol, &search);
	return search.found;
}

static int wanted(const char *library)
{
	int n = 0;

	for (size_t i = 0; i < TERRA_N_FUNCTIONS; i++)
		n += strcmp(terra_functions[i].library, library) == 0;
	return n;
}

/* Of all names, so that what was found for another table is not taken. FNV-1a. */
static uint64_t cache_layout(void)
{
	uint64_t hash = 0xcbf29ce484222325;

	for (size_t i = 0; i < TERRA_N_FUNCTIONS; i++)
		for (const char *c = terra_functions[i].symbol; *c; c++)
			hash = (hash ^ (uint8_t)*c) * 0x100000001b3;
	return hash;
}

/* 0 when there was one that can be right. */
static int read_cached(const struct terra_elf *elf, const struct terra_cache_key *key, uint64_t *offsets)
{
	void *data = NULL;
	size_t size = 0;
	int error = terra_cache_read(CACHE_KIND, key, &data, &size);

	if (!error && size == OFFSETS_SIZE)
		memcpy(offsets, data, size);
	else
		error = -ENODATA;
	free(data);
	for (size_t i = 0; !error && i < TERRA_N_FUNCTIONS; i++)
		if (offsets[i] >= elf->size)
			error = -ENODATA;
	return error;
}

static void find_own(const struct terra_elf *elf, const char *name, bool use_cache, uint64_t *offsets)
{
	struct terra_cache_key key;
	bool cached = use_cache && !terra_cache_key_make(elf, cache_layout(), &key);

	if (cached && !read_cached(elf, &key, offsets))
		return;
	memset(offsets, 0, OFFSETS_SIZE);
	if (find_in(elf, SHT_DYNSYM, name, offsets) < wanted(name))
		find_in(elf, SHT_SYMTAB, name, offsets);
	if (cached)
		terra_cache_write(CACHE_KIND, &key, offsets, OFFSETS_SIZE);
}

int terra_functions_find(const char *path, const char *name, bool use_cache, uint64_t *offsets)
{
	uint64_t own[TERRA_N_FUNCTIONS];
	struct terra_elf elf;
	int error = terra_elf_open(path, &elf), n = 0;

	if (error)
		return error;
	find_own(&elf, name, use_cache, own);
	terra_elf_close(&elf);
	for (size_t i = 0; i < TERRA_N_FUNCTIONS; i++) {
		if (!own[i] || strcmp(terra_functions[i].library, name) != 0)
			continue;
		offsets[i] = own[i];
		n++;
	}
	return n;
}

/* One way is enough where the library has no other. */
static bool is_gap(const uint8_t *seen, const char *what)
{
	bool any = false;

	for (size_t i = 0; i < TERRA_N_FUNCTIONS; i++) {
		if (strcmp(terra_functions[i].what, what) != 0)
			continue;
		if (seen[i] == TERRA_FUNCTION_UNSEEN)
			return true;
		any |= seen[i] == TERRA_FUNCTION_SEEN;
	}
	return !any;
}

static bool is_first(size_t i)
{
	for (size_t k = 0; k < i; k++)
		if (strcmp(terra_functions[k].what, terra_functions[i].what) == 0)
			return false;
	return true;
}

void terra_functions_gap(const uint8_t *seen, char *out, size_t size)
{
	size_t n = 0;

	if (size)
		out[0] = 0;
	for (size_t i = 0; i < TERRA_N_FUNCTIONS; i++) {
		const struct terra_function *function = &terra_functions[i];

		if (is_first(i) && is_gap(seen, function->what) && n < size)
			n += (size_t)snprintf(out + n, size - n, "%s%s through %s", n ? ", " : "",
					      function->reads ? "reads of memory" : "ops", function->what);
	}
}
