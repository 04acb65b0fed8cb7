/* exits.h - where ops return: their `ret` instructions, found by disassembly.
 *
 * Return probes are no way to see an op's end: they replace the return address on the stack, and an exception that has
 * to pass such a frame ends the program. A probe at each `ret` changes nothing that the unwinder reads. */
#ifndef TERRA_COLLECTOR_BPF_EXITS_H
#define TERRA_COLLECTOR_BPF_EXITS_H

#include <stddef.h>
#include <stdint.h>

#include "probes/op.h"

struct terra_exit {
	uint64_t file_offset;
	uint32_t op; /* index into the table */
};

struct terra_exits {
	size_t n;
	struct terra_exit *exits; /* in the order of ops */
	uint8_t *tail_jumps;	  /* per op: 1 when it (also) leaves by a jump into another function */
};

/* Disassembles every op of the table (the better part of a second for 6,000), or takes what was found before for the
 * same library when `use_cache`. Returns 0 or -errno with a message. */
int terra_exits_find(const struct terra_op_table *table, bool use_cache, struct terra_exits **out, char *err,
		     size_t err_size);
void terra_exits_free(struct terra_exits *exits);

#endif
