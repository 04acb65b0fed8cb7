/* site.h - a probed instruction of an op that is not its first or its `ret`: where the op's own values are there.
 *
 * Decoding (decode.h) wants the registers as they are at an op's first instruction and at its `ret`. Elsewhere in the
 * function the stack pointer has moved, and arguments and results lie in other registers or on the stack. A site says
 * where; what it says is proven by disassembly when the probe is placed (collector/bpf/sites.h). One contract for the
 * BPF programs and user space like decode.h, which includes it.
 */
#ifndef TERRA_PROBES_SITE_H
#define TERRA_PROBES_SITE_H

/* In the order of their encoding, as in `live` below. */
enum terra_register {
	TERRA_RAX, TERRA_RCX, TERRA_RDX, TERRA_RBX, TERRA_RSP, TERRA_RBP, TERRA_RSI, TERRA_RDI,
	TERRA_R8, TERRA_R9, TERRA_R10, TERRA_R11, TERRA_R12, TERRA_R13, TERRA_R14, TERRA_R15,
	TERRA_REGISTERS
};

enum terra_source_kind {
	TERRA_SOURCE_NONE = 0, /* nowhere that is known */
	TERRA_SOURCE_REGISTER, /* register `base` plus `offset` */
	TERRA_SOURCE_MEMORY,   /* the word in memory at register `base` plus `offset` */
};

struct terra_source {
	uint8_t kind; /* enum terra_source_kind */
	uint8_t base; /* enum terra_register */
	int16_t offset;
};

struct terra_site {
	uint32_t op;   /* index into the table */
	uint8_t plain; /* the op's first instruction or its `ret`: the registers are what they are */
	uint8_t unused[3];
	struct terra_source sp;     /* as at the first instruction, where the return address lies */
	struct terra_source result; /* exit: what rax will be at the `ret` */
	struct terra_source gpr[6]; /* entry: argument registers as at the first instruction */
	struct terra_source xmm[8];
};

#endif
