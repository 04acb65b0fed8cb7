/* From offsets to what is read together; see images.h. */
#include "probes/images.h"

#include "probes/record.h"

static void widen(uint16_t *extent, uint32_t end)
{
	if (end > *extent)
		*extent = (uint16_t)end;
}

/* Takes the field in, and the structure's extent with it. Fields are aligned as C++ aligns them. */
static struct terra_image_field take(const struct terra_field *field, uint16_t *extent)
{
	uint32_t end = (uint32_t)field->offset + field->width, shift = field->offset % 8u;
	struct terra_image_field out = { .word = field->offset / 8, .shift = (uint8_t)(8 * shift) };

	out.unknown = !field->known || !field->width || shift + field->width > 8 || end >= TERRA_IMAGE_BYTES;
	if (out.unknown)
		return (struct terra_image_field){ .unknown = 1 };
	out.mask = field->width == 8 ? UINT64_MAX : (1ULL << 8 * field->width) - 1;
	widen(extent, end);
	return out;
}

/* As many as lie in the structure itself. */
static bool take_dims(const struct terra_offsets *offsets, const struct terra_field *field, uint16_t *word, uint16_t *extent)
{
	uint32_t dims = offsets->inline_dims ? offsets->inline_dims : 1, end = field->offset + 8 * dims;

	if (!field->known || field->offset % 8 || dims > TERRA_IMAGE_DIMS || end >= TERRA_IMAGE_BYTES)
		return false;
	*word = field->offset / 8;
	widen(extent, end);
	return true;
}

/* The undefined tensor has a type that no other has, and in some releases no dispatch keys. */
static void take_defined(const struct terra_offsets *offsets, struct terra_images *images)
{
	if (offsets->undefined_type != 0xffff && offsets->data_type.known) {
		images->defined = take(&offsets->data_type, &images->tensor);
		images->undefined = offsets->undefined_type;
	} else {
		images->defined = take(&offsets->key_set, &images->tensor);
	}
	if (images->defined.unknown)
		images->undefined = UINT64_MAX;
}

static void take_geometry(const struct terra_offsets *offsets, struct terra_images *images)
{
	bool known;

	images->ndim = take(&offsets->ndim, &images->tensor);
	images->numel = take(&offsets->numel, &images->tensor);
	images->storage_offset = take(&offsets->storage_offset, &images->tensor);
	images->inline_dims = offsets->inline_dims;
	known = take_dims(offsets, &offsets->sizes, &images->sizes, &images->tensor) &&
		take_dims(offsets, &offsets->strides, &images->strides, &images->tensor);
	if (!known || images->ndim.unknown || images->numel.unknown || images->storage_offset.unknown)
		images->flags |= TERRA_TENSOR_NO_GEOMETRY;
}

static void take_storage(const struct terra_offsets *offsets, struct terra_images *images)
{
	images->storage_pointer = take(&offsets->storage, &images->tensor);
	images->data_ptr = take(&offsets->data_ptr, &images->storage);
	images->nbytes = take(&offsets->nbytes, &images->storage);
	if (images->storage_pointer.unknown || images->data_ptr.unknown || images->nbytes.unknown)
		images->flags |= TERRA_TENSOR_NO_STORAGE;
}

struct terra_images terra_images_of(const struct terra_offsets *offsets)
{
	struct terra_images images = { 0 };

	take_defined(offsets, &images);
	take_geometry(offsets, &images);
	take_storage(offsets, &images);
	images.data_type = take(&offsets->data_type, &images.tensor);
	images.device_type = take(&offsets->device_type, &images.tensor);
	images.device_index = take(&offsets->device_index, &images.tensor);
	images.autograd_pointer = take(&offsets->autograd_meta, &images.tensor);
	images.requires_grad = take(&offsets->requires_grad, &images.autograd);
	images.grad_fn = take(&offsets->grad_fn, &images.autograd);
	if (images.requires_grad.unknown || images.grad_fn.unknown)
		images.autograd_pointer.unknown = 1;
	return images;
}
