/* test_consume.c - raw records to events: pairing by stack pointer, exceptions, tail calls, losses, chunks, damage. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "collector/consume.h"
#include "probes/functions.h"

enum { ADD, MUL, ADD_INPLACE, ZERO_INPLACE, N_OPS };

static struct terra_op ops[N_OPS] = {
	[ADD] = { .name = "aten::add", .overload = "Tensor", .level = TERRA_LEVEL_CALL },
	[MUL] = { .name = "aten::mul", .overload = "Tensor", .level = TERRA_LEVEL_REDISPATCH },
	[ADD_INPLACE] = { .name = "aten::add_", .overload = "Tensor", .level = TERRA_LEVEL_REDISPATCH },
	[ZERO_INPLACE] = { .name = "aten::zero_", .overload = "", .level = TERRA_LEVEL_CALL },
};
static const struct terra_op_layout layouts[N_OPS] = {
	[ADD] = { .has_exit = 1 },
	[MUL] = { .has_exit = 1 },
	[ADD_INPLACE] = { .has_exit = 0, .ret = TERRA_RET_TENSOR_REF, .n_args = 2,
			  .args = { { .kind = TERRA_KIND_KEYSET }, { .kind = TERRA_KIND_TENSOR, .is_mutable = 1 } } },
	[ZERO_INPLACE] = { .has_exit = 0 },
};
static struct terra_op_table table = { .n_ops = N_OPS, .ops = ops };
static struct terra_offsets offsets;

/* Events as short words: "+add@1" begins at thread 1, "-add" ends, "!add" ends raised, "?3" are 3 lost. */
static struct {
	char text[4096];
	uint64_t seq;
	struct terra_event last;
	struct terra_value values[8];
	struct terra_tensor tensors[2048];
	char string[512];
	int fail_after;
} sink;

static void put(const char *format, ...)
{
	size_t n = strlen(sink.text);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(sink.text + n, sizeof(sink.text) - n, format, arguments);
	va_end(arguments);
}

/* Copies what the event points to: it is gone afterwards. */
static void keep(const struct terra_event *event)
{
	uint32_t at = 0;

	sink.last = *event;
	for (uint32_t i = 0; i < event->n_values && i < 8; i++) {
		struct terra_value *value = &sink.values[i];

		*value = event->values[i];
		if (value->present && (value->kind == TERRA_KIND_TENSOR || value->kind == TERRA_KIND_TENSOR_LIST)) {
			memcpy(&sink.tensors[at], value->u.tensors, value->recorded * sizeof(struct terra_tensor));
			value->u.tensors = &sink.tensors[at];
			at += value->recorded;
		}
		if (value->kind == TERRA_KIND_STRING && value->present)
			value->u.string = strcpy(sink.string, value->u.string);
	}
}

static int take(void *ctx, struct terra_event *event)
{
	assert_ptr_equal(ctx, &sink);
	if (sink.fail_after && !--sink.fail_after)
		return -ENOSPC;
	event->seq = sink.seq++;
	keep(event);
	if (event->type == TERRA_EVENT_OP_ENTER)
		put("+%s", event->op + 6);
	else if (event->type == TERRA_EVENT_OP_EXIT)
		put("%c%s", event->raised ? '!' : '-', event->op + 6);
	else if (event->type == TERRA_EVENT_LOST)
		put("?%d", (int)event->lost);
	else
		put("#%s", event->text);
	if (event->type == TERRA_EVENT_CALL && event->op)
		put("(%s.%s)", event->op, event->overload);
	if (event->type == TERRA_EVENT_OP_ENTER && event->parent_seq != UINT64_MAX)
		put("(%d)", (int)event->parent_seq);
	put(" ");
	return 0;
}

static int resolve(void *ctx, const struct pystack_entry *entry, struct terra_frame *frame)
{
	*frame = (struct terra_frame){ "file.py", "function", (int32_t)entry->offset };
	return entry->code ? 0 : -EINVAL;
}

static const char *find_module(void *ctx, const struct pystack_entry *entries, uint32_t n, uint64_t time_ns)
{
	static char path[64];

	snprintf(path, sizeof(path), "Net.%llu of %u", (unsigned long long)entries[0].self, n);
	return entries[0].self ? path : NULL;
}

static struct terra_consumer *begin(void)
{
	struct terra_consumer_options options = { .table = &table, .layouts = layouts, .offsets = &offsets,
						  .sink = take, .sink_ctx = &sink, .resolve = resolve,
						  .module = find_module };
	struct terra_consumer *c = terra_consumer_new(&options);

	memset(&sink, 0, sizeof(sink));
	offsets.element_size[6] = 4;
	assert_non_null(c);
	return c;
}

/* The producers' counters: one for each thread. */
static uint64_t seqs[16];

static int setup(void **state)
{
	memset(seqs, 0, sizeof(seqs));
	return 0;
}

static struct {
	struct terra_record record;
	uint64_t payload[TERRA_CHUNK_SIZE / 8];
} made;

static int give(struct terra_consumer *c, uint8_t type, uint32_t tid, uint32_t op, uint64_t sp, size_t payload)
{
	uint64_t return_address = made.record.return_address;

	made.record = (struct terra_record){ .size = (uint32_t)(sizeof(made.record) + payload), .type = type, .op = op,
					     .tid = tid, .producer = tid, .sp = sp, .seq = seqs[tid]++,
					     .return_address = return_address };
	return terra_consumer_record(c, &made.record);
}

static void enter(struct terra_consumer *c, uint32_t tid, uint32_t op, uint64_t sp)
{
	made.record.return_address = sp * 3;
	assert_int_equal(give(c, TERRA_RECORD_ENTER, tid, op, sp, 0), 0);
}

static void leave(struct terra_consumer *c, uint32_t tid, uint32_t op, uint64_t sp)
{
	assert_int_equal(give(c, TERRA_RECORD_EXIT, tid, op, sp, 0), 0);
}

static void nested_ops(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ADD, 1000);
	enter(c, 1, MUL, 900);
	leave(c, 1, MUL, 900);
	enter(c, 1, MUL, 900);
	leave(c, 1, MUL, 900);
	leave(c, 1, ADD, 1000);
	enter(c, 1, ADD, 1000);
	leave(c, 1, ADD, 1000);
	assert_string_equal(sink.text, "+add +mul(0) -mul +mul(0) -mul -add +add -add ");
	assert_int_equal(sink.last.enter_seq, 6);
	assert_int_equal(terra_consumer_stats(c)->events, 8);
	terra_consumer_free(c);
}

/* A way out of an op may pass two of its sites. The second exit changes nothing: not the op around it, not one of the same
 * kind that is still running further out, not what comes at the same place next. */
static void second_exits_are_dropped(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, MUL, 1000);
	enter(c, 1, MUL, 900);
	leave(c, 1, MUL, 900);
	leave(c, 1, MUL, 900);
	enter(c, 1, MUL, 900);
	leave(c, 1, MUL, 900);
	leave(c, 1, MUL, 900);
	leave(c, 1, MUL, 1000);
	leave(c, 1, MUL, 1000);
	enter(c, 1, ADD, 1000);
	leave(c, 1, ADD, 1000);
	assert_string_equal(sink.text, "+mul +mul(0) -mul +mul(0) -mul -mul +add -add ");
	assert_int_equal(terra_consumer_stats(c)->damaged, 0);
	assert_int_equal(terra_consumer_stats(c)->lost, 0);
	terra_consumer_free(c);
}

static void threads_have_their_own_stacks(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ADD, 1000);
	enter(c, 2, ADD, 5000);
	enter(c, 1, MUL, 900);
	leave(c, 2, ADD, 5000);
	leave(c, 1, MUL, 900);
	leave(c, 1, ADD, 1000);
	assert_string_equal(sink.text, "+add +add +mul(0) -add -mul -add ");
	terra_consumer_free(c);
}

/* An exception leaves two ops; it shows at the thread's next event, be it deeper or further out than they were. */
static void exceptions(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ADD, 1000);
	enter(c, 1, MUL, 900);
	enter(c, 1, ADD, 1000);
	leave(c, 1, ADD, 1000);
	enter(c, 1, ADD, 1000);
	enter(c, 1, MUL, 900);
	enter(c, 1, MUL, 950);
	leave(c, 1, MUL, 950);
	leave(c, 1, ADD, 1000);
	assert_string_equal(sink.text, "+add +mul(0) !mul !add +add -add +add +mul(6) !mul +mul(6) -mul -add ");
	terra_consumer_free(c);
}

static void caught(struct terra_consumer *c, uint32_t tid, uint64_t sp, uint64_t time_ns)
{
	made.record = (struct terra_record){ .size = sizeof(made.record), .type = TERRA_RECORD_CATCH, .tid = tid,
					     .producer = tid, .sp = sp, .seq = seqs[tid]++, .time_ns = time_ns };
	assert_int_equal(terra_consumer_record(c, &made.record), 0);
}

/* Where the handler begins, the ops that it is outside of are over: so what comes next may be as deep as it likes. */
static void handlers_end_what_raised(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ADD, 1000);
	enter(c, 1, MUL, 900);
	caught(c, 1, 1000, 77);
	assert_string_equal(sink.text, "+add +mul(0) !mul !add ");
	assert_int_equal(sink.last.time_ns, 77);
	assert_int_equal(sink.last.enter_seq, 0);
	enter(c, 1, ADD, 500);
	leave(c, 1, ADD, 500);
	assert_string_equal(sink.text, "+add +mul(0) !mul !add +add -add ");
	assert_int_equal(terra_consumer_stats(c)->unmatched, 0);
	terra_consumer_free(c);
}

/* Those around it go on, and so does one that catches what it called. */
static void handlers_end_nothing_else(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ADD, 1000);
	enter(c, 2, ADD, 600);
	enter(c, 1, MUL, 900);
	enter(c, 1, ADD, 700);
	caught(c, 1, 699, 0); /* one below all */
	assert_string_equal(sink.text, "+add +add +mul(0) +add(2) ");
	caught(c, 1, 899, 0); /* in mul's own frame */
	assert_string_equal(sink.text, "+add +add +mul(0) +add(2) !add ");
	caught(c, 1, 899, 0); /* again, with nothing left to end */
	enter(c, 1, ADD, 650); /* called by its handler */
	leave(c, 1, ADD, 650);
	leave(c, 1, MUL, 900);
	leave(c, 1, ADD, 1000);
	leave(c, 2, ADD, 600);
	caught(c, 2, 5000, 0);
	caught(c, 3, 5000, 0); /* a thread that never ran an op */
	assert_string_equal(sink.text, "+add +add +mul(0) +add(2) !add +add(2) -add -mul -add -add ");
	assert_int_equal(terra_consumer_stats(c)->damaged, 0);
	terra_consumer_free(c);
}

/* What nobody sees leave was left by the exception if what it was called by was; else it may have returned long before.
 * Nothing is called raised whose exit may be lost. */
static void handlers_and_ops_of_unknown_end(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ADD, 1000);
	enter(c, 1, ZERO_INPLACE, 900);
	caught(c, 1, 1000, 0);
	enter(c, 1, ZERO_INPLACE, 900);
	caught(c, 1, 950, 0);
	assert_string_equal(sink.text, "+add +zero_(0) !zero_ !add +zero_ -zero_ ");
	enter(c, 1, ADD, 1000);
	assert_int_equal(terra_consumer_lost(c, 1, 1, 0), 0);
	caught(c, 1, 1000, 0);
	assert_string_equal(sink.text, "+add +zero_(0) !zero_ !add +zero_ -zero_ +add ?1 -add ");
	terra_consumer_free(c);
}

static void ops_whose_exit_nobody_sees(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ADD, 1000);
	enter(c, 1, ZERO_INPLACE, 900);
	enter(c, 1, ZERO_INPLACE, 900); /* the same place again: a loop, not a call of itself */
	leave(c, 1, ADD, 1000);
	enter(c, 1, ADD, 1000);
	enter(c, 1, ZERO_INPLACE, 900);
	enter(c, 1, ADD, 1000); /* the outer one was left by an exception, so the inner one was too */
	assert_string_equal(sink.text, "+add +zero_(0) -zero_ +zero_(0) -zero_ -add +add +zero_(6) !zero_ !add +add ");
	terra_consumer_free(c);
}

/* zero_ jumps to another op: its return address stays, and that op's exit is its own. */
static void tail_calls(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ZERO_INPLACE, 900);
	made.record.return_address = 2700;
	give(c, TERRA_RECORD_ENTER, 1, MUL, 900, 0);
	leave(c, 1, MUL, 900);
	enter(c, 1, ZERO_INPLACE, 900);
	made.record.return_address = 99; /* called from somewhere else: zero_ is over */
	give(c, TERRA_RECORD_ENTER, 1, MUL, 900, 0);
	leave(c, 1, MUL, 900);
	assert_string_equal(sink.text, "+zero_ +mul(0) -mul -zero_ +zero_ -zero_ +mul -mul ");
	terra_consumer_free(c);
}

static void losses(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ADD, 1000);
	enter(c, 1, MUL, 900);
	seqs[1] += 3; /* the exits, and something else */
	enter(c, 1, ADD, 1000);
	assert_int_equal(terra_consumer_stats(c)->lost, 3);
	/* what was open then is not called raised */
	assert_string_equal(sink.text, "+add +mul(0) ?3 -mul -add +add ");
	leave(c, 1, MUL, 800);
	/* its enter is among the lost, and it is left out */
	assert_string_equal(sink.text, "+add +mul(0) ?3 -mul -add +add ?1 ");
	assert_int_equal(terra_consumer_stats(c)->unmatched, 0);
	assert_int_equal(terra_consumer_stats(c)->lost_exits, 1);
	assert_int_equal(terra_consumer_lost(c, 0, 6, 5), 0);
	assert_int_equal(terra_consumer_stats(c)->lost, 10);
	made.record = (struct terra_record){ .size = sizeof(made.record), .type = TERRA_RECORD_LOST, .keyset = 2 };
	assert_int_equal(terra_consumer_record(c, &made.record), 0);
	assert_int_equal(terra_consumer_stats(c)->lost, 12);
	terra_consumer_free(c);
}

static void a_threads_id_is_used_again(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ADD, 1000);
	leave(c, 1, ADD, 1000);
	seqs[1] = 0;
	enter(c, 1, ADD, 1000);
	leave(c, 1, ADD, 1000);
	assert_int_equal(terra_consumer_stats(c)->lost, 0);
	assert_string_equal(sink.text, "+add -add +add -add ");
	terra_consumer_free(c);
}

static size_t put_value(size_t at, uint8_t kind, uint8_t flags, uint32_t count, uint32_t recorded, const void *data,
			size_t size)
{
	struct terra_packed packed = { kind, flags != TERRA_PACKED_UNREADABLE, flags, 0, count, recorded, (uint32_t)size };

	memcpy((uint8_t *)made.payload + at, &packed, sizeof(packed));
	if (size)
		memcpy((uint8_t *)made.payload + at + sizeof(packed), data, size);
	return at + sizeof(packed) + size;
}

/* struct terra_packed_tensor of two dimensions. */
struct tensor2 {
	uint64_t impl, storage, storage_data, storage_bytes;
	int64_t numel, storage_offset;
	uint8_t ndim;
	int8_t dtype, device_type, device_index;
	uint8_t requires_grad, defined, dims, flags;
	int64_t geometry[4];
};
_Static_assert(offsetof(struct tensor2, geometry) == sizeof(struct terra_packed_tensor), "as in probes/record.h");

static struct tensor2 make_tensor(int64_t rows)
{
	return (struct tensor2){ .impl = 77, .storage = 88, .storage_data = 0x1000, .storage_bytes = 640, .numel = rows * 4,
				 .storage_offset = 2, .ndim = 2, .dims = 2, .dtype = 6, .defined = 1,
				 .geometry = { rows, 4, 4, 1 } };
}

static void values(void **state)
{
	struct terra_consumer *c = begin();
	struct tensor2 tensor = make_tensor(3);
	struct terra_packed_scalar scalar = { 'f', { 0, 0 } }, unreadable = { '?', { 0, 0 } };
	int64_t ints[3] = { 5, -6, 7 };
	char text[8] = "mean";
	size_t at = 0;

	memcpy(scalar.value, &(double){ 1.5 }, 8);
	at = put_value(at, TERRA_KIND_TENSOR, 0, 0, 1, &tensor, sizeof(tensor));
	at = put_value(at, TERRA_KIND_SCALAR, 0, 0, 1, &scalar, sizeof(scalar));
	at = put_value(at, TERRA_KIND_OPT_SCALAR, 0, 0, 1, &unreadable, sizeof(unreadable));
	at = put_value(at, TERRA_KIND_INT_LIST, 0, 3, 3, ints, sizeof(ints));
	at = put_value(at, TERRA_KIND_OPT_DOUBLE, TERRA_PACKED_UNREADABLE, 0, 0, NULL, 0);
	at = put_value(at, TERRA_KIND_GENERATOR, TERRA_PACKED_UNREADABLE, 0, 0, NULL, 0);
	at = put_value(at, TERRA_KIND_STRING, 0, 4, 4, text, sizeof(text));
	at = put_value(at, TERRA_KIND_INT, 0, 0, 0, &ints[1], 8);
	assert_int_equal(give(c, TERRA_RECORD_ENTER, 1, ADD, 1000, at), 0);
	assert_int_equal(terra_consumer_stats(c)->damaged, 0);
	assert_int_equal(sink.last.n_values, 8);
	assert_int_equal(sink.values[0].u.tensor->size[0], 3);
	assert_int_equal(sink.values[0].u.tensor->stride[0], 4);
	assert_int_equal(sink.values[0].u.tensor->data, 0x1008);
	assert_int_equal(sink.values[1].scalar_tag, 'f');
	assert_memory_equal(&sink.values[1].u.d, &(double){ 1.5 }, 8);
	assert_int_equal(sink.values[2].kind, TERRA_KIND_SCALAR);
	assert_int_equal(sink.values[2].present, 0);
	assert_int_equal(sink.values[3].count, 3);
	assert_int_equal(sink.values[4].kind, TERRA_KIND_DOUBLE);
	assert_int_equal(sink.values[4].present, 0);
	assert_int_equal(sink.values[5].kind, TERRA_KIND_OPAQUE);
	assert_string_equal(sink.values[6].u.string, "mean");
	assert_int_equal(sink.values[7].u.i, -6);
	terra_consumer_free(c);
}

static void unreadable_geometry_is_not_a_size(void **state)
{
	struct terra_consumer *c = begin();
	struct tensor2 tensor = make_tensor(3);

	tensor.flags = TERRA_TENSOR_NO_GEOMETRY;
	tensor.dims = 0;
	give(c, TERRA_RECORD_ENTER, 1, ADD, 1000, put_value(0, TERRA_KIND_TENSOR, 0, 0, 1, &tensor, offsetof(struct tensor2, geometry)));
	assert_int_equal(sink.values[0].u.tensor->numel, -1);
	assert_int_equal(sink.values[0].u.tensor->size[0], -1);
	assert_int_equal(sink.values[0].u.tensor->data, 0);
	terra_consumer_free(c);
}

static void invisible_exit_returns_its_argument(void **state)
{
	struct terra_consumer *c = begin();
	struct tensor2 tensor = make_tensor(5);

	give(c, TERRA_RECORD_ENTER, 1, ADD_INPLACE, 900, put_value(0, TERRA_KIND_TENSOR, 0, 0, 1, &tensor, sizeof(tensor)));
	memset(&sink.last, 0, sizeof(sink.last));
	enter(c, 1, ADD, 1000);
	assert_string_equal(sink.text, "+add_ -add_ +add ");
	assert_int_equal(sink.values[0].u.tensor->size[0], 5);
	assert_int_equal(sink.values[0].u.tensor->impl, 77);
	terra_consumer_free(c);
}

static void give_chunk(struct terra_consumer *c, uint32_t chunk, uint8_t flags, size_t payload)
{
	made.record = (struct terra_record){ .size = (uint32_t)(sizeof(made.record) + payload), .type = TERRA_RECORD_ENTER,
					     .op = ADD, .tid = 1, .producer = 1, .sp = 1000, .seq = seqs[1]++,
					     .chunk = chunk, .flags = flags };
	assert_int_equal(terra_consumer_record(c, &made.record), 0);
}

static void lists_over_several_chunks(void **state)
{
	struct terra_consumer *c = begin();
	struct tensor2 tensors[3] = { make_tensor(1), make_tensor(2), make_tensor(3) };
	static const int rows[6] = { 1, 2, 3, 1, 2, 1 };
	int64_t last = 42;
	size_t at;

	give_chunk(c, 0, TERRA_RECORD_MORE, put_value(0, TERRA_KIND_TENSOR_LIST, 0, 6, 3, tensors, sizeof(tensors)));
	give_chunk(c, 1, TERRA_RECORD_MORE,
		   put_value(0, TERRA_KIND_TENSOR_LIST, TERRA_PACKED_CONTINUED, 6, 2, tensors, 2 * sizeof(tensors[0])));
	assert_string_equal(sink.text, "");
	at = put_value(0, TERRA_KIND_TENSOR_LIST, TERRA_PACKED_CONTINUED, 6, 1, tensors, sizeof(tensors[0]));
	give_chunk(c, 2, 0, put_value(at, TERRA_KIND_INT, 0, 0, 0, &last, 8));
	assert_string_equal(sink.text, "+add ");
	assert_int_equal(sink.values[0].count, 6);
	assert_int_equal(sink.values[0].recorded, 6);
	for (int i = 0; i < 6; i++)
		assert_int_equal(sink.values[0].u.tensors[i].size[0], rows[i]);
	assert_int_equal(sink.values[1].u.i, 42);
	/* a chunk is missing: the record is not made up from what is left */
	give_chunk(c, 0, TERRA_RECORD_MORE, put_value(0, TERRA_KIND_TENSOR_LIST, 0, 6, 3, tensors, sizeof(tensors)));
	seqs[1]++;
	give_chunk(c, 2, 0, put_value(0, TERRA_KIND_TENSOR_LIST, TERRA_PACKED_CONTINUED, 6, 1, tensors, sizeof(tensors[0])));
	assert_string_equal(sink.text, "+add ?1 ");
	terra_consumer_free(c);
}

static void stacks_are_inherited(void **state)
{
	struct terra_consumer *c = begin();
	uint64_t words[7] = { 16 | PYSTACK_HAS_SELF, 10, 4096, 0, 0, 16, 20 };

	give(c, TERRA_RECORD_ENTER, 1, ADD, 1000, put_value(0, TERRA_PACKED_FRAMES, 0, 7, 7, words, sizeof(words)));
	assert_int_equal(sink.last.n_frames, 2); /* the empty one is left out */
	assert_int_equal(sink.last.frames[1].line, 20);
	assert_string_equal(sink.last.module, "Net.4096 of 3");
	enter(c, 1, MUL, 900);
	assert_int_equal(sink.last.n_frames, 2);
	assert_string_equal(sink.last.module, "Net.4096 of 3");
	leave(c, 1, MUL, 900);
	leave(c, 1, ADD, 1000);
	enter(c, 1, ADD, 1000);
	assert_int_equal(sink.last.n_frames, 0);
	assert_null(sink.last.module);
	/* the word that is promised is not there */
	leave(c, 1, ADD, 1000);
	words[5] |= PYSTACK_HAS_SELF;
	give(c, TERRA_RECORD_ENTER, 1, ADD, 1000, put_value(0, TERRA_PACKED_FRAMES, 0, 7, 7, words, sizeof(words)));
	assert_int_equal(terra_consumer_stats(c)->damaged, 1);
	terra_consumer_free(c);
}

/* An ENTER with autograd's words: the next number, and the Node that is evaluated (0: none). */
static void enter_at_node(struct terra_consumer *c, uint64_t sp, uint64_t next, uint64_t node, uint64_t number)
{
	uint64_t words[3] = { next, node, number };
	uint32_t n = node ? 3 : 1;

	made.record.return_address = sp * 3;
	assert_int_equal(give(c, TERRA_RECORD_ENTER, 1, ADD, sp, put_value(0, TERRA_PACKED_NODE, 0, n, n, words, n * 8)), 0);
}

static void leave_with_node(struct terra_consumer *c, uint64_t sp, uint64_t node, uint64_t number)
{
	uint64_t words[2] = { node, number };

	assert_int_equal(give(c, TERRA_RECORD_EXIT, 1, ADD, sp, put_value(0, TERRA_PACKED_NODE, 0, 2, 2, words, 16)), 0);
}

static void backward_ops_know_their_forward_op(void **state)
{
	struct terra_consumer *c = begin();

	enter_at_node(c, 1000, 5, 0, 0); /* an op made of others: event 0 */
	assert_int_equal(sink.last.autograd, 0);
	enter_at_node(c, 900, 5, 0, 0); /* event 1 */
	leave_with_node(c, 900, 0xabc0, 5);
	assert_int_equal(sink.last.autograd, 1);
	assert_int_equal(sink.last.node, 5);
	leave_with_node(c, 1000, 0xabc0, 5); /* it returns what the op inside made */
	assert_int_equal(sink.last.autograd, 0);
	enter_at_node(c, 1000, 6, 0xabc0, 5); /* event 4, and one inside at another level */
	assert_int_equal(sink.last.autograd, 1);
	assert_int_equal(sink.last.forward_seq, 1);
	enter(c, 1, MUL, 900);
	assert_int_equal(sink.last.node, 5);
	assert_int_equal(sink.last.forward_seq, 1);
	leave(c, 1, MUL, 900);
	leave(c, 1, ADD, 1000);
	assert_int_equal(sink.last.autograd, 0);
	/* a later Node at the same address */
	enter_at_node(c, 1000, 7, 0xabc0, 6);
	assert_int_equal(sink.last.node, 6);
	assert_int_equal(sink.last.forward_seq, UINT64_MAX);
	terra_consumer_free(c);
}

/* What an op returns may be linked to a Node that another has made, and that nobody saw. */
static void nodes_that_an_op_did_not_make(void **state)
{
	struct terra_consumer *c = begin();

	enter_at_node(c, 1000, 5, 0, 0);
	leave_with_node(c, 1000, 0xabc0, 4);
	assert_int_equal(sink.last.autograd, 0);
	enter(c, 1, ADD, 1000);
	leave_with_node(c, 1000, 0xdef0, 5);
	assert_int_equal(sink.last.autograd, 0);
	enter_at_node(c, 1000, 6, 0xabc0, 4);
	assert_int_equal(sink.last.forward_seq, UINT64_MAX);
	leave(c, 1, ADD, 1000);
	/* links do not outlive a loss */
	enter_at_node(c, 1000, 6, 0, 0);
	leave_with_node(c, 1000, 0xabc0, 6);
	assert_int_equal(sink.last.autograd, 1);
	assert_int_equal(terra_consumer_lost(c, 1, 1, 0), 0);
	enter_at_node(c, 1000, 7, 0xabc0, 6);
	assert_int_equal(sink.last.autograd, 1);
	assert_int_equal(sink.last.forward_seq, UINT64_MAX);
	terra_consumer_free(c);
}

static void many_nodes(void **state)
{
	struct terra_consumer *c = begin();

	for (uint64_t i = 0; i < 5000; i++) {
		enter_at_node(c, 1000, i, 0, 0);
		leave_with_node(c, 1000, 0x7f0000000000 + i * 64, i);
		sink.text[0] = 0;
	}
	for (uint64_t i = 5000; i-- > 0;) {
		enter_at_node(c, 1000, 5000, 0x7f0000000000 + i * 64, i);
		assert_int_equal(sink.last.forward_seq, 2 * i);
		leave(c, 1, ADD, 1000);
		sink.text[0] = 0;
	}
	terra_consumer_free(c);
}

static uint32_t function_of(const char *what)
{
	for (uint32_t i = 0; i < TERRA_N_FUNCTIONS; i++)
		if (strcmp(terra_functions[i].what, what) == 0)
			return i;
	fail();
	return 0;
}

/* A read inside of an op (where one runs), a call by name outside of any; neither is an op of its own. */
static void functions(void **state)
{
	struct terra_consumer *c = begin();
	struct tensor2 tensor = make_tensor(3);
	uint64_t words[2] = { 16, 10 };
	size_t at;

	enter(c, 1, ADD, 1000);
	at = put_value(0, TERRA_KIND_TENSOR, 0, 1, 1, &tensor, sizeof(tensor));
	at = put_value(at, TERRA_PACKED_FRAMES, 0, 2, 2, words, sizeof(words));
	assert_int_equal(give(c, TERRA_RECORD_FUNCTION, 1, function_of("numpy"), 900, at), 0);
	assert_int_equal(sink.last.type, TERRA_EVENT_HOST_READ);
	assert_string_equal(sink.last.text, "numpy");
	assert_int_equal(sink.last.parent_seq, 0);
	assert_int_equal(sink.last.n_values, 1);
	assert_int_equal(sink.values[0].u.tensor->size[0], 3);
	assert_int_equal(sink.last.n_frames, 1);
	leave(c, 1, ADD, 1000);
	at = put_value(0, TERRA_KIND_STRING, 0, 9, 9, "aten::add\0\0\0\0\0\0", 16);
	at = put_value(at, TERRA_KIND_STRING, 0, 6, 6, "Tensor\0", 8);
	assert_int_equal(give(c, TERRA_RECORD_FUNCTION, 1, function_of("torch.ops"), 900, at), 0);
	assert_int_equal(sink.last.type, TERRA_EVENT_CALL);
	assert_int_equal(sink.last.parent_seq, UINT64_MAX);
	assert_int_equal(sink.last.n_values, 0);
	assert_string_equal(sink.text, "+add #numpy -add #torch.ops(aten::add.Tensor) ");
	/* an op that was left by an exception is over when a function begins further out */
	enter(c, 1, ADD, 800);
	assert_int_equal(give(c, TERRA_RECORD_FUNCTION, 1, function_of("TorchScript"), 900, 0), 0);
	assert_string_equal(sink.text, "+add #numpy -add #torch.ops(aten::add.Tensor) +add !add #TorchScript ");
	assert_int_equal(terra_consumer_stats(c)->damaged, 0);
	assert_int_equal(give(c, TERRA_RECORD_FUNCTION, 1, TERRA_N_FUNCTIONS, 900, 0), 0);
	assert_int_equal(terra_consumer_stats(c)->damaged, 1);
	terra_consumer_free(c);
}

/* A record of random bytes, or a sound one with some changed, is dropped or taken, and nothing is read outside it. */
static void damaged_records(void **state)
{
	struct terra_consumer *c = begin();
	struct tensor2 tensor = make_tensor(3);
	uint32_t random = 12345;
	size_t at;

	for (int round = 0; round < 20000; round++) {
		static const uint8_t types[] = { TERRA_RECORD_ENTER, TERRA_RECORD_EXIT, TERRA_RECORD_FUNCTION,
						 TERRA_RECORD_CATCH };
		uint8_t *exact;

		at = put_value(0, TERRA_KIND_TENSOR_LIST, 0, 1, 1, &tensor, sizeof(tensor));
		at = put_value(at, TERRA_KIND_STRING, 0, 8, 8, "abcdefgh", 8);
		at = put_value(at, TERRA_PACKED_NODE, 0, 2, 2, "0123456789abcdef", 16);
		made.record = (struct terra_record){ .size = (uint32_t)(sizeof(made.record) + at), .tid = 1, .producer = 1,
						     .type = types[round / 4 % 4], .op = ADD, .sp = 1000, .seq = seqs[1]++ };
		exact = malloc(made.record.size);
		memcpy(exact, &made, made.record.size);
		for (int i = 0; i < 1 + round % 4; i++) {
			random = random * 1103515245 + 12345;
			exact[sizeof(made.record) + (random >> 8) % at] = (uint8_t)(random >> 24);
		}
		assert_int_equal(terra_consumer_record(c, (struct terra_record *)exact), 0);
		sink.text[0] = 0;
		free(exact);
	}
	assert_true(terra_consumer_stats(c)->damaged > 1000);
	made.record = (struct terra_record){ .size = 8, .type = 1 };
	assert_int_equal(terra_consumer_record(c, &made.record), 0);
	terra_consumer_free(c);
}

/* A trace could not hold it, and its writer's refusal would end the recording. */
static void a_scalar_of_no_known_sort_is_damaged(void **state)
{
	static const uint64_t tags[] = { 0, 'q', 'f' | 0x100 };
	struct terra_consumer *c = begin();

	for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
		struct terra_packed_scalar scalar = { tags[i], { 0, 0 } };

		give(c, TERRA_RECORD_ENTER, 1, ADD, 1000, put_value(0, TERRA_KIND_SCALAR, 0, 0, 1, &scalar, sizeof(scalar)));
		give(c, TERRA_RECORD_ENTER, 1, ADD, 1000,
		     put_value(0, TERRA_KIND_SCALAR_LIST, 0, 1, 1, &scalar, sizeof(scalar)));
	}
	assert_int_equal(terra_consumer_stats(c)->damaged, 6);
	assert_string_equal(sink.text, "");
	terra_consumer_free(c);
}

/* Written with `recorded` 0 it would be taken as complete, and bytes be read that are not there. */
static void a_string_without_its_bytes_is_damaged(void **state)
{
	struct terra_consumer *c = begin();

	give(c, TERRA_RECORD_ENTER, 1, ADD, 1000, put_value(0, TERRA_KIND_STRING, 0, 1 << 18, 0, NULL, 0));
	assert_int_equal(terra_consumer_stats(c)->damaged, 1);
	give(c, TERRA_RECORD_ENTER, 1, ADD, 1000, put_value(0, TERRA_KIND_STRING, 0, 0, 0, NULL, 0));
	assert_int_equal(terra_consumer_stats(c)->damaged, 1); /* an empty one is sound */
	terra_consumer_free(c);
}

static void the_sinks_error_ends_it(void **state)
{
	struct terra_consumer *c = begin();

	enter(c, 1, ADD, 1000);
	sink.fail_after = 1;
	assert_int_equal(give(c, TERRA_RECORD_ENTER, 1, MUL, 900, 0), -ENOSPC);
	assert_int_equal(give(c, TERRA_RECORD_EXIT, 1, ADD, 1000, 0), -ENOSPC);
	assert_int_equal(terra_consumer_note(c, "text", 0), -ENOSPC);
	assert_string_equal(sink.text, "+add ");
	terra_consumer_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(nested_ops, setup),
		cmocka_unit_test_setup(second_exits_are_dropped, setup),
		cmocka_unit_test_setup(threads_have_their_own_stacks, setup),
		cmocka_unit_test_setup(exceptions, setup),
		cmocka_unit_test_setup(handlers_end_what_raised, setup),
		cmocka_unit_test_setup(handlers_end_nothing_else, setup),
		cmocka_unit_test_setup(handlers_and_ops_of_unknown_end, setup),
		cmocka_unit_test_setup(ops_whose_exit_nobody_sees, setup),
		cmocka_unit_test_setup(tail_calls, setup),
		cmocka_unit_test_setup(losses, setup),
		cmocka_unit_test_setup(a_threads_id_is_used_again, setup),
		cmocka_unit_test_setup(values, setup),
		cmocka_unit_test_setup(unreadable_geometry_is_not_a_size, setup),
		cmocka_unit_test_setup(invisible_exit_returns_its_argument, setup),
		cmocka_unit_test_setup(lists_over_several_chunks, setup),
		cmocka_unit_test_setup(stacks_are_inherited, setup),
		cmocka_unit_test_setup(backward_ops_know_their_forward_op, setup),
		cmocka_unit_test_setup(nodes_that_an_op_did_not_make, setup),
		cmocka_unit_test_setup(many_nodes, setup),
		cmocka_unit_test_setup(functions, setup),
		cmocka_unit_test_setup(damaged_records, setup),
		cmocka_unit_test_setup(a_scalar_of_no_known_sort_is_damaged, setup),
		cmocka_unit_test_setup(a_string_without_its_bytes_is_damaged, setup),
		cmocka_unit_test_setup(the_sinks_error_ends_it, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
