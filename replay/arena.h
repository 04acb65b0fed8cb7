/* arena.h - the memory that tensors live in, and the only memory whose reads and writes replay may delay.
 *
 * First level of replay, and useful alone (TERRA_MODE=alloc): a caching allocator behind c10::alloc_cpu/free_cpu that keeps
 * freed blocks on warm huge pages, and gives memory back when a program shrinks. All metadata is out of line (side
 * tables): the allocator never reads or writes a block's bytes, so a block may be access-protected at any time.
 *
 * Blocks under TERRA_ARENA_MIN bytes go to the original allocator: they are not arena memory and are never deferred.
 * Thread-safe. No call here allocates through malloc after arena_init, so all are usable in a fault handler unless
 * stated.
 */
#ifndef TERRA_REPLAY_ARENA_H
#define TERRA_REPLAY_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TERRA_ARENA_MIN 256

/* Reserves address space (nothing resident). Returns 0 or -errno; on failure every other call says "not ours". */
int arena_init(void);

/* NULL when the arena can't serve this size or is exhausted: the caller falls back to the original allocator, whose
 * failure is then the program's own out-of-memory error. 64-byte aligned. */
void *arena_alloc(size_t size);
/* Frees a block; true when `p` was an arena block (false: not ours, nothing done). A held block stays unavailable (and
 * its bytes untouched) until arena_release. */
bool arena_free(void *p);

/* Whether [p, p + n) lies in one live or held arena block. Lock-free, a few ns: two loads from the side table. Fills the block's base
 * and usable size when asked. */
bool arena_contains(const void *p, size_t n, void **base, size_t *size);
/* Whether the address is anywhere in the reserved address range (fault handler's first question). */
bool arena_owns_address(const void *p);

/* The address range that arena_owns_address answers for. */
void arena_range(void **base, size_t *size);

/* Hold: while held, arena_free marks the block dead instead of recycling it. One hold per block at a time.
 * arena_is_dead: freed since it was held. arena_release: ends the hold and recycles the block if it is dead. */
void arena_hold(void *base);
bool arena_is_dead(const void *base);
void arena_release(void *base);

/* Page-rounded protection of [p, p + n), rounded outwards to the huge pages it lies on, so that they stay huge.
 * prot as for mprotect. Returns 0 or -errno. */
int arena_protect(const void *p, size_t n, int prot);

/* Keeps the memory of all huge pages that [p, p + n) lies on in its place, whether it is used or not: it is neither given back nor
 * moved until arena_unpin. False: some of it is not there, and nothing is pinned. */
bool arena_pin(const void *p, size_t n);
void arena_unpin(const void *p, size_t n);

struct arena_stats {
	uint64_t live_bytes;      /* handed out */
	uint64_t resident_bytes;  /* touched or kept: live + cached */
	uint64_t peak_live_bytes;
	uint64_t peak_resident_bytes;
	uint64_t n_alloc, n_free, n_fresh; /* n_fresh: allocations that needed new pages */
	uint64_t trimmed_bytes;   /* given back to the system */
	uint64_t moved_bytes;     /* moved inside the arena to make one large place out of small ones */
};
void arena_stats(struct arena_stats *out);

/* fork: the child must not share locks held by other threads. Called by replay's pthread_atfork handlers. */
void arena_before_fork(void);
void arena_after_fork(bool child);

#endif
