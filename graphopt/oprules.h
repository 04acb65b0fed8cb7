/* oprules.h - which ops can be fused, and what each one computes, bit for bit.
 *
 * A rule exists only when it was found to give the framework's own bits for every element, wherever the element lies:
 * ops whose vector body and scalar tail differ in the framework (their bits depend on how the tensor is split) are
 * listed as excluded, with the reason. Rules are claims: check.h tests them against the library at hand before
 * anything enters a plan.
 */
#ifndef TERRA_GRAPHOPT_OPRULES_H
#define TERRA_GRAPHOPT_OPRULES_H

#include <stdbool.h>
#include <stddef.h>

#include "graphopt/plan.h"

struct oprule {
	const char *op; /* schema name and overload as in a plan line: "aten::mul.Tensor" */
	/* One letter per schema argument:
	 *   t  a float32 tensor of the domain or broadcasting into it (tokens v, i, b)
	 *   e  either such a tensor or a number in a tensor: 0-dim, any real dtype, read when the op is issued (token s).
	 *      At least one `t` or `e` of a line is a tensor of the domain.
	 *   s  a number that the kernel takes at run time: Scalar, optional Scalar that is present, double (token s)
	 *   c  a constant that the kernel is specialised for (token #<x>)
	 *   -  an absent optional (token -) */
	const char *args;
	/* For each `c`, in order, separated by blanks: the value that this rule is for, spelled as in a plan line without
	 * its #. NULL when args has no `c`. */
	const char *constants;
	/* Exactly one of the two: */
	const char *expr;   /* the value as a C expression: $<n> is schema argument n; see kernel_source.c for its functions */
	const char *import; /* symbol of a framework function that is applied to each block of argument 0; its C type is
			       that of MKL's vector functions: void (int n, const float *a, float *r, int64_t mode) */
	bool in_place;      /* the result takes the place of argument 0, which is then a tensor of the domain: v or i */
	/* A run-time number for which the framework's own bits depend on the element's position, so that no kernel can
	 * have them: whoever reads the number runs the op at once when argument `exception_arg` is `exception`. */
	bool has_exception;
	unsigned char exception_arg;
	double exception;
};

/* The first rule of this name, or NULL: then the op can't be fused. Ops that have constants have one rule for each set
 * of constants, all with the same name; see oprule_match. */
const struct oprule *oprule_find(const char *op);
/* The rule for a whole plan line: name, number of arguments, tokens against `args`, constants. NULL if there is none. */
const struct oprule *oprule_match(const struct terra_plan_op *op);
/* The same for one given rule. */
bool oprule_fits(const struct oprule *rule, const struct terra_plan_op *op);
/* Why an op that looks elementwise is left out (one line), or NULL when there is nothing to say about it. */
const char *oprule_excluded(const char *op);

/* The whole table, for listings and tests. */
const struct oprule *oprule_table(size_t *n);

#endif
