/* trace_encode.h - one event to records, private to the trace writer. */
#ifndef TERRA_COLLECTOR_TRACE_ENCODE_H
#define TERRA_COLLECTOR_TRACE_ENCODE_H

#include "collector/trace_format.h"
#include "collector/trace_intern.h"

/* State of the block that is being filled. */
struct trace_encoder {
	struct trace_buffer raw;  /* records of the block */
	struct trace_buffer body; /* body of the record in the making */
	struct trace_buffer key;
	struct trace_intern strings;
	struct trace_intern ops;
	struct trace_intern stacks;
	uint32_t epoch;
	uint32_t n_events;
	uint64_t first_seq;
	uint64_t base_time;
	uint64_t last_time;
};

void trace_encoder_init(struct trace_encoder *encoder);
void trace_encoder_free(struct trace_encoder *encoder);
/* Begins an empty block whose first event will be `first_seq`. */
void trace_encoder_begin(struct trace_encoder *encoder, uint64_t first_seq);
/* Appends the event as number `seq` and fills event->seq and event->op_index. On an error (-EINVAL: an event that
 * contradicts itself, -E2BIG: beyond the format's limits, -ENOMEM) the block holds no new event but may hold unused
 * definitions or, after -ENOMEM, half a record: cut `raw` back to its size before and write the block out. */
int trace_encode(struct trace_encoder *encoder, struct terra_event *event, uint64_t seq);

#endif
