/* The probes' programs: one at the first instruction of every op, one at each of its `ret`s, one at the first instruction
 * of other functions that a trace tells of. */
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
	__type(key, uint32_t);
	__type(value, struct terra_op_layout);
} ops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BPF_BUFFERS);
	__type(key, uint32_t);
	__type(value, struct bpf_buffer);
} buffers SEC(".maps");

struct bpf_config config;
struct bpf_counts counts;

#define TERRA_READ(destination, size, address) bpf_probe_read_user((destination), (size), (const void *)(address))

/* The chunk gets its number even when there is no room for it: the gap tells the loss. */
#define TERRA_EMIT(decoder, record, size) emit((decoder)->sink, (record), (size))

ALWAYS_INLINE void emit(struct bpf_buffer *buffer, struct terra_record *record, uint32_t size)
{
	record->seq = buffer->seq++;
	if (size > TERRA_CHUNK_SIZE)
		size = TERRA_CHUNK_SIZE;
	/* The consumer looks by itself every few milliseconds; to wake it for every record would cost the program. */
	if (bpf_ringbuf_output(&ring, record, size, BPF_RB_NO_WAKEUP))
		buffer->lost++;
}

#include "probes/tls.h"

struct terra_decoder;
static int put_stack(struct terra_decoder *d);
static uint64_t storage_block(const struct terra_decoder *d);

#define TERRA_STACK(d) put_stack(d)
#define TERRA_STORAGE_BLOCK(d) storage_block(d)
#include "probes/decode.h"

/* The thread's block of libtorch's thread-local storage. The kernel has a running task's fsbase in its structure, too. */
static __attribute__((noinline)) uint64_t storage_block(const struct terra_decoder *d)
{
	uint64_t thread_pointer = 0;

	if (!config.storage_module || !(config.storage_levels >> (d->layout->level & 1) & 1) ||
	    bpf_probe_read_kernel(&thread_pointer, sizeof(thread_pointer),
				  (const char *)bpf_get_current_task() + config.task_fsbase))
		return 0;
	return terra_tls_block(thread_pointer, config.storage_module);
}

#define PYSTACK_READ(context, destination, size, address)                                                              \
	bpf_probe_read_user((destination), (size), (const void *)(address))
#include "collector/pystack_walk.h"

struct thread_search {
	uint64_t state, tid, found;
};

static long look_at_thread(uint64_t index, void *context)
{
	struct thread_search *search = context;
	uint64_t id;

	if (!search->state || PYSTACK_READ(NULL, &id, sizeof(id), search->state + config.python.state_native_id))
		return 1;
	if (id == search->tid) {
		search->found = search->state;
		return 1;
	}
	if (PYSTACK_READ(NULL, &search->state, sizeof(search->state), search->state + config.python.state_next))
		return 1;
	return 0;
}

ALWAYS_INLINE uint64_t find_thread(uint32_t tid)
{
	struct thread_search search = { .tid = tid };

	if (PYSTACK_READ(NULL, &search.state, sizeof(search.state), config.python.threads_head))
		return 0;
	bpf_loop(PYSTACK_MAX_THREADS, look_at_thread, &search, 0);
	return search.found;
}

struct stack_walk {
	struct terra_decoder *d;
	uint64_t frame;
	uint32_t words;
};

static long put_frame(uint64_t index, void *context)
{
	struct stack_walk *walk = context;
	struct bpf_buffer *buffer = walk->d->sink;
	int got;

	if (!walk->frame)
		return 1;
	got = pystack_step(&config.python, NULL, &buffer->scratch, &walk->frame, &buffer->entry);
	if (got < 0)
		return 1;
	if (got) {
		terra_make_room(walk->d);
		terra_put_word(walk->d, buffer->entry.code);
		terra_put_word(walk->d, (uint64_t)buffer->entry.check << 32 | buffer->entry.offset);
		terra_value_header(walk->d)->recorded += 2;
		walk->words += 2;
	}
	return 0;
}

/* Between operators that Python calls and the operators that these call lies no Python code, so that one level's
 * entries are enough. */
static __attribute__((noinline)) int put_stack(struct terra_decoder *d)
{
	struct stack_walk walk = { .d = d };

	if (!config.python_ready || !(config.stack_levels >> (d->layout->level & 1) & 1))
		return 0;
	walk.frame = find_thread(d->tid);
	if (walk.frame)
		walk.frame = pystack_first_frame(&config.python, NULL, walk.frame);
	if (!walk.frame)
		return 0;
	terra_make_room(d);
	terra_open_value(d, TERRA_PACKED_FRAMES, 0, 0);
	bpf_loop(PYSTACK_MAX_FRAMES, put_frame, &walk, 0);
	terra_value_header(d)->count = walk.words;
	terra_close_value(d);
	return 0;
}

ALWAYS_INLINE struct bpf_buffer *take_buffer(void)
{
	for (uint32_t i = 0; i < BPF_BUFFERS; i++) {
		struct bpf_buffer *buffer = bpf_map_lookup_elem(&buffers, &i);

		if (buffer && !__sync_lock_test_and_set(&buffer->taken, 1)) {
			buffer->producer = bpf_get_smp_processor_id() * BPF_BUFFERS + i;
			return buffer;
		}
	}
	__sync_fetch_and_add(&counts.no_buffer, 1);
	return NULL;
}

ALWAYS_INLINE void give_buffer(struct bpf_buffer *buffer)
{
	__sync_lock_test_and_set(&buffer->taken, 0);
}

/* The thread's id when it is one of the traced process, else 0. Also for kernels that filter a link by thread. */
ALWAYS_INLINE uint32_t traced_thread(void)
{
	struct bpf_pidns_info info = {};

	if (bpf_get_ns_current_pid_tgid(config.namespace_device, config.namespace_inode, &info, sizeof(info)))
		return 0;
	return info.tgid == config.pid ? info.pid : 0;
}

ALWAYS_INLINE void read_regs(const struct pt_regs *ctx, struct terra_regs *regs)
{
	regs->gpr[0] = ctx->rdi;
	regs->gpr[1] = ctx->rsi;
	regs->gpr[2] = ctx->rdx;
	regs->gpr[3] = ctx->rcx;
	regs->gpr[4] = ctx->r8;
	regs->gpr[5] = ctx->r9;
	regs->sp = ctx->rsp;
	regs->rax = ctx->rax;
}

/* Fills what all programs need; NULL when there is nothing to record. */
ALWAYS_INLINE struct bpf_buffer *begin(struct pt_regs *ctx, struct terra_decoder *d, struct terra_regs *regs, uint32_t op,
				       const struct terra_op_layout *layout)
{
	struct bpf_buffer *buffer;
	uint32_t tid;

	if (config.stopped || !layout)
		return NULL;
	tid = traced_thread();
	if (!tid)
		return NULL;
	buffer = take_buffer();
	if (!buffer)
		return NULL;
	read_regs(ctx, regs);
	d->layout = layout;
	d->offsets = &config.offsets;
	d->regs = regs;
	d->chunk = buffer->chunk;
	d->sink = buffer;
	d->op = op;
	d->tid = tid;
	d->producer = buffer->producer;
	return buffer;
}

SEC("kprobe")
int op_enter(struct pt_regs *ctx)
{
	struct terra_decoder d = {};
	struct terra_regs regs = {};
	uint32_t op = (uint32_t)bpf_get_attach_cookie(ctx);
	struct bpf_buffer *buffer = begin(ctx, &d, &regs, op, bpf_map_lookup_elem(&ops, &op));

	if (!buffer)
		return 0;
	terra_decode_enter(&d, bpf_ktime_get_ns());
	give_buffer(buffer);
	return 0;
}

SEC("kprobe")
int op_exit(struct pt_regs *ctx)
{
	struct terra_decoder d = {};
	struct terra_regs regs = {};
	uint32_t op = (uint32_t)bpf_get_attach_cookie(ctx);
	struct bpf_buffer *buffer = begin(ctx, &d, &regs, op, bpf_map_lookup_elem(&ops, &op));

	if (!buffer)
		return 0;
	terra_decode_exit(&d, bpf_ktime_get_ns());
	give_buffer(buffer);
	return 0;
}

SEC("kprobe")
int function_enter(struct pt_regs *ctx)
{
	struct terra_decoder d = {};
	struct terra_regs regs = {};
	uint32_t function = (uint32_t)bpf_get_attach_cookie(ctx);
	struct bpf_buffer *buffer;

	if (function >= TERRA_N_FUNCTIONS)
		return 0;
	buffer = begin(ctx, &d, &regs, function, &config.no_op);
	if (!buffer)
		return 0;
	terra_decode_function(&d, config.function_forms[function], bpf_ktime_get_ns());
	give_buffer(buffer);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
