/* show.c - plans and dropped regions for people and as JSON. */
#include <inttypes.h>
#include <string.h>

#include "graphopt/plan_ops.h"
#include "graphopt/show.h"

static uint32_t count_regions(const struct terra_plan *plan, bool fallback)
{
	uint32_t n = 0, r;

	for (r = 0; r < plan->n_regions; r++)
		n += plan->regions[r].fallback == fallback;
	return n;
}

/* A plan's regions are those of the graph that were not dropped, in order. */
static const struct graph_region *origin(const struct graph *graph, uint32_t index)
{
	uint32_t i, n = 0;

	for (i = 0; graph && i < graph->n_regions; i++)
		if (!graph->regions[i].dropped && n++ == index)
			return &graph->regions[i];
	return NULL;
}

static void show_lines(const struct terra_plan_op *ops, uint32_t n, FILE *out)
{
	char text[1024];
	uint32_t k;

	for (k = 0; k < n; k++) {
		terra_plan_op_text(&ops[k], text, sizeof(text));
		fprintf(out, "          %s\n", text);
	}
}

static void show_region(const struct terra_plan_region *region, const struct graph_region *from, FILE *out)
{
	fprintf(out, "%4u  %5.2fx  %s\n", region->id, region->gain, region->name);
	fprintf(out, "          %" PRId64 " elements", region->numel);
	if (from)
		fprintf(out, ", %u times an iteration", from->count);
	if (region->eager_ns > 0)
		fprintf(out, ", %.1f us op by op, %.1f us fused", region->eager_ns / 1000, region->fused_ns / 1000);
	fputc('\n', out);
	show_lines(region->ops, region->n_ops, out);
}

static void show_dropped(const struct graph *graph, FILE *out)
{
	uint32_t i, n = 0;

	for (i = 0; graph && i < graph->n_regions; i++) {
		const struct graph_region *region = &graph->regions[i];

		if (!region->dropped)
			continue;
		if (!n++)
			fputs("not used:\n", out);
		fprintf(out, "      %s: %s\n", region->name, region->dropped);
		show_lines(region->lines, region->n_ops, out);
	}
}

void show_plan(const struct terra_plan *plan, const struct graph *graph, FILE *out)
{
	uint32_t r, n = 0;

	fprintf(out, "source    %s\nlibtorch  build-id %s\ncpu       %s, %s\n", plan->source ? plan->source : "",
		plan->build_id ? plan->build_id : "", plan->cpu_vendor ? plan->cpu_vendor : "",
		plan->cpu ? plan->cpu : "");
	fprintf(out, "%u regions, %u kernels for single ops, %u replaced ops\n", count_regions(plan, false),
		count_regions(plan, true), plan->n_replaces);
	for (r = 0; r < plan->n_regions; r++)
		if (!plan->regions[r].fallback)
			show_region(&plan->regions[r], origin(graph, n++), out);
	for (r = 0; r < plan->n_replaces; r++)
		fprintf(out, "      %5.2fx  %s by another kernel%s%s\n", plan->replaces[r].gain, plan->replaces[r].op,
			plan->replaces[r].shape ? ", " : "", plan->replaces[r].shape ? plan->replaces[r].shape : "");
	show_dropped(graph, out);
}

/* ---- JSON ---- */

static void json_text(const char *text, FILE *out)
{
	const unsigned char *p;

	fputc('"', out);
	for (p = (const unsigned char *)(text ? text : ""); *p; p++) {
		if (*p == '"' || *p == '\\')
			fprintf(out, "\\%c", *p);
		else if (*p < 0x20)
			fprintf(out, "\\u%04x", *p);
		else
			fputc(*p, out);
	}
	fputc('"', out);
}

static void json_lines(const struct terra_plan_op *ops, uint32_t n, FILE *out)
{
	char text[1024];
	uint32_t k;

	fputs("\"ops\": [", out);
	for (k = 0; k < n; k++) {
		terra_plan_op_text(&ops[k], text, sizeof(text));
		fputs(k ? ", " : "", out);
		json_text(text, out);
	}
	fputc(']', out);
}

static void json_region(const struct terra_plan_region *region, const struct graph_region *from, FILE *out)
{
	fprintf(out, "{\"id\": %u, \"name\": ", region->id);
	json_text(region->name, out);
	fprintf(out, ", \"gain\": %.17g, \"eager_ns\": %.17g, \"fused_ns\": %.17g, \"numel\": %" PRId64, region->gain,
		region->eager_ns, region->fused_ns, region->numel);
	if (from)
		fprintf(out, ", \"count\": %u, \"saved_bytes\": %.17g", from->count, from->saved_bytes);
	fprintf(out, ", \"fallback\": %s, ", region->fallback ? "true" : "false");
	json_lines(region->ops, region->n_ops, out);
	fputc('}', out);
}

static void json_dropped(const struct graph *graph, FILE *out)
{
	uint32_t i, n = 0;

	for (i = 0; i < graph->n_regions; i++) {
		const struct graph_region *region = &graph->regions[i];

		if (!region->dropped)
			continue;
		fputs(n++ ? ",\n    {\"name\": " : "\n    {\"name\": ", out);
		json_text(region->name, out);
		fputs(", \"reason\": ", out);
		json_text(region->dropped, out);
		fprintf(out, ", \"numel\": %" PRId64 ", \"count\": %u, ", region->numel, region->count);
		json_lines(region->lines, region->n_ops, out);
		fputc('}', out);
	}
}

static void json_names(const char *key, char *const *names, uint32_t n, FILE *out)
{
	uint32_t i;

	fprintf(out, "  \"%s\": [", key);
	for (i = 0; i < n; i++) {
		fputs(i ? ", " : "", out);
		json_text(names[i], out);
	}
	fputs("],\n", out);
}

static void json_head(const struct terra_plan *plan, FILE *out)
{
	fputs("{\n  \"source\": ", out);
	json_text(plan->source, out);
	fputs(",\n  \"build_id\": ", out);
	json_text(plan->build_id, out);
	fputs(",\n  \"cpu\": ", out);
	json_text(plan->cpu, out);
	fputs(",\n  \"cpu_vendor\": ", out);
	json_text(plan->cpu_vendor, out);
	fprintf(out, ",\n  \"threads\": %u,\n  \"code_bytes\": %zu,\n", plan->threads, plan->code_size);
	json_names("passive", plan->passive, plan->n_passive, out);
	json_names("imports", plan->imports, plan->n_imports, out);
}

void show_plan_json(const struct terra_plan *plan, const struct graph *graph, FILE *out)
{
	uint32_t r, n = 0;

	json_head(plan, out);
	fputs("  \"regions\": [", out);
	for (r = 0; r < plan->n_regions; r++) {
		fputs(r ? ",\n    " : "\n    ", out);
		json_region(&plan->regions[r], plan->regions[r].fallback ? NULL : origin(graph, n++), out);
	}
	fputs("],\n  \"replaces\": [", out);
	for (r = 0; r < plan->n_replaces; r++) {
		fputs(r ? ", {\"op\": " : "{\"op\": ", out);
		json_text(plan->replaces[r].op, out);
		fputs(", \"form\": ", out);
		json_text(plan->replaces[r].form, out);
		if (plan->replaces[r].shape) {
			fputs(", \"shape\": ", out);
			json_text(plan->replaces[r].shape, out);
		}
		fprintf(out, ", \"gain\": %.17g}", plan->replaces[r].gain);
	}
	fputs("],\n  \"dropped\": [", out);
	if (graph)
		json_dropped(graph, out);
	fputs("]\n}\n", out);
}

/* ---- the command ---- */

static bool next_word(const char **at, char *out, size_t size)
{
	size_t n;

	*at += strspn(*at, " ");
	n = strcspn(*at, " ");
	if (!n || n >= size)
		return false;
	memcpy(out, *at, n);
	out[n] = '\0';
	*at += n;
	return true;
}

bool command_script(const char *command, char *out, size_t size)
{
	char word[256];

	if (!next_word(&command, word, sizeof(word)))
		return false;
	while (next_word(&command, out, size)) {
		if (!strcmp(out, "-c") || !strcmp(out, "-m"))
			return false;
		if (out[0] != '-')
			return true;
		if ((!strcmp(out, "-W") || !strcmp(out, "-X")) && !next_word(&command, word, sizeof(word)))
			return false;
	}
	return false;
}
