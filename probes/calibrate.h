/* calibrate.h - finding the fields of libtorch's structures in a process that has the library; used by offsets.c.
 *
 * Each stage fills its part of the result and leaves what it could not find unknown. The later stages call ops, which
 * may throw: C code cannot catch that and the process ends, so offsets.c runs them in a child and keeps what the stages
 * before had found.
 */
#ifndef TERRA_PROBES_CALIBRATE_H
#define TERRA_PROBES_CALIBRATE_H

#include <malloc.h>

#include "probes/offsets.h"

/* The stable C ABI that ahead-of-time compiled models use. A handle points to an at::Tensor. */
struct terra_torch_abi {
	void *library; /* dlopen handle */
	int32_t (*empty_strided)(int64_t ndim, const int64_t *sizes, const int64_t *strides, int32_t dtype,
				 int32_t device_type, int32_t device_index, void **handle);
	int32_t (*from_blob)(void *data, int64_t ndim, const int64_t *sizes, const int64_t *strides, int64_t offset,
			     int32_t dtype, int32_t device_type, int32_t device_index, void **handle);
	int32_t (*undefined)(void **handle);
	int32_t (*delete_tensor)(void *handle);
	int32_t (*get_storage_size)(void *handle, int64_t *bytes);
	int32_t cpu;
	int32_t meta; /* -1: the library has no meta device */
	int32_t float32;
};

/* 0; -ENOSYS when the library lacks a function, whose name *missing then is. */
int terra_torch_abi_resolve(void *library, struct terra_torch_abi *abi, const char **missing);

/* ScalarType number of a dtype by its name ("int64"), -1 when the library does not have it. */
int32_t terra_torch_dtype(const struct terra_torch_abi *abi, const char *name);

/* TensorImpl and StorageImpl. 0 or -errno when no tensor can be made. */
int terra_calibrate_tensor(const struct terra_torch_abi *abi, struct terra_offsets *out);
/* data_type, device and key_set, which take tensors of all dtypes and of two devices. */
void terra_calibrate_types(const struct terra_torch_abi *abi, struct terra_offsets *out);
/* requires_grad and grad_fn. Needs autograd_meta's place, which it finds. */
void terra_calibrate_autograd(const struct terra_torch_abi *abi, struct terra_offsets *out);
/* The fields of autograd's Nodes and the thread-local words about them. Needs terra_calibrate_autograd's. */
void terra_calibrate_node(const struct terra_torch_abi *abi, struct terra_offsets *out);
/* The name of an operator of TorchScript's registry, which has all of the dispatcher's. */
void terra_calibrate_operators(const struct terra_torch_abi *abi, struct terra_offsets *out);
/* c10::Scalar but for unsigned values, which older versions refuse. */
void terra_calibrate_scalar(const struct terra_torch_abi *abi, struct terra_offsets *out);
void terra_calibrate_unsigned_scalar(const struct terra_torch_abi *abi, struct terra_offsets *out);

/* A heap object of the library as bytes. `size` is what may be read, at most SNAPSHOT_SIZE. */
#define TERRA_SNAPSHOT_SIZE 512
struct terra_snapshot {
	size_t size;
	union {
		uint8_t bytes[TERRA_SNAPSHOT_SIZE];
		uint64_t words[TERRA_SNAPSHOT_SIZE / sizeof(uint64_t)];
	};
};

/* Copies a block that came from malloc. Its own size is the limit, so that a neighbour is never taken for it. */
void terra_snapshot_take(const void *block, struct terra_snapshot *snapshot);
/* False when `address` can't be the start of such a block; reads it through the kernel, so it may be anything. */
bool terra_read_memory(uint64_t address, void *buffer, size_t size);

/* A tensor without dimensions over the caller's memory; NULL when the library does not make it. */
void *terra_new_scalar_tensor(const struct terra_torch_abi *abi, void *data, int32_t dtype);

/* The TensorImpl that a handle's tensor points to. */
const void *terra_tensor_impl(const void *handle);

#endif
