/* iterations.h - where the iterations of a program begin and end, found by the period of its op stream.
 *
 * Nobody marks iterations. A training or inference loop issues nearly the same ops again and again, after a prefix
 * (initialisation, first steps that differ) and with small additions now and then (a loss printed every ten steps).
 * Ops are compared by identity: op, overload, level and shapes of the arguments, without values that change.
 */
#ifndef TERRA_COLLECTOR_ITERATIONS_H
#define TERRA_COLLECTOR_ITERATIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "collector/trace.h"

/* Identity of an OP_ENTER. With `shapes`, two calls with other sizes or dtypes are two ops. */
uint64_t terra_op_identity(const struct terra_event *event, bool shapes);

struct terra_iteration {
	uint64_t begin; /* [begin, end) */
	uint64_t end;
};

struct terra_iterations {
	struct terra_iteration *items; /* in order; gaps between them are other work, for example an evaluation */
	uint32_t n;
	uint32_t steady;  /* index of the one that stands for all: its ops are the most frequent sequence */
	uint64_t period;  /* ops of the steady iteration */
	bool shapes;      /* false: shapes change from iteration to iteration and were left out of the comparison */
	uint32_t thread;  /* terra_op_stream_iterations: whose ops these are */
};

/* Finds the period of a sequence of identities; begin and end are positions in it. Needs two whole iterations.
 * Returns 0, -ENOENT when the sequence does not repeat, or -ENOMEM. `out` is freed with terra_iterations_free. */
int terra_iterations_find(const uint64_t *ids, size_t n, struct terra_iterations *out);
void terra_iterations_free(struct terra_iterations *iterations);

/* The op stream of a trace: feed every event, then ask. */
struct terra_op_stream;

struct terra_op_stream *terra_op_stream_new(void);
void terra_op_stream_free(struct terra_op_stream *stream);
/* Takes OP_ENTER, ignores the rest. Returns 0 or -ENOMEM. */
int terra_op_stream_add(struct terra_op_stream *stream, const struct terra_event *event);
/* Iterations of the main thread (`pid`; another if that one does little): begin and end are seqs of the trace, begin
 * that of an op that no other op encloses. Returns as terra_iterations_find. */
int terra_op_stream_iterations(const struct terra_op_stream *stream, uint32_t pid, struct terra_iterations *out);

/* While the program runs. A loop over layers or parameters looks like a loop over iterations as long as it lasts, so
 * nothing is reported before `min_ops` ops: TERRA_ITERATION_MIN_OPS is more than such loops have. */
#define TERRA_ITERATION_MIN_OPS 8192

struct terra_iteration_finder;

struct terra_iteration_finder *terra_iteration_finder_new(size_t min_ops);
void terra_iteration_finder_free(struct terra_iteration_finder *finder);
/* Takes the next op of the main thread. Returns how many iterations are complete so far, which never goes down;
 * -ENOMEM. */
int64_t terra_iteration_finder_feed(struct terra_iteration_finder *finder, uint64_t id);

#endif
