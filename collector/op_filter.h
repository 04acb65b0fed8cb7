/* op_filter.h - which ops are recorded, by patterns over their names. */
#ifndef TERRA_COLLECTOR_OP_FILTER_H
#define TERRA_COLLECTOR_OP_FILTER_H

#include <stddef.h>
#include <stdint.h>

#include "probes/op.h"

/* `patterns`: shell patterns with commas between them, as fnmatch(3) has them, over "aten::add.Tensor", "aten::add",
 * "add.Tensor" or "add". *mask is 1 per op of the table that is to be recorded: one of them matches it, and `levels` (as
 * terra_op_chosen has it) have it, or leave it out only as composite and it is named in full. malloc'ed. Returns 0; -ENOENT with a
 * message when there is none for one of the patterns; -ENOMEM. */
int terra_op_filter(const struct terra_op_table *table, const char *patterns, uint32_t levels, uint8_t **mask, char *err,
		    size_t err_size);

#endif
