/* arena_heap.c - free spans: who gets which, how they join again, how the arena grows and gives back.
 *
 * A span just freed is kept whole for a while (`recent`): the next request of its size gets it while its bytes are
 * still in the CPU's cache, and a program that repeats itself gets the same places again. Beyond these, the free span
 * that fits best; when none does, the recent ones are joined with their neighbours; only then fresh memory.
 *
 * Requests of whole huge pages start at a huge page, so that they take exactly as many as they need.
 */
#include <errno.h>
#include <string.h>

#include "replay/arena_internal.h"

#define N_RECENT 32
#define SCAN_MAX 64 /* spans looked at in a bin of many sizes */

/* A bin per page count below a chunk, then eight per power of two. */
#define BIN_LARGE CHUNK_PAGES
#define N_BINS (BIN_LARGE + 8 * 24)

static struct {
	struct span *first[N_BINS], *last[N_BINS]; /* last freed first */
	uint64_t used[(N_BINS + 63) / 64];
	struct span *recent[N_RECENT]; /* oldest first */
	uint32_t recent_pages[N_RECENT];
	unsigned n_recent;
} heap;

static unsigned bin_of(uint32_t n)
{
	unsigned log = 31 - __builtin_clz(n);

	return n < CHUNK_PAGES ? n : BIN_LARGE + (log - 9) * 8 + (n >> (log - 3) & 7);
}

static unsigned next_used_bin(unsigned bin)
{
	while (bin < N_BINS) {
		uint64_t word = heap.used[bin / 64] & ~0ull << (bin % 64);

		if (word)
			return (bin & ~63u) + __builtin_ctzll(word);
		bin = (bin & ~63u) + 64;
	}
	return N_BINS;
}

static void bin_add(struct span *span)
{
	unsigned bin = bin_of(span->n);

	span->bin = bin;
	span->prev = NULL;
	span->next = heap.first[bin];
	if (span->next)
		span->next->prev = span;
	else
		heap.last[bin] = span;
	heap.first[bin] = span;
	heap.used[bin / 64] |= 1ull << (bin % 64);
}

static void bin_remove(struct span *span)
{
	unsigned bin = span->bin;

	if (span->next)
		span->next->prev = span->prev;
	else
		heap.last[bin] = span->prev;
	if (span->prev)
		span->prev->next = span->next;
	else
		heap.first[bin] = span->next;
	if (!heap.first[bin])
		heap.used[bin / 64] &= ~(1ull << (bin % 64));
}

static void free_span_add(struct span *span)
{
	span_publish(span, SPAN_FREE);
	bin_add(span);
}

/* Joins a span with its free neighbours and puts it in its bin. */
static void coalesce(struct span *span)
{
	struct span *left = span_left(span), *right = span_right(span);

	if (right && right->kind == SPAN_FREE) {
		bin_remove(right);
		poke(span->n, span->n + right->n);
		span_drop(right);
	}
	if (left && left->kind == SPAN_FREE) {
		bin_remove(left);
		poke(left->n, left->n + span->n);
		span_drop(span);
		span = left;
	}
	free_span_add(span);
}

static struct span *recent_remove(unsigned i)
{
	struct span *span = heap.recent[i];
	unsigned after = --heap.n_recent - i;

	memmove(heap.recent + i, heap.recent + i + 1, after * sizeof(*heap.recent));
	memmove(heap.recent_pages + i, heap.recent_pages + i + 1, after * sizeof(*heap.recent_pages));
	return span;
}

static struct span *recent_take(uint32_t n)
{
	for (unsigned i = heap.n_recent; i-- > 0;) {
		if (heap.recent_pages[i] == n)
			return recent_remove(i);
	}
	return NULL;
}

static bool recent_flush(void)
{
	bool any = heap.n_recent > 0;

	while (heap.n_recent)
		coalesce(heap.recent[--heap.n_recent]);
	return any;
}

void heap_give(struct span *span)
{
	if (heap.n_recent == N_RECENT)
		coalesce(recent_remove(0));
	poke(span->kind, SPAN_RECENT);
	heap.recent[heap.n_recent] = span;
	heap.recent_pages[heap.n_recent++] = span->n;
}

/* Pages to leave free in front, so that a request of whole huge pages starts at one. */
static uint32_t padding(uint32_t page, uint32_t n)
{
	return n % CHUNK_PAGES ? 0 : -page % CHUNK_PAGES;
}

static struct span *best_in_bin(unsigned bin, uint32_t n)
{
	struct span *best = NULL;
	unsigned scanned = 0;

	for (struct span *span = heap.first[bin]; span && scanned < SCAN_MAX; span = span->next, scanned++) {
		uint32_t need = n + padding(span->page, n);

		if (span->n < need || (best && best->n <= span->n))
			continue;
		best = span;
		if (span->n == n || bin < BIN_LARGE)
			break;
	}
	return best;
}

static struct span *best_fit(uint32_t n)
{
	for (unsigned bin = next_used_bin(bin_of(n)); bin < N_BINS; bin = next_used_bin(bin + 1)) {
		struct span *span = best_in_bin(bin, n);

		if (span)
			return span;
	}
	return NULL;
}

/* Cuts n pages out of a free span; what is left in front and behind stays free. Needs two descriptors. */
static struct span *carve(struct span *span, uint32_t n)
{
	uint32_t pad = padding(span->page, n), rest = span->n - pad - n;

	bin_remove(span);
	if (pad) {
		struct span *front = span;

		span = span_new(front->page + pad, n);
		poke(front->n, pad);
		free_span_add(front);
	}
	poke(span->n, n);
	if (rest)
		free_span_add(span_new(span->page + n, rest));
	return span;
}

/* The free span that ends where the chunk begins: fresh memory behind it can be smaller by its size. */
static uint32_t free_pages_before(uint32_t chunk)
{
	uint32_t page = chunk * CHUNK_PAGES;
	struct span *left = chunk && space_is_backed(chunk - 1) ? span_of_page(page - 1) : NULL;

	return left && left->kind == SPAN_FREE ? left->n : 0;
}

/* Whole chunks leave free spans: they are given back, or their memory is moved to a place that was just backed. */
struct taking {
	uint64_t wanted, done; /* chunks */
	bool move;
	bool lost; /* part of the place is not backed any more */
	uint32_t place;
};

/* How many of n chunks left, counted from the first. */
static uint32_t take_chunks(struct taking *taking, uint32_t first, uint32_t n)
{
	if (!taking->move)
		return space_unback(first, n) ? n : 0;
	return space_move(first, taking->place + taking->done, n, &taking->lost);
}

/* Narrows chunks [*first, *last) to the hindmost that are pinned nowhere. */
static void leave_pinned(uint32_t *first, uint32_t *last)
{
	uint32_t chunk;

	while (*last > *first && space_is_pinned(*last - 1))
		--*last;
	for (chunk = *last; chunk > *first && !space_is_pinned(chunk - 1); chunk--)
		;
	*first = chunk;
}

/* Takes whole chunks of a free span, the hindmost. */
static void take_from_span(struct taking *taking, struct span *span)
{
	uint32_t page = span->page, end = page + span->n, taken;
	uint32_t first = (page + CHUNK_PAGES - 1) / CHUNK_PAGES, last = end / CHUNK_PAGES;

	leave_pinned(&first, &last);
	if (first >= last || !span_reserve(4)) /* 3 are promised to heap_take, which may be the caller */
		return;
	if (last - first > taking->wanted - taking->done)
		first = last - (taking->wanted - taking->done);
	taken = take_chunks(taking, first, last - first);
	if (!taken)
		return;
	taking->done += taken;
	bin_remove(span);
	if (first * CHUNK_PAGES > page) {
		poke(span->n, first * CHUNK_PAGES - page);
		free_span_add(span);
	} else {
		span_drop(span);
	}
	first += taken;
	if (end > first * CHUNK_PAGES)
		free_span_add(span_new(first * CHUNK_PAGES, end - first * CHUNK_PAGES));
}

static void take_from_bin(struct taking *taking, unsigned bin)
{
	struct span *prev;

	for (struct span *span = heap.last[bin]; span && taking->done < taking->wanted && !taking->lost; span = prev) {
		prev = span->prev;
		take_from_span(taking, span);
	}
}

static void take_from_bins(struct taking *taking)
{
	for (unsigned bin = N_BINS; bin-- > BIN_LARGE;)
		take_from_bin(taking, bin);
}

static uint64_t take(struct taking *taking)
{
	take_from_bins(taking);
	if (taking->done < taking->wanted && !taking->lost && recent_flush())
		take_from_bins(taking);
	return taking->done * CHUNK_BYTES;
}

uint64_t heap_trim(uint64_t bytes)
{
	struct taking taking = {.wanted = bytes / CHUNK_BYTES + !!(bytes % CHUNK_BYTES)};

	return take(&taking);
}

/* Fills a place that was just backed, as far as wanted with the memory of free spans. -ENOMEM: the place is gone. */
static int fill_place(uint32_t chunk, uint32_t n, uint64_t recycled)
{
	struct taking taking = {.wanted = recycled / CHUNK_BYTES, .move = true, .place = chunk};
	uint64_t moved = take(&taking);

	policy_note_moved(moved);
	policy_note_backed((uint64_t)n * CHUNK_BYTES - moved);
	if (!taking.lost)
		return 0;
	space_unback(chunk, n);
	return -ENOMEM;
}

/* Backs what a request of n pages lacks at the first place where it can; of that, `recycled` bytes with the memory of
 * free spans. */
static int back_for(uint32_t n, uint64_t recycled)
{
	uint32_t whole = (n + CHUNK_PAGES - 1) / CHUNK_PAGES, lacking;
	int64_t chunk;
	int err;

	do {
		uint32_t before;

		chunk = space_find_cold(whole);
		if (chunk < 0)
			return -ENOMEM;
		/* The span before it may be what is moved. */
		before = n % CHUNK_PAGES && !recycled ? free_pages_before(chunk) : 0;
		lacking = before < n ? (n - before + CHUNK_PAGES - 1) / CHUNK_PAGES : 1;
		err = space_back(chunk, lacking);
	} while (err == -EEXIST);
	if (!err)
		err = fill_place(chunk, lacking, recycled);
	if (!err)
		coalesce(span_new(chunk * CHUNK_PAGES, lacking * CHUNK_PAGES));
	return err;
}

static struct span *grow_and_fit(uint32_t n)
{
	uint64_t fresh = (n + CHUNK_PAGES - 1) / CHUNK_PAGES * CHUNK_BYTES;
	uint64_t recycled = policy_recycle(fresh, n * PAGE_BYTES);
	struct span *span = best_fit(n); /* respecting a limit joined the recent spans */

	if (span)
		return span;
	if (back_for(n, recycled) && (!heap_trim(UINT64_MAX) || !span_reserve(3) || back_for(n, 0)))
		return NULL;
	return best_fit(n);
}

struct span *heap_take(uint32_t n, enum span_kind kind)
{
	struct span *span = recent_take(n);

	if (span) {
		poke(span->kind, kind);
		return span;
	}
	if (!span_reserve(3)) /* one for fresh memory, two for carving */
		return NULL;
	span = best_fit(n);
	if (!span && recent_flush())
		span = best_fit(n);
	if (!span)
		span = grow_and_fit(n);
	if (!span || !span_reserve(2))
		return NULL;
	span = carve(span, n);
	span_publish(span, kind);
	return span;
}
