/* arena_span.c - descriptors of page runs, and the way from a page to the run it lies in. */
#include "replay/arena_internal.h"

static struct {
	struct span *first;
	unsigned n;
} pool;

bool span_reserve(unsigned n)
{
	while (pool.n < n) {
		struct span *span = space_table(sizeof(*span));

		if (!span)
			return false;
		span->next = pool.first;
		pool.first = span;
		pool.n++;
	}
	return true;
}

struct span *span_new(uint32_t page, uint32_t n)
{
	struct span *span = pool.first;

	pool.first = span->next;
	pool.n--;
	poke(span->page, page);
	poke(span->n, n);
	poke(span->slab, NULL);
	poke(span->state, 0);
	return span;
}

void span_drop(struct span *span)
{
	struct chunk *chunk = space_chunk(span->page / CHUNK_PAGES);
	unsigned bit = span->page % CHUNK_PAGES;

	poke(chunk->starts[bit / 64], chunk->starts[bit / 64] & ~(1ull << (bit % 64)));
	poke(span->kind, SPAN_UNUSED);
	span->next = pool.first;
	pool.first = span;
	pool.n++;
}

void span_publish(struct span *span, enum span_kind kind)
{
	uint32_t first = span->page / CHUNK_PAGES, last = (span->page + span->n - 1) / CHUNK_PAGES;
	struct chunk *chunk = space_chunk(first);
	unsigned bit = span->page % CHUNK_PAGES;

	poke(span->kind, kind);
	poke(chunk->span_at[bit], span);
	poke(chunk->starts[bit / 64], chunk->starts[bit / 64] | 1ull << (bit % 64));
	for (uint32_t i = kind == SPAN_FREE && last > first ? last : first + 1; i <= last; i++)
		poke(space_chunk(i)->carry, span);
}

struct span *span_of_page(uint32_t page)
{
	struct chunk *chunk = space_chunk(page / CHUNK_PAGES);
	unsigned bit = page % CHUNK_PAGES, word = bit / 64;
	uint64_t starts;

	if (!chunk)
		return NULL;
	starts = peek(chunk->starts[word]) & ~0ull >> (63 - bit % 64);
	while (!starts) {
		if (!word)
			return peek(chunk->carry);
		starts = peek(chunk->starts[--word]);
	}
	return peek(chunk->span_at[word * 64 + 63 - __builtin_clzll(starts)]);
}

struct span *span_left(const struct span *span)
{
	uint32_t page = span->page - 1;

	return span->page && space_is_backed(page / CHUNK_PAGES) ? span_of_page(page) : NULL;
}

struct span *span_right(const struct span *span)
{
	uint32_t page = span->page + span->n;

	return space_is_backed(page / CHUNK_PAGES) ? span_of_page(page) : NULL;
}
