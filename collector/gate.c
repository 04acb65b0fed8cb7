/* Which events reach the trace, and when it is enough; see gate.h. */
#include "collector/gate.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "collector/iterations.h"

#define END_BYTES 4096 /* of the last note and the end block, which have to fit below max_bytes */

#define BY_ITERATIONS "--iterations"
#define BY_DURATION "--duration"
#define BY_MAX_SIZE "--max-size"

struct terra_gate {
	struct terra_limits limits;
	struct terra_trace_writer *writer;
	struct terra_iteration_finder *finder; /* NULL: nobody asked for iterations */
	uint32_t main_thread;
	uint64_t seen;	/* iterations of the program */
	uint64_t begin; /* of these, before the recording */
	uint64_t begin_ns;
	bool open; /* events pass */
	const char *reason;
};

struct terra_gate *terra_gate_new(const struct terra_limits *limits, struct terra_trace_writer *writer,
				  uint32_t main_thread)
{
	struct terra_gate *gate = calloc(1, sizeof(*gate));

	if (!gate)
		return NULL;
	gate->limits = *limits;
	gate->writer = writer;
	gate->main_thread = main_thread;
	gate->open = !limits->start_after;
	if (!limits->start_after && !limits->iterations)
		return gate;
	gate->finder = terra_iteration_finder_new(TERRA_ITERATION_MIN_OPS);
	if (gate->finder)
		return gate;
	free(gate);
	return NULL;
}

void terra_gate_free(struct terra_gate *gate)
{
	if (!gate)
		return;
	terra_iteration_finder_free(gate->finder);
	free(gate);
}

uint64_t terra_gate_iterations(const struct terra_gate *gate)
{
	return gate->open ? gate->seen - gate->begin : 0;
}

const char *terra_gate_reason(const struct terra_gate *gate)
{
	return gate->reason;
}

static int note(struct terra_gate *gate, uint64_t time_ns, const char *text)
{
	struct terra_event event = { .type = TERRA_EVENT_NOTE, .text = text, .time_ns = time_ns,
				     .parent_seq = UINT64_MAX };

	return terra_trace_write(gate->writer, &event);
}

#define STOPPED_BY "the recording was stopped by "

const char *terra_gate_stopped_by(const char *note)
{
	static const char *const reasons[] = { BY_ITERATIONS, BY_DURATION, BY_MAX_SIZE };
	const size_t n = strlen(STOPPED_BY);

	for (size_t i = 0; i < sizeof(reasons) / sizeof(*reasons); i++)
		if (!strncmp(note, STOPPED_BY, n) && !strncmp(note + n, reasons[i], strlen(reasons[i])))
			return reasons[i];
	return NULL;
}

static int stop(struct terra_gate *gate, uint64_t time_ns, const char *reason)
{
	char text[128];
	int error;

	gate->reason = reason;
	snprintf(text, sizeof(text), STOPPED_BY "%s; the program went on", reason);
	error = note(gate, time_ns, text);
	return error ? error : -ECANCELED;
}

/* Shapes are left out of the comparison: they may change from one iteration to the next. */
static int count_iterations(struct terra_gate *gate, const struct terra_event *event)
{
	int64_t n;

	if (!gate->finder || event->type != TERRA_EVENT_OP_ENTER || event->thread != gate->main_thread)
		return 0;
	n = terra_iteration_finder_feed(gate->finder, terra_op_identity(event, false));
	if (n < 0)
		return (int)n;
	gate->seen = (uint64_t)n;
	return 0;
}

static int open_gate(struct terra_gate *gate, uint64_t time_ns)
{
	char text[128];

	gate->open = true;
	gate->begin = gate->seen;
	gate->begin_ns = 0;
	snprintf(text, sizeof(text), "the recording begins behind %" PRIu64 " iterations", gate->seen);
	return note(gate, time_ns, text);
}

/* What the closed gate leaves out. Notes are about the recording, not of a time. */
static int take_closed(struct terra_gate *gate, struct terra_event *event)
{
	if (event->type == TERRA_EVENT_NOTE)
		return terra_trace_write(gate->writer, event);
	event->seq = UINT64_MAX;
	return gate->seen >= gate->limits.start_after ? open_gate(gate, event->time_ns) : 0;
}

static int take_open(struct terra_gate *gate, struct terra_event *event)
{
	/* Its enter was left out. */
	if (event->type == TERRA_EVENT_OP_EXIT && event->enter_seq == UINT64_MAX) {
		event->seq = UINT64_MAX;
		return 0;
	}
	if (!gate->begin_ns && event->type != TERRA_EVENT_NOTE)
		gate->begin_ns = event->time_ns;
	return terra_trace_write(gate->writer, event);
}

/* What is not compressed yet counts in full, until that would be too much. A failed flush is the next write's error. */
static bool is_full(const struct terra_gate *gate)
{
	uint64_t most = gate->limits.max_bytes;

	if (!most || gate->limits.flight_ns || terra_trace_size(gate->writer) + END_BYTES <= most)
		return false;
	terra_trace_flush(gate->writer);
	return terra_trace_size(gate->writer) + 2 * END_BYTES > most;
}

int terra_gate_take(void *context, struct terra_event *event)
{
	struct terra_gate *gate = context;
	uint64_t iterations = gate->limits.iterations;
	int error;

	if (gate->reason)
		return -ECANCELED;
	error = count_iterations(gate, event);
	if (!error)
		error = gate->open ? take_open(gate, event) : take_closed(gate, event);
	if (error)
		return error;
	if (iterations && terra_gate_iterations(gate) >= iterations)
		return stop(gate, event->time_ns, BY_ITERATIONS);
	if (is_full(gate))
		return stop(gate, event->time_ns, BY_MAX_SIZE);
	return terra_gate_time(gate, event->time_ns);
}

int terra_gate_time(struct terra_gate *gate, uint64_t now_ns)
{
	if (gate->reason)
		return -ECANCELED;
	if (!gate->limits.duration_ns || !gate->begin_ns || now_ns < gate->begin_ns + gate->limits.duration_ns)
		return 0;
	return stop(gate, now_ns, BY_DURATION);
}

int terra_gate_finish(struct terra_gate *gate, uint64_t now_ns)
{
	char text[160];

	if (gate->open)
		return 0;
	snprintf(text, sizeof(text),
		 "nothing was recorded: %" PRIu64 " of the %" PRIu64 " iterations to be skipped were seen", gate->seen,
		 gate->limits.start_after);
	return note(gate, now_ns, text);
}
