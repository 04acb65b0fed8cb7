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

struct follow_config config;
uint64_t lost;

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

static inline __attribute__((always_inline)) void tell(uint32_t type, uint32_t process, uint32_t parent, bool shares)
{
	struct follow_event event = { .type = type, .process = process, .parent = parent, .shares_memory = shares,
				      .time_ns = bpf_ktime_get_ns() };

	if (bpf_ringbuf_output(&events, &event, sizeof(event), BPF_RB_FORCE_WAKEUP))
		__sync_fetch_and_add(&lost, 1);
}

/* The new process is followed before it runs, so that nothing that it starts is missed. */
SEC("raw_tp/sched_process_fork")
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *parent = (struct task_struct *)ctx->args[0], *child = (struct task_struct *)ctx->args[1];
	uint32_t process, forked;
	uint8_t yes = 1;

	if (BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return 0; /* a thread */
	process = current_process();
	if (!process || !bpf_map_lookup_elem(&followed, &process))
		return 0;
	forked = number_of(child);
	if (!forked || bpf_map_update_elem(&followed, &forked, &yes, BPF_ANY)) {
		__sync_fetch_and_add(&lost, 1);
		return 0;
	}
	tell(FOLLOW_FORK, forked, process, BPF_CORE_READ(child, mm) == BPF_CORE_READ(parent, mm));
	return 0;
}

SEC("raw_tp/sched_process_exec")
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	uint32_t process = current_process();

	if (process && bpf_map_lookup_elem(&followed, &process))
		tell(FOLLOW_EXEC, process, 0, false);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
