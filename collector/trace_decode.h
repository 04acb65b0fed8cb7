/* trace_decode.h - the records of one block to events, private to the trace reader. */
#ifndef TERRA_COLLECTOR_TRACE_DECODE_H
#define TERRA_COLLECTOR_TRACE_DECODE_H

#include "collector/trace_format.h"

struct trace_cursor {
	const uint8_t *p;
	const uint8_t *end;
	bool bad; /* something was read beyond the end or did not fit; sticky */
};

struct trace_arena; /* memory of one event */

struct trace_local_op {
	uint32_t index;
	uint32_t name;
	uint32_t overload;
};

struct trace_local_stack {
	uint32_t first; /* in `frames` */
	uint32_t n;
};

/* What one block defined so far, and where its records are. Strings point into the block. */
struct trace_decoder {
	struct trace_cursor records;
	uint64_t seq; /* of the next event */
	uint64_t end_seq;
	uint64_t time;
	const char **strings;
	uint32_t n_strings, strings_capacity;
	struct trace_local_op *ops;
	uint32_t n_ops, ops_capacity;
	struct trace_local_stack *stacks;
	uint32_t n_stacks, stacks_capacity;
	struct terra_frame *frames;
	uint32_t n_frames, frames_capacity;
	struct trace_arena *arena;
	uint32_t elements; /* list elements of the current event so far */
};

int trace_decoder_init(struct trace_decoder *decoder);
void trace_decoder_free(struct trace_decoder *decoder);
/* `raw` must stay as it is until the next begin: strings are not copied. */
void trace_decoder_begin(struct trace_decoder *decoder, const uint8_t *raw, size_t size, uint64_t first_seq,
			 uint32_t n_events, uint64_t base_time);
/* 1: *event was filled, valid until the next call; 0: the block's end; -EBADMSG: the rest of the block makes no
 * sense; -ENOMEM. */
int trace_decode(struct trace_decoder *decoder, struct terra_event *event);

#endif
