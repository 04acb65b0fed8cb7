/* The probes' programs: one for where ops begin, one for where they end (sites.h says where that is), one for the first
 * instruction of other functions that a trace tells of, one for where the handler of an exception begins. */
#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <bpf/bpf_helpers.h>

#include "collector/bpf/shared.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* The kernel's struct pt_regs on x86-64, a stable interface under the name of user_regs_struct. */
struct pt_regs {
	uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags,
		rsp, ss;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* the loader sets it */
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader sets it */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, uint32_t);
	__type(value, struct terra_op_layout);
} ops SEC(".maps");

/* By the low half of the probe's cookie; the high half is the target. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader sets it */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, uint32_t);
	__type(value, struct terra_site);
} sites SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BPF_BUFFERS);
	__type(key, uint32_t);
	__type(value, struct bpf_buffer);
} buffers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BPF_TARGETS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, uint32_t);
	__type(value, struct bpf_target);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BPF_TARGETS); /* the loader sets it */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, uint32_t);
	__type(value, struct bpf_sequence);
} sequences SEC(".maps");

struct bpf_config config;

#define TERRA_READ(destination, size, address) bpf_probe_read_user((destination), (size), (const void *)(address))

/* The chunk gets its number even when there is no room for it: the gap tells the loss. The chunks behind a lost one get
 * none, so that a lost record counts once. */
#define TERRA_EMIT(decoder, record, size) emit((decoder)->sink, (record), (size))

ALWAYS_INLINE void emit(struct bpf_buffer *buffer, struct terra_record *record, uint32_t size)
{
	uint32_t at = buffer->producer * BPF_TARGETS + buffer->target;
	struct bpf_sequence *sequence = bpf_map_lookup_elem(&sequences, &at);

	if (!sequence)
		return;
	if (record->chunk == 0) {
		buffer->lost = 0;
		sequence->records++;
	}
	if (buffer->lost)
		return;
	record->seq = sequence->seq++;
	if (size > TERRA_CHUNK_SIZE)
		size = TERRA_CHUNK_SIZE;
	/* The consumer looks by itself every few milliseconds; to wake it for every record would cost the program. */
	if (bpf_ringbuf_output(&ring, record, size, BPF_RB_NO_WAKEUP)) {
		sequence->lost++;
		buffer->lost = 1;
	}
}

#include "probes/tls.h"

struct terra_decoder;
static int put_stack(struct terra_decoder *d);
static uint64_t storage_block(const struct terra_decoder *d);

#define TERRA_STACK(d) put_stack(d)
#define TERRA_STORAGE_BLOCK(d) storage_block(d)
#include "probes/decode.h"

_Static_assert(sizeof(struct terra_cursor) <= sizeof(((struct bpf_buffer *)0)->cursor), "shared.h makes room for it");

/* The thread's block of libtorch's thread-local storage. The kernel has a running task's fsbase in its structure, too. */
static __attribute__((noinline)) uint64_t storage_block(const struct terra_decoder *d)
{
	struct bpf_buffer *buffer = d->sink;
	const struct bpf_target *target = bpf_map_lookup_elem(&targets, &buffer->target);
	uint64_t thread_pointer = 0;

	if (!target || !target->storage_module || !(config.storage_levels >> (d->layout->level & 1) & 1) ||
	    bpf_probe_read_kernel(&thread_pointer, sizeof(thread_pointer),
				  (const char *)bpf_get_current_task() + config.task_fsbase))
		return 0;
	return terra_tls_block(thread_pointer, target->storage_module);
}

#define PYSTACK_READ(context, destination, size, address)                                                              \
	bpf_probe_read_user((destination), (size), (const void *)(address))
#include "collector/pystack_walk.h"

struct thread_search {
	const struct pystack_layout *python;
	uint64_t state, tid, found;
};

static long look_at_thread(uint64_t index, void *context)
{
	struct thread_search *search = context;
	uint64_t id;

	if (!search->state || PYSTACK_READ(NULL, &id, sizeof(id), search->state + search->python->state_native_id))
		return 1;
	if (id == search->tid) {
		search->found = search->state;
		return 1;
	}
	if (PYSTACK_READ(NULL, &search->state, sizeof(search->state), search->state + search->python->state_next))
		return 1;
	return 0;
}

ALWAYS_INLINE uint64_t find_thread(const struct pystack_layout *python, uint32_t tid)
{
	struct thread_search search = { .python = python, .tid = tid };

	if (PYSTACK_READ(NULL, &search.state, sizeof(search.state), python->threads_head))
		return 0;
	bpf_loop(PYSTACK_MAX_THREADS, look_at_thread, &search, 0);
	return search.found;
}

struct stack_walk {
	struct terra_decoder *d;
	const struct pystack_layout *python;
	uint64_t frame;
	uint32_t words;
	uint32_t unreadable;
};

ALWAYS_INLINE void put_entry(struct stack_walk *walk, const struct pystack_entry *entry)
{
	uint32_t words = entry->self ? 3 : 2;

	terra_make_room(walk->d);
	terra_put_word(walk->d, entry->code | (entry->self ? PYSTACK_HAS_SELF : 0));
	terra_put_word(walk->d, (uint64_t)entry->check << 32 | entry->offset);
	if (entry->self)
		terra_put_word(walk->d, entry->self);
	terra_value_header(walk->d)->recorded += words;
	walk->words += words;
}

static long put_frame(uint64_t index, void *context)
{
	struct stack_walk *walk = context;
	struct bpf_buffer *buffer = walk->d->sink;
	int got;

	if (!walk->frame)
		return 1;
	got = pystack_step(walk->python, NULL, &buffer->scratch, &walk->frame, &buffer->entry);
	if (got < 0) {
		walk->unreadable = 1;
		return 1;
	}
	if (got)
		put_entry(walk, &buffer->entry);
	return 0;
}

/* Between operators that Python calls and the operators that these call lies no Python code, so that one level's
 * entries are enough. */
static __attribute__((noinline)) int put_stack(struct terra_decoder *d)
{
	struct stack_walk walk = { .d = d };
	struct bpf_buffer *buffer = d->sink;
	const struct bpf_target *target = bpf_map_lookup_elem(&targets, &buffer->target);

	if (!target || !target->python_ready || !(config.stack_levels >> (d->layout->level & 1) & 1))
		return 0;
	walk.python = &target->python;
	walk.frame = find_thread(walk.python, d->tid);
	if (walk.frame)
		walk.frame = pystack_first_frame(walk.python, NULL, walk.frame);
	if (!walk.frame)
		return 0;
	terra_make_room(d);
	terra_open_value(d, TERRA_PACKED_FRAMES, 0, 0);
	bpf_loop(PYSTACK_MAX_FRAMES, put_frame, &walk, 0);
	if (walk.frame || walk.unreadable) {
		buffer->entry = (struct pystack_entry){ 0 };
		put_entry(&walk, &buffer->entry);
	}
	terra_value_header(d)->count = walk.words;
	terra_close_value(d);
	return 0;
}

ALWAYS_INLINE struct bpf_buffer *take_buffer(struct bpf_target *target)
{
	for (uint32_t i = 0; i < BPF_BUFFERS; i++) {
		struct bpf_buffer *buffer = bpf_map_lookup_elem(&buffers, &i);

		if (buffer && !__sync_lock_test_and_set(&buffer->taken, 1)) {
			buffer->producer = bpf_get_smp_processor_id() * BPF_BUFFERS + i;
			return buffer;
		}
	}
	__sync_fetch_and_add(&target->no_buffer, 1);
	return NULL;
}

ALWAYS_INLINE void give_buffer(struct bpf_buffer *buffer)
{
	__sync_lock_test_and_set(&buffer->taken, 0);
}

/* The thread's id when it is one of the target's, else 0. Also for kernels that filter a link by thread. */
ALWAYS_INLINE uint32_t traced_thread(const struct bpf_target *target)
{
	struct bpf_pidns_info info = {};

	if (bpf_get_ns_current_pid_tgid(config.namespace_device, config.namespace_inode, &info, sizeof(info)))
		return 0;
	return info.tgid == target->pid ? info.pid : 0;
}

/* In memory, where an index may choose. */
ALWAYS_INLINE void copy_registers(const struct pt_regs *ctx, uint64_t *live)
{
	live[TERRA_RAX] = ctx->rax;
	live[TERRA_RCX] = ctx->rcx;
	live[TERRA_RDX] = ctx->rdx;
	live[TERRA_RBX] = ctx->rbx;
	live[TERRA_RSP] = ctx->rsp;
	live[TERRA_RBP] = ctx->rbp;
	live[TERRA_RSI] = ctx->rsi;
	live[TERRA_RDI] = ctx->rdi;
	live[TERRA_R8] = ctx->r8;
	live[TERRA_R9] = ctx->r9;
	live[TERRA_R10] = ctx->r10;
	live[TERRA_R11] = ctx->r11;
	live[TERRA_R12] = ctx->r12;
	live[TERRA_R13] = ctx->r13;
	live[TERRA_R14] = ctx->r14;
	live[TERRA_R15] = ctx->r15;
}

/* The probe's site; NULL when there is nothing to record. */
ALWAYS_INLINE const struct terra_site *find_site(struct pt_regs *ctx)
{
	uint32_t index = (uint32_t)bpf_get_attach_cookie(ctx);

	return bpf_map_lookup_elem(&sites, &index);
}

/* Fills what all programs need; NULL when there is nothing to record. */
ALWAYS_INLINE struct bpf_buffer *begin(struct pt_regs *ctx, uint32_t op, const struct terra_op_layout *layout,
				       struct terra_decoder *d)
{
	uint32_t index = (uint32_t)(bpf_get_attach_cookie(ctx) >> 32);
	struct bpf_target *target = bpf_map_lookup_elem(&targets, &index);
	struct bpf_buffer *buffer;
	uint32_t tid;

	if (!layout || !target || target->stopped)
		return NULL;
	tid = traced_thread(target);
	if (!tid)
		return NULL;
	buffer = take_buffer(target);
	if (!buffer)
		return NULL;
	buffer->target = index;
	copy_registers(ctx, buffer->live);
	d->layout = layout;
	d->offsets = &config.offsets;
	d->images = &config.images;
	d->regs = &buffer->regs;
	d->chunk = buffer->chunk;
	d->image = buffer->image;
	d->sink = buffer;
	d->at = (struct terra_cursor *)buffer->cursor;
	d->op = op;
	d->tid = tid;
	d->producer = index << BPF_TARGET_SHIFT | buffer->producer;
	return buffer;
}

ALWAYS_INLINE struct bpf_buffer *begin_op(struct pt_regs *ctx, const struct terra_site *site, struct terra_decoder *d)
{
	uint32_t op = site->op;

	return begin(ctx, op, bpf_map_lookup_elem(&ops, &op), d);
}

SEC("kprobe")
int op_enter(struct pt_regs *ctx)
{
	const struct terra_site *site = find_site(ctx);
	struct terra_decoder d = {};
	struct bpf_buffer *buffer = site ? begin_op(ctx, site, &d) : NULL;

	if (!buffer)
		return 0;
	if (!terra_entry_regs(site, buffer->live, &buffer->regs))
		terra_decode_enter(&d, bpf_ktime_get_ns());
	give_buffer(buffer);
	return 0;
}

SEC("kprobe")
int op_exit(struct pt_regs *ctx)
{
	const struct terra_site *site = find_site(ctx);
	struct terra_decoder d = {};
	struct bpf_buffer *buffer = site ? begin_op(ctx, site, &d) : NULL;

	if (!buffer)
		return 0;
	if (!terra_exit_regs(site, buffer->live, &buffer->regs))
		terra_decode_exit(&d, bpf_ktime_get_ns());
	give_buffer(buffer);
	return 0;
}

/* At a function's first instruction, where all is still where it was passed. */
SEC("kprobe")
int function_enter(struct pt_regs *ctx)
{
	uint32_t function = (uint32_t)bpf_get_attach_cookie(ctx);
	struct terra_decoder d = {};
	struct bpf_buffer *buffer;

	buffer = begin(ctx, function, &config.no_op, &d);
	if (!buffer)
		return 0;
	terra_first_regs(buffer->live, &buffer->regs);
	/* Masked for the verifier. */
	terra_decode_function(&d, config.function_forms[function & (BPF_FUNCTIONS - 1)], bpf_ktime_get_ns());
	give_buffer(buffer);
	return 0;
}

/* A handler of an exception begins: every one of the process comes here, so no stack is walked. */
SEC("kprobe")
int exception_caught(struct pt_regs *ctx)
{
	struct terra_decoder d = {};
	struct bpf_buffer *buffer = begin(ctx, 0, &config.no_op, &d);

	if (!buffer)
		return 0;
	terra_first_regs(buffer->live, &buffer->regs);
	terra_decode_catch(&d, bpf_ktime_get_ns());
	give_buffer(buffer);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
