/* fuzz_record.c - raw records, as a backend makes them, through the consumer into a trace that must be a sound one.
 *
 * The input is records one after the other, each a struct terra_record and what it says its size is. Every record is
 * given in memory of just its size. Ops are folded into a small table that has every way in which an op can end, and one
 * number behind it.
 */
#include "collector/consume.h"
#include "tests/fuzz/trace_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { ADD, MUL, ADD_INPLACE, ZERO_INPLACE, SPLIT, N_OPS };

static struct terra_op ops[N_OPS] = {
	[ADD] = { .name = "aten::add", .overload = "Tensor", .level = TERRA_LEVEL_CALL },
	[MUL] = { .name = "aten::mul", .overload = "Tensor", .level = TERRA_LEVEL_REDISPATCH },
	[ADD_INPLACE] = { .name = "aten::add_", .overload = "Tensor", .level = TERRA_LEVEL_REDISPATCH },
	[ZERO_INPLACE] = { .name = "aten::zero_", .overload = "", .level = TERRA_LEVEL_CALL },
	[SPLIT] = { .name = "aten::split", .overload = "sizes", .level = TERRA_LEVEL_REDISPATCH },
};
static const struct terra_op_layout layouts[N_OPS] = {
	[ADD] = { .has_exit = 1, .n_args = 2, .args = { { .kind = TERRA_KIND_TENSOR }, { .kind = TERRA_KIND_TENSOR } } },
	[MUL] = { .has_exit = 1, .level = TERRA_LEVEL_REDISPATCH },
	[ADD_INPLACE] = { .level = TERRA_LEVEL_REDISPATCH, .ret = TERRA_RET_TENSOR_REF, .n_args = 2,
			  .args = { { .kind = TERRA_KIND_KEYSET }, { .kind = TERRA_KIND_TENSOR, .is_mutable = 1 } } },
	[ZERO_INPLACE] = { .ret = TERRA_RET_TENSOR_REF, .n_args = 1,
			   .args = { { .kind = TERRA_KIND_TENSOR, .is_mutable = 1 } } },
	[SPLIT] = { .has_exit = 1, .ret = TERRA_RET_TENSOR_LIST },
};
static struct terra_op_table table = { .n_ops = N_OPS, .ops = ops };
static struct terra_offsets offsets = { .element_size = { [4] = 8, [6] = 4 } };

static int resolve(void *ctx, const struct pystack_entry *entry, struct terra_frame *frame)
{
	*frame = (struct terra_frame){ "file.py", "function", (int32_t)entry->offset };
	return entry->code ? 0 : -EINVAL;
}

/* One record, and how much of the input it took. */
static size_t give(struct terra_consumer *consumer, const uint8_t *data, size_t size)
{
	struct terra_record head = { .size = 0 };
	struct terra_record *record;
	size_t wanted, there;

	memcpy(&head, data, size < sizeof(head) ? size : sizeof(head));
	head.op %= N_OPS + 1;
	wanted = head.size < sizeof(head) || head.size > TERRA_CHUNK_SIZE ? sizeof(head) : head.size;
	there = wanted < size ? wanted : size;
	record = calloc(1, wanted);
	input_check(record, "memory");
	memcpy(record, data, there);
	memcpy(record, &head, sizeof(head));
	input_check(terra_consumer_record(consumer, record) == 0, "a damaged record is dropped, and no more");
	free(record);
	return there;
}

/* Reads the trace back; no event of it may be damaged. */
static void check_trace(int fd, uint64_t n_events)
{
	struct terra_trace_reader *reader = input_open(fd);
	struct terra_event event;
	uint64_t n = 0, sum = 0;
	int ret;

	input_check(reader, "the trace opens");
	while ((ret = terra_trace_next(reader, &event)) > 0) {
		sum += input_sum_event(&event);
		n++;
	}
	input_check(ret == 0 && terra_trace_ended_cleanly(reader), terra_trace_error(reader));
	input_check(n == n_events && sum != 0x5eed, "as many events as were made");
	terra_trace_close(reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct terra_consumer_options options = { .table = &table, .layouts = layouts, .offsets = &offsets,
						  .sink = terra_consumer_write, .resolve = resolve };
	struct terra_trace_info info = { .backend = "bpf", .command = "", .library = "", .build_id = "", .cpu = "" };
	int fd = memfd_create("trace", MFD_CLOEXEC);
	struct terra_trace_writer *writer;
	struct terra_consumer *consumer;
	uint64_t n_events;
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	input_check(terra_trace_create(path, &info, &writer, NULL, 0) == 0, "a trace can be made");
	options.sink_ctx = writer;
	consumer = terra_consumer_new(&options);
	input_check(consumer, "memory");
	for (size_t at = 0; at < size;)
		at += give(consumer, data + at, size - at);
	n_events = terra_consumer_stats(consumer)->events;
	terra_consumer_free(consumer);
	input_check(terra_trace_finish(writer) == 0, "the trace ends");
	check_trace(fd, n_events);
	close(fd);
	return 0;
}
