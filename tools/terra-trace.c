/* terra-trace - records the tensor operators that a program runs. */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "collector/bpf/backend.h"
#include "collector/bpf/session.h"
#include "collector/gpu_session.h"
#include "collector/launch.h"
#include "collector/machine.h"
#include "collector/preload_session.h"
#include "collector/process.h"
#include "collector/report_json.h"
#include "collector/target.h"
#include "collector/trace.h"
#include "probes/list_ops.h"
#include "tools/trace_check.h"
#include "tools/trace_options.h"

/* As env(1), timeout(1) and their like: our own failures, and commands that cannot be run. */
#define EXIT_NOTHING 1
#define EXIT_OURS 125
#define EXIT_NOT_EXECUTABLE 126
#define EXIT_NOT_FOUND 127

#define STEP_MS 4
#define DUMP_SIGNAL SIGUSR2

/* "train" for a command; of a process that runs, the same by its command line. malloc'ed, NULL when out of memory. */
static char *default_name(const struct options *options)
{
	char line[4096], *words[64];
	size_t n = 0;

	if (!options->pid)
		return terra_target_name(options->argv);
	terra_machine_command((int)options->pid, line, sizeof(line));
	for (char *rest = line, *word; n < 63 && (word = strsep(&rest, " "));)
		words[n++] = word;
	words[n] = NULL;
	return words[0][0] ? terra_target_name(words) : strdup("process");
}

static char *default_output(const struct options *options)
{
	char *name = default_name(options), *file = NULL;

	if (!name || asprintf(&file, "%s.terra", name) < 0)
		file = NULL;
	free(name);
	return file;
}

/* The program may change its folder; the trace stays where it was asked for. */
static char *absolute(const char *path)
{
	char *folder, *file = NULL;

	if (path[0] == '/')
		return strdup(path);
	folder = getcwd(NULL, 0);
	if (!folder || asprintf(&file, "%s/%s", folder, path) < 0)
		file = NULL;
	free(folder);
	return file;
}

struct summary {
	uint32_t traces;
	uint64_t events, lost, iterations;
	uint64_t traps; /* bpf: probes that fired */
	const char *stopped; /* by which option, the program still running; NULL: it was not */
	bool failed;
};

/* "1,234,567" */
static const char *grouped(uint64_t n, char out[32])
{
	char digits[32];
	int length = snprintf(digits, sizeof(digits), "%llu", (unsigned long long)n), at = 0;

	for (int i = 0; i < length; i++) {
		if (i && (length - i) % 3 == 0)
			out[at++] = ',';
		out[at++] = digits[i];
	}
	out[at] = 0;
	return out;
}

static uint64_t size_of(const char *path)
{
	struct stat file;

	return stat(path, &file) ? 0 : (uint64_t)file.st_size;
}

static void print_json(const struct options *options, const struct summary *summary)
{
	struct json json = { .out = stderr };
	const struct {
		const char *key;
		uint64_t n;
	} numbers[] = { { "traces", summary->traces }, { "events", summary->events }, { "lost", summary->lost },
			{ "traps", summary->traps },
			{ "iterations", summary->iterations }, { "bytes", size_of(options->output) } };

	json_open(&json, '{');
	json_key(&json, "file");
	json_string(&json, summary->traces ? options->output : NULL);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
		json_key(&json, numbers[i].key);
		json_u64(&json, numbers[i].n);
	}
	json_key(&json, "stopped");
	json_string(&json, summary->stopped);
	json_key(&json, "failed");
	json_bool(&json, summary->failed);
	json_close(&json, '}');
	fputc('\n', stderr);
}

static void print_summary(const struct options *options, const struct summary *summary)
{
	char events[32], lost[32], number[32], iterations[64] = "", traps[64] = "", others[4200] = "";

	if (!summary->traces && summary->failed)
		return;
	if (!summary->traces) {
		say(options->pid ? "no trace: the process used no PyTorch" :
		    options->children ?
				   "no trace: the command used no PyTorch" :
				   "no trace: the command itself used no PyTorch (what other processes do is not recorded)");
		return;
	}
	if (summary->iterations && summary->stopped)
		snprintf(iterations, sizeof(iterations), ", %llu iterations", (unsigned long long)summary->iterations);
	if (summary->traces > 1)
		snprintf(others, sizeof(others), " and %u more (%s.index lists them)", summary->traces - 1,
			 options->output);
	if (summary->traps)
		snprintf(traps, sizeof(traps), ", %s traps", grouped(summary->traps, number));
	say("%s%s: %s events%s, %s lost%s, %.1f MB", options->output, others, grouped(summary->events, events), iterations,
	    grouped(summary->lost, lost), traps, (double)size_of(options->output) / 1e6);
}

/* A line that is rewritten in place is only for a terminal that the program does not print to. */
static bool wants_progress(const struct options *options)
{
	struct stat out, err;

	if (options->quiet || !isatty(2))
		return false;
	return options->pid || !isatty(1) || fstat(1, &out) || fstat(2, &err) || out.st_rdev != err.st_rdev;
}

static void show_progress(const struct terra_session_result *result)
{
	static struct timespec last;
	struct timespec now;
	char text[32];

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (now.tv_sec == last.tv_sec)
		return;
	last = now;
	if (result->waiting)
		fprintf(stderr, "\rterra-trace: waiting for PyTorch\033[K");
	else
		fprintf(stderr, "\rterra-trace: %s events\033[K", grouped(result->events, text));
}

static void erase_progress(void)
{
	fprintf(stderr, "\r\033[K");
}

/* Releases the program; a command that cannot be run ends us as a shell would say it. */
static void release(struct terra_launch *launch, const struct options *options)
{
	int error = terra_launch_release(launch);

	if (!error)
		return;
	say("cannot run %s: %s", options->argv[0], strerror(-error));
	exit(error == -ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

static char *index_path(const struct options *options)
{
	char *path;

	return asprintf(&path, "%s.index", options->output) < 0 ? NULL : path;
}

/* One trace needs no list. */
static void write_index(const struct options *options, struct terra_index *index)
{
	char *path = index->n > 1 ? index_path(options) : NULL;
	int error = path ? terra_index_write(index, path) : 0;

	if (error)
		say("cannot write %s: %s", path, strerror(-error));
	free(path);
}

/* False when a recording failed. */
static bool step(const struct options *options, struct terra_session *session, bool progress)
{
	char err[1024];
	int error = terra_session_step(session, err, sizeof(err));

	if (progress)
		show_progress(terra_session_result(session));
	if (!error)
		return true;
	if (progress)
		erase_progress();
	say("recording ended early: %s", err);
	return false;
}

static void write_kept(const struct options *options, struct terra_session *session)
{
	char err[1024];

	if (!options->limits.flight_ns)
		return;
	if (terra_session_write_kept(session, err, sizeof(err)))
		say("%s", err);
	else if (!options->quiet)
		say("%s: the last %.3g seconds are written", options->output, (double)options->limits.flight_ns / 1e9);
}

static bool record_launched(const struct options *options, struct terra_session *session, struct terra_launch *launch)
{
	bool progress = wants_progress(options), ok = true;

	launch->own_signal = options->limits.flight_ns ? DUMP_SIGNAL : 0;
	launch->wake_fd = terra_session_fd(session);
	while (!launch->ended && !terra_session_over(session)) {
		terra_launch_wait(launch, STEP_MS);
		ok &= step(options, session, progress);
		if (launch->own)
			write_kept(options, session);
		launch->own = 0;
	}
	if (progress)
		erase_progress();
	return ok;
}

static void finish_session(const struct options *options, struct terra_session *session, bool ok,
			   struct summary *summary)
{
	const struct terra_session_result *result = terra_session_result(session);
	char err[1024];

	if (terra_session_finish(session, err, sizeof(err)) && ok) {
		say("%s", err);
		ok = false;
	}
	*summary = (struct summary){ .traces = result->traces,
				     .events = result->events,
				     .lost = result->lost,
				     .traps = result->traps,
				     .iterations = result->iterations,
				     .stopped = result->stopped,
				     .failed = !ok };
	write_index(options, terra_session_index(session));
	terra_session_close(session);
}

static void say_text(const char *text)
{
	say("%s", text);
}

/* Before the command is started, which inherits our environment. */
static void prepare_gpu(const struct options *options)
{
	char remark[8192];
	int error = terra_gpu_prepare(options->output, options->gpu, remark, sizeof(remark));

	if (remark[0] && (error || !options->quiet))
		say("%s", remark);
	if (error)
		exit(error == -EINVAL ? 2 : EXIT_OURS);
}

/* When the program has ended. */
static void collect_gpu(const struct options *options)
{
	const struct terra_limits *limits = &options->limits;

	terra_gpu_collect(options->output, limits->start_after || limits->iterations || limits->duration_ns || limits->max_bytes,
			  say_text);
}

static void run_bpf(const struct options *options, struct terra_launch *launch, struct terra_session *session,
		    struct summary *summary)
{
	bool ok;

	release(launch, options);
	ok = record_launched(options, session, launch);
	finish_session(options, session, ok, summary);
	launch->wake_fd = -1;
	while (!launch->ended)
		terra_launch_wait(launch, -1);
	collect_gpu(options);
}

static struct terra_session_options session_options(const struct options *options)
{
	return (struct terra_session_options){
		.output = options->output,
		.library = options->library,
		.argv = options->pid ? NULL : options->argv,
		.levels = options->levels,
		.stacks = options->stacks,
		.children = options->children,
		.hold = options->hold,
		.ops = options->ops,
		.limits = options->limits,
		.ring_bytes = options->buffer_bytes,
		.use_cache = true,
	};
}

/* Starts the command held, with everything set up for it. False: this backend cannot, for `reason`. */
static bool start_bpf(const struct options *options, struct terra_launch *launch, struct terra_session **session,
		      char *reason, size_t reason_size)
{
	struct terra_session_options wanted = session_options(options);
	int error = terra_bpf_supported(reason, reason_size);

	if (error)
		return false;
	error = terra_launch_start(options->argv, NULL, launch);
	if (error) {
		snprintf(reason, reason_size, "cannot start a process: %s", strerror(-error));
		return false;
	}
	error = terra_session_open(&wanted, launch->pid, session, reason, reason_size);
	if (error)
		terra_launch_cancel(launch);
	return !error;
}

/* Signals that end an attachment, and the one that asks for what is kept. */
static int open_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, DUMP_SIGNAL);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* True when one came that ends. */
static bool take_signals(const struct options *options, struct terra_session *session, int fd)
{
	struct signalfd_siginfo info;
	bool ends = false;

	while (read(fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == DUMP_SIGNAL)
			write_kept(options, session);
		else
			ends = true;
	}
	return ends;
}

static bool record_running(const struct options *options, struct terra_session *session, int signals)
{
	struct pollfd ready[2] = { { .fd = signals, .events = POLLIN },
				   { .fd = terra_session_fd(session), .events = POLLIN } };
	bool progress = wants_progress(options), ok = true, ends = false;

	while (!ends && !terra_session_over(session)) {
		poll(ready, 2, STEP_MS);
		ok &= step(options, session, progress);
		ends = take_signals(options, session, signals);
	}
	if (progress)
		erase_progress();
	return ok;
}

static int attach(const struct options *options, struct summary *summary)
{
	struct terra_session_options wanted = session_options(options);
	struct terra_session *session;
	char reason[1024], library[4096];
	int signals;
	bool ok;

	signals = open_signals();
	if (signals < 0 || terra_session_open(&wanted, options->pid, &session, reason, sizeof(reason))) {
		say("%s", signals < 0 ? strerror(errno) : reason);
		summary->failed = true;
		return EXIT_OURS;
	}
	if (!options->quiet && terra_target_library(options->pid, library, sizeof(library)))
		say("process %d has not loaded PyTorch yet: waiting for it", options->pid);
	else if (!options->quiet)
		say("attached to process %d", options->pid);
	ok = record_running(options, session, signals);
	finish_session(options, session, ok, summary);
	if (summary->traces)
		terra_gpu_attached(options->pid, options->output, say_text);
	close(signals);
	return !ok ? EXIT_OURS : summary->traces ? 0 : EXIT_NOTHING;
}

/* Whether the last write to it is not before the recording. */
static bool is_new(const char *path, const struct timespec *since)
{
	struct stat file;

	return !stat(path, &file) && S_ISREG(file.st_mode) &&
	       (file.st_mtim.tv_sec > since->tv_sec ||
		(file.st_mtim.tv_sec == since->tv_sec && file.st_mtim.tv_nsec >= since->tv_nsec));
}

static bool add_trace(struct terra_index *index, const char *path)
{
	char err[512];
	int error = terra_index_add_trace(index, path, err, sizeof(err));

	if (error)
		say("%s", err);
	return error == 0;
}

/* Characters that glob(3) reads as patterns stand for themselves. */
static void escape(const char *path, char *out, size_t size)
{
	size_t n = 0;

	for (; *path && n + 2 < size; path++) {
		if (strchr("*?[]\\", *path))
			out[n++] = '\\';
		out[n++] = *path;
	}
	out[n] = 0;
}

/* The recorders have written FILE and FILE.PID. A single one is read for the summary only. False: one cannot be read. */
static bool find_traces(const struct options *options, const struct timespec *since, struct terra_index *index)
{
	char pattern[8300];
	glob_t found = { 0 };
	size_t others = 0;
	bool ok = true;

	escape(options->output, pattern, sizeof(pattern) - 8);
	strcat(pattern, ".[0-9]*");
	if (glob(pattern, 0, NULL, &found))
		found.gl_pathc = 0;
	for (size_t i = 0; i < found.gl_pathc; i++)
		others += is_new(found.gl_pathv[i], since);
	if (is_new(options->output, since) && (others || !options->quiet || options->json))
		ok &= add_trace(index, options->output);
	for (size_t i = 0; i < found.gl_pathc; i++)
		if (is_new(found.gl_pathv[i], since))
			ok &= add_trace(index, found.gl_pathv[i]);
	globfree(&found);
	return ok;
}

static void summarise_traces(const struct terra_index *index, struct summary *summary)
{
	summary->traces = index->n;
	for (uint32_t i = 0; i < index->n; i++) {
		summary->events += index->entries[i].events;
		summary->lost += index->entries[i].lost;
		if (index->entries[i].stopped)
			summary->stopped = index->entries[i].stopped;
	}
}

/* A trace that is already there is of an earlier run. */
static void remove_old(const char *path)
{
	struct stat file;

	if (stat(path, &file) || !S_ISREG(file.st_mode))
		return;
	if (unlink(path)) {
		say("cannot replace %s: %s", path, strerror(errno));
		exit(EXIT_OURS);
	}
}

static void start_preload(const struct options *options, const char *failures, struct terra_launch *launch)
{
	struct terra_preload_options preload = {
		.output = options->output,
		.levels = options->levels,
		.stacks = options->stacks,
		.children = options->children,
		.ops = options->ops,
		.limits = options->limits,
	};
	char recorder[4096], **environment;
	int error = terra_preload_find(recorder, sizeof(recorder));

	if (error) {
		say("the recorder %s cannot be used: %s", recorder, strerror(-error));
		exit(EXIT_OURS);
	}
	preload.recorder = recorder;
	preload.failures = failures;
	environment = terra_preload_environment(environ, &preload);
	error = environment ? terra_launch_start(options->argv, environment, launch) : -ENOMEM;
	if (error) {
		say("cannot start a process: %s", strerror(-error));
		exit(EXIT_OURS);
	}
	terra_preload_environment_free(environment);
}

/* The library in the program does the work; here we only wait. */
static void run_preload(const struct options *options, struct terra_launch *launch, struct summary *summary)
{
	struct terra_index index = { 0 };
	struct timespec since;
	char failures[16];
	int failures_fd = terra_preload_listen(failures, sizeof(failures));

	start_preload(options, failures, launch);
	remove_old(options->output);
	clock_gettime(CLOCK_REALTIME_COARSE, &since);
	release(launch, options);
	while (!launch->ended)
		terra_launch_wait(launch, -1);
	collect_gpu(options);
	summary->failed = !find_traces(options, &since, &index);
	summary->failed |= terra_preload_failed(failures_fd);
	summarise_traces(&index, summary);
	write_index(options, &index);
	terra_index_free(&index);
}

static void check_writable(const char *path)
{
	char folder[4096], *slash;
	struct stat file;

	if (!stat(path, &file) && S_ISDIR(file.st_mode)) {
		say("cannot write %s: %s", path, strerror(EISDIR));
		exit(EXIT_OURS);
	}
	if (!stat(path, &file) && S_ISREG(file.st_mode) && file.st_size && !terra_trace_is_one(path)) {
		say("%s is no trace and is left alone; choose another file with -o, or remove it", path);
		exit(EXIT_OURS);
	}
	snprintf(folder, sizeof(folder), "%s", path);
	slash = strrchr(folder, '/');
	slash[slash == folder] = 0;
	if (access(folder, W_OK)) {
		say("cannot write %s: %s", path, strerror(errno));
		exit(EXIT_OURS);
	}
}

static void choose_output(struct options *options)
{
	char *file = options->output ? strdup(options->output) : default_output(options), *index;

	options->output = file ? absolute(file) : NULL;
	free(file);
	index = options->output ? index_path(options) : NULL;
	if (!index) {
		say("out of memory");
		exit(EXIT_OURS);
	}
	check_writable(options->output);
	remove_old(index);
	free(index);
}

static void run(const struct options *options, struct terra_launch *launch, struct summary *summary)
{
	struct terra_session *session = NULL;
	char reason[1024] = "";

	if (options->backend != BACKEND_PRELOAD && start_bpf(options, launch, &session, reason, sizeof(reason))) {
		run_bpf(options, launch, session, summary);
	} else if (options->backend == BACKEND_BPF) {
		say("the bpf backend cannot be used: %s", reason);
		exit(EXIT_OURS);
	} else {
		if (options->backend == BACKEND_AUTO && !options->quiet)
			say("recording through a preloaded library (bpf backend: %s)", reason);
		run_preload(options, launch, summary);
	}
}

int main(int argc, char **argv)
{
	struct summary summary = { 0 };
	struct terra_launch launch;
	struct options options;
	int status = 0;

	options_parse(argc, argv, &options);
	if (options.list_ops)
		return terra_list_ops(options.library, options.json, stdout) ? 1 : 0;
	if ((options.pid && !trace_check_rights(&options)) || !trace_check_library(&options))
		return EXIT_OURS;
	choose_output(&options);
	if (options.pid) {
		status = attach(&options, &summary);
	} else {
		prepare_gpu(&options);
		run(&options, &launch, &summary);
	}
	if (options.json)
		print_json(&options, &summary);
	else if (!options.quiet && status != EXIT_OURS)
		print_summary(&options, &summary);
	if (!options.pid)
		terra_launch_exit(&launch);
	return status;
}
