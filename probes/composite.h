/* composite.h - which ops only call other ops.
 *
 * An op that is "composite implicit" has one kernel for every device and for autograd, made of other ops: recording it
 * beside them tells the same twice. libtorch exports those kernels' C++ functions in a namespace of their own; an op is
 * one of them when a function there has its name and takes exactly its arguments. In doubt it is not.
 */
#ifndef TERRA_PROBES_COMPOSITE_H
#define TERRA_PROBES_COMPOSITE_H

#include "probes/elf_file.h"

struct terra_composite {
	const char *name; /* of the op: without what the C++ name adds for its form; no terminator; in the ELF file */
	size_t name_size;
	char *types;      /* as terra_mangle_spell_op gives them */
};

struct terra_composites {
	struct terra_composite *items; /* sorted */
	size_t n, capacity;
};

/* 0 or -ENOMEM; the ELF file must outlive it. A library without such functions gives an empty set. */
int terra_composites_find(const struct terra_elf *elf, struct terra_composites *out);
void terra_composites_free(struct terra_composites *composites);

/* Whether the op called `name` (its schema's, without namespace and overload), whose entry point `mangled` is, is one. */
bool terra_is_composite(const struct terra_composites *composites, const char *name, size_t name_size,
			const char *mangled);

#endif
