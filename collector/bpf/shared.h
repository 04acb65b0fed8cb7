/* shared.h - what the BPF programs and their loader share beyond the records themselves. */
#ifndef TERRA_COLLECTOR_BPF_SHARED_H
#define TERRA_COLLECTOR_BPF_SHARED_H

#include "collector/pystack_layout.h"
#include "probes/functions.h"
#include "probes/images.h"
#include "probes/record.h"
#include "probes/site.h"

/* A record is put together in a buffer of its CPU. A task may be preempted while it holds one, and the next task's
 * event on that CPU needs another. Every buffer is a producer of its own, numbered cpu * BPF_BUFFERS + buffer. */
#define BPF_BUFFERS 4

struct bpf_buffer {
	uint32_t taken;
	uint32_t producer;
	uint32_t target; /* whose event is put together in it */
	uint32_t lost; /* a chunk of the record that is put together in it found no room */
	uint64_t live[TERRA_REGISTERS];
	struct terra_regs regs;
	uint64_t cursor[5]; /* struct terra_cursor */
	struct pystack_scratch scratch;
	struct pystack_entry entry;
	uint64_t image[TERRA_IMAGE_WORDS];
	uint8_t chunk[TERRA_CHUNK_BUFFER];
};

/* A traced process. Its place in the array is the upper half of its probes' cookies, above the op, and of the producers
 * in its records, so that several processes share programs, maps and ring. */
#define BPF_TARGETS 256
#define BPF_TARGET_SHIFT 16 /* in terra_record.producer */

/* `python` may be filled in while the programs run. */
struct bpf_target {
	uint32_t pid;
	uint32_t python_ready; /* `python` holds a layout */
	uint32_t stopped;      /* record nothing any more */
	uint32_t unused;
	uint64_t no_buffer; /* events that found no buffer and so left no other trace */
	uint64_t storage_module; /* number of libtorch's thread-local storage in the process, 0: not known (yet) */
	struct pystack_layout python;
};

/* What a buffer made for a target: at [producer * BPF_TARGETS + target]. */
struct bpf_sequence {
	uint64_t seq;  /* chunks made, those without room in the ring included */
	uint64_t records; /* probes that fired and found the buffer */
	uint64_t lost; /* of these, each the first lost one of its record */
};

#define BPF_FUNCTIONS 32 /* a power of two; at least TERRA_N_FUNCTIONS */

/* Set by the loader. */
struct bpf_config {
	uint64_t namespace_device, namespace_inode; /* of the pid namespace in which pids and thread ids count */
	uint32_t stack_levels; /* bit per enum terra_level: at which entries to walk the Python stack */
	uint32_t storage_levels; /* likewise, to look at libtorch's thread-local storage */
	uint32_t task_fsbase;	 /* offset in the kernel's struct task_struct, 0: not known */
	uint32_t unused;
	uint8_t function_forms[BPF_FUNCTIONS];
	struct terra_offsets offsets;
	struct terra_images images;
	struct terra_op_layout no_op; /* of a function; its level is one at which stacks are recorded */
};

#endif
