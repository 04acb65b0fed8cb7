/* Paths of torch.nn.Modules by their addresses: instances and dicts of CPython, read from outside. */
#include "collector/pystack_modules.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "collector/trace_intern.h"
#include "probes/clock.h"

/* Limits: what is larger is no model, or memory that is not what we take it for. */
#define NODES_MAX 65536u	/* modules below one root */
#define VISITS_MAX (2 * NODES_MAX) /* entries looked at, the same module under several names included */
#define DEPTH_MAX 64u
#define ENTRIES_MAX 65536u	/* of one dict */
#define PATH_MAX_BYTES 512u
#define ROOTS_MAX 32u
#define TYPES_MAX 64u
#define CHECKS_MAX 8u
#define REBUILD_SHARE 20 /* an index may be made again after 20 times as long as that took */

/* Of PyObject, PyTypeObject, PyDictObject and PyDictKeysObject: the same in all versions known. */
enum {
	OBJECT_TYPE = 8,
	TYPE_NAME = 24,
	TYPE_BASICSIZE = 32,
	TYPE_FLAGS = 168,
	DICT_KEYS = 32,
	DICT_VALUES = 40,
	KEYS_INDEX_BYTES = 9, /* log2 of the size of the hash index before the entries */
	KEYS_KIND = 10,
	KEYS_ENTRIES = 24,
	KEYS_HEADER = 32,
};

enum { KIND_GENERAL = 0, KIND_UNICODE = 1, KIND_SPLIT = 2 };

#define TYPE_INLINE_VALUES (1ull << 2)
#define TYPE_MANAGED_DICT (1ull << 4)
#define TYPE_IS_DICT (1ull << 29)

/* How an instance has its attributes. All have words before the object. */
enum form {
	FORM_TWO_WORDS,	  /* 3.11: values at -32 or, when that is 0, a dict at -24 */
	FORM_TAGGED_WORD, /* 3.12: at -24 a dict, or values plus 1 less */
	FORM_INLINE,	  /* 3.13 and later: a dict at -24 or, when that is 0, values inside of the object */
};

static const struct version {
	uint32_t version; /* major << 8 | minor */
	enum form form;
	uint16_t cached_keys; /* PyHeapTypeObject.ht_cached_keys */
	uint8_t values;	      /* in PyDictValues: the first value */
	uint8_t values_valid; /* likewise: the byte that is 0 when the values have moved into a dict; 0: there is none */
} versions[] = {
	{ 0x030b, FORM_TWO_WORDS, 872, 0, 0 }, { 0x030c, FORM_TAGGED_WORD, 880, 0, 0 }, { 0x030d, FORM_INLINE, 880, 8, 3 },
	{ 0x030e, FORM_INLINE, 880, 8, 3 },    { 0x030f, FORM_INLINE, 888, 8, 3 },
};

/* A word that must be what it was. */
struct check {
	uint64_t address, value;
};

struct checks {
	struct check items[CHECKS_MAX];
	uint32_t n;
};

struct node {
	uint64_t address;
	uint32_t parent;      /* index; its own for the root */
	const char *path;     /* NULL: too long */
	struct checks checks; /* that it is its parent's */
};

/* All modules below one, in the order of named_modules(): the first name of a module is its name. */
struct index {
	struct node *nodes;
	uint32_t n, visits;
	bool partial; /* something below could not be read: what is not found may be there */
	uint64_t root;
	uint32_t *slots; /* by address: node + 1; 0: free */
	uint32_t n_slots;
	uint64_t built_ns, next_build_ns, used; /* `used`: number of the use */
};

struct known_type {
	uint64_t address, flags;
};

struct pystack_modules {
	struct pystack_process *process;
	const struct pystack_layout *layout;
	const struct version *version;
	uint64_t attribute; /* while an index is made: address of the str "_modules" that was met last; 0: none */
	struct known_type types[TYPES_MAX]; /* likewise: types that were met, by address */
	struct index roots[ROOTS_MAX];
	uint32_t n_roots;
	uint64_t uses;
	struct trace_intern paths;
	char **path_strings; /* by number */
	uint32_t n_path_strings;
};

static const struct version *find_version(const struct pystack_layout *layout)
{
	for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++)
		if (versions[i].version == layout->version >> 16)
			return &versions[i];
	return NULL;
}

bool pystack_modules_known(const struct pystack_layout *layout)
{
	return find_version(layout) && layout->frame_locals;
}

struct pystack_modules *pystack_modules_new(struct pystack_process *process, const struct pystack_layout *layout)
{
	struct pystack_modules *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	m->process = process;
	m->layout = layout;
	m->version = find_version(layout);
	return m;
}

static void index_clear(struct index *index)
{
	free(index->nodes);
	free(index->slots);
	*index = (struct index){ 0 };
}

void pystack_modules_free(struct pystack_modules *m)
{
	if (!m)
		return;
	for (uint32_t i = 0; i < m->n_roots; i++)
		index_clear(&m->roots[i]);
	for (uint32_t i = 0; i < m->n_path_strings; i++)
		free(m->path_strings[i]);
	free(m->path_strings);
	trace_intern_free(&m->paths);
	free(m);
}

static bool keep(struct checks *checks, uint64_t address, uint64_t word)
{
	if (checks->n == CHECKS_MAX)
		return false;
	checks->items[checks->n++] = (struct check){ address, word };
	return true;
}

/* Reads a word and remembers it as one that must stay. */
static bool read_kept(struct pystack_modules *m, uint64_t address, uint64_t *word, struct checks *checks)
{
	return pystack_read(m->process, address, word, sizeof(*word)) == 0 && keep(checks, address, *word);
}

static bool read_word(struct pystack_modules *m, uint64_t address, uint64_t *word)
{
	return pystack_read(m->process, address, word, sizeof(*word)) == 0;
}

static bool read_flags(struct pystack_modules *m, uint64_t type, uint64_t *flags)
{
	struct known_type *known = &m->types[type / 16 % TYPES_MAX];

	if (known->address != type || !type) {
		if (!read_word(m, type + TYPE_FLAGS, &known->flags))
			return false;
		known->address = type;
	}
	*flags = known->flags;
	return true;
}

/* The entries of a dict's key table. */
struct table {
	uint64_t *words;   /* malloc'ed */
	uint64_t address;  /* of the first entry */
	uint32_t n;
	uint32_t stride;   /* words of an entry */
	uint32_t key;	   /* which of them is the key; the value follows, unless the table is shared */
	uint64_t values;   /* address of the split values, 0: in the table */
};

/* `values`: address of the split values that go with the table, 0: none. */
static bool read_table(struct pystack_modules *m, uint64_t keys, uint64_t values, struct table *out)
{
	uint8_t header[KEYS_HEADER];
	uint64_t n;

	if (pystack_read(m->process, keys, header, sizeof(header)))
		return false;
	memcpy(&n, header + KEYS_ENTRIES, sizeof(n));
	if (n > ENTRIES_MAX || header[KEYS_INDEX_BYTES] > 24 || header[KEYS_KIND] > KIND_SPLIT ||
	    (header[KEYS_KIND] == KIND_SPLIT) != (values != 0))
		return false;
	*out = (struct table){ .address = keys + KEYS_HEADER + (1ull << header[KEYS_INDEX_BYTES]), .n = (uint32_t)n,
			       .stride = header[KEYS_KIND] == KIND_GENERAL ? 3 : 2, .key = header[KEYS_KIND] == KIND_GENERAL,
			       .values = values };
	out->words = malloc((n + 1) * out->stride * sizeof(uint64_t));
	if (!out->words)
		return false;
	if (!n || pystack_read(m->process, out->address, out->words, n * out->stride * sizeof(uint64_t)) == 0)
		return true;
	free(out->words);
	return false;
}

static uint64_t table_key(const struct table *table, uint32_t i)
{
	return table->words[i * table->stride + table->key];
}

/* Where the value of entry `i` lies. */
static uint64_t table_slot(const struct table *table, uint32_t i)
{
	return table->values ? table->values + 8ull * i : table->address + 8ull * (i * table->stride + table->key + 1);
}

static bool is_attribute(struct pystack_modules *m, uint64_t object)
{
	char *text;
	bool same;

	if (!object || pystack_read_string(m->process, m->layout, object, &text))
		return false;
	same = strcmp(text, "_modules") == 0;
	free(text);
	if (same)
		m->attribute = object;
	return same;
}

/* The entry "_modules", or n. Classes share the str, so that it is mostly found by its address. */
static uint32_t find_attribute(struct pystack_modules *m, const struct table *table)
{
	for (uint32_t i = 0; i < table->n && m->attribute; i++)
		if (table_key(table, i) == m->attribute)
			return i;
	for (uint32_t i = 0; i < table->n; i++)
		if (is_attribute(m, table_key(table, i)))
			return i;
	return table->n;
}

/* A dict's table, from where the object lies; what led there is added to `checks`. */
static bool read_dict(struct pystack_modules *m, uint64_t dict, struct table *out, struct checks *checks)
{
	uint64_t words[DICT_VALUES / 8 + 1], flags, values;

	if (pystack_read(m->process, dict, words, sizeof(words)) || !read_flags(m, words[OBJECT_TYPE / 8], &flags) ||
	    !(flags & TYPE_IS_DICT) || !keep(checks, dict + DICT_KEYS, words[DICT_KEYS / 8]) ||
	    !keep(checks, dict + DICT_VALUES, words[DICT_VALUES / 8]))
		return false;
	values = words[DICT_VALUES / 8];
	return read_table(m, words[DICT_KEYS / 8], values ? values + m->version->values : 0, out);
}

/* Attributes that are in no dict: the names are the class's. */
static bool read_values(struct pystack_modules *m, uint64_t type, uint64_t values, struct table *out)
{
	uint8_t valid = 1;
	uint64_t keys;

	if (m->version->values_valid &&
	    (pystack_read(m->process, values + m->version->values_valid, &valid, sizeof(valid)) || !valid))
		return false;
	return read_word(m, type + m->version->cached_keys, &keys) && read_table(m, keys, values + m->version->values, out);
}

/* The attributes of an instance. */
static bool read_attributes(struct pystack_modules *m, uint64_t object, uint64_t type, struct table *out,
			    struct checks *checks)
{
	uint64_t flags, word, values = 0, size;

	if (!read_flags(m, type, &flags) || !(flags & TYPE_MANAGED_DICT) ||
	    !read_kept(m, object - 24, &word, checks))
		return false;
	if (m->version->form == FORM_TAGGED_WORD && word & 1)
		return read_values(m, type, word + 1, out);
	if (word)
		return read_dict(m, word, out, checks);
	if (m->version->form == FORM_TWO_WORDS)
		return read_kept(m, object - 32, &values, checks) && values && read_values(m, type, values, out);
	return m->version->form == FORM_INLINE && flags & TYPE_INLINE_VALUES && read_word(m, type + TYPE_BASICSIZE, &size) &&
	       size < 4096 && read_values(m, type, object + size, out);
}

/* The `_modules` of an object, as a table. */
static bool read_children(struct pystack_modules *m, uint64_t object, struct table *out, struct checks *checks)
{
	struct table attributes;
	uint64_t type, dict = 0;
	bool found;
	uint32_t i;

	if (!read_kept(m, object + OBJECT_TYPE, &type, checks) || !read_attributes(m, object, type, &attributes, checks))
		return false;
	i = find_attribute(m, &attributes);
	found = i < attributes.n && read_kept(m, table_slot(&attributes, i), &dict, checks) && dict;
	free(attributes.words);
	return found && read_dict(m, dict, out, checks);
}

/* One string for equal paths. */
static const char *keep_path(struct pystack_modules *m, const char *path)
{
	struct trace_intern_entry *entry = trace_intern_get(&m->paths, path, strlen(path) + 1);
	uint32_t number = entry ? (uint32_t)(entry - m->paths.entries) : UINT32_MAX;
	char **grown;

	if (!entry || number < m->n_path_strings)
		return entry ? m->path_strings[number] : NULL;
	grown = realloc(m->path_strings, (number + 1) * sizeof(*grown));
	if (!grown)
		return NULL;
	m->path_strings = grown;
	while (m->n_path_strings <= number)
		m->path_strings[m->n_path_strings++] = NULL;
	m->path_strings[number] = strdup(path);
	return m->path_strings[number];
}

/* The class's name: C text. */
static bool read_class(struct pystack_modules *m, uint64_t object, char *out, size_t size)
{
	uint64_t type, name;

	if (!read_word(m, object + OBJECT_TYPE, &type) || !read_word(m, type + TYPE_NAME, &name))
		return false;
	for (size_t i = 0; i < size; i++) {
		if (pystack_read(m->process, name + i, &out[i], 1))
			return false;
		if (!out[i])
			return i > 0;
	}
	return false;
}

static uint32_t *find_slot(const struct index *index, uint64_t address)
{
	uint32_t i = (uint32_t)(address * 0x9e3779b97f4a7c15ull >> 40) & (index->n_slots - 1);

	while (index->slots[i] && index->nodes[index->slots[i] - 1].address != address)
		i = (i + 1) & (index->n_slots - 1);
	return &index->slots[i];
}

static const struct node *find_node(const struct index *index, uint64_t address)
{
	uint32_t number = index->n_slots ? *find_slot(index, address) : 0;

	return number ? &index->nodes[number - 1] : NULL;
}

static bool grow_index(struct index *index)
{
	uint32_t n = index->n_slots ? index->n_slots * 2 : 256;
	struct node *nodes;
	uint32_t *slots;

	if (index->n < index->n_slots / 2)
		return true;
	nodes = realloc(index->nodes, n / 2 * sizeof(*nodes));
	if (!nodes)
		return false;
	index->nodes = nodes;
	slots = calloc(n, sizeof(*slots));
	if (!slots)
		return false;
	free(index->slots);
	index->slots = slots;
	index->n_slots = n;
	for (uint32_t i = 0; i < index->n; i++)
		*find_slot(index, nodes[i].address) = i + 1;
	return true;
}

static bool add_node(struct index *index, const struct node *node)
{
	if (index->n == NODES_MAX || !grow_index(index))
		return false;
	index->nodes[index->n++] = *node;
	*find_slot(index, node->address) = index->n;
	return true;
}

static bool join(const char *path, const char *name, char *out)
{
	return path && strlen(path) + strlen(name) + 2 <= PATH_MAX_BYTES && stpcpy(stpcpy(stpcpy(out, path), "."), name);
}

static bool add_children(struct pystack_modules *m, struct index *index, uint32_t parent, uint32_t depth);

/* The value of the entry, and that it must stay there. */
static bool read_entry(struct pystack_modules *m, const struct table *table, uint32_t i, struct node *node)
{
	if (table->values)
		return read_kept(m, table_slot(table, i), &node->address, &node->checks);
	node->address = table->words[i * table->stride + table->key + 1];
	return keep(&node->checks, table_slot(table, i), node->address);
}

/* Entry `i` of a module's `_modules`. False: no index can be made. */
static bool add_child(struct pystack_modules *m, struct index *index, uint32_t parent, const struct table *table, uint32_t i,
		      const struct checks *way, uint32_t depth)
{
	struct node node = { .parent = parent, .checks = *way };
	char path[PATH_MAX_BYTES], *name;

	if (index->visits++ == VISITS_MAX)
		return false;
	if (!read_entry(m, table, i, &node))
		return false;
	if (!node.address || find_node(index, node.address))
		return true;
	if (pystack_read_string(m->process, m->layout, table_key(table, i), &name)) {
		index->partial = true;
		return true;
	}
	node.path = join(index->nodes[parent].path, name, path) ? keep_path(m, path) : NULL;
	free(name);
	return add_node(index, &node) && add_children(m, index, index->n - 1, depth + 1);
}

/* Entries may be None, which has no attributes. */
static bool may_be_module(struct pystack_modules *m, uint64_t object)
{
	uint64_t type, flags;

	return !read_word(m, object + OBJECT_TYPE, &type) || !read_word(m, type + TYPE_FLAGS, &flags) ||
	       flags & TYPE_MANAGED_DICT;
}

static bool add_children(struct pystack_modules *m, struct index *index, uint32_t parent, uint32_t depth)
{
	struct checks way = { .n = 0 };
	struct table table;
	bool fine = true;

	if (depth == DEPTH_MAX)
		return false;
	if (!read_children(m, index->nodes[parent].address, &table, &way)) {
		index->partial |= may_be_module(m, index->nodes[parent].address);
		return depth > 0;
	}
	for (uint32_t i = 0; i < table.n && fine; i++)
		if (table_key(&table, i))
			fine = add_child(m, index, parent, &table, i, &way, depth);
	free(table.words);
	return fine;
}

/* An empty index, with its times: nothing is known below that root. */
static void build(struct pystack_modules *m, struct index *index, uint64_t root)
{
	struct node node = { .address = root };
	struct index fresh = { .root = root, .used = m->uses, .built_ns = clock_now() };
	uint64_t type, end;
	char name[256];

	m->attribute = 0;
	memset(m->types, 0, sizeof(m->types));
	if (read_class(m, root, name, sizeof(name)))
		node.path = keep_path(m, name);
	if (!node.path || !read_kept(m, root + OBJECT_TYPE, &type, &node.checks) || !add_node(&fresh, &node) ||
	    !add_children(m, &fresh, 0, 0)) {
		free(fresh.nodes);
		free(fresh.slots);
		fresh.nodes = NULL;
		fresh.slots = NULL;
		fresh.n = fresh.n_slots = 0;
	}
	end = clock_now();
	fresh.next_build_ns = end + REBUILD_SHARE * (end - fresh.built_ns);
	index_clear(index);
	*index = fresh;
}

/* Whether a module is still where it was found, up to the root. */
static bool still_there(struct pystack_modules *m, const struct index *index, const struct node *node)
{
	uint64_t words[CHECKS_MAX];
	struct iovec remote[CHECKS_MAX], local = { words, 0 };

	for (uint32_t depth = 0; depth <= DEPTH_MAX; depth++) {
		const struct checks *checks = &node->checks;

		for (uint32_t i = 0; i < checks->n; i++)
			remote[i] = (struct iovec){ (void *)(uintptr_t)checks->items[i].address, sizeof(words[0]) };
		local.iov_len = checks->n * sizeof(words[0]);
		if (pystack_read_all(m->process, &local, remote, checks->n))
			return false;
		for (uint32_t i = 0; i < checks->n; i++)
			if (words[i] != checks->items[i].value)
				return false;
		if (node == &index->nodes[0])
			return true;
		node = &index->nodes[node->parent];
	}
	return false;
}

/* The root's index: an old one, or one that gives way to it. */
static struct index *find_root(struct pystack_modules *m, uint64_t root)
{
	struct index *oldest = &m->roots[0];

	for (uint32_t i = 0; i < m->n_roots; i++) {
		if (m->roots[i].root == root)
			return &m->roots[i];
		if (m->roots[i].used < oldest->used)
			oldest = &m->roots[i];
	}
	if (m->n_roots < ROOTS_MAX)
		oldest = &m->roots[m->n_roots++];
	index_clear(oldest);
	oldest->root = root;
	return oldest;
}

/* 1: *out is its path; 0: no module of that index, -1: not known. */
static int look_up(struct pystack_modules *m, const struct index *index, uint64_t self, const char **out)
{
	const struct node *node = find_node(index, self);

	if (!node)
		return 0;
	*out = node->path;
	return node->path && still_there(m, index, node) ? 1 : -1;
}

const char *pystack_modules_path(struct pystack_modules *m, const uint64_t *selves, uint32_t n, uint64_t time_ns)
{
	struct index *index;
	const char *path = NULL;
	int known;

	if (!n || !m->version)
		return NULL;
	index = find_root(m, selves[n - 1]);
	index->used = ++m->uses;
	known = look_up(m, index, selves[0], &path);
	/* Made before the call, or no longer right: made again, unless that would take too much of the time. */
	if (known < 0 || (known == 0 && index->built_ns < time_ns)) {
		if (clock_now() < index->next_build_ns)
			return NULL;
		build(m, index, selves[n - 1]);
		known = look_up(m, index, selves[0], &path);
	}
	for (uint32_t i = 1; i < n && known == 0 && !index->partial; i++)
		known = look_up(m, index, selves[i], &path);
	return known > 0 ? path : NULL;
}
