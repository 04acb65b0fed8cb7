/* From code objects to file names, functions and lines, with a cache. */
#include "collector/pystack.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "collector/pystack_modules.h"
#include "collector/pystack_priv.h"

#define PYSTACK_READ(context, destination, size, address) pystack_read((context), (address), (destination), (size))
#include "collector/pystack_walk.h"

struct code {
	char *file, *function; /* NULL: the code object was gone when it was looked up */
	uint8_t *table;
	size_t table_size;
	int32_t first_line;
};

/* Both kinds of cached things share one table: a code object has the offset KEY_CODE, which is no instruction's. */
#define KEY_CODE 0xfffffffeu

struct slot {
	struct pystack_entry key; /* code 0: empty */
	union {
		struct code *code;
		struct terra_frame frame;
	} u;
};

struct pystack_names {
	struct pystack_process process;
	struct pystack_layout layout;
	struct slot *slots;
	size_t n_slots; /* power of two */
	size_t used;
	uint64_t missing;
	struct pystack_modules *modules; /* NULL until one is called */
	uint64_t modules_missing;
};

struct pystack_names *pystack_names_new(pid_t pid, const struct pystack_layout *layout)
{
	struct pystack_names *names = calloc(1, sizeof(*names));

	if (!names)
		return NULL;
	pystack_process_open(pid ? pid : getpid(), &names->process);
	names->layout = *layout;
	names->n_slots = 1024;
	names->slots = calloc(names->n_slots, sizeof(*names->slots));
	if (!names->slots) {
		free(names);
		return NULL;
	}
	return names;
}

static void code_free(struct code *code)
{
	free(code->file);
	free(code->function);
	free(code->table);
	free(code);
}

void pystack_names_free(struct pystack_names *names)
{
	if (!names)
		return;
	for (size_t i = 0; i < names->n_slots; i++)
		if (names->slots[i].key.code && names->slots[i].key.offset == KEY_CODE)
			code_free(names->slots[i].u.code);
	pystack_modules_free(names->modules);
	pystack_process_close(&names->process);
	free(names->slots);
	free(names);
}

uint64_t pystack_names_missing(const struct pystack_names *names)
{
	return names->missing;
}

/* A byte of a variable-length number holds 6 bits; bit 6 says that another follows. */
static uint32_t read_number(const uint8_t *table, size_t size, size_t *at)
{
	uint32_t value = 0, shift = 0;

	while (*at < size) {
		uint8_t byte = table[(*at)++];

		if (shift < 32)
			value |= (uint32_t)(byte & 63) << shift;
		shift += 6;
		if (!(byte & 64))
			break;
	}
	return value;
}

static int32_t read_signed(const uint8_t *table, size_t size, size_t *at)
{
	uint32_t value = read_number(table, size, at);

	return value & 1 ? -(int32_t)(value >> 1) : (int32_t)(value >> 1);
}

/* How an entry's kind moves the line; kinds 0 to 9 stay on it. */
static int32_t line_delta(uint32_t kind, const uint8_t *table, size_t size, size_t *at)
{
	if (kind == 13 || kind == 14)
		return read_signed(table, size, at);
	return kind >= 10 && kind <= 12 ? (int32_t)kind - 10 : 0;
}

int32_t pystack_line(const uint8_t *table, size_t size, int32_t first_line, uint32_t offset)
{
	uint32_t line = (uint32_t)first_line;
	uint64_t end = 0;
	size_t at = 0;

	while (at < size) {
		uint8_t head = table[at++];
		uint32_t kind = head >> 3 & 15;

		line += (uint32_t)line_delta(kind, table, size, &at);
		end += 2u * ((head & 7) + 1u);
		if (offset < end)
			return kind == 15 ? 0 : (int32_t)line;
		/* Columns follow; the first byte of an entry has its top bit set. */
		while (at < size && !(table[at] & 0x80))
			at++;
	}
	return 0;
}

#define TABLE_MAX (1u << 24)

static int read_table(struct pystack_names *names, uint64_t object, struct code *code)
{
	uint64_t type, size;
	int error;

	if (pystack_read(&names->process, object + 8, &type, sizeof(type)) || type != names->layout.bytes_type ||
	    pystack_read(&names->process, object + names->layout.bytes_size, &size, sizeof(size)) || size > TABLE_MAX)
		return -EINVAL;
	code->table = malloc(size + 1);
	if (!code->table)
		return -ENOMEM;
	error = pystack_read(&names->process, object + names->layout.bytes_data, code->table, size);
	code->table_size = size;
	return error;
}

/* -EINVAL and the like: the code object is not (or no longer) what the walk saw. */
static int read_code(struct pystack_names *names, const struct pystack_entry *entry, struct code *code)
{
	const struct pystack_layout *layout = &names->layout;
	struct pystack_scratch scratch;
	int error = pystack_read(&names->process, entry->code, scratch.code, PYSTACK_CODE_BYTES);

	if (error)
		return error;
	if (pystack_code_word(&scratch, 8) != layout->code_type || pystack_check(layout, &scratch) != entry->check)
		return -EINVAL;
	memcpy(&code->first_line, scratch.code + layout->code_first_line, sizeof(code->first_line));
	error = pystack_read_string(&names->process, layout, pystack_code_word(&scratch, layout->code_filename),
				    &code->file);
	if (!error)
		error = pystack_read_string(&names->process, layout, pystack_code_word(&scratch, layout->code_qualname),
					    &code->function);
	if (!error)
		error = read_table(names, pystack_code_word(&scratch, layout->code_linetable), code);
	return error;
}

static size_t hash_key(const struct pystack_entry *key)
{
	uint64_t hash = (key->code ^ (uint64_t)key->check << 32 ^ key->offset) * 0x9e3779b97f4a7c15ull;

	return (size_t)(hash ^ hash >> 29);
}

static bool same_key(const struct pystack_entry *a, const struct pystack_entry *b)
{
	return a->code == b->code && a->offset == b->offset && a->check == b->check;
}

/* The slot that holds `key`, or the empty one where it belongs. */
static struct slot *find_slot(struct slot *slots, size_t n_slots, const struct pystack_entry *key)
{
	size_t i = hash_key(key) & (n_slots - 1);

	while (slots[i].key.code && !same_key(&slots[i].key, key))
		i = (i + 1) & (n_slots - 1);
	return &slots[i];
}

static int grow(struct pystack_names *names)
{
	size_t n = names->n_slots * 2;
	struct slot *slots;

	if (names->used * 2 < names->n_slots)
		return 0;
	slots = calloc(n, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	for (size_t i = 0; i < names->n_slots; i++)
		if (names->slots[i].key.code)
			*find_slot(slots, n, &names->slots[i].key) = names->slots[i];
	free(names->slots);
	names->slots = slots;
	names->n_slots = n;
	return 0;
}

static int find_code(struct pystack_names *names, const struct pystack_entry *entry, struct code **out)
{
	struct pystack_entry key = { .code = entry->code, .offset = KEY_CODE, .check = entry->check };
	struct slot *slot = find_slot(names->slots, names->n_slots, &key);
	struct code *code;
	int error;

	*out = slot->u.code;
	if (slot->key.code)
		return 0;
	code = calloc(1, sizeof(*code));
	if (!code)
		return -ENOMEM;
	error = read_code(names, entry, code);
	if (error == -ENOMEM) {
		code_free(code);
		return error;
	}
	if (error) {
		free(code->file);
		free(code->function);
		code->file = code->function = NULL;
	}
	slot->key = key;
	slot->u.code = *out = code;
	names->used++;
	return 0;
}

static void fill_frame(const struct code *code, uint32_t offset, struct terra_frame *frame)
{
	frame->file = code->file ? code->file : "?";
	frame->function = code->function ? code->function : "?";
	if (!code->file)
		frame->line = 0;
	else if (offset == PYSTACK_NOT_BEGUN)
		frame->line = code->first_line;
	else
		frame->line = pystack_line(code->table, code->table_size, code->first_line, offset);
}

int pystack_names_resolve(struct pystack_names *names, const struct pystack_entry *entry, struct terra_frame *frame)
{
	struct slot *slot;
	struct code *code;
	int error;

	if (!entry->code)
		return -EINVAL;
	error = grow(names);
	if (error)
		return error;
	slot = find_slot(names->slots, names->n_slots, entry);
	if (!slot->key.code) {
		error = find_code(names, entry, &code);
		if (error)
			return error;
		slot = find_slot(names->slots, names->n_slots, entry);
		slot->key = *entry;
		fill_frame(code, entry->offset, &slot->u.frame);
		names->used++;
	}
	*frame = slot->u.frame;
	if (frame->function[0] == '?' && !frame->line)
		names->missing++;
	return 0;
}

/* Every torch.nn.Module is called by this function. What it calls in turn has `self` in a cell. */
static bool is_module_call(struct pystack_names *names, const struct pystack_entry *entry)
{
	static const char file[] = "/torch/nn/modules/module.py";
	struct terra_frame frame;
	size_t length;

	if (!entry->self || pystack_names_resolve(names, entry, &frame) ||
	    strcmp(frame.function, "Module._wrapped_call_impl") != 0)
		return false;
	length = strlen(frame.file);
	return length >= sizeof(file) - 1 && strcmp(frame.file + length - (sizeof(file) - 1), file) == 0;
}

const char *pystack_names_module(struct pystack_names *names, const struct pystack_entry *entries, uint32_t n,
				 uint64_t time_ns)
{
	uint64_t selves[PYSTACK_MAX_FRAMES];
	const char *path = NULL;
	uint32_t n_selves = 0;
	bool whole = true;

	for (uint32_t i = 0; i < n && i <= PYSTACK_MAX_FRAMES; i++) {
		whole &= entries[i].code != 0;
		if (n_selves < PYSTACK_MAX_FRAMES && is_module_call(names, &entries[i]))
			selves[n_selves++] = entries[i].self;
	}
	if (!n_selves)
		return NULL;
	if (!names->modules)
		names->modules = pystack_modules_new(&names->process, &names->layout);
	if (whole && names->modules)
		path = pystack_modules_path(names->modules, selves, n_selves, time_ns);
	names->modules_missing += !path;
	return path;
}

bool pystack_names_modules_remark(const struct pystack_names *names, char *text, size_t size)
{
	uint32_t version = names->layout.version;

	if (!names->modules_missing)
		return false;
	if (!pystack_modules_known(&names->layout))
		snprintf(text, size, "no module paths: the objects of Python %u.%u are not known", version >> 24,
			 version >> 16 & 0xff);
	else
		snprintf(text, size, "%llu operators in a module's call have no module path: it was gone or changed when it "
			 "was read, or the stack was too deep", (unsigned long long)names->modules_missing);
	return true;
}
