/* follow_shared.h - what follow.bpf.c and follow.c share. */
#ifndef TERRA_COLLECTOR_BPF_FOLLOW_SHARED_H
#define TERRA_COLLECTOR_BPF_FOLLOW_SHARED_H

#include <stdint.h>

#define FOLLOW_MAX 16384     /* processes at a time */
#define FOLLOW_MAX_LEVEL 32u /* of pid namespaces, as the kernel has it */

struct follow_config {
	uint64_t namespace_device, namespace_inode; /* of the pid namespace in which processes are numbered */
};

enum follow_type { FOLLOW_FORK = 1, FOLLOW_EXEC = 2 };

struct follow_event {
	uint32_t type; /* enum follow_type */
	uint32_t process;
	uint32_t parent;	/* FORK */
	uint32_t shares_memory; /* FORK: it runs in its parent's memory until it executes another program */
	uint64_t time_ns;
};

#endif
