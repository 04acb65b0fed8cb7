/* ring.c - per-thread rings of records. Records never wrap: what does not fit before the end starts at the front, behind a
 * filler whose type is 0. */
#include "collector/preload/preload.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RING_BYTES (2u << 20)
#define RING_MASK (RING_BYTES - 1)
#define ALLOCATION (sizeof(struct record_ring) + RING_BYTES)

static __thread struct record_ring *my_ring __attribute__((tls_model("initial-exec")));
static struct record_ring *all_rings;
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER; /* writers of the list */
static pthread_key_t end_key;
static pthread_once_t end_once = PTHREAD_ONCE_INIT;

static void thread_ended(void *ring)
{
	my_ring = NULL; /* ops in later destructors get a new one */
	__atomic_store_n(&((struct record_ring *)ring)->dead, 1, __ATOMIC_RELEASE);
}

static void make_key(void)
{
	pthread_key_create(&end_key, thread_ended);
}

static struct record_ring *new_ring(void)
{
	struct record_ring *ring = mmap(NULL, ALLOCATION, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (ring == MAP_FAILED)
		return NULL;
	ring->tid = (uint32_t)syscall(SYS_gettid);
	ring->storage = record_storage_block();
	pthread_once(&end_once, make_key);
	pthread_setspecific(end_key, ring);
	pthread_mutex_lock(&list_lock);
	ring->next = all_rings;
	__atomic_store_n(&all_rings, ring, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&list_lock);
	return ring;
}

struct record_ring *record_ring(void)
{
	if (!my_ring)
		my_ring = new_ring();
	return my_ring;
}

struct record_ring *record_ring_if_any(void)
{
	return my_ring;
}

struct record_ring *record_rings(void)
{
	return __atomic_load_n(&all_rings, __ATOMIC_ACQUIRE);
}

static uint64_t used(const struct record_ring *ring)
{
	return __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) - __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
}

bool record_ring_half_full(const struct record_ring *ring)
{
	return used(ring) > RING_BYTES / 2;
}

bool record_ring_put(struct record_ring *ring, const struct terra_record *record)
{
	uint64_t head = ring->head, to_end = RING_BYTES - (head & RING_MASK);
	uint64_t filler = to_end < record->size ? to_end : 0;

	if (used(ring) + filler + record->size > RING_BYTES)
		return false;
	if (filler) /* 8 bytes at least, since all sizes are multiples of 8 */
		memcpy(ring->data + (head & RING_MASK), &(uint64_t){ filler }, sizeof(uint64_t));
	memcpy(ring->data + ((head + filler) & RING_MASK), record, record->size);
	__atomic_store_n(&ring->head, head + filler + record->size, __ATOMIC_RELEASE);
	return true;
}

/* The first 8 bytes of a record are its size and its type; of a filler its size and 0. */
static uint64_t filler_size(const uint8_t *at)
{
	uint64_t word;

	memcpy(&word, at, sizeof(word));
	return word >> 32 ? 0 : word;
}

const struct terra_record *record_ring_peek(struct record_ring *ring)
{
	const uint8_t *at;
	uint64_t filler;

	if (used(ring) == 0)
		return NULL;
	at = ring->data + (ring->tail & RING_MASK);
	filler = filler_size(at);
	if (filler) {
		__atomic_store_n(&ring->tail, ring->tail + filler, __ATOMIC_RELEASE);
		at = ring->data + (ring->tail & RING_MASK);
	}
	return (const struct terra_record *)at;
}

void record_ring_pop(struct record_ring *ring, const struct terra_record *record)
{
	__atomic_store_n(&ring->tail, ring->tail + record->size, __ATOMIC_RELEASE);
}

void record_rings_sweep(void)
{
	struct record_ring **link, *ring;

	pthread_mutex_lock(&list_lock);
	for (link = &all_rings; (ring = *link);) {
		if (!__atomic_load_n(&ring->dead, __ATOMIC_ACQUIRE) || used(ring)) {
			link = &ring->next;
			continue;
		}
		*link = ring->next;
		munmap(ring, ALLOCATION);
	}
	pthread_mutex_unlock(&list_lock);
}

void record_rings_forked(void)
{
	pthread_mutex_init(&list_lock, NULL); /* a thread that is not here may have held it */
	for (struct record_ring *ring = all_rings; ring; ring = ring->next) {
		ring->tail = ring->head;
		ring->seq = 0;
		ring->dead = ring != my_ring;
	}
	if (my_ring)
		my_ring->tid = (uint32_t)syscall(SYS_gettid);
}
