/* consume_private.h - shared by consume.c (pairing of enters and exits) and unpack.c (values). */
#ifndef TERRA_COLLECTOR_CONSUME_PRIVATE_H
#define TERRA_COLLECTOR_CONSUME_PRIVATE_H

#include "collector/consume.h"

/* Memory of one event: given out in order, taken back all at once. Blocks stay where they are when more are added. */
struct consume_arena {
	struct consume_block *first, *current;
	size_t used; /* of the current block */
};

void *consume_alloc(struct consume_arena *arena, size_t size);
void consume_reset(struct consume_arena *arena);
void consume_arena_free(struct consume_arena *arena);

/* What the payload of a whole record holds. */
struct consume_values {
	struct terra_value *values;
	uint32_t n_values;
	const struct pystack_entry *entries; /* in the payload */
	uint32_t n_entries;
	uint64_t node_words[3]; /* as TERRA_PACKED_NODE has them */
	uint32_t n_node_words;
};

/* Returns 0, -ENOMEM, or -EPROTO when the payload contradicts itself. The payload must be 8-aligned. */
int consume_unpack(struct consume_arena *arena, const struct terra_offsets *offsets, const uint8_t *payload, size_t size,
		   struct consume_values *out);

#endif
