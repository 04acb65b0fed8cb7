/* framework.h - the framework's own library in this process, called from C.
 *
 * Used offline only (terra-opt and tests): kernels are compared with what the framework itself computes. Ops are called
 * through the same entry points that a program calls (at::_ops::X::call), with arguments placed as the op table says.
 * Only calls that can't throw on valid input are made; there is unwind information for these frames all the same, so an
 * exception ends the process with the framework's message.
 *
 * One framework per process; not thread-safe.
 */
#ifndef TERRA_GRAPHOPT_FRAMEWORK_H
#define TERRA_GRAPHOPT_FRAMEWORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct framework;

/* A tensor: what `at::Tensor const&` points to. */
typedef void *framework_tensor;

/* Loads the library (and what it needs) and calibrates what its headers would tell. Returns 0, or -errno with a message
 * that says what to do, e.g. which library of a CUDA build was not found and that LD_LIBRARY_PATH leads to it. */
int framework_open(const char *libtorch_path, struct framework **out, char *err, size_t err_size);
/* The library stays mapped (it can't be unloaded); only our own memory is freed. */
void framework_close(struct framework *fw);
/* dlopen handle, for terra_plan_link. */
void *framework_handle(const struct framework *fw);
const char *framework_build_id(const struct framework *fw); /* hex */
/* The vector capability that the framework chose for this CPU, e.g. "AVX2". */
const char *framework_capability(const struct framework *fw);

void framework_set_threads(struct framework *fw, int threads);
int framework_threads(const struct framework *fw);
/* Runs fn over [0, n) in chunks of at least grain, on the framework's own threads, the way replay runs kernels. */
void framework_parallel_for(const struct framework *fw, int64_t n, int64_t grain,
			    void (*fn)(void *ctx, int64_t begin, int64_t end), void *ctx);
/* Seeds the default CPU generator. */
void framework_manual_seed(const struct framework *fw, uint64_t seed);

enum framework_dtype { FRAMEWORK_FLOAT32, FRAMEWORK_FLOAT64, FRAMEWORK_INT64 };

/* New tensors; NULL when memory is short. empty: uninitialised, dense in the order of `strides`. */
framework_tensor framework_empty(const struct framework *fw, int ndim, const int64_t *sizes, const int64_t *strides,
				 enum framework_dtype dtype);
/* A view of memory that the caller keeps. */
framework_tensor framework_from_blob(const struct framework *fw, void *data, int ndim, const int64_t *sizes,
				     const int64_t *strides, enum framework_dtype dtype);
/* A 0-dim double tensor: how Python numbers reach the Tensor overloads of arithmetic. */
framework_tensor framework_number(const struct framework *fw, double value);
void framework_free(const struct framework *fw, framework_tensor tensor);
void *framework_data(const struct framework *fw, framework_tensor tensor);
int64_t framework_numel(const struct framework *fw, framework_tensor tensor);

/* One argument, in schema order. */
enum framework_arg_type {
	FRAMEWORK_ARG_TENSOR,
	FRAMEWORK_ARG_NUMBER,
	FRAMEWORK_ARG_FLOAT, /* a number that becomes a 0-dim float32 tensor */
	FRAMEWORK_ARG_CONSTANT,
	FRAMEWORK_ARG_ABSENT
};
struct framework_arg {
	enum framework_arg_type type;
	framework_tensor tensor; /* TENSOR */
	double number; /* FLOAT, or NUMBER: becomes a Scalar, an optional Scalar, a double, or a 0-dim double tensor, as the
			  op's signature wants */
	const char *constant; /* CONSTANT: as in a plan line without its #: a decimal number, or text in quotes */
};

struct framework_op;

/* The entry point of "aten::mul.Tensor". Returns 0, -ENOENT when the library has no such op, -ENOTSUP when its
 * signature has a type that can't be passed from here. */
int framework_op_find(struct framework *fw, const char *name, const struct framework_op **out, char *err,
		      size_t err_size);
/* Calls it. *result is a new tensor to be freed, or, for an op in place, the handle of argument 0 (not a new one).
 * Returns 0 or -EINVAL when the arguments do not fit the signature. */
int framework_call(const struct framework *fw, const struct framework_op *op, const struct framework_arg *args,
		   size_t n_args, framework_tensor *result);

#endif
