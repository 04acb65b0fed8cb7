/* blocks.c - which waiting instances use which blocks of the arena. See blocks.h. */
#include "replay/blocks.h"

#include "replay/arena.h"
#include "replay/kernel.h"

#define SLOTS_LOG2 14
#define SLOTS (1 << SLOTS_LOG2)

static struct block *blocks;
static uint16_t used[SLOTS];
static uint32_t n_used;

int blocks_init(void)
{
	blocks = kernel_memory(SLOTS * sizeof(*blocks));
	return blocks != NULL ? 0 : -1;
}

bool blocks_have_room(uint32_t n)
{
	return n_used + n < SLOTS / 2;
}

void *block_base(const void *p, size_t bytes)
{
	void *base;

	return arena_contains(p, bytes, &base, NULL) ? base : NULL;
}

static struct block *slot_of(const void *base)
{
	uint32_t slot = (uint32_t)(((uintptr_t)base >> 6) * 0x9E3779B97F4A7C15ull >> (64 - SLOTS_LOG2));

	while (blocks[slot].base != NULL && blocks[slot].base != base)
		slot = (slot + 1) & (SLOTS - 1);
	return &blocks[slot];
}

const struct block *block_find(const void *base)
{
	const struct block *b = slot_of(base);

	return b->base != NULL ? b : NULL;
}

bool block_is_used_behind(const void *base, uint32_t number, bool writes)
{
	const struct block *b = block_find(base);

	return b != NULL && (b->writer > number + 1 || (writes && b->reader > number + 1));
}

static void hold(struct block *b, void *base)
{
	*b = (struct block){.base = base};
	used[n_used++] = (uint16_t)(b - blocks);
#ifndef TERRA_NO_GUARD_HOLD
	arena_hold(base);
#endif
}

static void note_reader(struct block *b, uint32_t me)
{
	if (me > b->reader) {
		b->earlier_reader = b->reader; /* an in-place op reads its target first, and must not hide who else did */
		b->reader = me;
	} else if (me < b->reader && me > b->earlier_reader) {
		b->earlier_reader = me;
	}
}

uint32_t block_use(void *base, uint32_t number, bool writes)
{
	struct block *b = slot_of(base);
	uint32_t me = number + 1, reader, behind = 0;

	if (b->base == NULL)
		hold(b, base);
	if (b->writer < me)
		behind = b->writer;
	reader = b->reader < me ? b->reader : b->earlier_reader;
	if (writes && reader < me && reader > behind)
		behind = reader;
	if (!writes)
		note_reader(b, me);
	else if (me > b->writer)
		b->writer = me;
	return behind;
}

void blocks_release(void)
{
	for (uint32_t i = 0; i < n_used; i++) {
		struct block *b = &blocks[used[i]];

#ifndef TERRA_NO_GUARD_HOLD
		arena_release(b->base);
#endif
		b->base = NULL;
	}
	n_used = 0;
}
