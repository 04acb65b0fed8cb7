/* The exports of hand-made traces: what is written byte by byte, and that ops nest whatever the trace lacks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <inttypes.h>
#include <sys/resource.h>

#include "collector/export.h"
#include "collector/protobuf.h"
#include "trace_sample.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define WITH_ASAN 1
#endif

struct script {
	struct terra_trace_writer *writer;
	uint64_t clock;
};

static void begin(struct script *s, const char *name)
{
	assert_int_equal(terra_trace_create(sample_tmp(name), sample_info(), &s->writer, NULL, 0), 0);
	s->clock = sample_info()->start_ns;
}

static uint64_t put(struct script *s, struct terra_event event)
{
	s->clock += 1000;
	event.time_ns = s->clock;
	event.thread = event.thread ? event.thread : 4242;
	assert_int_equal(terra_trace_write(s->writer, &event), 0);
	return event.seq;
}

static uint64_t enter(struct script *s, const char *op, uint64_t parent)
{
	return put(s,
		   (struct terra_event){.type = TERRA_EVENT_OP_ENTER, .op = op, .overload = "", .parent_seq = parent});
}

static void leave(struct script *s, const char *op, uint64_t seq)
{
	put(s, (struct terra_event){.type = TERRA_EVENT_OP_EXIT, .op = op, .overload = "", .enter_seq = seq});
}

/* The bytes of an export, freed by the caller, with a NUL behind them. */
static struct sample_bytes exported(const char *name, enum terra_export_format format,
				    struct terra_export_result *result)
{
	struct terra_trace_reader *reader;
	struct sample_bytes bytes;
	char err[320] = "", *data = NULL;
	FILE *out;

	if (terra_trace_open(sample_tmp(name), &reader, err, sizeof(err)) != 0)
		fail_msg("%s", err);
	out = open_memstream(&data, &bytes.size);
	assert_non_null(out);
	assert_int_equal(terra_export(reader, format, out, result), 0);
	fclose(out);
	terra_trace_close(reader);
	bytes.data = (uint8_t *)data;
	return bytes;
}

/* The export is, byte by byte, the file of that name in tests/unit/golden. */
static void expect_golden(const char *name, enum terra_export_format format, const char *golden)
{
	struct terra_export_result result;
	struct sample_bytes bytes = exported(name, format, &result), wanted;
	char path[512];

	snprintf(path, sizeof(path), "%s/tests/unit/golden/%s", TERRA_SOURCE_DIR, golden);
	wanted = sample_read_file(path);
	wanted.data[wanted.size] = 0;
	assert_string_equal((char *)bytes.data, (char *)wanted.data);
	free(wanted.data);
	free(bytes.data);
}

/* mul.Tensor of a tensor and a scalar, with a stack; one exception; a note. */
static void small_trace(const char *name)
{
	static struct terra_frame frames[] = {{"/usr/lib/python3/site-packages/torch/functional.py", "f", 7},
					      {"train.py", "main", 22}};
	struct terra_tensor in = sample_tensor(1), out = sample_tensor(2);
	struct terra_value args[] = {
	    {.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &in},
	    {.kind = TERRA_KIND_SCALAR, .present = 1, .scalar_tag = 'f', .u.d = 0.5},
	};
	struct terra_value result = {.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &out};
	struct script s;
	uint64_t outer, inner;

	begin(&s, name);
	outer = put(&s, (struct terra_event){.type = TERRA_EVENT_OP_ENTER,
					     .op = "aten::mul",
					     .overload = "Tensor",
					     .parent_seq = UINT64_MAX,
					     .values = args,
					     .n_values = 2,
					     .frames = frames,
					     .n_frames = 2});
	inner = put(&s, (struct terra_event){.type = TERRA_EVENT_OP_ENTER,
					     .op = "aten::empty",
					     .overload = "",
					     .level = 1,
					     .keyset = 0x10,
					     .parent_seq = outer});
	put(&s, (struct terra_event){.type = TERRA_EVENT_OP_EXIT,
				     .op = "aten::empty",
				     .overload = "",
				     .level = 1,
				     .enter_seq = inner,
				     .raised = 1});
	put(&s, (struct terra_event){.type = TERRA_EVENT_OP_EXIT,
				     .op = "aten::mul",
				     .overload = "Tensor",
				     .enter_seq = outer,
				     .values = &result,
				     .n_values = 1});
	put(&s, (struct terra_event){.type = TERRA_EVENT_NOTE, .text = "a \"note\""});
	assert_int_equal(terra_trace_finish(s.writer), 0);
}

static void test_golden(void **state)
{
	small_trace("small");
	expect_golden("small", TERRA_EXPORT_CHROME, "export_chrome.json");
	expect_golden("small", TERRA_EXPORT_JSON, "export_json.jsonl");
}

/* Protobuf. */

static void test_protobuf(void **state)
{
	static const uint8_t wanted[] = {0x08, 0x96, 0x01, 0x12, 0x07, 't', 'e',  's',	't',  'i',  'n',
					 'g',  0x1a, 0x03, 'a',	 '?',  'b', 0xa2, 0x01, 0x02, 0x08, 0x00};
	struct trace_buffer out = {0};
	size_t outer, inner, size;

	pb_uint(&out, 1, 150);
	pb_bytes(&out, 2, "testing", 7);
	pb_string(&out, 3,
		  "a\xff"
		  "b");
	outer = pb_begin(&out, 20);
	pb_uint(&out, 1, 0);
	pb_end(&out, outer);
	assert_int_equal(out.size, sizeof(wanted));
	assert_memory_equal(out.data, wanted, sizeof(wanted));
	size = out.size;
	outer = pb_begin(&out, 1); /* two lengths that need more than a byte */
	inner = pb_begin(&out, 1);
	for (int i = 0; i < 100; i++)
		pb_uint(&out, 1, 300);
	pb_end(&out, inner);
	pb_end(&out, outer);
	assert_int_equal(out.size - size, 1 + 2 + 1 + 2 + 300);
	assert_memory_equal(out.data + size, "\x0a\xaf\x02\x0a\xac\x02\x08\xac\x02", 9);
	free(out.data);
}

struct field {
	uint32_t number;
	uint64_t v;	     /* a number, or the length */
	const uint8_t *data; /* NULL: a number */
};

static uint64_t take_varint(const uint8_t **p, const uint8_t *end)
{
	uint64_t v = 0;
	int shift = 0;
	uint8_t byte;

	do {
		assert_true(*p < end && shift < 64);
		byte = *(*p)++;
		v |= (uint64_t)(byte & 0x7f) << shift;
		shift += 7;
	} while (byte & 0x80);
	return v;
}

static bool take_field(const uint8_t **p, const uint8_t *end, struct field *field)
{
	uint64_t tag;

	if (*p == end)
		return false;
	tag = take_varint(p, end);
	field->number = (uint32_t)(tag >> 3);
	field->data = NULL;
	if ((tag & 7) == 1) {
		assert_true(end - *p >= 8);
		memcpy(&field->v, *p, 8);
		*p += 8;
		return true;
	}
	field->v = take_varint(p, end);
	if ((tag & 7) == 2) {
		assert_true(field->v <= (uint64_t)(end - *p));
		field->data = *p;
		*p += field->v;
	} else {
		assert_int_equal(tag & 7, 0);
	}
	return true;
}

/* The only or last field of that number; number 0: there is none. */
static struct field find(const uint8_t *data, uint64_t size, uint32_t number)
{
	const uint8_t *p = data, *end = data + size;
	struct field field, found = {0};

	while (take_field(&p, end, &field))
		if (field.number == number)
			found = field;
	return found;
}

/* Slices begin and end in turn, on each track as a stack, with times that do not go back; each track was described. */
#define TRACKS 64

struct tracks {
	uint64_t uuid[TRACKS], last[TRACKS];
	int depth[TRACKS], n, flows;
	uint64_t begins, gpu_begins, instants, flow[TRACKS];
};

static int track_at(struct tracks *tracks, uint64_t uuid)
{
	for (int i = 0; i < tracks->n; i++)
		if (tracks->uuid[i] == uuid)
			return i;
	fail_msg("track %" PRIx64 " was not described", uuid);
	return 0;
}

static void take_packet(struct tracks *tracks, const struct field *packet)
{
	struct field descriptor = find(packet->data, packet->v, 60), event = find(packet->data, packet->v, 11), type;
	uint64_t time = find(packet->data, packet->v, 8).v;
	int i;

	if (descriptor.number) {
		assert_true(tracks->n < TRACKS);
		tracks->uuid[tracks->n++] = find(descriptor.data, descriptor.v, 1).v;
	}
	if (!event.number)
		return;
	type = find(event.data, event.v, 9);
	i = track_at(tracks, find(event.data, event.v, 11).v);
	tracks->depth[i] += type.v == 1 ? 1 : type.v == 2 ? -1 : 0;
	if (tracks->uuid[i] & 1u << 31 && (uint32_t)tracks->uuid[i] != UINT32_MAX)
		tracks->gpu_begins += type.v == 1;
	else
		tracks->begins += type.v == 1;
	tracks->instants += type.v == 3;
	assert_true(tracks->depth[i] >= 0);
	if (find(event.data, event.v, 47).number && tracks->flows < TRACKS)
		tracks->flow[tracks->flows++] = find(event.data, event.v, 47).v;
	if (type.v != 3) {
		assert_true(time >= tracks->last[i]);
		tracks->last[i] = time;
	}
}

static struct tracks read_perfetto(const struct sample_bytes *bytes)
{
	const uint8_t *p = bytes->data, *end = p + bytes->size;
	struct tracks tracks = {0};
	struct field packet;

	while (take_field(&p, end, &packet)) {
		assert_int_equal(packet.number, 1);
		take_packet(&tracks, &packet);
	}
	for (int i = 0; i < tracks.n; i++)
		assert_int_equal(tracks.depth[i], 0);
	return tracks;
}

/* The chakra file's nodes: each dependency is a node that was before. Returns how many. */
static uint64_t read_chakra(const struct sample_bytes *bytes)
{
	const uint8_t *p = bytes->data, *end = p + bytes->size;
	uint64_t ids[512], n = 0, size;

	size = take_varint(&p, end);
	p += size;
	while (p < end) {
		size = take_varint(&p, end);
		assert_true(size <= (uint64_t)(end - p) && n < 512);
		for (uint32_t number = 4; number <= 5; number++) {
			struct field deps = find(p, size, number);
			const uint8_t *dep = deps.data, *deps_end = dep + deps.v;

			while (deps.number && dep < deps_end) {
				uint64_t id = take_varint(&dep, deps_end), i = 0;

				while (i < n && ids[i] != id)
					i++;
				assert_true(i < n);
			}
		}
		ids[n++] = find(p, size, 1).v;
		p += size;
	}
	return n;
}

/* What the walk makes of a trace that lacks things. */

static void test_perfetto(void **state)
{
	struct terra_export_result result;
	struct sample_bytes bytes;
	struct tracks tracks;

	small_trace("small");
	bytes = exported("small", TERRA_EXPORT_PERFETTO, &result);
	tracks = read_perfetto(&bytes);
	assert_int_equal(tracks.n, 2);
	assert_int_equal(tracks.begins, 2);
	assert_int_equal(tracks.instants, 1);
	free(bytes.data);
}

static void irregular_trace(const char *name)
{
	struct script s;
	uint64_t outer, inner, other;

	begin(&s, name);
	leave(&s, "aten::before", UINT64_MAX); /* entered before the recording */
	outer = enter(&s, "aten::outer", UINT64_MAX);
	inner = enter(&s, "aten::inner", outer);
	enter(&s, "aten::lost_exit", inner);
	leave(&s, "aten::inner", inner); /* closes lost_exit */
	other = enter(&s, "aten::second", outer);
	put(&s, (struct terra_event){.type = TERRA_EVENT_LOST, .lost = 17});
	s.clock -= 5000;		      /* goes back */
	enter(&s, "aten::third", UINT64_MAX); /* closes second and outer */
	leave(&s, "aten::second", other);     /* too late */
	enter(&s, "aten::open", UINT64_MAX);  /* closes third */
	put(&s, (struct terra_event){.type = TERRA_EVENT_NOTE, .text = "on no thread", .thread = 0});
	assert_int_equal(terra_trace_finish(s.writer), 0);
}

static void expect_irregular(const struct terra_export_result *result)
{
	assert_int_equal(result->ops, 6);
	assert_int_equal(result->open, 1);
	assert_int_equal(result->without_exit, 4);
	assert_int_equal(result->without_enter, 2);
	assert_int_equal(result->lost, 17);
	assert_true(result->ended_cleanly);
}

/* How the op of that name ended, by its line of JSON. */
static void expect_end(const struct sample_bytes *lines, const char *op, const char *end)
{
	char key[64], *line;

	snprintf(key, sizeof(key), "\"op\":\"%s\"", op);
	line = strstr((char *)lines->data, key);
	assert_non_null(line);
	line = strstr(line, "\"end\":\"") + strlen("\"end\":\"");
	if (strncmp(line, end, strlen(end)) != 0)
		fail_msg("%s ended as %.20s, not %s", op, line, end);
}

static void test_irregular(void **state)
{
	struct terra_export_result result;
	struct sample_bytes bytes;

	irregular_trace("irregular");
	bytes = exported("irregular", TERRA_EXPORT_PERFETTO, &result);
	expect_irregular(&result);
	assert_int_equal(read_perfetto(&bytes).begins, 6);
	assert_int_equal(read_perfetto(&bytes).instants, 2);
	free(bytes.data);
	bytes = exported("irregular", TERRA_EXPORT_CHAKRA, &result);
	expect_irregular(&result);
	assert_int_equal(read_chakra(&bytes), 5); /* outer, third, open; loss and note */
	free(bytes.data);
	bytes = exported("irregular", TERRA_EXPORT_JSON, &result);
	expect_irregular(&result);
	expect_end(&bytes, "aten::lost_exit", "no exit");
	expect_end(&bytes, "aten::inner", "returned");
	expect_end(&bytes, "aten::second", "no exit");
	expect_end(&bytes, "aten::outer", "no exit");
	expect_end(&bytes, "aten::third", "no exit");
	expect_end(&bytes, "aten::open", "open");
	free(bytes.data);
}

/* An op whose enclosing op's enter is missing says nothing of those that are open: they stay, and end as they would. */
static void test_enclosing_missing(void **state)
{
	struct terra_export_result result;
	struct sample_bytes bytes, file;
	struct script s;
	uint64_t outer, lost;

	begin(&s, "enclosing");
	outer = enter(&s, "aten::outer", UINT64_MAX);
	assert_int_equal(terra_trace_flush(s.writer), 0);
	lost = enter(&s, "aten::in_the_damaged_block", outer);
	assert_int_equal(terra_trace_flush(s.writer), 0);
	leave(&s, "aten::inner", enter(&s, "aten::inner", lost));
	leave(&s, "aten::outer", outer);
	assert_int_equal(terra_trace_finish(s.writer), 0);
	file = sample_read_file(sample_tmp("enclosing"));
	for (size_t i = 0, blocks = 0; i + 8 < file.size; i++)
		if (memcmp(file.data + i, "TerraBlk", 8) == 0 && ++blocks == 2)
			file.data[i + 70] ^= 1;
	sample_write_file(sample_tmp("enclosing"), file.data, file.size);
	free(file.data);
	bytes = exported("enclosing", TERRA_EXPORT_JSON, &result);
	assert_int_equal(result.n_damage, 1);
	assert_int_equal(result.missing, 1);
	assert_int_equal(result.ops, 2);
	assert_int_equal(result.without_exit, 0);
	assert_non_null(strstr((char *)bytes.data, "\"type\":\"damage\""));
	assert_non_null(strstr((char *)bytes.data, "\"parent\":0,"));
	free(bytes.data);
}

/* Cut anywhere, a trace gives what is before the cut, nested. */
static void test_cut(void **state)
{
	struct terra_export_result result;
	struct sample_bytes file, bytes;
	uint64_t ops = 0;

	assert_int_equal(sample_write_trace(sample_tmp("whole"), 240, 7), 0);
	file = sample_read_file(sample_tmp("whole"));
	for (size_t size = 400; size <= file.size; size += 97) {
		sample_write_file(sample_tmp("cut"), file.data, size);
		bytes = exported("cut", TERRA_EXPORT_PERFETTO, &result);
		assert_int_equal(read_perfetto(&bytes).begins, result.ops);
		assert_true(result.ops >= ops && !result.ended_cleanly);
		ops = result.ops;
		free(bytes.data);
		bytes = exported("cut", TERRA_EXPORT_CHAKRA, &result);
		assert_true(read_chakra(&bytes) > 0);
		free(bytes.data);
	}
	assert_true(ops > 80);
	free(file.data);
}

/* A producer is not guessed over a loss. */
static void test_loss_forgets(void **state)
{
	struct terra_tensor t = sample_tensor(1);
	struct terra_value value = {.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &t};
	struct terra_export_result result;
	struct sample_bytes bytes;
	struct script s;
	uint64_t seq;

	begin(&s, "loss");
	seq = enter(&s, "aten::randn", UINT64_MAX);
	put(&s, (struct terra_event){.type = TERRA_EVENT_OP_EXIT,
				     .op = "aten::randn",
				     .overload = "",
				     .enter_seq = seq,
				     .values = &value,
				     .n_values = 1});
	for (int i = 0; i < 2; i++) {
		seq = put(&s, (struct terra_event){.type = TERRA_EVENT_OP_ENTER,
						   .op = "aten::neg",
						   .overload = "",
						   .parent_seq = UINT64_MAX,
						   .values = &value,
						   .n_values = 1});
		leave(&s, "aten::neg", seq);
		put(&s, (struct terra_event){.type = TERRA_EVENT_LOST, .lost = 1});
	}
	assert_int_equal(terra_trace_finish(s.writer), 0);
	bytes = exported("loss", TERRA_EXPORT_JSON, &result);
	assert_non_null(strstr((char *)bytes.data, "\"data_deps\":[0]"));
	assert_non_null(strstr(strstr((char *)bytes.data, "\"data_deps\":[0]"), "\"data_deps\":[]"));
	free(bytes.data);
}

static uint64_t put_gpu(struct script *s, uint8_t kind, uint64_t at, uint64_t duration, uint64_t op)
{
	struct terra_gpu gpu = gpu_sample(kind, 9);
	struct terra_event event = gpu_event(&gpu, kind == TERRA_GPU_RUNTIME ? 4242 : 0, sample_info()->start_ns + at);

	if (kind == TERRA_GPU_OVERHEAD)
		gpu.correlation = 0;
	gpu.name = kind == TERRA_GPU_KERNEL ? "_Z5scalePfi" : NULL;
	gpu.duration_ns = duration;
	gpu.op_seq = op;
	gpu.linked = op == UINT64_MAX ? TERRA_GPU_BY_NOTHING : TERRA_GPU_BY_TIME;
	if (kind <= TERRA_GPU_MEMSET)
		gpu.device = 0, gpu.stream = 7;
	assert_int_equal(terra_trace_write(s->writer, &event), 0);
	return event.seq;
}

/* Recorded, not executed: an op with a call and what it launched, in no order of time, two kernels of one stream at a time. */
static void gpu_trace(const char *name)
{
	struct terra_gpu untimed = gpu_sample_full(TERRA_GPU_KERNEL);
	struct terra_event event = gpu_event(&untimed, 0, 0);
	struct script s;
	uint64_t outer, op;

	begin(&s, name);
	outer = enter(&s, "aten::square", UINT64_MAX);
	op = enter(&s, "aten::mul", outer);
	leave(&s, "aten::mul", op);
	leave(&s, "aten::square", outer);
	put_gpu(&s, TERRA_GPU_KERNEL, 9000, 500, op);
	put_gpu(&s, TERRA_GPU_KERNEL, 8000, 1000, op);
	put_gpu(&s, TERRA_GPU_MEMCPY, 8500, 1000, UINT64_MAX);
	put_gpu(&s, TERRA_GPU_RUNTIME, 1200, 300, op);
	put_gpu(&s, TERRA_GPU_OVERHEAD, 100, 300, UINT64_MAX);
	put_gpu(&s, TERRA_GPU_LINK, 100, 300, UINT64_MAX);
	untimed.untimed = 1;
	untimed.duration_ns = 0;
	untimed.op_seq = UINT64_MAX;
	assert_int_equal(terra_trace_write(s.writer, &event), 0);
	assert_int_equal(terra_trace_finish(s.writer), 0);
}

static uint64_t count_of(const struct sample_bytes *bytes, const char *what)
{
	uint64_t n = 0;

	for (const char *p = (char *)bytes->data; (p = strstr(p, what)); p += strlen(what))
		n++;
	return n;
}

/* How many nodes depend on the node 0 that started it all, by their ctrl_deps. */
static uint64_t gpu_dependencies(const struct sample_bytes *bytes)
{
	const uint8_t *p = bytes->data, *end = p + bytes->size;
	uint64_t n = 0, size;

	for (; p < end; p += size) {
		struct field deps;

		size = take_varint(&p, end);
		deps = find(p, size, 4);
		if (deps.number) {
			assert_int_equal(deps.v, 1);
			assert_int_equal(deps.data[0], 0);
			n++;
		}
	}
	return n;
}

static void test_gpu(void **state)
{
	struct terra_export_result result;
	struct sample_bytes bytes;
	struct tracks tracks;

	gpu_trace("gpu");
	bytes = exported("gpu", TERRA_EXPORT_PERFETTO, &result);
	tracks = read_perfetto(&bytes);
	assert_int_equal(result.left_out, 2); /* the link, and what has no times */
	assert_int_equal(result.unknown, 0);
	assert_int_equal(tracks.n, 7); /* process, thread, calls, overhead, device, its stream and what overlaps there */
	assert_int_equal(tracks.begins, 2);
	assert_int_equal(tracks.gpu_begins, 5);
	assert_int_equal(tracks.flows, 4);
	for (int i = 1; i < tracks.flows; i++)
		assert_int_equal(tracks.flow[i], tracks.flow[0]);
	free(bytes.data);
	bytes = exported("gpu", TERRA_EXPORT_CHROME, &result);
	assert_int_equal(count_of(&bytes, "\"ph\":\"X\""), 5);
	assert_int_equal(count_of(&bytes, "\"flow_out\":true"), 1);
	assert_int_equal(count_of(&bytes, "\"flow_in\":true"), 3);
	assert_int_equal(count_of(&bytes, "\"context 0, stream 7 (2)\""), 1);
	assert_int_equal(count_of(&bytes, "\"ts\":8.500,\"dur\":1.000,\"name\":\"memcpy ?\""), 1);
	free(bytes.data);
	bytes = exported("gpu", TERRA_EXPORT_CHAKRA, &result);
	assert_int_equal(result.left_out, 1);
	assert_int_equal(read_chakra(&bytes), 4); /* the op, two kernels, a copy */
	assert_int_equal(gpu_dependencies(&bytes), 2);
	free(bytes.data);
	bytes = exported("gpu", TERRA_EXPORT_JSON, &result);
	assert_int_equal(result.left_out, 0);
	assert_int_equal(count_of(&bytes, "\"type\":\"gpu\""), 7);
	assert_int_equal(count_of(&bytes, "\"start_ns\":null,\"kind\":\"kernel\""), 1);
	free(bytes.data);
}

/* What an open op launched has no node to depend on yet; an op behind GPU activity is found like others. */
static void test_gpu_of_open_op(void **state)
{
	struct terra_export_result result;
	struct sample_bytes bytes;
	struct script s;
	uint64_t open, inner, op;

	begin(&s, "open_op");
	open = enter(&s, "aten::square", UINT64_MAX);
	put_gpu(&s, TERRA_GPU_KERNEL, 1500, 100, open);
	inner = enter(&s, "aten::mul", open);
	leave(&s, "aten::mul", inner);
	leave(&s, "aten::square", open);
	op = enter(&s, "aten::neg", UINT64_MAX);
	leave(&s, "aten::neg", op);
	put_gpu(&s, TERRA_GPU_KERNEL, 9000, 100, inner);
	assert_int_equal(terra_trace_finish(s.writer), 0);
	bytes = exported("open_op", TERRA_EXPORT_CHAKRA, &result);
	assert_int_equal(read_chakra(&bytes), 4); /* each behind what it depends on */
	assert_int_equal(gpu_dependencies(&bytes), 2); /* neg's on the op before it, the last kernel's */
	free(bytes.data);
}

/* A stream backwards, further than any window: nothing crosses and nothing is left out. */
static void test_gpu_backwards(void **state)
{
	const uint64_t n = 5000;
	struct terra_export_result result;
	struct sample_bytes bytes;
	struct script s;

	begin(&s, "backwards");
	for (uint64_t i = n; i > 0; i--)
		put_gpu(&s, TERRA_GPU_KERNEL, i * 100, 100, UINT64_MAX);
	assert_int_equal(terra_trace_finish(s.writer), 0);
	bytes = exported("backwards", TERRA_EXPORT_PERFETTO, &result);
	assert_int_equal(read_perfetto(&bytes).gpu_begins, n);
	assert_true(read_perfetto(&bytes).n < 10);
	free(bytes.data);
}

/* A forward op whose Node a backward pass evaluates later, with two ops one in the other. */
static void autograd_trace(const char *name)
{
	struct terra_event event = {.type = TERRA_EVENT_OP_ENTER, .op = "aten::mul", .overload = "", .parent_seq = UINT64_MAX};
	struct script s;
	uint64_t forward, outer, inner;

	begin(&s, name);
	forward = put(&s, event);
	put(&s, (struct terra_event){.type = TERRA_EVENT_OP_EXIT, .op = "aten::mul", .overload = "", .enter_seq = forward,
				     .autograd = 1, .node = 17});
	event.autograd = 1;
	event.node = 17;
	event.forward_seq = forward;
	outer = put(&s, event);
	event.parent_seq = outer;
	inner = put(&s, event);
	leave(&s, "aten::mul", inner);
	leave(&s, "aten::mul", outer);
	event.parent_seq = UINT64_MAX;
	event.node = event.forward_seq = UINT64_MAX; /* a leaf's grad */
	leave(&s, "aten::mul", put(&s, event));
	assert_int_equal(terra_trace_finish(s.writer), 0);
}

static void test_autograd(void **state)
{
	struct terra_export_result result;
	struct sample_bytes bytes;
	struct tracks tracks;

	autograd_trace("autograd");
	bytes = exported("autograd", TERRA_EXPORT_PERFETTO, &result);
	tracks = read_perfetto(&bytes);
	assert_int_equal(tracks.flows, 2);
	assert_int_equal(tracks.flow[0], tracks.flow[1]);
	free(bytes.data);
	bytes = exported("autograd", TERRA_EXPORT_CHROME, &result);
	assert_int_equal(count_of(&bytes, "\"ph\":\"s\""), 1);
	assert_int_equal(count_of(&bytes, "\"ph\":\"f\""), 1);
	free(bytes.data);
	bytes = exported("autograd", TERRA_EXPORT_JSON, &result);
	assert_int_equal(count_of(&bytes, "\"results\":[],\"node\":17"), 1);
	assert_int_equal(count_of(&bytes, "\"backward\":{\"node\":17,\"forward\":0}"), 2);
	assert_int_equal(count_of(&bytes, "\"backward\":{\"node\":null,\"forward\":null}"), 1);
	free(bytes.data);
}

static void test_aliases(void **state)
{
	struct terra_tensor list[2] = {sample_tensor(1), sample_tensor(2)}, view = sample_tensor(2), fresh = sample_tensor(3);
	struct terra_value args[] = {
	    {.kind = TERRA_KIND_INT, .present = 1, .u.i = 3},
	    {.kind = TERRA_KIND_TENSOR_LIST, .present = 1, .count = 2, .recorded = 2, .u.tensors = list},
	};
	struct terra_value results[] = {
	    {.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &fresh},
	    {.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &view},
	};
	struct terra_export_result result;
	struct sample_bytes bytes;
	struct script s;
	uint64_t seq;

	view.impl += 64;
	begin(&s, "aliases");
	seq = put(&s, (struct terra_event){.type = TERRA_EVENT_OP_ENTER, .op = "aten::f", .overload = "",
					   .parent_seq = UINT64_MAX, .values = args, .n_values = 2});
	put(&s, (struct terra_event){.type = TERRA_EVENT_OP_EXIT, .op = "aten::f", .overload = "", .enter_seq = seq,
				     .values = results, .n_values = 2});
	assert_int_equal(terra_trace_finish(s.writer), 0);
	bytes = exported("aliases", TERRA_EXPORT_JSON, &result);
	assert_int_equal(count_of(&bytes, "\"aliases\":[{\"result\":1,\"result_element\":0,\"arg\":1,\"arg_element\":1,"
					  "\"shares\":\"storage\"}]}"), 1);
	free(bytes.data);
}

/* What happens beside ops is an instant, a line or a node without dependencies. */
static void test_beside(void **state)
{
	struct terra_tensor tensor = sample_tensor(1);
	struct terra_value value = {.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &tensor};
	struct terra_export_result result;
	struct sample_bytes bytes;
	struct script s;
	uint64_t seq;

	begin(&s, "beside");
	seq = enter(&s, "aten::mul", UINT64_MAX);
	put(&s, (struct terra_event){.type = TERRA_EVENT_HOST_READ, .text = "numpy", .parent_seq = seq, .values = &value,
				     .n_values = 1});
	put(&s, (struct terra_event){.type = TERRA_EVENT_CALL, .text = "torch.ops", .op = "aten::mul", .overload = "Tensor",
				     .parent_seq = seq});
	leave(&s, "aten::mul", seq);
	put(&s, (struct terra_event){.type = TERRA_EVENT_CALL, .text = "TorchScript", .parent_seq = UINT64_MAX});
	assert_int_equal(terra_trace_finish(s.writer), 0);
	bytes = exported("beside", TERRA_EXPORT_PERFETTO, &result);
	assert_int_equal(read_perfetto(&bytes).instants, 3);
	assert_int_equal(result.unknown, 0);
	free(bytes.data);
	bytes = exported("beside", TERRA_EXPORT_CHROME, &result);
	assert_int_equal(count_of(&bytes, "\"name\":\"read by numpy\""), 1);
	assert_int_equal(count_of(&bytes, "\"name\":\"call by torch.ops aten::mul.Tensor\""), 1);
	free(bytes.data);
	bytes = exported("beside", TERRA_EXPORT_CHAKRA, &result);
	assert_int_equal(read_chakra(&bytes), 4);
	free(bytes.data);
	bytes = exported("beside", TERRA_EXPORT_JSON, &result);
	assert_int_equal(count_of(&bytes, "{\"type\":\"host_read\",\"id\":1,\"parent\":0,\"thread\":4242,"), 1);
	assert_int_equal(count_of(&bytes, "\"how\":\"torch.ops\",\"op\":\"aten::mul\",\"overload\":\"Tensor\""), 1);
	assert_int_equal(count_of(&bytes, "\"how\":\"TorchScript\",\"op\":null,\"overload\":null"), 1);
	free(bytes.data);
}

static long peak_kb_of(const char *name)
{
	struct terra_export_result result;
	struct terra_trace_reader *reader;
	struct rusage usage;
	FILE *out = fopen("/dev/null", "w");

	assert_non_null(out);
	for (unsigned int format = 0; terra_export_name(format); format++) {
		assert_int_equal(terra_trace_open(sample_tmp(name), &reader, NULL, 0), 0);
		assert_int_equal(terra_export(reader, (enum terra_export_format)format, out, &result), 0);
		assert_true(result.ops > 2000);
		terra_trace_close(reader);
	}
	fclose(out);
	assert_int_equal(getrusage(RUSAGE_SELF, &usage), 0);
	return usage.ru_maxrss;
}

/* What an export keeps does not grow with the trace: ten times the events, and the process's peak stays where it was.
 */
static void test_memory(void **state)
{
	long small, large;

#ifdef WITH_ASAN
	skip(); /* it keeps what was freed */
#endif
	assert_int_equal(sample_write_trace(sample_tmp("small_one"), 5000, 0), 0);
	assert_int_equal(sample_write_trace(sample_tmp("large_one"), 50000, 0), 0);
	small = peak_kb_of("small_one");
	large = peak_kb_of("large_one");
	if (large > small + 1024)
		fail_msg("5,000 events: %ld kB, 50,000: %ld kB", small, large);
}

static void test_failed_write(void **state)
{
	struct terra_export_result result;
	struct terra_trace_reader *reader;
	FILE *full;

	small_trace("small");
	for (unsigned int format = 0; terra_export_name(format); format++) {
		full = fopen("/dev/full", "w");
		assert_non_null(full);
		assert_int_equal(terra_trace_open(sample_tmp("small"), &reader, NULL, 0), 0);
		assert_true(terra_export(reader, (enum terra_export_format)format, full, &result) < 0);
		terra_trace_close(reader);
		fclose(full);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_golden),
	    cmocka_unit_test(test_protobuf),
	    cmocka_unit_test(test_perfetto),
	    cmocka_unit_test(test_irregular),
	    cmocka_unit_test(test_enclosing_missing),
	    cmocka_unit_test(test_cut),
	    cmocka_unit_test(test_loss_forgets),
	    cmocka_unit_test(test_gpu),
	    cmocka_unit_test(test_gpu_of_open_op),
	    cmocka_unit_test(test_gpu_backwards),
	    cmocka_unit_test(test_autograd),
	    cmocka_unit_test(test_aliases),
	    cmocka_unit_test(test_beside),
	    cmocka_unit_test(test_memory),
	    cmocka_unit_test(test_failed_write),
	};

	return cmocka_run_group_tests(tests, sample_tmp_create, sample_tmp_remove);
}
