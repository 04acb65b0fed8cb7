/* codegen_emit.c - writes a region as C.
 *
 * The function goes over its range in blocks of TERRA_KERNEL_BLOCK, which stay in the first-level cache. In a block,
 * each run of ops is one loop over vectors, where values live in registers; framework functions are called for the
 * block between the loops. A value is stored when somebody outside wants it (args->result) or when a later run reads
 * it.
 *
 * Order within an element follows the program: an input is loaded where it is first used, so before an in-place op of
 * the same loop overwrites it, and after one only the new value's name may be used.
 */
#include <stdlib.h>
#include <string.h>

#include "graphopt/codegen_internal.h"
#include "graphopt/kernel_source.h"

void codegen_emit_prelude(FILE *out)
{
	fprintf(out, "#define BLOCK %d\n#define MAX_DIM %d\n#define MAX_INPUTS %d\n#define VECTOR %d\n#define VML_MODE %#x\n",
		TERRA_KERNEL_BLOCK, TERRA_KERNEL_MAX_DIM, TERRA_PLAN_MAX_INPUTS, KERNEL_VECTOR, KERNEL_VML_MODE);
	fputs(kernel_prelude, out);
	/* The prelude repeats two structs of plan.h; should they ever differ, kernels do not compile. */
	fprintf(out,
		"_Static_assert(sizeof(struct strided) == %zu && offsetof(struct strided, stride) == %zu, \"\");\n",
		sizeof(struct terra_strided), offsetof(struct terra_strided, stride));
	fprintf(out,
		"_Static_assert(sizeof(struct args) == %zu && offsetof(struct args, scalar) == %zu && "
		"offsetof(struct args, columns) == %zu && offsetof(struct args, scratch) == %zu, \"\");\n",
		sizeof(struct terra_kernel_args), offsetof(struct terra_kernel_args, scalar),
		offsetof(struct terra_kernel_args, columns), offsetof(struct terra_kernel_args, scratch));
}

static void emit_scalars(const struct codegen_region *region, FILE *out)
{
	for (uint32_t i = 0; i < region->n_scalars; i++)
		fprintf(out, "\tconst vec s%u = vnum((float)a->scalar[%u]);\n", i, i);
}

/* x<j>p: where the block of an input lies; v<k>p: where the block of a value goes. */
static void emit_pointers(const struct codegen_region *region, FILE *out)
{
	for (uint32_t j = 0; j < region->n_inputs; j++) {
		if (region->letter[j] == 'b')
			fprintf(out,
				"\t\tconst float *x%up = gather(&a->strided[%u], at, n, a->scratch + %u * BLOCK);\n", j,
				j, j);
		else
			fprintf(out, "\t\tconst float *x%up = (const float *)a->input[%u] + at;\n", j, j);
	}
	for (uint32_t k = 0; k < region->plan->n_ops; k++) {
		fprintf(out, "\t\tfloat *v%up = a->result[%u] ? (float *)a->result[%u] + at : ", k, k, k);
		if (region->op[k].stored)
			fprintf(out, "a->scratch + (MAX_INPUTS + %u) * BLOCK;\n", k);
		else
			fputs("NULL;\n", out);
	}
}

static void emit_import(const struct codegen_region *region, uint32_t k, FILE *out)
{
	const struct codegen_op *op = &region->op[k];

	fprintf(out, "\t\t((vml_fn)a->import[%u])((int)n, %c%up, v%up, VML_MODE); /* %s */\n", op->import,
		op->arg[0].token == CODEGEN_VALUE ? 'v' : 'x', op->arg[0].index, k, op->rule->import);
}

static void emit_name(const struct codegen_arg *arg, FILE *out)
{
	static const char letter[] = {[CODEGEN_VALUE] = 'v',   [CODEGEN_INPUT] = 'x',  [CODEGEN_STRIDED] = 'x',
				      [CODEGEN_COLUMNS] = 'x', [CODEGEN_SCALAR] = 's'};

	fprintf(out, "%c%u", letter[arg->token], arg->index);
}

/* A constant is converted here as the framework converts a number: double to float. */
static void emit_argument(const struct codegen_region *region, uint32_t k, uint32_t i, FILE *out)
{
	if (region->op[k].arg[i].token == CODEGEN_CONSTANT)
		fprintf(out, "vnum(%af)", (double)(float)strtod(region->plan->ops[k].arg[i] + 1, NULL));
	else
		emit_name(&region->op[k].arg[i], out);
}

void codegen_emit_expression(const struct codegen_region *region, uint32_t k, const char *c, FILE *out)
{
	for (; *c; c++) {
		if (*c == '%')
			fprintf(out, "%.0fLL", strtod(region->plan->ops[k].arg[*++c - '0'] + 1, NULL));
		else if (*c != '$')
			fputc(*c, out);
		else if (*++c == 'f' || *c == 'r')
			fprintf(out, "%c%u", *c, k);
		else
			emit_argument(region, k, (uint32_t)(*c - '0'), out);
	}
}

void codegen_emit_load(const struct codegen_arg *arg, bool part, struct codegen_loaded *loaded, FILE *out)
{
	bool *have;

	if (arg->token > CODEGEN_STRIDED)
		return;
	have = arg->token == CODEGEN_VALUE ? &loaded->value[arg->index] : &loaded->input[arg->index];
	if (*have)
		return;
	*have = true;
	fputs("\t\t\tconst vec ", out);
	emit_name(arg, out);
	fputs(part ? " = vload_part(" : " = vload(", out);
	emit_name(arg, out);
	fputs(part ? "p + i, mask);\n" : "p + i);\n", out);
}

void codegen_emit_value(const struct codegen_region *region, uint32_t k, bool part, struct codegen_loaded *loaded, FILE *out)
{
	const struct codegen_op *op = &region->op[k];

	for (uint32_t i = 0; i < region->plan->ops[k].n_args; i++)
		codegen_emit_load(&op->arg[i], part, loaded, out);
	fprintf(out, "\t\t\tconst vec v%u = ", k);
	codegen_emit_expression(region, k, op->rule->expr, out);
	fprintf(out, "; /* %s */\n", region->plan->ops[k].op);
	loaded->value[k] = true;
}

static void emit_store(const struct codegen_region *region, uint32_t k, bool part, FILE *out)
{
	fputs("\t\t\t", out);
	if (!region->op[k].stored)
		fprintf(out, "if (v%up)\n\t\t\t\t", k);
	fprintf(out, part ? "vstore_part(v%up + i, v%u, mask);\n" : "vstore(v%up + i, v%u);\n", k, k);
}

static void emit_body(const struct codegen_region *region, uint32_t from, uint32_t to, bool part, FILE *out)
{
	struct codegen_loaded loaded = {0};

	for (uint32_t k = from; k < to; k++) {
		codegen_emit_value(region, k, part, &loaded, out);
		emit_store(region, k, part, out);
	}
}

void codegen_emit_loop(const struct codegen_region *region, uint32_t from, uint32_t to, FILE *out)
{
	fputs("\t\tfor (i = 0; i + VECTOR <= n; i += VECTOR) {\n", out);
	emit_body(region, from, to, false, out);
	fputs("\t\t}\n\t\tif (i < n) {\n\t\t\tconst __m256i mask = part_mask(n - i);\n\n", out);
	emit_body(region, from, to, true, out);
	fputs("\t\t}\n", out);
}

static void emit_blocks(const struct codegen_region *region, FILE *out)
{
	const uint32_t n_ops = region->plan->n_ops;

	fputs("\tfor (int64_t at = begin; at < end; at += BLOCK) {\n", out);
	fputs("\t\tconst int64_t n = end - at < BLOCK ? end - at : BLOCK;\n\t\tint64_t i;\n\n\t\t(void)i;\n", out);
	emit_pointers(region, out);
	for (uint32_t from = 0, to; from < n_ops; from = to) {
		for (to = from + 1; to < n_ops && region->op[to].run == region->op[from].run; to++)
			;
		if (codegen_calls(&region->op[from]))
			emit_import(region, from, out);
		else
			codegen_emit_loop(region, from, to, out);
	}
	fputs("\t}\n", out);
}

void codegen_emit_region(const struct codegen_region *region, const char *symbol, FILE *out)
{
	fprintf(out, "\nvoid %s(const struct args *a, int64_t begin, int64_t end);\n", symbol);
	fprintf(out, "void %s(const struct args *a, int64_t begin, int64_t end)\n{\n", symbol);
	emit_scalars(region, out);
	if (region->by_rows)
		codegen_emit_rows(region, out);
	else
		emit_blocks(region, out);
	fputs("}\n", out);
}
