/* report.h - what terra-report says about a trace: a summary gathered in one pass, and the events one by one. */
#ifndef TERRA_COLLECTOR_REPORT_H
#define TERRA_COLLECTOR_REPORT_H

#include <stdio.h>

#include "collector/iterations.h"
#include "collector/report_gpu.h"
#include "collector/report_json.h"
#include "collector/trace.h"

/* All calls of one op. Times are nanoseconds and include what recording cost. */
struct summary_kind {
	const char *op;
	const char *overload;
	uint64_t calls;
	uint64_t redispatches;
	uint64_t raised;
	uint64_t self_ns;  /* enter to exit without the ops inside */
	uint64_t total_ns; /* with them; ops inside another of the same kind count once */
};

/* Where the program called ops that no other op encloses. */
struct summary_site {
	struct terra_frame frame;  /* innermost */
	struct terra_frame caller; /* nearest frame outside of installed packages; file NULL when that is `frame` */
	uint64_t calls;
	uint64_t total_ns;
};

struct summary_thread {
	uint32_t thread;
	uint64_t ops;
	uint64_t total_ns; /* inside ops */
};

struct summary_note {
	const char *text;
	uint64_t count;
};

#define SUMMARY_DAMAGE_KEPT 8

struct terra_summary {
	const struct terra_trace_info *info; /* the reader's */
	uint64_t events;
	uint64_t calls, redispatches, raised;
	uint64_t unfinished; /* entered, and no exit in the trace */
	uint64_t without_stack; /* outermost ops without a Python stack */
	uint64_t first_ns, last_ns;
	uint64_t lost, missing;
	bool ended_cleanly;
	uint64_t n_damage; /* places */
	char *damage[SUMMARY_DAMAGE_KEPT]; /* messages of the first of them */
	struct summary_kind *kinds;     /* most self time first */
	uint32_t n_kinds;
	struct summary_site *sites;     /* most time first */
	uint32_t n_sites;
	struct summary_thread *threads; /* most ops first */
	uint32_t n_threads;
	struct summary_note *notes;     /* in order of appearance */
	uint32_t n_notes;
	struct summary_note *others;    /* reads of memory and ops run past the entry points, in order of appearance */
	uint32_t n_others;
	bool has_iterations;
	struct terra_iterations iterations;
	uint64_t median_ns; /* of the iterations; 0 unknown */
	const struct report_gpu_sums *gpu;
	struct summary_state *state; /* private: backs the strings */
};

/* Reads the trace to its end, passing over damage. The reader must outlive the summary. Returns 0 or -ENOMEM. */
int terra_summary_new(struct terra_trace_reader *reader, struct terra_summary **out);
void terra_summary_free(struct terra_summary *summary);

/* Text for people; lists stop after `top` entries. */
void terra_summary_print(const struct terra_summary *summary, const char *path, unsigned int top, FILE *out);
/* The members of a JSON object that the caller opens and closes; lists are complete. */
void terra_summary_json(const struct terra_summary *summary, const char *path, struct json *json);

/* Every event as a line: text, or JSON with everything that the trace holds. *damaged becomes true when the trace has
 * damage or did not end cleanly. Returns 0, or -errno when reading cannot go on. */
int terra_trace_dump(struct terra_trace_reader *reader, bool as_json, FILE *out, bool *damaged);

/* "float32"; a number that has no name here is written to the buffer. */
#define REPORT_DTYPE_SIZE 32
const char *report_dtype_name(int64_t dtype, char buffer[REPORT_DTYPE_SIZE]);

/* FILE:LINE FUNCTION; of files of installed packages the part from the package on. */
void report_print_frame(const struct terra_frame *frame, FILE *out);

/* A string of a trace without what could drive a terminal: control characters become '?'. */
void report_print_plain(const char *s, FILE *out);

#endif
