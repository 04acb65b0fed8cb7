/* Where CPython keeps its frames: finding the interpreter in a process, its offsets, and proof that they are right. */
#include "collector/pystack.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "collector/pystack_priv.h"
#include "collector/target.h"
#include "probes/elf_file.h"

#define PYSTACK_READ(context, destination, size, address) pystack_read((context), (address), (destination), (size))
#include "collector/pystack_walk.h"

struct message {
	char *text;
	size_t size;
};

__attribute__((format(printf, 3, 4))) static int fail(struct message *message, int error, const char *format, ...)
{
	va_list arguments;

	if (message->text && message->size) {
		va_start(arguments, format);
		vsnprintf(message->text, message->size, format, arguments);
		va_end(arguments);
	}
	return error;
}

/* What the interpreter exports and we use. Addresses in the process. */
struct symbols {
	uint64_t runtime; /* _PyRuntime */
	uint64_t version; /* Py_Version: PY_VERSION_HEX, since 3.11 */
	uint64_t code_type, unicode_type, bytes_type;
	uint64_t get_state;
};

static const struct {
	const char *name;
	size_t offset;
} wanted_symbols[] = {
	{ "_PyRuntime", offsetof(struct symbols, runtime) },
	{ "Py_Version", offsetof(struct symbols, version) },
	{ "PyCode_Type", offsetof(struct symbols, code_type) },
	{ "PyUnicode_Type", offsetof(struct symbols, unicode_type) },
	{ "PyBytes_Type", offsetof(struct symbols, bytes_type) },
	{ "PyGILState_GetThisThreadState", offsetof(struct symbols, get_state) },
};

static void note_symbol(const struct terra_elf *elf, const Elf64_Sym *symbol, uint64_t bias, struct symbols *out)
{
	const char *name = terra_elf_symbol_name(elf, symbol);

	if (!name || symbol->st_shndx == SHN_UNDEF)
		return;
	for (size_t i = 0; i < sizeof(wanted_symbols) / sizeof(*wanted_symbols); i++)
		if (!strcmp(name, wanted_symbols[i].name))
			*(uint64_t *)((char *)out + wanted_symbols[i].offset) = bias + symbol->st_value;
}

static uint64_t load_bias(const struct terra_elf *elf, uint64_t start)
{
	for (size_t i = 0; i < elf->n_segments; i++)
		if (elf->segments[i].p_type == PT_LOAD)
			return start - (elf->segments[i].p_vaddr & ~0xfffull);
	return start;
}

/* True when the file at `path`, mapped from `start` on, is an interpreter. */
static bool is_interpreter(const char *path, uint64_t start, struct symbols *out)
{
	struct terra_elf elf;
	uint64_t bias;

	memset(out, 0, sizeof(*out));
	if (terra_elf_open(path, &elf))
		return false;
	bias = load_bias(&elf, start);
	for (size_t i = 0; i < elf.n_symbols; i++)
		note_symbol(&elf, &elf.symbols[i], bias, out);
	terra_elf_close(&elf);
	return out->runtime && out->code_type && out->unicode_type && out->bytes_type;
}

/* One line of /proc/pid/maps: a file's first mapping whose name may be that of an interpreter. */
static bool parse_candidate(char *line, uint64_t *start, char **path)
{
	unsigned long long from, offset;
	int position = 0;
	char *base;

	if (sscanf(line, "%llx-%*x %*s %llx %*s %*s %n", &from, &offset, &position) < 2 || !position || offset)
		return false;
	*path = line + position;
	(*path)[strcspn(*path, "\n")] = 0;
	base = strrchr(*path, '/');
	*start = from;
	return base && strstr(base, "python");
}

static int find_symbols(pid_t pid, struct symbols *out, struct message *message)
{
	char name[64], line[4352], reached[4400], *path;
	uint64_t start;
	FILE *maps;
	int error = -ENOENT;

	snprintf(name, sizeof(name), "/proc/%d/maps", pid);
	maps = fopen(name, "re");
	if (!maps)
		return fail(message, -errno, "cannot read %s: %s", name, strerror(errno));
	while (error && fgets(line, sizeof(line), maps))
		if (parse_candidate(line, &start, &path) &&
		    !terra_target_path(pid, path, reached, sizeof(reached)) && is_interpreter(reached, start, out))
			error = 0;
	fclose(maps);
	return error ? fail(message, error, "no Python interpreter with exported symbols is mapped") : 0;
}

/* The offsets of 3.11 and 3.12, which publish none. runtime_interpreters: _PyRuntime.interpreters.head's place. */
struct known_layout {
	uint32_t version; /* major << 8 | minor */
	uint16_t interpreters_head, threads_head;
	struct pystack_layout layout;
};

/* clang-format off */
static const struct known_layout known_layouts[] = {
	{0x030b, 40, 16, {
		.state_next = 8, .state_native_id = 160, .state_frame = 56, .has_cframe = 1, .cframe_frame = 8,
		.frame_code = 32, .frame_previous = 48, .frame_instr = 56, .frame_owner = 69, .owner_native = 3,
		.code_first_line = 72, .code_filename = 112, .code_name = 120, .code_qualname = 128,
		.code_linetable = 136, .code_bytecode = 184, .bytes_size = 16, .bytes_data = 32,
		.unicode_length = 16, .unicode_state = 32, .unicode_ascii = 48, .unicode_compact = 72}},
	{0x030c, 40, 72, {
		.state_next = 8, .state_native_id = 144, .state_frame = 56, .has_cframe = 1, .cframe_frame = 0,
		.frame_code = 0, .frame_previous = 8, .frame_instr = 56, .frame_owner = 70, .owner_native = 3,
		.code_first_line = 68, .code_filename = 112, .code_name = 120, .code_qualname = 128,
		.code_linetable = 136, .code_bytecode = 192, .bytes_size = 16, .bytes_data = 32,
		.unicode_length = 16, .unicode_state = 32, .unicode_ascii = 40, .unicode_compact = 56}},
};
/* clang-format on */

static int layout_from_table(uint32_t minor, struct pystack_layout *out, uint64_t *interpreters_head,
			     uint64_t *threads_head)
{
	for (size_t i = 0; i < sizeof(known_layouts) / sizeof(*known_layouts); i++) {
		if (known_layouts[i].version != minor)
			continue;
		*out = known_layouts[i].layout;
		*interpreters_head = known_layouts[i].interpreters_head;
		*threads_head = known_layouts[i].threads_head;
		return 0;
	}
	return -ENOTSUP;
}

/* _Py_DebugOffsets is an array of 64-bit words behind its cookie; which word says what differs between minor versions
 * and is fixed within one. */
struct published {
	uint32_t version; /* major << 8 | minor */
	uint8_t owner_native;
	uint8_t interpreters_head, threads_head, state_next, state_frame, state_native_id;
	uint8_t frame_previous, frame_code, frame_instr, frame_owner;
	uint8_t code_filename, code_name, code_qualname, code_linetable, code_first_line, code_bytecode;
	uint8_t bytes_size, bytes_data, unicode_state, unicode_length, unicode_ascii;
};

static const struct published published_layouts[] = {
	{ 0x030d, 3, 5, 9, 21, 23, 25, 29, 30, 31, 33, 35, 36, 37, 38, 39, 43, 65, 66, 68, 69, 70 },
	{ 0x030e, 3, 5, 9, 24, 26, 28, 32, 33, 34, 36, 40, 41, 42, 43, 44, 48, 75, 76, 78, 79, 80 },
};

#define PUBLISHED_WORDS 96
#define PUBLISHED_FREE_THREADED 2

/* Moves word `index` into *field when it fits. */
#define TAKE(field, index) (ok &= take(words, (index), sizeof(out->field), &out->field))

static bool take(const uint64_t *words, uint8_t index, size_t size, void *field)
{
	if (words[index] >= 1ull << (8 * size))
		return false;
	memcpy(field, &words[index], size);
	return true;
}

static bool layout_from_words(const uint64_t *words, const struct published *at, struct pystack_layout *out)
{
	bool ok = true;

	memset(out, 0, sizeof(*out));
	out->owner_native = at->owner_native;
	TAKE(state_next, at->state_next);
	TAKE(state_frame, at->state_frame);
	TAKE(state_native_id, at->state_native_id);
	TAKE(frame_previous, at->frame_previous);
	TAKE(frame_code, at->frame_code);
	TAKE(frame_instr, at->frame_instr);
	TAKE(frame_owner, at->frame_owner);
	TAKE(code_filename, at->code_filename);
	TAKE(code_name, at->code_name);
	TAKE(code_qualname, at->code_qualname);
	TAKE(code_linetable, at->code_linetable);
	TAKE(code_first_line, at->code_first_line);
	TAKE(code_bytecode, at->code_bytecode);
	TAKE(bytes_size, at->bytes_size);
	TAKE(bytes_data, at->bytes_data);
	TAKE(unicode_state, at->unicode_state);
	TAKE(unicode_length, at->unicode_length);
	TAKE(unicode_ascii, at->unicode_ascii);
	/* PyCompactUnicodeObject adds utf8_length and utf8 to PyASCIIObject; its size is not published. */
	out->unicode_compact = out->unicode_ascii + 16;
	return ok;
}

static int layout_from_process(struct pystack_process *process, const struct symbols *symbols, uint32_t minor,
			       struct pystack_layout *out, uint64_t *interpreters_head, uint64_t *threads_head,
			       struct message *message)
{
	uint64_t words[PUBLISHED_WORDS];
	size_t i, n = sizeof(published_layouts) / sizeof(*published_layouts);
	int error = pystack_read(process, symbols->runtime, words, sizeof(words));

	if (error)
		return fail(message, error, "cannot read the interpreter's memory: %s", strerror(-error));
	if (memcmp(words, "xdebugpy", 8))
		return fail(message, -ENOTSUP, "Python %u.%u publishes no offsets", minor >> 8, minor & 0xff);
	for (i = 0; i < n && published_layouts[i].version != minor; i++)
		;
	if (i == n)
		return fail(message, -ENOTSUP, "the offsets that Python %u.%u publishes are not known", minor >> 8,
			    minor & 0xff);
	if (words[PUBLISHED_FREE_THREADED])
		return fail(message, -ENOTSUP, "free-threaded Python is not supported");
	*interpreters_head = words[published_layouts[i].interpreters_head];
	*threads_head = words[published_layouts[i].threads_head];
	if (!layout_from_words(words, &published_layouts[i], out))
		return fail(message, -ENOTSUP, "Python publishes offsets out of range");
	return 0;
}

static int read_version(struct pystack_process *process, const struct symbols *symbols, uint32_t *version,
			struct message *message)
{
	uint64_t value = 0;
	int error;

	if (!symbols->version)
		return fail(message, -ENOTSUP, "Python before 3.11 is not supported");
	/* Declared unsigned long, so that 64 bits are there; PY_VERSION_HEX has 32. */
	error = pystack_read(process, symbols->version, &value, sizeof(value));
	if (error)
		return fail(message, error, "cannot read the interpreter's memory: %s", strerror(-error));
	*version = (uint32_t)value;
	return 0;
}

static bool word_in(uint8_t offset, size_t size)
{
	return !(offset % 8) && offset + 8u <= size;
}

/* The walk masks offsets to what its constant-size reads cover. */
static bool offsets_fit(const struct pystack_layout *layout)
{
	return word_in(layout->frame_code, PYSTACK_FRAME_BYTES) &&
	       word_in(layout->frame_previous, PYSTACK_FRAME_BYTES) &&
	       word_in(layout->frame_instr, PYSTACK_FRAME_BYTES) && layout->frame_owner < PYSTACK_FRAME_BYTES &&
	       word_in(layout->code_filename, PYSTACK_CODE_BYTES) && word_in(layout->code_name, PYSTACK_CODE_BYTES) &&
	       word_in(layout->code_qualname, PYSTACK_CODE_BYTES) &&
	       word_in(layout->code_linetable, PYSTACK_CODE_BYTES) && layout->code_first_line % 4 == 0 &&
	       layout->code_first_line + 4u <= PYSTACK_CODE_BYTES;
}

/* The first interpreter of the list is the newest, the last one the main one, which programs run in. */
static int find_thread_list(struct pystack_process *process, uint64_t runtime, uint64_t interpreters_head,
			    uint64_t threads_head, struct pystack_layout *layout)
{
	uint64_t interpreter = 0;
	int error;

	/* interpreters.main stands behind interpreters.head in all versions. */
	error = pystack_read(process, runtime + interpreters_head + 8, &interpreter, sizeof(interpreter));
	if (error)
		return error;
	if (!interpreter)
		return -EAGAIN;
	layout->threads_head = interpreter + threads_head;
	return 0;
}

static bool is_thread_of(pid_t pid, uint64_t tid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%llu", pid, (unsigned long long)tid);
	return access(path, F_OK) == 0;
}

/* Walks one stack and resolves its outermost frame. 0: everything had the right type up to the end of the chain. */
static int check_stack(struct pystack_process *process, const struct pystack_layout *layout, uint64_t state)
{
	uint64_t frame = pystack_first_frame(layout, process, state), linetable, type = 0;
	struct pystack_scratch scratch;
	struct pystack_entry entry;
	int n = 0, got = 0;
	char *name = NULL;

	while (frame && n < 10000) {
		got = pystack_step(layout, process, &scratch, &frame, &entry);
		if (got < 0)
			return -EAGAIN;
		n += got;
	}
	if (!n || frame)
		return -EAGAIN;
	if (pystack_read(process, entry.code, scratch.code, PYSTACK_CODE_BYTES))
		return -EAGAIN;
	if (pystack_read_string(process, layout, pystack_code_word(&scratch, layout->code_filename), &name))
		return -EAGAIN;
	free(name);
	linetable = pystack_code_word(&scratch, layout->code_linetable);
	if (pystack_read(process, linetable + 8, &type, sizeof(type)) || type != layout->bytes_type)
		return -EAGAIN;
	return 0;
}

/* At least one thread state that belongs to a thread of the process and whose whole stack makes sense. */
static int check_layout(struct pystack_process *process, const struct pystack_layout *layout)
{
	uint64_t state, tid;
	int error = pystack_read(process, layout->threads_head, &state, sizeof(state));

	for (int i = 0; !error && state && i < PYSTACK_MAX_THREADS; i++) {
		error = pystack_read(process, state + layout->state_native_id, &tid, sizeof(tid));
		if (!error && is_thread_of(process->pid, tid) && !check_stack(process, layout, state))
			return 0;
		if (!error)
			error = pystack_read(process, state + layout->state_next, &state, sizeof(state));
	}
	return -EAGAIN;
}

static int load(struct pystack_process *process, struct pystack_layout *out, struct message *message)
{
	uint64_t interpreters_head, threads_head;
	struct symbols symbols;
	uint32_t version = 0;
	int error = find_symbols(process->pid, &symbols, message);

	if (error)
		return error;
	error = read_version(process, &symbols, &version, message);
	if (error)
		return error;
	error = layout_from_table(version >> 16, out, &interpreters_head, &threads_head);
	if (error)
		error = layout_from_process(process, &symbols, version >> 16, out, &interpreters_head, &threads_head,
					    message);
	if (error)
		return error;
	out->version = version;
	out->code_type = symbols.code_type;
	out->unicode_type = symbols.unicode_type;
	out->bytes_type = symbols.bytes_type;
	out->get_state = symbols.get_state;
	if (!offsets_fit(out))
		return fail(message, -ENOTSUP, "Python publishes offsets out of range");
	error = find_thread_list(process, symbols.runtime, interpreters_head, threads_head, out);
	if (!error)
		error = check_layout(process, out);
	return error ? fail(message, error, "Python %u.%u.%u: no stack that makes sense was found", version >> 24,
			    version >> 16 & 0xff, version >> 8 & 0xff)
		     : 0;
}

int pystack_layout_load(pid_t pid, struct pystack_layout *out, char *err, size_t err_size)
{
	struct message message = { err, err_size };
	struct pystack_process process;
	int error;

	pystack_process_open(pid ? pid : getpid(), &process);
	error = load(&process, out, &message);
	pystack_process_close(&process);
	return error;
}
