/* Damaged, spliced and made-up traces: the reader and the reports neither crash nor hang, and take bounded memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <sys/resource.h>

#include "tests/fuzz/trace_input.h"
#include "trace_sample.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define WITH_ASAN 1
#endif

#define MEMORY_LIMIT_MB 512
#define ROUNDS 200 /* of each sort of mutation */

/* A size in a file that is believed with an allocation ends the test: under ASan by its own limit, else by that of the
 * address space. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "max_allocation_size_mb=256:hard_rss_limit_mb=1500";
}

static void limit_memory(void)
{
#ifndef WITH_ASAN
	struct rlimit limit = {.rlim_cur = (rlim_t)MEMORY_LIMIT_MB << 20, .rlim_max = RLIM_INFINITY};

	assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
#endif
}

static uint64_t random_state = 0x7e44a;
static FILE *nowhere;
static uint64_t n_inputs;
static struct sample_bytes sources[3];

static uint64_t random_below(uint64_t n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return n ? random_state % n : 0;
}

static int setup(void **state)
{
	static const uint64_t events[3][2] = {{60, 20}, {500, 37}, {3, 0}};

	if (sample_tmp_create(state) != 0)
		return -1;
	for (int i = 0; i < 3; i++) {
		if (sample_write_trace(sample_tmp("source"), events[i][0], events[i][1]) != 0)
			return -1;
		sources[i] = sample_read_file(sample_tmp("source"));
	}
	nowhere = fopen("/dev/null", "w");
	limit_memory();
	return nowhere ? 0 : -1;
}

static int teardown(void **state)
{
	printf("%u mutated traces\n", (unsigned int)n_inputs);
	for (int i = 0; i < 3; i++)
		free(sources[i].data);
	fclose(nowhere);
	return sample_tmp_remove(state);
}

/* Also a copy of exactly that size, so that a read behind its end is seen. */
static struct sample_bytes copy_of(struct sample_bytes source, size_t size)
{
	struct sample_bytes copy = {.data = malloc(size ? size : 1), .size = size};

	assert_non_null(copy.data);
	memcpy(copy.data, source.data, size < source.size ? size : source.size);
	return copy;
}

static struct sample_bytes any_source(void)
{
	return sources[random_below(3)];
}

/* An input that hangs ends the test. */
static void run_with(struct sample_bytes input, FILE *report)
{
	alarm(60);
	input_run(input.data, input.size, report);
	alarm(0);
	free(input.data);
	n_inputs++;
}

/* Every fourth goes through the reports too, which take longer. */
static void run(struct sample_bytes input)
{
	run_with(input, n_inputs % 4 ? NULL : nowhere);
}

static void flip_bits(struct sample_bytes input, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		input.data[random_below(input.size)] ^= (uint8_t)(1 << random_below(8));
}

/* Numbers that break sizes and counts. */
static void set_number(uint8_t *p, size_t left)
{
	static const uint64_t numbers[] = {0,	       1,	   0x7f,     0x80,     0xff,	       0x7fffffff,
					   0x80000000, 0xffffffff, 1u << 20, 8u << 20, (8u << 20) + 1, INT64_MAX,
					   UINT64_MAX, 1ull << 62};
	uint64_t v = numbers[random_below(sizeof(numbers) / sizeof(numbers[0]))];
	size_t size = random_below(2) ? 4 : 8;

	for (size_t i = 0; i < size && i < left; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static void test_sources_are_whole(void **state)
{
	assert_int_equal(input_run(sources[0].data, sources[0].size, nowhere), 60);
	assert_int_equal(input_run(sources[1].data, sources[1].size, nowhere), 500);
	assert_int_equal(input_run(sources[2].data, sources[2].size, nowhere), 3);
}

static void test_truncated(void **state)
{
	for (int i = 0; i < ROUNDS; i++) {
		struct sample_bytes source = any_source();

		run(copy_of(source, random_below(source.size)));
	}
}

static void test_flipped(void **state)
{
	for (int i = 0; i < ROUNDS; i++) {
		struct sample_bytes source = any_source(), input = copy_of(source, source.size);

		flip_bits(input, 1 + random_below(20));
		run(input);
	}
}

/* Pieces of two traces one after the other, or a piece twice, or left out. */
static void test_spliced(void **state)
{
	for (int i = 0; i < ROUNDS; i++) {
		struct sample_bytes a = any_source(), b = any_source(), input;
		size_t head = random_below(a.size + 1), from = random_below(b.size + 1);

		input.size = head + (b.size - from);
		input.data = malloc(input.size + 1);
		assert_non_null(input.data);
		memcpy(input.data, a.data, head);
		memcpy(input.data + head, b.data + from, b.size - from);
		run(input);
	}
}

/* Fields of the headers, with checksums that are right: what a malicious file has. */
static void test_headers_with_right_checksums(void **state)
{
	for (int i = 0; i < ROUNDS; i++) {
		struct sample_bytes source = any_source(), input = copy_of(source, source.size);
		size_t block = trace_get32(input.data + TRACE_HEADER_SIZE);
		size_t at = random_below(3) ? block + 8 + random_below(52) : 8 + random_below(block - 8);

		set_number(input.data + at, input.size - at);
		input_repair(input.data, input.size);
		run(input);
	}
}

static void test_payload_with_right_checksums(void **state)
{
	for (int i = 0; i < ROUNDS; i++) {
		struct sample_bytes source = any_source(), input = copy_of(source, source.size);
		size_t block = trace_get32(input.data + TRACE_HEADER_SIZE) + TRACE_BLOCK_HEADER_SIZE;

		for (uint64_t n = 1 + random_below(8); n > 0; n--)
			input.data[block + random_below(input.size - block)] = (uint8_t)random_below(256);
		input_repair(input.data, input.size);
		run(input);
	}
}

/* The records of the first block of a source. */
static struct sample_bytes records_of(struct sample_bytes source, uint32_t *n_events)
{
	struct sample_bytes records;

	records.data = input_records(source.data, &records.size, n_events);
	return records;
}

/* Frees the records. */
static struct sample_bytes file_of(struct sample_bytes records, size_t size, uint32_t n_events)
{
	struct sample_bytes file;

	file.data = input_build(records.data, size, n_events, &file.size);
	free(records.data);
	return file;
}

/* Records that were changed before they were compressed: everything behind the checksums is reached. */
static void test_records(void **state)
{
	for (int i = 0; i < 4 * ROUNDS; i++) {
		uint32_t n_events;
		struct sample_bytes records = records_of(any_source(), &n_events);
		size_t at = random_below(records.size), size = records.size;

		if (i % 4 == 0)
			flip_bits(records, 1 + random_below(3));
		else if (i % 4 == 1)
			records.data[at] = 0xff;
		else if (i % 4 == 2)
			set_number(records.data + at, records.size - at);
		else
			size = random_below(records.size) + 1;
		run(file_of(records, size, n_events));
	}
}

/* Random records of valid types and lengths. */
static void test_random_records(void **state)
{
	static const uint8_t types[] = {0x01, 0x02, 0x03, 0x11, 0x12, 0x13, 0x14, 0x15, 0x7f, 0x04};

	for (int i = 0; i < ROUNDS; i++) {
		struct sample_bytes records = {.data = malloc(4096)};
		uint32_t n_events = 0;

		assert_non_null(records.data);
		while (records.size < 3800) {
			uint8_t type = types[random_below(sizeof(types))], length = (uint8_t)random_below(120);

			records.data[records.size++] = type;
			records.data[records.size++] = length;
			for (uint8_t n = 0; n < length; n++)
				records.data[records.size++] =
				    (uint8_t)(random_below(3) ? random_below(8) : random_below(256));
			n_events += type >= 0x10;
		}
		run(file_of(records, records.size, n_events));
	}
}

static void put_varint(struct sample_bytes *bytes, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		bytes->data[bytes->size++] = (uint8_t)(v | 0x80);
	bytes->data[bytes->size++] = (uint8_t)v;
}

/* A block of events each of which has lists of undefined tensors: a byte in the file, much more in memory. */
static void run_lists(uint64_t events, uint64_t lists, uint64_t elements)
{
	struct sample_bytes records = {.data = malloc(9u << 20)};
	static const uint8_t names[] = {1, 5, 'a', 't', 'e', 'n', 0, 2, 3, 0, 1, 1};

	assert_non_null(records.data);
	memcpy(records.data, names, sizeof(names));
	records.size = sizeof(names);
	for (uint64_t e = 0; e < events; e++) {
		size_t body = 7 + lists * (2 + 8 + elements);

		records.data[records.size++] = 0x11;
		put_varint(&records, body);
		memcpy(records.data + records.size, "\1\0\0\0\1\0", 6); /* thread, time, flags, level, op, distance */
		records.data[records.size + 6] = (uint8_t)lists;
		records.size += 7;
		for (uint64_t l = 0; l < lists; l++) {
			records.data[records.size++] = TERRA_KIND_TENSOR_LIST;
			records.data[records.size++] = 1;
			for (int n = 0; n < 2; n++) { /* count and recorded, as varints of four bytes */
				for (int b = 0; b < 4; b++)
					records.data[records.size++] =
						(uint8_t)((elements >> (7 * b) & 0x7f) | (b < 3 ? 0x80 : 0));
			}
			memset(records.data + records.size, 0, elements);
			records.size += elements;
		}
	}
	assert_true(records.size < 9u << 20);
	run_with(file_of(records, records.size, (uint32_t)events), nowhere);
}

/* Files that ask for as much as the format allows, and for more. */
static void test_greedy(void **state)
{
	run_lists(1, 1, 1000);
	run_lists(20, 4, 65536);        /* the most that is allowed */
	run_lists(4, 16, 65536);        /* beyond it */
	run_lists(2, 1, 4000000);
	run_lists(1, 100, 40000);
}

/* Many ops that enclose each other and never end, and exits of none of them. */
static void test_deep(void **state)
{
	struct sample_bytes records = {.data = malloc(8u << 20)};
	static const uint8_t names[] = {1, 5, 'a', 't', 'e', 'n', 0, 2, 3, 0, 1, 1};
	static const uint8_t enter[] = {0x11, 7, 1, 0, 0, 0, 1, 1, 0}, leave[] = {0x12, 7, 1, 0, 0, 0, 1, 0, 0};
	uint32_t n_events = 0;

	assert_non_null(records.data);
	memcpy(records.data, names, sizeof(names));
	records.size = sizeof(names);
	for (int i = 0; i < 60000; i++, n_events++) {
		memcpy(records.data + records.size, i % 2 && i > 30000 ? leave : enter, sizeof(enter));
		if (i == 0)
			records.data[records.size + 7] = 0;
		records.size += sizeof(enter);
	}
	run_with(file_of(records, records.size, n_events), nowhere);
}

/* Records that lie about one thing each, behind checksums that are right. NAMES defines string 1 "aten", string 2 ""
 * and op 1 of them; ENTER begins an OP_ENTER of that op on thread 1. */
#define NAMES "\1\5aten\0\1\1\0\2\3\0\1\2"
#define ENTER "\1\0\0\0\1\0"
#define LIE(bytes) {bytes, sizeof(bytes) - 1}

static const struct {
	const char *bytes;
	size_t size;
} lies[] = {
	LIE(NAMES "\x11\x08" ENTER "\1\x25"),                         /* ends inside a value */
	LIE(NAMES "\x11\x09" ENTER "\1\x25\0"),                       /* kind 37 is none */
	LIE(NAMES "\x11\x0b" ENTER "\xff\xff\xff\xff\x0f"),            /* 2^32 - 1 values */
	LIE(NAMES "\x11\x08" ENTER "\x81\x02"),                        /* 257 values */
	LIE(NAMES "\x11\x0b" ENTER "\1\x0b\1\1\2"),                   /* more recorded than there are */
	LIE(NAMES "\x11\x0f" ENTER "\1\x03\1\x80\x80\x10\x80\x80\x10"), /* 262,144 tensors in no bytes */
	LIE(NAMES "\x11\x0d" ENTER "\1\x18\1\1\1xy"),                 /* string without its NUL */
	LIE(NAMES "\x11\x0e" ENTER "\1\x18\1\1\2xy\0"),               /* string longer than it is */
	LIE(NAMES "\x11\x0a" ENTER "\1\x06\1q"),                       /* Scalar of no known sort */
	LIE(NAMES "\x11\x16" ENTER "\1\x01\1\2\0\0\0\0\0\0\0\0\0\0\0\0"), /* neither defined nor undefined */
	LIE(NAMES "\x11\x08" ENTER "\0\0"),                            /* bytes behind the last value */
	LIE(NAMES "\x11\x07\1\0\0\0\2\0\0"),                          /* op 2 is not defined */
	LIE(NAMES "\x11\x07\1\0\x08\0\1\0\0"),                        /* a flag of no meaning */
	LIE(NAMES "\x11\x08\1\0\4\0\1\1\0\0"),                       /* stack 1 is not defined */
	LIE(NAMES "\x11\x07\1\0\0\0\1\1\0"),                          /* enclosed by what is before the file */
	LIE(NAMES "\x11\x10\1\xff\xff\xff\xff\xff\xff\xff\xff\xff\2\0\0\1\0\0"), /* a number of 65 bits */
	LIE("\x02\x03\0\1\1\x13\3\1\0\1"),                           /* op of strings that are not defined */
	LIE("\x03\x04\1\1\0\0\x13\3\1\0\1"),                         /* so a stack */
	LIE("\x03\x02\xff\x07\x13\3\1\0\1"),                          /* a stack of 1,023 frames in no bytes */
	LIE("\x01\x04" "ab\0c\x13\3\1\0\1"),                          /* string with a NUL inside */
	LIE("\x01\x03" "abc\x13\3\1\0\1"),                             /* string without */
	LIE("\x14\x05\1\0abc"),                                       /* note without */
	LIE("\x13\x02\1\0"),                                          /* LOST without a count */
	LIE("\x13\x7f\1\0\1"),                                        /* record longer than the block */
	LIE("\x04\x00"),                                              /* a definition to pass over, and no event */
};

static void test_lies(void **state)
{
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		size_t size;
		uint8_t *file = input_build((const uint8_t *)lies[i].bytes, lies[i].size, 1, &size);
		struct terra_trace_reader *reader;
		struct terra_event event;

		sample_write_file(sample_tmp("lie"), file, size);
		assert_int_equal(terra_trace_open(sample_tmp("lie"), &reader, NULL, 0), 0);
		if (terra_trace_next(reader, &event) != -EBADMSG)
			fail_msg("lie %zu is believed", i);
		assert_int_equal(terra_trace_next(reader, &event), 0);
		terra_trace_close(reader);
		run_with((struct sample_bytes){file, size}, nowhere);
	}
}

/* The same records without a lie are read, and those of a later version passed over. */
static void test_no_lie(void **state)
{
	static const char bytes[] = "\x0f\x02zz" NAMES "\x03\x04\1\1\2\2\x03\x01\0\x7f\x04\1\0zz"
				    "\x11\x0c" ENTER "\1\x0b\1\2\1\6\x13\3\1\0\5\x14\4\1\0x";
	size_t size;
	uint8_t *file = input_build((const uint8_t *)bytes, sizeof(bytes), 4, &size);
	uint64_t n;

	n = input_run(file, size, nowhere);
	assert_int_equal(n, 3);
	free(file);
	file = input_build((const uint8_t *)"", 0, 0, &size); /* a block may be empty */
	assert_int_equal(input_run(file, size, nowhere), 0);
	free(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sources_are_whole),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_flipped),
		cmocka_unit_test(test_spliced),
		cmocka_unit_test(test_headers_with_right_checksums),
		cmocka_unit_test(test_payload_with_right_checksums),
		cmocka_unit_test(test_records),
		cmocka_unit_test(test_random_records),
		cmocka_unit_test(test_lies),
		cmocka_unit_test(test_no_lie),
		cmocka_unit_test(test_greedy),
		cmocka_unit_test(test_deep),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
