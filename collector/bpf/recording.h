/* recording.h - one process: its probes, its Python, its trace file. Private to the session, which says when. */
#ifndef TERRA_COLLECTOR_BPF_RECORDING_H
#define TERRA_COLLECTOR_BPF_RECORDING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "collector/bpf/library.h"
#include "collector/consume.h"
#include "collector/extensions.h"
#include "collector/gate.h"
#include "collector/process.h"
#include "collector/pystack.h"

struct recording {
	struct recording *next;
	const struct terra_session_options *options;
	pid_t pid;
	int pidfd; /* readable when the process has ended; -1 on kernels without */
	char output[4096]; /* "" until it begins */
	struct terra_process process;
	char command[4096];

	struct library *library; /* NULL: not attached */
	uint32_t target;
	bool mapped;	  /* the process has the library */
	char remark[256]; /* what its trace has to say of its beginning; "" */

	struct pystack_layout layout;
	struct pystack_names *names;
	char python_reason[256]; /* why there are no stacks so far */
	bool python_done;	 /* no more tries */

	char storage_reason[256]; /* why ops are not linked by autograd so far */
	bool storage_done;
	struct terra_extensions extensions;
	uint64_t next_extensions_ns;
	uint32_t extensions_looks;
	int catches_error; /* why handlers of exceptions may not be seen */

	struct terra_trace_writer *writer;
	struct terra_consumer *consumer; /* NULL until it begins */
	struct terra_gate *gate;
	uint64_t traps;	    /* once finished */
	struct terra_trace_counts written; /* once finished: what its file holds */
	uint64_t lost_told; /* events without a buffer that the trace already knows of */
	uint64_t start_ns, end_ns;
	uint64_t next_look_ns, next_flush_ns;
	uint32_t looks;

	bool ended; /* the process */
	bool replaced; /* its program, by another that it has executed */
	bool over;  /* nothing more is recorded: enough, or an error */
	int error;
	char message[512];
};


/* `pid` has not begun, or runs. NULL when out of memory. */
struct recording *recording_new(pid_t pid, const struct terra_session_options *options);
void recording_free(struct recording *recording);

/* 0 or -errno with a message. */
int recording_attach(struct recording *recording, struct library *library, char *err, size_t err_size);
/* Records that are in the ring by then can still be taken. */
void recording_detach(struct recording *recording);
/* None is: the target's number is given back. */
void recording_release(struct recording *recording);

/* Creates the trace at recording->output. Failures end the recording and are in `error` and `message`. */
void recording_begin(struct recording *recording);
void recording_take(struct recording *recording, const struct terra_record *record);
/* Looks for the interpreter. */
void recording_look_for_python(struct recording *recording);
/* Looks for what links backward ops to forward ops, until it is known whether that can be found. */
void recording_look_for_storage(struct recording *recording);
/* Names libraries that register ops of their own, and probes where handlers of exceptions begin. */
void recording_look_for_extensions(struct recording *recording, uint64_t now);
/* A forked process has its parent's interpreter at the same place. */
void recording_inherit_python(struct recording *recording, const struct recording *parent);
/* Losses, the time limit, what has to be on disk by now. */
void recording_step(struct recording *recording, uint64_t now);
/* Writes what a flight recorder has kept. 0 or -errno with the message. */
int recording_write_kept(struct recording *recording);
/* Last notes, and the file is complete. */
void recording_finish(struct recording *recording);

#endif
