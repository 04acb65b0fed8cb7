/* gpu_link.h - which op launched which GPU activity.
 *
 * An activity and the call that asked for it have the same correlation number. The op of a call is found in two ways: by the
 * external id that the recorder in the same process gave CUPTI, which is the time of the op's OP_ENTER; and by the call's
 * thread and begin: the innermost op that was open there then. The first goes before the second; where both are there and
 * differ, that is counted.
 *
 * Only an op that is known to have been open counts. When one was left that has no exit, or that an exception left, nobody saw:
 * it was open until the last event inside it, and what was launched later is said to be of the op around it.
 *
 * First all ops, then all calls and links, then gpu_linker_ready; from then on activities can be asked about, calls too.
 */
#ifndef TERRA_COLLECTOR_GPU_LINK_H
#define TERRA_COLLECTOR_GPU_LINK_H

#include "collector/trace.h"

struct gpu_linker;

struct gpu_link_counts {
	uint64_t by_external_id, by_time, without; /* activities of devices, not calls */
	uint64_t calls;  /* whose begin is known */
	uint64_t differ; /* calls for which the two ways name different ops */
};

struct gpu_linker *gpu_linker_new(void);
void gpu_linker_free(struct gpu_linker *linker);
/* OP_ENTER and OP_EXIT in the order of the trace; others are passed over. 0 or -ENOMEM. */
int gpu_linker_op(struct gpu_linker *linker, const struct terra_event *event);
/* GPU events: calls and links are kept. 0 or -ENOMEM. */
int gpu_linker_call(struct gpu_linker *linker, const struct terra_event *event);
void gpu_linker_ready(struct gpu_linker *linker);
/* Fills op_seq and linked of the event's gpu. */
void gpu_linker_find(struct gpu_linker *linker, struct terra_event *event);
/* When the activity was asked for: the begin of its call, or of itself when there is no call. 0: not known. */
uint64_t gpu_linker_asked_ns(const struct gpu_linker *linker, const struct terra_event *event);
const struct gpu_link_counts *gpu_linker_counts(const struct gpu_linker *linker);

/* The two ways alone: an op's seq, or UINT64_MAX. */
uint64_t gpu_linker_by_time(const struct gpu_linker *linker, uint32_t thread, uint64_t time_ns);
/* `thread` 0: any, if only one has such an op. `time_ns` 0: not known; then an op counts whose end was seen. */
uint64_t gpu_linker_by_external_id(const struct gpu_linker *linker, uint32_t thread, uint64_t id, uint64_t time_ns);

#endif
