/* check_internal.h - one comparison of a region with the framework: a trial. */
#ifndef TERRA_GRAPHOPT_CHECK_INTERNAL_H
#define TERRA_GRAPHOPT_CHECK_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "graphopt/check.h"
#include "graphopt/codegen_internal.h"

/* What the numbers of a trial are like. A chain fed with special values alone soon holds nothing but NaNs, so each kind
 * has its turn. */
enum check_values {
	CHECK_VALUES_ORDINARY, /* normal distribution */
	CHECK_VALUES_POSITIVE, /* in (0, 1], as second moments and probabilities are */
	CHECK_VALUES_MIXED,    /* ordinary, every eighth special */
	CHECK_VALUES_SPECIAL,  /* zeros, infinities, NaNs with payloads, denormals, ties, largest */
	CHECK_VALUES_BITS,     /* any 32 bits */
	CHECK_VALUES_COUNT
};

/* The domain is [rows, columns]; a broadcasting or strided input has one of these forms in it. All keep the dims in
 * order: others are not deferred by replay. */
enum check_form {
	CHECK_FORM_ROW,	   /* the same row for all: a bias */
	CHECK_FORM_COLUMN, /* one number for each row */
	CHECK_FORM_SLICE,  /* a part of longer rows */
	CHECK_FORM_STEP,   /* every second element */
	CHECK_FORM_COUNT
};

struct check_shape {
	int64_t rows, columns;
};

struct check_input {
	float *original; /* `count` floats of memory, before any op */
	size_t count;
	int64_t stride[2];
	bool written; /* some op has it as its target */
};

struct check_trial {
	struct framework *framework;
	const struct codegen_region *region;
	struct check_shape shape;
	int64_t numel;
	uint64_t random; /* state of the generator */
	struct check_input input[TERRA_PLAN_MAX_INPUTS];
	double scalar[TERRA_PLAN_MAX_SCALARS];
	uint32_t target[TERRA_PLAN_MAX_OPS]; /* per value: which memory it is in: the first value in it, or for the
						memory of an input TERRA_PLAN_MAX_OPS + input */
	bool replaced[TERRA_PLAN_MAX_OPS];   /* a later op writes the same memory */
	float *expected[TERRA_PLAN_MAX_OPS];
};

uint64_t check_random(uint64_t *state);
void check_fill(float *out, size_t n, enum check_values values, uint64_t *random);
double check_number(enum check_values values, uint64_t *random);

/* Makes the inputs. 0 or -ENOMEM; to be freed in any case. */
int check_trial_make(struct check_trial *trial, struct framework *fw, const struct codegen_region *region,
		     struct check_shape shape, enum check_values values, uint64_t seed);
void check_trial_free(struct check_trial *trial);
/* Runs the framework's ops: fills `expected`. 0 or -errno with a message. */
int check_trial_reference(struct check_trial *trial, char *err, size_t err_size);

/* Which results the kernel is asked to write. */
enum check_live { CHECK_LIVE_ALL, CHECK_LIVE_LAST };
/* Runs the kernel in pieces and compares. 0 or -ENOMEM. */
int check_trial_kernel(struct check_trial *trial, const struct terra_plan *plan, terra_kernel_fn fn,
		       enum check_live live, struct check_result *out);

/* The input as a tensor, and as a kernel gets what broadcasts, in a copy of its memory. */
framework_tensor check_input_tensor(const struct check_trial *trial, uint32_t j, float *memory);
struct terra_strided check_input_strided(const struct check_trial *trial, uint32_t j, const float *memory);
/* Elements between two places where the region may be divided. */
int64_t check_block(const struct check_trial *trial);

/* Memory for n floats as replay's allocator gives it to tensors: aligned, on huge pages when it is large. To be freed. */
float *check_memory(size_t n);
/* Scratch memory of the calling thread for a kernel. */
float *check_scratch(void);

/* check_sgemm.c: check_replace for replacements of the form sgemm_tiles. */
int check_sgemm(const struct terra_plan *plan, struct terra_plan_replace *replace, const struct check_options *options,
		struct check_result *out);

/* The arguments of op k for a call of the framework. `value` and `input` hold the tensors. */
void check_op_args(const struct codegen_region *region, uint32_t k, framework_tensor *value, framework_tensor *input,
		   const double *scalar, struct framework_arg *args);

/* check_time.c: a monotonic clock, and the median of values, which it sorts. */
double check_now_ns(void);
double check_median(double *values, uint32_t n);

/* check_time.c. Sets region->eager_ns and so on, and those of out. 0 or -errno with a message in out->first. */
int check_measure(struct terra_plan *plan, struct terra_plan_region *region, const struct codegen_region *resolved,
		  const struct check_options *options, struct check_result *out);

#endif
