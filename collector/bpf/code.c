/* Disassembly of an op's function; see code.h. */
#include "collector/bpf/code.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- single instructions ---- */

/* As arch/x86/kernel/uprobes.c decides. Prefixes that it accepts and compilers hardly use are left out. */
bool code_is_emulated(const uint8_t *bytes, size_t size)
{
	if (size == 1)
		return bytes[0] == 0x90 || (bytes[0] >= 0x50 && bytes[0] <= 0x57);
	if (size == 2 && bytes[0] == 0x41)
		return bytes[1] >= 0x50 && bytes[1] <= 0x57;
	if (size == 2)
		return bytes[0] == 0xeb || (bytes[0] >= 0x70 && bytes[0] <= 0x7f);
	if (size == 5)
		return bytes[0] == 0xe8 || bytes[0] == 0xe9;
	return size == 6 && bytes[0] == 0x0f && bytes[1] >= 0x80 && bytes[1] <= 0x8f;
}

static bool is_prefix(uint8_t byte)
{
	static const uint8_t prefixes[] = {0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65};

	return memchr(prefixes, byte, sizeof(prefixes)) || (byte & 0xf0) == 0x40;
}

static enum code_kind kind_of_group_5(uint8_t modrm)
{
	switch (modrm >> 3 & 7) {
	case 2:
	case 3:
		return CODE_CALL;
	case 4:
	case 5:
		return CODE_JUMP_INDIRECT;
	default:
		return CODE_PLAIN;
	}
}

/* `*relative`: bytes of the distance that the instruction ends in. */
static enum code_kind kind_of(const uint8_t *bytes, size_t size, unsigned int *relative)
{
	size_t at = 0;

	*relative = 0;
	while (at + 1 < size && is_prefix(bytes[at]))
		at++;
	switch (bytes[at]) {
	case 0xc2:
	case 0xc3:
	case 0xca:
	case 0xcb:
		return CODE_RET;
	case 0xe8:
		*relative = 4;
		return CODE_CALL;
	case 0xe9:
		*relative = 4;
		return CODE_JUMP;
	case 0xeb:
		*relative = 1;
		return CODE_JUMP;
	case 0xf4:
	case 0xcc:
		return CODE_STOP;
	case 0xff:
		return at + 1 < size ? kind_of_group_5(bytes[at + 1]) : CODE_PLAIN;
	case 0x0f:
		if (at + 1 < size && (bytes[at + 1] & 0xf0) == 0x80) {
			*relative = 4;
			return CODE_BRANCH;
		}
		return at + 1 < size && bytes[at + 1] == 0x0b ? CODE_STOP : CODE_PLAIN;
	default:
		if ((bytes[at] & 0xf0) != 0x70 && (bytes[at] & 0xfc) != 0xe0) /* the latter: loop and jrcxz */
			return CODE_PLAIN;
		*relative = 1;
		return CODE_BRANCH;
	}
}

/* Where a relative jump or call goes, from the function's beginning. */
static int64_t distance(const uint8_t *bytes, const struct code_insn *insn, unsigned int relative)
{
	int32_t by = 0;

	if (relative == 1)
		by = (int8_t)bytes[insn->size - 1];
	else
		memcpy(&by, bytes + insn->size - 4, 4);
	return (int64_t)insn->offset + insn->size + by;
}

/* ---- functions ---- */

int code_open(struct code *code, const struct terra_elf *elf)
{
	memset(code, 0, sizeof(*code));
	code->elf = elf;
	if (cs_open(CS_ARCH_X86, CS_MODE_64, &code->plain) != CS_ERR_OK ||
	    cs_open(CS_ARCH_X86, CS_MODE_64, &code->detailed) != CS_ERR_OK)
		return -ENOMEM;
	cs_option(code->detailed, CS_OPT_DETAIL, CS_OPT_ON);
	code->plain_insn = cs_malloc(code->plain);
	code->insn = cs_malloc(code->detailed);
	unwind_open(&code->unwind, elf);
	return releases_open(&code->releases, elf) || !code->plain_insn || !code->insn ? -ENOMEM : 0;
}

void code_close(struct code *code)
{
	if (code->plain_insn)
		cs_free(code->plain_insn, 1);
	if (code->insn)
		cs_free(code->insn, 1);
	if (code->plain)
		cs_close(&code->plain);
	if (code->detailed)
		cs_close(&code->detailed);
	releases_close(&code->releases);
	free(code->insns);
}

/* A tail call comes right after the frame was taken down; a jump within the function (a switch, the cold part, which
 * goes on in the same frame) does not. */
static bool takes_frame_down(unsigned int id)
{
	return id == X86_INS_POP || id == X86_INS_LEAVE || id == X86_INS_ADD;
}

static int add_insn(struct code *code, const cs_insn *insn, const uint8_t *bytes)
{
	struct code_insn *out;
	unsigned int relative;

	if (code->n == code->capacity) {
		uint32_t capacity = code->capacity ? 2 * code->capacity : 1024;
		struct code_insn *grown = realloc(code->insns, capacity * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		code->insns = grown;
		code->capacity = capacity;
	}
	out = &code->insns[code->n++];
	*out = (struct code_insn){.offset = (uint32_t)(insn->address - code->address), .size = (uint8_t)insn->size};
	out->kind = (uint8_t)kind_of(bytes, insn->size, &relative);
	out->emulated = code_is_emulated(bytes, insn->size);
	out->takes_frame_down = takes_frame_down(insn->id);
	/* Until all instructions are known. Where a target is before the function it wraps around to beyond it. */
	out->target = relative ? (uint32_t)distance(bytes, out, relative) : CODE_OUTSIDE;
	if (out->kind == CODE_CALL && relative)
		out->releases = releases_is(&code->releases, code->address + (uint64_t)distance(bytes, out, relative));
	return 0;
}

/* Index of the instruction at `offset`. */
static uint32_t find_insn(const struct code *code, uint32_t offset)
{
	uint32_t low = 0, high = code->n;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (code->insns[middle].offset == offset)
			return middle;
		if (code->insns[middle].offset < offset)
			low = middle + 1;
		else
			high = middle;
	}
	return CODE_OUTSIDE;
}

/* Jumps that do not come back: first all that are followed, then on from their targets. */
static void mark_reachable(struct code *code, uint32_t *todo)
{
	uint32_t n = 0;

	todo[n++] = 0;
	while (n) {
		uint32_t i = todo[--n];

		for (; i < code->n && !code->insns[i].reachable && !code->insns[i].landing; i++) {
			struct code_insn *insn = &code->insns[i];

			insn->reachable = true;
			if ((insn->kind == CODE_BRANCH || insn->kind == CODE_JUMP) && insn->target != CODE_OUTSIDE)
				todo[n++] = insn->target;
			if (insn->kind >= CODE_JUMP)
				break;
		}
	}
}

static int connect(struct code *code)
{
	uint32_t *todo = malloc((code->n + 1) * sizeof(*todo)); /* each instruction adds at most one, once */

	if (!todo)
		return -ENOMEM;
	for (uint32_t i = 0; i < code->n; i++)
		if (code->insns[i].kind == CODE_BRANCH || code->insns[i].kind == CODE_JUMP)
			code->insns[i].target = find_insn(code, code->insns[i].target);
	for (uint32_t i = 0; i < code->exceptions.n_pads; i++) {
		uint64_t offset = code->exceptions.pads[i] - code->address;
		uint32_t at =
		    offset < code->insns[code->n - 1].offset + 1ull ? find_insn(code, (uint32_t)offset) : CODE_OUTSIDE;

		if (at != CODE_OUTSIDE)
			code->insns[at].landing = true;
	}
	mark_reachable(code, todo);
	free(todo);
	return 0;
}

int code_read(struct code *code, const struct terra_op *op)
{
	uint64_t address = op->address;
	size_t left = op->size;
	const uint8_t *at;
	int error = 0;

	if (op->file_offset > code->elf->size || op->size > code->elf->size - op->file_offset)
		return -ENOEXEC;
	code->address = op->address;
	code->bytes = at = code->elf->data + op->file_offset;
	code->n = 0;
	while (!error && left && op->size <= CODE_MAX_SIZE) {
		const uint8_t *bytes = at;

		if (!cs_disasm_iter(code->plain, &at, &left, &address, code->plain_insn))
			break;
		error = add_insn(code, code->plain_insn, bytes);
	}
	code->whole = !left && code->n;
	code->framed = op->size >= 4 && memcmp(code->bytes, "\x55\x48\x89\xe5", 4) == 0;
	unwind_function(&code->unwind, code->address, &code->exceptions);
	return error || !code->n ? error : connect(code);
}

const cs_insn *code_details(struct code *code, uint32_t index)
{
	const struct code_insn *insn = &code->insns[index];
	const uint8_t *at = code->bytes + insn->offset;
	uint64_t address = code->address + insn->offset;
	size_t left = insn->size;

	return cs_disasm_iter(code->detailed, &at, &left, &address, code->insn) ? code->insn : NULL;
}
