/* track.h - what registers hold, by following instructions in a straight line.
 *
 * Every value is told in terms of the registers at the beginning: "rsp - 40 of then", "the word at rbp - 168". What is
 * not certain is not known, and stays so. */
#ifndef TERRA_COLLECTOR_BPF_TRACK_H
#define TERRA_COLLECTOR_BPF_TRACK_H

#include <capstone/capstone.h>
#include <stdbool.h>
#include <stdint.h>

#include "probes/site.h"

enum track_kind {
	TRACK_UNKNOWN = 0,
	TRACK_REGISTER, /* what `base` held at the beginning, plus offset */
	TRACK_MEMORY,	/* the word that lay at the beginning at `base` (rsp or rbp) plus offset */
	TRACK_XMM,	/* the low half of xmm register `base` */
};

struct track_value {
	uint8_t kind;
	uint8_t base;
	int32_t offset;
};

/* A store to the stack. */
struct track_store {
	uint8_t base; /* TERRA_RSP or TERRA_RBP */
	uint16_t size;
	int32_t offset;
	struct track_value value; /* known for 8 bytes */
};

#define TRACK_STORES 48

struct track {
	struct track_value reg[TERRA_REGISTERS];
	struct track_store stores[TRACK_STORES]; /* oldest first */
	uint32_t n_stores;
	uint8_t xmm; /* bit per xmm0 to 7 that still holds what it held */
};

void track_begin(struct track *track);

/* Follows one instruction other than a jump, branch or ret, which change nothing; a call is taken for one that keeps to the
 * ABI and does not write to this function's frame. False when what it writes to cannot be told apart from the stack, or
 * there is no room to keep track: nothing is certain behind it. */
bool track_step(struct track *track, csh handle, const cs_insn *insn);

/* Where the word that is now in the register or slot `wanted` stands for lies at this point: a register, or a place on the
 * stack in terms of the registers now. False when nowhere. */
bool track_find(const struct track *track, struct track_value wanted, struct terra_source *out);

/* Whether the instruction writes nothing to memory but the stack: through rsp, or rbp where it is the frame's base. */
bool track_writes_only_stack(const cs_insn *insn, bool framed);

#endif
