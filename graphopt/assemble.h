/* assemble.h - from the regions of a graph to a plan, and changes to plans. */
#ifndef TERRA_GRAPHOPT_ASSEMBLE_H
#define TERRA_GRAPHOPT_ASSEMBLE_H

#include "graphopt/graph.h"
#include "graphopt/plan.h"

/* A plan without code: the regions that no pass dropped, in the graph's order, a one-op fallback for each form of an op
 * in them, the passive ops, and replacements for ops of the graph that have one. *out is freed with terra_plan_free.
 * Returns 0 or -ENOMEM. */
int assemble_plan(const struct graph *graph, struct terra_plan **out);

/* Removes regions; fallbacks that no region needs any more go with them. `drop[i]` is of plan->regions[i]. */
void plan_drop_regions(struct terra_plan *plan, const bool *drop);
void plan_drop_replace(struct terra_plan *plan, uint32_t index);
/* Whether the fallback finishes ops of the region. */
bool plan_fallback_serves(const struct terra_plan_region *fallback, const struct terra_plan_region *region);

#endif
