/* codegen_rows.c - writes a region that goes by rows as C.
 *
 * For each row there is one loop for every op that needs a sum over the row, which computes what is summed and all that it
 * depends on, and one loop that computes all values and stores those that somebody wants. Computing twice costs less than
 * memory would: the rows of a loss are long, and what its gradient begins with is zero but in one column.
 *
 * Sums are in the framework's order (its vec::reduce_all): a vector of sums over the row, then its lanes.
 */
#include <string.h>

#include "graphopt/codegen_internal.h"

static void emit_functions(const struct codegen_region *region, FILE *out)
{
	for (uint32_t k = 0; k < region->plan->n_ops; k++)
		if (region->op[k].rule->function)
			fprintf(out, "\tconst vector_fn f%u = (vector_fn)a->import[%u]; /* %s */\n", k,
				region->op[k].import, region->op[k].rule->function);
}

/* x<j>p and v<k>p as in blocks, for the row; x<j>: the row's column number. */
static void emit_pointers(const struct codegen_region *region, FILE *out)
{
	for (uint32_t j = 0; j < region->n_inputs; j++) {
		if (region->letter[j] == 'r')
			fprintf(out, "\t\tconst int64_t x%u = ((const int64_t *)a->strided[%u].data)[at / n];\n", j, j);
		else
			fprintf(out, "\t\tconst float *x%up = (const float *)a->input[%u] + at;\n\t\t(void)x%up;\n", j, j, j);
	}
	for (uint32_t k = 0; k < region->plan->n_ops; k++)
		fprintf(out, "\t\tfloat *v%up = a->result[%u] ? (float *)a->result[%u] + at : NULL;\n", k, k, k);
}

/* Whether the expression names argument i. */
static bool names(const char *expr, uint32_t i)
{
	for (; *expr; expr++)
		if (expr[0] == '$' && expr[1] == (char)('0' + i))
			return true;
	return false;
}

static void need_values(const struct codegen_region *region, uint32_t k, const char *expr, bool *needed)
{
	for (uint32_t i = 0; i < region->plan->ops[k].n_args; i++)
		if (region->op[k].arg[i].token == CODEGEN_VALUE && names(expr, i))
			needed[region->op[k].arg[i].index] = true;
}

/* One vector's step of op k's sum. The row's first term begins it: zero + -0 would be zero. */
static void emit_sum_step(const struct codegen_region *region, uint32_t k, const bool *needed, bool part, FILE *out)
{
	struct codegen_loaded loaded = {0};

	for (uint32_t m = 0; m < k; m++)
		if (needed[m])
			codegen_emit_value(region, m, part, &loaded, out);
	for (uint32_t i = 0; i < region->plan->ops[k].n_args; i++)
		if (names(region->op[k].rule->sum, i))
			codegen_emit_load(&region->op[k].arg[i], part, &loaded, out);
	fputs("\t\t\tconst vec term = ", out);
	codegen_emit_expression(region, k, region->op[k].rule->sum, out);
	fprintf(out, part ? ";\n\t\t\tr%u = i ? sum_part(r%u, term, mask) : term;\n" :
			    ";\n\t\t\tr%u = i ? vadd(r%u, term) : term;\n", k, k);
}

static void emit_sum(const struct codegen_region *region, uint32_t k, FILE *out)
{
	bool needed[TERRA_PLAN_MAX_OPS] = {0};

	need_values(region, k, region->op[k].rule->sum, needed);
	for (uint32_t m = k; m-- > 0;)
		if (needed[m])
			need_values(region, m, region->op[m].rule->expr, needed);
	fprintf(out, "\t\tvec r%u = vnum(0);\n", k);
	fputs("\t\tfor (i = 0; i + VECTOR <= n; i += VECTOR) {\n", out);
	emit_sum_step(region, k, needed, false, out);
	fputs("\t\t}\n\t\tif (i < n) {\n\t\t\tconst __m256i mask = part_mask(n - i);\n\n", out);
	emit_sum_step(region, k, needed, true, out);
	fprintf(out, "\t\t}\n\t\tr%u = sum_lanes(r%u, n);\n", k, k);
}

void codegen_emit_rows(const struct codegen_region *region, FILE *out)
{
	fputs("\tconst int64_t n = a->columns;\n", out);
	emit_functions(region, out);
	fputs("\n\tfor (int64_t at = begin; at < end; at += n) {\n\t\tint64_t i;\n", out);
	emit_pointers(region, out);
	for (uint32_t k = 0; k < region->plan->n_ops; k++)
		if (region->op[k].rule->sum)
			emit_sum(region, k, out);
	codegen_emit_loop(region, 0, region->plan->n_ops, out);
	fputs("\t}\n", out);
}
