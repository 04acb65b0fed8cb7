/* trace_decode.c - the records of a block to events. They are not trusted: checksums find accidents, not malice. */
#include "collector/trace_decode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Memory of one event: chunks, so that pointers stay valid while it grows; the first chunk is kept. */
#define ARENA_CHUNK (64u << 10)

struct arena_chunk {
	struct arena_chunk *next;
	size_t used, size;
	_Alignas(16) uint8_t data[];
};

struct trace_arena {
	struct arena_chunk *chunks; /* the newest first */
};

static bool arena_grow(struct trace_arena *arena, size_t size)
{
	size_t capacity = size > ARENA_CHUNK ? size : ARENA_CHUNK;
	struct arena_chunk *chunk = malloc(sizeof(*chunk) + capacity);

	if (!chunk)
		return false;
	*chunk = (struct arena_chunk){.next = arena->chunks, .size = capacity};
	arena->chunks = chunk;
	return true;
}

static void *arena_alloc(struct trace_arena *arena, size_t count, size_t each)
{
	size_t size = (count * each + 15) & ~(size_t)15;
	struct arena_chunk *chunk = arena->chunks;
	void *p;

	if (!chunk || chunk->size - chunk->used < size) {
		if (!arena_grow(arena, size))
			return NULL;
		chunk = arena->chunks;
	}
	p = chunk->data + chunk->used;
	chunk->used += size;
	return memset(p, 0, size);
}

static void arena_reset(struct trace_arena *arena)
{
	while (arena->chunks && arena->chunks->next) {
		struct arena_chunk *next = arena->chunks->next;

		free(arena->chunks);
		arena->chunks = next;
	}
	if (arena->chunks)
		arena->chunks->used = 0;
}

/* Reading numbers. */

static size_t left(const struct trace_cursor *c)
{
	return (size_t)(c->end - c->p);
}

static const uint8_t *get_bytes(struct trace_cursor *c, uint64_t size)
{
	const uint8_t *p = c->p;

	if (c->bad || size > left(c)) {
		c->bad = true;
		return NULL;
	}
	c->p += size;
	return p;
}

static uint8_t get_u8(struct trace_cursor *c)
{
	const uint8_t *p = get_bytes(c, 1);

	return p ? *p : 0;
}

static uint64_t get_varint(struct trace_cursor *c)
{
	uint64_t v = 0;

	for (int shift = 0; shift < 64; shift += 7) {
		uint8_t byte = get_u8(c);

		if (shift == 63 && byte > 1)
			break;
		v |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return v;
	}
	c->bad = true;
	return 0;
}

static uint32_t get_varint32(struct trace_cursor *c)
{
	uint64_t v = get_varint(c);

	if (v > UINT32_MAX)
		c->bad = true;
	return c->bad ? 0 : (uint32_t)v;
}

static int64_t get_signed(struct trace_cursor *c)
{
	return trace_unzigzag(get_varint(c));
}

static double get_double(struct trace_cursor *c)
{
	const uint8_t *p = get_bytes(c, 8);
	uint64_t bits = p ? trace_get64(p) : 0;
	double v;

	memcpy(&v, &bits, sizeof(v));
	return v;
}

/* The rest of the record as a string; its last byte must be its only NUL. */
static const char *get_tail_string(struct trace_cursor *c)
{
	size_t size = left(c);
	const uint8_t *p = get_bytes(c, size);

	if (!p || size == 0 || memchr(p, 0, size) != p + size - 1) {
		c->bad = true;
		return NULL;
	}
	return (const char *)p;
}

/* Definitions. */

static void *grow(void *array, uint32_t *capacity, uint32_t need, size_t each)
{
	uint32_t n = *capacity ? *capacity : 64;
	void *larger;

	if (need <= *capacity)
		return array;
	while (n < need)
		n *= 2;
	larger = realloc(array, n * each);
	if (larger)
		*capacity = n;
	return larger;
}

static int define_string(struct trace_decoder *d, struct trace_cursor *c)
{
	const char *string = get_tail_string(c);
	void *array = grow(d->strings, &d->strings_capacity, d->n_strings + 1, sizeof(*d->strings));

	if (!array)
		return -ENOMEM;
	d->strings = array;
	if (c->bad || c->p - (const uint8_t *)string > TRACE_STRING_MAX + 1)
		return -EBADMSG;
	d->strings[d->n_strings++] = string;
	return 0;
}

/* String 0 is NULL. */
static const char *string_at(struct trace_decoder *d, struct trace_cursor *c, uint32_t id)
{
	if (id > d->n_strings)
		c->bad = true;
	return c->bad || id == 0 ? NULL : d->strings[id - 1];
}

static int define_op(struct trace_decoder *d, struct trace_cursor *c)
{
	void *array = grow(d->ops, &d->ops_capacity, d->n_ops + 1, sizeof(*d->ops));
	struct trace_local_op *op;

	if (!array)
		return -ENOMEM;
	d->ops = array;
	op = &d->ops[d->n_ops];
	op->index = get_varint32(c);
	op->name = get_varint32(c);
	op->overload = get_varint32(c);
	if (!string_at(d, c, op->name) || !string_at(d, c, op->overload))
		return -EBADMSG;
	d->n_ops++;
	return 0;
}

static int define_stack(struct trace_decoder *d, struct trace_cursor *c)
{
	uint32_t n = get_varint32(c);
	void *array = grow(d->stacks, &d->stacks_capacity, d->n_stacks + 1, sizeof(*d->stacks));

	if (!array)
		return -ENOMEM;
	d->stacks = array;
	if (c->bad || n > TRACE_FRAMES_MAX || n > left(c) / 3)
		return -EBADMSG;
	array = grow(d->frames, &d->frames_capacity, d->n_frames + n + 1, sizeof(*d->frames));
	if (!array)
		return -ENOMEM;
	d->frames = array;
	for (uint32_t i = 0; i < n; i++) {
		struct terra_frame *frame = &d->frames[d->n_frames + i];

		frame->file = string_at(d, c, get_varint32(c));
		frame->function = string_at(d, c, get_varint32(c));
		frame->line = (int32_t)get_signed(c);
	}
	if (c->bad)
		return -EBADMSG;
	d->stacks[d->n_stacks++] = (struct trace_local_stack){.first = d->n_frames, .n = n};
	d->n_frames += n;
	return 0;
}

/* Values. */

static void get_tensor(struct trace_cursor *c, struct terra_tensor *t)
{
	int dims;

	t->defined = get_u8(c);
	if (t->defined > 1)
		c->bad = true;
	if (!t->defined) {
		t->dtype = t->device_type = -1;
		return;
	}
	t->ndim = get_u8(c);
	t->dtype = (int8_t)get_u8(c);
	t->device_type = (int8_t)get_u8(c);
	t->device_index = (int8_t)get_u8(c);
	t->requires_grad = get_u8(c);
	t->impl = get_varint(c);
	t->storage = get_varint(c);
	t->storage_data = get_varint(c);
	t->data = t->storage_data + (uint64_t)get_signed(c);
	t->storage_bytes = get_varint(c);
	t->numel = get_signed(c);
	t->storage_offset = get_signed(c);
	dims = t->ndim < TERRA_MAX_DIM ? t->ndim : TERRA_MAX_DIM;
	for (int i = 0; i < dims; i++)
		t->size[i] = get_signed(c);
	for (int i = 0; i < dims; i++)
		t->stride[i] = get_signed(c);
}

static void get_scalar(struct trace_cursor *c, struct terra_value *value)
{
	value->scalar_tag = get_u8(c);
	switch (value->scalar_tag) {
	case 'f':
		value->u.d = get_double(c);
		break;
	case 'z':
		value->u.z[0] = get_double(c);
		value->u.z[1] = get_double(c);
		break;
	case 'i':
	case 'b':
		value->u.i = get_signed(c);
		break;
	case 's':
	case '?':
		break;
	default:
		c->bad = true;
	}
}

static int get_string(struct trace_decoder *d, struct trace_cursor *c, struct terra_value *value)
{
	const uint8_t *p;

	value->count = get_varint32(c);
	value->recorded = get_varint32(c);
	p = get_bytes(c, (uint64_t)value->recorded + 1);
	if (!p || value->recorded > value->count || p[value->recorded] != 0)
		return -EBADMSG;
	value->u.string = arena_alloc(d->arena, value->recorded + 1, 1);
	if (!value->u.string)
		return -ENOMEM;
	memcpy(value->u.string, p, value->recorded);
	return 0;
}

static void get_element(struct trace_cursor *c, struct terra_value *value, enum trace_form form, uint32_t i)
{
	struct terra_value *scalar;

	if (form == TRACE_FORM_TENSORS) {
		get_tensor(c, &value->u.tensors[i]);
	} else if (form == TRACE_FORM_INTS) {
		value->u.ints[i] = get_signed(c);
	} else if (form == TRACE_FORM_DOUBLES) {
		value->u.doubles[i] = get_double(c);
	} else {
		scalar = &value->u.scalars[i];
		scalar->kind = TERRA_KIND_SCALAR;
		scalar->present = get_u8(c);
		if (scalar->present)
			get_scalar(c, scalar);
	}
}

static int get_list(struct trace_decoder *d, struct trace_cursor *c, struct terra_value *value, enum trace_form form)
{
	static const size_t each[] = {
		[TRACE_FORM_TENSORS] = sizeof(struct terra_tensor),
		[TRACE_FORM_INTS] = sizeof(int64_t),
		[TRACE_FORM_DOUBLES] = sizeof(double),
		[TRACE_FORM_SCALARS] = sizeof(struct terra_value),
	};

	value->count = get_varint32(c);
	value->recorded = get_varint32(c);
	/* Every element takes a byte at least: a claim beyond that must not be believed with an allocation. */
	if (c->bad || value->recorded > value->count || value->recorded > left(c) ||
	    value->recorded > TRACE_ELEMENTS_MAX - d->elements)
		return -EBADMSG;
	d->elements += value->recorded;
	value->u.tensors = arena_alloc(d->arena, value->recorded, each[form]);
	if (!value->u.tensors)
		return -ENOMEM;
	for (uint32_t i = 0; i < value->recorded && !c->bad; i++)
		get_element(c, value, form, i);
	return 0;
}

static int get_value(struct trace_decoder *d, struct trace_cursor *c, struct terra_value *value)
{
	enum trace_form form;

	value->kind = get_u8(c);
	value->present = get_u8(c);
	form = trace_form_of(value->kind);
	if (c->bad || form == TRACE_FORM_UNKNOWN)
		return -EBADMSG;
	if (!value->present)
		return 0;
	switch (form) {
	case TRACE_FORM_INT:
		value->u.i = get_signed(c);
		return 0;
	case TRACE_FORM_DOUBLE:
		value->u.d = get_double(c);
		return 0;
	case TRACE_FORM_SCALAR:
		get_scalar(c, value);
		return 0;
	case TRACE_FORM_TENSOR:
		value->u.tensor = arena_alloc(d->arena, 1, sizeof(struct terra_tensor));
		if (!value->u.tensor)
			return -ENOMEM;
		get_tensor(c, value->u.tensor);
		return 0;
	case TRACE_FORM_STRING:
		return get_string(d, c, value);
	default:
		return get_list(d, c, value, form);
	}
}

static int get_values(struct trace_decoder *d, struct trace_cursor *c, struct terra_event *event)
{
	int err = 0;

	event->n_values = get_varint32(c);
	if (c->bad || event->n_values > TRACE_VALUES_MAX)
		return -EBADMSG;
	event->values = arena_alloc(d->arena, event->n_values, sizeof(*event->values));
	if (!event->values)
		return -ENOMEM;
	for (uint32_t i = 0; i < event->n_values && !err; i++)
		err = get_value(d, c, &event->values[i]);
	return err;
}

/* Events. */

static uint64_t get_distance(struct trace_cursor *c, uint64_t seq)
{
	uint64_t distance = get_varint(c);

	if (distance > seq)
		c->bad = true;
	return distance == 0 ? UINT64_MAX : seq - distance;
}

static void get_op_ref(struct trace_decoder *d, struct trace_cursor *c, struct terra_event *event)
{
	uint32_t id = get_varint32(c);

	if (id == 0 || id > d->n_ops) {
		c->bad = true;
		return;
	}
	event->op_index = d->ops[id - 1].index;
	event->op = string_at(d, c, d->ops[id - 1].name);
	event->overload = string_at(d, c, d->ops[id - 1].overload);
}

static void set_stack(struct trace_decoder *d, uint32_t id, struct terra_event *event)
{
	event->n_frames = d->stacks[id - 1].n;
	event->frames = event->n_frames ? &d->frames[d->stacks[id - 1].first] : NULL;
}

static void get_stack_ref(struct trace_decoder *d, struct trace_cursor *c, struct terra_event *event)
{
	uint32_t id = get_varint32(c);

	if (id == 0 || id > d->n_stacks) {
		c->bad = true;
		return;
	}
	set_stack(d, id, event);
}

static void get_autograd(struct trace_cursor *c, struct terra_event *event)
{
	event->autograd = 1;
	event->node = get_varint(c) - 1;
	if (event->type == TERRA_EVENT_OP_ENTER)
		event->forward_seq = get_distance(c, event->seq);
}

static int get_op_event(struct trace_decoder *d, struct trace_cursor *c, struct terra_event *event)
{
	uint8_t flags = get_u8(c);
	uint64_t enclosing;

	if (flags & ~TRACE_FLAGS_KNOWN)
		return -EBADMSG;
	event->raised = flags & TRACE_FLAG_RAISED ? 1 : 0;
	event->level = get_u8(c);
	get_op_ref(d, c, event);
	if (flags & TRACE_FLAG_KEYSET)
		event->keyset = get_varint(c);
	if (flags & TRACE_FLAG_STACK)
		get_stack_ref(d, c, event);
	if (flags & TRACE_FLAG_AUTOGRAD)
		get_autograd(c, event);
	enclosing = get_distance(c, event->seq);
	event->parent_seq = event->type == TERRA_EVENT_OP_ENTER ? enclosing : UINT64_MAX;
	event->enter_seq = event->type == TERRA_EVENT_OP_EXIT ? enclosing : UINT64_MAX;
	return c->bad ? -EBADMSG : get_values(d, c, event);
}

/* GPU activities. */

static uint32_t get_device(struct trace_cursor *c)
{
	uint64_t device = get_varint(c);

	if (device > UINT32_MAX)
		c->bad = true;
	return device == 0 || c->bad ? TERRA_GPU_NO_DEVICE : (uint32_t)(device - 1);
}

static void get_kernel(struct trace_cursor *c, struct terra_gpu *gpu)
{
	for (int i = 0; i < 3; i++)
		gpu->grid[i] = get_varint32(c);
	for (int i = 0; i < 3; i++)
		gpu->block[i] = get_varint32(c);
	gpu->static_shared = get_varint32(c);
	gpu->dynamic_shared = get_varint32(c);
	gpu->registers = get_varint32(c);
}

static void get_memcpy(struct trace_cursor *c, struct terra_gpu *gpu)
{
	gpu->copy_kind = get_u8(c);
	gpu->source_kind = get_u8(c);
	gpu->target_kind = get_u8(c);
	gpu->bytes = get_varint(c);
	gpu->source_device = get_device(c);
	gpu->target_device = get_device(c);
}

static void get_memset(struct trace_cursor *c, struct terra_gpu *gpu)
{
	gpu->target_kind = get_u8(c);
	gpu->bytes = get_varint(c);
	gpu->value = get_varint32(c);
}

static void get_gpu_details(struct trace_cursor *c, struct terra_gpu *gpu)
{
	switch (gpu->kind) {
	case TERRA_GPU_KERNEL:
		get_kernel(c, gpu);
		break;
	case TERRA_GPU_MEMCPY:
		get_memcpy(c, gpu);
		break;
	case TERRA_GPU_MEMSET:
		get_memset(c, gpu);
		break;
	case TERRA_GPU_RUNTIME:
	case TERRA_GPU_DRIVER:
	case TERRA_GPU_OVERHEAD:
		gpu->function = get_varint32(c);
		gpu->result = get_varint32(c);
		break;
	case TERRA_GPU_LINK:
		gpu->external = get_varint(c);
		break;
	}
}

/* What follows the details is of later versions, as are kinds not known: the details of those stay unread. */
static int get_gpu(struct trace_decoder *d, struct trace_cursor *c, struct terra_event *event)
{
	struct terra_gpu *gpu = arena_alloc(d->arena, 1, sizeof(*gpu));
	uint8_t flags;

	if (!gpu)
		return -ENOMEM;
	gpu->source_device = gpu->target_device = TERRA_GPU_NO_DEVICE;
	gpu->kind = get_u8(c);
	flags = get_u8(c);
	gpu->untimed = flags & TRACE_GPU_UNTIMED ? 1 : 0;
	gpu->linked = flags & TRACE_GPU_BY_EXTERNAL_ID ? TERRA_GPU_BY_EXTERNAL_ID
		      : flags & TRACE_GPU_BY_TIME      ? TERRA_GPU_BY_TIME
						       : TERRA_GPU_BY_NOTHING;
	gpu->name = string_at(d, c, get_varint32(c));
	gpu->duration_ns = get_varint(c);
	gpu->correlation = get_varint(c);
	gpu->op_seq = get_distance(c, event->seq);
	gpu->device = get_device(c);
	gpu->context = get_varint32(c);
	gpu->stream = get_varint32(c);
	gpu->graph = get_varint32(c);
	gpu->graph_node = get_varint(c);
	get_gpu_details(c, gpu);
	if (c->bad || gpu->kind == 0 || flags & ~TRACE_GPU_FLAGS_KNOWN)
		return -EBADMSG;
	c->p = c->end;
	event->gpu = gpu;
	return 0;
}

/* HOST_READ and CALL. */
static int get_function_event(struct trace_decoder *d, struct trace_cursor *c, struct terra_event *event)
{
	uint32_t stack;

	event->text = string_at(d, c, get_varint32(c));
	event->op = string_at(d, c, get_varint32(c));
	event->overload = string_at(d, c, get_varint32(c));
	stack = get_varint32(c);
	if (!event->text || stack > d->n_stacks)
		return -EBADMSG;
	if (stack)
		set_stack(d, stack, event);
	event->parent_seq = get_distance(c, event->seq);
	return c->bad ? -EBADMSG : get_values(d, c, event);
}

/* Every event begins so, those of later versions too: times are differences from event to event. */
static void get_time(struct trace_decoder *d, struct trace_cursor *c, struct terra_event *event)
{
	event->thread = get_varint32(c);
	event->time_ns = d->time + (uint64_t)get_signed(c);
	d->time = event->time_ns;
}

static int get_event(struct trace_decoder *d, struct trace_cursor *c, struct terra_event *event)
{
	int err = 0;

	get_time(d, c, event);
	event->parent_seq = event->enter_seq = event->forward_seq = UINT64_MAX;
	if (event->type == TERRA_EVENT_OP_ENTER || event->type == TERRA_EVENT_OP_EXIT)
		err = get_op_event(d, c, event);
	else if (event->type == TERRA_EVENT_HOST_READ || event->type == TERRA_EVENT_CALL)
		err = get_function_event(d, c, event);
	else if (event->type == TERRA_EVENT_LOST)
		event->lost = get_varint(c);
	else if (event->type == TERRA_EVENT_GPU)
		err = get_gpu(d, c, event);
	else
		event->text = get_tail_string(c);
	if (!err && (c->bad || left(c) != 0))
		err = -EBADMSG;
	return err;
}

static bool known_event(uint8_t record)
{
	return record >= TRACE_RECORD_EVENT + TERRA_EVENT_OP_ENTER && record <= TRACE_RECORD_EVENT + TERRA_EVENT_CALL;
}

/* 1: an event, 0: a definition or something newer than this reader. */
static int decode_record(struct trace_decoder *d, uint8_t record, struct trace_cursor *body, struct terra_event *event)
{
	int err;

	if (record == TRACE_RECORD_STRING)
		return define_string(d, body);
	if (record == TRACE_RECORD_OP)
		return define_op(d, body);
	if (record == TRACE_RECORD_STACK)
		return define_stack(d, body);
	if (record < TRACE_RECORD_EVENT || record > TRACE_RECORD_EVENT_LAST)
		return 0;
	if (d->seq >= d->end_seq)
		return -EBADMSG;
	event->seq = d->seq++;
	if (!known_event(record)) {
		get_time(d, body, event);
		return body->bad ? -EBADMSG : 0;
	}
	event->type = (uint8_t)(record - TRACE_RECORD_EVENT);
	err = get_event(d, body, event);
	return err ? err : 1;
}

int trace_decode(struct trace_decoder *d, struct terra_event *event)
{
	struct trace_cursor *records = &d->records;

	while (left(records) > 0) {
		uint8_t record = get_u8(records);
		uint64_t size = get_varint(records);
		struct trace_cursor body;
		int ret;

		body.p = size > TRACE_RECORD_MAX ? NULL : get_bytes(records, size);
		if (!body.p)
			return -EBADMSG;
		body.end = body.p + size;
		body.bad = false;
		arena_reset(d->arena);
		d->elements = 0;
		memset(event, 0, sizeof(*event));
		ret = decode_record(d, record, &body, event);
		if (ret != 0)
			return ret;
	}
	return d->seq == d->end_seq ? 0 : -EBADMSG;
}

void trace_decoder_begin(struct trace_decoder *d, const uint8_t *raw, size_t size, uint64_t first_seq,
			 uint32_t n_events, uint64_t base_time)
{
	d->records = (struct trace_cursor){.p = raw, .end = raw + size};
	d->seq = first_seq;
	d->end_seq = first_seq + n_events;
	d->time = base_time;
	d->n_strings = d->n_ops = d->n_stacks = d->n_frames = 0;
}

int trace_decoder_init(struct trace_decoder *d)
{
	memset(d, 0, sizeof(*d));
	d->arena = calloc(1, sizeof(*d->arena));
	return d->arena ? 0 : -ENOMEM;
}

void trace_decoder_free(struct trace_decoder *d)
{
	if (!d->arena)
		return;
	arena_reset(d->arena);
	free(d->arena->chunks);
	free(d->arena);
	free(d->strings);
	free(d->ops);
	free(d->stacks);
	free(d->frames);
}
