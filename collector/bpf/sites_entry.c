/* Where an op's arguments can be read; see sites.h. */
#include "collector/bpf/sites_private.h"

#include <string.h>

#include "collector/bpf/track.h"

#define MAX_BEGINNING 64 /* instructions; spills are among the first */

/* What the arguments are passed in, a bit per register. */
struct used_registers {
	uint8_t gpr, xmm;
};

static struct used_registers registers_of(const struct terra_op *op)
{
	struct used_registers used = {0};

	for (unsigned int i = 0; i < op->n_args; i++) {
		const struct terra_arg *arg = &op->args[i];

		if (arg->place == TERRA_PLACE_GPR)
			used.gpr |= (uint8_t)(((1u << arg->words) - 1) << arg->index);
		if (arg->place == TERRA_PLACE_GPR_SSE)
			used.gpr |= (uint8_t)(1u << arg->index2);
		if (arg->place == TERRA_PLACE_SSE || arg->place == TERRA_PLACE_GPR_SSE)
			used.xmm |= (uint8_t)(1u << arg->index);
	}
	return used;
}

bool terra_entry_misses_doubles(const struct terra_op *op, const struct terra_site *entry)
{
	uint8_t xmm = registers_of(op).xmm;

	for (unsigned int i = 0; i < 8; i++)
		if (xmm >> i & 1 && (entry->plain || entry->xmm[i].kind == TERRA_SOURCE_NONE))
			return true;
	return false;
}

/* True when all that the arguments are in is somewhere at this point. */
static bool describe(const struct track *track, struct used_registers used, struct terra_site *site)
{
	static const uint8_t order[6] = {TERRA_RDI, TERRA_RSI, TERRA_RDX, TERRA_RCX, TERRA_R8, TERRA_R9};
	struct track_value sp = {.kind = TRACK_REGISTER, .base = TERRA_RSP};

	if (!track_find(track, sp, &site->sp))
		return false;
	for (uint8_t i = 0; i < 6; i++) {
		struct track_value wanted = {.kind = TRACK_REGISTER, .base = order[i]};

		if (used.gpr >> i & 1 && !track_find(track, wanted, &site->gpr[i]))
			return false;
	}
	for (uint8_t i = 0; i < 8; i++) {
		struct track_value wanted = {.kind = TRACK_XMM, .base = i};

		if (used.xmm >> i & 1 && !track_find(track, wanted, &site->xmm[i]))
			return false;
	}
	return true;
}

/* Instructions that run one after another, once, whenever the function is called: up to the first that may go
 * elsewhere, and not beyond one that is jumped to. */
static uint32_t straight_beginning(const struct code *code)
{
	uint32_t n = 0;

	while (n < code->n && n < MAX_BEGINNING && code->insns[n].kind == CODE_PLAIN)
		n++;
	n += n < code->n && n < MAX_BEGINNING;
	for (uint32_t i = 0; i < code->n; i++)
		if ((code->insns[i].kind == CODE_BRANCH || code->insns[i].kind == CODE_JUMP) &&
		    code->insns[i].target < n)
			n = code->insns[i].target;
	return n;
}

static bool is_string_operation(const cs_insn *insn)
{
	return insn->detail->x86.prefix[0] == X86_PREFIX_REP || insn->detail->x86.prefix[0] == X86_PREFIX_REPNE;
}

/* The first emulated instruction at which all can be read, else the first of any kind; CODE_OUTSIDE: there is none. */
static uint32_t choose(struct code *code, struct used_registers used, struct terra_site *site)
{
	uint32_t n = straight_beginning(code), chosen = CODE_OUTSIDE;
	struct track track;

	track_begin(&track);
	for (uint32_t i = 0; i < n; i++) {
		struct terra_site here = {.op = site->op};
		const cs_insn *insn;

		if ((chosen == CODE_OUTSIDE || code->insns[i].emulated) && describe(&track, used, &here)) {
			*site = here;
			chosen = i;
			if (code->insns[i].emulated)
				return chosen;
		}
		insn = code->insns[i].kind == CODE_PLAIN ? code_details(code, i) : NULL;
		if (!insn || is_string_operation(insn) || !track_step(&track, code->detailed, insn))
			break;
	}
	return chosen;
}

struct terra_probe sites_find_entry(struct code *code, const struct terra_op *op, uint32_t index)
{
	struct terra_probe probe = {.file_offset = op->file_offset, .site = {.op = index, .plain = 1}};
	struct used_registers used = registers_of(op);
	struct terra_site site = {.op = index};
	uint32_t chosen;

	/* Here without the arguments whose places are not known: those are not read anywhere. */
	if (!code->n || (!used.xmm && code->insns[0].emulated))
		return probe;
	chosen = choose(code, used, &site);
	if (chosen == CODE_OUTSIDE || (chosen == 0 && !used.xmm))
		return probe;
	probe.file_offset += code->insns[chosen].offset;
	probe.site = site;
	return probe;
}
