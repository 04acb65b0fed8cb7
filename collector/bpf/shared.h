/* shared.h - what the BPF programs and their loader share beyond the records themselves. */
#ifndef TERRA_COLLECTOR_BPF_SHARED_H
#define TERRA_COLLECTOR_BPF_SHARED_H

#include "collector/pystack_layout.h"
#include "probes/functions.h"
#include "probes/offsets.h"
#include "probes/record.h"

/* A record is put together in a buffer of its CPU. A task may be preempted while it holds one, and the next task's
 * event on that CPU needs another. Every buffer is a producer of its own, numbered cpu * BPF_BUFFERS + buffer. */
#define BPF_BUFFERS 4

struct bpf_buffer {
	uint32_t taken;
	uint32_t producer;
	uint64_t seq;  /* chunks made, those without room in the ring included */
	uint64_t lost; /* of these */
	struct pystack_scratch scratch;
	struct pystack_entry entry;
	uint8_t chunk[TERRA_CHUNK_BUFFER];
};

/* Set by the loader; `python` may be filled in while the programs run. */
struct bpf_config {
	uint64_t namespace_device, namespace_inode; /* of the pid namespace in which `pid` and thread ids count */
	uint32_t pid;
	uint32_t stack_levels; /* bit per enum terra_level: at which entries to walk the Python stack */
	uint32_t python_ready; /* `python` holds a layout */
	uint32_t stopped;      /* record nothing any more */
	uint32_t storage_levels; /* bit per enum terra_level: at which entries to look at libtorch's thread-local storage */
	uint32_t task_fsbase;	 /* offset in the kernel's struct task_struct */
	uint64_t storage_module; /* number of that storage in the process, 0: not known (yet) */
	uint8_t function_forms[TERRA_N_FUNCTIONS];
	struct pystack_layout python;
	struct terra_offsets offsets;
	struct terra_op_layout no_op; /* of a function; its level is one at which stacks are recorded */
};

struct bpf_counts {
	uint64_t no_buffer; /* events that found no buffer and so left no other trace */
};

#endif
