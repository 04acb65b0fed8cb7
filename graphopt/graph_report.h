/* graph_report.h - what of a traced program can be fused, what it would gain, and what stands in the way.
 *
 * For terra-report: the passes run up to the cost model, nothing is compiled or measured, so this needs neither a
 * compiler nor the framework's library.
 */
#ifndef TERRA_GRAPHOPT_GRAPH_REPORT_H
#define TERRA_GRAPHOPT_GRAPH_REPORT_H

#include <stddef.h>
#include <stdint.h>

struct terra_report_op {
	const char *line; /* as in a plan: "aten::mul.Tensor i0 s" */
	const char *file; /* Python source of the first instance; "" when stacks were not recorded */
	const char *function;
	int32_t source_line;
};

struct terra_report_region { /* convertible */
	const char *name;
	uint32_t n_ops;
	struct terra_report_op *ops;
	uint32_t count;	      /* instances per iteration */
	int64_t numel;	      /* largest domain */
	double saved_bytes;   /* memory traffic saved per iteration, all instances */
	double expected_gain; /* time of the ops one by one / time of the region, by the cost model */
	double traced_ns;     /* time of its ops in the traced iteration, all instances; tracing included */
	const char *dropped;  /* why the cost model would not use it, or NULL */
};

struct terra_report_blocker { /* an op that ends runs of fusible ops */
	const char *op;	      /* "aten::addmm" */
	const char *reason;
	const char *file;
	const char *function;
	int32_t line;
	uint32_t count; /* runs per iteration that it ends */
};

struct terra_graph_report {
	uint64_t iterations;   /* found in the trace */
	uint64_t iteration;    /* the one that was analysed */
	uint32_t n_ops;	       /* backend-level ops of it */
	uint32_t n_passive;    /* of those, views, metadata and allocation */
	uint32_t n_fusible;    /* of those, ops that have a rule */
	uint32_t n_in_regions; /* of those, ops in regions that the cost model keeps */
	/* Time of the iteration's ops, ns, tracing included. Views, metadata and allocation are in none of them. */
	double products_ns;   /* matrix products and convolutions */
	double others_ns;     /* all other ops... */
	double in_regions_ns; /* ...and of those, ops in regions that the cost model keeps */
	double replaced_ns;   /* ...and ops that a plan may have another kernel for (bernoulli_) */
	uint32_t n_regions;
	struct terra_report_region *regions; /* most saved first */
	uint32_t n_blockers;
	struct terra_report_blocker *blockers; /* most frequent first */
	void *storage;			       /* private: backs the strings and arrays */
};

/* Reads a trace and fills *out. Returns 0, -ENODATA when the trace holds no steady iteration, or another -errno, with a
 * one-line message that says what to do. */
int terra_graph_report(const char *trace_path, struct terra_graph_report **out, char *err, size_t err_size);
void terra_graph_report_free(struct terra_graph_report *report);

#endif
