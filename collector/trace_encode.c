/* trace_encode.c - one event to the records of a block (docs/trace-format.md, "Records"). */
#include "collector/trace_encode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void put_u8(struct trace_buffer *buffer, uint8_t v)
{
	if (trace_buffer_reserve(buffer, 1))
		buffer->data[buffer->size++] = v;
}

static void put_varint(struct trace_buffer *buffer, uint64_t v)
{
	if (!trace_buffer_reserve(buffer, 10))
		return;
	for (; v >= 0x80; v >>= 7)
		buffer->data[buffer->size++] = (uint8_t)(v | 0x80);
	buffer->data[buffer->size++] = (uint8_t)v;
}

static void put_signed(struct trace_buffer *buffer, int64_t v)
{
	put_varint(buffer, trace_zigzag(v));
}

static void put_double(struct trace_buffer *buffer, double v)
{
	uint8_t bytes[8];
	uint64_t bits;

	memcpy(&bits, &v, sizeof(bits));
	trace_put64(bytes, bits);
	trace_buffer_put(buffer, bytes, sizeof(bytes));
}

/* Appends a whole record to the block; on -ENOMEM and -E2BIG nothing is appended. */
static int put_record(struct trace_encoder *encoder, uint8_t type, const void *body, size_t size)
{
	struct trace_buffer *raw = &encoder->raw;

	if (size > TRACE_RECORD_MAX || raw->size + size + 11 > TRACE_BLOCK_MAX)
		return -E2BIG;
	if (!trace_buffer_reserve(raw, size + 11))
		return -ENOMEM;
	put_u8(raw, type);
	put_varint(raw, size);
	trace_buffer_put(raw, body, size);
	return 0;
}

/* Numbers are per block and start at 1; 0 is "none". */
static int define(struct trace_encoder *encoder, struct trace_intern *intern, struct trace_intern_entry *entry,
		  uint8_t type, const void *body, size_t size)
{
	int err = put_record(encoder, type, body, size);

	if (err)
		return err;
	entry->epoch = encoder->epoch;
	entry->local = ++intern->n_local;
	return 0;
}

static int string_id(struct trace_encoder *encoder, const char *string, uint32_t *id)
{
	struct trace_intern_entry *entry;
	size_t size;

	*id = 0;
	if (!string)
		return 0;
	size = strlen(string);
	if (size > TRACE_STRING_MAX)
		return -E2BIG;
	entry = trace_intern_get(&encoder->strings, string, size);
	if (!entry)
		return -ENOMEM;
	if (entry->epoch != encoder->epoch) {
		int err = define(encoder, &encoder->strings, entry, TRACE_RECORD_STRING, string, size + 1);

		if (err)
			return err;
	}
	*id = entry->local;
	return 0;
}

/* Key of an op: both names with their terminators. */
static int op_id(struct trace_encoder *encoder, struct terra_event *event, uint32_t *id)
{
	struct trace_buffer *key = &encoder->key;
	const char *overload = event->overload ? event->overload : "";
	struct trace_intern_entry *entry;
	uint32_t name_id, overload_id;
	int err;

	if (!event->op)
		return -EINVAL;
	err = string_id(encoder, event->op, &name_id);
	if (!err)
		err = string_id(encoder, overload, &overload_id);
	if (err)
		return err;
	key->size = 0;
	trace_buffer_put(key, event->op, strlen(event->op) + 1);
	trace_buffer_put(key, overload, strlen(overload) + 1);
	entry = key->failed ? NULL : trace_intern_get(&encoder->ops, key->data, key->size);
	if (!entry)
		return -ENOMEM;
	event->op_index = (uint32_t)(entry - encoder->ops.entries);
	if (entry->epoch != encoder->epoch) {
		key->size = 0;
		put_varint(key, event->op_index);
		put_varint(key, name_id);
		put_varint(key, overload_id);
		err = key->failed ? -ENOMEM
				  : define(encoder, &encoder->ops, entry, TRACE_RECORD_OP, key->data, key->size);
		if (err)
			return err;
	}
	*id = entry->local;
	return 0;
}

/* A stack's key is its content, not the block's string numbers, which the next block gives anew. */
static int stack_key(struct trace_encoder *encoder, const struct terra_event *event)
{
	struct trace_buffer *key = &encoder->key;

	key->size = 0;
	for (uint32_t i = 0; i < event->n_frames; i++) {
		const struct terra_frame *frame = &event->frames[i];
		const char *names[2] = {frame->file, frame->function};

		for (int n = 0; n < 2; n++) {
			put_u8(key, names[n] != NULL);
			trace_buffer_put(key, names[n] ? names[n] : "", names[n] ? strlen(names[n]) + 1 : 0);
		}
		put_signed(key, frame->line);
	}
	return key->failed ? -ENOMEM : 0;
}

static int define_stack(struct trace_encoder *encoder, const struct terra_event *event, uint32_t entry)
{
	struct trace_buffer *body = &encoder->key;

	body->size = 0;
	put_varint(body, event->n_frames);
	for (uint32_t i = 0; i < event->n_frames; i++) {
		uint32_t file, function;
		int err = string_id(encoder, event->frames[i].file, &file);

		if (!err)
			err = string_id(encoder, event->frames[i].function, &function);
		if (err)
			return err;
		put_varint(body, file);
		put_varint(body, function);
		put_signed(body, event->frames[i].line);
	}
	if (body->failed)
		return -ENOMEM;
	return define(encoder, &encoder->stacks, &encoder->stacks.entries[entry], TRACE_RECORD_STACK, body->data,
		      body->size);
}

static int stack_id(struct trace_encoder *encoder, const struct terra_event *event, uint32_t *id)
{
	struct trace_intern_entry *entry;
	uint32_t index;
	int err;

	if (event->n_frames > TRACE_FRAMES_MAX)
		return -E2BIG;
	err = stack_key(encoder, event);
	if (err)
		return err;
	entry = trace_intern_get(&encoder->stacks, encoder->key.data, encoder->key.size);
	if (!entry)
		return -ENOMEM;
	index = (uint32_t)(entry - encoder->stacks.entries);
	if (entry->epoch != encoder->epoch) {
		err = define_stack(encoder, event, index);
		if (err)
			return err;
	}
	*id = encoder->stacks.entries[index].local;
	return 0;
}

/* Values. */

static void put_tensor(struct trace_buffer *body, const struct terra_tensor *t)
{
	int dims = t->ndim < TERRA_MAX_DIM ? t->ndim : TERRA_MAX_DIM;

	put_u8(body, t->defined ? 1 : 0);
	if (!t->defined)
		return;
	put_u8(body, t->ndim);
	put_u8(body, (uint8_t)t->dtype);
	put_u8(body, (uint8_t)t->device_type);
	put_u8(body, (uint8_t)t->device_index);
	put_u8(body, t->requires_grad);
	put_varint(body, t->impl);
	put_varint(body, t->storage);
	put_varint(body, t->storage_data);
	put_signed(body, (int64_t)(t->data - t->storage_data));
	put_varint(body, t->storage_bytes);
	put_signed(body, t->numel);
	put_signed(body, t->storage_offset);
	for (int i = 0; i < dims; i++)
		put_signed(body, t->size[i]);
	for (int i = 0; i < dims; i++)
		put_signed(body, t->stride[i]);
}

static int put_scalar(struct trace_buffer *body, const struct terra_value *value)
{
	put_u8(body, value->scalar_tag);
	switch (value->scalar_tag) {
	case 'f':
		put_double(body, value->u.d);
		return 0;
	case 'z':
		put_double(body, value->u.z[0]);
		put_double(body, value->u.z[1]);
		return 0;
	case 'i':
	case 'b':
		put_signed(body, value->u.i);
		return 0;
	case 's':
	case '?':
		return 0;
	default:
		return -EINVAL;
	}
}

static int put_string(struct trace_buffer *body, const struct terra_value *value)
{
	uint32_t size = value->recorded && value->recorded < value->count ? value->recorded : value->count;

	if (size && !value->u.string)
		return -EINVAL;
	if (size > TRACE_RECORD_MAX)
		return -E2BIG;
	put_varint(body, value->count);
	put_varint(body, size);
	trace_buffer_put(body, value->u.string, size);
	put_u8(body, 0);
	return 0;
}

static int put_list_scalar(struct trace_buffer *body, const struct terra_value *value)
{
	put_u8(body, value->present);
	return value->present ? put_scalar(body, value) : 0;
}

static int put_list(struct trace_buffer *body, const struct terra_value *value, enum trace_form form,
		    uint32_t *elements)
{
	int err = 0;

	if (value->recorded > value->count || (value->recorded && !value->u.tensors))
		return -EINVAL;
	if (value->recorded > TRACE_ELEMENTS_MAX - *elements)
		return -E2BIG;
	*elements += value->recorded;
	put_varint(body, value->count);
	put_varint(body, value->recorded);
	for (uint32_t i = 0; i < value->recorded && !err; i++) {
		if (form == TRACE_FORM_TENSORS)
			put_tensor(body, &value->u.tensors[i]);
		else if (form == TRACE_FORM_INTS)
			put_signed(body, value->u.ints[i]);
		else if (form == TRACE_FORM_DOUBLES)
			put_double(body, value->u.doubles[i]);
		else
			err = put_list_scalar(body, &value->u.scalars[i]);
	}
	return err;
}

static int put_value(struct trace_buffer *body, const struct terra_value *value, uint32_t *elements)
{
	enum trace_form form = trace_form_of(value->kind);

	if (form == TRACE_FORM_UNKNOWN)
		return -EINVAL;
	put_u8(body, value->kind);
	put_u8(body, value->present);
	if (!value->present)
		return 0;
	switch (form) {
	case TRACE_FORM_INT:
		put_signed(body, value->u.i);
		return 0;
	case TRACE_FORM_DOUBLE:
		put_double(body, value->u.d);
		return 0;
	case TRACE_FORM_SCALAR:
		return put_scalar(body, value);
	case TRACE_FORM_TENSOR:
		if (!value->u.tensor)
			return -EINVAL;
		put_tensor(body, value->u.tensor);
		return 0;
	case TRACE_FORM_STRING:
		return put_string(body, value);
	default:
		return put_list(body, value, form, elements);
	}
}

static int put_values(struct trace_buffer *body, const struct terra_event *event)
{
	uint32_t elements = 0;
	int err = 0;

	if (event->n_values > TRACE_VALUES_MAX)
		return -E2BIG;
	put_varint(body, event->n_values);
	for (uint32_t i = 0; i < event->n_values && !err; i++)
		err = put_value(body, &event->values[i], &elements);
	return err;
}

/* Events. */

/* Distances instead of positions: they hold whatever happens to other blocks. 0 is "none". */
static int put_distance(struct trace_buffer *body, uint64_t seq, uint64_t to)
{
	if (to != UINT64_MAX && to >= seq)
		return -EINVAL;
	put_varint(body, to == UINT64_MAX ? 0 : seq - to);
	return 0;
}

/* The number plus 1, modulo 2^64: that of an accumulating Node is all ones, and short so. */
static int put_autograd(struct trace_buffer *body, const struct terra_event *event, uint64_t seq)
{
	put_varint(body, event->node + 1);
	return event->type == TERRA_EVENT_OP_ENTER ? put_distance(body, seq, event->forward_seq) : 0;
}

static int put_op_event(struct trace_encoder *encoder, struct terra_event *event, uint64_t seq)
{
	struct trace_buffer *body = &encoder->body;
	uint32_t op, stack = 0;
	uint8_t flags = 0;
	int err;

	err = op_id(encoder, event, &op);
	if (!err && event->n_frames)
		err = stack_id(encoder, event, &stack);
	if (err)
		return err;
	flags |= event->raised ? TRACE_FLAG_RAISED : 0;
	flags |= event->keyset ? TRACE_FLAG_KEYSET : 0;
	flags |= stack ? TRACE_FLAG_STACK : 0;
	flags |= event->autograd ? TRACE_FLAG_AUTOGRAD : 0;
	put_u8(body, flags);
	put_u8(body, event->level);
	put_varint(body, op);
	if (event->keyset)
		put_varint(body, event->keyset);
	if (stack)
		put_varint(body, stack);
	if (event->autograd)
		err = put_autograd(body, event, seq);
	if (err)
		return err;
	err = put_distance(body, seq, event->type == TERRA_EVENT_OP_EXIT ? event->enter_seq : event->parent_seq);
	return err ? err : put_values(body, event);
}

/* GPU activities. */

/* 0 is "none". */
static void put_device(struct trace_buffer *body, uint32_t device)
{
	put_varint(body, device == TERRA_GPU_NO_DEVICE ? 0 : (uint64_t)device + 1);
}

static void put_kernel(struct trace_buffer *body, const struct terra_gpu *gpu)
{
	for (int i = 0; i < 3; i++)
		put_varint(body, gpu->grid[i]);
	for (int i = 0; i < 3; i++)
		put_varint(body, gpu->block[i]);
	put_varint(body, gpu->static_shared);
	put_varint(body, gpu->dynamic_shared);
	put_varint(body, gpu->registers);
}

static void put_memcpy(struct trace_buffer *body, const struct terra_gpu *gpu)
{
	put_u8(body, gpu->copy_kind);
	put_u8(body, gpu->source_kind);
	put_u8(body, gpu->target_kind);
	put_varint(body, gpu->bytes);
	put_device(body, gpu->source_device);
	put_device(body, gpu->target_device);
}

static void put_memset(struct trace_buffer *body, const struct terra_gpu *gpu)
{
	put_u8(body, gpu->target_kind);
	put_varint(body, gpu->bytes);
	put_varint(body, gpu->value);
}

static void put_gpu_details(struct trace_buffer *body, const struct terra_gpu *gpu)
{
	switch (gpu->kind) {
	case TERRA_GPU_KERNEL:
		put_kernel(body, gpu);
		break;
	case TERRA_GPU_MEMCPY:
		put_memcpy(body, gpu);
		break;
	case TERRA_GPU_MEMSET:
		put_memset(body, gpu);
		break;
	case TERRA_GPU_RUNTIME:
	case TERRA_GPU_DRIVER:
	case TERRA_GPU_OVERHEAD:
		put_varint(body, gpu->function);
		put_varint(body, gpu->result);
		break;
	case TERRA_GPU_LINK:
		put_varint(body, gpu->external);
		break;
	}
}

static uint8_t gpu_flags(const struct terra_gpu *gpu)
{
	uint8_t flags = gpu->untimed ? TRACE_GPU_UNTIMED : 0;

	if (gpu->op_seq == UINT64_MAX)
		return flags;
	if (gpu->linked == TERRA_GPU_BY_EXTERNAL_ID)
		flags |= TRACE_GPU_BY_EXTERNAL_ID;
	else if (gpu->linked == TERRA_GPU_BY_TIME)
		flags |= TRACE_GPU_BY_TIME;
	return flags;
}

static int put_gpu(struct trace_encoder *encoder, const struct terra_event *event, uint64_t seq)
{
	struct trace_buffer *body = &encoder->body;
	const struct terra_gpu *gpu = event->gpu;
	uint32_t name;
	int err;

	if (!gpu || gpu->kind == 0 || gpu->kind >= TERRA_GPU_KIND_END)
		return -EINVAL;
	err = string_id(encoder, gpu->name, &name);
	if (err)
		return err;
	put_u8(body, gpu->kind);
	put_u8(body, gpu_flags(gpu));
	put_varint(body, name);
	put_varint(body, gpu->duration_ns);
	put_varint(body, gpu->correlation);
	err = put_distance(body, seq, gpu->op_seq);
	put_device(body, gpu->device);
	put_varint(body, gpu->context);
	put_varint(body, gpu->stream);
	put_varint(body, gpu->graph);
	put_varint(body, gpu->graph_node);
	put_gpu_details(body, gpu);
	return err;
}

static int put_note(struct trace_buffer *body, const struct terra_event *event)
{
	if (!event->text)
		return -EINVAL;
	trace_buffer_put(body, event->text, strlen(event->text) + 1);
	return 0;
}

static int put_function_event(struct trace_encoder *encoder, const struct terra_event *event, uint64_t seq)
{
	const char *strings[3] = {event->text, event->op, event->overload};
	struct trace_buffer *body = &encoder->body;
	uint32_t ids[3], stack = 0;
	int err = event->text ? 0 : -EINVAL;

	for (int i = 0; i < 3 && !err; i++)
		err = string_id(encoder, strings[i], &ids[i]);
	if (!err && event->n_frames)
		err = stack_id(encoder, event, &stack);
	if (err)
		return err;
	for (int i = 0; i < 3; i++)
		put_varint(body, ids[i]);
	put_varint(body, stack);
	err = put_distance(body, seq, event->parent_seq);
	return err ? err : put_values(body, event);
}

static int put_event(struct trace_encoder *encoder, struct terra_event *event, uint64_t seq)
{
	struct trace_buffer *body = &encoder->body;

	put_varint(body, event->thread);
	put_signed(body, (int64_t)(event->time_ns - encoder->last_time));
	switch (event->type) {
	case TERRA_EVENT_OP_ENTER:
	case TERRA_EVENT_OP_EXIT:
		return put_op_event(encoder, event, seq);
	case TERRA_EVENT_LOST:
		put_varint(body, event->lost);
		return 0;
	case TERRA_EVENT_NOTE:
		return put_note(body, event);
	case TERRA_EVENT_GPU:
		return put_gpu(encoder, event, seq);
	case TERRA_EVENT_HOST_READ:
	case TERRA_EVENT_CALL:
		return put_function_event(encoder, event, seq);
	default:
		return -EINVAL;
	}
}

int trace_encode(struct trace_encoder *encoder, struct terra_event *event, uint64_t seq)
{
	int err;

	if (encoder->n_events == 0)
		encoder->base_time = encoder->last_time = event->time_ns;
	encoder->body.size = 0;
	err = put_event(encoder, event, seq);
	if (!err && encoder->body.failed)
		err = -ENOMEM;
	if (!err)
		err = put_record(encoder, (uint8_t)(TRACE_RECORD_EVENT + event->type), encoder->body.data,
				 encoder->body.size);
	encoder->body.failed = encoder->key.failed = encoder->raw.failed = false;
	if (err)
		return err;
	encoder->last_time = event->time_ns;
	encoder->n_events++;
	event->seq = seq;
	return 0;
}

void trace_encoder_begin(struct trace_encoder *encoder, uint64_t first_seq)
{
	encoder->raw.size = 0;
	encoder->n_events = 0;
	encoder->first_seq = first_seq;
	encoder->epoch++;
	encoder->strings.n_local = encoder->ops.n_local = encoder->stacks.n_local = 0;
}

void trace_encoder_init(struct trace_encoder *encoder)
{
	memset(encoder, 0, sizeof(*encoder));
	trace_encoder_begin(encoder, 0);
}

void trace_encoder_free(struct trace_encoder *encoder)
{
	trace_intern_free(&encoder->strings);
	trace_intern_free(&encoder->ops);
	trace_intern_free(&encoder->stacks);
	free(encoder->raw.data);
	free(encoder->body.data);
	free(encoder->key.data);
}
