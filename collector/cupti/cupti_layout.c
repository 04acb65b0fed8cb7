/* cupti_layout.c - sizes of records: known ones, and those of the library found. */
#include "collector/cupti/cupti_layout.h"

#include <string.h>

#define SAME(type, newest, field) (offsetof(type, field) == offsetof(newest, field))

/* Only older structs whose fields are where the newest has them count as known. */
#define SAME_ACTIVITY(type, newest)                                                                                          \
	(SAME(type, newest, start) && SAME(type, newest, end) && SAME(type, newest, deviceId) &&                                \
	 SAME(type, newest, contextId) && SAME(type, newest, streamId) && SAME(type, newest, graphId))
#define SAME_LAUNCH(type, newest)                                                                                              \
	(SAME_ACTIVITY(type, newest) && SAME(type, newest, correlationId) && SAME(type, newest, graphNodeId))

#define KERNEL_ROW(type)                                                                                                       \
	{ CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, sizeof(type),                                                                  \
	  SAME_LAUNCH(type, NEWEST_KERNEL) && SAME(type, NEWEST_KERNEL, registersPerThread) &&                                  \
		  SAME(type, NEWEST_KERNEL, gridX) && SAME(type, NEWEST_KERNEL, blockX) &&                                      \
		  SAME(type, NEWEST_KERNEL, staticSharedMemory) && SAME(type, NEWEST_KERNEL, dynamicSharedMemory) &&            \
		  SAME(type, NEWEST_KERNEL, name) },
#define MEMCPY_ROW(type)                                                                                                       \
	{ CUPTI_ACTIVITY_KIND_MEMCPY, sizeof(type),                                                                             \
	  SAME_LAUNCH(type, NEWEST_MEMCPY) && SAME(type, NEWEST_MEMCPY, copyKind) && SAME(type, NEWEST_MEMCPY, srcKind) &&      \
		  SAME(type, NEWEST_MEMCPY, dstKind) && SAME(type, NEWEST_MEMCPY, bytes) },
#define MEMCPYPTOP_ROW(type)                                                                                                   \
	{ CUPTI_ACTIVITY_KIND_MEMCPY2, sizeof(type),                                                                            \
	  SAME_LAUNCH(type, NEWEST_MEMCPYPTOP) && SAME(type, NEWEST_MEMCPYPTOP, copyKind) &&                                    \
		  SAME(type, NEWEST_MEMCPYPTOP, srcKind) && SAME(type, NEWEST_MEMCPYPTOP, dstKind) &&                           \
		  SAME(type, NEWEST_MEMCPYPTOP, bytes) && SAME(type, NEWEST_MEMCPYPTOP, srcDeviceId) &&                         \
		  SAME(type, NEWEST_MEMCPYPTOP, dstDeviceId) },
#define MEMSET_ROW(type)                                                                                                       \
	{ CUPTI_ACTIVITY_KIND_MEMSET, sizeof(type),                                                                             \
	  SAME_LAUNCH(type, NEWEST_MEMSET) && SAME(type, NEWEST_MEMSET, value) && SAME(type, NEWEST_MEMSET, bytes) &&           \
		  SAME(type, NEWEST_MEMSET, memoryKind) },
#define OVERHEAD_ROW(type)                                                                                                     \
	{ CUPTI_ACTIVITY_KIND_OVERHEAD, sizeof(type),                                                                           \
	  SAME(type, NEWEST_OVERHEAD, overheadKind) && SAME(type, NEWEST_OVERHEAD, start) &&                                    \
		  SAME(type, NEWEST_OVERHEAD, end) && SAME(type, NEWEST_OVERHEAD, correlationId) },
#define GRAPH_ROW(type)                                                                                                        \
	{ CUPTI_ACTIVITY_KIND_GRAPH_TRACE, sizeof(type),                                                                        \
	  SAME_ACTIVITY(type, NEWEST_GRAPHTRACE) && SAME(type, NEWEST_GRAPHTRACE, correlationId) },

static const struct {
	CUpti_ActivityKind kind;
	size_t size;
	bool same; /* all that we read is where the newest struct has it */
} known[] = {
	KNOWN_KERNEL(KERNEL_ROW) KNOWN_MEMCPY(MEMCPY_ROW) KNOWN_MEMCPYPTOP(MEMCPYPTOP_ROW) KNOWN_MEMSET(MEMSET_ROW)
	KNOWN_OVERHEAD(OVERHEAD_ROW) KNOWN_GRAPHTRACE(GRAPH_ROW)
	/* These two have no versions. */
	{ CUPTI_ACTIVITY_KIND_RUNTIME, sizeof(CUpti_ActivityAPI), true },
	{ CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION, sizeof(CUpti_ActivityExternalCorrelation), true },
};

/* Kinds that share a struct. */
static CUpti_ActivityKind struct_of(CUpti_ActivityKind kind)
{
	if (kind == CUPTI_ACTIVITY_KIND_KERNEL)
		return CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL;
	return kind == CUPTI_ACTIVITY_KIND_DRIVER ? CUPTI_ACTIVITY_KIND_RUNTIME : kind;
}

bool cupti_layout_is_known(CUpti_ActivityKind kind, size_t size)
{
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].kind == struct_of(kind) && known[i].size == size)
			return known[i].same;
	return false;
}

/* Two records of the kind would follow each other at this distance. 0: none is made, or the library steps as no size says. */
static size_t measure(const struct cupti_api *api, CUpti_ActivityKind kind)
{
	static _Alignas(8) uint8_t buffer[4096];
	CUpti_Activity *record = NULL;
	size_t at;

	memset(buffer, 0, sizeof(buffer));
	for (size_t i = 0; i < sizeof(buffer); i += 8)
		memcpy(buffer + i, &kind, sizeof(kind));
	if (api->next_record(buffer, sizeof(buffer), &record) != CUPTI_SUCCESS || (uint8_t *)record != buffer ||
	    api->next_record(buffer, sizeof(buffer), &record) != CUPTI_SUCCESS)
		return 0;
	at = (size_t)((uint8_t *)record - buffer);
	return at < sizeof(buffer) / 2 ? at : 0;
}

void cupti_layouts_measure(const struct cupti_api *api, struct cupti_layouts *layouts)
{
	memset(layouts, 0, sizeof(*layouts));
	for (int kind = 1; kind < CUPTI_KINDS; kind++) {
		layouts->size[kind] = (uint16_t)measure(api, (CUpti_ActivityKind)kind);
		layouts->known[kind] = cupti_layout_is_known((CUpti_ActivityKind)kind, layouts->size[kind]);
	}
}
