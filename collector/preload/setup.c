/* setup.c - when recording begins and ends, and what it is asked for.
 *
 * TERRA_RECORD_FILE         the trace to write; without it the library does nothing. A file that exists is not
 *                           overwritten: further processes of the program write FILE.<pid>.
 * TERRA_RECORD_LEVELS       "ops" (default), "call", "redispatch", or several with commas; as terra-trace's --levels
 * TERRA_RECORD_STACKS       0: no Python call stacks
 * TERRA_RECORD_OPS          patterns of operators, with commas (all by default)
 * TERRA_RECORD_CHILDREN     0: only the first process is recorded, whose id is then put into TERRA_RECORD_PID
 * TERRA_RECORD_START_AFTER  begin behind so many iterations
 * TERRA_RECORD_ITERATIONS   stop after so many iterations
 * TERRA_RECORD_DURATION     stop after so many nanoseconds
 * TERRA_RECORD_MAX_SIZE     stop before the file has more bytes
 * TERRA_RECORD_FAILURES     the abstract socket that hears of a recording that failed
 * TERRA_RECORD_FLIGHT       keep the last so many nanoseconds, in MAX_SIZE bytes of memory, and write them at the end
 */
#include "collector/preload/preload.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "collector/gpu_hooks.h"
#include "collector/op_filter.h"
#include "collector/preload_session.h"
#include "probes/catches.h"
#include "probes/functions.h"
#include "probes/got.h"

#define DEADLINE_SECONDS 30

static struct {
	char file[4096];
	char *ops;
	char failures[16];
	struct terra_limits limits;
	bool children;
	bool wanted;
} options;

static struct {
	struct got_patch *patches;
	uint32_t n;         /* ops */
	uint32_t n_patches; /* ops, functions, then where handlers of exceptions begin */
	struct got_watch watch;
	bool busy; /* a thread is looking for new libraries */
	bool seen; /* libtorch */
	int python_attempts;
	void (*next_abort)(void);
} setup;

static bool has_word(const char *list, const char *word)
{
	const char *at = strstr(list, word);
	size_t n = strlen(word);

	return at && (at == list || at[-1] == ',') && (at[n] == 0 || at[n] == ',');
}

/* The program may have changed its folder by the time torch is loaded. Room is left for ".<pid>". */
static int set_file(const char *file)
{
	char folder[sizeof(options.file)];
	int n;

	if (file[0] == '/')
		n = snprintf(options.file, sizeof(options.file), "%s", file);
	else if (getcwd(folder, sizeof(folder)))
		n = snprintf(options.file, sizeof(options.file), "%s/%s", folder, file);
	else
		return -errno;
	return n < (int)sizeof(options.file) - 16 ? 0 : -ENAMETOOLONG;
}

static uint32_t parse_levels(const char *list)
{
	return (has_word(list, "ops") ? TERRA_LEVELS_OPS : 0) | (has_word(list, "call") ? 1u << TERRA_LEVEL_CALL : 0) |
	       (has_word(list, "redispatch") ? 1u << TERRA_LEVEL_REDISPATCH : 0);
}

static uint64_t number(const char *name)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : 0;
}

static void read_limits(struct terra_limits *limits)
{
	*limits = (struct terra_limits){ .start_after = number("TERRA_RECORD_START_AFTER"),
					 .iterations = number("TERRA_RECORD_ITERATIONS"),
					 .duration_ns = number("TERRA_RECORD_DURATION"),
					 .max_bytes = number("TERRA_RECORD_MAX_SIZE"),
					 .flight_ns = number("TERRA_RECORD_FLIGHT") };
}

/* The first process keeps its id through any number of exec. */
static bool is_first_process(void)
{
	char pid[16];

	if (getenv("TERRA_RECORD_PID"))
		return number("TERRA_RECORD_PID") == (uint64_t)getpid();
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	return setenv("TERRA_RECORD_PID", pid, 1) == 0;
}

static void read_options(void)
{
	const char *file = getenv("TERRA_RECORD_FILE"), *levels = getenv("TERRA_RECORD_LEVELS");
	const char *stacks = getenv("TERRA_RECORD_STACKS"), *children = getenv("TERRA_RECORD_CHILDREN");
	const char *ops = getenv("TERRA_RECORD_OPS"), *failures = getenv("TERRA_RECORD_FAILURES");

	if (!file || !file[0] || getauxval(AT_SECURE) || set_file(file))
		return;
	options.children = !children || strcmp(children, "0") != 0;
	if (!options.children && !is_first_process())
		return;
	record_state.levels = levels && levels[0] ? parse_levels(levels) : TERRA_LEVELS_OPS;
	record_state.stacks = !stacks || strcmp(stacks, "0") != 0;
	options.ops = ops ? strdup(ops) : NULL;
	snprintf(options.failures, sizeof(options.failures), "%s", failures ? failures : "");
	read_limits(&options.limits);
	options.wanted = true;
}

static int find_libtorch(struct dl_phdr_info *info, size_t size, void *path)
{
	const char *slash = strrchr(info->dlpi_name, '/');

	if (!slash || strcmp(slash, "/libtorch_cpu.so") != 0 || strlen(info->dlpi_name) >= 4096)
		return 0;
	strcpy(path, info->dlpi_name);
	return 1;
}

uint32_t record_openmp_threads(void)
{
	void *openmp = dlopen("libgomp.so.1", RTLD_NOLOAD | RTLD_LAZY);
	int (*max_threads)(void) = openmp ? (int (*)(void))dlsym(openmp, "omp_get_max_threads") : NULL;
	int n = max_threads ? max_threads() : 0;

	if (openmp)
		dlclose(openmp);
	return n > 0 ? (uint32_t)n : 0;
}

/* Bytes of arguments on the stack; the end of the last one. */
static uint32_t stack_bytes(const struct terra_op *op)
{
	uint32_t end = 0;

	for (unsigned int i = 0; i < op->n_args; i++)
		if (op->args[i].place == TERRA_PLACE_STACK && op->args[i].offset + 8u * op->args[i].words > end)
			end = op->args[i].offset + 8u * op->args[i].words;
	return (end + 15) & ~15u;
}

static void describe_op(uint32_t i, void *library, uint8_t *stubs, const uint8_t *wanted)
{
	const struct terra_op *op = &record_state.table->ops[i];
	struct record_target *target = &record_state.targets[i];

	*target = (struct record_target){ .original = dlsym(library, op->mangled), .stack_bytes = stack_bytes(op),
					  .enabled = wanted ? wanted[i] : terra_op_chosen(op, record_state.levels),
					  .jump = !op->complete };
	record_state.layouts[i] = terra_op_layout(op, op->complete);
	setup.patches[i] = (struct got_patch){ .symbol = op->mangled, .original = target->original };
	if (target->original && target->enabled)
		setup.patches[i].replacement = stubs + (size_t)i * RECORD_STUB_SIZE;
}

/* Only what is mapped by now, and exported, can be called through a slot that is redirected. Operators are left out: the
 * words that lead to a name are not there for all of them, and here a wrong step would be the program's end. */
static void describe_function(uint32_t i, const char *libtorch, uint8_t *stubs)
{
	const struct terra_function *function = &terra_functions[i];
	uint32_t index = record_state.table->n_ops + i;
	char path[4096];
	void *library = NULL;

	if (!terra_functions_library(libtorch, function->library, path, sizeof(path)))
		library = dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
	record_state.targets[index] = (struct record_target){ .jump = 1, .enabled = 1 };
	setup.patches[index] = (struct got_patch){ .symbol = function->symbol };
	if (!library || function->form == TERRA_FUNCTION_OPERATORS)
		return;
	record_state.targets[index].original = dlsym(library, function->symbol);
	setup.patches[index].original = record_state.targets[index].original;
	if (record_state.targets[index].original)
		setup.patches[index].replacement = stubs + (size_t)index * RECORD_STUB_SIZE;
}

/* The function that libtorch's handlers call; others of that name are other C++ libraries'. */
static void describe_catches(void *libtorch, uint8_t *stubs)
{
	uint32_t index = record_state.catch_index;
	void *original = dlsym(libtorch, TERRA_BEGIN_CATCH);

	record_state.targets[index] = (struct record_target){ .original = original, .jump = 1, .enabled = 1 };
	setup.patches[index] = (struct got_patch){ .symbol = TERRA_BEGIN_CATCH, .original = original, .exact = true };
	if (original)
		setup.patches[index].replacement = stubs + (size_t)index * RECORD_STUB_SIZE;
}

static int describe_ops(const char *path, char *err, size_t err_size)
{
	void *library = dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
	uint32_t n = record_state.table->n_ops, all = n + TERRA_N_FUNCTIONS + 1;
	uint8_t *stubs = record_make_stubs(all), *wanted = NULL;
	int code = options.ops ? terra_op_filter(record_state.table, options.ops, record_state.levels, &wanted, err, err_size) : 0;

	if (code)
		return code;
	record_state.targets = calloc(all, sizeof(*record_state.targets));
	record_state.layouts = calloc(n, sizeof(*record_state.layouts));
	setup.patches = calloc(all, sizeof(*setup.patches));
	if (!library || !stubs || !record_state.targets || !record_state.layouts || !setup.patches) {
		snprintf(err, err_size, "%s", !stubs ? "no executable memory can be had" : "out of memory");
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < n; i++)
		describe_op(i, library, stubs, wanted);
	free(wanted);
	for (uint32_t i = 0; i < TERRA_N_FUNCTIONS; i++)
		describe_function(i, path, stubs);
	record_state.catch_index = n + TERRA_N_FUNCTIONS;
	describe_catches(library, stubs);
	setup.n = n;
	setup.n_patches = all;
	record_storage_open(path, library);
	return 0;
}

/* FILE, or FILE.<pid> when there is one already; created empty so that no other process takes it. */
static int claim_file(char *path, size_t size, bool *further, char *err, size_t err_size)
{
	int fd = open(options.file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);

	snprintf(path, size, "%s", options.file);
	*further = fd < 0 && errno == EEXIST;
	if (*further) {
		snprintf(path, size, "%s.%d", options.file, (int)getpid());
		fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	}
	if (fd < 0) {
		snprintf(err, err_size, "cannot write %.*s: %s", (int)err_size - 128, path, strerror(errno));
		return -errno;
	}
	close(fd);
	return 0;
}

static int open_file(char *err, size_t err_size)
{
	char path[sizeof(options.file) + 16];
	bool further;
	int code = claim_file(path, sizeof(path), &further, err, err_size);

	if (!code)
		code = record_drain_open(path, further, &options.limits, err, err_size);
	record_state.owner = (uint32_t)getpid();
	return code;
}

static void before_fork(void)
{
	record_drain_lock();
}

static void after_fork_parent(void)
{
	record_drain_unlock();
}

/* The file is the parent's; a child of its own begins with its first op. */
static void after_fork_child(void)
{
	record_drain_forget();
	record_rings_forked();
	if (options.children)
		record_state.forked = record_state.active;
	else
		__atomic_store_n(&record_state.active, false, __ATOMIC_RELEASE);
	record_drain_unlock();
}

static bool is_unseen(uint32_t i)
{
	return setup.patches[i].replacement && !setup.patches[i].n_slots;
}

/* By name, in as many notes as it takes. */
static void note_unseen(void)
{
	static const char beginning[] = "not seen, as no library has a call slot for them:";
	char text[2048];
	size_t n = 0;

	for (uint32_t i = 0; i < setup.n; i++) {
		const struct terra_op *op = &record_state.table->ops[i];
		char name[256];
		size_t size;

		if (!is_unseen(i))
			continue;
		size = (size_t)snprintf(name, sizeof(name), " %s%s%s%s", op->name, op->overload[0] ? "." : "", op->overload,
					op->level == TERRA_LEVEL_CALL ? "/call" : "/redispatch");
		if (size >= sizeof(name))
			continue;
		if (n + size >= sizeof(text) - sizeof(beginning)) {
			record_drain_note(text);
			n = 0;
		}
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s", n ? "" : beginning, name);
	}
	if (n)
		record_drain_note(text);
}

static void note_missing_fields(void)
{
	char text[512];

	if (terra_offsets_remark(&record_state.offsets, text, sizeof(text)))
		record_drain_note(text);
}

/* What no call slot leads to. Called after the slots were written. */
static void note_functions(void)
{
	uint8_t seen[TERRA_N_FUNCTIONS];
	char gap[384], text[512];

	for (uint32_t i = 0; i < TERRA_N_FUNCTIONS; i++)
		seen[i] = setup.patches[setup.n + i].n_slots	     ? TERRA_FUNCTION_SEEN
			  : record_state.targets[setup.n + i].original ? TERRA_FUNCTION_UNSEEN
								       : TERRA_FUNCTION_ABSENT;
	terra_functions_gap(seen, gap, sizeof(gap));
	snprintf(text, sizeof(text), "beside the ops not seen, or not always: %s", gap);
	if (gap[0])
		record_drain_note(text);
}

static void note_openings(void)
{
	char text[256];
	uint32_t without_slot = 0, jumps = 0;

	for (uint32_t i = 0; i < setup.n; i++) {
		without_slot += is_unseen(i);
		jumps += record_state.targets[i].jump;
	}
	snprintf(text, sizeof(text), "%u of %u entry points have no call slot and are not seen; of %u only the enter is",
		 without_slot, setup.n, jumps);
	if (without_slot || jumps)
		record_drain_note(text);
	record_drain_note("collectives (c10d) have no call slots and are not seen by this backend");
	note_unseen();
}

static int begin(char *err, size_t err_size)
{
	char path[4096];
	int code;

	if (!dl_iterate_phdr(find_libtorch, path)) {
		snprintf(err, err_size, "c10 is loaded, but libtorch_cpu.so is not");
		return -ENOENT;
	}
	code = terra_op_table_load(path, true, &record_state.table, err, err_size);
	if (!code)
		code = terra_offsets_load(path, true, &record_state.offsets, err, err_size);
	record_state.images = terra_images_of(&record_state.offsets);
	if (!code)
		code = describe_ops(path, err, err_size);
	if (!code)
		code = open_file(err, err_size);
	if (code)
		return code;
	pthread_atfork(before_fork, after_fork_parent, after_fork_child);
	code = got_patch_new_libraries(setup.patches, setup.n_patches, NULL, &setup.watch);
	if (code < 0)
		snprintf(err, err_size, "cannot redirect calls: %s", strerror(-code));
	return code < 0 ? code : 0;
}

/* What a trace does not have, whichever process it is of. */
static void note_gaps(void)
{
	note_openings();
	note_functions();
	if (!setup.patches[record_state.catch_index].n_slots)
		record_drain_note(TERRA_CATCHES_GAP);
	note_missing_fields();
}

void record_failed(const char *format, ...)
{
	va_list arguments;
	char text[1024];

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	fprintf(stderr, "terra: %s\n", text);
	terra_preload_tell_failure(options.failures);
}

void record_libtorch_seen(void)
{
	char err[512] = "";
	int saved_errno = errno;

	if (!options.wanted || __atomic_exchange_n(&setup.seen, true, __ATOMIC_ACQ_REL))
		return;
	if (begin(err, sizeof(err)) == 0) {
		note_gaps();
		__atomic_store_n(&record_state.active, true, __ATOMIC_RELEASE);
	} else {
		record_failed("not recording: %s", err);
	}
	errno = saved_errno;
}

void record_begin_child(void)
{
	char err[512] = "";

	if (!__atomic_exchange_n(&record_state.forked, false, __ATOMIC_ACQ_REL))
		return;
	record_drain_lock();
	if (open_file(err, sizeof(err))) {
		__atomic_store_n(&record_state.active, false, __ATOMIC_RELEASE);
		record_failed("not recording process %d: %s", (int)getpid(), err);
	}
	record_drain_unlock();
	note_gaps();
}

/* The interpreter can only be checked once it runs code; a program without one is not asked for ever. */
static void look_for_python(void)
{
	if (!record_state.stacks || record_state.have_layout || setup.python_attempts >= 64)
		return;
	setup.python_attempts++;
	if (pystack_layout_load(0, &record_state.layout, NULL, 0) == 0)
		__atomic_store_n(&record_state.have_layout, true, __ATOMIC_RELEASE);
}

void record_look_for_libraries(void)
{
	if (__atomic_exchange_n(&setup.busy, true, __ATOMIC_ACQUIRE))
		return;
	got_patch_new_libraries(setup.patches, setup.n_patches, NULL, &setup.watch);
	look_for_python();
	__atomic_store_n(&setup.busy, false, __ATOMIC_RELEASE);
}

void record_stop(void)
{
	if (__atomic_exchange_n(&record_state.active, false, __ATOMIC_ACQ_REL))
		got_unpatch(setup.patches, setup.n_patches);
}

__attribute__((constructor)) static void record_init(void)
{
	setup.next_abort = (void (*)(void))dlsym(RTLD_NEXT, "abort");
	read_options();
}

__attribute__((destructor)) static void record_end(void)
{
	__atomic_store_n(&record_state.active, false, __ATOMIC_RELEASE);
	record_drain_close();
}

/* Who ends the process may be a signal's handler that has interrupted malloc, or us: what is needed for a whole trace then never
 * comes. The kernel does, with the signal, and the process ends as it wanted to. */
static bool set_deadline(struct sigevent *event)
{
	struct itimerspec when = { .it_value = { .tv_sec = DEADLINE_SECONDS } };
	int timer; /* as the kernel has it */

	return !syscall(SYS_timer_create, CLOCK_MONOTONIC, event, &timer) && !syscall(SYS_timer_settime, timer, 0, &when, NULL);
}

static int exit_status;

static void out_of_time(int number)
{
	for (;;)
		syscall(SYS_exit_group, exit_status);
}

static void set_exit_deadline(int status)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMAX };
	struct sigaction action = { .sa_handler = out_of_time };
	sigset_t set;

	event._sigev_un._tid = gettid();
	exit_status = status;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMAX);
	if (!sigaction(SIGRTMAX, &action, NULL) && !pthread_sigmask(SIG_UNBLOCK, &set, NULL))
		set_deadline(&event);
}

static void tell_gpu_recorder(void)
{
	void (*leaves)(void) = __atomic_load_n(&terra_record_gpu.leave, __ATOMIC_ACQUIRE);

	if (leaves)
		leaves();
}

/* Programs that leave without their exit handlers still leave a whole trace. A vfork child shares our memory but has
 * another pid: record_drain_close sees that. */
static void leave(int status) __attribute__((noreturn));
static void leave(int status)
{
	if (record_state.owner == (uint32_t)getpid()) {
		set_exit_deadline(status);
		record_end();
	}
	tell_gpu_recorder();
	for (;;)
		syscall(SYS_exit_group, status);
}

__attribute__((visibility("default"))) void _exit(int status)
{
	leave(status);
}

__attribute__((visibility("default"))) void _Exit(int status)
{
	leave(status);
}

/* Those by which programs end themselves. One that says that memory is damaged is not among them, nor one that is to leave no time. */
static bool ends_programs(int signal)
{
	static const int signals[] = { SIGHUP, SIGINT, SIGQUIT, SIGABRT, SIGUSR1, SIGUSR2, SIGPIPE, SIGALRM, SIGTERM };

	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		if (signals[i] == signal)
			return true;
	return false;
}

/* Whether the signal is the end of this process, at once. The first process of a container (1) is spared by the kernel. */
static bool is_own_end(pid_t pid, int signal)
{
	struct sigaction action;
	sigset_t blocked;

	if (record_state.owner != (uint32_t)getpid() || pid != getpid() || pid == 1 || !ends_programs(signal))
		return false;
	return !sigaction(signal, NULL, &action) && action.sa_handler == SIG_DFL &&
	       !pthread_sigmask(SIG_BLOCK, NULL, &blocked) && !sigismember(&blocked, signal);
}

static void before_signal(pid_t pid, int signal)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal };
	int saved_errno = errno;

	if (is_own_end(pid, signal) && set_deadline(&event)) {
		record_end();
		tell_gpu_recorder();
	}
	errno = saved_errno;
}

/* After ^C, Python ends in order and then by the signal that it was sent, so that a shell sees it. */
__attribute__((visibility("default"))) int kill(pid_t pid, int signal)
{
	before_signal(pid, signal);
	return (int)syscall(SYS_kill, pid, signal);
}

__attribute__((visibility("default"))) int raise(int signal)
{
	before_signal(getpid(), signal);
	return (int)syscall(SYS_tgkill, getpid(), gettid(), signal);
}

/* The C library's own raises, but not by our function. */
__attribute__((visibility("default"), noreturn)) void abort(void)
{
	before_signal(getpid(), SIGABRT);
	if (setup.next_abort)
		setup.next_abort();
	for (;;)
		syscall(SYS_exit_group, 127);
}
