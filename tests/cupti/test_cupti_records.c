/* CUPTI's records to events: the real CUPTI, of this toolkit and an older one, walks buffers made by hand. Nothing runs on a
 * GPU: recorded, not executed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "collector/cupti/cupti_walk.h"

#define SEEN 64

static struct {
	struct cupti_api api;
	struct cupti_layouts layouts;
	struct cupti_walk walk;
	struct terra_event events[SEEN];
	struct terra_gpu gpus[SEEN];
	char names[SEEN][64];
	unsigned int n;
} t;

static struct {
	uint8_t *bytes; /* exactly as large as what is in it, so that a sanitizer sees what is read behind it */
	size_t size;
} buffer;

static int take(void *ctx, struct terra_event *event)
{
	if (t.n == SEEN)
		return -1;
	t.events[t.n] = *event;
	t.gpus[t.n] = *event->gpu;
	strncpy(t.names[t.n], event->gpu->name ? event->gpu->name : "-", sizeof(t.names[0]) - 1);
	t.n++;
	return 0;
}

static void open_cupti(const char *path)
{
	char err[512];

	memset(&t, 0, sizeof(t));
	assert_int_equal(cupti_api_open(&t.api, path, err, sizeof(err)), 0);
	cupti_layouts_measure(&t.api, &t.layouts);
	t.walk = (struct cupti_walk){ .api = &t.api, .layouts = &t.layouts, .sink = take };
}

static int with_real(void **state)
{
	free(buffer.bytes);
	buffer.bytes = NULL;
	buffer.size = 0;
	open_cupti(REAL_CUPTI);
	return 0;
}

static void *append(size_t size, CUpti_ActivityKind kind)
{
	uint8_t *larger = realloc(buffer.bytes, buffer.size + size), *at;

	assert_non_null(larger);
	at = larger + buffer.size;
	memset(at, 0, size);
	memcpy(at, &kind, sizeof(kind));
	buffer.bytes = larger;
	buffer.size += size;
	return at;
}

static void walk(void)
{
	assert_int_equal(cupti_walk_buffer(&t.walk, buffer.bytes, buffer.size), 0);
}

static void append_kernel(uint32_t correlation, const char *name)
{
	NEWEST_KERNEL *kernel = append(sizeof(*kernel), CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);

	kernel->start = 2000;
	kernel->end = 5500;
	kernel->deviceId = 1;
	kernel->contextId = 2;
	kernel->streamId = 7;
	kernel->gridX = 128;
	kernel->gridY = 2;
	kernel->gridZ = 3;
	kernel->blockX = 256;
	kernel->blockY = 4;
	kernel->blockZ = 5;
	kernel->staticSharedMemory = 16;
	kernel->dynamicSharedMemory = 32;
	kernel->registersPerThread = 48;
	kernel->correlationId = correlation;
	kernel->graphId = 9;
	kernel->graphNodeId = 0x900000003;
	kernel->name = name;
}

static void append_call(CUpti_ActivityKind kind, uint32_t cbid)
{
	CUpti_ActivityAPI *call = append(sizeof(*call), kind);

	call->cbid = cbid;
	call->start = 1000;
	call->end = 1700;
	call->threadId = 4242;
	call->correlationId = 7;
	call->returnValue = 2;
}

static void append_link(CUpti_ExternalCorrelationKind whose, uint64_t id)
{
	CUpti_ActivityExternalCorrelation *link = append(sizeof(*link), CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION);

	link->externalKind = whose;
	link->externalId = id;
	link->correlationId = 7;
}

static void the_layouts_of_this_toolkit_are_known(void **state)
{
	static const CUpti_ActivityKind kinds[] = { CUPTI_ACTIVITY_KIND_KERNEL, CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
						    CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMCPY2,
						    CUPTI_ACTIVITY_KIND_MEMSET, CUPTI_ACTIVITY_KIND_RUNTIME,
						    CUPTI_ACTIVITY_KIND_DRIVER, CUPTI_ACTIVITY_KIND_OVERHEAD,
						    CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION, CUPTI_ACTIVITY_KIND_GRAPH_TRACE };

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		assert_true(t.layouts.known[kinds[i]]);
	assert_int_equal(t.layouts.size[CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL], sizeof(NEWEST_KERNEL));
	assert_false(cupti_layout_is_known(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, sizeof(NEWEST_KERNEL) + 8));
	assert_false(cupti_layout_is_known(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, sizeof(CUpti_ActivityKernel5)));
	assert_false(cupti_layout_is_known(CUPTI_ACTIVITY_KIND_MARKER, 40));
	assert_int_equal(t.api.version, CUPTI_API_VERSION);
}

static void kernels_are_read(void **state)
{
	const struct terra_gpu *gpu = &t.gpus[0];

	t.walk.clock_offset = 500;
	append_kernel(7, "scale");
	walk();
	assert_int_equal(t.n, 1);
	assert_int_equal(gpu->kind, TERRA_GPU_KERNEL);
	assert_int_equal(t.events[0].time_ns, 1500);
	assert_int_equal(gpu->duration_ns, 3500);
	assert_string_equal(t.names[0], "scale");
	assert_int_equal(gpu->device, 1);
	assert_int_equal(gpu->context, 2);
	assert_int_equal(gpu->stream, 7);
	assert_int_equal(gpu->correlation, 7);
	assert_int_equal(gpu->graph, 9);
	assert_int_equal(gpu->graph_node, 0x900000003);
	assert_true(gpu->grid[0] == 128 && gpu->grid[1] == 2 && gpu->grid[2] == 3);
	assert_true(gpu->block[0] == 256 && gpu->block[1] == 4 && gpu->block[2] == 5);
	assert_true(gpu->static_shared == 16 && gpu->dynamic_shared == 32 && gpu->registers == 48);
	assert_int_equal(gpu->op_seq, UINT64_MAX);
}

static void copies_and_sets_are_read(void **state)
{
	NEWEST_MEMCPY *copy = append(sizeof(*copy), CUPTI_ACTIVITY_KIND_MEMCPY);
	NEWEST_MEMCPYPTOP *peer;
	NEWEST_MEMSET *set;

	copy->copyKind = CUPTI_ACTIVITY_MEMCPY_KIND_DTOH;
	copy->srcKind = CUPTI_ACTIVITY_MEMORY_KIND_DEVICE;
	copy->dstKind = CUPTI_ACTIVITY_MEMORY_KIND_PINNED;
	copy->bytes = 4096;
	copy->start = 10;
	copy->end = 30;
	copy->correlationId = 8;
	peer = append(sizeof(*peer), CUPTI_ACTIVITY_KIND_MEMCPY2);
	peer->copyKind = CUPTI_ACTIVITY_MEMCPY_KIND_PTOP;
	peer->bytes = 64;
	peer->srcDeviceId = 0;
	peer->dstDeviceId = 3;
	peer->correlationId = 9;
	set = append(sizeof(*set), CUPTI_ACTIVITY_KIND_MEMSET);
	set->value = 0xab;
	set->bytes = 100;
	set->memoryKind = CUPTI_ACTIVITY_MEMORY_KIND_DEVICE;
	set->start = 40;
	set->end = 41;
	walk();
	assert_int_equal(t.n, 3);
	assert_true(t.gpus[0].kind == TERRA_GPU_MEMCPY && t.gpus[0].copy_kind == 2 && t.gpus[0].bytes == 4096);
	assert_true(t.gpus[0].source_kind == 3 && t.gpus[0].target_kind == 2 && t.gpus[0].duration_ns == 20);
	assert_int_equal(t.gpus[0].source_device, TERRA_GPU_NO_DEVICE);
	assert_true(t.gpus[1].kind == TERRA_GPU_MEMCPY && t.gpus[1].copy_kind == 10 && t.gpus[1].bytes == 64);
	assert_true(t.gpus[1].source_device == 0 && t.gpus[1].target_device == 3 && t.gpus[1].correlation == 9);
	assert_true(t.gpus[1].untimed && t.events[1].time_ns == 10); /* no times: those of the one before */
	assert_true(t.gpus[2].kind == TERRA_GPU_MEMSET && t.gpus[2].value == 0xab && t.gpus[2].bytes == 100);
	assert_int_equal(t.gpus[2].target_kind, 3);
}

static void calls_are_read_with_their_names(void **state)
{
	append_call(CUPTI_ACTIVITY_KIND_RUNTIME, CUPTI_RUNTIME_TRACE_CBID_cudaMemcpyAsync_v3020);
	append_call(CUPTI_ACTIVITY_KIND_DRIVER, CUPTI_DRIVER_TRACE_CBID_cuLaunchKernel);
	append_call(CUPTI_ACTIVITY_KIND_DRIVER, 1000000);
	walk();
	assert_int_equal(t.n, 3);
	assert_true(t.gpus[0].kind == TERRA_GPU_RUNTIME && t.gpus[1].kind == TERRA_GPU_DRIVER);
	assert_true(t.events[0].thread == 4242 && t.events[0].time_ns == 1000 && t.gpus[0].duration_ns == 700);
	assert_true(t.gpus[0].correlation == 7 && t.gpus[0].result == 2);
	assert_memory_equal(t.names[0], "cudaMemcpyAsync", 15);
	assert_string_equal(t.names[1], "cuLaunchKernel");
	assert_int_equal(t.gpus[2].function, 1000000);
}

static void only_our_external_ids_are_read(void **state)
{
	append_link(CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0, 5);
	append_link(CUPTI_OUR_EXTERNAL_KIND, 1234567890123);
	walk();
	assert_int_equal(t.n, 1);
	assert_true(t.gpus[0].kind == TERRA_GPU_LINK && t.gpus[0].external == 1234567890123 && t.gpus[0].correlation == 7);
}

static void overhead_and_graphs_are_read(void **state)
{
	NEWEST_OVERHEAD *overhead = append(sizeof(*overhead), CUPTI_ACTIVITY_KIND_OVERHEAD);
	NEWEST_GRAPHTRACE *graph;

	overhead->overheadKind = CUPTI_ACTIVITY_OVERHEAD_CUPTI_BUFFER_FLUSH;
	overhead->start = 100;
	overhead->end = 150;
	overhead->correlationId = 4;
	graph = append(sizeof(*graph), CUPTI_ACTIVITY_KIND_GRAPH_TRACE);
	graph->correlationId = 5;
	graph->start = 200;
	graph->end = 300;
	graph->graphId = 6;
	graph->streamId = 7;
	walk();
	assert_int_equal(t.n, 2);
	assert_true(t.gpus[0].kind == TERRA_GPU_OVERHEAD && t.gpus[0].duration_ns == 50 && t.gpus[0].correlation == 4);
	assert_string_equal(t.names[0], "CUPTI's buffer flush");
	assert_true(t.gpus[1].kind == TERRA_GPU_GRAPH && t.gpus[1].graph == 6 && t.gpus[1].duration_ns == 100);
}

static void other_kinds_are_passed_over(void **state)
{
	append(t.layouts.size[CUPTI_ACTIVITY_KIND_SYNCHRONIZATION], CUPTI_ACTIVITY_KIND_SYNCHRONIZATION);
	append_kernel(1, "after");
	walk();
	assert_int_equal(t.n, 1);
	assert_string_equal(t.names[0], "after");
	assert_int_equal(t.walk.others, 1);
}

/* What follows a record of no kind at all can't be found. */
static void unknown_kinds_end_the_walk_and_are_counted(void **state)
{
	append_kernel(1, "before");
	append(40, (CUpti_ActivityKind)0x7ffffff0);
	append_kernel(2, "behind");
	walk();
	assert_int_equal(t.n, 1);
	assert_int_equal(t.walk.unwalked_bytes, 40 + sizeof(NEWEST_KERNEL));
	assert_int_equal(t.walk.unwalked_buffers, 1);
}

/* CUPTI itself is silent about a cut record. */
static void buffers_cut_anywhere_are_read_to_the_last_whole_record(void **state)
{
	static const size_t calls = 2 * sizeof(CUpti_ActivityAPI);
	size_t whole;

	append_call(CUPTI_ACTIVITY_KIND_RUNTIME, 1);
	append_call(CUPTI_ACTIVITY_KIND_RUNTIME, 2);
	append_kernel(1, "last");
	for (size_t size = 0; size <= buffer.size; size++) {
		uint8_t *cut = malloc(size ? size : 1);

		memcpy(cut, buffer.bytes, size);
		t.n = 0;
		t.walk.unwalked_bytes = 0;
		assert_int_equal(cupti_walk_buffer(&t.walk, cut, size), 0);
		whole = size == buffer.size ? 3 : size >= calls ? 2 : size / sizeof(CUpti_ActivityAPI);
		assert_int_equal(t.n, whole);
		assert_int_equal(t.walk.unwalked_bytes, whole == 3 ? 0 : size - whole * sizeof(CUpti_ActivityAPI));
		free(cut);
	}
}

static void any_kind_anywhere_is_survived(void **state)
{
	unsigned int random = 1;

	for (int i = 0; i < 12; i++)
		append_call(CUPTI_ACTIVITY_KIND_RUNTIME, 1);
	for (int round = 0; round < 2000; round++) {
		for (size_t at = 0; at < buffer.size; at += 8) {
			CUpti_ActivityKind kind = (CUpti_ActivityKind)((random = random * 1103515245 + 12345) >> 16 & 63);

			/* The only pointer that is followed is a kernel's name: there it is 0. */
			memset(buffer.bytes + at, 0, 8);
			memcpy(buffer.bytes + at, &kind, at % 16 ? 0 : sizeof(kind));
		}
		t.n = 0;
		walk();
	}
	assert_true(t.walk.unwalked_buffers > 0);
}

static void records_of_an_unknown_layout_are_only_counted(void **state)
{
	append_kernel(1, (const char *)1); /* not followed */
	append_call(CUPTI_ACTIVITY_KIND_RUNTIME, 1);
	t.layouts.known[CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL] = false;
	walk();
	assert_int_equal(t.n, 1);
	assert_int_equal(t.walk.unread[CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL], 1);
}

static CUptiResult steps_astray(uint8_t *bytes, size_t size, CUpti_Activity **record)
{
	*record = (CUpti_Activity *)(*record ? bytes + 3 * size : bytes);
	return CUPTI_SUCCESS;
}

static void a_step_to_elsewhere_is_not_followed(void **state)
{
	append_call(CUPTI_ACTIVITY_KIND_RUNTIME, 1);
	append_call(CUPTI_ACTIVITY_KIND_RUNTIME, 2);
	t.api.next_record = steps_astray;
	walk();
	assert_int_equal(t.n, 1);
	assert_int_equal(t.walk.unwalked_bytes, sizeof(CUpti_ActivityAPI));
}

/* A CUPTI that looks at no sizes. */
static CUptiResult steps_blindly(uint8_t *bytes, size_t size, CUpti_Activity **record)
{
	CUpti_ActivityKind kind = *record ? (*record)->kind : (CUpti_ActivityKind)0;

	*record = *record ? (CUpti_Activity *)((uint8_t *)*record + t.layouts.size[kind]) : (CUpti_Activity *)bytes;
	return CUPTI_SUCCESS;
}

static void sizes_are_checked_whatever_cupti_does(void **state)
{
	uint8_t *cut;

	append_call(CUPTI_ACTIVITY_KIND_RUNTIME, 1);
	append_kernel(1, "cut");
	t.api.next_record = steps_blindly;
	walk();
	assert_int_equal(t.n, 2);
	for (size_t left = 0; left < sizeof(NEWEST_KERNEL); left += 4) {
		cut = malloc(sizeof(CUpti_ActivityAPI) + left);
		memcpy(cut, buffer.bytes, sizeof(CUpti_ActivityAPI) + left);
		t.n = 0;
		assert_int_equal(cupti_walk_buffer(&t.walk, cut, sizeof(CUpti_ActivityAPI) + left), 0);
		assert_int_equal(t.n, 1);
		free(cut);
	}
}

static void long_names_are_cut(void **state)
{
	char name[9000];

	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = 0;
	append_kernel(1, name);
	append_kernel(2, NULL);
	walk();
	assert_int_equal(t.n, 2);
	assert_int_equal(strlen(t.walk.long_name), 4095);
	assert_null(t.gpus[1].name);
}

static void a_failing_sink_ends_the_walk(void **state)
{
	for (int i = 0; i < SEEN + 2; i++)
		append_call(CUPTI_ACTIVITY_KIND_RUNTIME, 1);
	assert_int_equal(cupti_walk_buffer(&t.walk, buffer.bytes, buffer.size), -1);
}

/* The same records from a CUPTI that makes them shorter. */
static void an_older_cupti_is_read(void **state)
{
	size_t size;

	if (!OLDER_CUPTI[0])
		skip();
	open_cupti(OLDER_CUPTI);
	size = t.layouts.size[CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL];
	assert_true(size < sizeof(NEWEST_KERNEL));
	assert_true(t.layouts.known[CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL]);
	for (uint32_t i = 1; i <= 3; i++) {
		append_kernel(i, "older");
		buffer.size -= sizeof(NEWEST_KERNEL) - size;
	}
	append_call(CUPTI_ACTIVITY_KIND_RUNTIME, 1);
	walk();
	assert_int_equal(t.n, 4);
	assert_int_equal(t.walk.unwalked_bytes, 0);
	for (uint32_t i = 0; i < 3; i++)
		assert_true(t.gpus[i].correlation == i + 1 && t.gpus[i].graph == 9 && t.gpus[i].grid[0] == 128);
	assert_string_equal(t.names[2], "older");
}

#define CASE(function) { #function " (recorded, not executed)", function, with_real, NULL, NULL }

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(the_layouts_of_this_toolkit_are_known),
		CASE(kernels_are_read),
		CASE(copies_and_sets_are_read),
		CASE(calls_are_read_with_their_names),
		CASE(only_our_external_ids_are_read),
		CASE(overhead_and_graphs_are_read),
		CASE(other_kinds_are_passed_over),
		CASE(unknown_kinds_end_the_walk_and_are_counted),
		CASE(buffers_cut_anywhere_are_read_to_the_last_whole_record),
		CASE(any_kind_anywhere_is_survived),
		CASE(records_of_an_unknown_layout_are_only_counted),
		CASE(a_step_to_elsewhere_is_not_followed),
		CASE(sizes_are_checked_whatever_cupti_does),
		CASE(long_names_are_cut),
		CASE(a_failing_sink_ends_the_walk),
		CASE(an_older_cupti_is_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
