/* export_gpu.h - GPU activity in timelines: its order, its track and what is said of it; private to the exports.
 *
 * A trace has GPU activity in no order of time. A window of bounded size sorts what is near to each other; what overlaps on one
 * track then, or comes later still, gets a further track of that name, so that slices never cross.
 */
#ifndef TERRA_COLLECTOR_EXPORT_GPU_H
#define TERRA_COLLECTOR_EXPORT_GPU_H

#include "collector/export_text.h"

/* The category of HOST_READs and CALLs. */
#define EXPORT_BESIDE "beside ops"

struct export_gpu_tracks {
	struct trace_intern keys; /* of groups and tracks; the number of one is its place, from 1 */
	struct trace_buffer ends; /* uint64_t by number: when what is on the track is over */
};

struct export_gpu_place {
	uint32_t track;
	uint32_t group;	 /* the device; 0: calls and overhead, which belong to the process */
	uint32_t thread; /* of a call */
	bool track_is_new, group_is_new;
	char track_name[80], group_name[24];
};

void export_gpu_free(struct export_gpu_tracks *tracks);
/* 0 or -ENOMEM. */
int export_gpu_place(struct export_gpu_tracks *tracks, const struct terra_event *event, struct export_gpu_place *place);

bool export_gpu_has_track(const struct terra_gpu *gpu);
bool export_gpu_is_call(const struct terra_gpu *gpu);
/* A call or what it asked for: the ends of an arrow. */
bool export_gpu_is_joined(const struct terra_gpu *gpu);
const char *export_gpu_category(const struct terra_gpu *gpu);
/* NULL when memory ran out. */
const char *export_gpu_name(struct export_text *text, const struct terra_gpu *gpu);
void export_gpu_pairs(const struct terra_event *event, export_pair pair, void *context);

/* Gives walk->writer->gpu what is old enough. 0 or -ENOMEM. */
int export_window_add(struct export_walk *walk, const struct terra_event *event);
int export_window_flush(struct export_walk *walk);
void export_window_free(struct export_window *window);

#endif
