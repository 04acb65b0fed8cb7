/* Where an op's results are complete; see sites.h.
 *
 * The ending of a function is every instruction from which all ways lead to a `ret` without a call (but one that only
 * gives something back) and without a write to anything but the stack. A run enters it once and does not leave it, and
 * all that it does there leaves results alone. Sites are chosen in it so that every way through it passes one; where one
 * instruction alone does not do, several, of which a way may then pass two: the second is an exit of an op that has
 * ended, which the consumer drops.
 */
#include "collector/bpf/sites_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "collector/bpf/track.h"

#define MAX_WAYS 16384 /* instructions on all ways from a site to `ret`s */

enum mark { ENDING = 1, BEGINS = 2, SEEN = 4, CHOSEN = 8, DIRTY = 16 };

struct ending {
	struct code *code;
	uint32_t after; /* offset of the entry's site: an op does not end before */
	uint8_t *marks; /* of each instruction */
	uint32_t *todo;
};

static bool in_ending(const struct ending *e, uint32_t i)
{
	return i < e->code->n && e->marks[i] & ENDING;
}

static bool is_cheap(const struct ending *e, uint32_t i)
{
	return e->code->insns[i].emulated && e->code->insns[i].offset > e->after;
}

static bool falls_through(const struct code_insn *insn)
{
	return insn->kind == CODE_PLAIN || insn->kind == CODE_CALL || insn->kind == CODE_BRANCH;
}

static bool jumps(const struct code_insn *insn)
{
	return insn->kind == CODE_JUMP || insn->kind == CODE_BRANCH;
}

/* Whether the instruction, of which all ways on are in the ending, is so itself. */
static bool is_clean(const struct ending *e, uint32_t i)
{
	const struct code_insn *insn = &e->code->insns[i];
	const cs_insn *details;

	if (insn->kind == CODE_BRANCH) /* but not one that counts down */
		return (e->code->bytes[insn->offset] & 0xfc) != 0xe0;
	if (insn->kind != CODE_PLAIN)
		return insn->kind != CODE_CALL || insn->releases;
	details = code_details(e->code, i);
	return details && track_writes_only_stack(details, e->code->framed);
}

/* From the `ret`s backwards until nothing is added; a loop has no way out of itself and is never in it. */
static void find_ending(struct ending *e)
{
	const struct code_insn *insns = e->code->insns;
	bool grows = true;

	while (grows) {
		grows = false;
		for (uint32_t i = e->code->n; i-- > 0;) {
			const struct code_insn *insn = &insns[i];

			if (e->marks[i] & (ENDING | DIRTY) || !insn->reachable || insn->kind == CODE_JUMP_INDIRECT ||
			    insn->kind == CODE_STOP)
				continue;
			if (insn->kind != CODE_RET && ((falls_through(insn) && !in_ending(e, i + 1)) ||
						       (jumps(insn) && !in_ending(e, insn->target))))
				continue;
			e->marks[i] |= insn->kind == CODE_RET || is_clean(e, i) ? ENDING : DIRTY;
			grows = true;
		}
	}
}

/* Where control comes into the ending. */
static void find_beginnings(struct ending *e)
{
	for (uint32_t i = 0; i < e->code->n; i++) {
		const struct code_insn *insn = &e->code->insns[i];

		if (!insn->reachable || (i > 0 && in_ending(e, i)))
			continue;
		if (i == 0 && in_ending(e, 0))
			e->marks[0] |= BEGINS;
		if (falls_through(insn) && in_ending(e, i + 1) && !in_ending(e, i))
			e->marks[i + 1] |= BEGINS;
		if (jumps(insn) && in_ending(e, insn->target) && !in_ending(e, i))
			e->marks[insn->target] |= BEGINS;
	}
}

static void visit(struct ending *e, uint32_t i, uint32_t *n)
{
	if (in_ending(e, i) && !(e->marks[i] & SEEN)) {
		e->marks[i] |= SEEN;
		e->todo[(*n)++] = i;
	}
}

/* Follows all ways through the ending up to `stop`, or, when that is CODE_OUTSIDE, up to the first emulated instruction
 * of each, which is chosen. False when one comes to a `ret` otherwise. */
static bool follow(struct ending *e, uint32_t stop)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < e->code->n; i++) {
		e->marks[i] &= (uint8_t)~SEEN;
		if (e->marks[i] & BEGINS)
			visit(e, i, &n);
	}
	while (n) {
		uint32_t i = e->todo[--n];
		const struct code_insn *insn = &e->code->insns[i];

		if (i == stop)
			continue;
		if (stop == CODE_OUTSIDE && is_cheap(e, i)) {
			e->marks[i] |= CHOSEN;
			continue;
		}
		if (insn->kind == CODE_RET)
			return false;
		if (falls_through(insn))
			visit(e, i + 1, &n);
		if (jumps(insn))
			visit(e, insn->target, &n);
	}
	return true;
}

/* Marks the sites; false when there are none that all ways pass. */
static bool choose(struct ending *e)
{
	for (uint32_t i = 0; i < e->code->n; i++) {
		if (!in_ending(e, i) || !is_cheap(e, i) || !follow(e, i))
			continue;
		e->marks[i] |= CHOSEN;
		return true;
	}
	return follow(e, CODE_OUTSIDE);
}

/* ---- what is where at a site ---- */

struct way {
	uint32_t at;
	struct track track;
};

struct ways {
	struct ending *ending;
	struct track_value sp, result; /* at the `ret`, in terms of the site */
	bool needs_result, any;
	unsigned int budget;
};

static bool same(struct track_value a, struct track_value b)
{
	return a.kind == b.kind && a.base == b.base && a.offset == b.offset;
}

static bool end_way(struct ways *ways, const struct track *track)
{
	struct track_value sp = track->reg[TERRA_RSP], result = track->reg[TERRA_RAX];

	if (ways->any && (!same(sp, ways->sp) || (ways->needs_result && !same(result, ways->result))))
		return false;
	ways->any = true;
	ways->sp = sp;
	ways->result = result;
	return true;
}

/* All ways from instruction `i`; false when they do not agree. */
static bool follow_ways(struct ways *ways, uint32_t i, struct track track)
{
	struct code *code = ways->ending->code;

	for (;; i++) {
		const struct code_insn *insn = &code->insns[i];
		const cs_insn *details;

		if (ways->budget-- == 0)
			return false;
		if (insn->kind == CODE_RET)
			return end_way(ways, &track);
		if (insn->kind == CODE_BRANCH && !follow_ways(ways, insn->target, track))
			return false;
		if (insn->kind == CODE_JUMP)
			return follow_ways(ways, insn->target, track);
		if (insn->kind == CODE_BRANCH)
			continue;
		details = code_details(code, i);
		if (!details || !track_step(&track, code->detailed, details))
			return false;
	}
}

static bool as_source(struct track_value value, bool memory_too, struct terra_source *out)
{
	if (value.kind != TRACK_REGISTER && (value.kind != TRACK_MEMORY || !memory_too))
		return false;
	if (value.offset < INT16_MIN || value.offset > INT16_MAX)
		return false;
	*out = (struct terra_source){.kind = value.kind == TRACK_REGISTER ? TERRA_SOURCE_REGISTER : TERRA_SOURCE_MEMORY,
				     .base = value.base,
				     .offset = (int16_t)value.offset};
	return true;
}

/* The `ret` finds the return address where the first instruction found it, so the stack pointer there is the entry's.
 */
static bool describe(struct ending *e, uint32_t i, bool needs_result, struct terra_site *site)
{
	struct ways ways = {.ending = e, .needs_result = needs_result, .budget = MAX_WAYS};
	struct track track;

	track_begin(&track);
	if (!follow_ways(&ways, i, track) || !as_source(ways.sp, false, &site->sp))
		return false;
	return !needs_result || as_source(ways.result, true, &site->result);
}

static bool needs_result(const struct terra_op *op)
{
	return op->ret != TERRA_RET_VOID && op->ret != TERRA_RET_UNKNOWN;
}

static int take_chosen(struct ending *e, const struct terra_op *op, uint32_t index, struct terra_probe *out)
{
	int n = 0;

	for (uint32_t i = 0; i < e->code->n; i++) {
		struct terra_probe probe = {.file_offset = op->file_offset + e->code->insns[i].offset,
					    .site = {.op = index}};

		if (!(e->marks[i] & CHOSEN))
			continue;
		if (n == SITES_MAX_EXITS || !describe(e, i, needs_result(op), &probe.site))
			return 0;
		out[n++] = probe;
	}
	return n;
}

/* ---- the function ---- */

/* Ways that this code does not see could come into the ending: from a switch, out of another part of the function, from
 * where an exception was caught. */
static bool has_hidden_ways(const struct code *code)
{
	for (uint32_t i = 0; i < code->n; i++) {
		const struct code_insn *insn = &code->insns[i];
		bool leaves = insn->kind == CODE_JUMP_INDIRECT || (jumps(insn) && insn->target == CODE_OUTSIDE);

		if (insn->reachable && leaves && !(i > 0 && code->insns[i - 1].takes_frame_down))
			return true;
	}
	return code->exceptions.may_catch;
}

static int find_cheap(struct code *code, const struct terra_op *op, const struct terra_probe *entry,
		      struct terra_probe *out)
{
	struct ending ending = {.code = code,
				.after = (uint32_t)(entry->file_offset - op->file_offset),
				.marks = calloc(code->n, 1),
				.todo = malloc(code->n * sizeof(uint32_t))};
	int n = -ENOMEM;

	if (ending.marks && ending.todo) {
		find_ending(&ending);
		find_beginnings(&ending);
		n = choose(&ending) ? take_chosen(&ending, op, entry->site.op, out) : 0;
	}
	free(ending.marks);
	free(ending.todo);
	return n;
}

static int find_rets(const struct code *code, const struct terra_op *op, uint32_t index, struct terra_probe *out)
{
	int n = 0;

	for (uint32_t i = 0; i < code->n; i++) {
		if (code->insns[i].kind != CODE_RET)
			continue;
		if (n == SITES_MAX_EXITS)
			return 0;
		out[n++] = (struct terra_probe){.file_offset = op->file_offset + code->insns[i].offset,
						.site = {.op = index, .plain = 1}};
	}
	return n;
}

int sites_find_exits(struct code *code, const struct terra_op *op, const struct terra_probe *entry,
		     struct terra_probe *out)
{
	int n = 0;

	/* A value in registers exists nowhere before the `ret`. */
	if (code->whole && op->ret != TERRA_RET_VALUE && !has_hidden_ways(code))
		n = find_cheap(code, op, entry, out);
	return n ? n : find_rets(code, op, entry->site.op, out);
}
