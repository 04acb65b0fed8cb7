/* sites_private.h - shared by sites.c (all of a library), sites_entry.c and sites_exit.c (one function). */
#ifndef TERRA_COLLECTOR_BPF_SITES_PRIVATE_H
#define TERRA_COLLECTOR_BPF_SITES_PRIVATE_H

#include "collector/bpf/code.h"
#include "collector/bpf/sites.h"

#define SITES_MAX_EXITS 64 /* of one op; one with more is not recorded to its end */

/* One function, read: where its arguments can be read. */
struct terra_probe sites_find_entry(struct code *code, const struct terra_op *op, uint32_t index);

/* Its exits, at most SITES_MAX_EXITS, behind its entry. Returns their number, or -ENOMEM. */
int sites_find_exits(struct code *code, const struct terra_op *op, const struct terra_probe *entry,
		     struct terra_probe *out);

#endif
