/* calibrate.c - TensorImpl and StorageImpl by example.
 *
 * A few tensors over one buffer get sizes, strides and offsets that are all different. A field's place is where each of
 * them holds its own value, and it counts as found only when there is exactly one such place.
 */
#include "probes/calibrate.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

#define WORD sizeof(uint64_t)
#define MAX_NDIM 8
#define N_SAMPLES 4
#define BUFFER_SIZE 65536

struct shape {
	int64_t ndim;
	int64_t sizes[MAX_NDIM];
	int64_t strides[MAX_NDIM];
	int64_t offset;
};

/* Used for the search: no number of one tensor is another of the same tensor, but for one size that is numel. */
static const struct shape shapes[N_SAMPLES] = {
	{1, {17}, {3}, 41},
	{2, {13, 7}, {23, 4}, 59},
	{3, {5, 11, 6}, {97, 8, 2}, 71},
	{2, {19, 9}, {31, 3}, 83},
};

struct sample {
	const struct shape *shape;
	void *handle;
	void *data; /* of the storage */
	int64_t storage_bytes;
	struct terra_snapshot impl;
};

bool terra_read_memory(uint64_t address, void *buffer, size_t size)
{
	struct iovec local = {buffer, size}, remote = {(void *)(uintptr_t)address, size};

	return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)size;
}

void terra_snapshot_take(const void *block, struct terra_snapshot *snapshot)
{
	size_t size = malloc_usable_size((void *)block);

	memset(snapshot, 0, sizeof(*snapshot));
	if (size > TERRA_SNAPSHOT_SIZE)
		size = TERRA_SNAPSHOT_SIZE;
	if (terra_read_memory((uintptr_t)block, snapshot->bytes, size))
		snapshot->size = size;
}

const void *terra_tensor_impl(const void *handle)
{
	return *(void *const *)handle;
}

static void *resolve(void *library, const char *name, const char **missing)
{
	void *function = dlsym(library, name);

	if (!function)
		*missing = name;
	return function;
}

int terra_torch_abi_resolve(void *library, struct terra_torch_abi *abi, const char **missing)
{
	int32_t (*cpu)(void), (*meta)(void);

	memset(abi, 0, sizeof(*abi));
	*missing = NULL;
	abi->library = library;
	abi->empty_strided = resolve(library, "aoti_torch_empty_strided", missing);
	abi->from_blob = resolve(library, "aoti_torch_create_tensor_from_blob", missing);
	abi->undefined = resolve(library, "aoti_torch_new_uninitialized_tensor", missing);
	abi->delete_tensor = resolve(library, "aoti_torch_delete_tensor_object", missing);
	abi->get_storage_size = resolve(library, "aoti_torch_get_storage_size", missing);
	cpu = resolve(library, "aoti_torch_device_type_cpu", missing);
	if (*missing)
		return -ENOSYS;
	meta = dlsym(library, "aoti_torch_device_type_meta");
	abi->cpu = cpu();
	abi->meta = meta ? meta() : -1;
	abi->float32 = terra_torch_dtype(abi, "float32");
	if (abi->float32 >= 0)
		return 0;
	*missing = "aoti_torch_dtype_float32";
	return -ENOSYS;
}

int32_t terra_torch_dtype(const struct terra_torch_abi *abi, const char *name)
{
	char symbol[64];
	int32_t (*dtype)(void);

	snprintf(symbol, sizeof(symbol), "aoti_torch_dtype_%s", name);
	dtype = dlsym(abi->library, symbol);
	return dtype ? dtype() : -1;
}

static int make_sample(const struct terra_torch_abi *abi, const struct shape *shape, void *data, struct sample *sample)
{
	sample->shape = shape;
	sample->data = data;
	if (abi->from_blob(data, shape->ndim, shape->sizes, shape->strides, shape->offset, abi->float32, abi->cpu, -1,
			   &sample->handle))
		return -EIO;
	if (abi->get_storage_size(sample->handle, &sample->storage_bytes))
		sample->storage_bytes = -1;
	terra_snapshot_take(terra_tensor_impl(sample->handle), &sample->impl);
	return 0;
}

/* `n` expected words of one sample; what to look for. */
typedef size_t (*expected_fn)(const struct sample *sample, uint64_t *words);

static size_t expect_ndim(const struct sample *sample, uint64_t *words)
{
	words[0] = (uint64_t)sample->shape->ndim;
	return 1;
}

static size_t expect_sizes(const struct sample *sample, uint64_t *words)
{
	memcpy(words, sample->shape->sizes, (size_t)sample->shape->ndim * WORD);
	return (size_t)sample->shape->ndim;
}

static size_t expect_strides(const struct sample *sample, uint64_t *words)
{
	memcpy(words, sample->shape->strides, (size_t)sample->shape->ndim * WORD);
	return (size_t)sample->shape->ndim;
}

static size_t expect_storage_offset(const struct sample *sample, uint64_t *words)
{
	words[0] = (uint64_t)sample->shape->offset;
	return 1;
}

static size_t expect_numel(const struct sample *sample, uint64_t *words)
{
	words[0] = 1;
	for (int64_t i = 0; i < sample->shape->ndim; i++)
		words[0] *= (uint64_t)sample->shape->sizes[i];
	return 1;
}

static bool holds(const struct terra_snapshot *snapshot, size_t offset, const uint64_t *words, size_t n)
{
	return offset + n * WORD <= snapshot->size && memcmp(snapshot->bytes + offset, words, n * WORD) == 0;
}

static bool all_hold(const struct sample *samples, size_t n, size_t offset, expected_fn expected)
{
	uint64_t words[MAX_NDIM];

	for (size_t i = 0; i < n; i++) {
		size_t count = expected(&samples[i], words);

		if (!holds(&samples[i].impl, offset, words, count))
			return false;
	}
	return true;
}

static void found_at(struct terra_field *field, size_t offset, uint8_t width, unsigned *times)
{
	field->offset = (uint16_t)offset;
	field->width = width;
	field->known = ++*times == 1;
}

static void search(const struct sample *samples, expected_fn expected, struct terra_field *field)
{
	unsigned times = 0;

	for (size_t offset = 0; offset < TERRA_SNAPSHOT_SIZE; offset += WORD)
		if (all_hold(samples, N_SAMPLES, offset, expected))
			found_at(field, offset, WORD, &times);
}

/* Whether the words at `place` and `place + 8 * ndim`, or what a pointer there leads to, are the tensor's. */
static bool is_inline(const struct sample *sample, const struct terra_offsets *out)
{
	size_t n = (size_t)sample->shape->ndim;

	return holds(&sample->impl, out->sizes.offset, (const uint64_t *)sample->shape->sizes, n) &&
	       holds(&sample->impl, out->strides.offset, (const uint64_t *)sample->shape->strides, n);
}

static bool is_out_of_line(const struct sample *sample, const struct terra_offsets *out)
{
	size_t n = (size_t)sample->shape->ndim;
	uint64_t words[2 * MAX_NDIM];

	return terra_read_memory(sample->impl.words[out->sizes.offset / WORD], words, 2 * n * WORD) &&
	       memcmp(words, sample->shape->sizes, n * WORD) == 0 &&
	       memcmp(words + n, sample->shape->strides, n * WORD) == 0;
}

/* Tensors of 1 to MAX_NDIM dimensions: inline up to some number, a pointer above it, and nothing else. */
static uint32_t find_inline_dims(const struct terra_torch_abi *abi, void *data, const struct terra_offsets *out)
{
	struct shape shape = {.offset = 5};
	uint32_t inline_dims = 0;

	for (shape.ndim = 1; shape.ndim <= MAX_NDIM; shape.ndim++) {
		struct sample sample;
		bool inside, outside;

		shape.sizes[shape.ndim - 1] = shape.ndim % 3 + 2;
		shape.strides[shape.ndim - 1] = 40 + shape.ndim;
		if (make_sample(abi, &shape, data, &sample))
			return 0;
		inside = is_inline(&sample, out);
		outside = !inside && is_out_of_line(&sample, out);
		abi->delete_tensor(sample.handle);
		if (inside && inline_dims == shape.ndim - 1)
			inline_dims = (uint32_t)shape.ndim;
		else if (!outside)
			return 0;
	}
	return inline_dims;
}

/* The word of one TensorImpl that leads to a structure which holds the data pointer; both places at once. */
static bool leads_to_data(const struct sample *sample, size_t in_tensor, size_t in_storage)
{
	uint64_t word;

	return in_tensor + WORD <= sample->impl.size &&
	       terra_read_memory(sample->impl.words[in_tensor / WORD] + in_storage, &word, sizeof(word)) &&
	       word == (uintptr_t)sample->data;
}

static void find_storage(const struct sample *samples, struct terra_offsets *out)
{
	unsigned times = 0;

	for (size_t a = 0; a < samples[0].impl.size; a += WORD) {
		for (size_t b = 0; b < TERRA_SNAPSHOT_SIZE / 4; b += WORD) {
			size_t i = 0;

			while (i < N_SAMPLES && leads_to_data(&samples[i], a, b))
				i++;
			if (i < N_SAMPLES)
				continue;
			found_at(&out->storage, a, WORD, &times);
			out->data_ptr = (struct terra_field){(uint16_t)b, WORD, out->storage.known};
		}
	}
	if (times > 1)
		out->data_ptr.known = 0;
}

static void find_nbytes(const struct sample *samples, struct terra_offsets *out)
{
	struct terra_snapshot storages[N_SAMPLES];
	unsigned times = 0;

	for (size_t i = 0; i < N_SAMPLES; i++) {
		if (!out->storage.known || samples[i].storage_bytes < 0)
			return;
		terra_snapshot_take((void *)(uintptr_t)samples[i].impl.words[out->storage.offset / WORD], &storages[i]);
	}
	for (size_t offset = 0; offset < storages[0].size; offset += WORD) {
		size_t i = 0;

		while (i < N_SAMPLES && holds(&storages[i], offset, (const uint64_t *)&samples[i].storage_bytes, 1))
			i++;
		if (i == N_SAMPLES)
			found_at(&out->nbytes, offset, WORD, &times);
	}
}

int terra_calibrate_tensor(const struct terra_torch_abi *abi, struct terra_offsets *out)
{
	static _Alignas(64) char buffer[N_SAMPLES][BUFFER_SIZE / N_SAMPLES];
	struct sample samples[N_SAMPLES];
	size_t n;
	int err = 0;

	for (n = 0; n < N_SAMPLES && !err; n++)
		err = make_sample(abi, &shapes[n], buffer[n], &samples[n]);
	if (err) {
		n--;
		goto err_out;
	}
	search(samples, expect_ndim, &out->ndim);
	search(samples, expect_sizes, &out->sizes);
	search(samples, expect_strides, &out->strides);
	search(samples, expect_storage_offset, &out->storage_offset);
	search(samples, expect_numel, &out->numel);
	if (out->sizes.known && out->strides.known)
		out->inline_dims = find_inline_dims(abi, buffer, out);
	find_storage(samples, out);
	find_nbytes(samples, out);
err_out:
	while (n > 0)
		abi->delete_tensor(samples[--n].handle);
	return err;
}
