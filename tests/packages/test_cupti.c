// CUPTI: the real cuptiActivityGetNextRecord walks buffers that this test builds by hand, as the collector will walk those
// of a GPU. Nothing runs on a GPU here, which the names of the cases say.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <cupti.h>

#define NOT_EXECUTED(function) { #function " (recorded, not executed)", function, NULL, NULL, NULL }

// The kernel record of this toolkit's newest layout: the header keeps older ones under other names.
typedef CUpti_ActivityKernel10 kernel_record;

struct buffer {
	_Alignas(8) uint8_t bytes[1024];
	size_t size;
};

static void append(struct buffer *buffer, const void *record, size_t size)
{
	assert_true(buffer->size + size <= sizeof(buffer->bytes));
	memcpy(buffer->bytes + buffer->size, record, size);
	buffer->size += size;
}

static void append_launch(struct buffer *buffer, uint32_t correlation)
{
	CUpti_ActivityAPI call = { 0 };

	call.kind = CUPTI_ACTIVITY_KIND_RUNTIME;
	call.cbid = 211;
	call.start = 1000;
	call.end = 1700;
	call.correlationId = correlation;
	append(buffer, &call, sizeof(call));
}

static void append_external(struct buffer *buffer, uint32_t correlation, uint64_t op)
{
	CUpti_ActivityExternalCorrelation link = { 0 };

	link.kind = CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION;
	link.externalKind = CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0;
	link.externalId = op;
	link.correlationId = correlation;
	append(buffer, &link, sizeof(link));
}

static void append_kernel(struct buffer *buffer, uint32_t correlation, const char *name)
{
	kernel_record kernel;

	memset(&kernel, 0, sizeof(kernel));
	kernel.kind = CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL;
	kernel.start = 2000;
	kernel.end = 5500;
	kernel.gridX = 128;
	kernel.blockX = 256;
	kernel.correlationId = correlation;
	kernel.name = name;
	append(buffer, &kernel, sizeof(kernel));
}

static void append_copy(struct buffer *buffer, uint32_t correlation, uint64_t bytes)
{
	CUpti_ActivityMemcpy6 copy;

	memset(&copy, 0, sizeof(copy));
	copy.kind = CUPTI_ACTIVITY_KIND_MEMCPY;
	copy.copyKind = CUPTI_ACTIVITY_MEMCPY_KIND_DTOH;
	copy.bytes = bytes;
	copy.correlationId = correlation;
	append(buffer, &copy, sizeof(copy));
}

static void append_set(struct buffer *buffer, uint32_t value)
{
	CUpti_ActivityMemset4 set;

	memset(&set, 0, sizeof(set));
	set.kind = CUPTI_ACTIVITY_KIND_MEMSET;
	set.value = value;
	append(buffer, &set, sizeof(set));
}

static void cupti_walks_every_kind_of_record(void **state)
{
	struct buffer buffer = { .size = 0 };
	CUpti_Activity *record = NULL;

	append_launch(&buffer, 7);
	append_external(&buffer, 7, 1234567890123);
	append_kernel(&buffer, 7, "scale");
	append_copy(&buffer, 8, 4096);
	append_set(&buffer, 0xab);

	assert_int_equal(cuptiActivityGetNextRecord(buffer.bytes, buffer.size, &record), CUPTI_SUCCESS);
	assert_int_equal(record->kind, CUPTI_ACTIVITY_KIND_RUNTIME);
	assert_int_equal(((CUpti_ActivityAPI *)record)->end - ((CUpti_ActivityAPI *)record)->start, 700);
	assert_int_equal(cuptiActivityGetNextRecord(buffer.bytes, buffer.size, &record), CUPTI_SUCCESS);
	assert_int_equal(record->kind, CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION);
	assert_int_equal(((CUpti_ActivityExternalCorrelation *)record)->externalId, 1234567890123);
	assert_int_equal(cuptiActivityGetNextRecord(buffer.bytes, buffer.size, &record), CUPTI_SUCCESS);
	assert_int_equal(record->kind, CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
	assert_string_equal(((kernel_record *)record)->name, "scale");
	assert_int_equal(((kernel_record *)record)->correlationId, 7);
	assert_int_equal(cuptiActivityGetNextRecord(buffer.bytes, buffer.size, &record), CUPTI_SUCCESS);
	assert_int_equal(record->kind, CUPTI_ACTIVITY_KIND_MEMCPY);
	assert_int_equal(((CUpti_ActivityMemcpy6 *)record)->bytes, 4096);
	assert_int_equal(cuptiActivityGetNextRecord(buffer.bytes, buffer.size, &record), CUPTI_SUCCESS);
	assert_int_equal(record->kind, CUPTI_ACTIVITY_KIND_MEMSET);
	assert_int_equal(((CUpti_ActivityMemset4 *)record)->value, 0xab);
	assert_int_equal(cuptiActivityGetNextRecord(buffer.bytes, buffer.size, &record),
			 CUPTI_ERROR_MAX_LIMIT_REACHED);
}

static void cupti_says_what_kind_it_does_not_know(void **state)
{
	struct buffer buffer = { .size = 0 };
	CUpti_ActivityAPI strange = { .kind = (CUpti_ActivityKind)0x7ffffff0 };
	CUpti_Activity *record = NULL;

	append(&buffer, &strange, sizeof(strange));
	assert_int_equal(cuptiActivityGetNextRecord(buffer.bytes, buffer.size, &record), CUPTI_ERROR_INVALID_KIND);
}

// A reader can't tell a cut record from the end of the buffer: sizes must be counted against what CUPTI delivered.
static void cupti_drops_a_truncated_tail_silently(void **state)
{
	struct buffer buffer = { .size = 0 };
	CUpti_Activity *record = NULL;

	append_launch(&buffer, 1);
	append_kernel(&buffer, 1, "scale");
	buffer.size -= 8;
	assert_int_equal(cuptiActivityGetNextRecord(buffer.bytes, buffer.size, &record), CUPTI_SUCCESS);
	assert_int_equal(cuptiActivityGetNextRecord(buffer.bytes, buffer.size, &record),
			 CUPTI_ERROR_MAX_LIMIT_REACHED);
}

static void cupti_has_a_clock_without_a_driver(void **state)
{
	uint64_t first = 0, second = 0;

	assert_int_equal(cuptiGetTimestamp(&first), CUPTI_SUCCESS);
	assert_int_equal(cuptiGetTimestamp(&second), CUPTI_SUCCESS);
	assert_true(first > 0 && second >= first);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		NOT_EXECUTED(cupti_walks_every_kind_of_record),
		NOT_EXECUTED(cupti_says_what_kind_it_does_not_know),
		NOT_EXECUTED(cupti_drops_a_truncated_tail_silently),
		NOT_EXECUTED(cupti_has_a_clock_without_a_driver),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
