/* gpu_sample.h - a small recording of ops and GPU activity, as both would be in their files. Recorded, not executed. */
#ifndef TERRA_TESTS_GPU_SAMPLE_H
#define TERRA_TESTS_GPU_SAMPLE_H

#include <stdio.h>
#include <string.h>

#include "collector/trace.h"

#define GPU_SAMPLE_UNUSED __attribute__((unused))

static GPU_SAMPLE_UNUSED struct terra_gpu gpu_sample(uint8_t kind, uint64_t correlation)
{
	return (struct terra_gpu){ .kind = kind, .correlation = correlation, .op_seq = UINT64_MAX,
				   .device = TERRA_GPU_NO_DEVICE, .source_device = TERRA_GPU_NO_DEVICE,
				   .target_device = TERRA_GPU_NO_DEVICE };
}

static GPU_SAMPLE_UNUSED struct terra_event gpu_event(struct terra_gpu *gpu, uint32_t thread, uint64_t time_ns)
{
	return (struct terra_event){ .type = TERRA_EVENT_GPU, .thread = thread, .time_ns = time_ns, .gpu = gpu,
				     .parent_seq = UINT64_MAX, .enter_seq = UINT64_MAX };
}

/* One of each kind, with all its fields set. */
static GPU_SAMPLE_UNUSED struct terra_gpu gpu_sample_full(uint8_t kind)
{
	struct terra_gpu gpu = gpu_sample(kind, 70 + kind);

	gpu.name = kind == TERRA_GPU_GRAPH ? NULL : "_Z5scalePfi";
	gpu.duration_ns = 1000 + kind;
	gpu.device = kind % 3;
	gpu.context = 1;
	gpu.stream = 7;
	gpu.graph = 3;
	gpu.graph_node = 0x300000001;
	if (kind == TERRA_GPU_KERNEL) {
		gpu.grid[0] = 128, gpu.grid[1] = 2, gpu.grid[2] = 1;
		gpu.block[0] = 256, gpu.block[1] = 1, gpu.block[2] = 4;
		gpu.static_shared = 1024, gpu.dynamic_shared = 49152, gpu.registers = 40;
	} else if (kind == TERRA_GPU_MEMCPY) {
		gpu.copy_kind = 10, gpu.source_kind = 3, gpu.target_kind = 3, gpu.bytes = 1ull << 33;
		gpu.source_device = 0, gpu.target_device = 1;
	} else if (kind == TERRA_GPU_MEMSET) {
		gpu.target_kind = 3, gpu.bytes = 4096, gpu.value = 0xffffffff;
	} else if (kind == TERRA_GPU_LINK) {
		gpu.external = UINT64_MAX;
	} else if (kind != TERRA_GPU_GRAPH) {
		gpu.function = 7 << 16, gpu.result = 700;
	}
	return gpu;
}

static GPU_SAMPLE_UNUSED bool same_gpu(const struct terra_gpu *a, const struct terra_gpu *b)
{
	return a->kind == b->kind && a->untimed == b->untimed && a->linked == b->linked &&
	       (a->name && b->name ? !strcmp(a->name, b->name) : a->name == b->name) && a->duration_ns == b->duration_ns &&
	       a->op_seq == b->op_seq && a->correlation == b->correlation && a->device == b->device &&
	       a->context == b->context && a->stream == b->stream && a->graph == b->graph && a->graph_node == b->graph_node &&
	       !memcmp(a->grid, b->grid, sizeof(a->grid)) && !memcmp(a->block, b->block, sizeof(a->block)) &&
	       a->static_shared == b->static_shared && a->dynamic_shared == b->dynamic_shared && a->registers == b->registers &&
	       a->bytes == b->bytes && a->value == b->value && a->copy_kind == b->copy_kind &&
	       a->source_kind == b->source_kind && a->target_kind == b->target_kind && a->source_device == b->source_device &&
	       a->target_device == b->target_device && a->function == b->function && a->result == b->result &&
	       a->external == b->external;
}

#endif
