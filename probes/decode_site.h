/* decode_site.h - part of decode.h: the registers of an op's entry or exit, from those at a site. */
#ifndef TERRA_PROBES_DECODE_SITE_H
#define TERRA_PROBES_DECODE_SITE_H

#include "probes/decode_chunk.h"
#include "probes/site.h"

/* 0 when it is known. `live` has TERRA_REGISTERS words. */
TERRA_INLINE int terra_read_source(const struct terra_source *source, const uint64_t *live, uint64_t *out)
{
	uint64_t value = live[source->base & (TERRA_REGISTERS - 1)] + (int64_t)source->offset;

	*out = 0;
	if (source->kind == TERRA_SOURCE_REGISTER)
		*out = value;
	else if (source->kind != TERRA_SOURCE_MEMORY || TERRA_READ(out, 8, value))
		return -1;
	return 0;
}

TERRA_INLINE void terra_first_regs(const uint64_t *live, struct terra_regs *regs)
{
	regs->has_xmm = 0;
	regs->gpr[0] = live[TERRA_RDI];
	regs->gpr[1] = live[TERRA_RSI];
	regs->gpr[2] = live[TERRA_RDX];
	regs->gpr[3] = live[TERRA_RCX];
	regs->gpr[4] = live[TERRA_R8];
	regs->gpr[5] = live[TERRA_R9];
	regs->sp = live[TERRA_RSP];
}

/* What is not known of the arguments is 0 in a general register (of none that an argument is in), and not in has_xmm. */
TERRA_INLINE int terra_entry_regs(const struct terra_site *site, const uint64_t *live, struct terra_regs *regs)
{
	if (site->plain) {
		terra_first_regs(live, regs);
		return 0;
	}
	regs->has_xmm = 0;
	for (uint32_t i = 0; i < 6; i++)
		terra_read_source(&site->gpr[i], live, &regs->gpr[i]);
	for (uint32_t i = 0; i < 8; i++)
		if (!terra_read_source(&site->xmm[i], live, &regs->xmm[i]))
			regs->has_xmm |= 1u << i;
	return terra_read_source(&site->sp, live, &regs->sp);
}

TERRA_INLINE int terra_exit_regs(const struct terra_site *site, const uint64_t *live, struct terra_regs *regs)
{
	regs->has_xmm = 0;
	if (site->plain) {
		regs->sp = live[TERRA_RSP];
		regs->rax = live[TERRA_RAX];
		return 0;
	}
	/* An op without a result needs none. */
	terra_read_source(&site->result, live, &regs->rax);
	return terra_read_source(&site->sp, live, &regs->sp);
}

#endif
