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

_Static_assert(TERRA_IMAGE_DIMS >= TERRA_PACKED_DIMS, "no more are recorded");

/* All that may be there, which is quicker than as many as there are; what is too much is written over, or left behind. */
TERRA_INLINE void terra_copy_dims(const struct terra_decoder *d, int64_t *to, uint32_t word)
{
	const uint64_t *from = TERRA_IMAGE_WORD(d, word);

	for (uint32_t i = 0; i < TERRA_IMAGE_DIMS; i++)
		to[i] = (int64_t)from[i];
}

/* Sizes and strides: in the structure for few dimensions, else in one block behind a pointer. */
TERRA_INLINE int terra_put_dims(struct terra_decoder *d, struct terra_packed_tensor *t, uint64_t ndim)
{
	uint64_t dims = ndim < TERRA_PACKED_DIMS ? ndim : TERRA_PACKED_DIMS, sizes;

	if (ndim > d->images->inline_dims && ndim > 1) {
		sizes = *TERRA_IMAGE_WORD(d, d->images->sizes);
		if (ndim > 255 || !d->images->inline_dims || TERRA_READ(t->geometry, dims * 8, sizes) ||
		    TERRA_READ(t->geometry + dims, dims * 8, sizes + 8 * ndim))
			return -1;
	} else {
		terra_copy_dims(d, t->geometry, d->images->sizes);
		terra_copy_dims(d, t->geometry + dims, d->images->strides);
	}
	t->dims = dims;
	return 0;
}

TERRA_INLINE void terra_put_geometry(struct terra_decoder *d, struct terra_packed_tensor *t)
{
	uint64_t ndim = terra_image_field(d, &d->images->ndim);

	t->ndim = ndim <= 255 ? ndim : 255;
	t->numel = terra_image_field(d, &d->images->numel);
	t->storage_offset = terra_image_field(d, &d->images->storage_offset);
	if (!(t->flags & TERRA_TENSOR_NO_GEOMETRY) && terra_put_dims(d, t, ndim))
		t->flags |= TERRA_TENSOR_NO_GEOMETRY;
}

TERRA_INLINE void terra_put_type(struct terra_decoder *d, struct terra_packed_tensor *t)
{
	const struct terra_images *images = d->images;
	uint64_t meta = terra_image_field(d, &images->data_type);

	if (!images->data_type.unknown && meta < TERRA_MAX_TYPE_META)
		t->dtype = d->offsets->scalar_type[meta & (TERRA_MAX_TYPE_META - 1)];
	/* -1 where it is not known. */
	t->device_type = (int8_t)(terra_image_field(d, &images->device_type) | -(uint64_t)images->device_type.unknown);
	t->device_index = (int8_t)(terra_image_field(d, &images->device_index) | -(uint64_t)images->device_index.unknown);
}

/* The image is another from here on. */
TERRA_INLINE void terra_put_storage(struct terra_decoder *d, struct terra_packed_tensor *t)
{
	uint64_t bytes;

	if (!t->storage)
		return;
	if (terra_read_image(d, t->storage, d->images->storage)) {
		t->flags |= TERRA_TENSOR_NO_STORAGE;
		return;
	}
	t->storage_data = terra_image_field(d, &d->images->data_ptr);
	bytes = terra_image_field(d, &d->images->nbytes);
	if (!(bytes >> 63))
		t->storage_bytes = bytes;
}

TERRA_INLINE uint8_t terra_requires_grad(struct terra_decoder *d, uint64_t autograd)
{
	uint64_t grad_fn;

	if (d->images->autograd_pointer.unknown)
		return 0xff;
	if (!autograd)
		return 0;
	if (terra_read_image(d, autograd, d->images->autograd))
		return 0xff;
	grad_fn = terra_image_field(d, &d->images->grad_fn);
	if (!d->at->node)
		d->at->node = grad_fn;
	return (terra_image_field(d, &d->images->requires_grad) & 0xff) || grad_fn;
}

TERRA_INLINE void terra_put_fields(struct terra_decoder *d, struct terra_packed_tensor *t)
{
	uint64_t autograd = terra_image_field(d, &d->images->autograd_pointer);

	t->flags = (uint8_t)d->images->flags;
	t->storage = terra_image_field(d, &d->images->storage_pointer);
	terra_put_geometry(d, t);
	terra_put_type(d, t);
	terra_put_storage(d, t);
	t->requires_grad = terra_requires_grad(d, autograd);
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
	t->defined = 0;
	if (impl && terra_read_image(d, impl, d->images->tensor)) {
		t->defined = 1;
		t->flags = TERRA_TENSOR_NO_STORAGE | TERRA_TENSOR_NO_GEOMETRY;
		t->requires_grad = 0xff;
	} else if (impl && terra_image_field(d, &d->images->defined) != d->images->undefined) {
		t->defined = 1;
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
