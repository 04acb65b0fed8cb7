/* libterra_cupti.so in programs that end in every way, on a double of CUPTI (recorded, not executed), and on the real one
 * without a driver. Each case is a child process that does what CUDA's driver does: loads the library and calls
 * InitializeInjection. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <cupti.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "collector/gpu_hooks.h"
#include "collector/gpu_session.h"
#include "tests/cupti/double_cupti.h"
#include "tests/unit/trace_sample.h"

#define DOUBLE LIBRARY_DIR "/libdouble_cupti.so"
#define INJECTED LIBRARY_DIR "/libterra_cupti.so"

/* This program stands for the recorder, too. */
__attribute__((visibility("default"))) struct terra_gpu_hooks terra_record_gpu;

static struct {
	uint32_t (*launch)(const char *kernel);
	uint32_t (*copy)(uint8_t copy_kind, uint64_t bytes);
	uint32_t (*set)(uint64_t bytes);
	int (*enabled)(int kind, int before_launch);
	void (*deliver)(void);
} d;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* In the child. */
static void inject(void)
{
	void *library = dlopen(INJECTED, RTLD_NOW | RTLD_LOCAL), *found;
	int (*initialize)(void) = library ? (int (*)(void))dlsym(library, "InitializeInjection") : NULL;

	if (!initialize || initialize() != 1 || initialize() != 1)
		_exit(99);
	found = dlopen(DOUBLE, RTLD_NOW | RTLD_NOLOAD);
	if (!found)
		return; /* the case uses another CUPTI */
	d.launch = (uint32_t(*)(const char *))dlsym(found, "double_launch");
	d.copy = (uint32_t(*)(uint8_t, uint64_t))dlsym(found, "double_copy");
	d.set = (uint32_t(*)(uint64_t))dlsym(found, "double_set");
	d.enabled = (int (*)(int, int))dlsym(found, "double_enabled");
	d.deliver = (void (*)(void))dlsym(found, "double_deliver");
}

/* Runs the case in a child; what it wrote is sample_tmp("out.PID"). The wait status. */
static int run(void (*program)(void), const char *const *settings, char *path, size_t size)
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		setenv("TERRA_GPU_FILE", sample_tmp("out"), 1);
		setenv("TERRA_GPU_CUPTI", DOUBLE, 1);
		for (; settings && *settings; settings += 2)
			setenv(settings[0], settings[1], 1);
		program();
		exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	snprintf(path, size, "%s.%d", sample_tmp("out"), (int)pid);
	return status;
}

struct seen {
	unsigned int kernels, copies, sets, calls, links, notes, named;
	uint64_t first_ns, last_ns, lost, link;
	uint32_t thread;
	bool clean, has_text;
};

static struct seen read_file(const char *path, const char *text)
{
	struct terra_trace_reader *reader;
	struct seen n = { 0 };
	struct terra_event event;

	assert_int_equal(terra_trace_open(path, &reader, NULL, 0), 0);
	while (terra_trace_next(reader, &event) == 1) {
		if (event.type == TERRA_EVENT_NOTE) {
			n.notes++;
			n.has_text |= strstr(event.text, text) != NULL;
		}
		if (event.type != TERRA_EVENT_GPU)
			continue;
		n.kernels += event.gpu->kind == TERRA_GPU_KERNEL;
		n.copies += event.gpu->kind == TERRA_GPU_MEMCPY;
		n.sets += event.gpu->kind == TERRA_GPU_MEMSET;
		n.links += event.gpu->kind == TERRA_GPU_LINK;
		if (event.gpu->kind == TERRA_GPU_LINK)
			n.link = event.gpu->external;
		if (event.gpu->kind == TERRA_GPU_KERNEL && event.gpu->name)
			n.named += !strcmp(event.gpu->name, "a_kernel");
		if (event.gpu->kind != TERRA_GPU_RUNTIME)
			continue;
		n.calls++;
		n.thread = event.thread;
		n.first_ns = n.first_ns ? n.first_ns : event.time_ns;
		n.last_ns = event.time_ns;
	}
	assert_int_equal(terra_trace_missing(reader), 0);
	assert_string_equal(terra_trace_info(reader)->backend, "cupti");
	n.lost = terra_trace_lost(reader);
	n.clean = terra_trace_ended_cleanly(reader);
	terra_trace_close(reader);
	return n;
}

/* ---- programs ---- */

static void some_work(void)
{
	inject();
	for (int i = 0; i < 5; i++)
		d.launch("a_kernel");
	d.copy(1, 4096);
	d.set(64);
}

static void much_work(void)
{
	inject();
	for (int i = 0; i < 20000; i++) /* several buffers */
		d.launch("a_kernel");
}

static void killed(void)
{
	some_work();
	d.deliver(); /* the flush period */
	for (int i = 0; i < 7; i++)
		d.launch("a_kernel");
	kill(getpid(), SIGKILL);
}

static void leaves(void)
{
	some_work();
	if (!terra_record_gpu.leave)
		_exit(98);
	terra_record_gpu.leave(); /* what the recorder does in _exit */
	terra_record_gpu.leave();
	_exit(0);
}

static void forks(void)
{
	int status;
	pid_t pid;

	some_work();
	pid = fork();
	if (pid == 0) {
		d.launch("in the child");
		d.deliver();
		exit(0);
	}
	waitpid(pid, &status, 0);
	d.launch("a_kernel");
	exit(status != 0);
}

static void asks_in_ops(void)
{
	inject();
	if (!terra_record_gpu.push || !terra_record_gpu.pop)
		_exit(98);
	d.launch("a_kernel");
	terra_record_gpu.push(1000);
	terra_record_gpu.push(1100);
	d.launch("a_kernel");
	terra_record_gpu.pop();
	terra_record_gpu.pop();
	d.launch("a_kernel");
}

static void enables_two(void)
{
	some_work();
	for (int kind = 1; kind < 100; kind++) {
		int want = kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL || kind == CUPTI_ACTIVITY_KIND_MEMCPY ||
			   kind == CUPTI_ACTIVITY_KIND_MEMCPY2 || kind == CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION;

		if (d.enabled(kind, 0) != want || d.enabled(kind, 1) != want)
			_exit(98);
	}
}

static void only_loads(void)
{
	inject();
}

static void *launches(void *unused)
{
	for (int i = 0; i < 3000; i++)
		d.launch("a_kernel");
	return NULL;
}

static void has_threads(void)
{
	pthread_t threads[4];

	inject();
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, launches, NULL);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

/* ---- cases ---- */

static void exit_writes_what_there_is(void **state)
{
	uint64_t before = now_ns();
	char path[256];
	struct seen n;

	assert_int_equal(run(some_work, NULL, path, sizeof(path)), 0);
	n = read_file(path, "times are of CLOCK_MONOTONIC");
	assert_true(n.clean && n.has_text);
	assert_true(n.kernels == 5 && n.named == 5 && n.copies == 1 && n.sets == 1 && n.calls == 7);
	assert_true(n.first_ns >= before && n.last_ns <= now_ns());
	assert_int_equal(n.thread, strtoul(strrchr(path, '.') + 1, NULL, 10)); /* the number of the main thread */
	assert_int_equal(n.lost, 0);
}

static void full_buffers_are_written(void **state)
{
	char path[256];
	struct seen n;

	assert_int_equal(run(much_work, NULL, path, sizeof(path)), 0);
	n = read_file(path, "");
	assert_true(n.clean && n.kernels == 20000 && n.calls == 20000);
}

static void threads_may_deliver_at_once(void **state)
{
	char path[256];

	assert_int_equal(run(has_threads, NULL, path, sizeof(path)), 0);
	assert_int_equal(read_file(path, "").kernels, 12000);
}

static void a_kill_loses_what_was_not_delivered(void **state)
{
	char path[256];
	struct seen n;

	assert_int_equal(run(killed, NULL, path, sizeof(path)), SIGKILL);
	n = read_file(path, "");
	assert_true(n.kernels == 5 && n.calls == 7 && !n.clean);
}

static void leaving_without_exit_handlers_writes_all(void **state)
{
	char path[256];
	struct seen n;

	assert_int_equal(run(leaves, NULL, path, sizeof(path)), 0);
	n = read_file(path, "");
	assert_true(n.kernels == 5 && n.clean);
}

static void a_forked_child_leaves_the_file_alone(void **state)
{
	char path[256];
	struct seen n;

	assert_int_equal(run(forks, NULL, path, sizeof(path)), 0);
	n = read_file(path, "");
	assert_true(n.clean && n.kernels == 6 && n.named == 6);
}

static void external_ids_are_the_times_of_ops(void **state)
{
	char path[256];
	struct seen n;

	assert_int_equal(run(asks_in_ops, NULL, path, sizeof(path)), 0);
	n = read_file(path, "");
	assert_true(n.links == 1 && n.link == 1100 && n.kernels == 3);
}

static void kinds_are_enabled_once_at_the_start(void **state)
{
	static const char *const settings[] = { "TERRA_GPU_KINDS", "kernels,memcpy", NULL };
	char path[256];
	struct seen n;

	assert_int_equal(run(enables_two, settings, path, sizeof(path)), 0);
	n = read_file(path, "kernels,memcpy");
	assert_true(n.kernels == 5 && n.copies == 1 && !n.sets && !n.calls && n.has_text);
}

static void other_clocks_are_converted(void **state)
{
	static const char *const settings[] = { "DOUBLE_NO_CLOCK", "1", NULL };
	uint64_t before = now_ns();
	char path[256];
	struct seen n;

	assert_int_equal(run(some_work, settings, path, sizeof(path)), 0);
	n = read_file(path, "converted to CLOCK_MONOTONIC by an offset");
	assert_true(n.has_text);
	/* As near as two clocks can be read on a busy machine. */
	assert_true(n.first_ns + 10000000 >= before && n.last_ns <= now_ns() + 10000000);
	assert_true(read_file(path, "away from CLOCK_MONOTONIC").has_text);
}

static void records_of_a_later_cupti_are_counted(void **state)
{
	static const char *const settings[] = { "DOUBLE_LONG_KERNELS", "1", NULL };
	char path[256];
	struct seen n;

	assert_int_equal(run(asks_in_ops, settings, path, sizeof(path)), 0);
	n = read_file(path, "kernel records of this CUPTI are");
	assert_true(n.has_text && !n.kernels && n.calls == 3);
	assert_int_equal(n.lost, 3);
	assert_true(read_file(path, "3 kernel records have a layout that is not known").has_text);
}

static void what_cupti_loses_is_said(void **state)
{
	static const char *const drops[] = { "DOUBLE_DROPS", "17", NULL }, *const keeps[] = { "DOUBLE_KEEPS", "1", NULL };
	char path[256];
	struct seen n;

	assert_int_equal(run(some_work, drops, path, sizeof(path)), 0);
	n = read_file(path, "CUPTI dropped 17 records");
	assert_true(n.has_text && n.lost == 17);
	assert_int_equal(run(some_work, keeps, path, sizeof(path)), 0);
	n = read_file(path, "did not give back 1 buffers");
	assert_true(n.has_text && !n.kernels && n.clean);
}

static void without_a_file_nothing_happens(void **state)
{
	static const char *const settings[] = { "TERRA_GPU_FILE", "", NULL };
	char path[256];

	assert_int_equal(run(only_loads, settings, path, sizeof(path)), 0);
	assert_int_not_equal(access(path, F_OK), 0);
}

static void wrong_words_are_a_note(void **state)
{
	static const char *const settings[] = { "TERRA_GPU_KINDS", "kernels,all", NULL };
	char path[256];
	struct seen n;

	assert_int_equal(run(some_work, settings, path, sizeof(path)), 0);
	n = read_file(path, "no such kind: all");
	assert_true(n.has_text && n.clean && !n.kernels);
}

static void no_cupti_is_a_note(void **state)
{
	static const char *const settings[] = { "TERRA_GPU_CUPTI", "/nowhere/libcupti.so", NULL };
	char path[256];
	struct seen n;

	assert_int_equal(run(only_loads, settings, path, sizeof(path)), 0);
	n = read_file(path, "no GPU activity: CUPTI cannot be opened: /nowhere/libcupti.so");
	assert_true(n.has_text && n.clean);
}

static void a_file_that_cannot_be_made_harms_nothing(void **state)
{
	static const char *const settings[] = { "TERRA_GPU_FILE", "/nowhere/out", NULL };
	char path[256];

	assert_int_equal(run(only_loads, settings, path, sizeof(path)), 0);
}

/* Executed: the real CUPTI, which has no driver here. With one it just starts. */
static void the_real_cupti_without_a_driver_is_a_note(void **state)
{
	static const char *const settings[] = { "TERRA_GPU_CUPTI", REAL_CUPTI, NULL };
	char path[256];
	struct seen n;

	assert_int_equal(run(only_loads, settings, path, sizeof(path)), 0);
	n = read_file(path, access("/dev/nvidiactl", F_OK) ? "CUPTI records no activity of kind kernel" : "GPU activity by");
	assert_true(n.has_text && n.clean);
}

/* ---- a process that runs already ---- */

static char said[512];

static void say(const char *text)
{
	snprintf(said, sizeof(said), "%s", text);
}

/* The program again, which had the library from its start: the environment of a process is that of its exec. */
static pid_t start_running(int *ready)
{
	char file[256];
	int fds[2];
	pid_t pid;

	snprintf(file, sizeof(file), "%s", sample_tmp("live.gpu"));
	assert_int_equal(pipe(fds), 0);
	pid = fork();
	if (pid == 0) {
		setenv("TERRA_GPU_FILE", file, 1);
		setenv("TERRA_GPU_CUPTI", DOUBLE, 1);
		dup2(fds[1], 1);
		execl("/proc/self/exe", "test_cupti_inject", "running", sample_tmp("libcuda.so.1"), NULL);
		_exit(99);
	}
	close(fds[1]);
	*ready = fds[0];
	return pid;
}

static int run_on(const char *driver)
{
	if (!dlopen(driver, RTLD_NOW))
		return 98;
	some_work();
	d.deliver();
	if (write(1, "r", 1) != 1)
		return 97;
	pause();
	return 0;
}

static void write_trace_of(pid_t pid, const char *path)
{
	struct terra_trace_info info = *sample_info();
	struct terra_trace_writer *writer;
	struct terra_event note = { .type = TERRA_EVENT_NOTE, .text = "begin", .time_ns = now_ns() - 60000000000u };

	info.pid = (uint32_t)pid;
	assert_int_equal(terra_trace_create(path, &info, &writer, NULL, 0), 0);
	assert_int_equal(terra_trace_write(writer, &note), 0);
	note.time_ns = now_ns();
	assert_int_equal(terra_trace_write(writer, &note), 0);
	assert_int_equal(terra_trace_finish(writer), 0);
}

/* Kernels and notes of a trace. */
static unsigned int kernels_in(const char *path, const char *text, bool *has_text)
{
	struct terra_trace_reader *reader;
	struct terra_event event;
	unsigned int kernels = 0;

	*has_text = false;
	assert_int_equal(terra_trace_open(path, &reader, NULL, 0), 0);
	while (terra_trace_next(reader, &event) == 1) {
		kernels += event.type == TERRA_EVENT_GPU && event.gpu->kind == TERRA_GPU_KERNEL;
		*has_text |= event.type == TERRA_EVENT_NOTE && strstr(event.text, text);
	}
	assert_true(terra_trace_ended_cleanly(reader));
	terra_trace_close(reader);
	return kernels;
}

static void a_process_without_cuda_has_no_note(const char *trace)
{
	struct sample_bytes before = sample_read_file(trace), after;

	terra_gpu_attached(getpid(), trace, say);
	after = sample_read_file(trace);
	assert_int_equal(after.size, before.size);
	free(before.data);
	free(after.data);
}

static void a_running_process_has_activity_if_it_was_started_so(void **state)
{
	struct sample_bytes library = sample_read_file(DOUBLE);
	const char *trace = sample_tmp("live.terra");
	char ready_byte;
	bool has_text;
	void *driver;
	int ready;
	pid_t pid;

	said[0] = 0;
	write_trace_of(getpid(), trace);
	a_process_without_cuda_has_no_note(trace);
	sample_write_file(sample_tmp("libcuda.so.1"), library.data, library.size); /* any library of that name */
	driver = dlopen(sample_tmp("libcuda.so.1"), RTLD_NOW);
	assert_non_null(driver);
	terra_gpu_attached(getpid(), trace, say);
	assert_int_equal(kernels_in(trace, "started without libterra_cupti.so", &has_text), 0);
	assert_true(has_text);
	dlclose(driver);

	pid = start_running(&ready);
	assert_int_equal(read(ready, &ready_byte, 1), 1);
	write_trace_of(pid, trace);
	terra_gpu_attached(pid, trace, say);
	assert_int_equal(kernels_in(trace, "about the last second", &has_text), 5);
	assert_true(has_text);
	assert_string_equal(said, "");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(ready);
	free(library.data);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(exit_writes_what_there_is),
		cmocka_unit_test(full_buffers_are_written),
		cmocka_unit_test(threads_may_deliver_at_once),
		cmocka_unit_test(a_kill_loses_what_was_not_delivered),
		cmocka_unit_test(leaving_without_exit_handlers_writes_all),
		cmocka_unit_test(a_forked_child_leaves_the_file_alone),
		cmocka_unit_test(external_ids_are_the_times_of_ops),
		cmocka_unit_test(kinds_are_enabled_once_at_the_start),
		cmocka_unit_test(other_clocks_are_converted),
		cmocka_unit_test(records_of_a_later_cupti_are_counted),
		cmocka_unit_test(what_cupti_loses_is_said),
		cmocka_unit_test(without_a_file_nothing_happens),
		cmocka_unit_test(wrong_words_are_a_note),
		cmocka_unit_test(no_cupti_is_a_note),
		cmocka_unit_test(a_file_that_cannot_be_made_harms_nothing),
		cmocka_unit_test(the_real_cupti_without_a_driver_is_a_note),
		cmocka_unit_test(a_running_process_has_activity_if_it_was_started_so),
	};

	if (argc == 3)
		return run_on(argv[2]);

	return cmocka_run_group_tests(tests, sample_tmp_create, sample_tmp_remove);
}
