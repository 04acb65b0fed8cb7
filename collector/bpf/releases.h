/* releases.h - functions that only give something back: memory, or a reference to what is no tensor (a symbolic integer, a
 * random generator). What an op's results are is the same before and after a call of one, so an op may be seen to end before.
 *
 * Known by name, as the target of a slot of the procedure linkage table or as a function of the library itself; in a library
 * without local symbols only the former are. */
#ifndef TERRA_COLLECTOR_BPF_RELEASES_H
#define TERRA_COLLECTOR_BPF_RELEASES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "probes/elf_file.h"

struct releases_list {
	uint64_t *addresses; /* sorted */
	size_t n, capacity;
};

struct releases {
	const struct terra_elf *elf;
	struct releases_list functions, slots;
};

/* 0 or -ENOMEM; to be closed in either case. The ELF file must outlive it. */
int releases_open(struct releases *releases, const struct terra_elf *elf);
void releases_close(struct releases *releases);

/* Whether a call of `address`, a function or a stub that jumps to one, only gives something back. */
bool releases_is(const struct releases *releases, uint64_t address);

#endif
