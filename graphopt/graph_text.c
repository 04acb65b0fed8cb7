/* graph_text.c - prints a graph. What graph_read.c reads; the form is described in graphopt/README.md. */
#include <inttypes.h>
#include <string.h>

#include "graphopt/graph.h"

static const char *const class_names[] = {
    [GRAPH_UNKNOWN] = "",      [GRAPH_FUSIBLE] = " !fusible", [GRAPH_PASSIVE] = " !passive",
    [GRAPH_SMALL] = " !small", [GRAPH_STOP] = " !stop",
};

static void print_quoted(const char *text, FILE *out)
{
	const unsigned char *p;

	fputc('"', out);
	for (p = (const unsigned char *)text; *p; p++) {
		if (*p == '"' || *p == '\\')
			fprintf(out, "\\%c", *p);
		else if (*p < 0x20 || *p == 0x7f)
			fprintf(out, "\\x%02x", *p);
		else
			fputc(*p, out);
	}
	fputc('"', out);
}

static void print_sizes(const int64_t *sizes, uint8_t n, FILE *out)
{
	uint8_t i;

	fputc('[', out);
	for (i = 0; i < n; i++)
		fprintf(out, "%s%" PRId64, i ? "," : "", sizes[i]);
	fputc(']', out);
}

void graph_print_tensor(const struct graph_tensor *tensor, FILE *out)
{
	uint64_t begin, end;

	if (tensor->storage == GRAPH_NONE)
		fprintf(out, "@%" PRIx64, tensor->address);
	else
		fprintf(out, "%%%u.%u", tensor->storage, tensor->version);
	fprintf(out, " %s", tensor->dtype);
	print_sizes(tensor->size, tensor->ndim, out);
	if (!graph_tensor_contiguous(tensor)) {
		fputc('/', out);
		print_sizes(tensor->stride, tensor->ndim, out);
	}
	if (tensor->offset)
		fprintf(out, "+%" PRId64, tensor->offset);
	graph_tensor_range(tensor, &begin, &end);
	if (tensor->bytes != end)
		fprintf(out, ":%" PRIu64, tensor->bytes);
}

static void print_tensors(const struct graph_tensor *tensors, uint32_t n, FILE *out)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		fputs(i ? ", " : "", out);
		graph_print_tensor(&tensors[i], out);
	}
}

static void print_arg(const struct graph_arg *arg, FILE *out)
{
	switch (arg->kind) {
	case GRAPH_ABSENT:
		fputc('-', out);
		break;
	case GRAPH_TENSOR:
		graph_print_tensor(arg->tensor, out);
		break;
	case GRAPH_TENSORS:
		fputc('{', out);
		print_tensors(arg->tensor, arg->n, out);
		fputc('}', out);
		break;
	case GRAPH_NUMBER:
		fprintf(out, "%.17g", arg->number);
		break;
	case GRAPH_CONST:
		fprintf(out, "#%s", arg->text);
		break;
	default:
		fputc('?', out);
	}
}

static void print_op(const struct graph_op *op, uint32_t number, FILE *out)
{
	uint32_t i;

	fprintf(out, "op %u %s (", number, op->name);
	for (i = 0; i < op->n_args; i++) {
		fputs(i ? ", " : "", out);
		print_arg(&op->args[i], out);
	}
	fputs(") -> (", out);
	print_tensors(op->results, op->n_results, out);
	fputc(')', out);
	if (op->call_only)
		fputs(" call-only", out);
	else if (!op->plain_keys)
		fputs(" other-keys", out);
	if (op->list)
		fprintf(out, " part-of %s", op->list);
	if (op->raised)
		fputs(" raised", out);
	if (op->ns)
		fprintf(out, " ns=%" PRIu64, op->ns);
	if (op->file[0]) {
		fputs(" from ", out);
		print_quoted(op->file, out);
		fprintf(out, " %d ", op->line);
		print_quoted(op->function, out);
	}
	fputs(class_names[op->class], out);
	if (op->reason) {
		fputc(' ', out);
		print_quoted(op->reason, out);
	}
	fputc('\n', out);
}

static void print_number_or(const char *before, uint32_t number, const char *none, FILE *out)
{
	if (number == GRAPH_NONE)
		fprintf(out, " %s %s", before, none);
	else
		fprintf(out, " %s %u", before, number);
}

static void print_value(const struct graph_value *value, FILE *out)
{
	fprintf(out, "value %%%u.%u", value->storage, value->version);
	print_number_or("made", value->made, "before", out);
	print_number_or("last", value->last, "never", out);
	fprintf(out, "%s%s\n", value->fetched ? " fetched" : "", value->lives_on ? " lives-on" : "");
}

static void print_line(const struct terra_plan_op *op, FILE *out)
{
	uint32_t i;

	fprintf(out, "\t%s", op->op);
	for (i = 0; i < op->n_args; i++)
		fprintf(out, " %s", op->arg[i]);
	fputc('\n', out);
}

static void print_region(const struct graph_region *region, FILE *out)
{
	uint32_t i, k;

	fputs("region ", out);
	print_quoted(region->name, out);
	fprintf(out, " numel=%" PRId64, region->numel);
	if (region->gain > 0)
		fprintf(out, " saved=%.17g gain=%.17g", region->saved_bytes, region->gain);
	if (region->eager_ns > 0)
		fprintf(out, " eager-ns=%.17g fused-ns=%.17g", region->eager_ns, region->fused_ns);
	if (region->dropped) {
		fputs(" dropped ", out);
		print_quoted(region->dropped, out);
	}
	fputc('\n', out);
	for (i = 0; i < region->n_ops; i++)
		print_line(&region->lines[i], out);
	for (i = 0; i < region->count; i++) {
		fputs("\tat", out);
		for (k = 0; k < region->n_ops; k++)
			fprintf(out, " %u", region->at[i * region->n_ops + k]);
		fprintf(out, " numel=%" PRId64 "\n", region->domain[i]);
	}
}

int graph_print(const struct graph *graph, FILE *out)
{
	uint32_t i;

	fprintf(out, "terra-graph 1 after %s\nbuild-id %s\nthreads %u\nlibrary ", graph->after,
		graph->build_id[0] ? graph->build_id : "-", graph->threads);
	print_quoted(graph->library, out);
	fputs("\nsource ", out);
	print_quoted(graph->source, out);
	fprintf(out, "\niteration %" PRIu64 " of %" PRIu64 "\n", graph->iteration, graph->iterations);
	for (i = 0; i < graph->n_ops; i++)
		print_op(&graph->ops[i], i, out);
	for (i = 0; i < graph->n_values; i++)
		print_value(&graph->values[i], out);
	for (i = 0; i < graph->n_stops; i++) {
		fprintf(out, "stop %u ", graph->stops[i].op);
		print_quoted(graph->stops[i].reason, out);
		fputc('\n', out);
	}
	for (i = 0; i < graph->n_regions; i++)
		print_region(&graph->regions[i], out);
	return ferror(out) ? -1 : 0;
}
