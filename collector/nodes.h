/* nodes.h - which op made which of autograd's Nodes; private to consume.c.
 *
 * A Node is known by its address and by its number together: the address may belong to another Node later, and numbers
 * count for each thread on its own.
 */
#ifndef TERRA_COLLECTOR_NODES_H
#define TERRA_COLLECTOR_NODES_H

#include <stddef.h>
#include <stdint.h>

struct node_entry {
	uint64_t address; /* 0: free */
	uint64_t number;
	uint64_t enter_seq; /* of the op that made it */
};

/* Zero it before the first use. */
struct nodes {
	struct node_entry *entries;
	size_t n, capacity; /* a power of two, or 0 */
};

/* The op that began at `enter_seq` made the Node. 0 or -ENOMEM. */
int nodes_add(struct nodes *nodes, uint64_t address, uint64_t number, uint64_t enter_seq);
/* The op that made it; UINT64_MAX: not known. */
uint64_t nodes_find(const struct nodes *nodes, uint64_t address, uint64_t number);
/* Forgets all, and frees. */
void nodes_free(struct nodes *nodes);

#endif
