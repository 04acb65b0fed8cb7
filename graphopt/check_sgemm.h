/* check_sgemm.h - one matrix product, by the framework and in tiles: what comparing and timing share. */
#ifndef TERRA_GRAPHOPT_CHECK_SGEMM_H
#define TERRA_GRAPHOPT_CHECK_SGEMM_H

#include "graphopt/check_internal.h"

#define CHECK_SGEMM_MAX_SETS 16

struct product_matrix {
	float *data;  /* of all sets, one after the other */
	size_t count; /* floats of one */
	size_t step;  /* floats from one set to the next */
};

struct product {
	const struct terra_plan *plan;
	struct framework *framework;
	const struct framework_op *op, *mm; /* the product as the plan names it; mm for the probe */
	terra_sgemm_tiles_fn fn;
	struct terra_sgemm_shape shape;
	bool with_bias;
	uint32_t n_sets; /* small matrices come in several sets: in a program others use the nearest caches in between */
	struct product_matrix a, b, bias;
	framework_tensor ta[CHECK_SGEMM_MAX_SETS], tb[CHECK_SGEMM_MAX_SETS], tbias[CHECK_SGEMM_MAX_SETS], probe;
	uint32_t set; /* that a run uses */
	bool timed;   /* else the kernel's result holds other numbers first, so that what it leaves out shows */
	struct check_result *out;
};

static inline float *product_data(const struct product *p, const struct product_matrix *m)
{
	return m->data + p->set * m->step;
}

/* The framework's product of the set, a new tensor. 0 or -errno. */
int product_run_eager(const struct product *p, framework_tensor *result);
/* The kernel's, on the framework's threads, likewise. */
int product_run_tiles(const struct product *p, framework_tensor *result);
/* Whether they have the same bits. */
bool product_is_same(const struct product *p, framework_tensor a, framework_tensor b);
/* What replay asks the framework before each use: the product of two small matrices. */
void product_run_probe(const struct product *p);

/* check_tiles.c: times divisions into tiles that give the framework's bits, and sets rows, columns and buffered of the shape to
 * the fastest. Fills eager_ns and fused_ns of p->out. All sets have values. Where no division gives them, the shape stays as it
 * is. 0 or -errno. */
int product_choose_tiles(struct product *p);

#endif
