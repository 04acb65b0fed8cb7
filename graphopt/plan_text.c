/* plan_text.c - prints the text section. */
#include <string.h>

#include "graphopt/plan_internal.h"
#include "graphopt/plan_ops.h"

void plan_print_quoted(FILE *out, const char *text)
{
	const unsigned char *p;

	fputc('"', out);
	for (p = (const unsigned char *)(text ? text : ""); *p; p++) {
		if (*p == '"' || *p == '\\')
			fprintf(out, "\\%c", *p);
		else if (*p < 0x20 || *p == 0x7f)
			fprintf(out, "\\x%02x", *p);
		else
			fputc(*p, out);
	}
	fputc('"', out);
}

int terra_plan_op_text(const struct terra_plan_op *op, char *out, size_t size)
{
	int n = snprintf(out, size, "%s", op->op);
	uint32_t i;

	for (i = 0; i < op->n_args; i++)
		n += snprintf((size_t)n < size ? out + n : NULL, (size_t)n < size ? size - (size_t)n : 0, " %s",
			      op->arg[i]);
	return n;
}

static void print_region(const struct terra_plan_region *region, FILE *out)
{
	uint32_t i, j;

	fprintf(out, "%s %u ", region->fallback ? "fallback" : "region", region->id);
	plan_print_quoted(out, region->name);
	fprintf(out, " kernel=%s gain=%.17g eager-ns=%.17g fused-ns=%.17g numel=%lld\n", region->kernel, region->gain,
		region->eager_ns, region->fused_ns, (long long)region->numel);
	for (i = 0; i < region->n_ops; i++) {
		fprintf(out, "\t%s", region->ops[i].op);
		for (j = 0; j < region->ops[i].n_args; j++)
			fprintf(out, " %s", region->ops[i].arg[j]);
		fputc('\n', out);
	}
}

static void print_replace(const struct terra_plan_replace *replace, FILE *out)
{
	fprintf(out, "replace %s form=%s", replace->op, replace->form);
	if (replace->shape)
		fprintf(out, " shape=%s", replace->shape);
	fprintf(out, " kernel=%s gain=%.17g\n", replace->kernel, replace->gain);
}

static void print_environment(const struct terra_plan *plan, FILE *out)
{
	fprintf(out, "terra-plan %d\nbuild-id %s\ncpu ", TERRA_PLAN_VERSION, plan->build_id);
	plan_print_quoted(out, plan->cpu);
	fputs("\ncpu-vendor ", out);
	plan_print_quoted(out, plan->cpu_vendor);
	fprintf(out, "\nthreads %u\nsource ", plan->threads);
	plan_print_quoted(out, plan->source);
	fputc('\n', out);
}

int plan_print(const struct terra_plan *plan, FILE *out)
{
	uint32_t i;

	print_environment(plan, out);
	for (i = 0; i < plan->n_passive; i++)
		fprintf(out, "passive %s\n", plan->passive[i]);
	for (i = 0; i < plan->n_lists; i++)
		fprintf(out, "list %s\n", plan->lists[i]);
	for (i = 0; i < plan->n_imports; i++)
		fprintf(out, "import %s\n", plan->imports[i]);
	for (i = 0; i < plan->n_regions; i++)
		print_region(&plan->regions[i], out);
	for (i = 0; i < plan->n_replaces; i++)
		print_replace(&plan->replaces[i], out);
	fputs("end\n", out);
	return ferror(out) ? -1 : 0;
}
