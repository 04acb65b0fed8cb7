/* composite.c - the set of composite implicit kernels of a library; see composite.h. */
#include "probes/composite.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "probes/mangle.h"

#define TYPES_SIZE 4096

/* The same op in C++: with symbolic sizes, and with its output last. (A function NAME_out takes the output first, which
 * no entry point does.) */
static size_t op_name_size(const char *name, size_t size)
{
	static const char *const endings[] = {"_outf", "_symint"}; /* in this order: NAME_symint_outf */

	for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
		size_t n = strlen(endings[i]);

		if (size > n && memcmp(name + size - n, endings[i], n) == 0)
			size -= n;
	}
	return size;
}

static int compare_names(const char *a, size_t a_size, const char *b, size_t b_size)
{
	int order = memcmp(a, b, a_size < b_size ? a_size : b_size);

	return order ? order : (a_size > b_size) - (a_size < b_size);
}

static int compare(const void *left, const void *right)
{
	const struct terra_op_function *a = left, *b = right;
	int order = compare_names(a->name, a->name_size, b->name, b->name_size);

	return order ? order : strcmp(a->types, b->types);
}

static int add(struct terra_op_functions *functions, const char *name, size_t size, const char *types)
{
	struct terra_op_function *item;

	if (functions->n == functions->capacity) {
		size_t capacity = functions->capacity ? functions->capacity * 2 : 1024;
		struct terra_op_function *items = realloc(functions->items, capacity * sizeof(*items));

		if (!items)
			return -ENOMEM;
		functions->items = items;
		functions->capacity = capacity;
	}
	item = &functions->items[functions->n];
	item->name = name;
	item->name_size = op_name_size(name, size);
	item->types = strdup(types);
	if (!item->types)
		return -ENOMEM;
	functions->n++;
	return 0;
}

static int add_symbol(const struct terra_elf *elf, const Elf64_Sym *symbol, struct terra_composites *out)
{
	const char *mangled = terra_elf_symbol_name(elf, symbol), *name;
	char types[TYPES_SIZE];
	size_t size;

	if (!mangled || ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || symbol->st_shndx == SHN_UNDEF)
		return 0;
	if (!terra_mangle_spell_function(mangled, "compositeimplicitautograd", &name, &size, types, sizeof(types)))
		return add(&out->implicit, name, size, types);
	if (!terra_mangle_spell_function(mangled, "cpu", &name, &size, types, sizeof(types)))
		return add(&out->cpu, name, size, types);
	return 0;
}

static void sort(struct terra_op_functions *functions)
{
	if (functions->n)
		qsort(functions->items, functions->n, sizeof(*functions->items), compare);
}

int terra_composites_find(const struct terra_elf *elf, struct terra_composites *out)
{
	int err = 0;

	memset(out, 0, sizeof(*out));
	for (size_t i = 0; i < elf->n_symbols && !err; i++)
		err = add_symbol(elf, &elf->symbols[i], out);
	if (err)
		terra_composites_free(out);
	sort(&out->implicit);
	sort(&out->cpu);
	return err;
}

static void free_functions(struct terra_op_functions *functions)
{
	for (size_t i = 0; i < functions->n; i++)
		free(functions->items[i].types);
	free(functions->items);
	memset(functions, 0, sizeof(*functions));
}

void terra_composites_free(struct terra_composites *composites)
{
	free_functions(&composites->implicit);
	free_functions(&composites->cpu);
}

static bool has(const struct terra_op_functions *functions, const struct terra_op_function *wanted)
{
	return functions->n && bsearch(wanted, functions->items, functions->n, sizeof(*functions->items), compare);
}

bool terra_is_composite(const struct terra_composites *composites, const char *name, size_t name_size,
			const char *mangled)
{
	char types[TYPES_SIZE];
	struct terra_op_function wanted = {.name = name, .name_size = name_size, .types = types};

	if (!composites->implicit.n || terra_mangle_spell_op(mangled, types, sizeof(types)))
		return false;
	return has(&composites->implicit, &wanted) && !has(&composites->cpu, &wanted);
}
