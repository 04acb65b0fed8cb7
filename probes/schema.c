/* schema.c - finds schema strings and matches them to op entry points; see schema.h. */
#include "probes/schema.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ARROW ") -> "
#define ARROW_SIZE (sizeof(ARROW) - 1)
#define NAMESPACE "aten::"
#define NAMESPACE_SIZE (sizeof(NAMESPACE) - 1)
#define TEXT_MAX 16384 /* twice the longest that was seen */
#define SCHEMA_WORK 100 /* for looking at a schema however short it is, in bytes of text */
#define WORK_MAX ((uint64_t)16 << 20) /* about ten times what libtorch takes */

static bool is_identifier(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static size_t identifier_size(const char *text)
{
	size_t n = 0;

	while (is_identifier(text[n]))
		n++;
	return n;
}

/* Recognizes "[aten::]name[.overload](" at the start of a string. */
static bool parse_head(const char *text, struct terra_schema *schema)
{
	size_t name, overload = 0;

	schema->prefixed = strncmp(text, NAMESPACE, NAMESPACE_SIZE) == 0;
	if (schema->prefixed)
		text += NAMESPACE_SIZE;
	name = identifier_size(text);
	if (name == 0)
		return false;
	if (text[name] == '.') {
		overload = identifier_size(text + name + 1);
		if (overload++ == 0)
			return false;
	}
	if (text[name + overload] != '(')
		return false;
	schema->text = text;
	schema->name_size = (uint32_t)name;
	schema->head_size = (uint32_t)(name + overload);
	return true;
}

static int add_schema(struct terra_schema_index *index, const struct terra_schema *schema)
{
	if (index->n_schemas == index->capacity) {
		size_t capacity = index->capacity ? index->capacity * 2 : 4096;
		struct terra_schema *schemas = realloc(index->schemas, capacity * sizeof(*schemas));

		if (!schemas)
			return -ENOMEM;
		index->schemas = schemas;
		index->capacity = capacity;
	}
	index->schemas[index->n_schemas++] = *schema;
	return 0;
}

/* Every NUL-terminated string of `data` that has the arrow of a schema. */
static int scan_strings(const char *data, size_t size, struct terra_schema_index *index)
{
	const char *at = data, *end = data + size, *arrow;

	while ((arrow = memmem(at, (size_t)(end - at), ARROW, ARROW_SIZE))) {
		const char *before = memrchr(at, '\0', (size_t)(arrow - at));
		const char *stop = memchr(arrow, '\0', (size_t)(end - arrow));
		struct terra_schema schema;
		int err = 0;

		if (!stop)
			break;
		if (stop - arrow < TEXT_MAX && parse_head(before ? before + 1 : at, &schema) &&
		    stop - schema.text < TEXT_MAX) {
			schema.text_size = (uint32_t)(stop - schema.text);
			err = add_schema(index, &schema);
		}
		if (err)
			return err;
		at = stop;
	}
	return 0;
}

/* Order of class names: heads with '.' as '_'. */
static int compare_heads(const char *a, size_t a_size, const char *b, size_t b_size)
{
	size_t n = a_size < b_size ? a_size : b_size;

	for (size_t i = 0; i < n; i++) {
		int x = a[i] == '.' ? '_' : a[i], y = b[i] == '.' ? '_' : b[i];

		if (x != y)
			return x - y;
	}
	return (a_size > b_size) - (a_size < b_size);
}

static int compare_schemas(const void *left, const void *right)
{
	const struct terra_schema *a = left, *b = right;
	int order = compare_heads(a->text, a->head_size, b->text, b->head_size);

	if (order == 0)
		order = (int)a->prefixed - (int)b->prefixed;
	return order ? order : strcmp(a->text, b->text);
}

int terra_schema_index_build(const struct terra_elf *elf, struct terra_schema_index *index)
{
	size_t left = elf->size;

	memset(index, 0, sizeof(*index));
	index->work_left = WORK_MAX;
	for (size_t i = 0; i < elf->n_sections; i++) {
		const uint8_t *data;
		size_t size;
		int err;

		if (strncmp(terra_elf_section_name(elf, i), ".rodata", sizeof(".rodata") - 1) != 0)
			continue;
		data = terra_elf_section_data(elf, i, &size);
		if (!data || size > left) /* more than the file has: they overlap */
			continue;
		left -= size;
		err = scan_strings((const char *)data, size, index);
		if (err) {
			terra_schema_index_free(index);
			return err;
		}
	}
	if (index->n_schemas)
		qsort(index->schemas, index->n_schemas, sizeof(*index->schemas), compare_schemas);
	return 0;
}

void terra_schema_index_free(struct terra_schema_index *index)
{
	free(index->schemas);
	memset(index, 0, sizeof(*index));
}

/* End of a piece of schema text at bracket depth 0: at one of `stops`, or at the bracket that closes the list. NULL
 * when the text ends first. Quoted defaults may hold anything. */
static const char *piece_end(const char *at, const char *stops)
{
	int depth = 0;
	char quote = 0;

	for (; *at; at++) {
		if (quote) {
			if (*at == '\\' && at[1])
				at++;
			else if (*at == quote)
				quote = 0;
			continue;
		}
		if (depth == 0 && (strchr(stops, *at) || *at == ')'))
			return at;
		if (*at == '"' || *at == '\'')
			quote = *at;
		else if (*at == '(' || *at == '[')
			depth++;
		else if (*at == ')' || *at == ']')
			depth--;
	}
	return NULL;
}

/* Spells a type without "(a!)" and with empty brackets. */
static void normalize_type(const char *at, const char *end, struct terra_schema_type *out)
{
	size_t n = 0;
	int annotation = 0;
	bool length = false;

	out->is_mutable = false;
	for (; at < end && n < sizeof(out->text) - 1; at++) {
		if (*at == '(')
			annotation++;
		if (annotation && *at == '!')
			out->is_mutable = true;
		if (*at == ']')
			length = false;
		if (annotation == 0 && !length)
			out->text[n++] = *at;
		if (*at == '[')
			length = true;
		if (*at == ')')
			annotation--;
	}
	out->text[n] = '\0';
}

bool terra_schema_next_argument(const char **at, struct terra_schema_argument *out)
{
	const char *end, *type_end;

	for (;;) {
		while (**at == ' ' || **at == ',' || **at == '\n')
			(*at)++;
		if ((*at)[0] != '*' || ((*at)[1] != ',' && (*at)[1] != ')'))
			break;
		(*at)++;
	}
	if (**at == ')')
		return false;
	end = piece_end(*at, ",");
	type_end = piece_end(*at, " ,");
	if (!end || !type_end || type_end == *at) {
		*at = NULL;
		return false;
	}
	normalize_type(*at, type_end, &out->type);
	out->name = *type_end == ' ' ? type_end + 1 : type_end;
	out->name_size = out->name < end ? identifier_size(out->name) : 0;
	*at = end;
	return true;
}

const char *terra_schema_returns(const struct terra_schema *schema)
{
	const char *at = schema->text + schema->head_size + 1;
	struct terra_schema_argument argument;

	while (terra_schema_next_argument(&at, &argument))
		;
	return at && strncmp(at, ARROW, ARROW_SIZE) == 0 ? at + ARROW_SIZE : NULL;
}

static bool type_agrees(const char *type, enum terra_kind kind)
{
	switch (kind) {
	case TERRA_KIND_OPAQUE:
		return true;
	case TERRA_KIND_ITENSOR_LIST:
		return strcmp(type, "Tensor[]") == 0;
	case TERRA_KIND_BOOL_ARRAY:
		return strcmp(type, "bool[]") == 0;
	default:
		return strcmp(type, terra_kind_name(kind)) == 0;
	}
}

static bool arguments_agree(const struct terra_schema *schema, const struct terra_signature *signature)
{
	unsigned i = signature->level == TERRA_LEVEL_REDISPATCH ? 1 : 0;
	const char *at = schema->text + schema->head_size + 1;
	struct terra_schema_argument argument;

	for (; terra_schema_next_argument(&at, &argument); i++)
		if (i >= signature->n_parameters || !type_agrees(argument.type.text, signature->parameters[i].kind))
			return !signature->whole && i + 1 >= signature->n_parameters;
	return at && i == signature->n_parameters;
}

/* A text of the dispatcher's before one of TorchScript's, which writes "-> (Tensor)" and may leave out defaults. */
static bool is_better(const struct terra_schema *a, const struct terra_schema *b)
{
	bool a_list = *terra_schema_returns(a) == '(', b_list = *terra_schema_returns(b) == '(';

	if (a->prefixed != b->prefixed)
		return b->prefixed;
	if (a_list != b_list)
		return b_list;
	return strlen(a->text) > strlen(b->text);
}

static bool same_meaning(const struct terra_schema *a, const struct terra_schema *b)
{
	struct terra_op x, y;

	terra_returns_parse(terra_schema_returns(a), &x);
	terra_returns_parse(terra_schema_returns(b), &y);
	return x.ret == y.ret && x.n_returns == y.n_returns && a->name_size == b->name_size;
}

/* One candidate more; keeps the best in *out. False when it contradicts one that is no better. */
static bool consider(const struct terra_schema *candidate, struct terra_schema *out)
{
	bool agree;

	if (!terra_schema_returns(candidate))
		return true;
	if (!out->text) {
		*out = *candidate;
		return true;
	}
	agree = candidate->prefixed != out->prefixed || same_meaning(candidate, out);
	if (is_better(candidate, out))
		*out = *candidate;
	return agree;
}

/* Whether there is work left for looking at so much text. */
static bool can_afford(struct terra_schema_index *index, uint64_t size)
{
	if (size > index->work_left)
		return false;
	index->work_left -= size;
	return true;
}

static size_t lower_bound(const struct terra_schema_index *index, const struct terra_signature *signature)
{
	size_t low = 0, high = index->n_schemas;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const struct terra_schema *schema = &index->schemas[middle];

		if (compare_heads(schema->text, schema->head_size, signature->class_name, signature->class_size) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool find_exact(struct terra_schema_index *index, const struct terra_signature *signature,
		       struct terra_schema *out)
{
	bool unique = true;

	for (size_t i = lower_bound(index, signature); i < index->n_schemas; i++) {
		const struct terra_schema *schema = &index->schemas[i];

		if (compare_heads(schema->text, schema->head_size, signature->class_name, signature->class_size) != 0)
			break;
		if (!can_afford(index, SCHEMA_WORK + schema->text_size))
			return false;
		if (arguments_agree(schema, signature))
			unique &= consider(schema, out);
	}
	return unique && out->text;
}

/* The linker stores a string that is the end of another one only once: "real(Tensor(a) self) -> Tensor(a)" is to be
 * found inside "view_as_real(Tensor(a) self) -> Tensor(a)". */
static bool find_merged(struct terra_schema_index *index, const struct terra_signature *signature,
			struct terra_schema *out)
{
	bool unique = true;

	if (!can_afford(index, index->n_schemas))
		return false;
	for (size_t i = 0; i < index->n_schemas; i++) {
		struct terra_schema schema = index->schemas[i];
		size_t skip = schema.head_size - signature->class_size;

		if (schema.head_size <= signature->class_size || skip >= schema.name_size ||
		    compare_heads(schema.text + skip, signature->class_size, signature->class_name,
				  signature->class_size) != 0)
			continue;
		if (!can_afford(index, SCHEMA_WORK + schema.text_size))
			return false;
		schema.text += skip;
		schema.text_size -= (uint32_t)skip;
		schema.head_size -= (uint32_t)skip;
		schema.name_size -= (uint32_t)skip;
		schema.prefixed = false;
		if (arguments_agree(&schema, signature))
			unique &= consider(&schema, out);
	}
	return unique && out->text;
}

bool terra_schema_find(struct terra_schema_index *index, const struct terra_signature *signature,
		       struct terra_schema *out)
{
	memset(out, 0, sizeof(*out));
	if (find_exact(index, signature, out))
		return true;
	return !out->text && find_merged(index, signature, out);
}
