/* calibrate_ops.c - what takes running an op to see: autograd's fields and c10::Scalar.
 *
 * The ops are called by their exported names with the calling convention that probes/places.c describes. Should one
 * throw, the process ends (see calibrate.h).
 */
#include "probes/calibrate.h"

#include <dlfcn.h>
#include <string.h>

#define WORD sizeof(uint64_t)

void *terra_new_scalar_tensor(const struct terra_torch_abi *abi, void *data, int32_t dtype)
{
	void *handle = NULL;

	if (dtype < 0 || abi->from_blob(data, 0, NULL, NULL, 0, dtype, abi->cpu, -1, &handle))
		return NULL;
	return handle;
}

/* The one word that was zero and is a pointer now. */
static size_t appeared(const struct terra_snapshot *before, const struct terra_snapshot *after)
{
	size_t place = SIZE_MAX;

	for (size_t at = 0; (at + 1) * WORD <= before->size; at++) {
		if (before->words[at] == after->words[at])
			continue;
		if (before->words[at] != 0 || place != SIZE_MAX)
			return SIZE_MAX;
		place = at * WORD;
	}
	return place;
}

static const void *meta_of(const void *handle, const struct terra_offsets *out)
{
	return *(void *const *)((const char *)terra_tensor_impl(handle) + out->autograd_meta.offset);
}

static void find_autograd_meta(void *tensor, void *(*requires_grad)(void *, bool), struct terra_offsets *out)
{
	struct terra_snapshot before, after;
	size_t place;

	terra_snapshot_take(terra_tensor_impl(tensor), &before);
	requires_grad(tensor, true);
	terra_snapshot_take(terra_tensor_impl(tensor), &after);
	place = appeared(&before, &after);
	if (place != SIZE_MAX)
		out->autograd_meta = (struct terra_field){(uint16_t)place, WORD, 1};
}

/* The byte that follows requires_grad_(True) and requires_grad_(False). The tensor is left at True. */
static void find_requires_grad(void *tensor, void *(*requires_grad)(void *, bool), struct terra_offsets *out)
{
	struct terra_snapshot on, off;
	unsigned times = 0;

	terra_snapshot_take(meta_of(tensor, out), &on);
	requires_grad(tensor, false);
	terra_snapshot_take(meta_of(tensor, out), &off);
	requires_grad(tensor, true);
	for (size_t i = 0; i < on.size; i++)
		if (on.bytes[i] != off.bytes[i]) {
			out->requires_grad =
				(struct terra_field){(uint16_t)i, 1, on.bytes[i] == 1 && off.bytes[i] == 0};
			times++;
		}
	if (times != 1)
		out->requires_grad.known = 0;
}

/* The library's own accessor returns a reference to the shared pointer, whose first word is the object's address. What
 * words differ between the result of an op and a leaf would not do: some of both are never written. */
static void find_grad_fn(const struct terra_torch_abi *abi, const void *leaf, const void *result,
			 struct terra_offsets *out)
{
	const void *(*grad_fn)(const void *self) = dlsym(abi->library, "_ZNK2at10TensorBase7grad_fnEv");
	struct terra_snapshot without, with;
	uint64_t vtable;
	size_t place;

	if (!grad_fn || !meta_of(result, out))
		return;
	terra_snapshot_take(meta_of(leaf, out), &without);
	terra_snapshot_take(meta_of(result, out), &with);
	place = (uintptr_t)grad_fn(result) - (uintptr_t)meta_of(result, out);
	if (place % WORD || with.size < WORD || place > with.size - WORD || without.words[place / WORD] ||
	    !terra_read_memory(with.words[place / WORD], &vtable, sizeof(vtable)))
		return;
	out->grad_fn = (struct terra_field){(uint16_t)place, WORD, 1};
}

void terra_calibrate_autograd(const struct terra_torch_abi *abi, struct terra_offsets *out)
{
	void *(*requires_grad)(void *self, bool value) =
		dlsym(abi->library, "_ZN2at4_ops14requires_grad_4callERNS_6TensorEb");
	void *(*mul)(void *result, const void *self, const void *other) =
		dlsym(abi->library, "_ZN2at4_ops10mul_Tensor4callERKNS_6TensorES4_");
	float value = 3;
	void *leaf = terra_new_scalar_tensor(abi, &value, abi->float32), *result;

	if (!leaf || !requires_grad)
		return;
	find_autograd_meta(leaf, requires_grad, out);
	if (out->autograd_meta.known)
		find_requires_grad(leaf, requires_grad, out);
	if (out->autograd_meta.known && mul && abi->undefined(&result) == 0) {
		/* The undefined tensor's word is overwritten; it holds no reference that would be lost. */
		mul(result, leaf, leaf);
		find_grad_fn(abi, leaf, result, out);
		abi->delete_tensor(result);
	}
	abi->delete_tensor(leaf);
}

#define SCALAR_SIZE 64

/* Two readings over different backgrounds: a byte that differs was not written. */
struct scalar_sample {
	bool valid;
	uint8_t bytes[SCALAR_SIZE];
	bool written[SCALAR_SIZE];
};

static void read_scalar(const struct terra_torch_abi *abi, const char *dtype, void *data, struct scalar_sample *sample)
{
	void *(*item)(void *result, const void *self) =
		dlsym(abi->library, "_ZN2at4_ops19_local_scalar_dense4callERKNS_6TensorE");
	_Alignas(16) uint8_t other[SCALAR_SIZE], first[SCALAR_SIZE];
	void *tensor = item ? terra_new_scalar_tensor(abi, data, terra_torch_dtype(abi, dtype)) : NULL;

	sample->valid = tensor != NULL;
	if (!tensor)
		return;
	memset(first, 0x5a, sizeof(first));
	memset(other, 0xa5, sizeof(other));
	item(first, tensor);
	item(other, tensor);
	abi->delete_tensor(tensor);
	memcpy(sample->bytes, first, sizeof(first));
	for (size_t i = 0; i < SCALAR_SIZE; i++)
		sample->written[i] = first[i] == other[i];
}

static size_t find_value(const struct scalar_sample *sample, const void *value, size_t size)
{
	size_t place = SIZE_MAX;

	for (size_t at = 0; at + size <= SCALAR_SIZE; at += WORD)
		if (memcmp(sample->bytes + at, value, size) == 0) {
			if (place != SIZE_MAX)
				return SIZE_MAX;
			place = at;
		}
	return place;
}

static int32_t tag_at(const struct scalar_sample *sample, size_t at)
{
	int32_t tag;

	for (size_t i = 0; i < sizeof(tag); i++)
		if (!sample->written[at + i])
			return -1;
	memcpy(&tag, sample->bytes + at, sizeof(tag));
	return tag >= 0 && tag < INT8_MAX ? tag : -1;
}

enum { AS_DOUBLE, AS_INT, AS_COMPLEX, AS_BOOL, N_SCALARS };

/* The 4 bytes outside of the value that name the type: a small number, another for each. */
static size_t find_tag(const struct scalar_sample *samples, size_t value_offset)
{
	for (size_t at = 0; at + sizeof(int32_t) <= SCALAR_SIZE; at += sizeof(int32_t)) {
		bool distinct = at < value_offset || at >= value_offset + 2 * WORD;

		for (size_t i = 0; i < N_SCALARS; i++) {
			distinct = distinct && tag_at(&samples[i], at) >= 0;
			for (size_t k = 0; k < i; k++)
				distinct = distinct && tag_at(&samples[i], at) != tag_at(&samples[k], at);
		}
		if (distinct)
			return at;
	}
	return SIZE_MAX;
}

/* Multiplies two tensors by an array of two Scalars: only if the second Scalar is at `size` bytes is the product right.
 * A wrong size cannot run astray: the array is padded with copies of the first Scalar. */
static bool size_is(const struct terra_torch_abi *abi, const struct scalar_sample *two,
		    const struct scalar_sample *five, size_t size)
{
	void (*multiply)(void *tensors, size_t n_tensors, const void *scalars, size_t n_scalars) =
		dlsym(abi->library, "_ZN2at4_ops24_foreach_mul__ScalarList4callEN3c108ArrayRefINS_6TensorEEENS3_INS2_"
				    "6ScalarEEE");
	_Alignas(16) uint8_t scalars[4 * SCALAR_SIZE];
	double values[2] = {3, 7};
	void *handles[2], *tensors[2];

	if (!multiply || size < 8 || size > SCALAR_SIZE)
		return false;
	for (size_t at = 0; at + size <= sizeof(scalars); at += size)
		memcpy(scalars + at, two->bytes, size);
	memcpy(scalars + size, five->bytes, size);
	for (size_t i = 0; i < 2; i++) {
		handles[i] = terra_new_scalar_tensor(abi, &values[i], terra_torch_dtype(abi, "float64"));
		if (!handles[i])
			return false;
		tensors[i] = (void *)terra_tensor_impl(handles[i]);
	}
	multiply(tensors, 2, scalars, 2);
	abi->delete_tensor(handles[0]);
	abi->delete_tensor(handles[1]);
	return values[0] == 6 && values[1] == 35;
}

/* The value is as large as two doubles, and the whole a multiple of its alignment, which its place shows. */
static size_t size_from_layout(size_t value_offset, size_t tag_offset)
{
	size_t alignment = value_offset % (2 * WORD) == 0 && value_offset > 0 ? 2 * WORD : WORD;
	size_t end = value_offset + 2 * WORD;

	if (tag_offset + sizeof(int32_t) > end)
		end = tag_offset + sizeof(int32_t);
	return (end + alignment - 1) / alignment * alignment;
}

void terra_calibrate_scalar(const struct terra_torch_abi *abi, struct terra_offsets *out)
{
	double real = 1.37, two = 2, five = 5, complex[2] = {2.71, -8.25};
	int64_t integer = 0x1234567890abcdef;
	uint8_t truth = 1;
	struct scalar_sample samples[N_SCALARS], factors[2];
	size_t value, tag, size;

	read_scalar(abi, "float64", &real, &samples[AS_DOUBLE]);
	read_scalar(abi, "int64", &integer, &samples[AS_INT]);
	read_scalar(abi, "complex128", complex, &samples[AS_COMPLEX]);
	read_scalar(abi, "bool", &truth, &samples[AS_BOOL]);
	for (size_t i = 0; i < N_SCALARS; i++)
		if (!samples[i].valid)
			return;
	value = find_value(&samples[AS_DOUBLE], &real, sizeof(real));
	if (value == SIZE_MAX || find_value(&samples[AS_INT], &integer, sizeof(integer)) != value ||
	    find_value(&samples[AS_COMPLEX], complex, sizeof(complex)) != value)
		return;
	tag = find_tag(samples, value);
	if (tag == SIZE_MAX)
		return;
	size = size_from_layout(value, tag);
	read_scalar(abi, "float64", &two, &factors[0]);
	read_scalar(abi, "float64", &five, &factors[1]);
	if (!size_is(abi, &factors[0], &factors[1], size))
		return;
	out->scalar.size = (uint16_t)size;
	out->scalar.tag_offset = (uint16_t)tag;
	out->scalar.value_offset = (uint16_t)value;
	out->scalar.tag_double = (int8_t)tag_at(&samples[AS_DOUBLE], tag);
	out->scalar.tag_int = (int8_t)tag_at(&samples[AS_INT], tag);
	out->scalar.tag_complex = (int8_t)tag_at(&samples[AS_COMPLEX], tag);
	out->scalar.tag_bool = (int8_t)tag_at(&samples[AS_BOOL], tag);
}

void terra_calibrate_unsigned_scalar(const struct terra_torch_abi *abi, struct terra_offsets *out)
{
	/* Only a number that does not fit a signed one is kept as unsigned. */
	uint64_t large = 0xfedcba9876543210;
	struct scalar_sample sample;

	if (out->scalar.size == 0)
		return;
	read_scalar(abi, "uint64", &large, &sample);
	if (sample.valid && find_value(&sample, &large, sizeof(large)) == out->scalar.value_offset)
		out->scalar.tag_unsigned = (int8_t)tag_at(&sample, out->scalar.tag_offset);
	if (out->scalar.tag_unsigned == out->scalar.tag_int)
		out->scalar.tag_unsigned = -1;
}
