/* report_gpu.h - GPU activity in a report. */
#ifndef TERRA_COLLECTOR_REPORT_GPU_H
#define TERRA_COLLECTOR_REPORT_GPU_H

#include <stdio.h>

#include "collector/report_json.h"
#include "collector/trace.h"

struct report_gpu_sum {
	const char *name; /* of an op, of a kernel (mangled), "memcpy host to device" */
	uint8_t kind;     /* enum terra_gpu_kind, of one of them */
	uint64_t count, total_ns, bytes;
};

/* Work is kernels, copies, sets and whole graphs. Lists are sorted by time. */
struct report_gpu_sums {
	struct report_gpu_sum all, without_op, calls, overhead;
	struct report_gpu_sum *ops, *works; /* by innermost op that launched it; by what it is */
	uint32_t n_ops, n_works;
};

struct gpu_report;

struct gpu_report *gpu_report_new(void);
void gpu_report_free(struct gpu_report *report);
/* Every event of a trace, in its order. 0 or -ENOMEM. */
int gpu_report_add(struct gpu_report *report, const struct terra_event *event);
/* Once, after the last event; valid until the report is freed. */
const struct report_gpu_sums *gpu_report_finish(struct gpu_report *report);

/* Nothing, or null, without GPU activity. */
void report_gpu_print(const struct report_gpu_sums *sums, unsigned int top, FILE *out);
void report_gpu_json(const struct report_gpu_sums *sums, struct json *json);

/* One event, without what all events have. */
void report_gpu_print_event(const struct terra_gpu *gpu, FILE *out);
void report_gpu_json_event(const struct terra_gpu *gpu, struct json *json);

const char *gpu_kind_name(unsigned int kind);
const char *gpu_copy_name(unsigned int kind); /* CUPTI's kind of copy: "host to device" */
/* Of a mangled name, to be freed; NULL: it stays as it is. */
char *gpu_demangled(const char *name);

#endif
