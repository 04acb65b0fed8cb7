/* Finding an op's ends by disassembly, with a cache per library. */
#include "collector/bpf/exits.h"

#include <capstone/capstone.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probes/cache.h"
#include "probes/elf_file.h"

#define CACHE_KIND "exits"
#define CACHE_LAYOUT 1

static struct terra_exits *exits_new(uint32_t n_ops)
{
	struct terra_exits *exits = calloc(1, sizeof(*exits));

	if (!exits)
		return NULL;
	exits->tail_jumps = calloc(n_ops + 1, 1);
	if (!exits->tail_jumps) {
		free(exits);
		return NULL;
	}
	return exits;
}

void terra_exits_free(struct terra_exits *exits)
{
	if (!exits)
		return;
	free(exits->exits);
	free(exits->tail_jumps);
	free(exits);
}

static int add_exit(struct terra_exits *exits, uint32_t op, uint64_t file_offset)
{
	struct terra_exit *grown;

	if (!(exits->n & (exits->n - 1))) {
		grown = realloc(exits->exits, (exits->n ? 2 * exits->n : 1) * sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		exits->exits = grown;
	}
	exits->exits[exits->n++] = (struct terra_exit){ .file_offset = file_offset, .op = op };
	return 0;
}

struct scan {
	csh handle;
	cs_insn *insn;
	struct terra_exits *exits;
	const struct terra_elf *elf;
};

/* Where a direct jump goes; 0 for one through a register or memory. */
static uint64_t jump_target(const cs_insn *insn)
{
	return strncmp(insn->op_str, "0x", 2) ? 0 : strtoull(insn->op_str, NULL, 16);
}

/* A tail call comes right after the frame was taken down; a jump within the function (a switch, the cold part, which
 * goes on in the same frame) does not. */
static bool takes_frame_down(unsigned int id)
{
	return id == X86_INS_POP || id == X86_INS_LEAVE || id == X86_INS_ADD;
}

static int scan_op(struct scan *scan, uint32_t index, const struct terra_op *op)
{
	uint64_t address = op->address, target;
	size_t left = op->size;
	const uint8_t *code;
	unsigned int before = X86_INS_INVALID;

	if (op->file_offset > scan->elf->size || op->size > scan->elf->size - op->file_offset)
		return -ENOEXEC;
	code = scan->elf->data + op->file_offset;
	while (left && cs_disasm_iter(scan->handle, &code, &left, &address, scan->insn)) {
		uint64_t offset = op->file_offset + (scan->insn->address - op->address);

		if (scan->insn->id == X86_INS_RET && add_exit(scan->exits, index, offset))
			return -ENOMEM;
		target = scan->insn->id == X86_INS_JMP ? jump_target(scan->insn) : op->address;
		if ((target < op->address || target >= op->address + op->size) && takes_frame_down(before))
			scan->exits->tail_jumps[index] = 1;
		before = scan->insn->id;
	}
	/* What does not disassemble to its end may hide an end. */
	if (left)
		scan->exits->tail_jumps[index] = 1;
	return 0;
}

/* Ops have code of their own, or share it where the linker found two alike. Were all of them the whole file, as a hostile
 * one may say, looking at them would take until tomorrow. */
static bool fits_file(const struct terra_op_table *table, const struct terra_elf *elf)
{
	uint64_t left = elf->size;

	for (uint32_t i = 0; i < table->n_ops; i++) {
		if (table->ops[i].size > left)
			return false;
		left -= table->ops[i].size;
	}
	return true;
}

static int scan_table(const struct terra_op_table *table, const struct terra_elf *elf, struct terra_exits *exits)
{
	struct scan scan = { .exits = exits, .elf = elf };
	int error = 0;

	if (!fits_file(table, elf))
		return -ENOEXEC;
	if (cs_open(CS_ARCH_X86, CS_MODE_64, &scan.handle) != CS_ERR_OK)
		return -ENOMEM;
	scan.insn = cs_malloc(scan.handle);
	if (!scan.insn)
		error = -ENOMEM;
	for (uint32_t i = 0; !error && i < table->n_ops; i++)
		error = scan_op(&scan, i, &table->ops[i]);
	if (scan.insn)
		cs_free(scan.insn, 1);
	cs_close(&scan.handle);
	return error;
}

/* Cached form: number of ops, number of exits, the exits, then the tail_jumps bytes. */
struct cached {
	uint64_t n_ops, n_exits;
};

static bool exit_in_op(const struct terra_op_table *table, const struct terra_exit *exit)
{
	const struct terra_op *op;

	if (exit->op >= table->n_ops)
		return false;
	op = &table->ops[exit->op];
	return exit->file_offset >= op->file_offset && exit->file_offset - op->file_offset < op->size;
}

static int read_cached(const struct terra_op_table *table, const struct terra_cache_key *key, struct terra_exits *exits)
{
	struct cached *cached = NULL;
	size_t size = 0, bytes;
	int error = terra_cache_read(CACHE_KIND, key, (void **)&cached, &size);

	if (error)
		return error;
	error = -ENODATA;
	if (size < sizeof(*cached) || cached->n_ops != table->n_ops || cached->n_exits > size / sizeof(*exits->exits))
		goto out;
	bytes = cached->n_exits * sizeof(*exits->exits);
	if (size != sizeof(*cached) + bytes + table->n_ops)
		goto out;
	exits->exits = malloc(bytes + 1);
	if (!exits->exits)
		goto out;
	memcpy(exits->exits, cached + 1, bytes);
	memcpy(exits->tail_jumps, (char *)(cached + 1) + bytes, table->n_ops);
	error = 0;
	for (size_t i = 0; !error && i < cached->n_exits; i++)
		if (!exit_in_op(table, &exits->exits[i]))
			error = -ENODATA;
	exits->n = error ? 0 : cached->n_exits;
out:
	free(cached);
	return error;
}

static void write_cached(const struct terra_op_table *table, const struct terra_cache_key *key,
			 const struct terra_exits *exits)
{
	size_t bytes = exits->n * sizeof(*exits->exits), size = sizeof(struct cached) + bytes + table->n_ops;
	struct cached *cached = calloc(1, size);

	if (!cached)
		return;
	cached->n_ops = table->n_ops;
	cached->n_exits = exits->n;
	if (bytes)
		memcpy(cached + 1, exits->exits, bytes);
	memcpy((char *)(cached + 1) + bytes, exits->tail_jumps, table->n_ops);
	terra_cache_write(CACHE_KIND, key, cached, size);
	free(cached);
}

static int find(const struct terra_op_table *table, const struct terra_elf *elf, bool use_cache,
		struct terra_exits **out)
{
	struct terra_cache_key key;
	struct terra_exits *exits = exits_new(table->n_ops);
	int error;

	if (!exits)
		return -ENOMEM;
	*out = exits;
	if (terra_cache_key_make(elf, CACHE_LAYOUT, &key))
		use_cache = false;
	if (use_cache && !read_cached(table, &key, exits))
		return 0;
	free(exits->exits);
	exits->exits = NULL;
	exits->n = 0;
	memset(exits->tail_jumps, 0, table->n_ops);
	error = scan_table(table, elf, exits);
	if (!error && use_cache)
		write_cached(table, &key, exits);
	return error;
}

int terra_exits_find(const struct terra_op_table *table, bool use_cache, struct terra_exits **out, char *err,
		     size_t err_size)
{
	struct terra_elf elf;
	int error = terra_elf_open(table->library, &elf);

	*out = NULL;
	if (!error) {
		error = find(table, &elf, use_cache, out);
		terra_elf_close(&elf);
	}
	if (error) {
		snprintf(err, err_size, "cannot find where the ops of %s end: %s", table->library, strerror(-error));
		terra_exits_free(*out);
		*out = NULL;
	}
	return error;
}
