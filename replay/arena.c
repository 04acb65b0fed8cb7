/* arena.c - the calls of arena.h: one lock, and the state of each block. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "replay/arena_internal.h"
#include "replay/kernel.h"

#define LARGEST (1ull << 39) /* page counts are 32 bits, and no machine has more */

/* Where a block is: its span, and its cell when the span is a slab. */
struct place {
	struct span *span;
	struct slab *slab;
	unsigned cell;
	uint8_t *state;
	char *base;
	size_t size;
};

/* Held for short times, so waiting threads spin first. Nothing under it touches a block, so a fault handler finds it
 * free or soon free. */
static pthread_mutex_t lock = PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP;
static bool ready;

int arena_init(void)
{
	int err = 0;

	pthread_mutex_lock(&lock);
	if (!ready) {
		err = space_init();
		if (!err) {
			slab_init();
			limit_init();
			__atomic_store_n(&ready, true, __ATOMIC_RELEASE);
		}
	}
	pthread_mutex_unlock(&lock);
	return err;
}

void arena_range(void **base, size_t *size)
{
	space_range(base, size);
}

bool arena_owns_address(const void *p)
{
	return __atomic_load_n(&ready, __ATOMIC_ACQUIRE) && space_owns(p);
}

/* Finds the place of an address, in whatever state. False when no block can be there. */
static bool locate(const void *p, struct place *place)
{
	struct span *span;
	uint32_t page, first;
	uint64_t offset;

	if (!arena_owns_address(p))
		return false;
	page = space_page(p);
	span = span_of_page(page);
	if (!span)
		return false;
	first = peek(span->page);
	if (page - first >= peek(span->n))
		return false;
	*place = (struct place){.span = span, .base = space_address(first)};
	switch (peek(span->kind)) {
	case SPAN_BLOCK:
		place->state = &span->state;
		place->size = peek(span->n) * PAGE_BYTES;
		return true;
	case SPAN_SLAB:
		place->slab = peek(span->slab);
		if (!place->slab)
			return false;
		offset = (const char *)p - place->base;
		place->cell = slab_cell(place->slab, offset);
		if (place->cell >= peek(place->slab->n_cells))
			return false;
		place->state = &place->slab->state[place->cell];
		place->size = peek(place->slab->cell_bytes);
		place->base += place->cell * place->size;
		return true;
	default:
		return false;
	}
}

static void *take_span(size_t size, size_t *usable)
{
	uint32_t n = (size + PAGE_BYTES - 1) >> PAGE_SHIFT;
	struct span *span = heap_take(n, SPAN_BLOCK);

	if (!span)
		return NULL;
	poke(span->state, BLOCK_LIVE);
	*usable = n * PAGE_BYTES;
	return space_address(span->page);
}

void *arena_alloc(size_t size)
{
	size_t usable = 0;
	void *p;

	if (size < TERRA_ARENA_MIN || size > LARGEST || !__atomic_load_n(&ready, __ATOMIC_ACQUIRE))
		return NULL;
	pthread_mutex_lock(&lock);
	if (size <= SLAB_LARGEST) {
		usable = slab_block_size(size);
		p = slab_take(size);
	} else {
		p = take_span(size, &usable);
	}
	if (p)
		policy_note_alloc(usable);
	pthread_mutex_unlock(&lock);
	return p;
}

static void recycle(const struct place *place)
{
	if (place->slab)
		slab_give(place->slab, place->cell);
	else
		heap_give(place->span);
	policy_note_free(place->size);
}

/* libc's own: replay wraps the plain name. */
ssize_t __write(int fd, const void *p, size_t n);

/* As glibc does: a program that frees what isn't a live block has lost its memory already. */
static _Noreturn void die_of_bad_free(void)
{
	static const char text[] = "terra: free of a pointer that is no live block\n";

	__write(STDERR_FILENO, text, sizeof(text) - 1);
	abort();
}

static bool locate_base(const void *base, struct place *place)
{
	return locate(base, place) && place->base == base && *place->state;
}

bool arena_free(void *p)
{
	struct place place;

	if (!arena_owns_address(p))
		return false;
	pthread_mutex_lock(&lock);
	if (!locate_base(p, &place) || !(*place.state & BLOCK_LIVE))
		die_of_bad_free();
	poke(*place.state, *place.state & ~BLOCK_LIVE);
	if (!*place.state)
		recycle(&place);
	pthread_mutex_unlock(&lock);
	return true;
}

bool arena_contains(const void *p, size_t n, void **base, size_t *size)
{
	struct place place;

	if (!locate(p, &place) || !peek(*place.state))
		return false;
	if (n > place.size - ((const char *)p - place.base))
		return false;
	if (base)
		*base = place.base;
	if (size)
		*size = place.size;
	return true;
}

void arena_hold(void *base)
{
	struct place place;

	pthread_mutex_lock(&lock);
	if (locate_base(base, &place))
		poke(*place.state, *place.state | BLOCK_HELD);
	pthread_mutex_unlock(&lock);
}

bool arena_is_dead(const void *base)
{
	struct place place;

	return locate(base, &place) && peek(*place.state) == BLOCK_HELD;
}

void arena_release(void *base)
{
	struct place place;

	pthread_mutex_lock(&lock);
	if (locate_base(base, &place) && (*place.state & BLOCK_HELD)) {
		poke(*place.state, *place.state & ~BLOCK_HELD);
		if (!*place.state)
			recycle(&place);
	}
	pthread_mutex_unlock(&lock);
}

int arena_protect(const void *p, size_t n, int prot)
{
	uintptr_t start = (uintptr_t)p & ~(CHUNK_BYTES - 1);
	uintptr_t end = ((uintptr_t)p + n + CHUNK_BYTES - 1) & ~(CHUNK_BYTES - 1);

	if (!n || !arena_owns_address(p) || !arena_owns_address((const char *)p + n - 1))
		return -EINVAL;
	return kernel_protect((void *)start, end - start, prot) ? -errno : 0;
}

static uint32_t chunks_of(const void *p, size_t n, uint32_t *first)
{
	*first = space_page(p) / CHUNK_PAGES;
	return space_page((const char *)p + n - 1) / CHUNK_PAGES + 1 - *first;
}

bool arena_pin(const void *p, size_t n)
{
	uint32_t first, chunks;
	bool pinned;

	if (!n || !arena_owns_address(p) || !arena_owns_address((const char *)p + n - 1))
		return false;
	chunks = chunks_of(p, n, &first);
	pthread_mutex_lock(&lock);
	pinned = space_pin(first, chunks);
	pthread_mutex_unlock(&lock);
	return pinned;
}

void arena_unpin(const void *p, size_t n)
{
	uint32_t first, chunks = chunks_of(p, n, &first);

	pthread_mutex_lock(&lock);
	space_unpin(first, chunks);
	pthread_mutex_unlock(&lock);
}

void arena_stats(struct arena_stats *out)
{
	pthread_mutex_lock(&lock);
	policy_stats(out);
	pthread_mutex_unlock(&lock);
}

void arena_before_fork(void)
{
	pthread_mutex_lock(&lock);
}

void arena_after_fork(bool child)
{
	pthread_mutex_unlock(&lock);
}
