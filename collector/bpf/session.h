/* session.h - one recording through the bpf backend: a program from before its exec, or one that runs already, and the
 * processes that it starts, each with a trace file of its own. */
#ifndef TERRA_COLLECTOR_BPF_SESSION_H
#define TERRA_COLLECTOR_BPF_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "collector/gate.h"
#include "collector/process.h"

struct terra_session_options {
	const char *output;  /* trace file of the first process that is seen to use libtorch; others: OUTPUT.PID */
	const char *library; /* libtorch_cpu.so; NULL: found */
	char *const *argv;   /* of a program that has not begun; NULL: it runs */
	uint32_t levels;     /* bit per enum terra_level */
	bool stacks;
	bool children;	   /* follow those that the program starts */
	const char *ops;   /* patterns as in op_filter.h; NULL: all */
	struct terra_limits limits; /* of each process */
	size_t ring_bytes; /* what may wait to be written; a power of two, 0: a default */
	bool use_cache;
};

struct terra_session_result {
	uint32_t traces; /* files written */
	uint64_t events, lost;
	uint64_t traps; /* probes that fired, of recordings that are over */
	uint64_t iterations; /* of the process that recorded most */
	const char *stopped; /* by which option a recording ended while its process went on; NULL: none */
	bool waiting;	     /* the process has no libtorch so far */
};

struct terra_session;

/* Prepares for process `pid`. When no library is found beforehand, that is no error: the session attaches when the
 * program maps one. The options are borrowed. 0 or -errno with a message. */
int terra_session_open(const struct terra_session_options *options, pid_t pid, struct terra_session **out, char *err,
		       size_t err_size);

/* Becomes readable when a process was started, for which a step is due at once; -1: there is no such thing. */
int terra_session_fd(const struct terra_session *session);

/* Does what there is to do now; call it every few milliseconds until the recording is over. 0, or -errno with a message:
 * a process' recording has ended there, what was written stays readable, the program is not affected. */
int terra_session_step(struct terra_session *session, char *err, size_t err_size);

/* True once there is nothing more to step for: the process has ended or was recorded as long as asked for, or an error
 * ended it. */
bool terra_session_over(const struct terra_session *session);

/* Writes out what flight recorders hold. 0 or -errno with a message. */
int terra_session_write_kept(struct terra_session *session, char *err, size_t err_size);

/* Detaches, takes what is left in the ring, and finishes the files. 0 or -errno with a message. */
int terra_session_finish(struct terra_session *session, char *err, size_t err_size);

const struct terra_session_result *terra_session_result(const struct terra_session *session);
/* The traces that are finished. */
struct terra_index *terra_session_index(struct terra_session *session);
void terra_session_close(struct terra_session *session);

#endif
