/* cupti_walk.h - a buffer of CUPTI's activity records to events of a trace. */
#ifndef TERRA_COLLECTOR_CUPTI_WALK_H
#define TERRA_COLLECTOR_CUPTI_WALK_H

#include "collector/cupti/cupti_layout.h"
#include "collector/trace.h"

/* External ids of ours: the program's own profiler uses the first two of the kinds that are free. */
#define CUPTI_OUR_EXTERNAL_KIND CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM2

struct cupti_walk {
	const struct cupti_api *api;
	const struct cupti_layouts *layouts;
	int64_t clock_offset; /* CUPTI's clock minus CLOCK_MONOTONIC */
	/* The event and what it points to hold during the call. An error, negative, ends the walk. */
	int (*sink)(void *ctx, struct terra_event *event);
	void *ctx;
	/* What was not understood, over all buffers */
	uint64_t unread[CUPTI_KINDS]; /* records of a layout that is not known */
	uint64_t others;              /* records of kinds that were not asked for */
	uint64_t unwalked_bytes;      /* behind a record that could not be passed, or of one that was cut */
	uint64_t unwalked_buffers;
	char long_name[4096]; /* a name that was cut */
	uint64_t last_ns;     /* of the last record with times: stands in where there are none */
};

/* 0, or the sink's error. Everything that is not understood is counted and passed over. */
int cupti_walk_buffer(struct cupti_walk *walk, uint8_t *buffer, size_t size);

/* CUPTI's name of a kind, for people. */
const char *cupti_kind_name(unsigned int kind);

#endif
