/* gate.h - which events of a process reach its trace file, and when that is enough; common to both backends.
 *
 * It stands between the consumer, whose sink it is, and the trace writer, and writes the notes that say what was left out
 * or why it stopped.
 */
#ifndef TERRA_COLLECTOR_GATE_H
#define TERRA_COLLECTOR_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "collector/trace.h"

/* All 0: everything to the end. */
struct terra_limits {
	uint64_t start_after; /* iterations of the main loop that are not recorded */
	uint64_t iterations;  /* then recorded */
	uint64_t duration_ns; /* of the recording */
	uint64_t max_bytes;   /* of the file; with flight_ns, of the memory */
	uint64_t flight_ns;   /* keep only what is not older than this, in memory */
};

struct terra_gate;

/* `main_thread`: whose ops count the iterations. The writer is borrowed. NULL when out of memory. */
struct terra_gate *terra_gate_new(const struct terra_limits *limits, struct terra_trace_writer *writer,
				  uint32_t main_thread);
void terra_gate_free(struct terra_gate *gate);

/* The sink: writes the event, or leaves it out and sets its seq to UINT64_MAX. 0, -ECANCELED once it is enough (and
 * from then on), or the writer's error. */
int terra_gate_take(void *gate, struct terra_event *event);

/* Time passes without events too. 0 or -ECANCELED. */
int terra_gate_time(struct terra_gate *gate, uint64_t now_ns);

/* Iterations recorded so far; 0 when no limit asked for them to be counted. */
uint64_t terra_gate_iterations(const struct terra_gate *gate);
/* Why it is enough; NULL while it is not. */
const char *terra_gate_reason(const struct terra_gate *gate);
/* The same of a trace, by a note in it; NULL: that note is about something else. */
const char *terra_gate_stopped_by(const char *note);

/* Notes that explain a recording that never began for want of `start_after` iterations. To be called at its end. */
int terra_gate_finish(struct terra_gate *gate, uint64_t now_ns);

#endif
