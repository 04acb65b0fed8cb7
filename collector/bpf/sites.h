/* sites.h - where to put the probes of an op: instructions at which its arguments, or its results, can be read.
 *
 * A probe costs what the kernel does with the instruction it replaces: one that it emulates (code_is_emulated) costs a
 * twentieth of one that it has to step over, and a `ret` is of the latter kind. So, by disassembly:
 *
 *   An entry is probed at its first instruction, which nearly always is a push. Where the op has floating-point arguments,
 *   whose registers BPF cannot read, it is probed behind the place where it has put them on the stack, still in the straight
 *   beginning of the function.
 *
 *   An exit is probed at an emulated instruction that every normal way to the `ret` passes when the result is complete: none
 *   of the instructions from there to the `ret` writes to anything but the stack or calls anything, but what only gives
 *   something back (releases.h). Where there is none, or what it needs can't be shown to be there, the probe is on the `ret`.
 *
 * Return probes are no way to see an op's end: they replace the return address on the stack, and an exception that has
 * to pass such a frame ends the program. A probe at an instruction changes nothing that the unwinder reads. */
#ifndef TERRA_COLLECTOR_BPF_SITES_H
#define TERRA_COLLECTOR_BPF_SITES_H

#include <stddef.h>
#include <stdint.h>

#include "probes/op.h"
#include "probes/site.h"

struct terra_probe {
	uint64_t file_offset;
	struct terra_site site;
};

struct terra_sites {
	size_t n_exits;
	struct terra_probe *entries; /* by op */
	struct terra_probe *exits;   /* in the order of ops */
	uint8_t *tail_jumps;	     /* per op: 1 when it (also) leaves by a jump into another function */
};

/* Disassembles every op of the table (about a second for 6,000), or takes what was found before for the same library when
 * `use_cache`. Returns 0 or -errno with a message. */
int terra_sites_find(const struct terra_op_table *table, bool use_cache, struct terra_sites **out, char *err,
		     size_t err_size);
void terra_sites_free(struct terra_sites *sites);

/* Whether some of the op's floating-point arguments can't be read at the entry's site. */
bool terra_entry_misses_doubles(const struct terra_op *op, const struct terra_site *entry);

#endif
