/* fuzz_graph.c - the text form of graphs, and the passes on whatever it says.
 *
 * What is read is printed in the same words when it is read again, after every pass too.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/codegen.h"
#include "graphopt/graph.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "graph input: %s\n", what);
	abort();
}

static char *print(const struct graph *graph)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	check(out && graph_print(graph, out) == 0 && fclose(out) == 0, "a graph prints");
	return text;
}

static void check_stable(const struct graph *graph)
{
	char *first = print(graph), *second;
	struct graph *again;
	char err[256] = "";

	check(graph_read(first, &again, err, sizeof(err)) == 0, err);
	second = print(again);
	check(strcmp(first, second) == 0, "printed anew it is the same");
	free(first);
	free(second);
	graph_free(again);
}

static void generate(const struct graph *graph)
{
	char err[256];

	for (uint32_t i = 0; i < graph->n_regions; i++) {
		struct terra_plan_region region = {.n_ops = graph->regions[i].n_ops, .ops = graph->regions[i].lines};

		err[0] = '\0';
		check(codegen_verify_region(&region, err, sizeof(err)) == 0 || err[0],
		      "a region without a kernel has a reason");
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1), err[256] = "";
	struct graph *graph;
	int ret;

	check(text, "memory");
	if (size)
		memcpy(text, data, size);
	text[size] = '\0';
	ret = graph_read(text, &graph, err, sizeof(err));
	free(text);
	check(ret == 0 || (!graph && err[0]), "a refusal has a reason");
	if (ret)
		return 0;
	check_stable(graph);
	generate(graph);
	if (graph_run_passes(graph, NULL, NULL, err, sizeof(err)) == 0) {
		check_stable(graph);
		generate(graph);
	}
	graph_free(graph);
	return 0;
}
