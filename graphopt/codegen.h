/* codegen.h - from the regions of a plan to machine code.
 *
 * Every region becomes one C function with the ABI of terra_kernel_fn (plan.h). All of them are compiled by the system
 * compiler ($CC, else cc) into one ELF shared object, for the features of the CPU this runs on.
 */
#ifndef TERRA_GRAPHOPT_CODEGEN_H
#define TERRA_GRAPHOPT_CODEGEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "graphopt/oprules.h"
#include "graphopt/plan.h"

struct codegen_options {
	const char *work_dir;	    /* keeps kernels.c, kernels.so and the compiler's messages there; NULL: a temporary
				       directory that is removed again */
	const char *compiler;	    /* NULL: $CC, else "cc" */
	const struct oprule *rules; /* looked up before the table of oprules.c; for tests of the check */
	size_t n_rules;
};

/* Generates and compiles the kernels of all regions and replacements. Fills plan->code and code_size (malloc'ed, owned
 * by the plan), plan->imports, plan->cpu, plan->cpu_vendor, each region's `kernel`, n_inputs and n_scalars, and the
 * `kernel` of each replacement; what was there before is freed. Regions are read from `id`, `n_ops` and `ops` alone.
 * Returns 0, -EINVAL for a region that has no kernel (message names region and op), -ENOENT without a compiler, or
 * another -errno. On failure the plan is as before. */
int codegen_plan(struct terra_plan *plan, const char *work_dir, char *err, size_t err_size);
int codegen_plan_with(struct terra_plan *plan, const struct codegen_options *options, char *err, size_t err_size);

/* Whether codegen can make a kernel of the region: 0, or -EINVAL with the reason. Cheap; compiles nothing. */
int codegen_verify_region(const struct terra_plan_region *region, char *err, size_t err_size);

/* The C source that codegen_plan would compile, for people. Returns 0 or -errno. */
int codegen_source(const struct terra_plan *plan, FILE *out, char *err, size_t err_size);

#endif
