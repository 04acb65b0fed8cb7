/* consume_unpack.c - the packed values of a record (probes/record.h) to struct terra_value. */
#include "collector/consume_private.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_SIZE (64u << 10)

struct consume_block {
	struct consume_block *next;
	size_t size;
	uint64_t data[];
};

/* A list or a value over all its pieces: the first and those that continue it in further chunks. */
struct pieces {
	const uint8_t *first, *end;
	uint32_t recorded;
};

struct unpacker {
	struct consume_arena *arena;
	const struct terra_offsets *offsets;
	struct pieces pieces;
	const uint8_t *at; /* next element */
	const uint8_t *piece_end;
};

static struct consume_block *new_block(struct consume_arena *arena, size_t size)
{
	struct consume_block *block = malloc(sizeof(*block) + size);

	if (!block)
		return NULL;
	block->size = size;
	block->next = NULL;
	if (arena->current) {
		block->next = arena->current->next;
		arena->current->next = block;
	} else {
		arena->first = block;
	}
	return block;
}

void *consume_alloc(struct consume_arena *arena, size_t size)
{
	struct consume_block *block = arena->current;

	size = (size + 7) & ~(size_t)7;
	if (!block || arena->used + size > block->size) {
		block = block ? block->next : arena->first;
		if (!block || block->size < size)
			block = new_block(arena, size > BLOCK_SIZE ? size : BLOCK_SIZE);
		if (!block)
			return NULL;
		arena->current = block;
		arena->used = 0;
	}
	arena->used += size;
	return (uint8_t *)block->data + arena->used - size;
}

void consume_reset(struct consume_arena *arena)
{
	arena->current = arena->first;
	arena->used = 0;
}

void consume_arena_free(struct consume_arena *arena)
{
	struct consume_block *block = arena->first, *next;

	for (; block; block = next) {
		next = block->next;
		free(block);
	}
	*arena = (struct consume_arena){ 0 };
}

static const struct terra_packed *packed_at(const uint8_t *at, const uint8_t *end)
{
	const struct terra_packed *packed = (const struct terra_packed *)at;

	if ((size_t)(end - at) < sizeof(*packed) || packed->bytes > (size_t)(end - at) - sizeof(*packed) ||
	    packed->bytes % 8 != 0)
		return NULL;
	return packed;
}

static const uint8_t *packed_end(const struct terra_packed *packed)
{
	return (const uint8_t *)(packed + 1) + packed->bytes;
}

/* Finds where the value at `at` ends; -EPROTO when its pieces are not what they say. */
static int find_pieces(const uint8_t *at, const uint8_t *end, struct pieces *out)
{
	const struct terra_packed *first = packed_at(at, end), *piece = first;

	if (!first || first->flags & TERRA_PACKED_CONTINUED)
		return -EPROTO;
	out->first = at;
	out->recorded = 0;
	do {
		if (piece->kind != first->kind || piece->recorded > piece->bytes)
			return -EPROTO;
		out->recorded += piece->recorded;
		at = packed_end(piece);
		piece = at < end ? packed_at(at, end) : NULL;
	} while (piece && piece->flags & TERRA_PACKED_CONTINUED);
	if (at < end && !piece)
		return -EPROTO;
	out->end = at;
	return 0;
}

static void begin_elements(struct unpacker *u)
{
	const struct terra_packed *first = (const struct terra_packed *)u->pieces.first;

	u->at = (const uint8_t *)(first + 1);
	u->piece_end = packed_end(first);
}

/* The next element, whose first `size` bytes are there; NULL at the end of what was recorded. */
static const void *peek_element(struct unpacker *u, size_t size)
{
	while (u->at == u->piece_end && u->at < u->pieces.end) {
		const struct terra_packed *piece = (const struct terra_packed *)u->at;

		u->at = (const uint8_t *)(piece + 1);
		u->piece_end = packed_end(piece);
	}
	return (size_t)(u->piece_end - u->at) >= size ? u->at : NULL;
}

static const void *next_element(struct unpacker *u, size_t size)
{
	const void *element = peek_element(u, size);

	if (element)
		u->at += size;
	return element;
}

static void copy_geometry(const struct terra_packed_tensor *packed, struct terra_tensor *t)
{
	t->ndim = packed->ndim;
	t->numel = packed->numel;
	t->storage_offset = packed->storage_offset;
	for (int i = 0; i < packed->dims; i++) {
		t->size[i] = packed->geometry[i];
		t->stride[i] = packed->geometry[packed->dims + i];
	}
	if (!(packed->flags & TERRA_TENSOR_NO_GEOMETRY))
		return;
	t->numel = -1;
	for (int i = 0; i < TERRA_MAX_DIM; i++)
		t->size[i] = t->stride[i] = -1;
}

static uint64_t data_address(const struct terra_offsets *offsets, const struct terra_packed_tensor *packed)
{
	unsigned int dtype = (unsigned int)packed->dtype;

	if (!packed->storage_data || dtype >= TERRA_MAX_TYPE_META || !offsets->element_size[dtype] ||
	    packed->flags & TERRA_TENSOR_NO_GEOMETRY)
		return 0;
	return packed->storage_data + (uint64_t)packed->storage_offset * offsets->element_size[dtype];
}

static int unpack_tensor(struct unpacker *u, struct terra_tensor *t)
{
	const struct terra_packed_tensor *packed = peek_element(u, sizeof(*packed));

	if (!packed || packed->dims > TERRA_PACKED_DIMS || packed->dims > packed->ndim ||
	    !next_element(u, sizeof(*packed) + 16u * packed->dims))
		return -EPROTO;
	memset(t, 0, sizeof(*t));
	t->defined = packed->defined;
	t->dtype = packed->dtype;
	t->device_type = packed->device_type;
	t->device_index = packed->device_index;
	if (!packed->defined)
		return 0;
	t->impl = packed->impl;
	t->storage = packed->storage;
	t->storage_data = packed->storage_data;
	t->storage_bytes = packed->storage_bytes;
	t->requires_grad = packed->requires_grad;
	t->data = data_address(u->offsets, packed);
	copy_geometry(packed, t);
	return 0;
}

static int unpack_tensors(struct unpacker *u, struct terra_value *value)
{
	int err = 0;

	value->u.tensors = consume_alloc(u->arena, u->pieces.recorded * sizeof(struct terra_tensor));
	if (!value->u.tensors)
		return -ENOMEM;
	for (uint32_t i = 0; i < u->pieces.recorded && !err; i++)
		err = unpack_tensor(u, &value->u.tensors[i]);
	return err;
}

/* As scalar_tag in collector/trace.h: a trace has no others, and its writer would refuse the event. */
static bool is_scalar_tag(uint64_t tag)
{
	return tag == 'f' || tag == 'i' || tag == 'b' || tag == 'z' || tag == 's' || tag == '?';
}

static int unpack_scalar(struct unpacker *u, struct terra_value *value)
{
	const struct terra_packed_scalar *packed = next_element(u, sizeof(*packed));

	if (!packed || !is_scalar_tag(packed->tag))
		return -EPROTO;
	memset(value, 0, sizeof(*value));
	value->kind = TERRA_KIND_SCALAR;
	value->scalar_tag = (uint8_t)packed->tag;
	value->present = packed->tag != '?';
	memcpy(value->u.z, packed->value, sizeof(value->u.z));
	return 0;
}

static int unpack_scalars(struct unpacker *u, struct terra_value *value)
{
	int err = 0;

	value->u.scalars = consume_alloc(u->arena, u->pieces.recorded * sizeof(struct terra_value));
	if (!value->u.scalars)
		return -ENOMEM;
	for (uint32_t i = 0; i < u->pieces.recorded && !err; i++)
		err = unpack_scalar(u, &value->u.scalars[i]);
	return err;
}

/* Integers and doubles alike: 8 bytes each. */
static int unpack_numbers(struct unpacker *u, struct terra_value *value)
{
	value->u.ints = consume_alloc(u->arena, u->pieces.recorded * sizeof(int64_t));
	if (!value->u.ints)
		return -ENOMEM;
	for (uint32_t i = 0; i < u->pieces.recorded; i++) {
		const void *element = next_element(u, sizeof(int64_t));

		if (!element)
			return -EPROTO;
		memcpy(&value->u.ints[i], element, sizeof(int64_t));
	}
	return 0;
}

static int unpack_string(struct unpacker *u, struct terra_value *value)
{
	size_t size = (u->pieces.recorded + 7u) & ~7u;
	const void *bytes = next_element(u, size);

	value->u.string = consume_alloc(u->arena, size + 1);
	if (!value->u.string)
		return -ENOMEM;
	/* a string that nothing was recorded of would be taken as complete: see collector/trace.h */
	if (!bytes || (value->count && !value->recorded))
		return -EPROTO;
	memcpy(value->u.string, bytes, u->pieces.recorded);
	value->u.string[u->pieces.recorded] = 0;
	return 0;
}

static int unpack_word(struct unpacker *u, struct terra_value *value)
{
	const void *word = next_element(u, sizeof(int64_t));

	if (!word)
		return -EPROTO;
	memcpy(&value->u.i, word, sizeof(int64_t));
	value->recorded = 0;
	return 0;
}

static int unpack_optional_scalar(struct unpacker *u, struct terra_value *value)
{
	uint8_t kind = value->kind;
	int err = unpack_scalar(u, value);

	/* an unreadable one is a scalar that is not present: see consume.h */
	if (value->present)
		value->kind = kind;
	return err;
}

static int unpack_payload(struct unpacker *u, struct terra_value *value)
{
	switch (value->kind) {
	case TERRA_KIND_TENSOR:
	case TERRA_KIND_OPT_TENSOR:
	case TERRA_KIND_TENSOR_LIST:
	case TERRA_KIND_ITENSOR_LIST:
	case TERRA_KIND_OPT_TENSOR_LIST:
		return unpack_tensors(u, value);
	case TERRA_KIND_SCALAR:
	case TERRA_KIND_OPT_SCALAR:
		return unpack_optional_scalar(u, value);
	case TERRA_KIND_SCALAR_LIST:
		return unpack_scalars(u, value);
	case TERRA_KIND_INT_LIST:
	case TERRA_KIND_OPT_INT_LIST:
	case TERRA_KIND_SYMINT_LIST:
	case TERRA_KIND_OPT_SYMINT_LIST:
	case TERRA_KIND_DOUBLE_LIST:
	case TERRA_KIND_OPT_DOUBLE_LIST:
	case TERRA_KIND_BOOL_ARRAY:
		return unpack_numbers(u, value);
	case TERRA_KIND_STRING:
	case TERRA_KIND_OPT_STRING:
		return unpack_string(u, value);
	default:
		return unpack_word(u, value);
	}
}

/* The kind that an unreadable optional is given: the same without "optional". */
static uint8_t unreadable_kind(uint8_t kind)
{
	static const uint8_t plain[TERRA_KIND_COUNT] = {
		[TERRA_KIND_OPT_TENSOR] = TERRA_KIND_TENSOR,	     [TERRA_KIND_OPT_SCALAR] = TERRA_KIND_SCALAR,
		[TERRA_KIND_OPT_INT] = TERRA_KIND_INT,		     [TERRA_KIND_OPT_INT_LIST] = TERRA_KIND_INT_LIST,
		[TERRA_KIND_OPT_SYMINT] = TERRA_KIND_SYMINT,	     [TERRA_KIND_OPT_SYMINT_LIST] = TERRA_KIND_SYMINT_LIST,
		[TERRA_KIND_OPT_DOUBLE] = TERRA_KIND_DOUBLE,	     [TERRA_KIND_OPT_DOUBLE_LIST] = TERRA_KIND_DOUBLE_LIST,
		[TERRA_KIND_OPT_BOOL] = TERRA_KIND_BOOL,	     [TERRA_KIND_OPT_STRING] = TERRA_KIND_STRING,
		[TERRA_KIND_OPT_DTYPE] = TERRA_KIND_DTYPE,	     [TERRA_KIND_OPT_LAYOUT] = TERRA_KIND_LAYOUT,
		[TERRA_KIND_OPT_DEVICE] = TERRA_KIND_DEVICE,	     [TERRA_KIND_OPT_MEMORY_FORMAT] = TERRA_KIND_MEMORY_FORMAT,
	};

	if (kind == TERRA_KIND_GENERATOR)
		return TERRA_KIND_OPAQUE;
	return plain[kind] ? plain[kind] : kind;
}

/* Kinds that hold one element, which is there when the value is. */
static bool is_single(uint8_t kind)
{
	return kind == TERRA_KIND_TENSOR || kind == TERRA_KIND_OPT_TENSOR || kind == TERRA_KIND_SCALAR ||
	       kind == TERRA_KIND_OPT_SCALAR;
}

static int unpack_value(struct unpacker *u, struct terra_value *value)
{
	const struct terra_packed *first = (const struct terra_packed *)u->pieces.first;

	memset(value, 0, sizeof(*value));
	if (first->kind >= TERRA_KIND_COUNT)
		return -EPROTO;
	value->kind = first->kind;
	value->present = first->present;
	value->count = first->count;
	value->recorded = u->pieces.recorded;
	if (first->flags & TERRA_PACKED_UNREADABLE) {
		value->kind = unreadable_kind(first->kind);
		value->present = 0;
	}
	if (!value->present) {
		value->count = value->recorded = 0;
		return 0;
	}
	if (is_single(value->kind))
		value->count = 1;
	if (value->recorded > value->count || (is_single(value->kind) && value->recorded != 1))
		return -EPROTO;
	begin_elements(u);
	return unpack_payload(u, value);
}

/* Returns how many of `words` words the frame had; 0 when they are not there. */
static uint32_t take_entry(struct unpacker *u, uint32_t words, struct pystack_entry *entry)
{
	const uint64_t *code = next_element(u, 8), *place = next_element(u, 8), *self = NULL;

	if (!code || !place)
		return 0;
	*entry = (struct pystack_entry){ .code = *code & ~PYSTACK_TAG_BITS, .offset = (uint32_t)*place,
					 .check = (uint32_t)(*place >> 32) };
	if (!(*code & PYSTACK_HAS_SELF))
		return 2;
	self = words >= 3 ? next_element(u, 8) : NULL;
	entry->self = self ? *self : 0;
	return self ? 3 : 0;
}

static int take_entries(struct unpacker *u, struct consume_values *out)
{
	const struct terra_packed *first = (const struct terra_packed *)u->pieces.first;
	uint32_t words = first->flags & TERRA_PACKED_UNREADABLE ? 0 : u->pieces.recorded;
	struct pystack_entry *entries = consume_alloc(u->arena, (words / 2 + 1) * sizeof(*entries));

	if (!entries)
		return -ENOMEM;
	out->entries = entries;
	out->n_entries = 0;
	begin_elements(u);
	while (words >= 2) {
		uint32_t taken = take_entry(u, words, &entries[out->n_entries++]);

		if (!taken)
			return -EPROTO;
		words -= taken;
	}
	return 0;
}

static int take_node_words(struct unpacker *u, struct consume_values *out)
{
	uint32_t n = u->pieces.recorded;

	if (n > sizeof(out->node_words) / sizeof(out->node_words[0]))
		return -EPROTO;
	begin_elements(u);
	for (uint32_t i = 0; i < n; i++) {
		const void *word = next_element(u, sizeof(uint64_t));

		if (!word)
			return -EPROTO;
		memcpy(&out->node_words[i], word, sizeof(uint64_t));
	}
	out->n_node_words = n;
	return 0;
}

int consume_unpack(struct consume_arena *arena, const struct terra_offsets *offsets, const uint8_t *payload, size_t size,
		   struct consume_values *out)
{
	struct unpacker u = { .arena = arena, .offsets = offsets };
	const uint8_t *at = payload, *end = payload + size;
	int err = 0;

	*out = (struct consume_values){ 0 };
	out->values = consume_alloc(arena, (TERRA_MAX_ARGS + 1) * sizeof(struct terra_value));
	if (!out->values)
		return -ENOMEM;
	while (at < end && !err) {
		err = find_pieces(at, end, &u.pieces);
		if (err)
			return err;
		at = u.pieces.end;
		if (((const struct terra_packed *)u.pieces.first)->kind == TERRA_PACKED_FRAMES)
			err = take_entries(&u, out);
		else if (((const struct terra_packed *)u.pieces.first)->kind == TERRA_PACKED_NODE)
			err = take_node_words(&u, out);
		else if (out->n_values > TERRA_MAX_ARGS)
			err = -EPROTO;
		else
			err = unpack_value(&u, &out->values[out->n_values++]);
	}
	return err;
}
