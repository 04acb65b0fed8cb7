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
	const struct terra_composite *a = left, *b = right;
	int order = compare_names(a->name, a->name_size, b->name, b->name_size);

	return order ? order : strcmp(a->types, b->types);
}

static int add(struct terra_composites *composites, const char *name, size_t size, const char *types)
{
	struct terra_composite *item;

	if (composites->n == composites->capacity) {
		size_t capacity = composites->capacity ? composites->capacity * 2 : 1024;
		struct terra_composite *items = realloc(composites->items, capacity * sizeof(*items));

		if (!items)
			return -ENOMEM;
		composites->items = items;
		composites->capacity = capacity;
	}
	item = &composites->items[composites->n];
	item->name = name;
	item->name_size = op_name_size(name, size);
	item->types = strdup(types);
	if (!item->types)
		return -ENOMEM;
	composites->n++;
	return 0;
}

static int add_symbol(const struct terra_elf *elf, const Elf64_Sym *symbol, struct terra_composites *out)
{
	const char *mangled = terra_elf_symbol_name(elf, symbol), *name;
	char types[TYPES_SIZE];
	size_t size;

	if (!mangled || ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || symbol->st_shndx == SHN_UNDEF)
		return 0;
	if (terra_mangle_spell_composite(mangled, &name, &size, types, sizeof(types)))
		return 0;
	return add(out, name, size, types);
}

int terra_composites_find(const struct terra_elf *elf, struct terra_composites *out)
{
	int err = 0;

	memset(out, 0, sizeof(*out));
	for (size_t i = 0; i < elf->n_symbols && !err; i++)
		err = add_symbol(elf, &elf->symbols[i], out);
	if (err)
		terra_composites_free(out);
	else if (out->n)
		qsort(out->items, out->n, sizeof(*out->items), compare);
	return err;
}

void terra_composites_free(struct terra_composites *composites)
{
	for (size_t i = 0; i < composites->n; i++)
		free(composites->items[i].types);
	free(composites->items);
	memset(composites, 0, sizeof(*composites));
}

bool terra_is_composite(const struct terra_composites *composites, const char *name, size_t name_size,
			const char *mangled)
{
	char types[TYPES_SIZE];
	struct terra_composite wanted = {.name = name, .name_size = name_size, .types = types};

	if (!composites->n || terra_mangle_spell_op(mangled, types, sizeof(types)))
		return false;
	return bsearch(&wanted, composites->items, composites->n, sizeof(*composites->items), compare) != NULL;
}
