/* gpu_session.h - GPU activity for terra-trace: the environment in which CUDA loads libterra_cupti.so into the program, and
 * what becomes of the files that it writes, TRACE.gpu.PID. */
#ifndef TERRA_COLLECTOR_GPU_SESSION_H
#define TERRA_COLLECTOR_GPU_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Changes the environment of this process, which the program is started with. `output` is the absolute path of the trace;
 * `kinds` as in gpu_kinds.h, NULL: the usual ones, where that can be had. 0; a text in `remark` ("" else) is for people.
 * -EINVAL for wrong words and -ENOENT where activity was asked for and the library is not there, with the text in `remark`. */
int terra_gpu_prepare(const char *output, const char *kinds, char *remark, size_t size);

/* Puts all TRACE.gpu.PID into the traces of their processes, TRACE or TRACE.PID, and removes them. What can't be put there stays
 * and is said by `say`. `recorded_only`: see gpu_merge.h. */
void terra_gpu_collect(const char *output, bool recorded_only, void (*say)(const char *text));

/* After the recording of a process that ran already: the part of its GPU activity that belongs to the trace is put there,
 * if the library was in it from its start; else, if it uses CUDA, a note that says so. */
void terra_gpu_attached(pid_t pid, const char *trace, void (*say)(const char *text));

#endif
