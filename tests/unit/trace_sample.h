/* trace_sample.h - sample events, deep comparison and file helpers for the tests of the trace format. */
#ifndef TERRA_TESTS_TRACE_SAMPLE_H
#define TERRA_TESTS_TRACE_SAMPLE_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "collector/trace.h"
#include "tests/unit/gpu_sample.h"

#define SAMPLE_UNUSED __attribute__((unused))

struct sample_bytes {
	uint8_t *data;
	size_t size;
};

static SAMPLE_UNUSED struct sample_bytes sample_read_file(const char *path)
{
	struct sample_bytes bytes = {0};
	struct stat st;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || fstat(fd, &st) != 0)
		abort();
	bytes.size = (size_t)st.st_size;
	bytes.data = malloc(bytes.size + 1);
	if (!bytes.data || read(fd, bytes.data, bytes.size) != (ssize_t)bytes.size)
		abort();
	close(fd);
	return bytes;
}

static SAMPLE_UNUSED void sample_write_file(const char *path, const void *data, size_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		abort();
	close(fd);
}

/* A folder of its own per test program, removed by sample_tmp_remove. */
static char sample_tmp_dir[64];

static SAMPLE_UNUSED int sample_tmp_create(void **state)
{
	snprintf(sample_tmp_dir, sizeof(sample_tmp_dir), "/tmp/terra-trace-XXXXXX");
	return mkdtemp(sample_tmp_dir) ? 0 : -1;
}

static SAMPLE_UNUSED const char *sample_tmp(const char *name)
{
	static char path[4][128];
	static unsigned int next;
	char *p = path[next++ % 4];

	snprintf(p, sizeof(path[0]), "%s/%s", sample_tmp_dir, name);
	return p;
}

static SAMPLE_UNUSED int sample_tmp_remove(void **state)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf %s", sample_tmp_dir);
	return system(command);
}

static SAMPLE_UNUSED const struct terra_trace_info *sample_info(void)
{
	static const struct terra_trace_info info = {
		.backend = "preload",
		.command = "python train.py --epochs 3",
		.library = "/usr/lib/libtorch_cpu.so",
		.build_id = "0123456789abcdef0123456789abcdef01234567",
		.cpu = "Some CPU, AVX2 FMA",
		.pid = 4242,
		.threads = 2,
		.start_ns = 1234567890123456789u,
	};

	return &info;
}

static SAMPLE_UNUSED struct terra_tensor sample_tensor(uint64_t seed)
{
	struct terra_tensor t = {
		.impl = 0x7f0000001000 + seed * 192,
		.storage = 0x7f0000100000 + seed * 64,
		.storage_data = 0x7f1000000000 + seed * 4096,
		.storage_bytes = 4 * 12 * (seed + 1),
		.numel = (int64_t)(12 * (seed + 1)),
		.storage_offset = (int64_t)(seed % 3),
		.size = {(int64_t)(seed + 1), 3, 4},
		.stride = {12, 4, 1},
		.ndim = 3,
		.dtype = 6,
		.device_type = 0,
		.device_index = -1,
		.requires_grad = seed & 1,
		.defined = 1,
	};

	t.data = t.storage_data + 4 * (uint64_t)t.storage_offset;
	return t;
}

static SAMPLE_UNUSED bool same_string(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

static SAMPLE_UNUSED bool same_tensor(const struct terra_tensor *a, const struct terra_tensor *b)
{
	int dims = a->ndim < TERRA_MAX_DIM ? a->ndim : TERRA_MAX_DIM;

	if (a->defined != b->defined)
		return false;
	if (!a->defined)
		return true;
	return a->impl == b->impl && a->storage == b->storage && a->data == b->data &&
	       a->storage_data == b->storage_data && a->storage_bytes == b->storage_bytes && a->numel == b->numel &&
	       a->storage_offset == b->storage_offset && a->ndim == b->ndim && a->dtype == b->dtype &&
	       a->device_type == b->device_type && a->device_index == b->device_index &&
	       a->requires_grad == b->requires_grad && memcmp(a->size, b->size, sizeof(int64_t) * dims) == 0 &&
	       memcmp(a->stride, b->stride, sizeof(int64_t) * dims) == 0;
}

static SAMPLE_UNUSED bool same_scalar(const struct terra_value *a, const struct terra_value *b)
{
	if (a->present != b->present)
		return false;
	if (!a->present)
		return true;
	if (a->scalar_tag != b->scalar_tag)
		return false;
	if (a->scalar_tag == 'z')
		return memcmp(a->u.z, b->u.z, sizeof(a->u.z)) == 0;
	if (a->scalar_tag == 's' || a->scalar_tag == '?')
		return true;
	return a->u.i == b->u.i; /* the bits, of doubles too */
}

static SAMPLE_UNUSED bool same_list(const struct terra_value *a, const struct terra_value *b)
{
	if (a->count != b->count || a->recorded != b->recorded)
		return false;
	for (uint32_t i = 0; i < a->recorded; i++) {
		bool same;

		switch (a->kind) {
		case TERRA_KIND_TENSOR_LIST:
		case TERRA_KIND_ITENSOR_LIST:
		case TERRA_KIND_OPT_TENSOR_LIST:
			same = same_tensor(&a->u.tensors[i], &b->u.tensors[i]);
			break;
		case TERRA_KIND_SCALAR_LIST:
			same = same_scalar(&a->u.scalars[i], &b->u.scalars[i]);
			break;
		default:
			same = a->u.ints[i] == b->u.ints[i];
		}
		if (!same)
			return false;
	}
	return true;
}

static SAMPLE_UNUSED bool same_value(const struct terra_value *a, const struct terra_value *b)
{
	if (a->kind != b->kind || a->present != b->present)
		return false;
	if (!a->present)
		return true;
	switch (a->kind) {
	case TERRA_KIND_TENSOR:
	case TERRA_KIND_OPT_TENSOR:
		return same_tensor(a->u.tensor, b->u.tensor);
	case TERRA_KIND_SCALAR:
	case TERRA_KIND_OPT_SCALAR:
		return same_scalar(a, b);
	case TERRA_KIND_STRING:
	case TERRA_KIND_OPT_STRING: {
		uint32_t recorded = a->recorded ? a->recorded : a->count;

		return a->count == b->count && recorded == b->recorded && b->u.string[recorded] == 0 &&
		       memcmp(a->u.string, b->u.string, recorded) == 0;
	}
	case TERRA_KIND_TENSOR_LIST:
	case TERRA_KIND_ITENSOR_LIST:
	case TERRA_KIND_OPT_TENSOR_LIST:
	case TERRA_KIND_SCALAR_LIST:
	case TERRA_KIND_INT_LIST:
	case TERRA_KIND_OPT_INT_LIST:
	case TERRA_KIND_SYMINT_LIST:
	case TERRA_KIND_OPT_SYMINT_LIST:
	case TERRA_KIND_BOOL_ARRAY:
	case TERRA_KIND_DOUBLE_LIST:
	case TERRA_KIND_OPT_DOUBLE_LIST:
		return same_list(a, b);
	default:
		return a->u.i == b->u.i;
	}
}

static SAMPLE_UNUSED bool same_frames(const struct terra_event *a, const struct terra_event *b)
{
	if (a->n_frames != b->n_frames)
		return false;
	for (uint32_t i = 0; i < a->n_frames; i++)
		if (!same_string(a->frames[i].file, b->frames[i].file) ||
		    !same_string(a->frames[i].function, b->frames[i].function) ||
		    a->frames[i].line != b->frames[i].line)
			return false;
	return true;
}

static SAMPLE_UNUSED bool same_op_event(const struct terra_event *a, const struct terra_event *b)
{
	if (a->level != b->level || a->raised != b->raised || !same_string(a->op, b->op) ||
	    !same_string(a->overload, b->overload) || a->op_index != b->op_index || a->keyset != b->keyset ||
	    a->n_values != b->n_values)
		return false;
	if (a->type == TERRA_EVENT_OP_ENTER ? a->parent_seq != b->parent_seq : a->enter_seq != b->enter_seq)
		return false;
	if (a->autograd != b->autograd || (a->autograd && a->node != b->node))
		return false;
	if (a->autograd && a->type == TERRA_EVENT_OP_ENTER && a->forward_seq != b->forward_seq)
		return false;
	for (uint32_t i = 0; i < a->n_values; i++)
		if (!same_value(&a->values[i], &b->values[i]))
			return false;
	return same_frames(a, b);
}

static SAMPLE_UNUSED bool same_function_event(const struct terra_event *a, const struct terra_event *b)
{
	if (!same_string(a->text, b->text) || !same_string(a->op, b->op) || !same_string(a->overload, b->overload) ||
	    a->n_values != b->n_values || a->parent_seq != b->parent_seq)
		return false;
	return (a->n_values == 0 || same_value(&a->values[0], &b->values[0])) && same_frames(a, b);
}

/* What was written against what was read. */
static SAMPLE_UNUSED bool same_event(const struct terra_event *a, const struct terra_event *b)
{
	if (a->type != b->type || a->seq != b->seq || a->thread != b->thread || a->time_ns != b->time_ns)
		return false;
	if (a->type == TERRA_EVENT_LOST)
		return a->lost == b->lost;
	if (a->type == TERRA_EVENT_NOTE)
		return same_string(a->text, b->text);
	if (a->type == TERRA_EVENT_GPU)
		return same_gpu(a->gpu, b->gpu);
	if (a->type == TERRA_EVENT_HOST_READ || a->type == TERRA_EVENT_CALL)
		return same_function_event(a, b);
	return same_op_event(a, b);
}

/* Event `i` of an endless, varied but fixed stream: enters and exits of a few ops with all sorts of values, a note and
 * a loss now and then. The memory is static and holds until the next call. */
static SAMPLE_UNUSED struct terra_event *sample_event(uint64_t i)
{
	static const char *const ops[] = {"aten::mul", "aten::addmm", "aten::relu_", "aten::_foreach_add_"};
	static struct terra_tensor tensors[5];
	static struct terra_value values[5];
	static struct terra_frame frames[3];
	static int64_t ints[3];
	static char text[64];
	static struct terra_gpu gpu;
	static struct terra_event event;

	for (int t = 0; t < 5; t++)
		tensors[t] = sample_tensor((i / 2 + (uint64_t)t) % 7);
	tensors[4] = (struct terra_tensor){.dtype = -1, .device_type = -1};
	for (int n = 0; n < 3; n++) {
		ints[n] = (int64_t)(i * 7 + (uint64_t)n) - 3;
		frames[n] = (struct terra_frame){.file = n == 2 ? "/usr/lib/python3/torch/nn/module.py" : "train.py",
						 .function = n == 0 ? "forward" : "step",
						 .line = 10 + n + (int32_t)(i % 5)};
	}
	event = (struct terra_event){
		.type = i % 2 ? TERRA_EVENT_OP_EXIT : TERRA_EVENT_OP_ENTER,
		.level = i % 4 < 2 ? TERRA_LEVEL_CALL : TERRA_LEVEL_REDISPATCH,
		.raised = i % 16 == 15,
		.thread = 100 + i % 3,
		.time_ns = 1000000 + i * 1700,
		.seq = i,
		.parent_seq = i % 8 == 2 ? i - 1 : UINT64_MAX,
		.enter_seq = i % 2 ? i - 1 : UINT64_MAX,
		.op = ops[i / 2 % 4],
		.overload = i / 2 % 4 == 0 ? "Tensor" : "",
		.op_index = (uint32_t)(i / 2 % 4),
		.keyset = i % 4 < 2 ? 0 : 0x8000000000000001u + i,
		.autograd = i % 7 > 4,
		.node = i % 7 == 5 ? i : UINT64_MAX,
		.forward_seq = i % 7 == 5 ? i / 2 : UINT64_MAX,
		.values = values,
		.frames = frames,
		.n_frames = i % 2 ? 0 : (uint32_t)(i % 4),
	};
	values[0] = (struct terra_value){.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &tensors[0]};
	values[1] = (struct terra_value){
		.kind = TERRA_KIND_TENSOR_LIST, .present = 1, .count = 9, .recorded = 4, .u.tensors = &tensors[1]};
	values[2] = (struct terra_value){
		.kind = TERRA_KIND_SCALAR, .present = 1, .scalar_tag = 'f', .u.d = 0.5 * (double)i};
	values[3] = (struct terra_value){
		.kind = TERRA_KIND_INT_LIST, .present = 1, .count = 3, .recorded = 3, .u.ints = ints};
	values[4] = (struct terra_value){
		.kind = TERRA_KIND_STRING, .present = 1, .count = 4, .recorded = 4, .u.string = (char *)"mean"};
	event.n_values = i % 2 ? 1 : 1 + (uint32_t)(i / 2 % 5);
	if (i % 23 == 21) {
		snprintf(text, sizeof(text), "note %d: no stack for thread %d", (int)i, (int)(i % 3));
		event = (struct terra_event){.type = TERRA_EVENT_NOTE, .thread = 7, .time_ns = event.time_ns, .seq = i,
					     .text = text};
	} else if (i % 23 == 22) {
		event = (struct terra_event){.type = TERRA_EVENT_LOST, .thread = 0, .time_ns = event.time_ns, .seq = i,
					     .lost = i};
	} else if (i % 23 == 20) {
		gpu = gpu_sample_full((uint8_t)(1 + i / 23 % (TERRA_GPU_KIND_END - 1)));
		gpu.op_seq = i > 40 ? i - 30 : UINT64_MAX;
		gpu.linked = i > 40 ? TERRA_GPU_BY_TIME : TERRA_GPU_BY_NOTHING;
		event = (struct terra_event){.type = TERRA_EVENT_GPU, .thread = i % 3, .time_ns = event.time_ns, .seq = i,
					     .gpu = &gpu};
	}
	return &event;
}

/* `n` sample events; a block ends after every `per_block` of them (0: only where the writer wants). */
static SAMPLE_UNUSED int sample_write_trace(const char *path, uint64_t n, uint64_t per_block)
{
	struct terra_trace_writer *writer;
	int err = terra_trace_create(path, sample_info(), &writer, NULL, 0);

	if (err)
		return err;
	for (uint64_t i = 0; i < n && !err; i++) {
		err = terra_trace_write(writer, sample_event(i));
		if (!err && per_block && (i + 1) % per_block == 0)
			err = terra_trace_flush(writer);
	}
	if (err) {
		terra_trace_finish(writer);
		return err;
	}
	return terra_trace_finish(writer);
}

#endif
