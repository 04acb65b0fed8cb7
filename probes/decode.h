/* decode.h - the one piece of code that reads an op's arguments and results, for both sides.
 *
 * It compiles as BPF C (clang -target bpf -ffreestanding) and as user-space C. Who includes it provides
 *   #define TERRA_READ(dst, size, src)   copies size bytes from the program's address src; 0 when it worked.
 *                                        BPF: bpf_probe_read_user. Default here: terra_read_memory, this process.
 *   #define TERRA_EMIT(d, record, size)  takes a finished chunk of `size` bytes; sets record->seq; may use d->sink.
 * and calls, with a struct terra_decoder it has filled as the struct says,
 *   terra_decode_enter(d)   one ENTER record with all arguments
 *   terra_decode_exit(d)    one EXIT record with the results
 * each of which emits one or more chunks. Before the last chunk of an ENTER the caller's TERRA_STACK(d) runs, when
 * defined: it may add a call stack with terra_put_frames.
 *
 * For the verifier: loops are bpf_loop callbacks; every write into the chunk is at a masked position, with room for
 * the largest single item behind it (TERRA_CHUNK_SLACK); layout, offsets and chunk are map values.
 */
#ifndef TERRA_PROBES_DECODE_H
#define TERRA_PROBES_DECODE_H

#include "probes/offsets.h"
#include "probes/record.h"

#ifdef __bpf__
#define TERRA_LOOP(n, body, ctx) bpf_loop(n, body, ctx, 0)
#else
#include <errno.h>
#include <string.h>

static inline void terra_loop(uint64_t n, long (*body)(uint64_t, void *), void *ctx)
{
	for (uint64_t i = 0; i < n; i++)
		if (body(i, ctx))
			return;
}

/* Addresses come from pointers that the op's caller passes: they are valid, null, or not what we take them for. */
static inline int terra_read_memory(void *dst, uint64_t size, uint64_t src)
{
	if (src < 65536 || src >= (1ULL << 47))
		return -EFAULT;
	memcpy(dst, (const void *)(uintptr_t)src, size);
	return 0;
}

#define TERRA_LOOP(n, body, ctx) terra_loop(n, body, ctx)
#ifndef TERRA_READ
#define TERRA_READ(dst, size, src) terra_read_memory(dst, size, src)
#endif
#endif

/* Kept small: it is on the 512-byte BPF stack. */
struct terra_decoder {
	/* Set by the caller. */
	const struct terra_op_layout *layout;
	const struct terra_offsets *offsets;
	const struct terra_regs *regs;
	uint8_t *chunk; /* TERRA_CHUNK_BUFFER bytes, 8-aligned */
	void *sink;     /* TERRA_EMIT's own */
	uint32_t op, tid, producer;
	/* Private. */
	uint32_t pos;   /* bytes of the chunk in use */
	uint32_t value; /* where the header of the value being written lies */
	uint32_t stride, mode; /* list walks */
	uint64_t base, count;
};

#define TERRA_MASK (TERRA_CHUNK_SIZE - 1)
#define TERRA_AT(d, type, at) ((type *)((d)->chunk + ((at) & (TERRA_MASK & ~7u))))
#define TERRA_RECORD_OF(d) ((struct terra_record *)(d)->chunk)

/* No list of an op has more elements than this; a larger count is not a list. */
#define TERRA_MAX_LIST 65536
#define TERRA_BLOCK_INTS 32

/* How the elements of a tensor list are stored. */
enum terra_list_mode {
	TERRA_LIST_TENSORS,    /* at::Tensor: a TensorImpl pointer */
	TERRA_LIST_REFERENCES, /* pointers to at::Tensor */
	TERRA_LIST_IVALUES,    /* c10::IValue: payload, then a 4-byte tag */
};

/* c10::IValue tags in use here, the first two of its enumeration since it exists. */
#define TERRA_IVALUE_NONE 0
#define TERRA_IVALUE_TENSOR 1

/* An argument brought into three words, wherever the ABI put it; objects that are passed by reference are read. */
struct terra_object {
	uint64_t address; /* 0: it was in registers */
	uint64_t w[3];
};

static inline __attribute__((always_inline)) struct terra_packed *terra_value_header(struct terra_decoder *d)
{
	return TERRA_AT(d, struct terra_packed, d->value);
}

static inline __attribute__((always_inline)) void terra_open_value(struct terra_decoder *d, uint8_t kind, uint8_t flags,
								   uint32_t count)
{
	struct terra_packed *value;

	d->value = d->pos;
	value = terra_value_header(d);
	value->kind = kind;
	value->present = 1;
	value->flags = flags;
	value->unused = 0;
	value->count = count;
	value->recorded = 0;
	value->bytes = 0;
	d->pos += sizeof(*value);
}

static inline __attribute__((always_inline)) void terra_close_value(struct terra_decoder *d)
{
	terra_value_header(d)->bytes = d->pos - d->value - sizeof(struct terra_packed);
}

static inline __attribute__((always_inline)) void terra_finish_chunk(struct terra_decoder *d, uint8_t flags)
{
	struct terra_record *record = TERRA_RECORD_OF(d);
	uint32_t size = d->pos <= TERRA_CHUNK_SIZE ? d->pos : TERRA_CHUNK_SIZE;

	record->size = size;
	record->flags = flags;
	TERRA_EMIT(d, record, size);
}

/* Makes sure that one more item (at most 256 bytes) fits, in a further chunk when need be: the open value is closed
 * here and continued there. */
static __attribute__((noinline)) int terra_make_room(struct terra_decoder *d)
{
	struct terra_packed *value;
	uint32_t count;
	uint8_t kind;

	if (d->pos <= TERRA_CHUNK_SIZE - 256)
		return 0;
	terra_close_value(d);
	value = terra_value_header(d);
	kind = value->kind;
	count = value->count;
	terra_finish_chunk(d, TERRA_RECORD_MORE);
	TERRA_RECORD_OF(d)->chunk++;
	d->pos = sizeof(struct terra_record);
	terra_open_value(d, kind, TERRA_PACKED_CONTINUED, count);
	return 0;
}

static inline __attribute__((always_inline)) void terra_put_word(struct terra_decoder *d, uint64_t word)
{
	*TERRA_AT(d, uint64_t, d->pos) = word;
	d->pos += 8;
}

static inline __attribute__((always_inline)) void terra_unreadable(struct terra_decoder *d)
{
	terra_value_header(d)->flags |= TERRA_PACKED_UNREADABLE;
	terra_value_header(d)->present = 0;
}

static inline __attribute__((always_inline)) void terra_absent(struct terra_decoder *d)
{
	terra_value_header(d)->present = 0;
}

/* A field of a structure at `base`. Returns 0 when it is known and could be read. */
static inline __attribute__((always_inline)) int terra_read_field(uint64_t base, const struct terra_field *field,
								  uint64_t *out)
{
	uint32_t width = field->width;

	*out = 0;
	if (!field->known || width > 8 || !base)
		return -1;
	return TERRA_READ(out, width, base + field->offset) ? -1 : 0;
}

static inline __attribute__((always_inline)) void terra_put_storage(struct terra_decoder *d,
								    struct terra_packed_tensor *t, uint64_t impl)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t storage, bytes;

	t->storage = 0;
	t->storage_data = 0;
	t->storage_bytes = 0;
	if (terra_read_field(impl, &off->storage, &storage)) {
		t->flags |= TERRA_TENSOR_NO_STORAGE;
		return;
	}
	t->storage = storage;
	if (!storage)
		return;
	if (terra_read_field(storage, &off->data_ptr, &t->storage_data) ||
	    terra_read_field(storage, &off->nbytes, &bytes))
		t->flags |= TERRA_TENSOR_NO_STORAGE;
	else if (!(bytes >> 63))
		t->storage_bytes = bytes;
}

/* Sizes and strides: in the structure for few dimensions, else in one block behind a pointer. */
static inline __attribute__((always_inline)) int terra_put_dims(struct terra_packed_tensor *t, uint64_t impl,
								 const struct terra_offsets *off, uint64_t ndim)
{
	uint64_t sizes = impl + off->sizes.offset, strides = impl + off->strides.offset;
	uint64_t dims = ndim < TERRA_PACKED_DIMS ? ndim : TERRA_PACKED_DIMS;

	if (!off->sizes.known || !off->strides.known)
		return -1;
	if (ndim > off->inline_dims && ndim > 1) {
		if (!off->inline_dims || TERRA_READ(&sizes, 8, impl + off->sizes.offset))
			return -1;
		strides = sizes + 8 * ndim;
	}
	if (dims && (TERRA_READ(t->geometry, dims * 8, sizes) || TERRA_READ(t->geometry + dims, dims * 8, strides)))
		return -1;
	t->dims = dims;
	return 0;
}

static inline __attribute__((always_inline)) void terra_put_geometry(struct terra_decoder *d,
								     struct terra_packed_tensor *t, uint64_t impl)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t ndim = 0, numel = 0, offset = 0;

	t->ndim = 0;
	t->dims = 0;
	if (terra_read_field(impl, &off->ndim, &ndim) || terra_read_field(impl, &off->numel, &numel) ||
	    terra_read_field(impl, &off->storage_offset, &offset) || ndim > 255 || terra_put_dims(t, impl, off, ndim))
		t->flags |= TERRA_TENSOR_NO_GEOMETRY;
	t->ndim = ndim <= 255 ? ndim : 255;
	t->numel = numel;
	t->storage_offset = offset;
}

static inline __attribute__((always_inline)) void terra_put_type(struct terra_decoder *d, struct terra_packed_tensor *t,
								 uint64_t impl)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t meta, word;

	t->dtype = -1;
	t->device_type = -1;
	t->device_index = -1;
	if (!terra_read_field(impl, &off->data_type, &meta) && meta < TERRA_MAX_TYPE_META)
		t->dtype = off->scalar_type[meta & (TERRA_MAX_TYPE_META - 1)];
	if (!terra_read_field(impl, &off->device_type, &word))
		t->device_type = (int8_t)word;
	if (!terra_read_field(impl, &off->device_index, &word))
		t->device_index = (int8_t)word;
}

static inline __attribute__((always_inline)) uint8_t terra_requires_grad(const struct terra_offsets *off, uint64_t impl)
{
	uint64_t meta, flag, grad_fn;

	if (terra_read_field(impl, &off->autograd_meta, &meta))
		return 0xff;
	if (!meta)
		return 0;
	if (terra_read_field(meta, &off->requires_grad, &flag) || terra_read_field(meta, &off->grad_fn, &grad_fn))
		return 0xff;
	return (flag & 0xff) || grad_fn;
}

/* The undefined tensor has a type that no other has, and in some releases no dispatch keys. */
static inline __attribute__((always_inline)) uint8_t terra_is_defined(const struct terra_offsets *off, uint64_t impl)
{
	uint64_t word;

	if (!impl)
		return 0;
	if (off->undefined_type != 0xffff && !terra_read_field(impl, &off->data_type, &word))
		return word != off->undefined_type;
	return terra_read_field(impl, &off->key_set, &word) || word != 0;
}

static __attribute__((noinline)) int terra_put_tensor(struct terra_decoder *d, uint64_t impl)
{
	struct terra_packed_tensor *t;

	terra_make_room(d);
	t = TERRA_AT(d, struct terra_packed_tensor, d->pos);
	t->impl = impl;
	t->defined = terra_is_defined(d->offsets, impl);
	t->flags = 0;
	t->dims = 0;
	if (t->defined) {
		terra_put_storage(d, t, impl);
		terra_put_geometry(d, t, impl);
		terra_put_type(d, t, impl);
		t->requires_grad = terra_requires_grad(d->offsets, impl);
	} else {
		t->storage = t->storage_data = t->storage_bytes = 0;
		t->numel = t->storage_offset = 0;
		t->ndim = t->requires_grad = 0;
		t->dtype = t->device_type = t->device_index = -1;
	}
	d->pos += sizeof(*t) + 16 * (t->dims & 15);
	terra_value_header(d)->recorded++;
	return 0;
}

static inline __attribute__((always_inline)) uint64_t terra_list_element(struct terra_decoder *d, uint64_t at)
{
	uint64_t word[2] = { 0, 0 };

	if (d->mode == TERRA_LIST_IVALUES) {
		if (TERRA_READ(word, 16, at) || (uint32_t)word[1] != TERRA_IVALUE_TENSOR)
			return 0;
		return word[0];
	}
	if (TERRA_READ(word, 8, at))
		return 0;
	if (d->mode == TERRA_LIST_REFERENCES && TERRA_READ(word, 8, word[0]))
		return 0;
	return word[0];
}

static long terra_put_element(uint64_t index, void *ctx)
{
	struct terra_decoder *d = ctx;

	terra_put_tensor(d, terra_list_element(d, d->base + index * d->stride));
	return 0;
}

static inline __attribute__((always_inline)) void terra_put_tensors(struct terra_decoder *d, uint64_t base,
								    uint64_t count, uint32_t stride, uint32_t mode)
{
	if (count > TERRA_MAX_LIST) {
		terra_unreadable(d);
		return;
	}
	terra_value_header(d)->count = count;
	d->base = base;
	d->stride = stride;
	d->mode = mode;
	TERRA_LOOP(count, terra_put_element, d);
}

/* std::vector of elements of `stride` bytes, whose begin and end pointers are at `address`. */
static inline __attribute__((always_inline)) void terra_put_vector(struct terra_decoder *d, uint64_t address,
								   uint32_t stride, uint32_t mode)
{
	uint64_t range[2] = { 0, 0 };

	if (TERRA_READ(range, 16, address) || range[1] < range[0]) {
		terra_unreadable(d);
		return;
	}
	terra_put_tensors(d, range[0], (range[1] - range[0]) / stride, stride, mode);
}

/* c10::List: an intrusive pointer to a ListImpl, whose vector of IValues follows the reference counts. The size of
 * those is where the first member of another such object lies, StorageImpl's data pointer. */
static inline __attribute__((always_inline)) void terra_put_ivalues(struct terra_decoder *d, uint64_t list)
{
	if (!list || !d->offsets->data_ptr.known) {
		terra_unreadable(d);
		return;
	}
	terra_put_vector(d, list + d->offsets->data_ptr.offset, 16, TERRA_LIST_IVALUES);
}

/* c10::IListRef {union {ArrayRef unboxed; List const *boxed; vector const *materialized}; tag}. */
static inline __attribute__((always_inline)) void terra_put_list_ref(struct terra_decoder *d,
								     const struct terra_object *o)
{
	uint64_t list = 0;

	switch ((uint32_t)o->w[2]) {
	case 0:
		terra_put_tensors(d, o->w[0], o->w[1], 8, TERRA_LIST_TENSORS);
		break;
	case 1:
		if (TERRA_READ(&list, 8, o->w[0]))
			list = 0;
		terra_put_ivalues(d, list);
		break;
	case 2:
		terra_put_vector(d, o->w[0], 8, TERRA_LIST_REFERENCES);
		break;
	default:
		terra_unreadable(d);
	}
}

static long terra_put_block(uint64_t index, void *ctx)
{
	struct terra_decoder *d = ctx;
	uint64_t first = index * TERRA_BLOCK_INTS, n = d->count - first;

	if (first >= d->count)
		return 1;
	if (n > TERRA_BLOCK_INTS)
		n = TERRA_BLOCK_INTS;
	terra_make_room(d);
	if (TERRA_READ(TERRA_AT(d, uint8_t, d->pos), n * 8, d->base + first * 8)) {
		terra_unreadable(d);
		return 1;
	}
	d->pos += n * 8;
	terra_value_header(d)->recorded += n;
	return 0;
}

/* 8-byte elements, integers or doubles. */
static inline __attribute__((always_inline)) void terra_put_numbers(struct terra_decoder *d, uint64_t base,
								    uint64_t count)
{
	if (count > TERRA_MAX_LIST) {
		terra_unreadable(d);
		return;
	}
	terra_value_header(d)->count = count;
	d->base = base;
	d->count = count;
	TERRA_LOOP((count + TERRA_BLOCK_INTS - 1) / TERRA_BLOCK_INTS, terra_put_block, d);
}

static inline __attribute__((always_inline)) char terra_scalar_tag(const struct terra_scalar_layout *layout,
								   uint32_t tag)
{
	if (tag > 127)
		return '?';
	if ((int32_t)tag == layout->tag_double)
		return 'f';
	if ((int32_t)tag == layout->tag_int || (int32_t)tag == layout->tag_unsigned)
		return 'i';
	if ((int32_t)tag == layout->tag_bool)
		return 'b';
	if ((int32_t)tag == layout->tag_complex)
		return 'z';
	return 's';
}

static __attribute__((noinline)) int terra_put_scalar(struct terra_decoder *d, uint64_t address)
{
	const struct terra_scalar_layout *layout = &d->offsets->scalar;
	struct terra_packed_scalar *scalar;
	uint32_t tag = 0;

	terra_make_room(d);
	scalar = TERRA_AT(d, struct terra_packed_scalar, d->pos);
	scalar->tag = '?';
	scalar->value[0] = scalar->value[1] = 0;
	if (layout->size && !TERRA_READ(&tag, 4, address + layout->tag_offset)) {
		scalar->tag = terra_scalar_tag(layout, tag);
		if (TERRA_READ(scalar->value, 16, address + layout->value_offset))
			scalar->tag = '?';
		if (scalar->tag == 'b') /* one byte of the union was written */
			scalar->value[0] &= 0xff;
		if (scalar->tag != 'z')
			scalar->value[1] = 0;
	}
	d->pos += sizeof(*scalar);
	terra_value_header(d)->recorded++;
	return 0;
}

static long terra_put_scalar_element(uint64_t index, void *ctx)
{
	struct terra_decoder *d = ctx;

	terra_put_scalar(d, d->base + index * d->stride);
	return 0;
}

static inline __attribute__((always_inline)) void terra_put_scalars(struct terra_decoder *d, uint64_t base,
								    uint64_t count)
{
	if (count > TERRA_MAX_LIST || !d->offsets->scalar.size) {
		terra_unreadable(d);
		return;
	}
	terra_value_header(d)->count = count;
	d->base = base;
	d->stride = d->offsets->scalar.size;
	TERRA_LOOP(count, terra_put_scalar_element, d);
}

static inline __attribute__((always_inline)) void terra_put_opt_scalar(struct terra_decoder *d, uint64_t address)
{
	uint8_t engaged = 0;

	if (!d->offsets->scalar.size || TERRA_READ(&engaged, 1, address + d->offsets->scalar.size)) {
		terra_unreadable(d);
		return;
	}
	if (engaged)
		terra_put_scalar(d, address);
	else
		terra_absent(d);
}

/* string_view is {length, pointer} in the C++ library and {pointer, length} in older c10: the pointer is the one that
 * cannot be a length. */
static inline __attribute__((always_inline)) void terra_put_string(struct terra_decoder *d, uint64_t length,
								   uint64_t pointer)
{
	uint64_t n;

	if (length >= TERRA_MAX_LIST) {
		uint64_t swapped = length;

		length = pointer;
		pointer = swapped;
	}
	if (length >= TERRA_MAX_LIST) {
		terra_unreadable(d);
		return;
	}
	n = length < TERRA_PACKED_STRING ? length : TERRA_PACKED_STRING;
	terra_make_room(d);
	terra_value_header(d)->count = length;
	terra_value_header(d)->recorded = n;
	if (n && TERRA_READ(TERRA_AT(d, uint8_t, d->pos), n, pointer)) {
		terra_value_header(d)->recorded = 0;
		terra_unreadable(d);
		return;
	}
	d->pos += (n + 7) & ~7ULL;
}

static inline __attribute__((always_inline)) void terra_put_bools(struct terra_decoder *d, const struct terra_object *o,
								  uint32_t count)
{
	if (count > 16)
		count = 16;
	terra_value_header(d)->count = count;
	terra_value_header(d)->recorded = count;
	for (uint32_t i = 0; i < 16; i++)
		if (i < count)
			terra_put_word(d, (o->w[i / 8] >> (i % 8 * 8)) & 1);
}

/* Bytes that an object of this kind has in memory; 0 when it is not read as words. */
static inline __attribute__((always_inline)) uint32_t terra_object_size(const struct terra_arg *arg)
{
	switch (arg->kind) {
	case TERRA_KIND_BOOL_ARRAY:
		return arg->count <= 16 ? arg->count : 16;
	case TERRA_KIND_BOOL:
	case TERRA_KIND_DTYPE:
	case TERRA_KIND_LAYOUT:
	case TERRA_KIND_MEMORY_FORMAT:
		return 1;
	case TERRA_KIND_OPT_BOOL:
	case TERRA_KIND_OPT_DTYPE:
	case TERRA_KIND_OPT_LAYOUT:
	case TERRA_KIND_OPT_MEMORY_FORMAT:
	case TERRA_KIND_DEVICE:
		return 2;
	case TERRA_KIND_OPT_DEVICE:
		return 3;
	case TERRA_KIND_TENSOR:
	case TERRA_KIND_OPT_TENSOR_LIST:
	case TERRA_KIND_INT:
	case TERRA_KIND_SYMINT:
	case TERRA_KIND_DOUBLE:
	case TERRA_KIND_STORAGE:
	case TERRA_KIND_KEYSET:
		return 8;
	case TERRA_KIND_OPT_TENSOR:
	case TERRA_KIND_TENSOR_LIST:
	case TERRA_KIND_SCALAR_LIST:
	case TERRA_KIND_OPT_INT:
	case TERRA_KIND_INT_LIST:
	case TERRA_KIND_OPT_SYMINT:
	case TERRA_KIND_SYMINT_LIST:
	case TERRA_KIND_OPT_DOUBLE:
	case TERRA_KIND_DOUBLE_LIST:
	case TERRA_KIND_STRING:
	case TERRA_KIND_GENERATOR:
		return 16;
	case TERRA_KIND_ITENSOR_LIST:
	case TERRA_KIND_OPT_INT_LIST:
	case TERRA_KIND_OPT_SYMINT_LIST:
	case TERRA_KIND_OPT_DOUBLE_LIST:
	case TERRA_KIND_OPT_STRING:
		return 24;
	default:
		return 0;
	}
}

/* The argument's own words, before anything is dereferenced. o->address is set for arguments on the stack. */
static inline __attribute__((always_inline)) int terra_fetch_words(const struct terra_regs *regs,
								   const struct terra_arg *arg, struct terra_object *o)
{
	switch (arg->place) {
	case TERRA_PLACE_GPR:
		o->w[0] = regs->gpr[arg->index & 7];
		if (arg->words > 1)
			o->w[1] = regs->gpr[(arg->index + 1) & 7];
		return 0;
	case TERRA_PLACE_SSE:
		o->w[0] = regs->xmm[arg->index & 7];
		return regs->has_xmm ? 0 : -1;
	case TERRA_PLACE_GPR_SSE:
		o->w[0] = regs->xmm[arg->index & 7];
		o->w[1] = regs->gpr[arg->index2 & 7];
		/* an absent optional<double> can be told without its payload */
		return regs->has_xmm || !(o->w[1] & 0xff) ? 0 : -1;
	case TERRA_PLACE_STACK:
		o->address = regs->sp + 8 + arg->offset;
		return 0;
	default:
		return -1;
	}
}

static inline __attribute__((always_inline)) int terra_fetch(const struct terra_decoder *d, const struct terra_arg *arg,
							     struct terra_object *o)
{
	uint32_t size = terra_object_size(arg);

	if (terra_fetch_words(d->regs, arg, o))
		return -1;
	if (arg->by_ref) {
		if (o->address && TERRA_READ(&o->w[0], 8, o->address))
			return -1;
		o->address = o->w[0];
		o->w[0] = 0;
	}
	if (o->address && size && TERRA_READ(o->w, size, o->address))
		return -1;
	if (size && size < 8 && arg->kind != TERRA_KIND_BOOL_ARRAY) /* what is above a narrow value in a register is garbage */
		o->w[0] &= (1ULL << size * 8) - 1;
	return 0;
}

static inline __attribute__((always_inline)) void terra_put_optional(struct terra_decoder *d, uint64_t engaged,
								     uint64_t word)
{
	if (engaged & 0xff)
		terra_put_word(d, word);
	else
		terra_absent(d);
}

static inline __attribute__((always_inline)) int64_t terra_device(uint64_t word)
{
	/* type << 8 | index, both signed bytes; in memory the type comes first */
	return (int64_t)(int8_t)word * 256 | ((word >> 8) & 0xff);
}

/* Kinds that are one word, or an optional of one. */
static inline __attribute__((always_inline)) void terra_put_simple(struct terra_decoder *d, uint8_t kind,
								   const struct terra_object *o)
{
	switch (kind) {
	case TERRA_KIND_INT:
	case TERRA_KIND_SYMINT:
	case TERRA_KIND_DOUBLE:
	case TERRA_KIND_STORAGE:
	case TERRA_KIND_KEYSET:
		terra_put_word(d, o->w[0]);
		break;
	case TERRA_KIND_BOOL:
		terra_put_word(d, o->w[0] & 1);
		break;
	case TERRA_KIND_DTYPE:
	case TERRA_KIND_LAYOUT:
	case TERRA_KIND_MEMORY_FORMAT:
		terra_put_word(d, (int64_t)(int8_t)o->w[0]);
		break;
	case TERRA_KIND_DEVICE:
		terra_put_word(d, terra_device(o->w[0]));
		break;
	case TERRA_KIND_OPT_INT:
	case TERRA_KIND_OPT_SYMINT:
	case TERRA_KIND_OPT_DOUBLE:
	case TERRA_KIND_GENERATOR:
		terra_put_optional(d, o->w[1], o->w[0]);
		break;
	case TERRA_KIND_OPT_BOOL:
		terra_put_optional(d, o->w[0] >> 8, o->w[0] & 1);
		break;
	case TERRA_KIND_OPT_DTYPE:
	case TERRA_KIND_OPT_LAYOUT:
	case TERRA_KIND_OPT_MEMORY_FORMAT:
		terra_put_optional(d, o->w[0] >> 8, (int64_t)(int8_t)o->w[0]);
		break;
	case TERRA_KIND_OPT_DEVICE:
		terra_put_optional(d, o->w[0] >> 16, terra_device(o->w[0]));
		break;
	default:
		terra_unreadable(d);
	}
}

/* Kinds whose object leads to memory elsewhere. */
static inline __attribute__((always_inline)) int terra_put_compound(struct terra_decoder *d, const struct terra_arg *arg,
								    const struct terra_object *o)
{
	switch (arg->kind) {
	case TERRA_KIND_TENSOR:
		terra_put_tensor(d, o->w[0]);
		return 1;
	case TERRA_KIND_OPT_TENSOR:
		if (o->w[1] & 0xff)
			terra_put_tensor(d, o->w[0]);
		else
			terra_absent(d);
		return 1;
	case TERRA_KIND_TENSOR_LIST:
		terra_put_tensors(d, o->w[0], o->w[1], 8, TERRA_LIST_TENSORS);
		return 1;
	case TERRA_KIND_ITENSOR_LIST:
		terra_put_list_ref(d, o);
		return 1;
	case TERRA_KIND_OPT_TENSOR_LIST:
		terra_put_ivalues(d, o->w[0]);
		return 1;
	case TERRA_KIND_SCALAR:
		terra_put_scalar(d, o->address);
		return 1;
	case TERRA_KIND_OPT_SCALAR:
		terra_put_opt_scalar(d, o->address);
		return 1;
	case TERRA_KIND_SCALAR_LIST:
		terra_put_scalars(d, o->w[0], o->w[1]);
		return 1;
	default:
		return 0;
	}
}

/* Kinds of a run of plain bytes or numbers. */
static inline __attribute__((always_inline)) int terra_put_run(struct terra_decoder *d, const struct terra_arg *arg,
							       const struct terra_object *o)
{
	switch (arg->kind) {
	case TERRA_KIND_INT_LIST:
	case TERRA_KIND_SYMINT_LIST:
	case TERRA_KIND_DOUBLE_LIST:
		terra_put_numbers(d, o->w[0], o->w[1]);
		return 1;
	case TERRA_KIND_OPT_INT_LIST:
	case TERRA_KIND_OPT_SYMINT_LIST:
	case TERRA_KIND_OPT_DOUBLE_LIST:
		if (o->w[2] & 0xff)
			terra_put_numbers(d, o->w[0], o->w[1]);
		else
			terra_absent(d);
		return 1;
	case TERRA_KIND_STRING:
		terra_put_string(d, o->w[0], o->w[1]);
		return 1;
	case TERRA_KIND_OPT_STRING:
		if (o->w[2] & 0xff)
			terra_put_string(d, o->w[0], o->w[1]);
		else
			terra_absent(d);
		return 1;
	case TERRA_KIND_BOOL_ARRAY:
		terra_put_bools(d, o, arg->count);
		return 1;
	default:
		return 0;
	}
}

static long terra_put_argument(uint64_t index, void *ctx)
{
	struct terra_decoder *d = ctx;
	const struct terra_arg *arg = &d->layout->args[index & (TERRA_MAX_ARGS - 1)];
	struct terra_object object = { 0, { 0, 0, 0 } };

	if (arg->kind == TERRA_KIND_KEYSET) {
		if (!terra_fetch(d, arg, &object))
			TERRA_RECORD_OF(d)->keyset = object.w[0];
		return 0;
	}
	/* A chunk that ends here continues the value before this one with no elements, which says nothing. */
	terra_make_room(d);
	terra_open_value(d, arg->kind, 0, 0);
	if (terra_fetch(d, arg, &object))
		terra_unreadable(d);
	else if (!terra_put_compound(d, arg, &object) && !terra_put_run(d, arg, &object))
		terra_put_simple(d, arg->kind, &object);
	terra_close_value(d);
	return 0;
}

/* The header of the first chunk. */
static inline __attribute__((always_inline)) void terra_begin(struct terra_decoder *d, uint8_t type, uint64_t time_ns)
{
	struct terra_record *record = TERRA_RECORD_OF(d);

	record->type = type;
	record->level = d->layout->level;
	record->unused = 0;
	record->op = d->op;
	record->tid = d->tid;
	record->producer = d->producer;
	record->chunk = 0;
	record->seq = 0;
	record->time_ns = time_ns;
	record->sp = d->regs->sp;
	record->return_address = 0;
	record->keyset = 0;
	d->pos = sizeof(*record);
	d->value = d->pos;
}

/* The Python call stack: `n` words, a pair per frame, as the last value of an ENTER. */
static inline __attribute__((always_inline)) void terra_put_frames(struct terra_decoder *d, uint64_t words, uint32_t n)
{
	terra_make_room(d);
	terra_open_value(d, TERRA_PACKED_FRAMES, 0, n / 2);
	terra_put_numbers(d, words, n);
	terra_close_value(d);
}

static inline __attribute__((always_inline)) void terra_decode_enter(struct terra_decoder *d, uint64_t time_ns)
{
	terra_begin(d, TERRA_RECORD_ENTER, time_ns);
	if (TERRA_READ(&TERRA_RECORD_OF(d)->return_address, 8, d->regs->sp))
		TERRA_RECORD_OF(d)->return_address = 0;
	TERRA_LOOP(d->layout->n_args, terra_put_argument, d);
#ifdef TERRA_STACK
	TERRA_STACK(d);
#endif
	terra_finish_chunk(d, 0);
}

/* std::tuple keeps its last element first. */
static long terra_put_tuple_element(uint64_t index, void *ctx)
{
	struct terra_decoder *d = ctx;
	uint64_t impl = 0;

	terra_make_room(d);
	terra_open_value(d, TERRA_KIND_TENSOR, 0, 0);
	if (TERRA_READ(&impl, 8, d->regs->rax + 8 * (d->count - 1 - index)) ||
	    (d->layout->ret == TERRA_RET_TENSOR_REFS && TERRA_READ(&impl, 8, impl)))
		terra_unreadable(d);
	else
		terra_put_tensor(d, impl);
	terra_close_value(d);
	return 0;
}

/* Results that are no tensors, as far as the schema says what they are. */
static inline __attribute__((always_inline)) void terra_put_value(struct terra_decoder *d)
{
	struct terra_object object = { 0, { d->regs->rax, 0, 0 } };
	uint8_t kind = d->layout->ret_kind;

	terra_open_value(d, kind, 0, 0);
	if (kind == TERRA_KIND_SCALAR)
		terra_put_scalar(d, d->regs->rax);
	else if (kind == TERRA_KIND_SYMINT && TERRA_READ(object.w, 8, d->regs->rax))
		terra_unreadable(d);
	else if (kind == TERRA_KIND_DOUBLE && !d->regs->has_xmm)
		terra_unreadable(d);
	else if (kind == TERRA_KIND_DOUBLE)
		terra_put_word(d, d->regs->xmm[0]);
	else
		terra_put_simple(d, kind, &object);
	terra_close_value(d);
}

static inline __attribute__((always_inline)) void terra_put_result(struct terra_decoder *d)
{
	switch (d->layout->ret) {
	case TERRA_RET_TENSOR_LIST:
		terra_open_value(d, TERRA_KIND_TENSOR_LIST, 0, 0);
		terra_put_vector(d, d->regs->rax, 8, TERRA_LIST_TENSORS);
		terra_close_value(d);
		break;
	case TERRA_RET_VALUE:
	case TERRA_RET_OTHER_SRET:
		terra_put_value(d);
		break;
	}
}

/* rax holds the address of what was returned: the hidden result, or the argument that a reference is to. */
static inline __attribute__((always_inline)) void terra_decode_exit(struct terra_decoder *d, uint64_t time_ns)
{
	uint8_t ret = d->layout->ret;
	uint64_t n = ret == TERRA_RET_TENSORS || ret == TERRA_RET_TENSOR_REFS ? d->layout->n_returns : 0;

	terra_begin(d, TERRA_RECORD_EXIT, time_ns);
	if (ret == TERRA_RET_TENSOR || ret == TERRA_RET_TENSOR_REF)
		n = 1;
	d->count = n;
	if (n)
		TERRA_LOOP(n, terra_put_tuple_element, d);
	else
		terra_put_result(d);
	terra_finish_chunk(d, 0);
}

#endif
