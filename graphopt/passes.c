/* passes.c - the order of the passes. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "graphopt/graph.h"

const struct graph_pass graph_passes[] = {
    {"values", "names memory by storage and version", true, pass_values},
    {"liveness", "finds where values are made, read last and read by the host", false, pass_liveness},
    {"kinds", "finds the ops that have a rule, and why others have none", true, pass_kinds},
    {"inplace", "lets in-place ops be part of regions", false, pass_inplace},
    {"passive", "lets views, metadata and allocation pass inside regions", false, pass_passive},
    {"small", "lets ops on tensors under 256 bytes pass inside regions", false, pass_small},
    {"regions", "cuts runs of fusible ops into regions and merges equal ones", true, pass_regions},
    {"cost", "drops regions that save less memory traffic than guarding them costs", false, pass_cost},
    {NULL, NULL, false, NULL},
};

const struct graph_pass *graph_pass_find(const char *name)
{
	const struct graph_pass *pass;

	for (pass = graph_passes; pass->name; pass++)
		if (!strcmp(pass->name, name))
			return pass;
	return NULL;
}

static bool is_listed(const char *name, const char *const *names)
{
	for (; names && *names; names++)
		if (!strcmp(*names, name))
			return true;
	return false;
}

static int check_disabled(const char *const *disabled, char *err, size_t err_size)
{
	for (; disabled && *disabled; disabled++) {
		if (graph_pass_find(*disabled))
			continue;
		snprintf(err, err_size, "there is no pass \"%s\"", *disabled);
		return -EINVAL;
	}
	return 0;
}

/* The first pass behind the one that the graph names; the first of all after "build". */
static const struct graph_pass *next_pass(const struct graph *graph)
{
	const struct graph_pass *pass = graph_pass_find(graph->after);

	return pass ? pass + 1 : strcmp(graph->after, "build") ? NULL : graph_passes;
}

int graph_run_passes(struct graph *graph, const char *last, const char *const *disabled, char *err, size_t err_size)
{
	const struct graph_pass *pass = next_pass(graph), *end = last ? graph_pass_find(last) : NULL;
	int ret = check_disabled(disabled, err, err_size);

	if (ret)
		return ret;
	if (!pass || (last && !end)) {
		snprintf(err, err_size, "there is no pass \"%s\"", pass ? last : graph->after);
		return -EINVAL;
	}
	for (; pass->name && (!end || pass <= end); pass++) {
		if (!is_listed(pass->name, disabled))
			ret = pass->run(graph, err, err_size);
		else if (pass->carries)
			return 0;
		if (ret) {
			if (ret == -ENOMEM)
				snprintf(err, err_size, "out of memory");
			return ret;
		}
		graph->after = pass->name;
	}
	return 0;
}
