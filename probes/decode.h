/* decode.h - the one piece of code that reads an op's arguments and results, for both sides.
 *
 * It compiles as BPF C (clang -target bpf -ffreestanding) and as user-space C. Who includes it provides
 *   #define TERRA_READ(dst, size, src)   copies size bytes from the program's address src; 0 when it worked.
 *                                        BPF: bpf_probe_read_user. Default here: terra_read_memory, this process.
 *   #define TERRA_EMIT(d, record, size)  takes a finished chunk of `size` bytes; sets record->seq; may use d->sink.
 * and calls, with a struct terra_decoder it has filled as the struct says,
 *   terra_decode_enter(d)   one ENTER record with all arguments
 *   terra_decode_exit(d)    one EXIT record with the results
 *   terra_decode_function(d, form)   one FUNCTION record
 *   terra_decode_catch(d)   one CATCH record
 * whose registers are those of the op's first instruction and of its `ret`; terra_entry_regs() and terra_exit_regs() make
 * them of the registers at other instructions. Each function
 * emits one or more chunks. Before the last chunk of an ENTER the caller's TERRA_STACK(d) runs, when
 * defined: it may add a call stack with terra_put_frames.
 *
 * For the verifier: loops are bpf_loop callbacks; every write into the chunk is at a masked position, with room for
 * the largest single item behind it (TERRA_CHUNK_SLACK); layout, offsets, chunk and at are map values.
 */
#ifndef TERRA_PROBES_DECODE_H
#define TERRA_PROBES_DECODE_H

#include "probes/decode_chunk.h"
#include "probes/decode_site.h"
#include "probes/decode_tensor.h"
#include "probes/functions.h"

static long terra_put_block(uint64_t index, void *ctx)
{
	struct terra_decoder *d = ctx;
	uint64_t first = index * TERRA_BLOCK_INTS, n = d->at->count - first;

	if (first >= d->at->count)
		return 1;
	if (n > TERRA_BLOCK_INTS)
		n = TERRA_BLOCK_INTS;
	terra_make_room(d);
	if (TERRA_READ(TERRA_AT(d, uint8_t, d->at->pos), n * 8, d->at->base + first * 8)) {
		terra_unreadable(d);
		return 1;
	}
	d->at->pos += n * 8;
	terra_value_header(d)->recorded += n;
	return 0;
}

/* 8-byte elements, integers or doubles. */
TERRA_INLINE void terra_put_numbers(struct terra_decoder *d, uint64_t base, uint64_t count)
{
	if (count > TERRA_MAX_LIST) {
		terra_unreadable(d);
		return;
	}
	terra_value_header(d)->count = count;
	d->at->base = base;
	d->at->count = count;
	TERRA_LOOP((count + TERRA_BLOCK_INTS - 1) / TERRA_BLOCK_INTS, terra_put_block, d);
}

TERRA_INLINE char terra_scalar_tag(const struct terra_scalar_layout *layout, uint32_t tag)
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

TERRA_NOINLINE int terra_put_scalar(struct terra_decoder *d, uint64_t address)
{
	const struct terra_scalar_layout *layout = &d->offsets->scalar;
	struct terra_packed_scalar *scalar;
	uint32_t tag = 0;

	terra_make_room(d);
	scalar = TERRA_AT(d, struct terra_packed_scalar, d->at->pos);
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
	d->at->pos += sizeof(*scalar);
	terra_value_header(d)->recorded++;
	return 0;
}

static long terra_put_scalar_element(uint64_t index, void *ctx)
{
	struct terra_decoder *d = ctx;

	terra_put_scalar(d, d->at->base + index * d->at->stride);
	return 0;
}

TERRA_INLINE void terra_put_scalars(struct terra_decoder *d, uint64_t base, uint64_t count)
{
	if (count > TERRA_MAX_LIST || !d->offsets->scalar.size) {
		terra_unreadable(d);
		return;
	}
	terra_value_header(d)->count = count;
	d->at->base = base;
	d->at->stride = d->offsets->scalar.size;
	TERRA_LOOP(count, terra_put_scalar_element, d);
}

TERRA_INLINE void terra_put_opt_scalar(struct terra_decoder *d, uint64_t address)
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
TERRA_INLINE void terra_put_string(struct terra_decoder *d, uint64_t length, uint64_t pointer)
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
	if (n && TERRA_READ(TERRA_AT(d, uint8_t, d->at->pos), n, pointer)) {
		terra_value_header(d)->recorded = 0;
		terra_unreadable(d);
		return;
	}
	d->at->pos += (n + 7) & ~7ULL;
}

TERRA_INLINE void terra_put_bools(struct terra_decoder *d, const struct terra_object *o, uint32_t count)
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
TERRA_INLINE uint32_t terra_object_size(const struct terra_arg *arg)
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

TERRA_INLINE int terra_has_xmm(const struct terra_regs *regs, uint8_t index)
{
	return regs->has_xmm >> (index & 7) & 1;
}

/* The argument's own words, before anything is dereferenced. o->address is set for arguments on the stack. */
TERRA_INLINE int terra_fetch_words(const struct terra_regs *regs, const struct terra_arg *arg, struct terra_object *o)
{
	switch (arg->place) {
	case TERRA_PLACE_GPR:
		o->w[0] = regs->gpr[arg->index & 7];
		if (arg->words > 1)
			o->w[1] = regs->gpr[(arg->index + 1) & 7];
		return 0;
	case TERRA_PLACE_SSE:
		o->w[0] = regs->xmm[arg->index & 7];
		return terra_has_xmm(regs, arg->index) ? 0 : -1;
	case TERRA_PLACE_GPR_SSE:
		o->w[0] = regs->xmm[arg->index & 7];
		o->w[1] = regs->gpr[arg->index2 & 7];
		/* an absent optional<double> can be told without its payload */
		return terra_has_xmm(regs, arg->index) || !(o->w[1] & 0xff) ? 0 : -1;
	case TERRA_PLACE_STACK:
		o->address = regs->sp + 8 + arg->offset;
		return 0;
	default:
		return -1;
	}
}

TERRA_INLINE int terra_fetch(const struct terra_decoder *d, const struct terra_arg *arg, struct terra_object *o)
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

TERRA_INLINE void terra_put_optional(struct terra_decoder *d, uint64_t engaged, uint64_t word)
{
	if (engaged & 0xff)
		terra_put_word(d, word);
	else
		terra_absent(d);
}

TERRA_INLINE int64_t terra_device(uint64_t word)
{
	/* type << 8 | index, both signed bytes; in memory the type comes first */
	return (int64_t)(int8_t)word * 256 | ((word >> 8) & 0xff);
}

/* Kinds that are one word, or an optional of one. */
TERRA_INLINE void terra_put_simple(struct terra_decoder *d, uint8_t kind, const struct terra_object *o)
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
TERRA_INLINE int terra_put_compound(struct terra_decoder *d, const struct terra_arg *arg, const struct terra_object *o)
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
TERRA_INLINE int terra_put_run(struct terra_decoder *d, const struct terra_arg *arg, const struct terra_object *o)
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
TERRA_INLINE void terra_begin(struct terra_decoder *d, uint8_t type, uint64_t time_ns)
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
	d->at->node = 0;
	d->at->pos = sizeof(*record);
	d->at->value = d->at->pos;
}

/* The Python call stack: `n` words, as the last value of an ENTER. */
TERRA_INLINE void terra_put_frames(struct terra_decoder *d, uint64_t words, uint32_t n)
{
	terra_make_room(d);
	terra_open_value(d, TERRA_PACKED_FRAMES, 0, n);
	terra_put_numbers(d, words, n);
	terra_close_value(d);
}

/* The words of TERRA_PACKED_NODE. */
TERRA_INLINE void terra_put_words(struct terra_decoder *d, const uint64_t *words, uint32_t n)
{
	terra_make_room(d);
	terra_open_value(d, TERRA_PACKED_NODE, 0, n);
	for (uint32_t i = 0; i < n; i++)
		terra_put_word(d, words[i]);
	terra_value_header(d)->recorded = n;
	terra_close_value(d);
}

/* What autograd does on this thread, whose block of the library's storage is at `block`. */
TERRA_INLINE void terra_put_thread_node(struct terra_decoder *d, uint64_t block)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t words[3] = { 0, 0, 0 };

	if (!block || !off->next_sequence.known || TERRA_READ(&words[0], 8, block + off->next_sequence.offset))
		return;
	if (off->current_node.known && !TERRA_READ(&words[1], 8, block + off->current_node.offset) && words[1] &&
	    !terra_read_field(words[1], &off->node_sequence, &words[2]))
		terra_put_words(d, words, 3);
	else
		terra_put_words(d, words, 1);
}

TERRA_INLINE void terra_put_result_node(struct terra_decoder *d)
{
	uint64_t words[2] = { d->at->node, 0 };

	if (d->at->node && !terra_read_field(d->at->node, &d->offsets->node_sequence, &words[1]))
		terra_put_words(d, words, 2);
}

TERRA_INLINE void terra_decode_enter(struct terra_decoder *d, uint64_t time_ns)
{
	terra_begin(d, TERRA_RECORD_ENTER, time_ns);
	if (TERRA_READ(&TERRA_RECORD_OF(d)->return_address, 8, d->regs->sp))
		TERRA_RECORD_OF(d)->return_address = 0;
	TERRA_LOOP(d->layout->n_args, terra_put_argument, d);
#ifdef TERRA_STORAGE_BLOCK
	terra_put_thread_node(d, TERRA_STORAGE_BLOCK(d));
#endif
#ifdef TERRA_STACK
	TERRA_STACK(d);
#endif
	terra_finish_chunk(d, 0);
}

/* A tensor of which only the storage is known. */
TERRA_INLINE void terra_put_memory(struct terra_decoder *d, uint64_t storage, uint64_t data, uint64_t bytes)
{
	struct terra_packed_tensor *t;

	terra_open_value(d, TERRA_KIND_TENSOR, 0, 1);
	t = TERRA_AT(d, struct terra_packed_tensor, d->at->pos);
	*t = (struct terra_packed_tensor){ .storage = storage, .storage_data = data, .storage_bytes = bytes, .defined = 1,
					   .dtype = -1, .device_type = -1, .device_index = -1, .requires_grad = 0xff,
					   .flags = TERRA_TENSOR_NO_GEOMETRY };
	d->at->pos += sizeof(*t);
	terra_value_header(d)->recorded = 1;
	terra_close_value(d);
}

/* std::string; the name and, behind it, the overload of an operator. */
TERRA_INLINE void terra_put_std_string(struct terra_decoder *d, uint64_t address)
{
	uint64_t string[2] = { 0, 0 };

	terra_make_room(d);
	terra_open_value(d, TERRA_KIND_STRING, 0, 0);
	if (TERRA_READ(string, 16, address))
		terra_unreadable(d);
	else
		terra_put_string(d, string[1], string[0]);
	terra_close_value(d);
}

#define TERRA_STD_STRING_BYTES 32

TERRA_INLINE void terra_put_operator(struct terra_decoder *d, uint64_t operators, uint64_t n)
{
	const struct terra_offsets *off = d->offsets;
	uint64_t operator = 0, name = 0;

	if (!n || !off->operator_definition.known || !off->definition_name.known || TERRA_READ(&operator, 8, operators) ||
	    terra_read_field(operator, &off->operator_definition, &name))
		return;
	name += off->definition_name.offset;
	terra_put_std_string(d, name);
	if (n == 1) /* else which of the overloads it is is not decided yet */
		terra_put_std_string(d, name + TERRA_STD_STRING_BYTES);
}

TERRA_INLINE void terra_put_function_arguments(struct terra_decoder *d, uint32_t form)
{
	const uint64_t *gpr = d->regs->gpr;
	uint64_t object = 0, data = 0, bytes = 0;

	switch (form) {
	case TERRA_FUNCTION_TENSOR:
		terra_open_value(d, TERRA_KIND_TENSOR, 0, 1);
		if (TERRA_READ(&object, 8, gpr[0]))
			terra_unreadable(d);
		else
			terra_put_tensor(d, object);
		terra_close_value(d);
		break;
	case TERRA_FUNCTION_STORAGE:
		if (TERRA_READ(&object, 8, gpr[0]) || terra_read_field(object, &d->offsets->data_ptr, &data) ||
		    terra_read_field(object, &d->offsets->nbytes, &bytes))
			break;
		terra_put_memory(d, object, data, bytes >> 63 ? 0 : bytes);
		break;
	case TERRA_FUNCTION_BYTES:
		terra_put_memory(d, 0, gpr[2], gpr[3]);
		break;
	case TERRA_FUNCTION_OPERATORS:
		terra_put_operator(d, gpr[1], gpr[2]);
		break;
	}
}

/* The entry of a function of probes/functions.h. */
TERRA_INLINE void terra_decode_function(struct terra_decoder *d, uint32_t form, uint64_t time_ns)
{
	terra_begin(d, TERRA_RECORD_FUNCTION, time_ns);
	terra_put_function_arguments(d, form);
#ifdef TERRA_STACK
	TERRA_STACK(d);
#endif
	terra_finish_chunk(d, 0);
}

/* Where a handler begins: nothing but the place on the stack. */
TERRA_INLINE void terra_decode_catch(struct terra_decoder *d, uint64_t time_ns)
{
	terra_begin(d, TERRA_RECORD_CATCH, time_ns);
	terra_finish_chunk(d, 0);
}

/* std::tuple keeps its last element first. */
static long terra_put_tuple_element(uint64_t index, void *ctx)
{
	struct terra_decoder *d = ctx;
	uint64_t impl = 0;

	terra_make_room(d);
	terra_open_value(d, TERRA_KIND_TENSOR, 0, 0);
	if (TERRA_READ(&impl, 8, d->regs->rax + 8 * (d->at->count - 1 - index)) ||
	    (d->layout->ret == TERRA_RET_TENSOR_REFS && TERRA_READ(&impl, 8, impl)))
		terra_unreadable(d);
	else
		terra_put_tensor(d, impl);
	terra_close_value(d);
	return 0;
}

/* Results that are no tensors, as far as the schema says what they are. */
TERRA_INLINE void terra_put_value(struct terra_decoder *d)
{
	struct terra_object object = { 0, { d->regs->rax, 0, 0 } };
	uint8_t kind = d->layout->ret_kind;

	terra_open_value(d, kind, 0, 0);
	if (kind == TERRA_KIND_SCALAR)
		terra_put_scalar(d, d->regs->rax);
	else if (kind == TERRA_KIND_SYMINT && TERRA_READ(object.w, 8, d->regs->rax))
		terra_unreadable(d);
	else if (kind == TERRA_KIND_DOUBLE && !terra_has_xmm(d->regs, 0))
		terra_unreadable(d);
	else if (kind == TERRA_KIND_DOUBLE)
		terra_put_word(d, d->regs->xmm[0]);
	else
		terra_put_simple(d, kind, &object);
	terra_close_value(d);
}

TERRA_INLINE void terra_put_result(struct terra_decoder *d)
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
TERRA_INLINE void terra_decode_exit(struct terra_decoder *d, uint64_t time_ns)
{
	uint8_t ret = d->layout->ret;
	uint64_t n = ret == TERRA_RET_TENSORS || ret == TERRA_RET_TENSOR_REFS ? d->layout->n_returns : 0;

	terra_begin(d, TERRA_RECORD_EXIT, time_ns);
	if (ret == TERRA_RET_TENSOR || ret == TERRA_RET_TENSOR_REF)
		n = 1;
	d->at->count = n;
	if (n)
		TERRA_LOOP(n, terra_put_tuple_element, d);
	else
		terra_put_result(d);
	terra_put_result_node(d);
	terra_finish_chunk(d, 0);
}

#endif
