/* session.h - one recording through the bpf backend, from before the program's exec to the finished trace file. */
#ifndef TERRA_COLLECTOR_BPF_SESSION_H
#define TERRA_COLLECTOR_BPF_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "collector/launch.h"

struct terra_session_options {
	const char *output;  /* trace file; created when the program is seen to use libtorch */
	const char *library; /* libtorch_cpu.so; NULL: found */
	char *const *argv;
	uint32_t levels; /* which entry points, as terra_op_chosen has it */
	bool stacks;
	uint64_t iterations; /* stop after so many; 0: record to the end */
	size_t ring_bytes;   /* what may wait to be written; a power of two, 0: a default */
	bool use_cache;
};

struct terra_session_result {
	bool recorded; /* there is a trace file */
	uint64_t events, lost, iterations;
	uint64_t traps; /* probes that fired */
	bool stopped; /* after `iterations`, the program still running */
};

struct terra_session;

/* Prepares for a program that has not begun: finds its libtorch if it can, loads and attaches. When no library is found
 * beforehand, that is no error: the session attaches when the program maps one. 0 or -errno with a message. */
int terra_session_open(const struct terra_session_options *options, const struct terra_launch *launch,
		       struct terra_session **out, char *err, size_t err_size);

/* Does what there is to do now; call it every few milliseconds until the recording is over. 0, or -errno with a
 * message: the recording has ended there, what was written stays readable, the program is not affected. */
int terra_session_step(struct terra_session *session, char *err, size_t err_size);

/* True once there is nothing more to step for: `iterations` were recorded, or an error ended it. */
bool terra_session_over(const struct terra_session *session);

/* Detaches, takes what is left in the ring, and finishes the file. 0 or -errno with a message. */
int terra_session_finish(struct terra_session *session, char *err, size_t err_size);

const struct terra_session_result *terra_session_result(const struct terra_session *session);
void terra_session_close(struct terra_session *session);

#endif
