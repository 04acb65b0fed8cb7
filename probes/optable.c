/* optable.c - the op table of a library: symbols, signatures and schemas put together; see op.h.
 *
 * A table is one block: the ops, then their strings. That block with string pointers turned into offsets is also what
 * the cache file holds.
 */
#include "probes/optable.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probes/cache.h"
#include "probes/composite.h"
#include "probes/schema.h"

/* Raise when the meaning of a stored table changes. */
#define CACHE_VERSION 3u
#define CACHE_LAYOUT ((uint64_t)CACHE_VERSION << 32 | (uint64_t)TERRA_KIND_COUNT << 16 | sizeof(struct terra_op))

/* Of a mangled name; the longest that was seen has 222 bytes. */
#define NAME_MAX_SIZE 4096

/* An op while the table is being built; its strings are still spans of the ELF file. */
struct draft {
	struct terra_op op;
	const char *namespace;
	const char *name;
	size_t name_size;
	const char *overload;
	size_t overload_size;
};

struct drafts {
	struct draft *items;
	size_t n;
	size_t capacity;
};

/* Grows a block of strings; positions, not pointers, because it moves. */
struct strings {
	char *data;
	size_t size;
	size_t capacity;
	int err;
};

static int report(char *err, size_t err_size, int code, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	if (err && err_size)
		vsnprintf(err, err_size, format, arguments);
	va_end(arguments);
	return code;
}

static struct draft *new_draft(struct drafts *drafts)
{
	if (drafts->n == drafts->capacity) {
		size_t capacity = drafts->capacity ? drafts->capacity * 2 : 1024;
		struct draft *items = realloc(drafts->items, capacity * sizeof(*items));

		if (!items)
			return NULL;
		drafts->items = items;
		drafts->capacity = capacity;
	}
	memset(&drafts->items[drafts->n], 0, sizeof(*drafts->items));
	return &drafts->items[drafts->n++];
}

/* What is looked up of every op. */
struct sources {
	struct terra_schema_index schemas;
	struct terra_composites composites;
};

/* What is written to shows in the schema also where C++ hides it behind const: Tensor(a!)[] and resize_'s self. */
static void mark_mutable(const struct terra_schema *schema, struct terra_op *op)
{
	const char *at = schema->text + schema->head_size + 1;
	struct terra_schema_argument argument;
	unsigned i = op->level == TERRA_LEVEL_REDISPATCH ? 1 : 0;

	for (; i < op->n_args && terra_schema_next_argument(&at, &argument); i++)
		if (argument.type.is_mutable)
			op->args[i].is_mutable = 1;
}

static void describe(struct sources *sources, const struct terra_signature *signature, struct draft *draft)
{
	struct terra_schema schema;
	const char *returns = NULL;

	draft->op.level = signature->level;
	draft->op.has_sret = 0xff;
	draft->namespace = "";
	draft->name = signature->class_name;
	draft->name_size = signature->class_size;
	if (terra_schema_find(&sources->schemas, signature, &schema)) {
		draft->namespace = "aten::";
		draft->name = schema.text;
		draft->name_size = schema.name_size;
		if (schema.head_size > schema.name_size) {
			draft->overload = schema.text + schema.name_size + 1;
			draft->overload_size = schema.head_size - schema.name_size - 1;
		}
		draft->op.schema = schema.text;
		draft->op.composite = signature->level == TERRA_LEVEL_CALL &&
				      terra_is_composite(&sources->composites, draft->name, draft->name_size,
							 draft->op.mangled);
		returns = terra_schema_returns(&schema);
	}
	if (returns)
		terra_returns_parse(returns, &draft->op);
	terra_places_assign(signature, draft->op.has_sret, &draft->op);
	if (draft->op.schema)
		mark_mutable(&schema, &draft->op);
}

static int add_symbol(const struct terra_elf *elf, const Elf64_Sym *symbol, struct sources *sources,
		      struct drafts *drafts)
{
	const char *name = terra_elf_symbol_name(elf, symbol);
	struct terra_signature signature;
	struct draft *draft;
	uint64_t offset;

	if (!name || ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || symbol->st_shndx == SHN_UNDEF ||
	    strnlen(name, NAME_MAX_SIZE) == NAME_MAX_SIZE)
		return 0;
	if (terra_mangle_parse(name, &signature) || !terra_elf_file_offset(elf, symbol->st_value, &offset))
		return 0;
	draft = new_draft(drafts);
	if (!draft)
		return -ENOMEM;
	draft->op.mangled = name;
	draft->op.address = symbol->st_value;
	draft->op.file_offset = offset;
	draft->op.size = symbol->st_size;
	describe(sources, &signature, draft);
	return 0;
}

/* Byte `i` of a draft's full name, 0 behind its end. */
static int name_byte(const struct draft *draft, size_t i)
{
	size_t prefix = strlen(draft->namespace);

	if (i < prefix)
		return (unsigned char)draft->namespace[i];
	return i - prefix < draft->name_size ? (unsigned char)draft->name[i - prefix] : 0;
}

static int compare_names(const struct draft *a, const struct draft *b)
{
	for (size_t i = 0;; i++) {
		int x = name_byte(a, i), y = name_byte(b, i);

		if (x != y || x == 0)
			return x - y;
	}
}

static int compare_overloads(const struct draft *a, const struct draft *b)
{
	size_t n = a->overload_size < b->overload_size ? a->overload_size : b->overload_size;
	int order = n ? memcmp(a->overload, b->overload, n) : 0;

	return order ? order : (a->overload_size > b->overload_size) - (a->overload_size < b->overload_size);
}

static int compare_drafts(const void *left, const void *right)
{
	const struct draft *a = left, *b = right;
	int order = compare_names(a, b);

	if (order == 0)
		order = compare_overloads(a, b);
	if (order == 0)
		order = (int)a->op.level - (int)b->op.level;
	return order ? order : strcmp(a->op.mangled, b->op.mangled);
}

/* A symbol that is there again, as only a hostile file has it: each would have its own copy of the strings. */
static void drop_repeated(struct drafts *drafts)
{
	size_t n = 0;

	for (size_t i = 0; i < drafts->n; i++)
		if (n == 0 || compare_drafts(&drafts->items[n - 1], &drafts->items[i]) != 0)
			drafts->items[n++] = drafts->items[i];
	drafts->n = n;
}

static int collect(const struct terra_elf *elf, struct drafts *drafts)
{
	struct sources sources;
	int err = terra_schema_index_build(elf, &sources.schemas);

	if (!err)
		err = terra_composites_find(elf, &sources.composites);
	if (err) {
		terra_schema_index_free(&sources.schemas);
		return err;
	}
	for (size_t i = 0; i < elf->n_symbols && !err; i++)
		err = add_symbol(elf, &elf->symbols[i], &sources, drafts);
	terra_composites_free(&sources.composites);
	terra_schema_index_free(&sources.schemas);
	if (!err && drafts->n) {
		qsort(drafts->items, drafts->n, sizeof(*drafts->items), compare_drafts);
		drop_repeated(drafts);
	}
	return err;
}

static size_t add_bytes(struct strings *strings, const char *text, size_t size)
{
	size_t at = strings->size;

	if (size > strings->capacity - at) {
		size_t capacity = (strings->capacity + size) * 2;
		char *data = realloc(strings->data, capacity);

		if (!data) {
			strings->err = -ENOMEM;
			return 0;
		}
		strings->data = data;
		strings->capacity = capacity;
	}
	if (size)
		memcpy(strings->data + at, text, size);
	strings->size += size;
	return at;
}

static size_t add_string(struct strings *strings, const char *head, const char *text, size_t size)
{
	size_t at = add_bytes(strings, head, strlen(head));

	add_bytes(strings, text, size);
	add_bytes(strings, "", 1);
	return at;
}

/* Positions are kept in the pointer members, plus one so that NULL stays NULL. */
static const char *as_position(size_t at)
{
	return (const char *)(uintptr_t)(at + 1);
}

/* Both levels of an op follow each other and share their strings but the mangled name. */
static void store_strings(struct drafts *drafts, struct strings *strings)
{
	for (size_t i = 0; i < drafts->n; i++) {
		struct draft *draft = &drafts->items[i], *before = i ? draft - 1 : NULL;
		const char *schema = draft->op.schema;

		draft->op.mangled = as_position(add_string(strings, "", draft->op.mangled, strlen(draft->op.mangled)));
		if (before && before->name == draft->name && before->overload == draft->overload) {
			draft->op.name = before->op.name;
			draft->op.overload = before->op.overload;
			draft->op.schema = before->op.schema;
			continue;
		}
		draft->op.name = as_position(add_string(strings, draft->namespace, draft->name, draft->name_size));
		draft->op.overload = as_position(add_string(strings, "", draft->overload, draft->overload_size));
		if (schema)
			draft->op.schema = as_position(add_string(strings, "", schema, strlen(schema)));
	}
}

/* One block of ops (with positions) and strings. */
static int pack(struct drafts *drafts, void **block, size_t *block_size)
{
	struct strings strings = {0};
	size_t ops_size = drafts->n * sizeof(struct terra_op);
	struct terra_op *ops = NULL;

	store_strings(drafts, &strings);
	if (!strings.err)
		ops = malloc(ops_size + strings.size);
	if (!ops) {
		free(strings.data);
		return -ENOMEM;
	}
	for (size_t i = 0; i < drafts->n; i++)
		ops[i] = drafts->items[i].op;
	memcpy((char *)ops + ops_size, strings.data, strings.size);
	free(strings.data);
	*block = ops;
	*block_size = ops_size + strings.size;
	return 0;
}

static bool resolve(const char **string, const char *strings, size_t size)
{
	uintptr_t position = (uintptr_t)*string;

	if (position == 0 || position > size)
		return false;
	*string = strings + position - 1;
	return true;
}

/* Whoever reads arguments indexes registers by these numbers. */
static bool is_possible_argument(const struct terra_arg *arg)
{
	if (arg->kind >= TERRA_KIND_COUNT)
		return false;
	switch (arg->place) {
	case TERRA_PLACE_UNKNOWN:
	case TERRA_PLACE_STACK:
		return true;
	case TERRA_PLACE_GPR:
		return arg->index + arg->words <= TERRA_GPR_COUNT;
	case TERRA_PLACE_SSE:
		return arg->index < TERRA_SSE_COUNT;
	case TERRA_PLACE_GPR_SSE:
		return arg->index < TERRA_SSE_COUNT && arg->index2 < TERRA_GPR_COUNT;
	default:
		return false;
	}
}

bool terra_op_is_possible(const struct terra_op *op)
{
	if (op->n_args > TERRA_MAX_ARGS || op->level > TERRA_LEVEL_REDISPATCH || op->ret > TERRA_RET_TENSOR_REFS ||
	    op->n_returns > TERRA_MAX_RETURNS)
		return false;
	for (unsigned i = 0; i < op->n_args; i++)
		if (!is_possible_argument(&op->args[i]) ||
		    (op->complete && op->args[i].place == TERRA_PLACE_UNKNOWN))
			return false;
	return true;
}

/* Turns positions into pointers. Refuses a block that is not a table, whatever its checksum says. */
static bool unpack(void *block, size_t block_size, size_t n_ops)
{
	struct terra_op *ops = block;
	size_t ops_size = n_ops * sizeof(*ops);
	const char *strings = (const char *)block + ops_size;
	size_t size = block_size - ops_size;

	if (size == 0 || strings[size - 1] != '\0')
		return false;
	for (size_t i = 0; i < n_ops; i++) {
		if (!terra_op_is_possible(&ops[i]))
			return false;
		if (!resolve(&ops[i].name, strings, size) || !resolve(&ops[i].overload, strings, size) ||
		    !resolve(&ops[i].mangled, strings, size))
			return false;
		if (ops[i].schema && !resolve(&ops[i].schema, strings, size))
			return false;
	}
	return true;
}

/* The cached block ends in the number of ops. */
static bool load_cached(const struct terra_cache_key *key, struct terra_op_table *table)
{
	size_t size;
	uint64_t n_ops;
	void *block;

	if (terra_cache_read("ops", key, &block, &size))
		return false;
	if (size >= sizeof(n_ops)) {
		size -= sizeof(n_ops);
		memcpy(&n_ops, (char *)block + size, sizeof(n_ops));
		if (n_ops && n_ops <= UINT32_MAX && n_ops <= size / sizeof(struct terra_op) &&
		    unpack(block, size, n_ops)) {
			table->storage = block;
			table->ops = block;
			table->n_ops = (uint32_t)n_ops;
			return true;
		}
	}
	free(block);
	return false;
}

static void store_cached(const struct terra_cache_key *key, const void *block, size_t size, uint64_t n_ops)
{
	char *whole = malloc(size + sizeof(n_ops));

	if (!whole)
		return;
	memcpy(whole, block, size);
	memcpy(whole + size, &n_ops, sizeof(n_ops));
	/* A table that can't be stored is only slower next time. */
	(void)terra_cache_write("ops", key, whole, size + sizeof(n_ops));
	free(whole);
}

static int build(const struct terra_elf *elf, const struct terra_cache_key *key, struct terra_op_table *table)
{
	struct drafts drafts = {0};
	void *block;
	size_t size;
	int err = collect(elf, &drafts);

	if (!err && (drafts.n == 0 || drafts.n > UINT32_MAX))
		err = -ENOENT;
	if (!err)
		err = pack(&drafts, &block, &size);
	if (err)
		goto err_out;
	if (key)
		store_cached(key, block, size, drafts.n);
	table->storage = block;
	table->ops = block;
	table->n_ops = (uint32_t)drafts.n;
	unpack(block, size, drafts.n);
err_out:
	free(drafts.items);
	return err;
}

static int fill(const struct terra_elf *elf, bool use_cache, struct terra_op_table *table)
{
	struct terra_cache_key key;
	bool cached = use_cache && terra_cache_key_make(elf, CACHE_LAYOUT, &key) == 0;

	memcpy(table->build_id, elf->build_id, sizeof(table->build_id));
	table->build_id_size = elf->build_id_size;
	if (cached && load_cached(&key, table))
		return 0;
	return build(elf, cached ? &key : NULL, table);
}

/* A table of an open file; `path` is what it will say it came from. */
static int make_table(const struct terra_elf *elf, const char *path, bool use_cache, struct terra_op_table **out)
{
	struct terra_op_table *table = calloc(1, sizeof(*table));
	int err = -ENOMEM;

	if (table)
		table->library = strdup(path);
	if (table && table->library)
		err = fill(elf, use_cache, table);
	if (err)
		terra_op_table_free(table);
	else
		*out = table;
	return err;
}

int terra_op_table_from_memory(const void *data, size_t size, struct terra_op_table **out)
{
	struct terra_elf elf;
	int err = terra_elf_from_memory(data, size, &elf);

	return err ? err : make_table(&elf, "", false, out);
}

int terra_op_table_load(const char *path, bool use_cache, struct terra_op_table **out, char *err, size_t err_size)
{
	struct terra_elf elf;
	int code = terra_elf_open(path, &elf);

	if (code == -ENOEXEC)
		return report(err, err_size, code, "%s is not an x86-64 ELF library; give the path of libtorch_cpu.so",
			      path);
	if (code)
		return report(err, err_size, code, "cannot read %s: %s", path, strerror(-code));
	code = make_table(&elf, path, use_cache, out);
	terra_elf_close(&elf);
	if (code == -ENOENT)
		report(err, err_size, code,
		       "%s exports no op entry points (at::_ops::*::call); is it the libtorch_cpu.so of PyTorch?",
		       path);
	else if (code)
		report(err, err_size, code, "cannot build the op table of %s: %s", path, strerror(-code));
	return code;
}

void terra_op_table_free(struct terra_op_table *table)
{
	if (!table)
		return;
	free(table->storage);
	free(table->library);
	free(table);
}

static int compare_op(const char *name, const char *overload, enum terra_level level, const struct terra_op *op)
{
	int order = strcmp(name, op->name);

	if (order == 0)
		order = strcmp(overload, op->overload);
	return order ? order : (int)level - (int)op->level;
}

static const struct terra_op *find_exact(const struct terra_op_table *table, const char *name, const char *overload,
					 enum terra_level level)
{
	size_t low = 0, high = table->n_ops;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		int order = compare_op(name, overload, level, &table->ops[middle]);

		if (order == 0)
			return &table->ops[middle];
		if (order < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return NULL;
}

const struct terra_op *terra_op_table_find(const struct terra_op_table *table, const char *name, const char *overload,
					   enum terra_level level)
{
	char qualified[256];
	const struct terra_op *op = find_exact(table, name, overload, level);
	int n;

	if (op || strstr(name, "::"))
		return op;
	n = snprintf(qualified, sizeof(qualified), "aten::%s", name);
	return n > 0 && (size_t)n < sizeof(qualified) ? find_exact(table, qualified, overload, level) : NULL;
}

const char *terra_op_argument_name(const struct terra_op *op, unsigned index, char *buffer, size_t size)
{
	struct terra_schema_argument argument;
	const char *at = op->schema ? strchr(op->schema, '(') : NULL;
	unsigned i = op->level == TERRA_LEVEL_REDISPATCH ? 1 : 0;

	if (size == 0)
		return buffer;
	buffer[0] = '\0';
	if (index < i)
		snprintf(buffer, size, "keyset");
	if (index < i || !at)
		return buffer;
	for (at++; terra_schema_next_argument(&at, &argument); i++) {
		if (i < index)
			continue;
		snprintf(buffer, size, "%.*s", (int)argument.name_size, argument.name);
		break;
	}
	return buffer;
}
