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

/* What else a TensorImpl leads to. */
struct terra_parts {
	uint64_t storage, autograd;
	uint8_t has_storage, has_autograd; /* the field could be read */
};

TERRA_INLINE void terra_put_storage(struct terra_decoder *d, struct terra_packed_tensor *t,
				    const struct terra_parts *parts)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t bytes;

	t->flags |= TERRA_TENSOR_NO_STORAGE;
	if (!parts->has_storage)
		return;
	t->storage = parts->storage;
	if (!t->storage) {
		t->flags &= ~TERRA_TENSOR_NO_STORAGE;
		return;
	}
	if (terra_read_image(d, t->storage, d->extents->storage) ||
	    terra_image_field(d, &off->data_ptr, &t->storage_data) || terra_image_field(d, &off->nbytes, &bytes))
		return;
	t->flags &= ~TERRA_TENSOR_NO_STORAGE;
	if (!(bytes >> 63))
		t->storage_bytes = bytes;
}

#define TERRA_COPIED_DIMS 8

_Static_assert(TERRA_COPIED_DIMS * 8 <= TERRA_IMAGE_BUFFER - TERRA_IMAGE_BYTES, "at any place of the image");
_Static_assert(TERRA_COPIED_DIMS >= TERRA_PACKED_DIMS, "no more are recorded");

/* All that may be there, which is quicker than as many as there are; what is too much is written over, or left behind. */
TERRA_INLINE void terra_copy_dims(const struct terra_decoder *d, int64_t *to, const struct terra_field *field)
{
	const uint64_t *from = TERRA_IMAGE_AT(d, field->offset);

	for (uint32_t i = 0; i < TERRA_COPIED_DIMS; i++)
		to[i] = (int64_t)from[i];
}

/* Sizes and strides: in the structure for few dimensions, else in one block behind a pointer. */
TERRA_INLINE int terra_put_dims(struct terra_decoder *d, struct terra_packed_tensor *t, uint64_t ndim)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t dims = ndim < TERRA_PACKED_DIMS ? ndim : TERRA_PACKED_DIMS, sizes;
	uint32_t there = 8 * (off->inline_dims ? off->inline_dims : 1);

	if (!off->sizes.known || !off->strides.known)
		return -1;
	if (ndim > off->inline_dims && ndim > 1) {
		if (!off->inline_dims || terra_image_field(d, &off->sizes, &sizes) ||
		    TERRA_READ(t->geometry, dims * 8, sizes) || TERRA_READ(t->geometry + dims, dims * 8, sizes + 8 * ndim))
			return -1;
	} else {
		if (off->sizes.offset + there >= TERRA_IMAGE_BYTES || off->strides.offset + there >= TERRA_IMAGE_BYTES)
			return -1;
		terra_copy_dims(d, t->geometry, &off->sizes);
		terra_copy_dims(d, t->geometry + dims, &off->strides);
	}
	t->dims = dims;
	return 0;
}

TERRA_INLINE void terra_put_geometry(struct terra_decoder *d, struct terra_packed_tensor *t)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t ndim = 0, numel = 0, offset = 0;

	if (terra_image_field(d, &off->ndim, &ndim) || terra_image_field(d, &off->numel, &numel) ||
	    terra_image_field(d, &off->storage_offset, &offset) || ndim > 255 || terra_put_dims(d, t, ndim))
		t->flags |= TERRA_TENSOR_NO_GEOMETRY;
	t->ndim = ndim <= 255 ? ndim : 255;
	t->numel = numel;
	t->storage_offset = offset;
}

TERRA_INLINE void terra_put_type(struct terra_decoder *d, struct terra_packed_tensor *t)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t meta, word;

	if (!terra_image_field(d, &off->data_type, &meta) && meta < TERRA_MAX_TYPE_META)
		t->dtype = off->scalar_type[meta & (TERRA_MAX_TYPE_META - 1)];
	if (!terra_image_field(d, &off->device_type, &word))
		t->device_type = (int8_t)word;
	if (!terra_image_field(d, &off->device_index, &word))
		t->device_index = (int8_t)word;
}

TERRA_INLINE uint8_t terra_requires_grad(struct terra_decoder *d, const struct terra_parts *parts)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t flag, grad_fn;

	if (!parts->has_autograd)
		return 0xff;
	if (!parts->autograd)
		return 0;
	if (terra_read_image(d, parts->autograd, d->extents->autograd) ||
	    terra_image_field(d, &off->requires_grad, &flag) || terra_image_field(d, &off->grad_fn, &grad_fn))
		return 0xff;
	if (!d->at->node)
		d->at->node = grad_fn;
	return (flag & 0xff) || grad_fn;
}

/* The undefined tensor has a type that no other has, and in some releases no dispatch keys. */
TERRA_INLINE uint8_t terra_is_defined(const struct terra_decoder *d)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t word;

	if (off->undefined_type != 0xffff && !terra_image_field(d, &off->data_type, &word))
		return word != off->undefined_type;
	return terra_image_field(d, &off->key_set, &word) || word != 0;
}

TERRA_INLINE void terra_put_fields(struct terra_decoder *d, struct terra_packed_tensor *t)
{
	struct terra_parts parts;

	parts.has_storage = !terra_image_field(d, &d->offsets->storage, &parts.storage);
	parts.has_autograd = !terra_image_field(d, &d->offsets->autograd_meta, &parts.autograd);
	terra_put_geometry(d, t);
	terra_put_type(d, t);
	terra_put_storage(d, t, &parts); /* the image is another from here on */
	t->requires_grad = terra_requires_grad(d, &parts);
}

TERRA_NOINLINE int terra_put_tensor(struct terra_decoder *d, uint64_t impl)
{
	struct terra_packed_tensor *t;

	terra_make_room(d);
	t = TERRA_AT(d, struct terra_packed_tensor, d->at->pos);
	t->impl = impl;
	t->storage = t->storage_data = t->storage_bytes = 0;
	t->numel = t->storage_offset = 0;
	t->ndim = t->requires_grad = t->flags = t->dims = 0;
	t->dtype = t->device_type = t->device_index = -1;
	t->defined = impl != 0;
	if (terra_read_image(d, impl, d->extents->tensor)) {
		if (impl) {
			t->flags = TERRA_TENSOR_NO_STORAGE | TERRA_TENSOR_NO_GEOMETRY;
			t->requires_grad = 0xff;
		}
	} else {
		t->defined = terra_is_defined(d);
		if (t->defined)
			terra_put_fields(d, t);
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
