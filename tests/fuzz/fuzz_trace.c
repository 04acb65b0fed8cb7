/* fuzz_trace.c - the trace reader, the reports and the making of graphs against arbitrary bytes.
 *
 * The first byte chooses what the rest is, since a fuzzer cannot guess checksums: 'f' a file as it is, 'r' a file whose
 * checksums are set right first, 'b' the records of a block. Else the whole input is a file.
 */
#include "trace_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static FILE *nowhere(void)
{
	static FILE *out;

	if (!out)
		out = fopen("/dev/null", "w");
	input_check(out, "/dev/null opens");
	return out;
}

static void run_repaired(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size + 1);

	input_check(copy, "memory");
	memcpy(copy, data, size);
	input_repair(copy, size);
	input_run(copy, size, nowhere());
	free(copy);
}

/* As many events as a count of the record types says: the records are not to fail for that alone. */
static uint32_t count_events(const uint8_t *p, size_t size)
{
	const uint8_t *end = p + size;
	uint32_t n = 0;

	while (p < end) {
		uint8_t type = *p++;
		uint64_t length = 0;
		int shift = 0;

		do
			length |= p < end ? (uint64_t)(*p & 0x7f) << shift : 0;
		while (p < end && *p++ & 0x80 && (shift += 7) < 63);
		n += type >= TRACE_RECORD_EVENT && type <= TRACE_RECORD_EVENT_LAST;
		if (length > (uint64_t)(end - p))
			break;
		p += length;
	}
	return n;
}

static void run_block(const uint8_t *data, size_t size)
{
	size_t file_size;
	uint8_t *file = input_build(data, size, count_events(data, size), &file_size);

	input_run(file, file_size, nowhere());
	free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size > 0 && data[0] == 'r')
		run_repaired(data + 1, size - 1);
	else if (size > 0 && data[0] == 'b')
		run_block(data + 1, size - 1);
	else if (size > 0 && data[0] == 'f')
		input_run(data + 1, size - 1, nowhere());
	else
		input_run(data, size, nowhere());
	return 0;
}
