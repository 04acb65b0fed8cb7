/* Registers along straight lines of code; see track.h. */
#include "collector/bpf/track.h"

#include <string.h>

void track_begin(struct track *track)
{
	memset(track, 0, sizeof(*track));
	for (uint8_t i = 0; i < TERRA_REGISTERS; i++)
		track->reg[i] = (struct track_value){.kind = TRACK_REGISTER, .base = i};
	track->xmm = 0xff;
}

/* ---- names of registers ---- */

#define WHOLE(name, number) [X86_REG_##name] = (number) + 1

/* Number of a 64-bit general register plus one; 0 for others. */
static const uint8_t whole[X86_REG_ENDING] = {
    WHOLE(RAX, TERRA_RAX), WHOLE(RCX, TERRA_RCX), WHOLE(RDX, TERRA_RDX), WHOLE(RBX, TERRA_RBX),
    WHOLE(RSP, TERRA_RSP), WHOLE(RBP, TERRA_RBP), WHOLE(RSI, TERRA_RSI), WHOLE(RDI, TERRA_RDI),
    WHOLE(R8, TERRA_R8),   WHOLE(R9, TERRA_R9),	  WHOLE(R10, TERRA_R10), WHOLE(R11, TERRA_R11),
    WHOLE(R12, TERRA_R12), WHOLE(R13, TERRA_R13), WHOLE(R14, TERRA_R14), WHOLE(R15, TERRA_R15),
};

#define PARTS(a, b, c, d, number)                                                                                      \
	[X86_REG_##a] = (number) + 1, [X86_REG_##b] = (number) + 1, [X86_REG_##c] = (number) + 1,                      \
	[X86_REG_##d] = (number) + 1

/* The same of any part of one. */
static const uint8_t part[X86_REG_ENDING] = {
    PARTS(RAX, EAX, AX, AL, TERRA_RAX),	     [X86_REG_AH] = TERRA_RAX + 1,
    PARTS(RCX, ECX, CX, CL, TERRA_RCX),	     [X86_REG_CH] = TERRA_RCX + 1,
    PARTS(RDX, EDX, DX, DL, TERRA_RDX),	     [X86_REG_DH] = TERRA_RDX + 1,
    PARTS(RBX, EBX, BX, BL, TERRA_RBX),	     [X86_REG_BH] = TERRA_RBX + 1,
    PARTS(RSP, ESP, SP, SPL, TERRA_RSP),     PARTS(RBP, EBP, BP, BPL, TERRA_RBP),
    PARTS(RSI, ESI, SI, SIL, TERRA_RSI),     PARTS(RDI, EDI, DI, DIL, TERRA_RDI),
    PARTS(R8, R8D, R8W, R8B, TERRA_R8),	     PARTS(R9, R9D, R9W, R9B, TERRA_R9),
    PARTS(R10, R10D, R10W, R10B, TERRA_R10), PARTS(R11, R11D, R11W, R11B, TERRA_R11),
    PARTS(R12, R12D, R12W, R12B, TERRA_R12), PARTS(R13, R13D, R13W, R13B, TERRA_R13),
    PARTS(R14, R14D, R14W, R14B, TERRA_R14), PARTS(R15, R15D, R15W, R15B, TERRA_R15),
};

static int whole_number(unsigned int reg)
{
	return reg < X86_REG_ENDING ? whole[reg] - 1 : -1;
}

static int part_number(unsigned int reg)
{
	return reg < X86_REG_ENDING ? part[reg] - 1 : -1;
}

static int xmm_number(unsigned int reg)
{
	if (reg >= X86_REG_XMM0 && reg <= X86_REG_XMM7)
		return (int)(reg - X86_REG_XMM0);
	if (reg >= X86_REG_YMM0 && reg <= X86_REG_YMM7)
		return (int)(reg - X86_REG_YMM0);
	if (reg >= X86_REG_ZMM0 && reg <= X86_REG_ZMM7)
		return (int)(reg - X86_REG_ZMM0);
	return -1;
}

/* ---- places on the stack ---- */

static bool is_stack(struct track_value value)
{
	return value.kind == TRACK_REGISTER && (value.base == TERRA_RSP || value.base == TERRA_RBP);
}

/* The address of a memory operand, in terms of the registers at the beginning. */
static struct track_value address_of(const struct track *track, const x86_op_mem *memory)
{
	struct track_value value = {0};
	int base = whole_number(memory->base);

	if (base < 0 || memory->index != X86_REG_INVALID || memory->segment != X86_REG_INVALID)
		return value;
	value = track->reg[base];
	if (value.kind != TRACK_REGISTER || memory->disp > INT32_MAX / 2 || memory->disp < INT32_MIN / 2 ||
	    value.offset > INT32_MAX / 4 || value.offset < INT32_MIN / 4)
		return (struct track_value){0};
	value.offset += (int32_t)memory->disp;
	return value;
}

static bool store(struct track *track, struct track_value address, uint16_t size, struct track_value value)
{
	if (!is_stack(address) || track->n_stores == TRACK_STORES)
		return false;
	track->stores[track->n_stores++] =
	    (struct track_store){.base = address.base, .offset = address.offset, .size = size, .value = value};
	return true;
}

/* rsp and rbp at the beginning may be any distance apart: a store through one says nothing of places given by the
 * other. */
static struct track_value load(const struct track *track, struct track_value address)
{
	if (!is_stack(address))
		return (struct track_value){0};
	for (uint32_t i = track->n_stores; i-- > 0;) {
		const struct track_store *s = &track->stores[i];

		if (s->base == address.base &&
		    (s->offset + s->size <= address.offset || address.offset + 8 <= s->offset))
			continue;
		if (s->base == address.base && s->offset == address.offset && s->size == 8)
			return s->value;
		return (struct track_value){0};
	}
	address.kind = TRACK_MEMORY;
	return address;
}

/* ---- instructions ---- */

/* That only read the memory operand they begin with. */
static bool only_reads(unsigned int id)
{
	return id == X86_INS_CMP || id == X86_INS_TEST || id == X86_INS_PUSH || id == X86_INS_CALL ||
	       id == X86_INS_JMP || id == X86_INS_NOP || id == X86_INS_BT || id == X86_INS_UCOMISS ||
	       id == X86_INS_UCOMISD;
}

/* The memory operand that is written; the library's own word on it is believed only where it says yes. */
static const cs_x86_op *written_memory(const cs_insn *insn)
{
	const cs_x86 *x86 = &insn->detail->x86;

	for (uint8_t i = 0; i < x86->op_count; i++) {
		const cs_x86_op *operand = &x86->operands[i];

		if (operand->type == X86_OP_MEM && insn->id != X86_INS_LEA &&
		    (operand->access & CS_AC_WRITE || (i == 0 && !only_reads(insn->id))))
			return operand;
	}
	return NULL;
}

/* Of an instruction whose only effect on memory is what written_memory says. */
static bool is_odd(const cs_insn *insn)
{
	switch (insn->id) {
	case X86_INS_SYSCALL:
	case X86_INS_SYSENTER:
	case X86_INS_INT:
	case X86_INS_ENTER:
	case X86_INS_XSAVE:
	case X86_INS_MASKMOVDQU:
	case X86_INS_VMASKMOVDQU:
		return true;
	default:
		return false;
	}
}

bool track_writes_only_stack(const cs_insn *insn, bool framed)
{
	const cs_x86_op *operand = written_memory(insn);

	if (is_odd(insn))
		return false;
	if (!operand)
		return true;
	return operand->mem.index == X86_REG_INVALID && operand->mem.segment == X86_REG_INVALID &&
	       (operand->mem.base == X86_REG_RSP || (framed && operand->mem.base == X86_REG_RBP));
}

static void forget_written(struct track *track, csh handle, const cs_insn *insn)
{
	cs_regs read, written;
	uint8_t n_read, n_written;

	if (cs_regs_access(handle, insn, read, &n_read, written, &n_written)) {
		memset(track->reg, 0, sizeof(track->reg));
		track->xmm = 0;
		return;
	}
	for (uint8_t i = 0; i < n_written; i++) {
		int general = part_number(written[i]), xmm = xmm_number(written[i]);

		if (general >= 0)
			track->reg[general] = (struct track_value){0};
		if (xmm >= 0)
			track->xmm &= (uint8_t) ~(1u << xmm);
	}
}

/* An operand that an instruction names first is one it writes, whatever the library says. */
static void forget_first(struct track *track, const cs_insn *insn)
{
	const cs_x86 *x86 = &insn->detail->x86;
	int general, xmm;

	if (!x86->op_count || x86->operands[0].type != X86_OP_REG || only_reads(insn->id))
		return;
	general = part_number(x86->operands[0].reg);
	xmm = xmm_number(x86->operands[0].reg);
	if (general >= 0)
		track->reg[general] = (struct track_value){0};
	if (xmm >= 0)
		track->xmm &= (uint8_t) ~(1u << xmm);
}

static bool push(struct track *track, struct track_value value)
{
	if (!is_stack(track->reg[TERRA_RSP]))
		return false;
	track->reg[TERRA_RSP].offset -= 8;
	return store(track, track->reg[TERRA_RSP], 8, value);
}

static struct track_value pop(struct track *track)
{
	struct track_value value = load(track, track->reg[TERRA_RSP]);

	track->reg[TERRA_RSP].offset += 8;
	return value;
}

/* What the second operand of a move brings, where it is a word that is followed. */
static struct track_value moved(const struct track *track, const cs_x86_op *from)
{
	if (from->type == X86_OP_MEM && from->size == 8)
		return load(track, address_of(track, &from->mem));
	if (from->type == X86_OP_REG && whole_number(from->reg) >= 0)
		return track->reg[whole_number(from->reg)];
	if (from->type == X86_OP_REG && xmm_number(from->reg) >= 0 && track->xmm >> xmm_number(from->reg) & 1)
		return (struct track_value){.kind = TRACK_XMM, .base = (uint8_t)xmm_number(from->reg)};
	return (struct track_value){0};
}

static bool is_move(unsigned int id)
{
	return id == X86_INS_MOV || id == X86_INS_MOVSD || id == X86_INS_MOVQ || id == X86_INS_VMOVSD ||
	       id == X86_INS_VMOVQ || id == X86_INS_MOVLPD || id == X86_INS_MOVLPS;
}

/* The value of add and sub of a constant to a register, and of lea. */
static bool is_sum(const struct track *track, const cs_insn *insn, struct track_value *out)
{
	const cs_x86 *x86 = &insn->detail->x86;
	int target;

	if (x86->op_count != 2 || x86->operands[0].type != X86_OP_REG)
		return false;
	target = whole_number(x86->operands[0].reg);
	if (target < 0)
		return false;
	if (insn->id == X86_INS_LEA) {
		*out = address_of(track, &x86->operands[1].mem);
		return true;
	}
	if ((insn->id != X86_INS_ADD && insn->id != X86_INS_SUB) || x86->operands[1].type != X86_OP_IMM)
		return false;
	*out = address_of(
	    track, &(x86_op_mem){.base = x86->operands[0].reg,
				 .disp = insn->id == X86_INS_ADD ? x86->operands[1].imm : -x86->operands[1].imm});
	return true;
}

static void call(struct track *track)
{
	static const uint8_t lost[] = {TERRA_RAX, TERRA_RCX, TERRA_RDX, TERRA_RSI, TERRA_RDI,
				       TERRA_R8,  TERRA_R9,  TERRA_R10, TERRA_R11};

	for (size_t i = 0; i < sizeof(lost); i++)
		track->reg[lost[i]] = (struct track_value){0};
	track->xmm = 0;
}

/* A move, or any other instruction with operands. */
static bool step_operands(struct track *track, csh handle, const cs_insn *insn)
{
	const cs_x86 *x86 = &insn->detail->x86;
	const cs_x86_op *memory = written_memory(insn);
	struct track_value value = {0};
	bool known = is_sum(track, insn, &value);

	if (!known && is_move(insn->id) && x86->op_count == 2) {
		value = moved(track, &x86->operands[1]);
		known = true;
	}
	if (memory)
		return store(track, address_of(track, &memory->mem), memory->size,
			     known && memory->size == 8 ? value : (struct track_value){0});
	forget_written(track, handle, insn);
	forget_first(track, insn);
	if (known && x86->operands[0].type == X86_OP_REG && whole_number(x86->operands[0].reg) >= 0)
		track->reg[whole_number(x86->operands[0].reg)] = value;
	return true;
}

static bool step_stack(struct track *track, const cs_insn *insn, const cs_x86_op *operand)
{
	struct track_value value = {0};
	int reg = insn->detail->x86.op_count && operand->type == X86_OP_REG ? whole_number(operand->reg) : -1;

	switch (insn->id) {
	case X86_INS_PUSH:
		if (operand->type == X86_OP_REG && reg < 0)
			return false;
		return push(track, reg >= 0 ? track->reg[reg] : value);
	case X86_INS_POP:
		if (reg < 0)
			return false;
		value = pop(track);
		track->reg[reg] = value;
		return true;
	default: /* leave */
		track->reg[TERRA_RSP] = track->reg[TERRA_RBP];
		value = pop(track);
		track->reg[TERRA_RBP] = value;
		return true;
	}
}

bool track_step(struct track *track, csh handle, const cs_insn *insn)
{
	if (is_odd(insn))
		return false;
	switch (insn->id) {
	case X86_INS_CALL:
		call(track);
		return true;
	case X86_INS_PUSH:
	case X86_INS_POP:
	case X86_INS_LEAVE:
		return step_stack(track, insn, insn->detail->x86.operands);
	default:
		return step_operands(track, handle, insn);
	}
}

/* ---- finding a value again ---- */

static bool same(struct track_value a, struct track_value b)
{
	return a.kind == b.kind && a.base == b.base && a.offset == b.offset;
}

/* A place on the stack in terms of a register that points to it now. */
static bool express(const struct track *track, uint8_t base, int32_t offset, struct terra_source *out)
{
	static const uint8_t pointers[] = {TERRA_RSP, TERRA_RBP};

	for (size_t i = 0; i < sizeof(pointers); i++) {
		const struct track_value *now = &track->reg[pointers[i]];
		int32_t from = offset - now->offset;

		if (now->kind != TRACK_REGISTER || now->base != base || from < INT16_MIN || from > INT16_MAX)
			continue;
		*out = (struct terra_source){.base = pointers[i], .offset = (int16_t)from};
		return true;
	}
	return false;
}

bool track_find(const struct track *track, struct track_value wanted, struct terra_source *out)
{
	for (uint8_t i = 0; i < TERRA_REGISTERS; i++) {
		if (!same(track->reg[i], wanted))
			continue;
		*out = (struct terra_source){.kind = TERRA_SOURCE_REGISTER, .base = i};
		return true;
	}
	for (uint32_t i = track->n_stores; i-- > 0;) {
		const struct track_store *s = &track->stores[i];
		struct track_value place = {.kind = TRACK_REGISTER, .base = s->base, .offset = s->offset};

		/* As long as nothing was written over it. */
		if (!same(s->value, wanted) || s->size != 8 || !same(load(track, place), wanted) ||
		    !express(track, s->base, s->offset, out))
			continue;
		out->kind = TERRA_SOURCE_MEMORY;
		return true;
	}
	/* A pointer to the stack, such as the stack pointer of then. */
	if (is_stack(wanted) && express(track, wanted.base, wanted.offset, out)) {
		out->kind = TERRA_SOURCE_REGISTER;
		return true;
	}
	return false;
}
