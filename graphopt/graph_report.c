/* graph_report.c - what of a traced program can be fused, what it would gain, and what stands in the way. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/graph.h"
#include "graphopt/graph_report.h"
#include "graphopt/plan_ops.h"

static int by_saved(const void *a, const void *b)
{
	const struct terra_report_region *x = a, *y = b;

	return (x->saved_bytes < y->saved_bytes) - (x->saved_bytes > y->saved_bytes);
}

static int by_count(const void *a, const void *b)
{
	const struct terra_report_blocker *x = a, *y = b;

	return (x->count < y->count) - (x->count > y->count);
}

static int report_op(struct graph *graph, const struct terra_plan_op *line, const struct graph_op *op,
		     struct terra_report_op *out)
{
	char text[1024];

	terra_plan_op_text(line, text, sizeof(text));
	out->line = graph_strdup(graph, text);
	out->file = op->file;
	out->function = op->function;
	out->source_line = op->line;
	return out->line ? 0 : -ENOMEM;
}

static double traced_ns(const struct graph *graph, const struct graph_region *region)
{
	double ns = 0;
	uint32_t i;

	for (i = 0; i < region->count * region->n_ops; i++)
		ns += (double)graph->ops[region->at[i]].ns;
	return ns;
}

static int report_region(struct graph *graph, const struct graph_region *region, struct terra_report_region *out)
{
	uint32_t k;

	*out = (struct terra_report_region){
	    .name = region->name,
	    .n_ops = region->n_ops,
	    .ops = graph_alloc(graph, region->n_ops * sizeof(*out->ops)),
	    .count = region->count,
	    .numel = region->numel,
	    .saved_bytes = region->saved_bytes,
	    .expected_gain = region->gain,
	    .traced_ns = traced_ns(graph, region),
	    .dropped = region->dropped,
	};
	if (!out->ops)
		return -ENOMEM;
	for (k = 0; k < region->n_ops; k++)
		if (report_op(graph, &region->lines[k], &graph->ops[region->at[k]], &out->ops[k]))
			return -ENOMEM;
	return 0;
}

static int report_regions(struct graph *graph, struct terra_graph_report *out)
{
	uint32_t i;

	out->regions = graph_alloc(graph, (graph->n_regions + 1) * sizeof(*out->regions));
	if (!out->regions)
		return -ENOMEM;
	for (i = 0; i < graph->n_regions; i++) {
		if (report_region(graph, &graph->regions[i], &out->regions[i]))
			return -ENOMEM;
		if (graph->regions[i].dropped)
			continue;
		out->n_in_regions += graph->regions[i].count * graph->regions[i].n_ops;
		out->in_regions_ns += out->regions[i].traced_ns;
	}
	out->n_regions = graph->n_regions;
	qsort(out->regions, out->n_regions, sizeof(*out->regions), by_saved);
	return 0;
}

static bool same_blocker(const struct terra_report_blocker *blocker, const struct graph_op *op, const char *reason)
{
	return blocker->line == op->line && !strcmp(blocker->op, op->name) && !strcmp(blocker->reason, reason) &&
	       !strcmp(blocker->file, op->file);
}

static int report_blockers(struct graph *graph, struct terra_graph_report *out)
{
	uint32_t i, j;

	out->blockers = graph_alloc(graph, (graph->n_stops + 1) * sizeof(*out->blockers));
	if (!out->blockers)
		return -ENOMEM;
	for (i = 0; i < graph->n_stops; i++) {
		const struct graph_op *op = &graph->ops[graph->stops[i].op];

		for (j = 0; j < out->n_blockers && !same_blocker(&out->blockers[j], op, graph->stops[i].reason); j++)
			continue;
		if (j == out->n_blockers)
			out->blockers[out->n_blockers++] = (struct terra_report_blocker){
			    .op = op->name,
			    .reason = graph->stops[i].reason,
			    .file = op->file,
			    .function = op->function,
			    .line = op->line,
			};
		out->blockers[j].count++;
	}
	qsort(out->blockers, out->n_blockers, sizeof(*out->blockers), by_count);
	return 0;
}

/* By the name without overload: what spends its time in the vendor's matrix products. */
static bool is_product(const char *name)
{
	static const char *const products[] = {"mm",	      "addmm",	"bmm",	      "baddbmm",	      "addbmm",
					       "mv",	      "addmv",	"dot",	      "convolution",	      "convolution_backward",
					       "mkldnn_linear", "_mkl_linear", "mkldnn_convolution", "_convolution"};
	size_t i, n = strcspn(name, ".");

	if (strncmp(name, "aten::", 6))
		return false;
	for (i = 0; i < sizeof(products) / sizeof(products[0]); i++)
		if (strlen(products[i]) == n - 6 && !strncmp(name + 6, products[i], n - 6))
			return true;
	return false;
}

static void add_time(const struct graph_op *op, struct terra_graph_report *out)
{
	if (op->class == GRAPH_PASSIVE)
		return;
	if (is_product(op->name)) {
		out->products_ns += (double)op->ns;
		return;
	}
	out->others_ns += (double)op->ns;
	if (!strcmp(op->name, "aten::bernoulli_.float"))
		out->replaced_ns += (double)op->ns;
}

static void count_ops(const struct graph *graph, struct terra_graph_report *out)
{
	uint32_t i;

	out->iterations = graph->iterations;
	out->iteration = graph->iteration;
	out->n_ops = graph->n_ops;
	for (i = 0; i < graph->n_ops; i++) {
		add_time(&graph->ops[i], out);
		out->n_passive += graph->ops[i].class == GRAPH_PASSIVE;
		out->n_fusible += graph->ops[i].class == GRAPH_FUSIBLE;
	}
}

static int fill(struct graph *graph, struct terra_graph_report *out)
{
	count_ops(graph, out);
	return report_regions(graph, out) || report_blockers(graph, out) ? -ENOMEM : 0;
}

int terra_graph_report(const char *trace_path, struct terra_graph_report **out, char *err, size_t err_size)
{
	struct terra_graph_report *report;
	struct graph *graph = NULL;
	int ret = graph_build(trace_path, &graph, err, err_size);

	*out = NULL;
	if (!ret)
		ret = graph_run_passes(graph, NULL, NULL, err, err_size);
	if (ret) {
		graph_free(graph);
		return ret;
	}
	report = graph_alloc(graph, sizeof(*report)); /* lives in the graph, as all that it points to */
	if (!report || fill(graph, report)) {
		graph_free(graph);
		snprintf(err, err_size, "out of memory");
		return -ENOMEM;
	}
	report->storage = graph;
	*out = report;
	return 0;
}

void terra_graph_report_free(struct terra_graph_report *report)
{
	if (report)
		graph_free(report->storage);
}
