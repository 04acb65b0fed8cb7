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
	 *   t  a float32 tensor of the domain, or broadcasting into it or strided (tokens v, i, b)
	 *   d  a float32 tensor of the domain (tokens v, i)
	 *   e  a tensor as for t, or a number in a tensor: 0-dim or one element, read when the op is issued (token s)
	 *   s  a number that the kernel takes at run time: Scalar, optional Scalar that is present, double (token s)
	 *   c  a constant that the kernel is specialised for (token #<x>)
	 *   f  a number in a float32 tensor without dims (token f)
	 *   r  column numbers, one for each row (token r); in an expression, that of the row at hand
	 *   l  the last dim (token l)
	 *   -  an absent optional (token -)
	 * At least one argument of a line is a tensor. */
	const char *args;
	/* For each `c`, in order, separated by blanks, what it may be: a number, "!<number>" for any finite number
	 * but this one, or "*" for any finite number. NULL when args has no `c`. */
	const char *constants;
	/* Exactly one of the two, but in an inlined rule: */
	const char
	    *expr; /* the value as a C expression: $<n> is schema argument n, %<n> a constant one as an integer, $f and $r
		      see below; see kernel_source.c for its functions */
	const char *import; /* symbol of a framework function that is applied to each block of argument 0; its C type is
			       that of MKL's vector functions: void (int n, const float *a, float *r, int64_t mode) */
	const char *function; /* $f: symbol of a framework function from one vector to one, called in a loop */
	const char *sum;    /* $r: the sum of this expression over the row, in the framework's own order; then args has l */
	bool in_place;	    /* the result takes the place of argument 0, which is then a tensor of the domain: v or i */
};

/* The first rule of this name, or NULL: then the op can't be fused. An op may have several rules, one for each set of
 * constants or kinds of arguments, all with the same name; see oprule_match. */
const struct oprule *oprule_find(const char *op);
/* The rule for a whole plan line: name, number of arguments, tokens against `args`, constants. NULL if there is none.
 */
const struct oprule *oprule_match(const struct terra_plan_op *op);
/* For those who make plan lines, instead of oprule_match: `op` has the token s for every number, and number[i] is what
 * argument i was in the trace. The rule may want some of them as constants: then the caller replaces the token s of
 * each argument i with rule->args[i] == 'c' by #<%.17g of the number>, and oprule_match finds the same rule. E.g. alpha
 * of aten::add.Tensor v5 s s becomes #1, as only then the bits do not depend on position; with another alpha there is
 * no rule. NULL when no rule fits. */
const struct oprule *oprule_choose(const struct terra_plan_op *op, const double *number);
/* Whether one given rule is for this line. */
bool oprule_fits(const struct oprule *rule, const struct terra_plan_op *op);
/* Why an op that looks elementwise is left out (one line), or NULL when there is nothing to say about it. */
const char *oprule_excluded(const char *op);

/* Rules whose `expr` stands for their `import`: the same values without the call, where the vendor's library computes the
 * function in the way that `expr` does. That depends on the processor, so it has to be checked (check_inlined in check.h)
 * before they are given to codegen_plan_with. All of them have the same formula and import, the first takes one argument. */
const struct oprule *oprule_inlined(size_t *n);

/* The whole table, for listings and tests. */
const struct oprule *oprule_table(size_t *n);

#endif
