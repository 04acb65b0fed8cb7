/* collectives.h - torch.distributed's collectives, which are called through the dispatcher without an entry point of their
 * own in at::_ops: the functions that it calls for them, by the library's local symbols. */
#ifndef TERRA_PROBES_COLLECTIVES_H
#define TERRA_PROBES_COLLECTIVES_H

#include <stdint.h>

#include "probes/op.h"

/* A copy of `table` with the collectives behind its ops: "c10d::allreduce_" and so on, one for each sort of device, all of
 * level call. It borrows the strings of `table`, which must outlive it. Where the library has no local symbols there are
 * none. 0 or -ENOMEM. */
struct terra_collectives {
	struct terra_op_table table;
	uint32_t n; /* of its last ops */
	struct terra_collective *items;
};

int terra_collectives_load(const struct terra_op_table *table, bool use_cache, struct terra_collectives *out);
void terra_collectives_free(struct terra_collectives *collectives);

#endif
