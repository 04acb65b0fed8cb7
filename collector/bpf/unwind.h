/* unwind.h - what a library's unwind information says of exceptions in a function. */
#ifndef TERRA_COLLECTOR_BPF_UNWIND_H
#define TERRA_COLLECTOR_BPF_UNWIND_H

#include <stdbool.h>
#include <stdint.h>

#include "probes/elf_file.h"

struct unwind {
	const struct terra_elf *elf;
	uint64_t header;	    /* address of .eh_frame_hdr; 0: the library has none, and no exception passes it */
	const uint8_t *table;	    /* pairs of 32-bit distances from `header`: function, its description */
	uint64_t n;
	bool understood;
};

/* The ELF file must outlive it. */
void unwind_open(struct unwind *unwind, const struct terra_elf *elf);

#define UNWIND_MAX_PADS 512

/* Of one function. */
struct unwind_function {
	/* False: no exception is caught in it; what runs in it after one cleans up and passes it on. True also when that
	 * can't be told. */
	bool may_catch;
	/* Where exceptions arrive: addresses that no other control comes to, not even from the instruction before. */
	uint64_t pads[UNWIND_MAX_PADS];
	uint32_t n_pads;
};

void unwind_function(const struct unwind *unwind, uint64_t address, struct unwind_function *out);

#endif
