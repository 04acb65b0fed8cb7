/* Which processes the traced ones start: forks and execs of processes in `followed`. */
#include <linux/bpf.h>
#include <stdbool.h>
#include <stdint.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "collector/bpf/follow_shared.h"

/* What is used of the kernel's structures; libbpf puts the running kernel's offsets in. */
#define KERNEL_STRUCT __attribute__((preserve_access_index))

struct ns_common {
	unsigned int inum;
} KERNEL_STRUCT;

struct pid_namespace {
	struct ns_common ns;
} KERNEL_STRUCT;

struct upid {
	int nr;
	struct pid_namespace *ns;
} KERNEL_STRUCT;

struct pid {
	unsigned int level;
	struct upid numbers[1];
} KERNEL_STRUCT;

struct mm_struct;

struct task_struct {
	int pid, tgid;
	struct pid *thread_pid;
	struct mm_struct *mm;
} KERNEL_STRUCT;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FOLLOW_MAX);
	__type(key, uint32_t);
	__type(value, uint8_t);
} followed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

/* Processes that were stopped at their beginning and may not have been let go on yet. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FOLLOW_MAX);
	__type(key, uint32_t);
	__type(value, uint8_t);
} held SEC(".maps");

#define SIGNAL_CONTINUE 18
#define SIGNAL_STOP 19

struct follow_config config;
uint64_t lost;
uint32_t tracer_ends;

static inline __attribute__((always_inline)) uint32_t current_process(void)
{
	struct bpf_pidns_info info = {};

	if (bpf_get_ns_current_pid_tgid(config.namespace_device, config.namespace_inode, &info, sizeof(info)))
		return 0;
	return info.tgid;
}

/* The task's number in our namespace, which may lie above its own. */
static inline __attribute__((always_inline)) uint32_t number_of(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	unsigned int level = BPF_CORE_READ(pid, level);
	uint64_t at = (uint64_t)(uintptr_t)__builtin_preserve_access_index(&pid->numbers[0]);

	for (unsigned int i = 0; i <= FOLLOW_MAX_LEVEL && i <= level; i++) {
		struct upid *number = (struct upid *)(uintptr_t)(at + (uint64_t)i * bpf_core_type_size(struct upid));

		if (BPF_CORE_READ(number, ns, ns.inum) == config.namespace_inode)
			return (uint32_t)BPF_CORE_READ(number, nr);
	}
	return 0;
}

enum pid_type { PIDTYPE_PID, PIDTYPE_TGID };

/* Absent on kernels before 6.13, which then cannot hold. */
int bpf_send_signal_task(struct task_struct *task, int sig, enum pid_type type, __u64 value) __ksym __weak;
struct task_struct *bpf_task_from_vpid(int pid) __ksym __weak;
void bpf_task_release(struct task_struct *task) __ksym __weak;

static inline __attribute__((always_inline)) void tell(uint32_t type, uint32_t process, uint32_t parent, bool shares,
						       bool held)
{
	struct follow_event event = { .type = type, .process = process, .parent = parent, .shares_memory = shares,
				      .held = held, .time_ns = bpf_ktime_get_ns() };

	if (bpf_ringbuf_output(&events, &event, sizeof(event), BPF_RB_FORCE_WAKEUP))
		__sync_fetch_and_add(&lost, 1);
}

struct fork {
	uint32_t parent, child;
	bool shares, hold;
};

/* The new process is followed before it runs, so that nothing that it starts is missed. False: it is none of ours. */
static inline __attribute__((always_inline)) bool see_fork(struct task_struct *parent, struct task_struct *child,
							   struct fork *out)
{
	uint8_t *how, copy;

	if (BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return false; /* a thread */
	out->parent = current_process();
	how = out->parent ? bpf_map_lookup_elem(&followed, &out->parent) : NULL;
	if (!how)
		return false;
	copy = *how;
	out->shares = BPF_CORE_READ(child, mm) == BPF_CORE_READ(parent, mm);
	out->hold = copy == FOLLOW_HOLD && !out->shares;
	out->child = number_of(child);
	if (out->child && !bpf_map_update_elem(&followed, &out->child, &copy, BPF_ANY))
		return true;
	__sync_fetch_and_add(&lost, 1);
	return false;
}

SEC("raw_tp/sched_process_fork")
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	struct fork fork = {};

	if (see_fork((struct task_struct *)ctx->args[0], (struct task_struct *)ctx->args[1], &fork))
		tell(FOLLOW_FORK, fork.child, fork.parent, fork.shares, false);
	return 0;
}

/* Instead of on_fork, where children are to wait for their probes: this one is stopped before its first instruction. The
 * tracer lets it go on, or on_exit does when the tracer ends. */
SEC("tp_btf/sched_process_fork")
int on_fork_hold(uint64_t *ctx)
{
	struct task_struct *parent = (struct task_struct *)ctx[0], *child = (struct task_struct *)ctx[1];
	struct fork fork = {};
	uint8_t yes = 1;
	bool is_held;

	if (!see_fork(parent, child, &fork))
		return 0;
	is_held = fork.hold && !tracer_ends && !bpf_map_update_elem(&held, &fork.child, &yes, BPF_ANY);
	if (is_held)
		is_held = bpf_send_signal_task(child, SIGNAL_STOP, PIDTYPE_TGID, 0) == 0;
	/* on_exit may have looked before there was anything to undo. */
	if (is_held && *(volatile uint32_t *)&tracer_ends)
		bpf_send_signal_task(child, SIGNAL_CONTINUE, PIDTYPE_TGID, 0);
	tell(FOLLOW_FORK, fork.child, fork.parent, fork.shares, is_held);
	return 0;
}

struct bpf_map;

static long let_go_on(struct bpf_map *map, uint32_t *process, uint8_t *value, void *context)
{
	struct task_struct *task = bpf_task_from_vpid((int)*process);

	if (!task)
		return 0;
	bpf_send_signal_task(task, SIGNAL_CONTINUE, PIDTYPE_TGID, 0);
	bpf_task_release(task);
	return 0;
}

/* Runs in the tracer's own exit, kill -9 too, before its programs are taken away; not in that of another thread of it. */
SEC("tp_btf/sched_process_exit")
int on_exit(uint64_t *ctx)
{
	uint64_t id = bpf_get_current_pid_tgid();

	if (id >> 32 != (uint32_t)id || current_process() != config.tracer)
		return 0;
	__sync_lock_test_and_set(&tracer_ends, 1);
	bpf_for_each_map_elem(&held, let_go_on, NULL, 0);
	return 0;
}

SEC("raw_tp/sched_process_exec")
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	uint32_t process = current_process();

	if (process && bpf_map_lookup_elem(&followed, &process))
		tell(FOLLOW_EXEC, process, 0, false, false);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
