/* process.h - which process of a program a trace is of, and the index of the traces of one recording.
 *
 * Every trace says it in a note; the index (docs/trace-index.md) is for those who want all of them.
 */
#ifndef TERRA_COLLECTOR_PROCESS_H
#define TERRA_COLLECTOR_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct terra_process {
	pid_t pid, parent;
	int64_t rank, local_rank, world_size; /* of RANK, LOCAL_RANK and WORLD_SIZE in its environment; -1: not there */
};

/* `pid` 0: this process, by its environment as it is now; of another one as it was executed. What cannot be read is 0 or
 * -1. */
void terra_process_describe(pid_t pid, struct terra_process *out);

/* The note that describes it, and back. False: another note. */
#define TERRA_PROCESS_NOTE 192
void terra_process_note(const struct terra_process *process, char text[TERRA_PROCESS_NOTE]);
bool terra_process_parse(const char *note, struct terra_process *out);

struct terra_index_entry {
	char *file, *command; /* malloc'ed; the path as it was written */
	struct terra_process process;
	uint64_t start_ns, end_ns; /* CLOCK_MONOTONIC, as in the traces */
	uint64_t events, lost;
	bool complete; /* the trace has its end */
	const char *stopped; /* by which option, as terra_gate_stopped_by has it; only of a trace that was read */
};

struct terra_index {
	struct terra_index_entry *entries;
	uint32_t n, capacity;
};

/* Takes the entry with its strings; -ENOMEM leaves them to the caller. */
int terra_index_add(struct terra_index *index, const struct terra_index_entry *entry);
/* Reads a trace for it. 0 or -errno with a message. */
int terra_index_add_trace(struct terra_index *index, const char *path, char *err, size_t err_size);
void terra_index_free(struct terra_index *index);

/* The index of trace FILE is FILE.index; files are named relative to its folder, in the order in which they
 * began. 0 or -errno. */
int terra_index_write(struct terra_index *index, const char *path);

#endif
