/* verify.h - compiles an assembled plan and keeps what has the framework's own bits and gains. */
#ifndef TERRA_GRAPHOPT_VERIFY_H
#define TERRA_GRAPHOPT_VERIFY_H

#include "graphopt/graph.h"
#include "graphopt/plan.h"

struct verify_options {
	bool measure; /* else only bits are compared, and nothing is dropped for gaining too little */
	bool quick;   /* fewer lengths and values: for tests */
	/* Called before each step of the work; true: stop, verify_plan returns -EINTR. May be NULL. */
	bool (*progress)(void *ctx, const char *what, uint32_t done, uint32_t total);
	void *ctx;
};

/* Fills the plan's code and measurements, and drops regions and replacements whose bits differ or that gain less than
 * VERIFY_MIN_GAIN or VERIFY_MIN_REPLACE_GAIN. What was dropped and why is noted in the graph's regions (those without `dropped` are the plan's, in
 * order). Returns 0, or -errno with a message: no compiler, no library, another library than the traced one, -EINTR. */
#define VERIFY_MIN_GAIN 1.05
#define VERIFY_MIN_REPLACE_GAIN 1.1 /* of replacements: the caches are in another state in the program */
int verify_plan(struct graph *graph, struct terra_plan *plan, const struct verify_options *options, char *err,
		size_t err_size);

#endif
