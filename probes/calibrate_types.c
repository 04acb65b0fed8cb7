/* calibrate_types.c - dtype, device and dispatch keys by example.
 *
 * These fields depend on what kind of tensor it is and on nothing else. So: two tensors of different shape for every
 * dtype, and some on the meta device. The data type is the small number that is the same within a dtype and different
 * across them; the device type is the byte that names the device; the key set is the word that changes with the device
 * (the undefined tensor counting as one) and not with dtype or shape.
 */
#include "probes/calibrate.h"

#include <dlfcn.h>
#include <string.h>

#define WORD sizeof(uint64_t)
#define MAX_DTYPES 40
#define PER_DTYPE 2
#define N_META 2

/* By name through aoti_torch_dtype_<name>; one that a library does not have is passed over. */
static const char *const dtype_names[] = {
	"float32",
	"float64",
	"float16",
	"bfloat16",
	"int8",
	"int16",
	"int32",
	"int64",
	"uint8",
	"uint16",
	"uint32",
	"uint64",
	"bool",
	"complex32",
	"complex64",
	"complex128",
	"float8_e4m3fn",
	"float8_e5m2",
	"float8_e4m3fnuz",
	"float8_e5m2fnuz",
	"float8_e8m0fnu",
	"float4_e2m1fn_x2",
};

struct kinds_of_tensor {
	size_t n_dtypes;
	int32_t dtypes[MAX_DTYPES];
	struct terra_snapshot cpu[MAX_DTYPES][PER_DTYPE];
	size_t n_meta;
	struct terra_snapshot meta[N_META];
	uint64_t undefined[TERRA_SNAPSHOT_SIZE / WORD];
	size_t undefined_size;
};

static const int64_t sizes[PER_DTYPE][2] = {{3, 5}, {11, 2}};
static const int64_t strides[PER_DTYPE][2] = {{5, 1}, {2, 1}};

/* On the CPU over memory of ours: allocating some dtypes makes the library print a warning. */
static int32_t new_tensor(const struct terra_torch_abi *abi, int32_t dtype, int32_t device, size_t shape, void **handle)
{
	static _Alignas(64) char memory[1024];

	if (device == abi->cpu)
		return abi->from_blob(memory, 2, sizes[shape], strides[shape], 0, dtype, device, -1, handle);
	return abi->empty_strided(2, sizes[shape], strides[shape], dtype, device, -1, handle);
}

static bool snapshot_new(const struct terra_torch_abi *abi, int32_t dtype, int32_t device, size_t shape,
			 struct terra_snapshot *snapshot)
{
	void *handle;

	if (new_tensor(abi, dtype, device, shape, &handle))
		return false;
	terra_snapshot_take(terra_tensor_impl(handle), snapshot);
	abi->delete_tensor(handle);
	return snapshot->size > 0;
}

static void add_dtype(const struct terra_torch_abi *abi, const char *name, struct kinds_of_tensor *all)
{
	int32_t dtype = terra_torch_dtype(abi, name);

	if (dtype < 0 || dtype >= TERRA_MAX_TYPE_META || all->n_dtypes == MAX_DTYPES)
		return;
	for (size_t i = 0; i < PER_DTYPE; i++)
		if (!snapshot_new(abi, dtype, abi->cpu, i, &all->cpu[all->n_dtypes][i]))
			return;
	all->dtypes[all->n_dtypes++] = dtype;
}

/* The undefined tensor is one static object: as much of it is read as of an ordinary one. */
static void add_undefined(const struct terra_torch_abi *abi, struct kinds_of_tensor *all)
{
	size_t size = all->cpu[0][0].size;
	void *handle;

	if (abi->undefined(&handle))
		return;
	for (; size > 0 && !all->undefined_size; size -= WORD)
		if (terra_read_memory((uintptr_t)terra_tensor_impl(handle), all->undefined, size))
			all->undefined_size = size;
	abi->delete_tensor(handle);
}

static uint16_t half_at(const struct terra_snapshot *snapshot, size_t offset)
{
	uint16_t half;

	memcpy(&half, snapshot->bytes + offset, sizeof(half));
	return half;
}

static bool is_data_type(const struct kinds_of_tensor *all, size_t offset)
{
	bool seen[TERRA_MAX_TYPE_META] = {false};

	for (size_t i = 0; i < all->n_dtypes; i++) {
		uint16_t index = half_at(&all->cpu[i][0], offset);

		if (index >= TERRA_MAX_TYPE_META || seen[index])
			return false;
		seen[index] = true;
		for (size_t k = 1; k < PER_DTYPE; k++)
			if (half_at(&all->cpu[i][k], offset) != index)
				return false;
	}
	return true;
}

static void find_data_type(const struct terra_torch_abi *abi, const struct kinds_of_tensor *all,
			   struct terra_offsets *out)
{
	size_t (*element_size)(int32_t) = dlsym(abi->library, "aoti_torch_dtype_element_size");
	unsigned times = 0;

	for (size_t offset = 0; offset + sizeof(uint16_t) <= all->cpu[0][0].size; offset += sizeof(uint16_t))
		if (is_data_type(all, offset)) {
			out->data_type = (struct terra_field){(uint16_t)offset, sizeof(uint16_t), 1};
			times++;
		}
	out->data_type.known = times == 1;
	for (size_t i = 0; i < all->n_dtypes && times == 1; i++) {
		uint16_t index = half_at(&all->cpu[i][0], out->data_type.offset);
		size_t size = element_size ? element_size(all->dtypes[i]) : 0;

		out->scalar_type[index] = (int8_t)all->dtypes[i];
		out->element_size[all->dtypes[i]] = size <= UINT8_MAX ? (uint8_t)size : 0;
	}
}

/* The undefined tensor's index, provided that no tensor of a dtype has it. */
static void find_undefined_type(const struct kinds_of_tensor *all, struct terra_offsets *out)
{
	size_t offset = out->data_type.offset;
	uint16_t index;

	if (!out->data_type.known || offset + sizeof(index) > all->undefined_size)
		return;
	memcpy(&index, (const uint8_t *)all->undefined + offset, sizeof(index));
	for (size_t i = 0; i < all->n_dtypes; i++)
		if (half_at(&all->cpu[i][0], offset) == index)
			return;
	out->undefined_type = index;
}

static bool byte_is(const struct kinds_of_tensor *all, size_t offset, uint8_t on_cpu, uint8_t on_meta)
{
	for (size_t i = 0; i < all->n_dtypes; i++)
		for (size_t k = 0; k < PER_DTYPE; k++)
			if (all->cpu[i][k].bytes[offset] != on_cpu)
				return false;
	for (size_t i = 0; i < all->n_meta; i++)
		if (all->meta[i].bytes[offset] != on_meta)
			return false;
	return true;
}

/* c10::Device is {type, index}; both devices were made with index -1. */
static void find_device(const struct terra_torch_abi *abi, const struct kinds_of_tensor *all, struct terra_offsets *out)
{
	unsigned times = 0;

	for (size_t offset = 0; all->n_meta && offset + 1 < all->cpu[0][0].size; offset++) {
		if (!byte_is(all, offset, (uint8_t)abi->cpu, (uint8_t)abi->meta) ||
		    !byte_is(all, offset + 1, 0xff, 0xff))
			continue;
		out->device_type = (struct terra_field){(uint16_t)offset, 1, 1};
		out->device_index = (struct terra_field){(uint16_t)(offset + 1), 1, 1};
		times++;
	}
	out->device_type.known = out->device_index.known = times == 1;
}

static bool is_key_set(const struct kinds_of_tensor *all, size_t at)
{
	uint64_t keys = all->cpu[0][0].words[at];

	if (keys == 0 || all->undefined[at] == keys)
		return false;
	for (size_t i = 0; i < all->n_dtypes; i++)
		for (size_t k = 0; k < PER_DTYPE; k++)
			if (all->cpu[i][k].words[at] != keys)
				return false;
	for (size_t i = 0; i < all->n_meta; i++)
		if (all->meta[i].words[at] == keys || all->meta[i].words[at] != all->meta[0].words[at] ||
		    all->meta[i].words[at] == 0)
			return false;
	return true;
}

static void find_key_set(const struct kinds_of_tensor *all, struct terra_offsets *out)
{
	unsigned times = 0;

	for (size_t at = 0; all->n_meta && (at + 1) * WORD <= all->undefined_size; at++)
		if (is_key_set(all, at)) {
			out->key_set = (struct terra_field){(uint16_t)(at * WORD), WORD, 1};
			times++;
		}
	out->key_set.known = times == 1;
}

void terra_calibrate_types(const struct terra_torch_abi *abi, struct terra_offsets *out)
{
	/* Too large for a stack; calibration is not re-entered. */
	static struct kinds_of_tensor all;

	memset(&all, 0, sizeof(all));
	for (size_t i = 0; i < sizeof(dtype_names) / sizeof(dtype_names[0]); i++)
		add_dtype(abi, dtype_names[i], &all);
	if (all.n_dtypes < 2)
		return;
	while (abi->meta >= 0 && all.n_meta < N_META &&
	       snapshot_new(abi, abi->float32, abi->meta, all.n_meta, &all.meta[all.n_meta]))
		all.n_meta++;
	add_undefined(abi, &all);
	find_data_type(abi, &all, out);
	find_undefined_type(&all, out);
	find_device(abi, &all, out);
	find_key_set(&all, out);
}
