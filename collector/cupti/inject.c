/* inject.c - libterra_cupti.so: what CUDA's driver loads into a program that CUDA_INJECTION64_PATH names it to, at the first
 * use of CUDA and before the first context. Without a driver it is never loaded.
 *
 * TERRA_GPU_FILE   beginning of the file's name, ".<pid>" is added; without it the library does nothing
 * TERRA_GPU_KINDS  what is recorded (gpu_kinds.h)
 * TERRA_GPU_CUPTI  the CUPTI to use, where it is not the one that the program has or the loader finds
 *
 * The file is a trace of its own (docs/trace-format.md) that holds GPU records, links and notes; terra-trace puts it into
 * the trace of the ops. CUPTI hands over full buffers, and every second what there is: a kill loses what came after that.
 * Whatever fails is a note in the file, and the program goes on.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "collector/cupti/cupti_walk.h"
#include "collector/gpu_hooks.h"
#include "collector/gpu_kinds.h"
#include "collector/machine.h"
#include "probes/clock.h"

#define BUFFER_BYTES (1u << 20)
#define BUFFERS_MAX 256 /* beyond that CUPTI drops records, and counts them */
#define FLUSH_PERIOD_MS 1000

__attribute__((visibility("default"))) int InitializeInjection(void);

static struct {
	pthread_mutex_t lock; /* of the writer and what is counted */
	struct terra_trace_writer *writer;
	struct cupti_api api;
	struct cupti_layouts layouts;
	struct cupti_walk walk;
	pid_t owner;
	bool clock_is_ours;
	uint64_t clock_doubt; /* half the time that the best measurement of the offset took */
	uint32_t buffers;     /* that CUPTI has */
	uint64_t dropped;
	bool started, ended;
} gpu = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* This thread is in buffer_completed, where a signal may make it leave the process. */
static __thread bool writing __attribute__((tls_model("initial-exec")));

/* A forked child has the library, but neither CUDA nor the file. */
static bool may_write(void)
{
	return gpu.writer && gpu.owner == getpid();
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...)
{
	char text[1024];
	struct terra_event event = { .type = TERRA_EVENT_NOTE, .text = text, .time_ns = clock_now(), .parent_seq = UINT64_MAX };
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	if (may_write())
		terra_trace_write(gpu.writer, &event);
}

/* Buffers. */

static void CUPTIAPI buffer_requested(uint8_t **buffer, size_t *size, size_t *max_records)
{
	uint32_t n = __atomic_add_fetch(&gpu.buffers, 1, __ATOMIC_RELAXED);

	*max_records = 0;
	*buffer = n > BUFFERS_MAX ? NULL : aligned_alloc(8, BUFFER_BYTES);
	*size = *buffer ? BUFFER_BYTES : 0;
	if (!*buffer)
		__atomic_sub_fetch(&gpu.buffers, 1, __ATOMIC_RELAXED);
}

static int write_event(void *ctx, struct terra_event *event)
{
	return terra_trace_write(gpu.writer, event);
}

static void count_dropped(CUcontext context, uint32_t stream)
{
	struct terra_event event = { .type = TERRA_EVENT_LOST, .time_ns = clock_now(), .parent_seq = UINT64_MAX };
	size_t n = 0;

	if (!gpu.api.dropped || gpu.api.dropped(context, stream, &n) != CUPTI_SUCCESS || !n)
		return;
	gpu.dropped += n;
	event.lost = n;
	terra_trace_write(gpu.writer, &event);
}

static void CUPTIAPI buffer_completed(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid)
{
	writing = true;
	pthread_mutex_lock(&gpu.lock);
	if (may_write() && buffer) {
		cupti_walk_buffer(&gpu.walk, buffer, valid < size ? valid : size);
		count_dropped(context, stream);
		terra_trace_flush(gpu.writer);
	}
	pthread_mutex_unlock(&gpu.lock);
	writing = false;
	if (!buffer)
		return;
	free(buffer);
	__atomic_sub_fetch(&gpu.buffers, 1, __ATOMIC_RELAXED);
}

/* The clock. */

/* CUPTI's clock minus ours, from the shortest of a few tries; *doubt is how far off that may be. */
static int64_t measure_offset(uint64_t *doubt)
{
	int64_t offset = 0;

	*doubt = UINT64_MAX;
	for (int i = 0; i < 32; i++) {
		uint64_t before = clock_now(), theirs = 0, after;

		if (gpu.api.get_timestamp(&theirs) != CUPTI_SUCCESS)
			continue;
		after = clock_now();
		if ((after - before) / 2 < *doubt) {
			*doubt = (after - before) / 2;
			offset = (int64_t)(theirs - before - (after - before) / 2);
		}
	}
	return offset;
}

static void set_clock(void)
{
	gpu.clock_is_ours = gpu.api.register_timestamp && gpu.api.register_timestamp(clock_now) == CUPTI_SUCCESS;
	if (gpu.clock_is_ours) {
		note("GPU times are of CLOCK_MONOTONIC: CUPTI asks us for the time");
		return;
	}
	gpu.walk.clock_offset = measure_offset(&gpu.clock_doubt);
	if (gpu.clock_doubt == UINT64_MAX)
		note("GPU times are of CUPTI's clock, which could not be compared with CLOCK_MONOTONIC");
	else
		note("GPU times are of CUPTI's clock, converted to CLOCK_MONOTONIC by an offset measured once, to %llu ns",
		     (unsigned long long)gpu.clock_doubt);
}

static void note_drift(void)
{
	uint64_t doubt;
	int64_t offset;

	if (gpu.clock_is_ours || gpu.clock_doubt == UINT64_MAX)
		return;
	offset = measure_offset(&doubt);
	if (doubt != UINT64_MAX)
		note("CUPTI's clock went %lld ns away from CLOCK_MONOTONIC during the recording",
		     (long long)(offset - gpu.walk.clock_offset));
}

/* The op that asks, by the recorder in the same process. */

static void push(uint64_t enter_ns)
{
	gpu.api.push_external(CUPTI_OUR_EXTERNAL_KIND, enter_ns);
}

static void pop(void)
{
	uint64_t last;

	gpu.api.pop_external(CUPTI_OUR_EXTERNAL_KIND, &last);
}

static void end(void);

static void offer_hooks(void)
{
	struct terra_gpu_hooks *hooks = dlsym(RTLD_DEFAULT, "terra_record_gpu");

	if (!hooks)
		return;
	__atomic_store_n(&hooks->leave, end, __ATOMIC_RELEASE);
	if (!gpu.api.push_external || gpu.api.enable(CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION) != CUPTI_SUCCESS) {
		note("CUPTI takes no external ids: ops are found by thread and time");
		return;
	}
	__atomic_store_n(&hooks->pop, pop, __ATOMIC_RELEASE);
	__atomic_store_n(&hooks->push, push, __ATOMIC_RELEASE);
}

/* Starting. */

static void enable(uint32_t kinds)
{
	static const struct {
		uint32_t want;
		CUpti_ActivityKind kind;
	} all[] = {
		{ TERRA_GPU_WANT_KERNELS, CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL },
		{ TERRA_GPU_WANT_MEMCPY, CUPTI_ACTIVITY_KIND_MEMCPY },
		{ TERRA_GPU_WANT_MEMCPY, CUPTI_ACTIVITY_KIND_MEMCPY2 },
		{ TERRA_GPU_WANT_MEMSET, CUPTI_ACTIVITY_KIND_MEMSET },
		{ TERRA_GPU_WANT_RUNTIME, CUPTI_ACTIVITY_KIND_RUNTIME },
		{ TERRA_GPU_WANT_DRIVER, CUPTI_ACTIVITY_KIND_DRIVER },
		{ TERRA_GPU_WANT_OVERHEAD, CUPTI_ACTIVITY_KIND_OVERHEAD },
		{ TERRA_GPU_WANT_GRAPHS, CUPTI_ACTIVITY_KIND_GRAPH_TRACE },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		CUptiResult result = kinds & all[i].want ? gpu.api.enable(all[i].kind) : CUPTI_SUCCESS;

		if (result != CUPTI_SUCCESS)
			note("CUPTI records no activity of kind %s: %s (%d)", cupti_kind_name(all[i].kind),
			     cupti_api_text(&gpu.api, result), (int)result);
		else if (kinds & all[i].want && !gpu.layouts.known[all[i].kind])
			note("%s records of this CUPTI are %u bytes long, which no layout known here is: they are only counted",
			     cupti_kind_name(all[i].kind), gpu.layouts.size[all[i].kind]);
	}
}

static int start_cupti(uint32_t kinds, const char *names)
{
	CUptiResult result;

	note("GPU activity by %s, CUPTI %u (records of %u): %s", gpu.api.path, gpu.api.version, (unsigned int)CUPTI_API_VERSION,
	     names);
	cupti_layouts_measure(&gpu.api, &gpu.layouts);
	gpu.walk = (struct cupti_walk){ .api = &gpu.api, .layouts = &gpu.layouts, .sink = write_event };
	set_clock();
	if (!gpu.api.set_thread_id_type || gpu.api.set_thread_id_type(1) != CUPTI_SUCCESS)
		note("CUPTI's thread numbers are not those of the ops: ops are not found by thread and time");
	result = gpu.api.register_callbacks(buffer_requested, buffer_completed);
	if (result != CUPTI_SUCCESS) {
		note("no GPU activity: CUPTI takes no buffers: %s (%d)", cupti_api_text(&gpu.api, result), (int)result);
		return -EIO;
	}
	enable(kinds);
	if (gpu.api.flush_period)
		gpu.api.flush_period(FLUSH_PERIOD_MS);
	return 0;
}

static int create_file(const char *file)
{
	char path[4096], command[4096], cpu[512], err[512];
	struct terra_trace_info info = { .backend = "cupti", .command = command, .library = gpu.api.path, .cpu = cpu,
					 .pid = (uint32_t)getpid(), .start_ns = clock_now() };
	int code;

	if ((size_t)snprintf(path, sizeof(path), "%s.%d", file, (int)getpid()) >= sizeof(path))
		return -ENAMETOOLONG;
	terra_machine_command(0, command, sizeof(command));
	terra_machine_cpu(cpu, sizeof(cpu));
	code = terra_trace_create(path, &info, &gpu.writer, err, sizeof(err));
	if (code)
		fprintf(stderr, "terra: no GPU activity is recorded: %s\n", err);
	return code;
}

static void start(const char *file, const char *names)
{
	char err[512] = "";
	const char *wrong;
	uint32_t kinds;
	int code = cupti_api_open(&gpu.api, getenv("TERRA_GPU_CUPTI"), err, sizeof(err));

	gpu.owner = getpid();
	if (create_file(file))
		return;
	atexit(end); /* after CUPTI was opened: what that does at exit comes later */
	if (code) {
		note("no GPU activity: %s", err);
	} else if (!terra_gpu_parse_kinds(names, &kinds, &wrong)) {
		note("no GPU activity: no such kind: %s", wrong);
	} else if (start_cupti(kinds, names) == 0) {
		offer_hooks();
	}
	terra_trace_flush(gpu.writer);
}

int InitializeInjection(void)
{
	const char *file = getenv("TERRA_GPU_FILE"), *names = getenv("TERRA_GPU_KINDS");
	int saved_errno = errno;

	if (!file || file[0] != '/' || getauxval(AT_SECURE) || __atomic_exchange_n(&gpu.started, true, __ATOMIC_ACQ_REL))
		return 1;
	start(file, names ? names : TERRA_GPU_DEFAULT);
	errno = saved_errno;
	return 1;
}

/* Ending. */

static void note_gaps(void)
{
	struct terra_event lost = { .type = TERRA_EVENT_LOST, .time_ns = clock_now(), .parent_seq = UINT64_MAX };

	for (unsigned int kind = 0; kind < CUPTI_KINDS; kind++) {
		lost.lost = gpu.walk.unread[kind];
		if (!lost.lost)
			continue;
		note("%llu %s records have a layout that is not known", (unsigned long long)lost.lost, cupti_kind_name(kind));
		terra_trace_write(gpu.writer, &lost);
	}
	if (gpu.dropped)
		note("CUPTI dropped %llu records", (unsigned long long)gpu.dropped);
	if (gpu.walk.unwalked_buffers)
		note("%llu buffers of CUPTI's could not be read to their end: %llu bytes of records are missing",
		     (unsigned long long)gpu.walk.unwalked_buffers, (unsigned long long)gpu.walk.unwalked_bytes);
	if (gpu.buffers)
		note("CUPTI did not give back %u buffers: activity is missing; a profiler in the program may have taken over",
		     gpu.buffers);
	note_drift();
}

/* At exit, or when the recorder sees the process leave without it. CUPTI calls back from the flush. */
static void end(void)
{
	int err;

	if (writing || gpu.owner != getpid() || __atomic_exchange_n(&gpu.ended, true, __ATOMIC_ACQ_REL))
		return;
	if (gpu.walk.api)
		gpu.api.flush_all(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
	pthread_mutex_lock(&gpu.lock);
	if (gpu.walk.api)
		note_gaps();
	err = terra_trace_finish(gpu.writer);
	gpu.writer = NULL;
	pthread_mutex_unlock(&gpu.lock);
	if (err)
		fprintf(stderr, "terra: the GPU activity is not complete: %s\n", strerror(-err));
}
