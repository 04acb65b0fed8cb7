/* cupti_walk.c - walks a buffer with CUPTI's own function, whose steps are checked, and reads each record of a known layout. */
#include "collector/cupti/cupti_walk.h"

#include <string.h>

/* A record of an older layout is the beginning of the newest; what it lacks stays 0. */
union any_record {
	NEWEST_KERNEL kernel;
	NEWEST_MEMCPY copy;
	NEWEST_MEMCPYPTOP peer_copy;
	NEWEST_MEMSET set;
	NEWEST_OVERHEAD overhead;
	NEWEST_GRAPHTRACE graph;
	CUpti_ActivityAPI call;
	CUpti_ActivityExternalCorrelation link;
};

struct conversion {
	struct cupti_walk *walk;
	union any_record record;
	struct terra_gpu gpu;
	struct terra_event event;
};

const char *cupti_kind_name(unsigned int kind)
{
	switch (kind) {
	case CUPTI_ACTIVITY_KIND_KERNEL:
	case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
		return "kernel";
	case CUPTI_ACTIVITY_KIND_MEMCPY:
		return "memcpy";
	case CUPTI_ACTIVITY_KIND_MEMCPY2:
		return "memcpy between devices";
	case CUPTI_ACTIVITY_KIND_MEMSET:
		return "memset";
	case CUPTI_ACTIVITY_KIND_RUNTIME:
		return "runtime call";
	case CUPTI_ACTIVITY_KIND_DRIVER:
		return "driver call";
	case CUPTI_ACTIVITY_KIND_OVERHEAD:
		return "overhead";
	case CUPTI_ACTIVITY_KIND_GRAPH_TRACE:
		return "graph";
	case CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION:
		return "external correlation";
	default:
		return "other";
	}
}

/* CUPTI says 0 and 0 where it has no times. */
static void set_times(struct conversion *c, uint64_t start, uint64_t end)
{
	c->gpu.untimed = start == 0 || end == 0;
	if (c->gpu.untimed)
		return;
	c->event.time_ns = c->walk->last_ns = start - (uint64_t)c->walk->clock_offset;
	c->gpu.duration_ns = end > start ? end - start : 0;
}

/* Kernel names are as long as templates make them; a trace has room for so much. */
static void set_name(struct conversion *c, const char *name)
{
	char *cut = c->walk->long_name;
	size_t most = sizeof(c->walk->long_name) - 1;

	if (name && strnlen(name, most + 1) > most) {
		memcpy(cut, name, most);
		cut[most] = 0;
		name = cut;
	}
	c->gpu.name = name;
}

#define SET_PLACE(c, from)                                                                                                      \
	((c)->gpu.device = (from).deviceId, (c)->gpu.context = (from).contextId, (c)->gpu.stream = (from).streamId,           \
	 (c)->gpu.graph = (from).graphId, (c)->gpu.correlation = (from).correlationId)

static void convert_kernel(struct conversion *c)
{
	const NEWEST_KERNEL *kernel = &c->record.kernel;

	c->gpu.kind = TERRA_GPU_KERNEL;
	set_times(c, kernel->start, kernel->end);
	SET_PLACE(c, *kernel);
	c->gpu.graph_node = kernel->graphNodeId;
	set_name(c, kernel->name);
	c->gpu.grid[0] = (uint32_t)kernel->gridX;
	c->gpu.grid[1] = (uint32_t)kernel->gridY;
	c->gpu.grid[2] = (uint32_t)kernel->gridZ;
	c->gpu.block[0] = (uint32_t)kernel->blockX;
	c->gpu.block[1] = (uint32_t)kernel->blockY;
	c->gpu.block[2] = (uint32_t)kernel->blockZ;
	c->gpu.static_shared = (uint32_t)kernel->staticSharedMemory;
	c->gpu.dynamic_shared = (uint32_t)kernel->dynamicSharedMemory;
	c->gpu.registers = kernel->registersPerThread;
}

#define SET_COPY(c, from)                                                                                                      \
	(SET_PLACE(c, from), (c)->gpu.kind = TERRA_GPU_MEMCPY, (c)->gpu.graph_node = (from).graphNodeId,                       \
	 (c)->gpu.bytes = (from).bytes, (c)->gpu.copy_kind = (from).copyKind, (c)->gpu.source_kind = (from).srcKind,           \
	 (c)->gpu.target_kind = (from).dstKind)

static void convert_copy(struct conversion *c)
{
	set_times(c, c->record.copy.start, c->record.copy.end);
	SET_COPY(c, c->record.copy);
}

static void convert_peer_copy(struct conversion *c)
{
	set_times(c, c->record.peer_copy.start, c->record.peer_copy.end);
	SET_COPY(c, c->record.peer_copy);
	c->gpu.source_device = c->record.peer_copy.srcDeviceId;
	c->gpu.target_device = c->record.peer_copy.dstDeviceId;
}

static void convert_set(struct conversion *c)
{
	const NEWEST_MEMSET *set = &c->record.set;

	c->gpu.kind = TERRA_GPU_MEMSET;
	set_times(c, set->start, set->end);
	SET_PLACE(c, *set);
	c->gpu.graph_node = set->graphNodeId;
	c->gpu.bytes = set->bytes;
	c->gpu.value = set->value;
	c->gpu.target_kind = (uint8_t)set->memoryKind;
}

static void convert_graph(struct conversion *c)
{
	c->gpu.kind = TERRA_GPU_GRAPH;
	set_times(c, c->record.graph.start, c->record.graph.end);
	SET_PLACE(c, c->record.graph);
}

static void convert_call(struct conversion *c)
{
	const CUpti_ActivityAPI *call = &c->record.call;
	bool runtime = call->kind == CUPTI_ACTIVITY_KIND_RUNTIME;
	const struct cupti_api *api = c->walk->api;
	const char *name = NULL;

	c->gpu.kind = runtime ? TERRA_GPU_RUNTIME : TERRA_GPU_DRIVER;
	c->event.thread = call->threadId;
	set_times(c, call->start, call->end);
	c->gpu.correlation = call->correlationId;
	c->gpu.function = call->cbid;
	c->gpu.result = call->returnValue;
	if (api->callback_name && api->callback_name(runtime ? CUPTI_CB_DOMAIN_RUNTIME_API : CUPTI_CB_DOMAIN_DRIVER_API,
						     call->cbid, &name) == CUPTI_SUCCESS)
		set_name(c, name);
}

static const char *overhead_name(uint32_t kind)
{
	static const char *const names[] = { "CUPTI's buffer flush", "CUPTI's instrumentation", "CUPTI's resources",
					     "module loading by the runtime", "lazy loading of a function", "full command buffer",
					     "request for an activity buffer", "start of unified memory's activity" };

	if (kind == CUPTI_ACTIVITY_OVERHEAD_DRIVER_COMPILER)
		return "compiler of the driver";
	if (kind >> 16 >= 1 && kind >> 16 <= sizeof(names) / sizeof(names[0]) && !(kind & 0xffff))
		return names[(kind >> 16) - 1];
	return NULL;
}

static void convert_overhead(struct conversion *c)
{
	const NEWEST_OVERHEAD *overhead = &c->record.overhead;

	c->gpu.kind = TERRA_GPU_OVERHEAD;
	set_times(c, overhead->start, overhead->end);
	c->gpu.correlation = overhead->correlationId;
	c->gpu.function = overhead->overheadKind;
	set_name(c, overhead_name(overhead->overheadKind));
}

/* False: an id of somebody else's. */
static bool convert_link(struct conversion *c)
{
	c->gpu.kind = TERRA_GPU_LINK;
	c->gpu.untimed = 1;
	c->gpu.correlation = c->record.link.correlationId;
	c->gpu.external = c->record.link.externalId;
	return c->record.link.externalKind == CUPTI_OUR_EXTERNAL_KIND;
}

/* False: nothing for the trace. */
static bool convert(struct conversion *c, CUpti_ActivityKind kind)
{
	switch (kind) {
	case CUPTI_ACTIVITY_KIND_KERNEL:
	case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
		convert_kernel(c);
		return true;
	case CUPTI_ACTIVITY_KIND_MEMCPY:
		convert_copy(c);
		return true;
	case CUPTI_ACTIVITY_KIND_MEMCPY2:
		convert_peer_copy(c);
		return true;
	case CUPTI_ACTIVITY_KIND_MEMSET:
		convert_set(c);
		return true;
	case CUPTI_ACTIVITY_KIND_GRAPH_TRACE:
		convert_graph(c);
		return true;
	case CUPTI_ACTIVITY_KIND_RUNTIME:
	case CUPTI_ACTIVITY_KIND_DRIVER:
		convert_call(c);
		return true;
	case CUPTI_ACTIVITY_KIND_OVERHEAD:
		convert_overhead(c);
		return true;
	case CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION:
		return convert_link(c);
	default:
		c->walk->others++;
		return false;
	}
}

static bool is_read(CUpti_ActivityKind kind)
{
	return strcmp(cupti_kind_name(kind), "other") != 0;
}

static int take(struct cupti_walk *walk, CUpti_ActivityKind kind, const uint8_t *record)
{
	struct conversion c = { .walk = walk };
	size_t size = walk->layouts->size[kind];

	if (is_read(kind) && !walk->layouts->known[kind]) {
		walk->unread[kind]++;
		return 0;
	}
	memcpy(&c.record, record, size < sizeof(c.record) ? size : sizeof(c.record));
	c.event = (struct terra_event){ .type = TERRA_EVENT_GPU, .gpu = &c.gpu, .time_ns = walk->last_ns,
					 .parent_seq = UINT64_MAX, .enter_seq = UINT64_MAX };
	c.gpu = (struct terra_gpu){ .op_seq = UINT64_MAX, .device = TERRA_GPU_NO_DEVICE,
				    .source_device = TERRA_GPU_NO_DEVICE, .target_device = TERRA_GPU_NO_DEVICE };
	return convert(&c, kind) ? walk->sink(walk->ctx, &c.event) : 0;
}

/* The size of the record at `at`; 0 when it does not lie in the buffer whole, or its size is not known. */
static size_t record_size(const struct cupti_walk *walk, const uint8_t *at, const uint8_t *end, CUpti_ActivityKind *kind)
{
	size_t size;

	if ((size_t)(end - at) < sizeof(*kind))
		return 0;
	memcpy(kind, at, sizeof(*kind));
	size = (unsigned int)*kind < CUPTI_KINDS ? walk->layouts->size[*kind] : 0;
	return size <= (size_t)(end - at) ? size : 0;
}

/* Each record begins where the one before ended: a step to anywhere else is not followed. */
int cupti_walk_buffer(struct cupti_walk *walk, uint8_t *buffer, size_t size)
{
	const uint8_t *at = buffer, *end = buffer + size;
	CUpti_Activity *record = NULL;
	CUpti_ActivityKind kind;
	int err = 0;

	while (!err && at < end) {
		size_t n = record_size(walk, at, end, &kind);

		if (!n || walk->api->next_record(buffer, size, &record) != CUPTI_SUCCESS || (uint8_t *)record != at)
			break;
		err = take(walk, kind, at);
		at += n;
	}
	if (!err && at < end) {
		walk->unwalked_bytes += (uint64_t)(end - at);
		walk->unwalked_buffers++;
	}
	return err;
}
