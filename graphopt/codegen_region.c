/* codegen_region.c - reads the lines of a region: which rule each op has, what its tokens mean, what goes into one
 * loop. */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/codegen_internal.h"
#include "graphopt/plan_ops.h"

int codegen_error(char *err, size_t err_size, int code, const char *format, ...)
{
	va_list ap;

	if (err && err_size) {
		va_start(ap, format);
		vsnprintf(err, err_size, format, ap);
		va_end(ap);
	}
	return code;
}

void codegen_imports_free(struct codegen_imports *imports)
{
	for (uint32_t i = 0; i < imports->n; i++)
		free(imports->names[i]);
	free(imports->names);
	memset(imports, 0, sizeof(*imports));
}

int codegen_import(struct codegen_imports *imports, const char *name, uint32_t *out)
{
	char **names;

	for (*out = 0; *out < imports->n; (*out)++)
		if (!strcmp(imports->names[*out], name))
			return 0;
	names = realloc(imports->names, (imports->n + 1) * sizeof(*names));
	if (!names)
		return -ENOMEM;
	imports->names = names;
	names[imports->n] = strdup(name);
	if (!names[imports->n])
		return -ENOMEM;
	imports->n++;
	return 0;
}

static const struct oprule *find_rule(const struct terra_plan_op *op, const struct codegen_options *options)
{
	for (size_t i = 0; options && i < options->n_rules; i++)
		if (oprule_fits(&options->rules[i], op))
			return &options->rules[i];
	return oprule_match(op);
}

static bool read_index(const char *token, uint32_t limit, uint32_t *out)
{
	char *end;
	unsigned long value = strtoul(token + 1, &end, 10);

	*out = (uint32_t)value;
	return token[1] >= '0' && token[1] <= '9' && !*end && value < limit;
}

static bool resolve_input(struct codegen_region *region, char letter, const char *token, struct codegen_arg *out)
{
	out->token = letter == 'b' ? CODEGEN_STRIDED : letter == 'r' ? CODEGEN_COLUMNS : CODEGEN_INPUT;
	if (!read_index(token, TERRA_PLAN_MAX_INPUTS, &out->index) || out->index > region->n_inputs)
		return false;
	if (out->index == region->n_inputs)
		region->letter[region->n_inputs++] = letter;
	return region->letter[out->index] == letter;
}

static bool resolve_token(struct codegen_region *region, uint32_t op, const char *token, struct codegen_arg *out)
{
	switch (*token) {
	case 'v':
		out->token = CODEGEN_VALUE;
		return read_index(token, op, &out->index);
	case 'i':
	case 'b':
	case 'r':
		return resolve_input(region, *token, token, out);
	case 'l':
		out->token = CODEGEN_LAST_DIM;
		return !token[1];
	case 's':
	case 'f':
		out->token = CODEGEN_SCALAR;
		out->index = region->n_scalars++;
		return !token[1] && region->n_scalars <= TERRA_PLAN_MAX_SCALARS;
	case '#':
		out->token = CODEGEN_CONSTANT;
		return true;
	default:
		out->token = CODEGEN_ABSENT;
		return !strcmp(token, "-");
	}
}

static int resolve_op(struct codegen_region *region, uint32_t index, const struct codegen_options *options,
		      struct codegen_imports *imports, char *err, size_t err_size)
{
	const struct terra_plan_op *line = &region->plan->ops[index];
	struct codegen_op *op = &region->op[index];
	char text[256];

	terra_plan_op_text(line, text, sizeof(text));
	op->rule = find_rule(line, options);
	if (!op->rule) {
		const char *why = oprule_excluded(line->op);

		return codegen_error(err, err_size, -EINVAL, "region %u, op %u (%s) has no rule%s%s", region->plan->id,
				     index, text, why ? ": " : "", why ? why : "");
	}
	for (uint32_t i = 0; i < line->n_args; i++)
		if (!resolve_token(region, index, line->arg[i], &op->arg[i]))
			return codegen_error(err, err_size, -EINVAL,
					     "region %u, op %u (%s): argument %u makes no sense", region->plan->id,
					     index, text, i);
	if (codegen_calls(op) && region->by_rows)
		return codegen_error(err, err_size, -EINVAL, "region %u, op %u (%s) calls a function for blocks in a region by rows",
				     region->plan->id, index, text);
	if ((codegen_calls(op) && codegen_import(imports, op->rule->import, &op->import) < 0) ||
	    (op->rule->function && codegen_import(imports, op->rule->function, &op->import) < 0))
		return codegen_error(err, err_size, -ENOMEM, "out of memory");
	return 0;
}

/* A value that an import or a later run reads goes through memory; all others stay in registers. */
static void divide_into_runs(struct codegen_region *region)
{
	uint32_t run = 0;

	for (uint32_t k = 0; k < region->plan->n_ops; k++) {
		struct codegen_op *op = &region->op[k];

		if (k && (codegen_calls(op) || codegen_calls(&region->op[k - 1])))
			run++;
		op->run = run;
		op->stored = codegen_calls(op);
		for (uint32_t i = 0; i < region->plan->ops[k].n_args; i++)
			if (op->arg[i].token == CODEGEN_VALUE && region->op[op->arg[i].index].run != run)
				region->op[op->arg[i].index].stored = true;
	}
}

int codegen_resolve(const struct terra_plan_region *region, const struct codegen_options *options,
		    struct codegen_imports *imports, struct codegen_region *out, char *err, size_t err_size)
{
	int ret;

	memset(out, 0, sizeof(*out));
	out->plan = region;
	if (!region->n_ops || region->n_ops > TERRA_PLAN_MAX_OPS)
		return codegen_error(err, err_size, -EINVAL, "region %u has %u ops: 1 to %d are possible", region->id,
				     region->n_ops, TERRA_PLAN_MAX_OPS);
	out->by_rows = terra_plan_region_by_rows(region);
	for (uint32_t k = 0; k < region->n_ops; k++) {
		ret = resolve_op(out, k, options, imports, err, err_size);
		if (ret < 0)
			return ret;
	}
	divide_into_runs(out);
	return 0;
}

int codegen_verify_region(const struct terra_plan_region *region, char *err, size_t err_size)
{
	struct codegen_imports imports = {0};
	struct codegen_region *resolved = malloc(sizeof(*resolved));
	int ret = -ENOMEM;

	if (resolved)
		ret = codegen_resolve(region, NULL, &imports, resolved, err, err_size);
	codegen_imports_free(&imports);
	free(resolved);
	return ret;
}
