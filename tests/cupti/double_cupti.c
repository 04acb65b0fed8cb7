/* double_cupti.c - see double_cupti.h. The steps over records are the real CUPTI's. */
#include "double_cupti.h"

#include <cupti.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "record_versions.h"

#define PUBLIC __attribute__((visibility("default")))
#define KINDS 128
#define STACK 64
#define DOUBLE_KERNEL_CBID 505 /* __cudaLaunchKernel */
#define DOUBLE_COPY_CBID 41    /* cudaMemcpyAsync */
#define DOUBLE_SET_CBID 51     /* cudaMemsetAsync */

typedef struct {
	NEWEST_KERNEL known;
	uint64_t more;
} long_kernel;

static struct {
	pthread_mutex_t lock;
	CUpti_BuffersCallbackRequestFunc requested;
	CUpti_BuffersCallbackCompleteFunc completed;
	uint64_t (*clock)(void);
	uint8_t *buffer;
	size_t size, used;
	int enabled[KINDS], enabled_before[KINDS];
	bool launched;
	uint32_t correlation;
	int thread_id_type;
	size_t dropped;
} d = { .lock = PTHREAD_MUTEX_INITIALIZER };

static __thread uint64_t external[STACK];
static __thread unsigned int n_external;

static bool is_set(const char *name)
{
	return getenv(name) != NULL;
}

static void *real(const char *name)
{
	static void *library;

	if (!library)
		library = dlopen(REAL_CUPTI, RTLD_NOW | RTLD_LOCAL);
	return library ? dlsym(library, name) : NULL;
}

static uint64_t clock_of(clockid_t id)
{
	struct timespec now;

	clock_gettime(id, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t stamp(void)
{
	return d.clock ? d.clock() : clock_of(CLOCK_REALTIME);
}

/* What libterra_cupti.so calls. */

PUBLIC CUptiResult cuptiGetVersion(uint32_t *version)
{
	*version = CUPTI_API_VERSION;
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiGetTimestamp(uint64_t *timestamp)
{
	*timestamp = stamp();
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiActivityRegisterTimestampCallback(CUpti_TimestampCallbackFunc clock)
{
	if (is_set("DOUBLE_NO_CLOCK"))
		return CUPTI_ERROR_NOT_SUPPORTED;
	d.clock = clock;
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiSetThreadIdType(CUpti_ActivityThreadIdType type)
{
	d.thread_id_type = type;
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiActivityRegisterCallbacks(CUpti_BuffersCallbackRequestFunc requested,
						  CUpti_BuffersCallbackCompleteFunc completed)
{
	d.requested = requested;
	d.completed = completed;
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiActivityEnable(CUpti_ActivityKind kind)
{
	d.enabled[kind]++;
	d.enabled_before[kind] += !d.launched;
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiActivityFlushPeriod(uint32_t ms)
{
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiActivityGetNumDroppedRecords(CUcontext context, uint32_t stream, size_t *dropped)
{
	*dropped = is_set("DOUBLE_DROPS") && !d.dropped ? strtoul(getenv("DOUBLE_DROPS"), NULL, 10) : 0;
	d.dropped += *dropped;
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiActivityPushExternalCorrelationId(CUpti_ExternalCorrelationKind kind, uint64_t id)
{
	if (n_external < STACK)
		external[n_external] = id;
	n_external++;
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiActivityPopExternalCorrelationId(CUpti_ExternalCorrelationKind kind, uint64_t *last)
{
	if (!n_external)
		return CUPTI_ERROR_QUEUE_EMPTY;
	n_external--;
	*last = n_external < STACK ? external[n_external] : 0;
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiGetCallbackName(CUpti_CallbackDomain domain, uint32_t id, const char **name)
{
	CUptiResult (*get)(CUpti_CallbackDomain, uint32_t, const char **) =
		(CUptiResult(*)(CUpti_CallbackDomain, uint32_t, const char **))real("cuptiGetCallbackName");

	return get ? get(domain, id, name) : CUPTI_ERROR_UNKNOWN;
}

/* With longer kernel records the steps are our own. */
static CUptiResult long_step(uint8_t *buffer, size_t size, CUpti_Activity **record)
{
	uint8_t *next = *record ? (uint8_t *)*record : buffer;
	size_t step = 0;

	if (*record)
		step = (*record)->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL	       ? sizeof(long_kernel)
		       : (*record)->kind == CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION ? sizeof(CUpti_ActivityExternalCorrelation)
										       : sizeof(CUpti_ActivityAPI);
	if (next + step >= buffer + size)
		return CUPTI_ERROR_MAX_LIMIT_REACHED;
	*record = (CUpti_Activity *)(next + step);
	return CUPTI_SUCCESS;
}

PUBLIC CUptiResult cuptiActivityGetNextRecord(uint8_t *buffer, size_t size, CUpti_Activity **record)
{
	CUptiResult (*step)(uint8_t *, size_t, CUpti_Activity **) =
		(CUptiResult(*)(uint8_t *, size_t, CUpti_Activity **))real("cuptiActivityGetNextRecord");

	if (is_set("DOUBLE_LONG_KERNELS"))
		return long_step(buffer, size, record);
	return step ? step(buffer, size, record) : CUPTI_ERROR_UNKNOWN;
}

static void deliver(void)
{
	uint8_t *buffer = d.buffer;

	d.buffer = NULL;
	if (buffer)
		d.completed(NULL, 0, buffer, d.size, d.used);
}

PUBLIC void double_deliver(void)
{
	pthread_mutex_lock(&d.lock);
	deliver();
	pthread_mutex_unlock(&d.lock);
}

PUBLIC CUptiResult cuptiActivityFlushAll(uint32_t flag)
{
	if (!is_set("DOUBLE_KEEPS"))
		double_deliver();
	return CUPTI_SUCCESS;
}

/* What stands for a program's use of CUDA. */

static void append(int kind, const void *record, size_t size)
{
	size_t most;

	if (!d.enabled[kind] || !d.requested)
		return;
	if (d.buffer && d.used + size > d.size)
		deliver();
	if (!d.buffer) {
		d.requested(&d.buffer, &d.size, &most);
		d.used = 0;
	}
	if (!d.buffer)
		return;
	memcpy(d.buffer + d.used, record, size);
	d.used += size;
}

static void append_call(uint32_t cbid, uint64_t start)
{
	CUpti_ActivityAPI call = { .kind = CUPTI_ACTIVITY_KIND_RUNTIME, .cbid = cbid, .start = start, .end = stamp(),
				   .processId = (uint32_t)getpid(), .correlationId = d.correlation };
	CUpti_ActivityExternalCorrelation link = { .kind = CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION,
						   .externalKind = CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM2,
						   .correlationId = d.correlation };

	call.threadId = d.thread_id_type == 1 ? (uint32_t)syscall(SYS_gettid) : (uint32_t)pthread_self();
	if (n_external && n_external <= STACK) {
		link.externalId = external[n_external - 1];
		append(CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION, &link, sizeof(link));
	}
	append(CUPTI_ACTIVITY_KIND_RUNTIME, &call, sizeof(call));
}

static uint32_t begin(uint64_t *start)
{
	pthread_mutex_lock(&d.lock);
	d.launched = true;
	*start = stamp();
	return ++d.correlation;
}

PUBLIC uint32_t double_launch(const char *name)
{
	long_kernel kernel;
	uint64_t start;
	uint32_t correlation = begin(&start);

	memset(&kernel, 0, sizeof(kernel));
	append_call(DOUBLE_KERNEL_CBID, start);
	kernel.known.kind = CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL;
	kernel.known.start = stamp();
	kernel.known.end = kernel.known.start + 2500;
	kernel.known.correlationId = correlation;
	kernel.known.contextId = 1;
	kernel.known.streamId = 7;
	kernel.known.gridX = kernel.known.gridY = kernel.known.gridZ = 1;
	kernel.known.blockX = 128;
	kernel.known.blockY = kernel.known.blockZ = 1;
	kernel.known.name = name;
	append(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, &kernel,
	       is_set("DOUBLE_LONG_KERNELS") ? sizeof(kernel) : sizeof(kernel.known));
	pthread_mutex_unlock(&d.lock);
	return correlation;
}

PUBLIC uint32_t double_copy(uint8_t copy_kind, uint64_t bytes)
{
	NEWEST_MEMCPY copy;
	uint64_t start;
	uint32_t correlation = begin(&start);

	memset(&copy, 0, sizeof(copy));
	append_call(DOUBLE_COPY_CBID, start);
	copy.kind = CUPTI_ACTIVITY_KIND_MEMCPY;
	copy.copyKind = copy_kind;
	copy.bytes = bytes;
	copy.start = stamp();
	copy.end = copy.start + 1000;
	copy.correlationId = correlation;
	copy.contextId = 1;
	copy.streamId = 7;
	append(CUPTI_ACTIVITY_KIND_MEMCPY, &copy, sizeof(copy));
	pthread_mutex_unlock(&d.lock);
	return correlation;
}

PUBLIC uint32_t double_set(uint64_t bytes)
{
	NEWEST_MEMSET set;
	uint64_t start;
	uint32_t correlation = begin(&start);

	memset(&set, 0, sizeof(set));
	append_call(DOUBLE_SET_CBID, start);
	set.kind = CUPTI_ACTIVITY_KIND_MEMSET;
	set.bytes = bytes;
	set.start = stamp();
	set.end = set.start + 500;
	set.correlationId = correlation;
	append(CUPTI_ACTIVITY_KIND_MEMSET, &set, sizeof(set));
	pthread_mutex_unlock(&d.lock);
	return correlation;
}

PUBLIC int double_enabled(int kind, int before_launch)
{
	return before_launch ? d.enabled_before[kind] : d.enabled[kind];
}
