/* preload.h - private to libterra_record.so, the recorder for places where BPF is not allowed.
 *
 * It is preloaded into the program, waits until libtorch is there (entry.c), redirects every dispatcher entry point to a
 * stub (stubs.c) and records enters and exits (trampoline.S, record.c) into per-thread rings (ring.c), which the emitting
 * threads themselves drain into the trace file (drain.c): the program gets no extra thread. setup.c has the environment
 * variables and the order of things.
 */
#ifndef TERRA_COLLECTOR_PRELOAD_H
#define TERRA_COLLECTOR_PRELOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "collector/gate.h"
#include "collector/pystack.h"
#include "probes/images.h"
#include "probes/op.h"
#include "probes/record.h"

/* What a redirected entry point is. Filled before the first slot is written, constant from then on. */
struct record_target {
	void *original;
	uint32_t stack_bytes; /* arguments on the stack, a multiple of 16 */
	uint8_t enabled;      /* its level is recorded */
	uint8_t jump;         /* arguments not fully known: only the enter is recorded, the original is jumped to */
};

struct record_state {
	bool active;        /* recording; read by every stub */
	bool forked;        /* a child whose trace begins with its first op */
	bool stacks;
	bool have_layout;   /* pystack was found */
	uint32_t levels; /* which entry points, as terra_op_chosen has it */
	uint32_t owner;     /* pid that records: a forked child has another */
	uint32_t catch_index; /* stub that is called where a handler of an exception begins (probes/catches.h) */
	struct terra_op_table *table;
	struct terra_op_layout *layouts;
	struct record_target *targets;
	struct terra_offsets offsets;
	struct terra_images images;
	struct pystack_layout layout;
};

extern struct record_state record_state;

/* stubs.c: code for `n` stubs; stub i is at base + i * RECORD_STUB_SIZE. NULL when no executable memory can be had. */
#define RECORD_STUB_SIZE 16
uint8_t *record_make_stubs(uint32_t n);
extern char record_trampoline[];

/* setup.c. `record_libtorch_seen` is called by entry.c; `record_look_for_libraries` patches what was loaded since. */
void record_libtorch_seen(void);
void record_look_for_libraries(void);
/* The forked child's own trace. Any thread, once. */
void record_begin_child(void);
/* Takes the hooks out of the program; what is recorded so far is written. Any thread. */
void record_stop(void);

/* Says why there is no trace, or no whole one, to the user and to terra-trace. */
__attribute__((format(printf, 1, 2))) void record_failed(const char *format, ...);

/* storage.c: `library` is a handle of the libtorch at `path`. The block is the calling thread's and stays where it is;
 * 0: it cannot be found. */
void record_storage_open(const char *path, void *library);
uint64_t record_storage_block(void);

/* Ops inside each other that a ring knows; those further in are not among them. */
#define RECORD_OPEN 64

/* ring.c: single producer (its thread), single consumer (who holds the drain lock). */
struct record_ring {
	struct record_ring *next; /* of all rings */
	uint32_t tid;
	uint32_t dead;            /* its thread has ended */
	uint64_t seq;
	uint64_t outer_sp;        /* stack pointer of the outermost op that runs, 0: none */
	uint32_t n_open;          /* ops that this thread is in, outermost first: their stack pointers, */
	uint64_t open_sp[RECORD_OPEN];
	bool pushed[RECORD_OPEN]; /* and whether CUPTI knows of them */
	uint64_t last_drain_ns;
	bool in_module; /* the last stack had what may be a module's call */
	uint64_t storage;         /* the thread's block of libtorch's thread-local storage, 0: not known */
	uint64_t head __attribute__((aligned(64))); /* bytes written, by the producer */
	uint64_t tail __attribute__((aligned(64))); /* bytes taken, by the consumer */
	uint64_t chunk[TERRA_CHUNK_BUFFER / 8];     /* where a record is made */
	uint8_t data[] __attribute__((aligned(64)));
};

/* The calling thread's ring; NULL when out of memory. */
struct record_ring *record_ring(void);
/* The same, NULL when it has none yet. */
struct record_ring *record_ring_if_any(void);
/* All rings, for the drainer; new ones come at the front. */
struct record_ring *record_rings(void);
/* False when there is no room now. */
bool record_ring_put(struct record_ring *ring, const struct terra_record *record);
/* The oldest record; NULL when empty. record_ring_pop takes it out. */
const struct terra_record *record_ring_peek(struct record_ring *ring);
void record_ring_pop(struct record_ring *ring, const struct terra_record *record);
bool record_ring_half_full(const struct record_ring *ring);
/* In a forked child: the rings of other threads are dead, and what all hold is the parent's. */
void record_rings_forked(void);
/* Frees the rings of ended threads. Under the drain lock. */
void record_rings_sweep(void);

/* drain.c: from the rings to the trace file. */
#define RECORD_WRITE_SIGNAL SIGUSR2
/* `further`: the trace of another process of the program; without an op it is removed. */
int record_drain_open(const char *path, bool further, const struct terra_limits *limits, char *err, size_t err_size);
/* In a forked child, whose parent goes on with the file. */
void record_drain_forget(void);
/* Everything recorded before now, of all threads, in the order of time. `wait`: even when another thread is at it. */
void record_drain(bool wait);
void record_drain_close(void);
/* A remark in the trace. */
void record_drain_note(const char *text);
/* Around fork: nobody is in the middle of draining. */
void record_drain_lock(void);
void record_drain_unlock(void);

/* Threads that OpenMP would use now, 0 when the program has none. */
uint32_t record_openmp_threads(void);

#endif
