/* export.h - a trace as a file that other tools open (docs/export.md).
 *
 * The trace is read once, and what is kept of it is the ops that are open; the two formats with dependencies, chakra
 * and json, also keep what is known of each address that held a tensor. Timelines sort GPU activity in a window of bounded
 * size; chakra keeps 8 bytes per event in a temporary file.
 */
#ifndef TERRA_COLLECTOR_EXPORT_H
#define TERRA_COLLECTOR_EXPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "collector/trace.h"

enum terra_export_format {
	TERRA_EXPORT_PERFETTO, /* protobuf of TrackEvents, for Perfetto */
	TERRA_EXPORT_CHROME,   /* JSON of Chrome's trace event format */
	TERRA_EXPORT_CHAKRA,   /* MLCommons Chakra execution trace, a stream of protobufs */
	TERRA_EXPORT_JSON,     /* everything, as lines of JSON (docs/export-json.md) */
	TERRA_EXPORT_COUNT,
};

/* "perfetto", ...; NULL when there is no such format. */
const char *terra_export_name(unsigned int format);
bool terra_export_is_binary(enum terra_export_format format);

/* What was written, and what could not be. */
struct terra_export_result {
	uint64_t ops;
	uint64_t open;		/* of them, not over when the trace ends */
	uint64_t without_exit;	/* of them, over, but their exit is not in the trace */
	uint64_t without_enter; /* exits of ops that are not in the trace; not written */
	uint64_t unknown;	/* events of types that no format knows; not written */
	uint64_t left_out;	/* GPU activities that the format has no place for, as timelines for those without times */
	uint64_t n_damage;	/* places where the trace is damaged */
	uint64_t lost, missing; /* terra_trace_lost, terra_trace_missing */
	bool ended_cleanly;
};

/* Reads the trace to its end, passing over damage, which the output names where the format has a place for it. Returns
 * 0, -ENOMEM, or -errno of a failed write. */
int terra_export(struct terra_trace_reader *reader, enum terra_export_format format, FILE *out,
		 struct terra_export_result *result);

#endif
