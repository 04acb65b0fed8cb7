/* consume.h - raw records (probes/record.h) to events (collector/trace.h); common to both backends.
 *
 * Enters and exits are paired by thread and stack pointer. The stack grows down, so an op that is still running has its
 * return address above that of everything it called; an event at the same address or above says that the op is over.
 * An op that ended without an EXIT record was left by an exception ("raised"), unless its way out is one that nobody
 * sees (has_exit 0), or records of its thread are missing. A CATCH record says when; where there is none, the op is over
 * with the next event at its address or above, and what is called from deeper until then counts as inside it.
 *
 * Values that could not be read have `present` 0 and the kind without "optional" (OPT_DOUBLE becomes DOUBLE), OPAQUE
 * for a generator; an absent optional keeps its kind. So present 0 of a kind that is no optional means "not readable".
 */
#ifndef TERRA_COLLECTOR_CONSUME_H
#define TERRA_COLLECTOR_CONSUME_H

#include "collector/pystack_layout.h"
#include "collector/trace.h"
#include "probes/offsets.h"
#include "probes/record.h"

struct terra_consumer;

struct terra_consumer_stats {
	uint64_t events;    /* given to the sink */
	uint64_t lost;       /* records that producers made and that never came, and lost_exits */
	uint64_t lost_exits; /* that came without their enter, once something had been lost; they are left out */
	uint64_t unmatched;  /* exits without an enter before that: the op was running when recording began */
	uint64_t damaged;   /* records that contradict themselves; none in a sound recording */
};

struct terra_consumer_options {
	const struct terra_op_table *table;     /* op names */
	const struct terra_op_layout *layouts;  /* table->n_ops of them */
	const struct terra_offsets *offsets;    /* element sizes */
	/* Takes an event and sets event->seq. A nonzero return ends the consumer: every later call returns it. */
	int (*sink)(void *ctx, struct terra_event *event);
	void *sink_ctx;
	/* Fills *frame for an entry of a call stack; NULL: no stacks. Its strings are to live as long as the consumer. */
	int (*resolve)(void *ctx, const struct pystack_entry *entry, struct terra_frame *frame);
	void *resolve_ctx;
	/* The path of the module that a call stack of that time is in; NULL: in none, or not known. Gets resolve_ctx, and the
	 * string is to live as long. NULL: no module paths. */
	const char *(*module)(void *ctx, const struct pystack_entry *entries, uint32_t n, uint64_t time_ns);
};

/* The options are copied, what they point to is borrowed. NULL when out of memory. */
struct terra_consumer *terra_consumer_new(const struct terra_consumer_options *options);
void terra_consumer_free(struct terra_consumer *consumer);

/* One chunk, in the order in which its producer made it. Returns 0, -ENOMEM, or the sink's error. A damaged record is
 * dropped and counted. */
int terra_consumer_record(struct terra_consumer *consumer, const struct terra_record *record);

/* `n` records are missing here on `thread` (0: on an unknown thread) that no seq tells of. */
int terra_consumer_lost(struct terra_consumer *consumer, uint32_t thread, uint64_t n, uint64_t time_ns);

/* A remark in the stream. */
int terra_consumer_note(struct terra_consumer *consumer, const char *text, uint64_t time_ns);

const struct terra_consumer_stats *terra_consumer_stats(const struct terra_consumer *consumer);

/* A sink that writes to a struct terra_trace_writer, its ctx. */
int terra_consumer_write(void *writer, struct terra_event *event);

#endif
