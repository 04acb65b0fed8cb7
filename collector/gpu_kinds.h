/* gpu_kinds.h - which GPU activity is recorded: the words of terra-trace --gpu, which are those of TERRA_GPU_KINDS too. */
#ifndef TERRA_COLLECTOR_GPU_KINDS_H
#define TERRA_COLLECTOR_GPU_KINDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	TERRA_GPU_WANT_KERNELS = 1,
	TERRA_GPU_WANT_MEMCPY = 2,
	TERRA_GPU_WANT_MEMSET = 4,
	TERRA_GPU_WANT_RUNTIME = 8,
	TERRA_GPU_WANT_DRIVER = 16,
	TERRA_GPU_WANT_OVERHEAD = 32,
	TERRA_GPU_WANT_GRAPHS = 64, /* CUDA graphs as a whole: CUPTI then leaves out their kernels */
};

#define TERRA_GPU_DEFAULT "kernels,memcpy,memset,runtime,driver,overhead"

/* From "kernels,memcpy": words joined by commas, "none" for nothing. False for a word that is none of them, which starts at
 * *wrong. */
bool terra_gpu_parse_kinds(const char *text, uint32_t *kinds, const char **wrong);

#endif
