/* trace_append.h - going on behind the events that a finished trace has; private to what merges GPU activity. */
#ifndef TERRA_COLLECTOR_TRACE_APPEND_H
#define TERRA_COLLECTOR_TRACE_APPEND_H

#include "collector/trace_format.h"

/* Where a trace ends. */
struct trace_tail {
	uint64_t file_id;
	uint64_t end; /* bytes: behind the last complete block of events */
	uint32_t next_block;
	uint64_t next_seq;
	uint64_t lost;
	bool clean; /* an end block follows */
};

/* Of a reader that has come to the end without meeting damage. */
struct trace_tail trace_reader_tail(const struct terra_trace_reader *reader);

/* A writer that goes on there; what lies behind the last complete block is cut off, the end block too. 0 or -errno with a
 * message in err; then the file is as it was. */
int trace_writer_append(const char *path, const struct trace_tail *tail, struct terra_trace_writer **out, char *err,
			size_t err_size);
/* As terra_trace_finish, without an end marker: the recording that it goes on with ended abnormally. */
int trace_writer_leave(struct terra_trace_writer *writer);

#endif
