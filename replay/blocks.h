/* blocks.h - which waiting instances use which blocks of the arena: what order they must keep.
 *
 * Instances are numbered in the order in which they will run. An instance may be given more to do when later ones are there
 * already, so uses do not come in that order. Of each block the last users are known: enough to see whether an instance
 * has to stay behind an earlier one, and whether a later one is in the way.
 */
#ifndef TERRA_REPLAY_BLOCKS_H
#define TERRA_REPLAY_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct block {
	void *base;
	/* Numbers + 1, 0: none. `earlier_reader` is the last but `reader`. */
	uint32_t reader, earlier_reader, writer;
};

int blocks_init(void);
/* Whether n more can be noted. */
bool blocks_have_room(uint32_t n);
/* The base of the arena's block that the bytes lie in; NULL: there is none. */
void *block_base(const void *p, size_t bytes);
/* The block, NULL: no instance uses it. */
const struct block *block_find(const void *base);
/* Whether an instance behind `number` writes the block, or, when `writes`, uses it at all. */
bool block_is_used_behind(const void *base, uint32_t number, bool writes);
/* Notes that the instance uses the block, and holds it. Returns the number + 1 of the last instance before it that it must
 * stay behind, 0: none. Not for what block_is_used_behind forbids. */
uint32_t block_use(void *base, uint32_t number, bool writes);
/* Forgets all uses and lets go of the blocks. */
void blocks_release(void);

#endif
