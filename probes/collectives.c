/* collectives.c - c10d's functions for the dispatcher; see collectives.h.
 *
 * c10d::ops::(anonymous namespace)::allreduce_CPU(...) is the kernel of operator c10d::allreduce_ for tensors of the CPU: the
 * operator's name with the device behind it. Its parameters are mangled like those of an op's entry point, and it returns
 * through a hidden pointer, as each of them returns an intrusive_ptr, alone or in a tuple.
 */
#include "probes/collectives.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probes/cache.h"
#include "probes/elf_file.h"
#include "probes/mangle.h"
#include "probes/optable.h"

#define PREFIX "_ZN4c10d3ops12_GLOBAL__N_1"
#define NAME_SIZE 72
#define CACHE_LAYOUT ((uint64_t)1 << 32 | sizeof(struct terra_collective))

/* As it is in the cache too; the op's strings are set where it is used. */
struct terra_collective {
	char name[NAME_SIZE];
	struct terra_op op;
};

static const char *const devices[] = { "CPU", "CUDA", "XPU", "HPU", "MTIA", "PrivateUse1" };

/* "allreduce_" of "allreduce_CPU"; 0 when it ends in no device. */
static size_t stem_size(const char *name, size_t size)
{
	for (size_t i = 0; i < sizeof(devices) / sizeof(*devices); i++) {
		size_t n = strlen(devices[i]);

		if (size > n && !memcmp(name + size - n, devices[i], n))
			return size - n;
	}
	return 0;
}

/* The name as that of an entry point, so that one parser serves both: the names before the parameters count as many
 * substitutions, and what stands for c10d in one is an unknown class in the other. */
static bool parse_parameters(const char *name, size_t size, const char *parameters, struct terra_signature *out)
{
	char mangled[1024];
	int n = snprintf(mangled, sizeof(mangled), "_ZN2at4_ops%zu%.*s4callE%s", size, (int)size, name, parameters);

	return n > 0 && (size_t)n < sizeof(mangled) && !terra_mangle_parse(mangled, out);
}

static bool take_symbol(const char *symbol, struct terra_collective *out)
{
	struct terra_signature signature;
	const char *name;
	char *end;
	size_t size, stem;

	if (strncmp(symbol, PREFIX, strlen(PREFIX)) != 0)
		return false;
	size = strtoul(symbol + strlen(PREFIX), &end, 10);
	name = end;
	if (!size || size > strlen(name) || name[size] != 'E' || strchr(name, '.'))
		return false;
	stem = stem_size(name, size);
	if (!stem || stem + sizeof("c10d::") > NAME_SIZE || !parse_parameters(name, size, name + size + 1, &signature))
		return false;
	snprintf(out->name, NAME_SIZE, "c10d::%.*s", (int)stem, name);
	out->op.level = TERRA_LEVEL_CALL;
	out->op.ret = TERRA_RET_OTHER_SRET;
	terra_places_assign(&signature, 1, &out->op);
	return true;
}

struct list {
	struct terra_collective *items;
	size_t n, capacity;
};

static struct terra_collective *room(struct list *list)
{
	if (list->n == list->capacity) {
		size_t wanted = list->capacity ? 2 * list->capacity : 64;
		struct terra_collective *larger = realloc(list->items, wanted * sizeof(*larger));

		if (!larger)
			return NULL;
		list->items = larger;
		list->capacity = wanted;
	}
	memset(&list->items[list->n], 0, sizeof(*list->items));
	return &list->items[list->n];
}

struct search {
	const struct terra_elf *elf;
	struct list *list;
};

static int add_symbol(void *context, const Elf64_Sym *symbol, const char *name)
{
	struct search *search = context;
	struct terra_collective *item = room(search->list);

	if (!item)
		return -ENOMEM;
	if (!take_symbol(name, item) ||
	    !terra_elf_file_offset(search->elf, symbol->st_value, &item->op.file_offset))
		return 0;
	item->op.address = symbol->st_value;
	item->op.size = symbol->st_size;
	search->list->n++;
	return 0;
}

static int find(const struct terra_elf *elf, struct list *list)
{
	struct search search = { .elf = elf, .list = list };

	return terra_elf_functions(elf, SHT_SYMTAB, add_symbol, &search);
}

static bool is_sound(const struct list *list)
{
	for (size_t i = 0; i < list->n; i++)
		if (!terra_op_is_possible(&list->items[i].op))
			return false;
	return true;
}

static int load_open(const struct terra_elf *elf, bool use_cache, struct list *list)
{
	struct terra_cache_key key;
	bool cached = use_cache && !terra_cache_key_make(elf, CACHE_LAYOUT, &key);
	void *block;
	size_t size;
	int error;

	if (cached && !terra_cache_read("collectives", &key, &block, &size)) {
		list->items = block;
		list->n = size / sizeof(*list->items);
		if (is_sound(list))
			return 0;
		free(block);
		*list = (struct list){ 0 };
	}
	error = find(elf, list);
	if (!error && cached && list->n)
		terra_cache_write("collectives", &key, list->items, list->n * sizeof(*list->items));
	return error;
}

static int load(const struct terra_op_table *table, bool use_cache, struct list *list)
{
	struct terra_elf elf;
	int error;

	if (terra_elf_open(table->library, &elf))
		return 0;
	error = load_open(&elf, use_cache, list);
	terra_elf_close(&elf);
	return error;
}

int terra_collectives_load(const struct terra_op_table *table, bool use_cache, struct terra_collectives *out)
{
	struct list list = { 0 };
	int error = load(table, use_cache, &list);

	memset(out, 0, sizeof(*out));
	out->table = *table;
	out->items = list.items;
	out->n = error ? 0 : (uint32_t)list.n;
	out->table.ops = malloc((table->n_ops + list.n + 1) * sizeof(*table->ops));
	if (!out->table.ops || error == -ENOMEM) {
		terra_collectives_free(out);
		return -ENOMEM;
	}
	memcpy(out->table.ops, table->ops, table->n_ops * sizeof(*table->ops));
	for (uint32_t i = 0; i < out->n; i++) {
		struct terra_op *op = &out->table.ops[out->table.n_ops++];

		list.items[i].name[NAME_SIZE - 1] = 0;
		*op = list.items[i].op;
		op->name = list.items[i].name;
		op->overload = op->mangled = "";
		op->schema = NULL;
	}
	return 0;
}

void terra_collectives_free(struct terra_collectives *collectives)
{
	free(collectives->table.ops);
	free(collectives->items);
	memset(collectives, 0, sizeof(*collectives));
}
