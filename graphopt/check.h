/* check.h - whether a kernel gives the framework's own bits, and what it gains.
 *
 * Nothing enters a plan unless this says that it is bit-identical on this machine, with this library.
 */
#ifndef TERRA_GRAPHOPT_CHECK_H
#define TERRA_GRAPHOPT_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "graphopt/framework.h"
#include "graphopt/plan.h"

struct check_options {
	struct framework *framework;
	uint32_t threads; /* bits are compared with 1 and with this many, time is taken with this many; 0: as the
			     framework has it */
	uint64_t seed;	  /* of the random values */
	bool quick;	  /* fewer lengths and values: for tests, not for plans */
	bool inlined;	  /* kernels have functions inlined: they run in the default floating-point mode alone */
	bool measure;	  /* take eager_ns and fused_ns */
	int64_t numel;	  /* domain to time at; 0: region->numel */
	uint32_t repeats; /* timed runs, of which the median counts; 0: 15 */
};

struct check_result {
	bool identical;
	uint64_t compared;    /* values compared */
	uint64_t differing;   /* of those, with other bits */
	uint32_t largest_ulp; /* over finite differing values */
	double eager_ns;      /* one instance of the region, the framework's ops one by one with their allocations */
	double fused_ns;      /* the kernel on the same threads */
	char first[200];      /* the first difference: op, length, index, both values; empty when identical */
};

/* Compares and measures one region of a linked plan (region->fn and plan->import_table set). Every result is compared,
 * both when all are written and when only the last is live. Sets region->eager_ns, fused_ns and gain when it measured.
 * Returns 0 when the check could be made (whatever it found), else -errno with a message in out->first. */
int check_region(struct terra_plan *plan, struct terra_plan_region *region, const struct check_options *options,
		 struct check_result *out);

/* Whether the plan has an op that an inlined rule (oprules.h) is for. */
bool check_inlined_concerns(const struct terra_plan *plan);
/* Whether the inlined rules give the bits of the functions that they replace, in the default floating-point mode; takes a second.
 * `*same` is false where the function is not there. Returns 0, or -errno with a message when it could not be checked. */
int check_inlined(const struct framework *fw, bool *same, char *err, size_t err_size);

/* The same for a single-op replacement (random numbers from the same generator state, and the state afterwards). */
int check_replace(struct terra_plan *plan, struct terra_plan_replace *replace, const struct check_options *options,
		  struct check_result *out);

#endif
