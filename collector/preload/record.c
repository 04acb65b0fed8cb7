/* record.c - the C half of the trampoline: one ENTER record before an op, one EXIT record behind it. */
#include "collector/preload/preload.h"

#include <errno.h>

#include "collector/gpu_hooks.h"
#include "probes/clock.h"

/* As trampoline.S lays it out. */
struct record_registers {
	uint64_t xmm[8][2];
	uint64_t gpr[6];
	uint64_t rax;
	uint64_t r10;
	uint64_t rdx;
	uint64_t sp;
	uint64_t index;
	uint64_t unused;
};
_Static_assert(sizeof(struct record_registers) == 224, "trampoline.S has the offsets");
_Static_assert(offsetof(struct record_registers, index) == 208, "trampoline.S has the offsets");

/* Returned in rax and rdx. */
struct record_way {
	void *original;
	int64_t stack_bytes; /* negative: jump, no exit */
};

struct terra_decoder;
static void emit_chunk(struct terra_decoder *d, struct terra_record *record);
static void put_stack(struct terra_decoder *d);
static uint64_t storage_block(const struct terra_decoder *d);
#define TERRA_EMIT(d, record, size) emit_chunk(d, record)
#define TERRA_STACK(d) put_stack(d)
#define TERRA_STORAGE_BLOCK(d) storage_block(d)
#include "probes/decode.h"

#define DRAIN_INTERVAL_NS 100000000ull /* what a kill may cost at most, as long as ops run */
#define MODULE_INTERVAL_NS 10000000ull /* modules are named while they live: what may miss their paths when a program ends */

struct record_way record_enter(struct record_registers *registers);
void record_exit(struct record_registers *registers);

struct record_state record_state;

__attribute__((visibility("default"))) struct terra_gpu_hooks terra_record_gpu;

/* Set while this thread is inside the recorder: whatever it calls there is not the program's. */
static __thread bool inside __attribute__((tls_model("initial-exec")));

/* A full ring is emptied by its own thread, so nothing is ever lost; should that fail (the trace file can no longer be
 * written), the chunk is dropped and its seq tells. */
static void emit_chunk(struct terra_decoder *d, struct terra_record *record)
{
	struct record_ring *ring = d->sink;

	record->seq = ring->seq++;
	if (record_ring_put(ring, record))
		return;
	record_drain(true);
	record_ring_put(ring, record);
}

/* Asked for at the outer of the recorded levels only: autograd does nothing between an op's call and its redispatch that
 * these words would show. */
static uint64_t storage_block(const struct terra_decoder *d)
{
	const struct record_ring *ring = d->sink;

	return d->layout->level == terra_outer_level(record_state.levels) ? ring->storage : 0;
}

static uint32_t pack_entry(const struct pystack_entry *entry, uint64_t *words)
{
	words[0] = entry->code | (entry->self ? PYSTACK_HAS_SELF : 0);
	words[1] = (uint64_t)entry->check << 32 | entry->offset;
	words[2] = entry->self;
	return entry->self ? 3 : 2;
}

/* The stack of the outermost op holds for those inside. */
static void put_stack(struct terra_decoder *d)
{
	struct record_ring *ring = d->sink;
	struct pystack_entry entries[PYSTACK_MAX_FRAMES + 1];
	uint64_t words[(PYSTACK_MAX_FRAMES + 1) * PYSTACK_ENTRY_WORDS];
	uint32_t n, used = 0;
	bool truncated;

	if (ring->outer_sp && d->regs->sp < ring->outer_sp)
		return;
	ring->outer_sp = d->regs->sp;
	if (!record_state.stacks || !record_state.have_layout)
		return;
	n = pystack_self(&record_state.layout, entries, PYSTACK_MAX_FRAMES, &truncated);
	if (!n)
		return;
	if (truncated)
		entries[n++] = (struct pystack_entry){ 0 };
	ring->in_module = false;
	for (uint32_t i = 0; i < n; i++) {
		ring->in_module |= entries[i].self != 0;
		used += pack_entry(&entries[i], words + used);
	}
	terra_put_frames(d, (uintptr_t)words, used);
}

/* Ops that were left: an exception makes no exit. */
static void pop_left(struct record_ring *ring, uint64_t sp)
{
	while (ring->n_open && ring->open_sp[ring->n_open - 1] <= sp)
		if (ring->pushed[--ring->n_open])
			terra_record_gpu.pop();
}

/* `ends`: its exit will be seen. */
static void push_op(struct record_ring *ring, uint64_t sp, uint64_t enter_ns, bool ends)
{
	void (*push)(uint64_t) = ends ? __atomic_load_n(&terra_record_gpu.push, __ATOMIC_ACQUIRE) : NULL;

	pop_left(ring, sp);
	if (ring->n_open == RECORD_OPEN)
		return;
	ring->open_sp[ring->n_open] = sp;
	ring->pushed[ring->n_open++] = push != NULL;
	if (push)
		push(enter_ns);
}

static void set_regs(struct terra_regs *regs, const struct record_registers *registers)
{
	*regs = (struct terra_regs){ .sp = registers->sp, .rax = registers->rax, .has_xmm = 0xff };
	for (int i = 0; i < 6; i++)
		regs->gpr[i] = registers->gpr[i];
	for (int i = 0; i < 8; i++)
		regs->xmm[i] = registers->xmm[i][0];
}

/* What a decoder writes to while it works. */
struct decoding {
	struct terra_regs regs;
	struct terra_cursor cursor;
	uint64_t image[TERRA_IMAGE_WORDS];
};

static const struct terra_op_layout no_op;

static struct terra_decoder decoder_of(struct record_ring *ring, const struct record_registers *registers,
				       const struct terra_op_layout *layout, uint32_t op, struct decoding *decoding)
{
	set_regs(&decoding->regs, registers);
	return (struct terra_decoder){ .layout = layout, .op = op, .regs = &decoding->regs, .at = &decoding->cursor,
				       .image = decoding->image, .offsets = &record_state.offsets,
				       .images = &record_state.images, .chunk = (uint8_t *)ring->chunk, .sink = ring,
				       .tid = ring->tid, .producer = ring->tid };
}

/* Returns the record's time. */
static uint64_t make_record(struct record_ring *ring, const struct record_registers *registers, uint8_t type)
{
	uint32_t op = (uint32_t)registers->index;
	uint64_t now = clock_now();
	struct decoding decoding;
	struct terra_decoder d = decoder_of(ring, registers, &record_state.layouts[op], op, &decoding);

	if (type == TERRA_RECORD_ENTER)
		terra_decode_enter(&d, now);
	else
		terra_decode_exit(&d, now);
	if (record_ring_half_full(ring) ||
	    now - ring->last_drain_ns > (ring->in_module ? MODULE_INTERVAL_NS : DRAIN_INTERVAL_NS)) {
		ring->last_drain_ns = now;
		record_drain(false);
	}
	return now;
}

/* A function's call leaves the outermost op what it is. */
static void make_function_record(struct record_ring *ring, const struct record_registers *registers, uint32_t function)
{
	uint64_t outer_sp = ring->outer_sp;
	struct decoding decoding;
	struct terra_decoder d = decoder_of(ring, registers, &no_op, function, &decoding);

	terra_decode_function(&d, terra_functions[function].form, clock_now());
	ring->outer_sp = outer_sp;
}

/* A handler of an exception begins, anywhere in the program: only one that is outside of an op that we know does
 * anything. Then it is called from where that op was, and what may be done at an op's exit may be done here. */
static void catch_exception(const struct record_registers *registers)
{
	struct record_ring *ring = record_ring_if_any();
	struct decoding decoding;
	struct terra_decoder d;

	if (!ring || !ring->n_open || ring->open_sp[ring->n_open - 1] > registers->sp)
		return;
	d = decoder_of(ring, registers, &no_op, 0, &decoding);
	pop_left(ring, registers->sp);
	if (ring->outer_sp <= registers->sp)
		ring->outer_sp = 0;
	terra_decode_catch(&d, clock_now());
}

/* An op that begins, or a function beside the ops. */
static void record_call(struct record_way *way, const struct record_registers *registers)
{
	const struct record_target *target = &record_state.targets[registers->index];
	struct record_ring *ring;
	uint64_t now;

	if (record_state.forked)
		record_begin_child();
	record_look_for_libraries();
	ring = record_ring();
	if (!ring)
		return;
	if (registers->index >= record_state.table->n_ops) {
		make_function_record(ring, registers, (uint32_t)registers->index - record_state.table->n_ops);
		return;
	}
	now = make_record(ring, registers, TERRA_RECORD_ENTER);
	if (!target->jump)
		way->stack_bytes = target->stack_bytes;
	push_op(ring, registers->sp, now, !target->jump);
}

struct record_way record_enter(struct record_registers *registers)
{
	const struct record_target *target = &record_state.targets[registers->index];
	struct record_way way = { target->original, -1 };
	int saved_errno = errno;

	if (!__atomic_load_n(&record_state.active, __ATOMIC_ACQUIRE) || !target->enabled || inside)
		return way;
	inside = true;
	if (registers->index == record_state.catch_index)
		catch_exception(registers);
	else
		record_call(&way, registers);
	inside = false;
	errno = saved_errno;
	return way;
}

void record_exit(struct record_registers *registers)
{
	int saved_errno = errno;
	struct record_ring *ring;

	if (inside)
		return;
	inside = true;
	ring = record_ring();
	if (ring)
		pop_left(ring, registers->sp);
	if (ring && __atomic_load_n(&record_state.active, __ATOMIC_ACQUIRE)) {
		if (ring->outer_sp <= registers->sp)
			ring->outer_sp = 0;
		make_record(ring, registers, TERRA_RECORD_EXIT);
	}
	inside = false;
	errno = saved_errno;
}
