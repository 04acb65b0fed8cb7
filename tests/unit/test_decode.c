/* test_decode.c - the argument decoder on hand-made register sets and memory images of c10's structures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <unistd.h>

#include "probes/record.h"

struct terra_decoder;
static void take_chunk(struct terra_decoder *d, struct terra_record *record, uint32_t size);
#define TERRA_EMIT(d, record, size) take_chunk(d, record, size)
static uint64_t fake_block; /* the thread's storage */
#define TERRA_STORAGE_BLOCK(d) fake_block
#include "probes/decode.h"
#include "probes/tls.h"

/* Structures with a layout of our own: the decoder must follow the offsets, not a habit. */
struct fake_storage {
	uint64_t head[3];
	void *data;
	uint64_t flags;
	uint64_t nbytes;
};

struct fake_meta {
	uint64_t head[2];
	uint8_t requires_grad;
	void *grad_fn;
};

struct fake_tensor {
	uint64_t head;
	uint64_t keys;
	uint16_t type;
	int8_t device_type, device_index;
	int64_t numel;
	uint64_t ndim;
	int64_t sizes[5]; /* or the address of sizes and strides */
	int64_t strides[5];
	int64_t offset;
	struct fake_meta *meta;
	struct fake_storage *storage;
};

struct fake_scalar {
	uint64_t value[2];
	uint32_t tag;
	uint32_t pad[3];
};

#define FIELD(type, member) { offsetof(type, member), sizeof(((type *)0)->member), 1 }

static const struct terra_offsets fake_offsets = {
	.storage = FIELD(struct fake_tensor, storage),
	.autograd_meta = FIELD(struct fake_tensor, meta),
	.ndim = FIELD(struct fake_tensor, ndim),
	.sizes = { offsetof(struct fake_tensor, sizes), 8, 1 },
	.strides = { offsetof(struct fake_tensor, strides), 8, 1 },
	.storage_offset = FIELD(struct fake_tensor, offset),
	.numel = FIELD(struct fake_tensor, numel),
	.data_type = FIELD(struct fake_tensor, type),
	.device_type = FIELD(struct fake_tensor, device_type),
	.device_index = FIELD(struct fake_tensor, device_index),
	.key_set = FIELD(struct fake_tensor, keys),
	.inline_dims = 5,
	.data_ptr = FIELD(struct fake_storage, data),
	.nbytes = FIELD(struct fake_storage, nbytes),
	.requires_grad = FIELD(struct fake_meta, requires_grad),
	.grad_fn = FIELD(struct fake_meta, grad_fn),
	.undefined_type = 9,
	.scalar_type = { [3] = 6, [4] = 4, [5] = TERRA_DTYPE_UNKNOWN },
	.scalar = { sizeof(struct fake_scalar), offsetof(struct fake_scalar, tag), 0, 7, 5, 6, 4, 3 },
};

static struct {
	uint8_t bytes[64 * TERRA_CHUNK_SIZE];
	uint32_t size;
	uint32_t n_chunks;
	uint64_t seq;
} taken;
static uint64_t chunk_space[TERRA_CHUNK_BUFFER / 8], image_space[TERRA_IMAGE_WORDS];

static void take_chunk(struct terra_decoder *d, struct terra_record *record, uint32_t size)
{
	record->seq = taken.seq++;
	assert_true(size <= TERRA_CHUNK_SIZE);
	assert_true(taken.size + size <= sizeof(taken.bytes));
	assert_int_equal(size % 8, 0);
	memcpy(taken.bytes + taken.size, record, size);
	taken.size += size;
	taken.n_chunks++;
}

static void decode(struct terra_op_layout *layout, struct terra_regs *regs, const struct terra_offsets *offsets,
		   uint8_t type)
{
	struct terra_images images = terra_images_of(offsets);
	struct terra_cursor cursor;
	struct terra_decoder d = { .at = &cursor, .layout = layout, .offsets = offsets, .images = &images,
				   .image = image_space, .regs = regs, .op = 12, .tid = 34,
				   .chunk = (uint8_t *)chunk_space, .producer = 56 };

	memset(chunk_space, 0xa5, sizeof(chunk_space));
	memset(image_space, 0x5a, sizeof(image_space));
	taken.size = taken.n_chunks = 0;
	if (type == TERRA_RECORD_ENTER)
		terra_decode_enter(&d, 789);
	else
		terra_decode_exit(&d, 789);
}

static struct terra_packed *first_value(void)
{
	return (struct terra_packed *)(taken.bytes + sizeof(struct terra_record));
}

static struct terra_packed *next_value(struct terra_packed *value)
{
	return (struct terra_packed *)((uint8_t *)(value + 1) + value->bytes);
}

static int64_t payload(const struct terra_packed *value)
{
	return *(const int64_t *)(value + 1);
}

/* One argument of a kind, in rdi (and rsi). */
static struct terra_packed *decode_one(uint8_t kind, uint64_t rdi, uint64_t rsi, uint8_t words, uint8_t by_ref)
{
	static struct terra_op_layout layout;
	static struct terra_regs regs;
	static uint64_t stack[8];

	memset(&layout, 0, sizeof(layout));
	layout.n_args = 1;
	layout.args[0] = (struct terra_arg){ .kind = kind, .place = TERRA_PLACE_GPR, .words = words, .by_ref = by_ref,
					     .count = 3 };
	regs = (struct terra_regs){ .gpr = { rdi, rsi }, .sp = (uintptr_t)stack };
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_ENTER);
	assert_int_equal(first_value()->kind, kind);
	assert_ptr_equal((uint8_t *)next_value(first_value()), taken.bytes + taken.size);
	return first_value();
}

static struct fake_storage make_storage(void)
{
	return (struct fake_storage){ .data = (void *)0x123456789000, .nbytes = 4096 };
}

static struct fake_tensor make_tensor(struct fake_storage *storage, struct fake_meta *meta)
{
	return (struct fake_tensor){ .keys = 0x10001, .type = 3, .device_type = 0, .device_index = -1, .numel = 12,
				     .ndim = 2, .sizes = { 3, 4, 99, 99, 99 }, .strides = { 4, 1, 98, 98, 98 },
				     .offset = 7, .meta = meta, .storage = storage };
}

static void check_tensor(const struct terra_packed_tensor *t, const struct fake_tensor *impl)
{
	assert_int_equal(t->impl, (uintptr_t)impl);
	assert_int_equal(t->defined, 1);
	assert_int_equal(t->storage, (uintptr_t)impl->storage);
	assert_int_equal(t->storage_data, 0x123456789000);
	assert_int_equal(t->storage_bytes, 4096);
	assert_int_equal(t->numel, impl->numel);
	assert_int_equal(t->storage_offset, 7);
	assert_int_equal(t->ndim, impl->ndim);
	assert_int_equal(t->dtype, 6);
	assert_int_equal(t->device_type, 0);
	assert_int_equal(t->device_index, -1);
	assert_int_equal(t->flags, 0);
}

static void tensor_argument(void **state)
{
	struct fake_storage storage = make_storage();
	struct fake_meta meta = { .requires_grad = 1 };
	struct fake_tensor impl = make_tensor(&storage, &meta), *tensor = &impl;
	struct terra_packed *value = decode_one(TERRA_KIND_TENSOR, (uintptr_t)&tensor, 0, 1, 1);
	struct terra_packed_tensor *t = (struct terra_packed_tensor *)(value + 1);

	assert_int_equal(value->present, 1);
	assert_int_equal(value->recorded, 1);
	check_tensor(t, &impl);
	assert_int_equal(t->requires_grad, 1);
	assert_int_equal(t->dims, 2);
	assert_int_equal(t->geometry[0], 3);
	assert_int_equal(t->geometry[1], 4);
	assert_int_equal(t->geometry[2], 4);
	assert_int_equal(t->geometry[3], 1);
}

static void requires_grad_through_grad_fn(void **state)
{
	struct fake_storage storage = make_storage();
	struct fake_meta meta = { .requires_grad = 0 };
	struct fake_tensor impl = make_tensor(&storage, &meta), *tensor = &impl;
	struct terra_packed_tensor *t =
		(struct terra_packed_tensor *)(decode_one(TERRA_KIND_TENSOR, (uintptr_t)&tensor, 0, 1, 1) + 1);

	assert_int_equal(t->requires_grad, 0);
	meta.grad_fn = &meta;
	decode_one(TERRA_KIND_TENSOR, (uintptr_t)&tensor, 0, 1, 1);
	assert_int_equal(t->requires_grad, 1);
	impl.meta = NULL;
	decode_one(TERRA_KIND_TENSOR, (uintptr_t)&tensor, 0, 1, 1);
	assert_int_equal(t->requires_grad, 0);
}

struct fake_thread {
	uint64_t head[3];
	uint64_t next;
	void *node;
};

struct fake_node {
	uint64_t head[2];
	uint64_t number;
};

static struct terra_offsets offsets_with_nodes(void)
{
	struct terra_offsets offsets = fake_offsets;

	offsets.node_sequence = (struct terra_field)FIELD(struct fake_node, number);
	offsets.next_sequence = (struct terra_tls_field){ offsetof(struct fake_thread, next), 1 };
	offsets.current_node = (struct terra_tls_field){ offsetof(struct fake_thread, node), 1 };
	return offsets;
}

static void check_words(const struct terra_packed *value, uint32_t n, const uint64_t *words)
{
	assert_int_equal(value->kind, TERRA_PACKED_NODE);
	assert_int_equal(value->recorded, n);
	assert_memory_equal(value + 1, words, n * 8);
	assert_ptr_equal((uint8_t *)(value + 1) + value->bytes, taken.bytes + taken.size);
}

static void nodes_at_an_enter(void **state)
{
	struct fake_node node = { .number = 41 };
	struct fake_thread thread = { .next = 50 };
	struct terra_offsets offsets = offsets_with_nodes();
	struct terra_op_layout layout = { 0 };
	uint64_t stack = 0;
	struct terra_regs regs = { .sp = (uintptr_t)&stack };

	fake_block = (uintptr_t)&thread;
	decode(&layout, &regs, &offsets, TERRA_RECORD_ENTER);
	check_words(first_value(), 1, (uint64_t[]){ 50 });
	thread.node = &node;
	decode(&layout, &regs, &offsets, TERRA_RECORD_ENTER);
	check_words(first_value(), 3, (uint64_t[]){ 50, (uintptr_t)&node, 41 });
	offsets.current_node.known = 0;
	decode(&layout, &regs, &offsets, TERRA_RECORD_ENTER);
	check_words(first_value(), 1, (uint64_t[]){ 50 });
	offsets.next_sequence.known = 0;
	decode(&layout, &regs, &offsets, TERRA_RECORD_ENTER);
	assert_int_equal(taken.size, sizeof(struct terra_record));
	fake_block = 0;
}

/* Of two results the first that has one. */
static void nodes_at_an_exit(void **state)
{
	struct fake_storage storage = make_storage();
	struct fake_node node = { .number = 41 };
	struct fake_meta with = { .grad_fn = &node }, without = { .requires_grad = 1 };
	struct fake_tensor impls[2] = { make_tensor(&storage, &without), make_tensor(&storage, &with) };
	struct fake_tensor *tensors[2] = { &impls[1], &impls[0] }; /* tuples keep the last element first */
	struct terra_offsets offsets = offsets_with_nodes();
	struct terra_op_layout layout = { .ret = TERRA_RET_TENSORS, .n_returns = 2 };
	struct terra_regs regs = { .rax = (uintptr_t)tensors };

	decode(&layout, &regs, &offsets, TERRA_RECORD_EXIT);
	check_words(next_value(next_value(first_value())), 2, (uint64_t[]){ (uintptr_t)&node, 41 });
	with.grad_fn = NULL;
	decode(&layout, &regs, &offsets, TERRA_RECORD_EXIT);
	assert_ptr_equal((uint8_t *)next_value(next_value(first_value())), taken.bytes + taken.size);
}

/* The entry of a function, with registers; the values are taken. */
static struct terra_packed *decode_function(uint32_t form, const struct terra_offsets *offsets, const uint64_t *gpr)
{
	static const struct terra_op_layout no_op;
	struct terra_regs regs = { .gpr = { gpr[0], gpr[1], gpr[2], gpr[3] } };
	struct terra_images images = terra_images_of(offsets);
	struct terra_cursor cursor;
	struct terra_decoder d = { .at = &cursor, .layout = &no_op, .offsets = offsets, .images = &images,
				   .image = image_space, .regs = &regs, .op = 3, .tid = 34,
				   .chunk = (uint8_t *)chunk_space, .producer = 56 };

	memset(chunk_space, 0xa5, sizeof(chunk_space));
	memset(image_space, 0x5a, sizeof(image_space));
	taken.size = taken.n_chunks = 0;
	terra_decode_function(&d, form, 789);
	assert_int_equal(((struct terra_record *)taken.bytes)->type, TERRA_RECORD_FUNCTION);
	assert_int_equal(((struct terra_record *)taken.bytes)->op, 3);
	return first_value();
}

static void handlers_of_exceptions(void **state)
{
	const struct terra_record *record = (struct terra_record *)taken.bytes;
	static const struct terra_op_layout no_op;
	struct terra_regs regs = { .sp = 0x7fff12345678 };
	struct terra_cursor cursor;
	struct terra_decoder d = { .at = &cursor, .layout = &no_op, .regs = &regs, .tid = 34,
				   .chunk = (uint8_t *)chunk_space, .producer = 56 };

	memset(chunk_space, 0xa5, sizeof(chunk_space));
	taken.size = taken.n_chunks = 0;
	terra_decode_catch(&d, 789);
	assert_int_equal(taken.n_chunks, 1);
	assert_int_equal(taken.size, sizeof(*record));
	assert_int_equal(record->size, sizeof(*record));
	assert_int_equal(record->type, TERRA_RECORD_CATCH);
	assert_int_equal(record->sp, 0x7fff12345678);
	assert_int_equal(record->tid, 34);
	assert_int_equal(record->time_ns, 789);
}

static void functions_that_read(void **state)
{
	struct fake_storage storage = make_storage(), *storage_pointer = &storage;
	struct fake_tensor impl = make_tensor(&storage, NULL), *tensor = &impl;
	struct terra_packed_tensor *t = (struct terra_packed_tensor *)(first_value() + 1);

	decode_function(TERRA_FUNCTION_TENSOR, &fake_offsets, (uint64_t[4]){ (uintptr_t)&tensor });
	check_tensor(t, &impl);
	assert_int_equal(decode_function(TERRA_FUNCTION_TENSOR, &fake_offsets, (uint64_t[4]){ 8 })->present, 0);
	decode_function(TERRA_FUNCTION_STORAGE, &fake_offsets, (uint64_t[4]){ (uintptr_t)&storage_pointer });
	assert_int_equal(t->storage, (uintptr_t)&storage);
	assert_int_equal(t->storage_data, 0x123456789000);
	assert_int_equal(t->storage_bytes, 4096);
	assert_int_equal(t->flags, TERRA_TENSOR_NO_GEOMETRY);
	decode_function(TERRA_FUNCTION_BYTES, &fake_offsets, (uint64_t[4]){ 1, 2, 0x5000, 77 });
	assert_int_equal(t->storage_data, 0x5000);
	assert_int_equal(t->storage_bytes, 77);
	assert_int_equal(t->dtype, -1);
	decode_function(TERRA_FUNCTION_PLAIN, &fake_offsets, (uint64_t[4]){ 8, 8, 8, 8 });
	assert_int_equal(taken.size, sizeof(struct terra_record));
}

static void functions_that_call_operators(void **state)
{
	struct {
		const char *characters;
		uint64_t size;
		char room[16];
	} names[2] = { { "torchvision::nms", 16, "" }, { NULL, 7, "Tensor_" } };
	uint64_t operator[2] = { 0, (uintptr_t)names }, shared[4] = { (uintptr_t)operator, 0, (uintptr_t)operator, 0 };
	struct terra_offsets offsets = fake_offsets;
	struct terra_packed *value;

	_Static_assert(sizeof(names[0]) == TERRA_STD_STRING_BYTES, "as std::string");
	names[1].characters = names[1].room;
	decode_function(TERRA_FUNCTION_OPERATORS, &offsets, (uint64_t[4]){ 1, (uintptr_t)shared, 1 });
	assert_int_equal(taken.size, sizeof(struct terra_record)); /* where the name lies is not known */
	offsets.operator_definition = (struct terra_field){ 8, 8, 1 };
	offsets.definition_name = (struct terra_field){ 0, 8, 1 };
	value = decode_function(TERRA_FUNCTION_OPERATORS, &offsets, (uint64_t[4]){ 1, (uintptr_t)shared, 1 });
	assert_int_equal(value->kind, TERRA_KIND_STRING);
	assert_int_equal(value->count, 16);
	assert_memory_equal(value + 1, "torchvision::nms", 16);
	assert_int_equal(next_value(value)->count, 7);
	assert_memory_equal(next_value(value) + 1, "Tensor_", 7);
	/* several overloads: the name alone */
	value = decode_function(TERRA_FUNCTION_OPERATORS, &offsets, (uint64_t[4]){ 1, (uintptr_t)shared, 2 });
	assert_ptr_equal((uint8_t *)next_value(value), taken.bytes + taken.size);
}

static void blocks_of_thread_local_storage(void **state)
{
	uint64_t vector[10] = { 3, 0, 0, 0, 0x1000, 0, ~0ull, 0, 0x3000, 0 }; /* its size, a generation, modules 1 to 3 */
	uint64_t thread[2] = { 0, (uintptr_t)&vector[2] }, pointer = (uintptr_t)thread;

	assert_int_equal(terra_tls_block(pointer, 1), 0x1000);
	assert_int_equal(terra_tls_block(pointer, 2), 0); /* not made yet */
	assert_int_equal(terra_tls_block(pointer, 3), 0x3000);
	assert_int_equal(terra_tls_block(pointer, 4), 0);
	assert_int_equal(terra_tls_block(pointer, 0), 0);
	assert_int_equal(terra_tls_block(0, 1), 0);
}

static void tensor_of_many_dimensions(void **state)
{
	struct fake_storage storage = make_storage();
	struct fake_tensor impl = make_tensor(&storage, NULL), *tensor = &impl;
	int64_t block[20] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -1, -2, -3, -4, -5, -6, -7, -8, -9, -10 };
	struct terra_packed_tensor *t;

	impl.ndim = 10;
	impl.sizes[0] = (intptr_t)block;
	t = (struct terra_packed_tensor *)(decode_one(TERRA_KIND_TENSOR, (uintptr_t)&tensor, 0, 1, 1) + 1);
	assert_int_equal(t->ndim, 10);
	assert_int_equal(t->dims, 8);
	assert_memory_equal(t->geometry, block, 8 * 8);
	assert_memory_equal(t->geometry + 8, block + 10, 8 * 8);
}

static void undefined_and_unreadable_tensors(void **state)
{
	struct fake_storage storage = make_storage();
	struct fake_tensor impl = make_tensor(&storage, NULL), *tensor = &impl;
	struct terra_packed *value;
	struct terra_packed_tensor *t;

	impl.type = 9;
	value = decode_one(TERRA_KIND_TENSOR, (uintptr_t)&tensor, 0, 1, 1);
	t = (struct terra_packed_tensor *)(value + 1);
	assert_int_equal(value->present, 1);
	assert_int_equal(t->defined, 0);
	assert_int_equal(t->dims, 0);
	value = decode_one(TERRA_KIND_TENSOR, 8, 0, 1, 1); /* a pointer to nowhere */
	assert_int_equal(value->present, 0);
	assert_int_equal(value->flags, TERRA_PACKED_UNREADABLE);
	assert_int_equal(value->bytes, 0);
}

/* A tensor argument, at `tensor`, with other offsets. */
static struct terra_packed_tensor *decode_tensor_with(const struct terra_offsets *offsets, void *tensor)
{
	struct terra_op_layout layout = { .n_args = 1, .args = { { .kind = TERRA_KIND_TENSOR, .words = 1, .by_ref = 1,
								   .place = TERRA_PLACE_GPR } } };
	struct terra_regs regs = { .gpr = { (uintptr_t)&tensor }, .sp = (uintptr_t)&regs };

	decode(&layout, &regs, offsets, TERRA_RECORD_ENTER);
	return (struct terra_packed_tensor *)(first_value() + 1);
}

static void fields_that_are_not_known(void **state)
{
	struct fake_storage storage = make_storage();
	struct fake_tensor impl = make_tensor(&storage, NULL);
	struct terra_offsets offsets = fake_offsets;
	struct terra_packed_tensor *t;

	offsets.storage.known = offsets.strides.known = offsets.data_type.known = offsets.autograd_meta.known = 0;
	t = decode_tensor_with(&offsets, &impl);
	assert_int_equal(t->defined, 1);
	assert_int_equal(t->flags, TERRA_TENSOR_NO_STORAGE | TERRA_TENSOR_NO_GEOMETRY);
	assert_int_equal(t->storage, 0);
	assert_int_equal(t->dtype, -1);
	assert_int_equal(t->requires_grad, 0xff);
	impl.keys = 0; /* without a known type the dispatch keys tell */
	decode_tensor_with(&offsets, &impl);
	assert_int_equal(t->defined, 0);
	impl.keys = 0x8000;
	offsets.strides.known = 1;
	offsets.inline_dims = 0; /* only up to one dimension is safe then */
	decode_tensor_with(&offsets, &impl);
	assert_int_equal(t->flags, TERRA_TENSOR_NO_STORAGE | TERRA_TENSOR_NO_GEOMETRY);
}

/* A copy of `bytes` bytes that ends where memory does. */
static void *at_the_end(const void *object, size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	uint8_t *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(pages, MAP_FAILED);
	assert_int_equal(mprotect(pages + page, page, PROT_NONE), 0);
	return memcpy(pages + page - bytes, object, bytes);
}

static void let_go(void *object, size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	munmap((uint8_t *)object + bytes - page, 2 * page);
}

/* Structures are read as far as their last field, and no byte further. */
static void nothing_is_read_behind_a_structure(void **state)
{
	struct fake_storage made = make_storage(), *storage = at_the_end(&made, sizeof(made));
	struct fake_meta *meta = at_the_end(&(struct fake_meta){ .requires_grad = 1 }, sizeof(*meta));
	struct fake_tensor impl = make_tensor(storage, meta), *tensor = at_the_end(&impl, sizeof(impl));
	struct terra_packed_tensor *t =
		(struct terra_packed_tensor *)(decode_one(TERRA_KIND_TENSOR, (uintptr_t)&tensor, 0, 1, 1) + 1);

	check_tensor(t, tensor);
	assert_int_equal(t->requires_grad, 1);
	assert_memory_equal(t->geometry, ((int64_t[]){ 3, 4, 4, 1 }), 32);
	let_go(storage, sizeof(*storage));
	let_go(meta, sizeof(*meta));
	let_go(tensor, sizeof(*tensor));
}

/* A structure that is larger than any that was seen: what lies beyond is not read, and the rest is. */
static void fields_too_far_from_the_beginning(void **state)
{
	static uint64_t large[2 * TERRA_IMAGE_BYTES / 8];
	struct fake_storage storage = make_storage();
	struct fake_tensor impl = make_tensor(&storage, NULL);
	struct terra_packed_tensor *t;
	struct terra_offsets offsets = fake_offsets;

	memcpy(large, &impl, sizeof(impl));
	offsets.storage.offset = offsets.strides.offset = TERRA_IMAGE_BYTES;
	t = decode_tensor_with(&offsets, large);
	assert_int_equal(t->flags, TERRA_TENSOR_NO_STORAGE | TERRA_TENSOR_NO_GEOMETRY);
	assert_int_equal(t->storage, 0);
	assert_int_equal(t->dims, 0);
	assert_int_equal(t->numel, 12);
	assert_int_equal(t->dtype, 6);
	assert_int_equal(t->requires_grad, 0);
}

static void optional_tensor(void **state)
{
	struct fake_storage storage = make_storage();
	struct fake_tensor impl = make_tensor(&storage, NULL);
	struct {
		struct fake_tensor *tensor;
		uint8_t engaged;
	} optional = { &impl, 1 };
	struct terra_packed *value = decode_one(TERRA_KIND_OPT_TENSOR, (uintptr_t)&optional, 0, 1, 1);

	assert_int_equal(value->present, 1);
	check_tensor((struct terra_packed_tensor *)(value + 1), &impl);
	optional.engaged = 0;
	value = decode_one(TERRA_KIND_OPT_TENSOR, (uintptr_t)&optional, 0, 1, 1);
	assert_int_equal(value->present, 0);
	assert_int_equal(value->flags, 0);
	assert_int_equal(value->bytes, 0);
}

/* All pieces of the only value, over all chunks. */
static uint32_t count_list_elements(const struct fake_tensor *impls, uint32_t *pieces)
{
	uint32_t n = 0, at = 0, chunk = 0;

	*pieces = 0;
	while (at < taken.size) {
		struct terra_record *record = (struct terra_record *)(taken.bytes + at);
		struct terra_packed *value = (struct terra_packed *)(record + 1);
		uint8_t *element = (uint8_t *)(value + 1);

		at += record->size;
		assert_int_equal(record->chunk, chunk++);
		assert_int_equal(record->flags, at < taken.size ? TERRA_RECORD_MORE : 0);
		assert_int_equal(value->flags, *pieces ? TERRA_PACKED_CONTINUED : 0);
		assert_ptr_equal(element + value->bytes, taken.bytes + at);
		for (uint32_t i = 0; i < value->recorded; i++) {
			check_tensor((struct terra_packed_tensor *)element, &impls[n++]);
			element += sizeof(struct terra_packed_tensor) +
				   16 * ((struct terra_packed_tensor *)element)->dims;
		}
		assert_ptr_equal(element, taken.bytes + at);
		(*pieces)++;
	}
	return n;
}

static void long_tensor_list_spans_chunks(void **state)
{
	enum { N = 1000 };
	struct fake_storage storage = make_storage();
	struct fake_tensor *impls = calloc(N, sizeof(*impls)), **list = calloc(N, sizeof(*list));
	struct terra_op_layout layout = { .n_args = 1, .args = { { .kind = TERRA_KIND_TENSOR_LIST, .words = 2,
								   .place = TERRA_PLACE_GPR, .index = 1 } } };
	struct terra_regs regs = { .gpr = { 0, (uintptr_t)list, N }, .sp = (uintptr_t)&regs };
	uint32_t pieces;

	for (int i = 0; i < N; i++) {
		impls[i] = make_tensor(&storage, NULL);
		impls[i].numel = i;
		impls[i].ndim = i % 5;
		list[i] = &impls[i];
	}
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_ENTER);
	assert_int_equal(first_value()->count, N);
	assert_int_equal(count_list_elements(impls, &pieces), N);
	assert_true(pieces > 4);
	free(impls);
	free(list);
}

static void other_tensor_lists(void **state)
{
	struct fake_storage storage = make_storage();
	struct fake_tensor impls[2] = { make_tensor(&storage, NULL), make_tensor(&storage, NULL) };
	struct fake_tensor *tensors[2] = { &impls[0], &impls[1] }, **references[2] = { &tensors[0], &tensors[1] };
	struct {
		uint64_t payload, tag;
	} ivalues[2] = { { (uintptr_t)&impls[0], TERRA_IVALUE_TENSOR }, { 77, TERRA_IVALUE_NONE } };
	struct {
		uint64_t head[3];
		void *begin, *end;
	} impl = { { 0 }, ivalues, ivalues + 2 }, *list = &impl;
	struct {
		void *begin, *end;
	} vector = { references, references + 2 };
	uint64_t unboxed[3] = { (uintptr_t)tensors, 2, 0 }, boxed[3] = { (uintptr_t)&list, 0, 1 };
	uint64_t materialized[3] = { (uintptr_t)&vector, 0, 2 }, none[3] = { 0, 0, 3 };
	struct terra_packed *value;
	uint32_t pieces;

	value = decode_one(TERRA_KIND_ITENSOR_LIST, (uintptr_t)unboxed, 0, 1, 1);
	assert_int_equal(count_list_elements(impls, &pieces), 2);
	value = decode_one(TERRA_KIND_ITENSOR_LIST, (uintptr_t)materialized, 0, 1, 1);
	assert_int_equal(count_list_elements(impls, &pieces), 2);
	value = decode_one(TERRA_KIND_ITENSOR_LIST, (uintptr_t)none, 0, 1, 1);
	assert_int_equal(value->flags, TERRA_PACKED_UNREADABLE);
	for (int kind = 0; kind < 2; kind++) {
		value = kind ? decode_one(TERRA_KIND_OPT_TENSOR_LIST, (uintptr_t)&list, 0, 1, 1) :
			       decode_one(TERRA_KIND_ITENSOR_LIST, (uintptr_t)boxed, 0, 1, 1);
		assert_int_equal(value->recorded, 2);
		check_tensor((struct terra_packed_tensor *)(value + 1), &impls[0]);
		assert_int_equal(((struct terra_packed_tensor *)((uint8_t *)(value + 1) + 56 + 32))->defined, 0);
	}
	/* a count that no list has is a misread pointer, not a list */
	value = decode_one(TERRA_KIND_TENSOR_LIST, (uintptr_t)tensors, 1ULL << 40, 2, 0);
	assert_int_equal(value->flags, TERRA_PACKED_UNREADABLE);
	assert_int_equal(value->recorded, 0);
}

static void scalars(void **state)
{
	struct fake_scalar list[4] = { { .tag = 7 }, { { (uint64_t)-5 }, 5, { 0 } }, { { 0xab01 }, 3, { 0 } },
				       { { 1, 2 }, 4, { 0 } } };
	const struct terra_packed_scalar *s;
	struct terra_packed *value;
	struct {
		struct fake_scalar scalar;
		uint8_t engaged;
	} optional;

	memcpy(list[0].value, &(double){ 0.25 }, 8);
	list[0].value[1] = 1234; /* the unused half of the union is garbage */
	value = decode_one(TERRA_KIND_SCALAR_LIST, (uintptr_t)list, 4, 2, 0);
	s = (const struct terra_packed_scalar *)(value + 1);
	assert_int_equal(value->count, 4);
	assert_int_equal(value->recorded, 4);
	assert_int_equal(s[0].tag, 'f');
	assert_memory_equal(&s[0].value[0], &(double){ 0.25 }, 8);
	assert_int_equal(s[0].value[1], 0);
	assert_int_equal(s[1].tag, 'i');
	assert_int_equal((int64_t)s[1].value[0], -5);
	assert_int_equal(s[2].tag, 'b');
	assert_int_equal(s[2].value[0], 1);
	assert_int_equal(s[3].tag, 'z');
	assert_int_equal(s[3].value[1], 2);
	list[1].tag = 9;
	value = decode_one(TERRA_KIND_SCALAR, (uintptr_t)&list[1], 0, 1, 1);
	assert_int_equal(((const struct terra_packed_scalar *)(value + 1))->tag, 's');
	optional.scalar = list[0];
	optional.engaged = 0;
	assert_int_equal(decode_one(TERRA_KIND_OPT_SCALAR, (uintptr_t)&optional, 0, 1, 1)->present, 0);
	optional.engaged = 1;
	value = decode_one(TERRA_KIND_OPT_SCALAR, (uintptr_t)&optional, 0, 1, 1);
	assert_int_equal(((const struct terra_packed_scalar *)(value + 1))->tag, 'f');
}

static void number_lists(void **state)
{
	int64_t ints[5000];
	uint64_t optional[3] = { (uintptr_t)ints, 3, 1 }, at = 0, n = 0;
	struct terra_packed *value;

	for (int i = 0; i < 5000; i++)
		ints[i] = i * 3 - 1000;
	value = decode_one(TERRA_KIND_INT_LIST, (uintptr_t)ints, 3, 2, 0);
	assert_int_equal(value->count, 3);
	assert_int_equal(value->recorded, 3);
	assert_memory_equal(value + 1, ints, 24);
	value = decode_one(TERRA_KIND_OPT_INT_LIST, (uintptr_t)optional, 0, 1, 1);
	assert_memory_equal(value + 1, ints, 24);
	optional[2] = 0xffffff00;
	assert_int_equal(decode_one(TERRA_KIND_OPT_INT_LIST, (uintptr_t)optional, 0, 1, 1)->present, 0);
	assert_int_equal(decode_one(TERRA_KIND_INT_LIST, 0, 0, 2, 0)->recorded, 0);
	assert_int_equal(decode_one(TERRA_KIND_INT_LIST, 8, 3, 2, 0)->flags, TERRA_PACKED_UNREADABLE);

	struct terra_op_layout layout = { .n_args = 1, .args = { { .kind = TERRA_KIND_SYMINT_LIST, .words = 2,
								   .place = TERRA_PLACE_GPR } } };
	struct terra_regs regs = { .gpr = { (uintptr_t)ints, 5000 }, .sp = (uintptr_t)&regs };

	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_ENTER);
	assert_true(taken.n_chunks > 1);
	while (at < taken.size) {
		struct terra_record *record = (struct terra_record *)(taken.bytes + at);

		value = (struct terra_packed *)(record + 1);
		assert_int_equal(value->count, 5000);
		assert_memory_equal(value + 1, ints + n, value->recorded * 8);
		n += value->recorded;
		at += record->size;
	}
	assert_int_equal(n, 5000);
}

static void words_and_optionals(void **state)
{
	uint64_t optional[2] = { 42, 1 };
	struct terra_packed *value;

	assert_int_equal(payload(decode_one(TERRA_KIND_INT, (uint64_t)-3, 0, 1, 0)), -3);
	assert_int_equal(payload(decode_one(TERRA_KIND_BOOL, 0xffffff01, 0, 1, 0)), 1);
	assert_int_equal(payload(decode_one(TERRA_KIND_BOOL, 0xffffff00, 0, 1, 0)), 0);
	assert_int_equal(payload(decode_one(TERRA_KIND_DTYPE, 0xabcdef06, 0, 1, 0)), 6);
	assert_int_equal(payload(decode_one(TERRA_KIND_OPT_DTYPE, 0xabcd0106, 0, 1, 0)), 6);
	assert_int_equal(decode_one(TERRA_KIND_OPT_DTYPE, 0xabcd0006, 0, 1, 0)->present, 0);
	assert_int_equal(payload(decode_one(TERRA_KIND_OPT_BOOL, 0x77000100, 0, 1, 0)), 0);
	assert_int_equal(payload(decode_one(TERRA_KIND_OPT_BOOL, 0x77000101, 0, 1, 0)), 1);
	assert_int_equal(payload(decode_one(TERRA_KIND_DEVICE, 0x5502ff01 & ~0xff00u, 0, 1, 0)), 0x100);
	assert_int_equal(payload(decode_one(TERRA_KIND_OPT_DEVICE, 0x5501ff00, 0, 1, 0)), 0xff);
	assert_int_equal(decode_one(TERRA_KIND_OPT_DEVICE, 0x5500ff00, 0, 1, 0)->present, 0);
	assert_int_equal(payload(decode_one(TERRA_KIND_OPT_INT, 17, 0xcc01, 2, 0)), 17);
	assert_int_equal(decode_one(TERRA_KIND_OPT_INT, 17, 0xcc00, 2, 0)->present, 0);
	assert_int_equal(payload(decode_one(TERRA_KIND_OPT_SYMINT, (uintptr_t)optional, 0, 1, 1)), 42);
	value = decode_one(TERRA_KIND_GENERATOR, (uintptr_t)optional, 0, 1, 1);
	assert_int_equal(value->present, 1);
	value = decode_one(TERRA_KIND_BOOL_ARRAY, 0x00010001, 0, 1, 0);
	assert_int_equal(value->recorded, 3);
	assert_memory_equal(value + 1, ((int64_t[]){ 1, 0, 1 }), 24);
	assert_int_equal(decode_one(TERRA_KIND_OPAQUE, 1, 0, 1, 0)->flags, TERRA_PACKED_UNREADABLE);
}

static void strings(void **state)
{
	static const char text[] = "mean of it";
	uint64_t optional[3] = { sizeof(text) - 1, (uintptr_t)text, 1 };
	struct terra_packed *value;
	char big[1000];

	value = decode_one(TERRA_KIND_STRING, sizeof(text) - 1, (uintptr_t)text, 2, 0);
	assert_int_equal(value->count, 10);
	assert_int_equal(value->bytes, 16);
	assert_memory_equal(value + 1, text, 10);
	value = decode_one(TERRA_KIND_STRING, (uintptr_t)text, sizeof(text) - 1, 2, 0); /* pointer first */
	assert_memory_equal(value + 1, text, 10);
	value = decode_one(TERRA_KIND_OPT_STRING, (uintptr_t)optional, 0, 1, 1);
	assert_memory_equal(value + 1, text, 10);
	optional[2] = 0;
	assert_int_equal(decode_one(TERRA_KIND_OPT_STRING, (uintptr_t)optional, 0, 1, 1)->present, 0);
	memset(big, 'x', sizeof(big));
	value = decode_one(TERRA_KIND_STRING, sizeof(big), (uintptr_t)big, 2, 0);
	assert_int_equal(value->count, 1000);
	assert_int_equal(value->recorded, TERRA_PACKED_STRING);
}

/* call(sret, Tensor const &, optional<double>, double, ..., IntArrayRef on the stack, bool on the stack) */
static void places(void **state)
{
	struct fake_storage storage = make_storage();
	struct fake_tensor impl = make_tensor(&storage, NULL), *tensor = &impl;
	int64_t ints[2] = { 8, 9 };
	uint64_t stack[5] = { 0xfeed, (uintptr_t)ints, 2, 0xffffff01, (uintptr_t)&tensor };
	struct terra_op_layout layout = {
		.level = TERRA_LEVEL_REDISPATCH,
		.n_args = 7,
		.args = {
			{ .kind = TERRA_KIND_KEYSET, .place = TERRA_PLACE_GPR, .index = 1, .words = 1 },
			{ .kind = TERRA_KIND_OPT_DOUBLE, .place = TERRA_PLACE_GPR_SSE, .index = 0, .index2 = 3, .words = 2 },
			{ .kind = TERRA_KIND_DOUBLE, .place = TERRA_PLACE_SSE, .index = 1, .words = 1 },
			{ .kind = TERRA_KIND_INT_LIST, .place = TERRA_PLACE_STACK, .offset = 0, .words = 2 },
			{ .kind = TERRA_KIND_BOOL, .place = TERRA_PLACE_STACK, .offset = 16, .words = 1 },
			{ .kind = TERRA_KIND_TENSOR, .place = TERRA_PLACE_STACK, .offset = 24, .words = 1, .by_ref = 1 },
			{ .kind = TERRA_KIND_OPAQUE, .place = TERRA_PLACE_UNKNOWN },
		},
	};
	struct terra_regs regs = { .gpr = { 1, 0x8001, 3, 0x101 }, .sp = (uintptr_t)stack, .has_xmm = 0xff };
	struct terra_record *record = (struct terra_record *)taken.bytes;
	struct terra_packed *value;

	memcpy(regs.xmm, ((double[]){ 0.5, 0.75 }), 16);
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_ENTER);
	assert_int_equal(record->type, TERRA_RECORD_ENTER);
	assert_int_equal(record->level, TERRA_LEVEL_REDISPATCH);
	assert_int_equal(record->keyset, 0x8001);
	assert_int_equal(record->sp, (uintptr_t)stack);
	assert_int_equal(record->return_address, 0xfeed);
	assert_int_equal(record->op, 12);
	assert_int_equal(record->tid, 34);
	assert_int_equal(record->producer, 56);
	assert_int_equal(record->time_ns, 789);
	value = first_value();
	assert_memory_equal(value + 1, &(double){ 0.5 }, 8);
	value = next_value(value);
	assert_memory_equal(value + 1, &(double){ 0.75 }, 8);
	value = next_value(value);
	assert_memory_equal(value + 1, ints, 16);
	value = next_value(value);
	assert_int_equal(payload(value), 1);
	value = next_value(value);
	check_tensor((struct terra_packed_tensor *)(value + 1), &impl);
	assert_int_equal(next_value(value)->flags, TERRA_PACKED_UNREADABLE);
	/* each register is readable or not for itself */
	regs.has_xmm = 2;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_ENTER);
	assert_int_equal(first_value()->flags, TERRA_PACKED_UNREADABLE);
	assert_int_equal(next_value(first_value())->flags, 0);
	/* without xmm registers doubles are unreadable, and an absent optional is still absent */
	regs.has_xmm = 0;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_ENTER);
	assert_int_equal(first_value()->flags, TERRA_PACKED_UNREADABLE);
	assert_int_equal(next_value(first_value())->flags, TERRA_PACKED_UNREADABLE);
	regs.gpr[3] = 0xff00;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_ENTER);
	assert_int_equal(first_value()->flags, 0);
	assert_int_equal(first_value()->present, 0);
}

static void results(void **state)
{
	struct fake_storage storage = make_storage();
	struct fake_tensor impls[3];
	struct fake_tensor *reversed[3] = { &impls[2], &impls[1], &impls[0] };
	struct fake_tensor *tensors[3] = { &impls[0], &impls[1], &impls[2] };
	struct fake_tensor **references[3] = { &tensors[2], &tensors[1], &tensors[0] };
	struct fake_scalar scalar = { { 31 }, 5, { 0 } };
	struct {
		void *begin, *end;
	} vector = { tensors, tensors + 3 };
	struct terra_op_layout layout = { .ret = TERRA_RET_TENSORS, .n_returns = 3 };
	struct terra_regs regs = { .rax = (uintptr_t)reversed, .sp = (uintptr_t)&regs };
	struct terra_packed *value = first_value();
	uint32_t pieces;

	for (int i = 0; i < 3; i++)
		impls[i] = make_tensor(&storage, NULL);
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_EXIT);
	assert_int_equal(((struct terra_record *)taken.bytes)->type, TERRA_RECORD_EXIT);
	for (int i = 0; i < 3; i++, value = next_value(value))
		check_tensor((struct terra_packed_tensor *)(value + 1), &impls[i]);
	assert_ptr_equal((uint8_t *)value, taken.bytes + taken.size);
	layout.ret = TERRA_RET_TENSOR_REF;
	regs.rax = (uintptr_t)tensors;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_EXIT);
	assert_int_equal(count_list_elements(impls, &pieces), 1);
	layout.ret = TERRA_RET_TENSOR_LIST;
	regs.rax = (uintptr_t)&vector;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_EXIT);
	assert_int_equal(count_list_elements(impls, &pieces), 3);
	layout.ret = TERRA_RET_TENSOR_REFS;
	regs.rax = (uintptr_t)references;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_EXIT);
	value = first_value();
	for (int i = 0; i < 3; i++, value = next_value(value))
		check_tensor((struct terra_packed_tensor *)(value + 1), &impls[i]);
	layout.ret = TERRA_RET_VALUE;
	layout.ret_kind = TERRA_KIND_INT;
	regs.rax = 99;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_EXIT);
	assert_int_equal(payload(first_value()), 99);
	layout.ret_kind = TERRA_KIND_DOUBLE;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_EXIT);
	assert_int_equal(first_value()->flags, TERRA_PACKED_UNREADABLE);
	layout.ret_kind = TERRA_KIND_OPAQUE;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_EXIT);
	assert_int_equal(first_value()->flags, TERRA_PACKED_UNREADABLE);
	layout.ret = TERRA_RET_OTHER_SRET;
	layout.ret_kind = TERRA_KIND_SCALAR;
	regs.rax = (uintptr_t)&scalar;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_EXIT);
	assert_int_equal(((struct terra_packed_scalar *)(first_value() + 1))->tag, 'i');
	assert_int_equal(((struct terra_packed_scalar *)(first_value() + 1))->value[0], 31);
	layout.ret = TERRA_RET_VOID;
	decode(&layout, &regs, &fake_offsets, TERRA_RECORD_EXIT);
	assert_int_equal(taken.size, sizeof(struct terra_record));
}

/* Registers with values of their own, and a frame that rsp and rbp point into. */
static void make_live(uint64_t *live, uint64_t *frame)
{
	for (unsigned int i = 0; i < TERRA_REGISTERS; i++)
		live[i] = 100 + i;
	live[TERRA_RSP] = (uintptr_t)frame;
	live[TERRA_RBP] = (uintptr_t)(frame + 6);
}

static void entry_sites(void **state)
{
	uint64_t frame[8] = { 0, 1000, 2000, 3000, 4000, 5000, 6000, 7000 }, live[TERRA_REGISTERS];
	static const uint64_t order[6] = { 100 + TERRA_RDI, 100 + TERRA_RSI, 100 + TERRA_RDX,
					   100 + TERRA_RCX, 100 + TERRA_R8,  100 + TERRA_R9 };
	struct terra_site site = { .plain = 1 };
	struct terra_regs regs;

	make_live(live, frame);
	memset(&regs, 0xff, sizeof(regs));
	assert_int_equal(terra_entry_regs(&site, live, &regs), 0);
	assert_memory_equal(regs.gpr, order, sizeof(order));
	assert_int_equal(regs.sp, (uintptr_t)frame);
	assert_int_equal(regs.has_xmm, 0);
	site = (struct terra_site){ .sp = { TERRA_SOURCE_REGISTER, TERRA_RSP, 56 },
				    .gpr = { { TERRA_SOURCE_REGISTER, TERRA_R13, 0 },
					     { TERRA_SOURCE_MEMORY, TERRA_RSP, 16 },
					     { TERRA_SOURCE_MEMORY, TERRA_RBP, -8 },
					     [5] = { TERRA_SOURCE_REGISTER, TERRA_R15, 0 } },
				    .xmm = { { TERRA_SOURCE_MEMORY, TERRA_RSP, 8 },
					     [2] = { TERRA_SOURCE_REGISTER, TERRA_RBX, 0 },
					     [3] = { TERRA_SOURCE_MEMORY, TERRA_RAX, 0 },
					     [7] = { TERRA_SOURCE_MEMORY, TERRA_RBP, 0 } } };
	assert_int_equal(terra_entry_regs(&site, live, &regs), 0);
	assert_int_equal(regs.sp, (uintptr_t)(frame + 7));
	assert_int_equal(regs.gpr[0], 100 + TERRA_R13);
	assert_int_equal(regs.gpr[1], 2000);
	assert_int_equal(regs.gpr[2], 5000);
	assert_int_equal(regs.gpr[3], 0); /* of no argument */
	assert_int_equal(regs.gpr[5], 100 + TERRA_R15);
	assert_int_equal(regs.xmm[0], 1000);
	assert_int_equal(regs.xmm[2], 100 + TERRA_RBX);
	assert_int_equal(regs.xmm[7], 6000);
	assert_int_equal(regs.has_xmm, 1 | 1 << 2 | 1 << 7); /* 3 is in memory that is not there */
	site.sp.kind = TERRA_SOURCE_NONE;
	assert_int_not_equal(terra_entry_regs(&site, live, &regs), 0);
}

static void exit_sites(void **state)
{
	uint64_t frame[8] = { 0, 1000 }, live[TERRA_REGISTERS];
	struct terra_site site = { .plain = 1 };
	struct terra_regs regs;

	make_live(live, frame);
	assert_int_equal(terra_exit_regs(&site, live, &regs), 0);
	assert_int_equal(regs.sp, (uintptr_t)frame);
	assert_int_equal(regs.rax, 100 + TERRA_RAX);
	site = (struct terra_site){ .sp = { TERRA_SOURCE_REGISTER, TERRA_RBP, 8 },
				    .result = { TERRA_SOURCE_MEMORY, TERRA_RBP, -40 } };
	assert_int_equal(terra_exit_regs(&site, live, &regs), 0);
	assert_int_equal(regs.sp, (uintptr_t)(frame + 7));
	assert_int_equal(regs.rax, 1000);
	site.result = (struct terra_source){ TERRA_SOURCE_REGISTER, TERRA_R12, -4 };
	assert_int_equal(terra_exit_regs(&site, live, &regs), 0);
	assert_int_equal(regs.rax, 96 + TERRA_R12);
	/* nothing is returned */
	site.result = (struct terra_source){ 0 };
	assert_int_equal(terra_exit_regs(&site, live, &regs), 0);
	site.sp.kind = TERRA_SOURCE_NONE;
	assert_int_not_equal(terra_exit_regs(&site, live, &regs), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tensor_argument),
		cmocka_unit_test(requires_grad_through_grad_fn),
		cmocka_unit_test(nodes_at_an_enter),
		cmocka_unit_test(nodes_at_an_exit),
		cmocka_unit_test(handlers_of_exceptions),
		cmocka_unit_test(functions_that_read),
		cmocka_unit_test(functions_that_call_operators),
		cmocka_unit_test(blocks_of_thread_local_storage),
		cmocka_unit_test(tensor_of_many_dimensions),
		cmocka_unit_test(undefined_and_unreadable_tensors),
		cmocka_unit_test(fields_that_are_not_known),
		cmocka_unit_test(nothing_is_read_behind_a_structure),
		cmocka_unit_test(fields_too_far_from_the_beginning),
		cmocka_unit_test(optional_tensor),
		cmocka_unit_test(long_tensor_list_spans_chunks),
		cmocka_unit_test(other_tensor_lists),
		cmocka_unit_test(scalars),
		cmocka_unit_test(number_lists),
		cmocka_unit_test(words_and_optionals),
		cmocka_unit_test(strings),
		cmocka_unit_test(places),
		cmocka_unit_test(results),
		cmocka_unit_test(entry_sites),
		cmocka_unit_test(exit_sites),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
