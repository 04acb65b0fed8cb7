/* framework_internal.h - the loaded library, shared by framework.c and framework_call.c. */
#ifndef TERRA_GRAPHOPT_FRAMEWORK_INTERNAL_H
#define TERRA_GRAPHOPT_FRAMEWORK_INTERNAL_H

#include <stdint.h>

#include "graphopt/framework.h"
#include "probes/op.h"

struct framework_op {
	const struct terra_op *op;
	void *entry;
	struct framework_op *next;
	char name[]; /* as asked for */
};

struct framework {
	void *handle;
	struct terra_op_table *table;
	char build_id[41];
	char capability[16];
	struct framework_op *ops;
	int32_t dtype_code[3];
	int32_t cpu;
	/* Exported functions. Those of the C ABI return 0 when all went well. */
	int32_t (*empty_strided)(int64_t ndim, const int64_t *sizes, const int64_t *strides, int32_t dtype,
				 int32_t device_type, int32_t device_index, void **out);
	int32_t (*from_blob)(void *data, int64_t ndim, const int64_t *sizes, const int64_t *strides, int64_t offset,
			     int32_t dtype, int32_t device_type, int32_t device_index, void **out);
	int32_t (*delete_tensor)(void *tensor);
	int32_t (*data_ptr)(void *tensor, void **out);
	int32_t (*numel)(void *tensor, int64_t *out);
	/* The OpenMP that the framework is linked with: not all releases export a function of their own that runs a C one. */
	void (*parallel)(void (*fn)(void *data), void *data, unsigned threads, unsigned flags);
	int (*team_size)(void);
	int (*team_member)(void);
	void (*set_num_threads)(int threads);
	int (*get_num_threads)(void);
	/* Sets the calling thread's number of threads in the vendor's library, returns what it was. NULL: it has none. Once
	 * the framework's number has been set, the vendor's functions start threads for 512 elements too. */
	int (*vendor_threads)(int n);
	void **(*default_generator)(void); /* a reference to the intrusive_ptr */
	void (*set_current_seed)(void *generator, uint64_t seed);
	void *(*operator_new)(size_t size);
	const struct framework_op *to_scalar; /* aten::_local_scalar_dense */
};

/* A c10::Scalar of the number, made by the library, as it lies in memory; bytes that it did not write are 1, so that
 * the same bytes are an engaged std::optional<Scalar> wherever its flag is. */
struct framework_scalar {
	_Alignas(16) uint8_t bytes[64];
};
int framework_make_scalar(const struct framework *fw, double value, struct framework_scalar *out);

#endif
