/* optable.h - building an op table from memory, for tests and fuzzers; programs use terra_op_table_load (op.h). */
#ifndef TERRA_PROBES_OPTABLE_H
#define TERRA_PROBES_OPTABLE_H

#include "probes/op.h"

/* The table of the ELF file in `size` bytes at `data` (8-byte aligned, needed during the call only), never cached.
 * 0; -ENOEXEC: not an ELF file of this kind; -ENOENT: no op entry points in it; -ENOMEM. */
int terra_op_table_from_memory(const void *data, size_t size, struct terra_op_table **out);

/* Whether the numbers in it are such as an op can have: for an op that comes from a cache. Strings are not looked at. */
bool terra_op_is_possible(const struct terra_op *op);

#endif
