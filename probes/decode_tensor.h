/* decode_tensor.h - part of decode.h: tensors, and lists of them in all the ways that they are passed. */
#ifndef TERRA_PROBES_DECODE_TENSOR_H
#define TERRA_PROBES_DECODE_TENSOR_H

#include "probes/decode_chunk.h"

/* How the elements of a tensor list are stored. */
enum terra_list_mode {
	TERRA_LIST_TENSORS,    /* at::Tensor: a TensorImpl pointer */
	TERRA_LIST_REFERENCES, /* pointers to at::Tensor */
	TERRA_LIST_IVALUES,    /* c10::IValue: payload, then a 4-byte tag */
};

/* c10::IValue tags in use here, the first two of its enumeration since it exists. */
#define TERRA_IVALUE_NONE 0
#define TERRA_IVALUE_TENSOR 1

/* An argument brought into three words, wherever the ABI put it; objects that are passed by reference are read. */
struct terra_object {
	uint64_t address; /* 0: it was in registers */
	uint64_t w[3];
};

TERRA_INLINE void terra_put_storage(struct terra_decoder *d, struct terra_packed_tensor *t, uint64_t impl)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t storage, bytes;

	t->storage = 0;
	t->storage_data = 0;
	t->storage_bytes = 0;
	if (terra_read_field(impl, &off->storage, &storage)) {
		t->flags |= TERRA_TENSOR_NO_STORAGE;
		return;
	}
	t->storage = storage;
	if (!storage)
		return;
	if (terra_read_field(storage, &off->data_ptr, &t->storage_data) ||
	    terra_read_field(storage, &off->nbytes, &bytes))
		t->flags |= TERRA_TENSOR_NO_STORAGE;
	else if (!(bytes >> 63))
		t->storage_bytes = bytes;
}

/* Sizes and strides: in the structure for few dimensions, else in one block behind a pointer. */
TERRA_INLINE int terra_put_dims(struct terra_packed_tensor *t, uint64_t impl, const struct terra_offsets *off,
				uint64_t ndim)
{
	uint64_t sizes = impl + off->sizes.offset, strides = impl + off->strides.offset;
	uint64_t dims = ndim < TERRA_PACKED_DIMS ? ndim : TERRA_PACKED_DIMS;

	if (!off->sizes.known || !off->strides.known)
		return -1;
	if (ndim > off->inline_dims && ndim > 1) {
		if (!off->inline_dims || TERRA_READ(&sizes, 8, impl + off->sizes.offset))
			return -1;
		strides = sizes + 8 * ndim;
	}
	if (dims && (TERRA_READ(t->geometry, dims * 8, sizes) || TERRA_READ(t->geometry + dims, dims * 8, strides)))
		return -1;
	t->dims = dims;
	return 0;
}

TERRA_INLINE void terra_put_geometry(struct terra_decoder *d, struct terra_packed_tensor *t, uint64_t impl)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t ndim = 0, numel = 0, offset = 0;

	t->ndim = 0;
	t->dims = 0;
	if (terra_read_field(impl, &off->ndim, &ndim) || terra_read_field(impl, &off->numel, &numel) ||
	    terra_read_field(impl, &off->storage_offset, &offset) || ndim > 255 || terra_put_dims(t, impl, off, ndim))
		t->flags |= TERRA_TENSOR_NO_GEOMETRY;
	t->ndim = ndim <= 255 ? ndim : 255;
	t->numel = numel;
	t->storage_offset = offset;
}

TERRA_INLINE void terra_put_type(struct terra_decoder *d, struct terra_packed_tensor *t, uint64_t impl)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t meta, word;

	t->dtype = -1;
	t->device_type = -1;
	t->device_index = -1;
	if (!terra_read_field(impl, &off->data_type, &meta) && meta < TERRA_MAX_TYPE_META)
		t->dtype = off->scalar_type[meta & (TERRA_MAX_TYPE_META - 1)];
	if (!terra_read_field(impl, &off->device_type, &word))
		t->device_type = (int8_t)word;
	if (!terra_read_field(impl, &off->device_index, &word))
		t->device_index = (int8_t)word;
}

TERRA_INLINE uint8_t terra_requires_grad(struct terra_decoder *d, uint64_t impl)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t meta, flag, grad_fn;

	if (terra_read_field(impl, &off->autograd_meta, &meta))
		return 0xff;
	if (!meta)
		return 0;
	if (terra_read_field(meta, &off->requires_grad, &flag) || terra_read_field(meta, &off->grad_fn, &grad_fn))
		return 0xff;
	if (!d->at->node)
		d->at->node = grad_fn;
	return (flag & 0xff) || grad_fn;
}

/* The undefined tensor has a type that no other has, and in some releases no dispatch keys. */
TERRA_INLINE uint8_t terra_is_defined(const struct terra_offsets *off, uint64_t impl)
{
	uint64_t word;

	if (!impl)
		return 0;
	if (off->undefined_type != 0xffff && !terra_read_field(impl, &off->data_type, &word))
		return word != off->undefined_type;
	return terra_read_field(impl, &off->key_set, &word) || word != 0;
}

TERRA_NOINLINE int terra_put_tensor(struct terra_decoder *d, uint64_t impl)
{
	struct terra_packed_tensor *t;

	terra_make_room(d);
	t = TERRA_AT(d, struct terra_packed_tensor, d->at->pos);
	t->impl = impl;
	t->defined = terra_is_defined(d->offsets, impl);
	t->flags = 0;
	t->dims = 0;
	if (t->defined) {
		terra_put_storage(d, t, impl);
		terra_put_geometry(d, t, impl);
		terra_put_type(d, t, impl);
		t->requires_grad = terra_requires_grad(d, impl);
	} else {
		t->storage = t->storage_data = t->storage_bytes = 0;
		t->numel = t->storage_offset = 0;
		t->ndim = t->requires_grad = 0;
		t->dtype = t->device_type = t->device_index = -1;
	}
	d->at->pos += sizeof(*t) + 16 * (t->dims & 15);
	terra_value_header(d)->recorded++;
	return 0;
}

TERRA_INLINE uint64_t terra_list_element(struct terra_decoder *d, uint64_t at)
{
	uint64_t word[2] = { 0, 0 };

	if (d->at->mode == TERRA_LIST_IVALUES) {
		if (TERRA_READ(word, 16, at) || (uint32_t)word[1] != TERRA_IVALUE_TENSOR)
			return 0;
		return word[0];
	}
	if (TERRA_READ(word, 8, at))
		return 0;
	if (d->at->mode == TERRA_LIST_REFERENCES && TERRA_READ(word, 8, word[0]))
		return 0;
	return word[0];
}

static long terra_put_element(uint64_t index, void *ctx)
{
	struct terra_decoder *d = ctx;

	terra_put_tensor(d, terra_list_element(d, d->at->base + index * d->at->stride));
	return 0;
}

TERRA_INLINE void terra_put_tensors(struct terra_decoder *d, uint64_t base, uint64_t count, uint32_t stride,
				    uint32_t mode)
{
	if (count > TERRA_MAX_LIST) {
		terra_unreadable(d);
		return;
	}
	terra_value_header(d)->count = count;
	d->at->base = base;
	d->at->stride = stride;
	d->at->mode = mode;
	TERRA_LOOP(count, terra_put_element, d);
}

/* std::vector of elements of `stride` bytes, whose begin and end pointers are at `address`. */
TERRA_INLINE void terra_put_vector(struct terra_decoder *d, uint64_t address, uint32_t stride, uint32_t mode)
{
	uint64_t range[2] = { 0, 0 };

	if (TERRA_READ(range, 16, address) || range[1] < range[0]) {
		terra_unreadable(d);
		return;
	}
	terra_put_tensors(d, range[0], (range[1] - range[0]) / stride, stride, mode);
}

/* c10::List: an intrusive pointer to a ListImpl, whose vector of IValues follows the reference counts. The size of
 * those is where the first member of another such object lies, StorageImpl's data pointer. */
TERRA_INLINE void terra_put_ivalues(struct terra_decoder *d, uint64_t list)
{
	if (!list || !d->offsets->data_ptr.known) {
		terra_unreadable(d);
		return;
	}
	terra_put_vector(d, list + d->offsets->data_ptr.offset, 16, TERRA_LIST_IVALUES);
}

/* c10::IListRef {union {ArrayRef unboxed; List const *boxed; vector const *materialized}; tag}. */
TERRA_INLINE void terra_put_list_ref(struct terra_decoder *d, const struct terra_object *o)
{
	uint64_t list = 0;

	switch ((uint32_t)o->w[2]) {
	case 0:
		terra_put_tensors(d, o->w[0], o->w[1], 8, TERRA_LIST_TENSORS);
		break;
	case 1:
		if (TERRA_READ(&list, 8, o->w[0]))
			list = 0;
		terra_put_ivalues(d, list);
		break;
	case 2:
		terra_put_vector(d, o->w[0], 8, TERRA_LIST_REFERENCES);
		break;
	default:
		terra_unreadable(d);
	}
}

#endif
