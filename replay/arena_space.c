/* arena_space.c - the address range: which of its 2 MB chunks are backed, and memory for side tables.
 *
 * The range is chosen, not reserved: a reservation counts against RLIMIT_AS, which a program may set at any time, and
 * would make the program's own mappings fail. So chunks are mapped when they are first used, at fixed addresses in a
 * part of the address space where nothing is put unless asked for, and unmapped when they are given back. Should
 * somebody else take a piece of it, the kernel says so and that piece is left out.
 */
#include <errno.h>
#include <sys/sysinfo.h>

#include "replay/arena_internal.h"
#include "replay/kernel.h"

#define RANGE_MIN (1ull << 30)
#define RANGE_MAX (1ull << 40)
#define TABLE_STEP (256ull << 10)
#define MOVE_MAX_BACKED (8192) /* chunks; each may end as a mapping of its own, and a process may have some 65,000 */

/* Far from where the kernel places mappings by itself; the second is where ThreadSanitizer allows them. 0: any. */
static const uintptr_t range_hints[] = {0x200000000000, 0x7b0000000000, 0};

static struct {
	uintptr_t base;
	uint64_t bytes;
	uint32_t n_chunks;
	uint32_t first_cold; /* no chunk below it is cold */
	uint32_t n_backed;
	struct chunk **chunks;
	uint64_t *cold; /* bit set: can be backed */
	uint64_t *pinned;
	char *table, *table_end;
} space;

void *space_table(size_t size)
{
	size = (size + 63) & ~63ull;
	if ((size_t)(space.table_end - space.table) < size) {
		size_t step = size > TABLE_STEP ? size : TABLE_STEP;
		char *p = kernel_memory(step);

		if (!p)
			return NULL;
		space.table = p;
		space.table_end = p + step;
	}
	space.table += size;
	return space.table - size;
}

/* An unused part of the address space, at the hint if there is one, found by mapping and unmapping it. */
static uintptr_t find_range(uintptr_t hint, uint64_t bytes)
{
	uint64_t probe = hint ? bytes : bytes + CHUNK_BYTES;
	void *p = kernel_map((void *)hint, probe, PROT_NONE, 0);

	if (p == MAP_FAILED) /* RLIMIT_AS forbids the probe, not the range */
		return errno == ENOMEM ? hint : 0;
	kernel_unmap(p, probe);
	if (hint)
		return (uintptr_t)p == hint ? hint : 0;
	return ((uintptr_t)p + CHUNK_BYTES - 1) & ~(CHUNK_BYTES - 1);
}

static uint64_t range_wanted(void)
{
	struct sysinfo info;
	uint64_t bytes = 16ull << 30;

	if (sysinfo(&info))
		return bytes;
	while (bytes < RANGE_MAX && bytes < 2 * (uint64_t)info.totalram * info.mem_unit)
		bytes *= 2;
	return bytes;
}

static int choose_range(void)
{
	for (uint64_t bytes = range_wanted(); bytes >= RANGE_MIN; bytes /= 2) {
		for (size_t i = 0; i < sizeof(range_hints) / sizeof(*range_hints); i++) {
			space.base = find_range(range_hints[i], bytes);
			space.bytes = bytes;
			if (space.base)
				return 0;
		}
	}
	return -ENOMEM;
}

int space_init(void)
{
	int err = choose_range();
	uint32_t n = space.bytes >> CHUNK_SHIFT;

	if (err)
		return err;
	space.chunks = kernel_memory(n * sizeof(*space.chunks));
	space.cold = kernel_memory(n / 8);
	space.pinned = kernel_memory(n / 8);
	if (!space.chunks || !space.cold || !space.pinned)
		return -ENOMEM;
	for (uint32_t i = 0; i < n / 64; i++)
		space.cold[i] = ~0ull;
	space.n_chunks = n;
	return 0;
}

void space_range(void **base, size_t *size)
{
	*base = (void *)space.base;
	*size = (size_t)space.n_chunks << CHUNK_SHIFT;
}

bool space_owns(const void *p)
{
	return (uintptr_t)p - space.base < (uint64_t)space.n_chunks << CHUNK_SHIFT;
}

uint32_t space_page(const void *p)
{
	return ((uintptr_t)p - space.base) >> PAGE_SHIFT;
}

void *space_address(uint32_t page)
{
	return (void *)(space.base + ((uint64_t)page << PAGE_SHIFT));
}

struct chunk *space_chunk(uint32_t chunk)
{
	return chunk < space.n_chunks ? __atomic_load_n(&space.chunks[chunk], __ATOMIC_ACQUIRE) : NULL;
}

static bool is_cold(uint32_t chunk)
{
	return space.cold[chunk / 64] >> (chunk % 64) & 1;
}

bool space_is_pinned(uint32_t chunk)
{
	return space.pinned[chunk / 64] >> (chunk % 64) & 1;
}

static void set_bits(uint64_t *bits, uint32_t chunk, uint32_t n, bool set)
{
	for (uint32_t i = chunk; i < chunk + n; i++) {
		if (set)
			bits[i / 64] |= 1ull << (i % 64);
		else
			bits[i / 64] &= ~(1ull << (i % 64));
	}
}

static void set_cold(uint32_t chunk, uint32_t n, bool cold)
{
	set_bits(space.cold, chunk, n, cold);
}

bool space_is_backed(uint32_t chunk)
{
	return chunk < space.n_chunks && !is_cold(chunk) && space.chunks[chunk];
}

bool space_pin(uint32_t chunk, uint32_t n)
{
	for (uint32_t i = chunk; i < chunk + n; i++)
		if (!space_is_backed(i))
			return false;
	set_bits(space.pinned, chunk, n, true);
	return true;
}

void space_unpin(uint32_t chunk, uint32_t n)
{
	set_bits(space.pinned, chunk, n, false);
}

/* The next chunk from `chunk` on whose cold bit is `cold`. */
static uint32_t next_with(uint32_t chunk, bool cold)
{
	while (chunk < space.n_chunks) {
		uint64_t word = cold ? space.cold[chunk / 64] : ~space.cold[chunk / 64];

		word &= ~0ull << (chunk % 64);
		if (word)
			return (chunk & ~63u) + __builtin_ctzll(word);
		chunk = (chunk & ~63u) + 64;
	}
	return space.n_chunks;
}

int64_t space_find_cold(uint32_t n)
{
	uint32_t start = space.first_cold = next_with(space.first_cold, true);

	while (start < space.n_chunks) {
		uint32_t end = next_with(start, false);

		if (end - start >= n)
			return start;
		start = next_with(end, true);
	}
	return -1;
}

static bool make_chunk_tables(uint32_t chunk, uint32_t n)
{
	for (uint32_t i = chunk; i < chunk + n; i++) {
		struct chunk *table = space.chunks[i] ? space.chunks[i] : space_table(sizeof(*table));

		if (!table)
			return false;
		__atomic_store_n(&space.chunks[i], table, __ATOMIC_RELEASE);
	}
	return true;
}

int space_back(uint32_t chunk, uint32_t n)
{
	void *at = space_address(chunk * CHUNK_PAGES);
	uint64_t bytes = (uint64_t)n << CHUNK_SHIFT;
	void *p;

	if (!make_chunk_tables(chunk, n))
		return -ENOMEM;
	p = kernel_map(at, bytes, PROT_READ | PROT_WRITE, MAP_FIXED_NOREPLACE);
	if (p == MAP_FAILED && errno != EEXIST)
		return -ENOMEM;
	set_cold(chunk, n, false);
	if (p != at) { /* taken, or a kernel before 4.17 that placed it elsewhere */
		if (p != MAP_FAILED)
			kernel_unmap(p, bytes);
		for (uint32_t i = chunk; i < chunk + n; i++)
			__atomic_store_n(&space.chunks[i], NULL, __ATOMIC_RELEASE);
		return -EEXIST;
	}
	space.n_backed += n;
	kernel_advise(at, bytes, MADV_HUGEPAGE); /* refused where huge pages are off: 4 KB pages serve as well */
	return 0;
}

static void note_cold(uint32_t chunk, uint32_t n)
{
	set_cold(chunk, n, true);
	space.n_backed -= n;
	if (chunk < space.first_cold)
		space.first_cold = chunk;
}

bool space_unback(uint32_t chunk, uint32_t n)
{
	uint64_t bytes = (uint64_t)n << CHUNK_SHIFT;

	/* Fails where it would split a mapping and the process has as many mappings as it may. */
	if (kernel_unmap(space_address(chunk * CHUNK_PAGES), bytes))
		return false;
	note_cold(chunk, n);
	policy_note_unbacked(bytes);
	return true;
}

static bool move_chunk(uint32_t from, uint32_t to)
{
	void *target = space_address(to * CHUNK_PAGES);
	void *p = kernel_move(space_address(from * CHUNK_PAGES), CHUNK_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, target);

	return p == target;
}

uint32_t space_move(uint32_t from, uint32_t to, uint32_t n, bool *lost)
{
	uint32_t done = 0;

	if (space.n_backed > MOVE_MAX_BACKED)
		return 0;
	/* One by one: a run may span several mappings, and a call that fails inside one does not say how far it got. */
	while (done < n && move_chunk(from + done, to + done))
		done++;
	note_cold(from, done);
	/* A refused move may have unmapped its target. */
	if (done < n && kernel_map(space_address((to + done) * CHUNK_PAGES), CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_FIXED) ==
				MAP_FAILED)
		*lost = true;
	return done;
}
