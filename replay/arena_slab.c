/* arena_slab.c - blocks of up to 32 KB: equal cells in a span, all bookkeeping in the slab's descriptor.
 *
 * Eight sizes per power of two, rounded to 64 bytes, so a block wastes at most an eighth from 512 bytes on. The cell
 * freed last is given out first, and the slab freed into last serves first: its bytes are the likeliest in cache.
 */
#include "replay/arena_internal.h"

#define CELL_MIN 256 /* the smallest class; TERRA_ARENA_MIN */
#define N_CLASSES 57
#define SLAB_PAGES_MIN 16
#define SLAB_PAGES_MAX 64
#define CELLS_MIN 8

static struct {
	uint32_t cell_bytes;
	uint32_t pages;
	struct slab *first, *last; /* slabs with a free cell */
} classes[N_CLASSES];

static struct slab *pool;

static unsigned class_of(size_t size)
{
	unsigned log, index;

	if (size <= CELL_MIN)
		return 0;
	log = 63 - __builtin_clzll(size - 1); /* 2^log < size <= 2^(log + 1) */
	index = (size - 1) >> (log - 3) & 7;
	return (log - 8) * 8 + index + 1;
}

static uint32_t pages_for(uint32_t cell_bytes)
{
	for (uint32_t pages = SLAB_PAGES_MIN; pages < SLAB_PAGES_MAX; pages++) {
		uint32_t bytes = pages * PAGE_BYTES;

		if (bytes / cell_bytes >= CELLS_MIN && bytes % cell_bytes <= bytes / 32)
			return pages;
	}
	return SLAB_PAGES_MAX;
}

void slab_init(void)
{
	for (unsigned i = 0; i < N_CLASSES; i++) {
		unsigned log = i ? 8 + (i - 1) / 8 : 8, eighths = i ? 9 + (i - 1) % 8 : 8;

		classes[i].cell_bytes = ((eighths << (log - 3)) + 63) & ~63u;
		classes[i].pages = pages_for(classes[i].cell_bytes);
	}
}

size_t slab_block_size(size_t size)
{
	return classes[class_of(size)].cell_bytes;
}

static void list_add(struct slab *slab)
{
	slab->prev = NULL;
	slab->next = classes[slab->class].first;
	if (slab->next)
		slab->next->prev = slab;
	else
		classes[slab->class].last = slab;
	classes[slab->class].first = slab;
}

static void list_remove(struct slab *slab)
{
	if (slab->next)
		slab->next->prev = slab->prev;
	else
		classes[slab->class].last = slab->prev;
	if (slab->prev)
		slab->prev->next = slab->next;
	else
		classes[slab->class].first = slab->next;
}

static struct slab *descriptor_new(void)
{
	struct slab *slab = pool;

	if (!slab)
		return space_table(sizeof(*slab));
	pool = slab->next;
	return slab;
}

static struct slab *slab_new(unsigned class)
{
	uint32_t bytes = classes[class].pages * PAGE_BYTES, cell_bytes = classes[class].cell_bytes;
	unsigned n = bytes / cell_bytes < SLAB_CELLS ? bytes / cell_bytes : SLAB_CELLS;
	struct slab *slab = descriptor_new();

	if (!slab)
		return NULL;
	poke(slab->cell_bytes, cell_bytes);
	poke(slab->reciprocal, ((1ull << 32) + cell_bytes - 1) / cell_bytes);
	poke(slab->n_cells, n);
	slab->n_free = n;
	slab->class = class;
	slab->first_free = 0;
	for (unsigned i = 0; i < n; i++)
		slab->next_free[i] = i + 1;
	slab->span = heap_take(classes[class].pages, SPAN_SLAB);
	if (!slab->span) {
		slab->next = pool;
		pool = slab;
		return NULL;
	}
	poke(slab->span->slab, slab);
	list_add(slab);
	return slab;
}

static void slab_drop(struct slab *slab)
{
	list_remove(slab);
	poke(slab->span->slab, NULL);
	heap_give(slab->span);
	slab->next = pool;
	pool = slab;
}

unsigned slab_cell(const struct slab *slab, uint32_t offset)
{
	return (uint64_t)offset * peek(slab->reciprocal) >> 32;
}

void *slab_take(size_t size)
{
	unsigned class = class_of(size), cell;
	struct slab *slab = classes[class].first ? classes[class].first : slab_new(class);

	if (!slab)
		return NULL;
	cell = slab->first_free;
	slab->first_free = slab->next_free[cell];
	if (!--slab->n_free)
		list_remove(slab);
	poke(slab->state[cell], BLOCK_LIVE);
	return (char *)space_address(slab->span->page) + (size_t)cell * slab->cell_bytes;
}

void slab_give(struct slab *slab, unsigned cell)
{
	slab->next_free[cell] = slab->first_free;
	slab->first_free = cell;
	if (slab->n_free++)
		list_remove(slab);
	list_add(slab);
	/* One empty slab per class stays: the next block of that class is likely to come soon. */
	if (slab->n_free == slab->n_cells && slab->next)
		slab_drop(slab);
}

void slab_release_empty(void)
{
	for (unsigned i = 0; i < N_CLASSES; i++) {
		struct slab *next;

		for (struct slab *slab = classes[i].first; slab; slab = next) {
			next = slab->next;
			if (slab->n_free == slab->n_cells)
				slab_drop(slab);
		}
	}
}
