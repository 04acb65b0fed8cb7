/* gpu_merge.h - puts the GPU activity of a process into the trace of its ops, each with the op that launched it. */
#ifndef TERRA_COLLECTOR_GPU_MERGE_H
#define TERRA_COLLECTOR_GPU_MERGE_H

#include <stdbool.h>
#include <stddef.h>

struct terra_gpu_merge_options {
	bool recorded_only; /* the recording was of a part of the program: leave out what was asked for before the first event of
			     * the trace or after the last */
	bool running;       /* the program goes on, and so does the file */
};

/* Appends the events of the file `gpu`, which libterra_cupti.so wrote, to the trace; both are of one process. A trace that is damaged, or files that do not belong together, are left as they
 * are: -EINVAL. 0 or -errno with a message in err. */
int terra_gpu_merge(const char *trace, const char *gpu, const struct terra_gpu_merge_options *options, char *err,
		    size_t err_size);

/* Appends a note to a trace that is finished. As above. */
int terra_gpu_note(const char *trace, const char *text, char *err, size_t err_size);

#endif
