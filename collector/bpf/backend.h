/* backend.h - the bpf backend: uprobes on every op of a library, for some processes, without touching them.
 *
 * One backend serves one library and up to TERRA_BPF_TARGETS processes at a time, its targets: they share programs, maps
 * and ring, and each has links of its own, so that a process that is no target meets no probe. Probes belong to the
 * library's inode, so they can be attached before a process has mapped it, or before it has even been executed. Nothing
 * outlives terra_bpf_close(), nor the end of the process that opened the backend.
 */
#ifndef TERRA_COLLECTOR_BPF_BACKEND_H
#define TERRA_COLLECTOR_BPF_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "collector/pystack_layout.h"
#include "probes/offsets.h"
#include "probes/op.h"
#include "probes/record.h"

#define TERRA_BPF_TARGETS 256

struct terra_bpf_options {
	size_t size;	       /* sizeof(struct terra_bpf_options), so that it can grow */
	uint32_t levels;       /* which entry points, as terra_op_chosen has it */
	uint32_t stack_levels; /* at which entries to record Python stacks, once terra_bpf_set_python was called */
	size_t ring_bytes;     /* a power of two of at least a page; 0: a default */
	bool use_cache;
	const uint8_t *ops; /* per op of the table: 1 to probe it; NULL: all. Borrowed */
};

struct terra_bpf;

/* Whether this process may use the backend and the kernel has what it takes. 0, or -EPERM / -ENOTSUP with a reason that
 * names the missing right or feature, and how to get it. */
int terra_bpf_supported(char *reason, size_t reason_size);

/* Loads the programs and attaches nothing yet. `table` must outlive the backend. 0 or -errno with a message. */
int terra_bpf_open(const struct terra_op_table *table, const struct terra_offsets *offsets,
		   const struct terra_bpf_options *options, struct terra_bpf **out, char *err, size_t err_size);
void terra_bpf_close(struct terra_bpf *bpf);

/* Puts the probes into process `pid`, with all its threads; its children are not traced. The target's number goes to
 * *target. 0, -ESRCH when the process is gone, -EAGAIN when all targets are taken, or -errno, with a message. */
int terra_bpf_attach(struct terra_bpf *bpf, pid_t pid, uint32_t *target, char *err, size_t err_size);
/* Takes them out. What was recorded can still be consumed. */
void terra_bpf_detach(struct terra_bpf *bpf, uint32_t target);
/* The number may be given to another process: when its records are consumed. */
void terra_bpf_release(struct terra_bpf *bpf, uint32_t target);

/* Python stacks of the target are recorded from now on. */
void terra_bpf_set_python(struct terra_bpf *bpf, uint32_t target, const struct pystack_layout *layout);

/* What links backward ops to forward ops lies in memory that the process must have set up: call it now and then until it
 * returns something else than -EAGAIN. 0: found, and recorded from now on; -errno: it cannot be, for the reason given. */
int terra_bpf_look_for_storage(struct terra_bpf *bpf, uint32_t target, char *reason, size_t reason_size);

/* The target has mapped a library in which handlers of exceptions may begin (probes/catches.h): they are recorded from now on,
 * and of later targets from their beginning. 0, -ENOENT when it is not such a library, or -errno. */
int terra_bpf_see_catches(struct terra_bpf *bpf, uint32_t target, const char *path);
/* Whether the target's are, those of libtorch's own code among them. */
bool terra_bpf_sees_catches(const struct terra_bpf *bpf, uint32_t target);

/* The process executes another program: where things lay in the last one means nothing. */
void terra_bpf_forget(struct terra_bpf *bpf, uint32_t target);

/* What the probes do not see, as far as it is known now: text for people, "" when there is nothing to say. */
void terra_bpf_gap(const struct terra_bpf *bpf, char *out, size_t size);

/* The layouts that records were made with, by op index; has_exit as found. Lives as long as the backend. */
const struct terra_op_layout *terra_bpf_layouts(const struct terra_bpf *bpf);

/* Gives what is in the ring to `take`, oldest first, without waiting (the ring wakes nobody: look every few
 * milliseconds); stops when `take` returns an error and passes that on. Records of one thread come in program order.
 * Returns the number of records, or -errno. */
typedef int (*terra_bpf_take)(void *context, uint32_t target, const struct terra_record *record);
int terra_bpf_consume(struct terra_bpf *bpf, terra_bpf_take take, void *context);

/* Of one target. */
struct terra_bpf_counts {
	uint64_t lost_chunks; /* had no room in the ring; also visible as gaps in `seq` */
	uint64_t lost_events; /* found no buffer, and left no gap */
	uint64_t traps;	      /* probes that fired and found a buffer */
};
void terra_bpf_counts(const struct terra_bpf *bpf, uint32_t target, struct terra_bpf_counts *out);

/* Of how many of the probed ops floating-point arguments, or such a result, can't be read. */
struct terra_bpf_unread {
	uint32_t arguments, results;
};
struct terra_bpf_unread terra_bpf_unread(const struct terra_bpf *bpf);

#endif
