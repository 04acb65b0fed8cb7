/* arena_internal.h - the parts of the arena, from the address range up:
 *
 *   arena_space.c   which 2 MB chunks of the address range are backed by memory, and the memory of all side tables
 *   arena_span.c    runs of 4 KB pages inside backed chunks: descriptors, page to span, neighbours
 *   arena_heap.c    free spans: reuse, best fit, coalescing, growth, giving back
 *   arena_slab.c    blocks of up to 32 KB: equal cells in a span
 *   arena_policy.c  how much free memory is kept, and when a program counts as shrinking
 *   arena_limit.c   how far the process is from its memory limits
 *   arena.c         the calls of arena.h: lock, block states
 *
 * Everything runs under the lock of arena.c, but for what arena_contains and arena_is_dead read: those fields are
 * written with poke and read with peek. Descriptors are recycled but never unmapped, so a lock-free reader with a
 * pointer that is no longer valid gets a wrong "no", never a fault; a pointer into a live block always gets a "yes",
 * because nothing about that block changes while it lives.
 *
 * Every backed page belongs to exactly one span. Pages are numbered from the start of the address range.
 */
#ifndef TERRA_REPLAY_ARENA_INTERNAL_H
#define TERRA_REPLAY_ARENA_INTERNAL_H

#include "replay/arena.h"

#define PAGE_SHIFT 12
#define CHUNK_SHIFT 21 /* a huge page */
#define PAGE_BYTES (1ull << PAGE_SHIFT)
#define CHUNK_BYTES (1ull << CHUNK_SHIFT)
#define CHUNK_PAGES (1u << (CHUNK_SHIFT - PAGE_SHIFT))

#define SLAB_LARGEST 32768 /* largest block that lives in a slab; above, rounding to pages wastes at most an eighth */
#define SLAB_CELLS 256

#define peek(field) __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define poke(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)

enum span_kind {
	SPAN_UNUSED, /* descriptor in the pool */
	SPAN_FREE,   /* in a bin of the heap, coalesced */
	SPAN_RECENT, /* just freed: kept whole for the next request of its size */
	SPAN_BLOCK,  /* one block */
	SPAN_SLAB,
};

/* State of a block: a bit each. 0 is free; held without live is dead (arena.h). */
enum { BLOCK_LIVE = 1, BLOCK_HELD = 2 };

struct span {
	uint32_t page, n; /* first page, pages */
	uint8_t kind;
	uint8_t state; /* SPAN_BLOCK: block state */
	uint16_t bin;
	struct span *next, *prev; /* heap bin, pool */
	struct slab *slab;
};

struct slab {
	struct span *span;
	struct slab *next, *prev; /* slabs of its class with a free cell, last freed into first */
	uint32_t cell_bytes;
	uint32_t reciprocal; /* offset * reciprocal >> 32 is the cell */
	uint16_t n_cells, n_free;
	uint16_t first_free; /* last freed cell; links in next_free */
	uint16_t class;
	uint16_t next_free[SLAB_CELLS];
	uint8_t state[SLAB_CELLS];
};

/* Which spans start in a chunk. `carry` is the span that covers the chunk's first page when it started in an earlier
 * chunk; kept for every chunk of a live span, and for the last chunk of a free one. */
struct chunk {
	uint64_t starts[CHUNK_PAGES / 64];
	struct span *carry;
	struct span *span_at[CHUNK_PAGES];
};

/* arena_space.c */
int space_init(void);
void space_range(void **base, size_t *size);
bool space_owns(const void *p);
uint32_t space_page(const void *p);
void *space_address(uint32_t page);
/* Side table of a chunk, NULL if that chunk was never backed. Lock-free. */
struct chunk *space_chunk(uint32_t chunk);
bool space_is_backed(uint32_t chunk);
/* First run of n chunks that are not backed; -1 when the address range is full. */
int64_t space_find_cold(uint32_t n);
/* -ENOMEM: no memory. -EEXIST: somebody else mapped a part of it; space_find_cold won't propose it again. */
int space_back(uint32_t chunk, uint32_t n);
/* Whether the chunk must stay where it is, and so must not be given to space_unback and space_move. */
bool space_is_pinned(uint32_t chunk);
/* False: not all of them are backed. Nothing changed. */
bool space_pin(uint32_t chunk, uint32_t n);
void space_unpin(uint32_t chunk, uint32_t n);
/* False when the kernel refuses: nothing changed. */
bool space_unback(uint32_t chunk, uint32_t n);
/* Moves the memory of n backed chunks to n others that were just backed and never touched: what they hold is undefined,
 * but the kernel has nothing to clear. Returns how many were moved, and so became cold, before the kernel refused. Sets
 * *lost when that left a target that is not backed any more. */
uint32_t space_move(uint32_t from, uint32_t to, uint32_t n, bool *lost);
/* Zeroed memory for side tables, never returned; NULL when there is none. */
void *space_table(size_t size);

/* arena_span.c */
struct span *span_of_page(uint32_t page);
/* Makes sure that the next n calls of span_new succeed. */
bool span_reserve(unsigned n);
struct span *span_new(uint32_t page, uint32_t n);
/* Forgets where the span starts and recycles its descriptor. */
void span_drop(struct span *span);
/* Makes every page of a span find it (live), or just its ends (free). */
void span_publish(struct span *span, enum span_kind kind);
struct span *span_left(const struct span *span);
struct span *span_right(const struct span *span);

/* arena_heap.c */
struct span *heap_take(uint32_t n, enum span_kind kind);
void heap_give(struct span *span);
/* Unbacks free whole chunks, largest and longest unused first. Returns the bytes given back, which may be fewer. */
uint64_t heap_trim(uint64_t bytes);

/* arena_slab.c */
void slab_init(void);
size_t slab_block_size(size_t size);
void *slab_take(size_t size);
void slab_give(struct slab *slab, unsigned cell);
unsigned slab_cell(const struct slab *slab, uint32_t offset);
/* Gives slabs without a block back to the heap. */
void slab_release_empty(void);

/* arena_policy.c */
void policy_note_alloc(uint64_t bytes);
void policy_note_free(uint64_t bytes);
/* `bytes` more are to be backed for a block of `block_bytes`: how many of them would exceed the budget and must be moved
 * there from what is kept. */
uint64_t policy_recycle(uint64_t bytes, uint64_t block_bytes);
void policy_note_backed(uint64_t bytes);
void policy_note_unbacked(uint64_t bytes);
/* A place got `bytes` of memory from elsewhere in the arena. */
void policy_note_moved(uint64_t bytes);
void policy_stats(struct arena_stats *out);

/* arena_limit.c */
void limit_init(void);
/* The part of limit_init that reads files: which group the process is in, and where the trees of groups are. */
void limit_find_group(const char *membership, const char *v2_root, const char *v1_root);
/* Bytes that the process may still take before a limit (address space, data, control group); UINT64_MAX: no limit. */
uint64_t limit_headroom(void);

#endif
