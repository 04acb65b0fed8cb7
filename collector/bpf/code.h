/* code.h - the instructions of one function, and where control goes from each. */
#ifndef TERRA_COLLECTOR_BPF_CODE_H
#define TERRA_COLLECTOR_BPF_CODE_H

#include <capstone/capstone.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "collector/bpf/releases.h"
#include "collector/bpf/unwind.h"
#include "probes/elf_file.h"
#include "probes/op.h"

enum code_kind {
	CODE_PLAIN, /* goes on behind it */
	CODE_CALL,
	CODE_BRANCH,	    /* goes to its target or on behind it */
	CODE_JUMP,	    /* to its target */
	CODE_JUMP_INDIRECT, /* through a register or memory */
	CODE_RET,
	CODE_STOP, /* nothing comes behind it */
};

#define CODE_OUTSIDE UINT32_MAX	     /* of the function, or not at an instruction of it */
#define CODE_MAX_SIZE (1u << 30)     /* offsets are 32 bits wide */

struct code_insn {
	uint32_t offset; /* from the function's beginning */
	uint32_t target; /* CODE_BRANCH and CODE_JUMP: index of the instruction, or CODE_OUTSIDE */
	uint8_t size;
	uint8_t kind;	     /* enum code_kind */
	bool emulated;	     /* the kernel need not step over it: see code_is_emulated */
	bool releases;	     /* a call that only gives something back: see releases.h */
	bool takes_frame_down;
	bool landing;	/* exceptions arrive here, and nothing else does */
	bool reachable; /* from the function's beginning, exceptions aside */
};

/* Two passes over a function: all its instructions in the plain, and the operands of a few of them. */
struct code {
	csh plain, detailed;
	cs_insn *plain_insn, *insn;
	const struct terra_elf *elf;
	struct unwind unwind;
	struct releases releases;
	/* Of the function: */
	uint64_t address;
	const uint8_t *bytes;
	struct code_insn *insns; /* in the order of addresses; code_read's own */
	uint32_t n, capacity;
	bool whole; /* disassembled to its end */
	struct unwind_function exceptions;
	bool framed; /* rbp is the frame's base from the second instruction on */
};

/* 0 or -ENOMEM; to be closed in either case. The ELF file must outlive it. */
int code_open(struct code *code, const struct terra_elf *elf);
void code_close(struct code *code);

/* Takes another function; 0, -ENOMEM, or -ENOEXEC when it does not lie in the file. */
int code_read(struct code *code, const struct terra_op *op);

/* The instruction with its operands; NULL when it can't be had. Valid until the next call. */
const cs_insn *code_details(struct code *code, uint32_t index);

/* Whether the kernel (6.6 and later, x86-64) emulates the instruction when a probe sits on it: a push of a register, a
 * one-byte nop, jumps, branches and calls to a fixed distance. Every other one it steps over, with two more traps. */
bool code_is_emulated(const uint8_t *bytes, size_t size);

#endif
