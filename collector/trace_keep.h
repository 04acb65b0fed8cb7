/* trace_keep.h - the last blocks of a trace in memory, private to the trace writer: a flight recorder. */
#ifndef TERRA_COLLECTOR_TRACE_KEEP_H
#define TERRA_COLLECTOR_TRACE_KEEP_H

#include <stddef.h>
#include <stdint.h>

#include "collector/trace.h"

struct trace_keep;

/* NULL when out of memory. */
struct trace_keep *trace_keep_new(const struct terra_trace_info *info, uint64_t keep_ns, uint64_t keep_bytes);
void trace_keep_free(struct trace_keep *keep);

/* The file's header, which comes first. 0 or -ENOMEM. */
int trace_keep_header(struct trace_keep *keep, const uint8_t *bytes, size_t size);
/* A block, whose last event was at `time_ns`; blocks that are too old by then, or too many, are dropped. */
int trace_keep_block(struct trace_keep *keep, const uint8_t *bytes, size_t size, uint64_t time_ns);
/* A note is about the recording, and stays when its block is dropped. */
int trace_keep_note(struct trace_keep *keep, const char *text);

/* Writes what is kept as a trace of its own: notes, then the events of the last keep_ns before `time_ns`. The file
 * appears at once, in place of one that is there; *counts (may be NULL) is what it holds. 0 or -errno with a message. */
int trace_keep_write(const struct trace_keep *keep, uint64_t time_ns, const char *path, struct terra_trace_counts *counts,
		     char *err, size_t err_size);

#endif
