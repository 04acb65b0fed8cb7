/* offsets.h - where the fields of libtorch's tensor structures lie, per library.
 *
 * Nothing here is assumed: a child process loads the library once, makes tensors with distinctive sizes, strides,
 * offsets and dtypes through the exported C ABI and finds the words in the structures (see offsets.c for what each
 * field takes to count as found). The result is cached by build-id. A field that was not found has `known` 0 and must
 * not be read; the record then says "could not be read".
 *
 * The structure is plain data without pointers, so that it can be copied into a BPF map as it is.
 */
#ifndef TERRA_PROBES_OFFSETS_H
#define TERRA_PROBES_OFFSETS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One field: `width` bytes at `offset` bytes from the start of its structure. */
struct terra_field {
	uint16_t offset;
	uint8_t width;
	uint8_t known;
};

/* c10::Scalar. Found by reading tensors of known dtypes back with `aten::_local_scalar_dense`, which returns one.
 * `size` 0: not known, so no Scalar can be read. A tag that was not seen is -1. */
struct terra_scalar_layout {
	uint16_t size;         /* bytes of a Scalar: the distance in arrays; optional<Scalar> has its flag there */
	uint16_t tag_offset;   /* 4 bytes */
	uint16_t value_offset; /* double, int64_t, or two doubles */
	int8_t tag_double, tag_int, tag_unsigned, tag_complex, tag_bool;
};

/* A word in the library's block of thread-local storage. */
struct terra_tls_field {
	uint32_t offset;
	uint32_t known;
};

#define TERRA_MAX_TYPE_META 64
#define TERRA_DTYPE_UNKNOWN (-1)

struct terra_offsets {
	/* c10::TensorImpl. An argument of kind TENSOR points to a word that holds the TensorImpl's address. */
	struct terra_field storage;        /* StorageImpl * (may be NULL) */
	struct terra_field autograd_meta;  /* AutogradMetaInterface * (NULL: requires_grad is false) */
	struct terra_field ndim;           /* number of dimensions, 8 bytes */
	struct terra_field sizes;          /* ndim <= inline_dims: int64_t[ndim] right here; else see below */
	struct terra_field strides;        /* likewise */
	struct terra_field storage_offset; /* elements, int64_t */
	struct terra_field numel;          /* int64_t */
	struct terra_field data_type;      /* caffe2::TypeMeta: index into scalar_type[] */
	struct terra_field device_type;    /* int8_t, c10::DeviceType */
	struct terra_field device_index;   /* int8_t, -1 for the current device (and the CPU) */
	struct terra_field key_set;        /* 8 bytes of c10::DispatchKeySet */

	/* The undefined tensor is one static object whose data_type is an index of its own: this one. Its key set is
	 * not zero in every version, so do not test that. 0xffff: not known. */
	uint16_t undefined_type;

	/* More dimensions than this: the word at `sizes` is a pointer to int64_t[2 * ndim], sizes first, then strides.
	 * 0: not known, so only read tensors of at most 1 dimension. */
	uint32_t inline_dims;

	/* c10::StorageImpl */
	struct terra_field data_ptr;       /* void * */
	struct terra_field nbytes;         /* size in bytes; top bit set: symbolic, no number */

	/* c10::AutogradMeta. requires_grad is `requires_grad` != 0 || `grad_fn` != NULL. */
	struct terra_field requires_grad;  /* bool */
	struct terra_field grad_fn;        /* Node * */

	/* torch::autograd::Node, numbered in the order in which a thread makes them. Thread-local: the Node that the
	 * engine evaluates (NULL: none), and the number that the thread's next Node gets. */
	struct terra_field node_sequence;
	struct terra_tls_field current_node;
	struct terra_tls_field next_sequence;

	/* torch::jit::Operator: a word that leads to where a std::string, {characters, length, ...}, holds its name. */
	struct terra_field operator_definition;
	struct terra_field definition_name;

	/* TypeMeta index to c10::ScalarType, TERRA_DTYPE_UNKNOWN where no tensor of it could be made. */
	int8_t scalar_type[TERRA_MAX_TYPE_META];
	/* Bytes per element of a ScalarType, 0 where not known. */
	uint8_t element_size[TERRA_MAX_TYPE_META];

	struct terra_scalar_layout scalar;
};

/* Offsets of the libtorch_cpu.so at `libtorch_path`. With `use_cache` a result stored under $XDG_CACHE_HOME/terra (or
 * ~/.cache/terra) for the same build-id is taken; otherwise a child process loads the library (about a second) and the
 * result is stored. The calling process never loads it. Call it before other threads exist: it forks.
 * Returns 0 (single fields may still be unknown) or -errno with a message in `err`. */
int terra_offsets_load(const char *libtorch_path, bool use_cache, struct terra_offsets *out, char *err,
		       size_t err_size);

/* The child's half: `handle` is a dlopen handle of libtorch_cpu.so in this process. Makes and frees a few small
 * tensors. Returns 0 or -errno with a message. For processes that have the library anyway. */
int terra_offsets_calibrate(void *handle, struct terra_offsets *out, char *err, size_t err_size);

/* The names of the fields that are not known, as "strides, grad_fn" ("" when all are), cut off where they do not fit.
 * Returns how many there are. */
size_t terra_offsets_missing(const struct terra_offsets *offsets, char *out, size_t size);

/* What a trace says of them. False when all are known, and there is nothing to say. */
bool terra_offsets_remark(const struct terra_offsets *offsets, char *out, size_t size);

#endif
