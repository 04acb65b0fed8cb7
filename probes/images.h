/* images.h - libtorch's tensor structures as the decoder reads them: each in one piece, as a read costs more than its bytes, and
 * with nothing left to decide about a field but its value. Made of the offsets; plain data like them.
 */
#ifndef TERRA_PROBES_IMAGES_H
#define TERRA_PROBES_IMAGES_H

#include "probes/offsets.h"

#define TERRA_IMAGE_BYTES 512 /* of a structure's beginning; a field beyond counts as not known */
#define TERRA_IMAGE_DIMS 8    /* sizes and strides that are copied from a tensor, as TERRA_PACKED_DIMS */
#define TERRA_IMAGE_WORDS (TERRA_IMAGE_BYTES / 8 + TERRA_IMAGE_DIMS) /* so many sizes may be asked for at any place */

struct terra_image_field {
	uint64_t mask; /* 0 when it is not known: so is the value then */
	uint16_t word; /* of the image, in which it lies whole */
	uint8_t shift; /* bits */
	uint8_t unknown;
	uint32_t unused;
};

struct terra_images {
	/* Bytes to read: up to the last known field, and no byte further. */
	uint16_t tensor, storage, autograd;
	uint16_t sizes, strides; /* words of the tensor */
	uint16_t flags;		 /* of every tensor: TERRA_TENSOR_NO_STORAGE where a field is not known, and so on */
	uint32_t inline_dims;	 /* as in struct terra_offsets */
	/* c10::TensorImpl; undefined when the field `defined` is `undefined`, a value that it never has where that can't be told. */
	struct terra_image_field storage_pointer, autograd_pointer, ndim, numel, storage_offset, data_type, device_type,
	    device_index, defined;
	uint64_t undefined;
	struct terra_image_field data_ptr, nbytes;	  /* c10::StorageImpl */
	struct terra_image_field requires_grad, grad_fn; /* c10::AutogradMeta */
};

struct terra_images terra_images_of(const struct terra_offsets *offsets);

#endif
