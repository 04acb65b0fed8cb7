/* The trace file: what is written is read back, and a file cut or damaged anywhere gives what is intact. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>

#include "collector/trace_format.h"
#include "trace_sample.h"

static struct terra_trace_reader *open_ok(const char *path)
{
	struct terra_trace_reader *reader;
	char err[320] = "";

	if (terra_trace_open(path, &reader, err, sizeof(err)) != 0)
		fail_msg("%s", err);
	return reader;
}

static void expect_open_error(const char *path, int expected, const char *word)
{
	struct terra_trace_reader *reader;
	char err[320] = "";

	assert_int_equal(terra_trace_open(path, &reader, err, sizeof(err)), expected);
	assert_null(reader);
	if (!strstr(err, word))
		fail_msg("the message '%s' does not say '%s'", err, word);
}

/* Writes one event to a file of its own and returns the reader that stands behind it. */
static struct terra_trace_reader *through_file(struct terra_event *event, struct terra_event *read)
{
	const char *path = sample_tmp("one");
	struct terra_trace_writer *writer;
	struct terra_trace_reader *reader;

	assert_int_equal(terra_trace_create(path, sample_info(), &writer, NULL, 0), 0);
	assert_int_equal(terra_trace_write(writer, event), 0);
	assert_int_equal(terra_trace_finish(writer), 0);
	reader = open_ok(path);
	assert_int_equal(terra_trace_next(reader, read), 1);
	return reader;
}

static void expect_same(struct terra_event *event)
{
	struct terra_event read, end;
	struct terra_trace_reader *reader = through_file(event, &read);

	assert_true(same_event(event, &read));
	assert_int_equal(terra_trace_next(reader, &end), 0);
	assert_true(terra_trace_ended_cleanly(reader));
	terra_trace_close(reader);
}

static void test_info(void **state)
{
	const struct terra_trace_info *info, *expected = sample_info();
	struct terra_trace_reader *reader;
	struct terra_event event;

	assert_int_equal(sample_write_trace(sample_tmp("info"), 0, 0), 0);
	reader = open_ok(sample_tmp("info"));
	info = terra_trace_info(reader);
	assert_int_equal(info->version, 1);
	assert_string_equal(info->backend, expected->backend);
	assert_string_equal(info->command, expected->command);
	assert_string_equal(info->library, expected->library);
	assert_string_equal(info->build_id, expected->build_id);
	assert_string_equal(info->cpu, expected->cpu);
	assert_int_equal(info->pid, expected->pid);
	assert_int_equal(info->threads, expected->threads);
	assert_int_equal(info->start_ns, expected->start_ns);
	assert_int_equal(terra_trace_next(reader, &event), 0);
	assert_true(terra_trace_ended_cleanly(reader));
	terra_trace_close(reader);
}

static void value_round_trip(struct terra_value value)
{
	struct terra_value values[2] = {{.kind = TERRA_KIND_INT, .present = 1, .u.i = -77}, value};
	struct terra_event event = {.type = TERRA_EVENT_OP_ENTER, .op = "aten::x", .overload = "", .n_values = 2,
				    .values = values, .parent_seq = UINT64_MAX};

	expect_same(&event);
}

static void scalar_round_trips(struct terra_value value)
{
	static const double doubles[] = {0.0, -0.0, 1e308, 5e-324, INFINITY, NAN};

	for (size_t i = 0; i < sizeof(doubles) / sizeof(doubles[0]); i++) {
		value.scalar_tag = 'f';
		value.u.d = doubles[i];
		value_round_trip(value);
		value.scalar_tag = 'z';
		value.u.z[0] = -1.5;
		value.u.z[1] = doubles[i];
		value_round_trip(value);
	}
	value.u.i = INT64_MIN;
	value.scalar_tag = 'i';
	value_round_trip(value);
	value.u.i = 1;
	value.scalar_tag = 'b';
	value_round_trip(value);
	value.scalar_tag = 's';
	value_round_trip(value);
	value.scalar_tag = '?';
	value_round_trip(value);
}

static void list_round_trips(struct terra_value value, enum trace_form form)
{
	struct terra_tensor tensors[3] = {sample_tensor(1), {.dtype = -1, .device_type = -1}, sample_tensor(5)};
	int64_t ints[3] = {INT64_MAX, INT64_MIN, 0};
	double doubles[3] = {NAN, -0.0, 1.25};
	struct terra_value scalars[3] = {
		{.kind = TERRA_KIND_SCALAR, .present = 1, .scalar_tag = 'f', .u.d = -0.0},
		{.kind = TERRA_KIND_SCALAR},
		{.kind = TERRA_KIND_SCALAR, .present = 1, .scalar_tag = 'z', .u.z = {1, 2}},
	};

	if (form == TRACE_FORM_TENSORS)
		value.u.tensors = tensors;
	else if (form == TRACE_FORM_INTS)
		value.u.ints = ints;
	else if (form == TRACE_FORM_DOUBLES)
		value.u.doubles = doubles;
	else
		value.u.scalars = scalars;
	for (uint32_t recorded = 0; recorded <= 3; recorded++) {
		value.recorded = recorded;
		value.count = recorded;
		value_round_trip(value);
		value.count = 100000;
		value_round_trip(value);
	}
}

static void string_round_trips(struct terra_value value)
{
	value.u.string = (char *)"reflect\0ion";
	for (uint32_t count = 0; count <= 11; count++) {
		value.count = value.recorded = count;
		value_round_trip(value);
	}
	value.recorded = 0; /* complete */
	value_round_trip(value);
	value.count = 5000;
	value.recorded = 11;
	value_round_trip(value);
}

static void tensor_round_trips(struct terra_value value)
{
	struct terra_tensor t = sample_tensor(3);

	value.u.tensor = &t;
	value_round_trip(value);
	t.ndim = 11; /* more than fit: the rank stays right */
	for (int i = 0; i < TERRA_MAX_DIM; i++)
		t.size[i] = t.stride[i] = INT64_MAX - i;
	value_round_trip(value);
	t.ndim = 0;
	t.numel = 1;
	t.requires_grad = 0xff;
	t.impl = UINT64_MAX;
	t.data = 0; /* unreadable while the storage is known */
	value_round_trip(value);
	t.stride[0] = -1;
	t.ndim = 1;
	t.dtype = -1;
	t.storage_data = t.storage_bytes = t.storage = 0;
	value_round_trip(value);
	t.defined = 0;
	value_round_trip(value);
}

static void test_every_kind(void **state)
{
	static const int64_t ints[] = {0, 1, -1, 63, 64, -64, -65, INT64_MAX, INT64_MIN};

	for (unsigned int kind = 0; kind < TERRA_KIND_COUNT; kind++) {
		struct terra_value value = {.kind = (uint8_t)kind};
		enum trace_form form = trace_form_of(kind);

		value_round_trip(value); /* absent */
		value.present = 1;
		if (form == TRACE_FORM_INT) {
			for (size_t i = 0; i < sizeof(ints) / sizeof(ints[0]); i++) {
				value.u.i = ints[i];
				value_round_trip(value);
			}
		} else if (form == TRACE_FORM_DOUBLE) {
			value.u.d = -0.1;
			value_round_trip(value);
		} else if (form == TRACE_FORM_SCALAR) {
			scalar_round_trips(value);
		} else if (form == TRACE_FORM_TENSOR) {
			tensor_round_trips(value);
		} else if (form == TRACE_FORM_STRING) {
			string_round_trips(value);
		} else {
			list_round_trips(value, form);
		}
	}
}

static void test_event_fields(void **state)
{
	struct terra_frame frames[] = {{"a.py", "f", 3}, {NULL, "g", -1}, {"a.py", NULL, INT32_MAX}, {NULL, NULL, 0}};
	struct terra_event enter = {.type = TERRA_EVENT_OP_ENTER, .level = TERRA_LEVEL_REDISPATCH, .thread = UINT32_MAX,
				    .time_ns = UINT64_MAX, .parent_seq = UINT64_MAX, .op = "aten::add_",
				    .overload = "Tensor", .keyset = UINT64_MAX, .n_frames = 4, .frames = frames};
	struct terra_tensor tensor = sample_tensor(3);
	struct terra_value value = {.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &tensor};
	struct terra_event read = {.type = TERRA_EVENT_HOST_READ, .text = "numpy", .n_values = 1, .values = &value,
				   .n_frames = 4, .frames = frames, .parent_seq = UINT64_MAX};
	struct terra_event call = {.type = TERRA_EVENT_CALL, .text = "torch.ops", .op = "aten::add", .overload = "Tensor",
				   .parent_seq = UINT64_MAX};
	struct terra_event note = {.type = TERRA_EVENT_NOTE, .text = "", .time_ns = 5};
	struct terra_event lost = {.type = TERRA_EVENT_LOST, .lost = UINT64_MAX};
	struct terra_event exit = {.type = TERRA_EVENT_OP_EXIT, .raised = 1, .op = "aten::add_", .overload = "",
				   .enter_seq = UINT64_MAX};

	expect_same(&enter);
	enter.autograd = exit.autograd = 1;
	enter.node = UINT64_MAX;
	enter.forward_seq = UINT64_MAX;
	exit.node = UINT64_MAX - 1;
	expect_same(&enter);
	expect_same(&exit);
	enter.node = 0;
	expect_same(&enter);
	expect_same(&read);
	expect_same(&call);
	call.op = call.overload = NULL;
	expect_same(&call);
	expect_same(&note);
	expect_same(&lost);
	expect_same(&exit);
}

/* Several blocks, some ended by the writer itself: names and stacks are defined anew in each. */
static void test_stream(void **state)
{
	const uint64_t n = 30000;
	struct terra_trace_reader *reader;
	struct terra_event event;
	uint64_t lost = 0;

	assert_int_equal(sample_write_trace(sample_tmp("stream"), n, 9000), 0);
	reader = open_ok(sample_tmp("stream"));
	for (uint64_t i = 0; i < n; i++) {
		struct terra_event *expected = sample_event(i);

		assert_int_equal(terra_trace_next(reader, &event), 1);
		assert_true(same_event(expected, &event));
		lost += expected->lost;
	}
	assert_int_equal(terra_trace_next(reader, &event), 0);
	assert_int_equal(terra_trace_next(reader, &event), 0);
	assert_true(terra_trace_ended_cleanly(reader));
	assert_int_equal(terra_trace_lost(reader), lost);
	assert_int_equal(terra_trace_missing(reader), 0);
	assert_string_equal(terra_trace_error(reader), "");
	terra_trace_close(reader);
}

/* Damage. */

#define SMALL_EVENTS 60
#define SMALL_PER_BLOCK 20

static struct sample_bytes small_trace(void)
{
	assert_int_equal(sample_write_trace(sample_tmp("small"), SMALL_EVENTS, SMALL_PER_BLOCK), 0);
	return sample_read_file(sample_tmp("small"));
}

/* Offsets of the block headers, then of the end. */
static size_t block_offsets(struct sample_bytes file, size_t *offsets)
{
	size_t n = 0, pos = trace_get32(file.data + TRACE_HEADER_SIZE);

	while (pos < file.size) {
		offsets[n++] = pos;
		pos += TRACE_BLOCK_HEADER_SIZE + trace_get32(file.data + pos + TRACE_BLOCK_STORED);
	}
	offsets[n] = pos;
	return n;
}

struct outcome {
	int open;
	uint64_t events;
	uint64_t first_missing; /* SMALL_EVENTS when none */
	int errors;
	bool clean;
	uint64_t missing;
	char message[320];
};

/* Reads the bytes as a trace; whatever is delivered must be what was written. */
static struct outcome read_bytes(const void *data, size_t size)
{
	struct outcome o = {.first_missing = SMALL_EVENTS};
	struct terra_trace_reader *reader;
	struct terra_event event;
	uint64_t next = 0;
	int ret;

	sample_write_file(sample_tmp("damaged"), data, size);
	o.open = terra_trace_open(sample_tmp("damaged"), &reader, o.message, sizeof(o.message));
	if (o.open)
		return o;
	while ((ret = terra_trace_next(reader, &event)) != 0) {
		if (ret < 0) {
			assert_int_equal(ret, -EBADMSG);
			assert_true(strlen(terra_trace_error(reader)) > 0);
			assert_true(++o.errors < 100);
			continue;
		}
		assert_true(event.seq >= next && event.seq < SMALL_EVENTS);
		if (event.seq > next && o.first_missing == SMALL_EVENTS)
			o.first_missing = next;
		next = event.seq + 1;
		assert_true(same_event(sample_event(event.seq), &event));
		o.events++;
	}
	if (next < SMALL_EVENTS && o.first_missing == SMALL_EVENTS)
		o.first_missing = next;
	o.clean = terra_trace_ended_cleanly(reader);
	o.missing = terra_trace_missing(reader);
	snprintf(o.message, sizeof(o.message), "%s", terra_trace_error(reader));
	terra_trace_close(reader);
	return o;
}

static void test_cut_everywhere(void **state)
{
	struct sample_bytes file = small_trace();
	size_t offsets[8], n_blocks = block_offsets(file, offsets);

	assert_int_equal(n_blocks, 4); /* three of events, and the end */
	for (size_t cut = 0; cut < file.size; cut++) {
		struct outcome o = read_bytes(file.data, cut);
		uint64_t complete = 0;

		if (cut < offsets[0]) {
			assert_int_equal(o.open, -ENODATA);
			assert_non_null(strstr(o.message, "record it again"));
			continue;
		}
		for (size_t b = 1; b < n_blocks; b++)
			complete += offsets[b] <= cut ? SMALL_PER_BLOCK : 0;
		assert_int_equal(o.open, 0);
		assert_int_equal(o.errors, 0);
		assert_int_equal(o.events, complete);
		assert_false(o.clean);
		assert_non_null(strstr(o.message, "ended abnormally"));
	}
	assert_true(read_bytes(file.data, file.size).clean);
	free(file.data);
}

/* Any flipped bit is noticed, and takes no more with it than the block it is in. */
static void test_every_bit_flip(void **state)
{
	struct sample_bytes file = small_trace();
	size_t offsets[8], n_blocks = block_offsets(file, offsets), block = 0;

	for (size_t bit = 0; bit < file.size * 8; bit++) {
		struct outcome o;

		file.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		o = read_bytes(file.data, file.size);
		file.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		if (bit / 8 < offsets[0]) {
			assert_int_not_equal(o.open, 0);
			continue;
		}
		while (bit / 8 >= offsets[block + 1])
			block++;
		assert_int_equal(o.open, 0);
		assert_int_equal(o.errors, 1);
		if (block + 1 == n_blocks) {
			assert_false(o.clean);
			assert_int_equal(o.events, SMALL_EVENTS);
			continue;
		}
		assert_true(o.clean);
		assert_int_equal(o.events, SMALL_EVENTS - SMALL_PER_BLOCK);
		assert_int_equal(o.first_missing, block * SMALL_PER_BLOCK);
		assert_int_equal(o.missing, SMALL_PER_BLOCK);
	}
	free(file.data);
}

static void test_block_removed(void **state)
{
	struct sample_bytes file = small_trace();
	size_t offsets[8];
	struct outcome o;

	block_offsets(file, offsets);
	memmove(file.data + offsets[1], file.data + offsets[2], file.size - offsets[2]);
	o = read_bytes(file.data, file.size - (offsets[2] - offsets[1]));
	assert_int_equal(o.errors, 1);
	assert_int_equal(o.events, SMALL_EVENTS - SMALL_PER_BLOCK);
	assert_int_equal(o.missing, SMALL_PER_BLOCK);
	assert_non_null(strstr(o.message, "1 blocks with 20 events are missing"));
	assert_true(o.clean);
	free(file.data);
}

/* A block twice, and one of another trace in the place of the first: neither may pass for this trace's. */
static void test_block_of_elsewhere(void **state)
{
	struct sample_bytes file = small_trace(), other = small_trace();
	size_t offsets[8], n_blocks = block_offsets(file, offsets), first = offsets[1] - offsets[0];
	uint8_t *twice = malloc(file.size + first);
	struct outcome o;

	assert_non_null(twice);
	memcpy(twice, file.data, offsets[1]);
	memcpy(twice + offsets[1], file.data + offsets[0], first);
	memcpy(twice + offsets[1] + first, file.data + offsets[1], file.size - offsets[1]);
	o = read_bytes(twice, file.size + first);
	assert_int_equal(o.errors, 1);
	assert_int_equal(o.events, SMALL_EVENTS);

	assert_int_equal(n_blocks, 4);
	assert_int_equal(other.size, file.size);
	memcpy(file.data + offsets[0], other.data + offsets[0], first);
	o = read_bytes(file.data, file.size);
	assert_int_equal(o.errors, 1);
	assert_int_equal(o.first_missing, 0);
	assert_int_equal(o.missing, SMALL_PER_BLOCK);
	free(twice);
	free(file.data);
	free(other.data);
}

static void test_bytes_after_end(void **state)
{
	struct sample_bytes file = small_trace();
	uint8_t *longer = malloc(file.size + 5);
	struct outcome o;

	assert_non_null(longer);
	memcpy(longer, file.data, file.size);
	memcpy(longer + file.size, "hello", 5);
	o = read_bytes(longer, file.size + 5);
	assert_int_equal(o.errors, 1);
	assert_int_equal(o.events, SMALL_EVENTS);
	assert_non_null(strstr(o.message, "5 bytes"));
	free(longer);
	free(file.data);
}

static void test_foreign_files(void **state)
{
	struct sample_bytes file = small_trace();
	const char *path = sample_tmp("foreign");

	expect_open_error(sample_tmp("absent"), -ENOENT, "No such file");
	expect_open_error(sample_tmp_dir, -EINVAL, "terra-trace");
	sample_write_file(path, "", 0);
	expect_open_error(path, -ENODATA, "empty");
	sample_write_file(path, "\x7f" "ELF", 4);
	expect_open_error(path, -EINVAL, "terra-trace -o");
	sample_write_file(path, "# a text file that is longer than a header\n", 43);
	expect_open_error(path, -EINVAL, "is not a trace");
	trace_put32(file.data + TRACE_HEADER_VERSION, 2);
	sample_write_file(path, file.data, file.size);
	expect_open_error(path, -EPROTONOSUPPORT, "version 2, this program reads version 1");
	trace_put32(file.data + TRACE_HEADER_VERSION, 1);
	trace_put32(file.data + TRACE_HEADER_SIZE, UINT32_MAX);
	sample_write_file(path, file.data, file.size);
	expect_open_error(path, -EBADMSG, "damaged in its header");
	free(file.data);
}

/* The writer's side. */

static void refused(struct terra_trace_writer *writer, struct terra_event event, int expected)
{
	assert_int_equal(terra_trace_write(writer, &event), expected);
}

/* An event that makes no sense or is beyond the limits is refused; those around it are not touched. */
static void test_refused_events(void **state)
{
	static char long_name[TRACE_STRING_MAX + 2];
	static struct terra_value many[TRACE_VALUES_MAX + 1];
	static int64_t ints[TRACE_ELEMENTS_MAX + 1];
	struct terra_value list = {.kind = TERRA_KIND_INT_LIST, .present = 1, .count = TRACE_ELEMENTS_MAX + 1,
				   .recorded = TRACE_ELEMENTS_MAX + 1, .u.ints = ints};
	struct terra_value no_tensor = {.kind = TERRA_KIND_TENSOR, .present = 1};
	struct terra_value no_kind = {.kind = TERRA_KIND_COUNT, .present = 1};
	struct terra_event op = {.type = TERRA_EVENT_OP_ENTER, .op = "aten::x", .overload = "", .n_values = 1,
				 .parent_seq = UINT64_MAX};
	struct terra_event event = op;
	struct terra_trace_writer *writer;
	struct terra_trace_reader *reader;

	memset(long_name, 'x', sizeof(long_name) - 1);
	assert_int_equal(terra_trace_create(sample_tmp("refused"), sample_info(), &writer, NULL, 0), 0);
	for (uint64_t i = 0; i < 10; i++) {
		assert_int_equal(terra_trace_write(writer, sample_event(i)), 0);
		event = op;
		event.values = &no_tensor;
		refused(writer, event, -EINVAL);
		event.values = &no_kind;
		refused(writer, event, -EINVAL);
		event.values = &list;
		refused(writer, event, -E2BIG);
		event.values = many;
		event.n_values = TRACE_VALUES_MAX + 1;
		refused(writer, event, -E2BIG);
		event.n_values = 0;
		event.op = long_name;
		refused(writer, event, -E2BIG);
		event.op = NULL;
		refused(writer, event, -EINVAL);
		event.op = "aten::x";
		event.parent_seq = 1000;
		refused(writer, event, -EINVAL);
		refused(writer, (struct terra_event){.type = TERRA_EVENT_HOST_READ, .parent_seq = UINT64_MAX}, -EINVAL);
		refused(writer, (struct terra_event){.type = TERRA_EVENT_NOTE}, -EINVAL);
	}
	assert_int_equal(terra_trace_finish(writer), 0);
	reader = open_ok(sample_tmp("refused"));
	for (uint64_t i = 0; i < 10; i++) {
		assert_int_equal(terra_trace_next(reader, &event), 1);
		op = *sample_event(i);
		op.op_index = event.op_index; /* refused ops took numbers too */
		assert_true(same_event(&op, &event));
	}
	assert_int_equal(terra_trace_next(reader, &event), 0);
	assert_true(terra_trace_ended_cleanly(reader));
	terra_trace_close(reader);
}

/* The largest event that the limits allow goes through. */
static void test_largest_event(void **state)
{
	static int64_t ints[TRACE_ELEMENTS_MAX];
	struct terra_value list = {.kind = TERRA_KIND_INT_LIST, .present = 1, .count = TRACE_ELEMENTS_MAX,
				   .recorded = TRACE_ELEMENTS_MAX, .u.ints = ints};
	struct terra_event event = {.type = TERRA_EVENT_OP_ENTER, .op = "aten::x", .overload = "", .n_values = 1,
				    .values = &list, .parent_seq = UINT64_MAX};

	for (uint32_t i = 0; i < TRACE_ELEMENTS_MAX; i++)
		ints[i] = (int64_t)((uint64_t)i * 0x9e3779b97f4a7c15u >> (i % 5 ? 40 : 1));
	expect_same(&event);
}

static void test_full_disk_at_creation(void **state)
{
	struct terra_trace_writer *writer;
	char err[320] = "";

	if (access("/dev/full", W_OK) != 0)
		skip();
	assert_int_equal(terra_trace_create("/dev/full", sample_info(), &writer, err, sizeof(err)), -ENOSPC);
	assert_null(writer);
	assert_non_null(strstr(err, "free some space"));
}

/* A file size limit fails as a full disk does: some of a block may be written, then an error. */
static void test_full_disk_later(void **state)
{
	const char *path = sample_tmp("full");
	struct rlimit old, limit;
	struct terra_trace_writer *writer;
	struct terra_trace_reader *reader;
	struct terra_event event;
	uint64_t written = 0, n = 0;
	int ret = 0;

	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	limit = old;
	limit.rlim_cur = 5000;
	assert_int_equal(terra_trace_create(path, sample_info(), &writer, NULL, 0), 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	for (uint64_t i = 0; ret == 0 && i < 100000; i++) {
		ret = terra_trace_write(writer, sample_event(i));
		if (ret == 0 && i % 50 == 49) {
			ret = terra_trace_flush(writer);
			written = ret ? written : i + 1;
		}
	}
	assert_int_equal(ret, -EFBIG);
	assert_int_equal(terra_trace_write(writer, sample_event(0)), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(terra_trace_finish(writer), -EFBIG);
	assert_true(written > 0);
	reader = open_ok(path);
	for (; terra_trace_next(reader, &event) == 1; n++)
		assert_true(same_event(sample_event(n), &event));
	assert_int_equal(n, written);
	assert_false(terra_trace_ended_cleanly(reader));
	terra_trace_close(reader);
}

static void count_signal(int number)
{
}

/* A slow pipe and a timer: write(2) is interrupted in the middle of blocks. */
static void *drain_slowly(void *argument)
{
	struct sample_bytes *bytes = argument;
	int fd = open(sample_tmp("pipe"), O_RDONLY);
	ssize_t n;

	while ((n = read(fd, bytes->data + bytes->size, 4096)) > 0) {
		bytes->size += (size_t)n;
		usleep(2000);
	}
	close(fd);
	return NULL;
}

static void test_interrupted_writes(void **state)
{
	struct sigaction action = {.sa_handler = count_signal}; /* without SA_RESTART */
	struct itimerval timer = {.it_interval.tv_usec = 500, .it_value.tv_usec = 500}, off = {0};
	struct sample_bytes bytes = {.data = malloc(4 << 20)};
	struct terra_trace_reader *reader;
	struct terra_event event;
	sigset_t alarm_set;
	pthread_t thread;
	uint64_t n = 0;

	assert_non_null(bytes.data);
	assert_int_equal(mkfifo(sample_tmp("pipe"), 0600), 0);
	sigemptyset(&alarm_set);
	sigaddset(&alarm_set, SIGALRM);
	sigaction(SIGALRM, &action, NULL);
	pthread_sigmask(SIG_BLOCK, &alarm_set, NULL); /* in the reader's thread: only the writer is to be hit */
	assert_int_equal(pthread_create(&thread, NULL, drain_slowly, &bytes), 0);
	pthread_sigmask(SIG_UNBLOCK, &alarm_set, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	assert_int_equal(sample_write_trace(sample_tmp("pipe"), 20000, 0), 0);
	setitimer(ITIMER_REAL, &off, NULL);
	pthread_join(thread, NULL);
	sample_write_file(sample_tmp("piped"), bytes.data, bytes.size);
	reader = open_ok(sample_tmp("piped"));
	for (; terra_trace_next(reader, &event) == 1; n++)
		assert_true(same_event(sample_event(n), &event));
	assert_int_equal(n, 20000);
	assert_true(terra_trace_ended_cleanly(reader));
	terra_trace_close(reader);
	free(bytes.data);
}

static void test_checksum(void **state)
{
	uint8_t zeros[32] = {0};

	/* RFC 3720, B.4 */
	assert_int_equal(trace_crc32c(0, "123456789", 9), 0xe3069283);
	assert_int_equal(trace_crc32c(0, zeros, 32), 0x8a9136aa);
	assert_int_equal(trace_crc32c(trace_crc32c(0, "1234", 4), "56789", 5), 0xe3069283);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_checksum),
		cmocka_unit_test(test_info),
		cmocka_unit_test(test_every_kind),
		cmocka_unit_test(test_event_fields),
		cmocka_unit_test(test_stream),
		cmocka_unit_test(test_cut_everywhere),
		cmocka_unit_test(test_every_bit_flip),
		cmocka_unit_test(test_block_removed),
		cmocka_unit_test(test_block_of_elsewhere),
		cmocka_unit_test(test_bytes_after_end),
		cmocka_unit_test(test_foreign_files),
		cmocka_unit_test(test_refused_events),
		cmocka_unit_test(test_largest_event),
		cmocka_unit_test(test_full_disk_at_creation),
		cmocka_unit_test(test_full_disk_later),
		cmocka_unit_test(test_interrupted_writes),
	};

	return cmocka_run_group_tests(tests, sample_tmp_create, sample_tmp_remove);
}
