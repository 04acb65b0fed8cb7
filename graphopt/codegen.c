/* codegen.c - from a plan's regions to its code section. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/codegen_internal.h"
#include "graphopt/kernel_source.h"
#include "graphopt/plan_internal.h"

struct replace_form {
	const char *name, *symbol;
	int (*emit)(struct codegen_imports *imports, FILE *out);
};

static int emit_mt19937(struct codegen_imports *imports, FILE *out)
{
	fputs(kernel_mt19937_bernoulli, out);
	return 0;
}

static int emit_sgemm(struct codegen_imports *imports, FILE *out)
{
	uint32_t import;
	int ret = codegen_import(imports, "sgemm_", &import);

	fprintf(out, "#define SGEMM_IMPORT %u\n%s", import, kernel_sgemm_tiles);
	fprintf(out, "_Static_assert(offsetof(struct sgemm_args, a) == %zu && sizeof(struct sgemm_args) == %zu, \"\");\n",
		offsetof(struct terra_sgemm_args, a), sizeof(struct terra_sgemm_args));
	return ret;
}

static const struct replace_form replace_forms[] = {
    {"mt19937_bernoulli", "terra_mt19937_bernoulli", emit_mt19937},
    {"sgemm_tiles", "terra_sgemm_tiles", emit_sgemm},
};

static const struct replace_form *find_form(const char *name)
{
	for (size_t i = 0; i < sizeof(replace_forms) / sizeof(replace_forms[0]); i++)
		if (!strcmp(replace_forms[i].name, name))
			return &replace_forms[i];
	return NULL;
}

static void region_symbol(const struct terra_plan_region *region, char *out, size_t size)
{
	snprintf(out, size, "terra_region_%u", region->id);
}

static bool id_is_taken(const struct terra_plan *plan, uint32_t index)
{
	for (uint32_t i = 0; i < index; i++)
		if (plan->regions[i].id == plan->regions[index].id)
			return true;
	return false;
}

/* One kernel per form serves all replacements of it. */
static int emit_replaces(const struct terra_plan *plan, struct codegen_imports *imports, FILE *out, char *err,
			 size_t err_size)
{
	for (uint32_t i = 0; i < plan->n_replaces; i++) {
		const struct replace_form *form = find_form(plan->replaces[i].form);
		uint32_t first = 0;

		if (!form)
			return codegen_error(err, err_size, -EINVAL, "no kernel of the form %s for %s",
					     plan->replaces[i].form, plan->replaces[i].op);
		while (strcmp(plan->replaces[first].form, form->name))
			first++;
		if (first == i && form->emit(imports, out))
			return codegen_error(err, err_size, -ENOMEM, "out of memory");
	}
	return 0;
}

/* The whole source. `resolved` has room for every region, for later. */
static int emit_plan(const struct terra_plan *plan, const struct codegen_options *options,
		     struct codegen_imports *imports, struct codegen_region *resolved, FILE *out, char *err,
		     size_t err_size)
{
	char symbol[32];
	int ret;

	codegen_emit_prelude(out);
	for (uint32_t i = 0; i < plan->n_regions; i++) {
		if (id_is_taken(plan, i))
			return codegen_error(err, err_size, -EINVAL, "two regions have the id %u", plan->regions[i].id);
		ret = codegen_resolve(&plan->regions[i], options, imports, &resolved[i], err, err_size);
		if (ret < 0)
			return ret;
		region_symbol(&plan->regions[i], symbol, sizeof(symbol));
		codegen_emit_region(&resolved[i], symbol, out);
	}
	return emit_replaces(plan, imports, out, err, err_size);
}

static int check_cpu(char *err, size_t err_size)
{
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return 0;
	return codegen_error(err, err_size, -ENOTSUP, "kernels need a CPU with AVX2 and FMA");
}

/* Allocates all strings first, so that the plan changes only when nothing can fail any more. */
struct names {
	char **region, **replace;
	char *cpu, *cpu_vendor;
};

static void names_free(const struct terra_plan *plan, struct names *names)
{
	for (uint32_t i = 0; names->region && i < plan->n_regions; i++)
		free(names->region[i]);
	for (uint32_t i = 0; names->replace && i < plan->n_replaces; i++)
		free(names->replace[i]);
	free(names->region);
	free(names->replace);
	free(names->cpu);
	free(names->cpu_vendor);
}

static int names_make(const struct terra_plan *plan, struct names *names)
{
	char symbol[32], vendor[13];
	bool ok;

	names->region = calloc(plan->n_regions + 1, sizeof(char *));
	names->replace = calloc(plan->n_replaces + 1, sizeof(char *));
	names->cpu = strdup(plan->cpu ? plan->cpu : KERNEL_CPU);
	plan_cpu_vendor(vendor);
	names->cpu_vendor = strdup(vendor);
	ok = names->region && names->replace && names->cpu && names->cpu_vendor;
	for (uint32_t i = 0; ok && i < plan->n_regions; i++) {
		region_symbol(&plan->regions[i], symbol, sizeof(symbol));
		names->region[i] = strdup(symbol);
		ok = names->region[i];
	}
	for (uint32_t i = 0; ok && i < plan->n_replaces; i++) {
		names->replace[i] = strdup(find_form(plan->replaces[i].form)->symbol);
		ok = names->replace[i];
	}
	return ok ? 0 : -ENOMEM;
}

static void take(char **place, char **value)
{
	free(*place);
	*place = *value;
	*value = NULL;
}

static void install(struct terra_plan *plan, struct names *names, struct codegen_imports *imports,
		    const struct codegen_region *resolved)
{
	for (uint32_t i = 0; i < plan->n_regions; i++) {
		take(&plan->regions[i].kernel, &names->region[i]);
		plan->regions[i].n_inputs = resolved[i].n_inputs;
		plan->regions[i].n_scalars = resolved[i].n_scalars;
		plan->regions[i].by_rows = resolved[i].by_rows;
		plan->regions[i].fn = NULL;
	}
	for (uint32_t i = 0; i < plan->n_replaces; i++) {
		take(&plan->replaces[i].kernel, &names->replace[i]);
		plan->replaces[i].fn = NULL;
	}
	take(&plan->cpu, &names->cpu);
	take(&plan->cpu_vendor, &names->cpu_vendor);
	for (uint32_t i = 0; i < plan->n_imports; i++)
		free(plan->imports[i]);
	free(plan->imports);
	plan->imports = imports->names;
	plan->n_imports = imports->n;
	memset(imports, 0, sizeof(*imports));
}

int codegen_plan_with(struct terra_plan *plan, const struct codegen_options *options, char *err, size_t err_size)
{
	struct codegen_region *resolved = calloc(plan->n_regions + 1, sizeof(*resolved));
	struct codegen_imports imports = {0};
	struct names names = {0};
	char *source = NULL;
	size_t size = 0, code_size;
	void *code;
	FILE *out = open_memstream(&source, &size);
	int ret = check_cpu(err, err_size);

	if (!ret && (!resolved || !out))
		ret = codegen_error(err, err_size, -ENOMEM, "out of memory");
	if (!ret)
		ret = emit_plan(plan, options, &imports, resolved, out, err, err_size);
	if (!ret && names_make(plan, &names))
		ret = codegen_error(err, err_size, -ENOMEM, "out of memory");
	if (ret < 0)
		goto err_out;
	ret = fclose(out) ? codegen_error(err, err_size, -ENOMEM, "out of memory") : 0;
	out = NULL;
	if (!ret)
		ret = codegen_compile(source, size, options, &code, &code_size, err, err_size);
	if (ret < 0)
		goto err_out;
	install(plan, &names, &imports, resolved);
	free(plan->code);
	plan->code = code;
	plan->code_size = code_size;
err_out:
	if (out)
		fclose(out);
	free(source);
	names_free(plan, &names);
	codegen_imports_free(&imports);
	free(resolved);
	return ret;
}

int codegen_plan(struct terra_plan *plan, const char *work_dir, char *err, size_t err_size)
{
	const struct codegen_options options = {.work_dir = work_dir};

	return codegen_plan_with(plan, &options, err, err_size);
}

int codegen_source(const struct terra_plan *plan, FILE *out, char *err, size_t err_size)
{
	struct codegen_region *resolved = calloc(plan->n_regions + 1, sizeof(*resolved));
	struct codegen_imports imports = {0};
	int ret = -ENOMEM;

	if (resolved)
		ret = emit_plan(plan, NULL, &imports, resolved, out, err, err_size);
	if (!ret && ferror(out))
		ret = codegen_error(err, err_size, -EIO, "can't write the source");
	codegen_imports_free(&imports);
	free(resolved);
	return ret;
}
