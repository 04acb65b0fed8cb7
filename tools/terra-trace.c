/* terra-trace - records the tensor operators that a program runs. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "collector/bpf/backend.h"
#include "collector/bpf/session.h"
#include "collector/launch.h"
#include "collector/preload_session.h"
#include "collector/target.h"
#include "collector/trace.h"
#include "probes/list_ops.h"

/* As env(1), timeout(1) and their like: our own failures, and commands that cannot be run. */
#define EXIT_OURS 125
#define EXIT_NOT_EXECUTABLE 126
#define EXIT_NOT_FOUND 127

#define STEP_MS 4
#define ALL_LEVELS (1u << TERRA_LEVEL_CALL | 1u << TERRA_LEVEL_REDISPATCH)

static const char usage[] =
	"NAME\n"
	"    terra-trace - record the tensor operators that a PyTorch program runs\n"
	"\n"
	"SYNOPSIS\n"
	"    terra-trace [OPTION]... [--] COMMAND [ARGUMENT]...\n"
	"    terra-trace --list-ops [--json] [--library PATH]\n"
	"\n"
	"DESCRIPTION\n"
	"    Runs COMMAND, unchanged, and writes every operator that it hands to PyTorch's\n"
	"    dispatcher to a trace file: the arguments with sizes, strides and types, the\n"
	"    results, the time and the Python call stack. terra-report and terra-opt read\n"
	"    the file. The command keeps its input, output, signals and exit status.\n"
	"    Processes that it starts are not recorded by the bpf backend.\n"
	"\n"
	"OPTIONS\n"
	"    -o, --output FILE   the trace file; by default train.terra for train.py, or\n"
	"                        the command's name\n"
	"        --backend NAME  bpf: from outside, by uprobes (needs CAP_BPF and\n"
	"                        CAP_PERFMON, and Linux 6.6)\n"
	"                        preload: from inside, by a library in LD_PRELOAD\n"
	"                        auto: bpf where it may be used, else preload (default)\n"
	"        --levels NAME   ops: the calls of all operators but those that only call\n"
	"                        others, which are recorded anyway (default)\n"
	"                        call: the calls of all operators\n"
	"                        redispatch: as autograd and others pass them on\n"
	"                        all: both\n"
	"        --iterations N  record at least N iterations of the program's main loop,\n"
	"                        found by its repetition, then detach; the program goes on\n"
	"        --no-stacks     do not record Python call stacks\n"
	"        --library PATH  the libtorch_cpu.so that the command uses, where it is\n"
	"                        not found by itself\n"
	"        --buffer MB     memory for what waits to be written, a power of two\n"
	"                        (bpf backend; 128 by default)\n"
	"    -q, --quiet         say nothing but errors\n"
	"        --list-ops      print the operators of the libtorch found, and how their\n"
	"                        arguments are passed\n"
	"        --json          with --list-ops: as JSON\n"
	"    -h, --help          this text\n"
	"\n"
	"EXIT STATUS\n"
	"    That of COMMAND; 125 when terra-trace itself fails before COMMAND begins, 126\n"
	"    when COMMAND cannot be executed, 127 when it is not found, 2 for wrong usage.\n"
	"\n"
	"EXAMPLES\n"
	"    terra-trace -- python train.py\n"
	"    terra-trace --iterations 20 -o steady.terra -- python train.py --epochs 3\n";

enum backend { BACKEND_AUTO, BACKEND_BPF, BACKEND_PRELOAD };

struct options {
	const char *output, *library;
	enum backend backend;
	uint32_t levels;
	uint64_t iterations;
	size_t buffer_bytes;
	bool stacks, quiet, list_ops, json;
	char *const *argv;
};

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	va_list arguments;
	char text[2048];

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	/* One write, so that the line stays whole beside the program's own. */
	fprintf(stderr, "terra-trace: %s\n", text);
}

_Noreturn static void wrong_usage(const char *what, const char *value)
{
	say("%s%s%s (--help shows the options)", what, value ? ": " : "", value ? value : "");
	exit(2);
}

static enum backend parse_backend(const char *name)
{
	static const char *const names[] = { "auto", "bpf", "preload" };

	for (int i = 0; i < 3; i++)
		if (!strcmp(name, names[i]))
			return (enum backend)i;
	wrong_usage("no such backend", name);
}

static uint32_t parse_levels(const char *name)
{
	if (!strcmp(name, "ops"))
		return TERRA_LEVELS_OPS;
	if (!strcmp(name, "all"))
		return ALL_LEVELS;
	if (!strcmp(name, "call"))
		return 1u << TERRA_LEVEL_CALL;
	if (!strcmp(name, "redispatch"))
		return 1u << TERRA_LEVEL_REDISPATCH;
	wrong_usage("no such level", name);
}

static uint64_t parse_count(const char *text)
{
	char *end;
	unsigned long long n = strtoull(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || !n)
		wrong_usage("not a number of iterations", text);
	return n;
}

static size_t parse_buffer(const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || !n || n & (n - 1) || n > 2048)
		wrong_usage("the buffer is a power of two of at most 2048", text);
	return (size_t)n << 20;
}

static void parse_option(int option, struct options *out)
{
	switch (option) {
	case 'o':
		out->output = optarg;
		break;
	case 'B':
		out->backend = parse_backend(optarg);
		break;
	case 'L':
		out->levels = parse_levels(optarg);
		break;
	case 'N':
		out->iterations = parse_count(optarg);
		break;
	case 'b':
		out->buffer_bytes = parse_buffer(optarg);
		break;
	case 'S':
		out->stacks = false;
		break;
	case 'l':
		out->library = optarg;
		break;
	case 'q':
		out->quiet = true;
		break;
	case 'O':
		out->list_ops = true;
		break;
	case 'J':
		out->json = true;
		break;
	case 'h':
		fputs(usage, stdout);
		exit(0);
	default:
		wrong_usage("wrong usage", NULL);
	}
}

static void parse_options(int argc, char **argv, struct options *out)
{
	static const struct option names[] = {
		{ "output", required_argument, NULL, 'o' }, { "backend", required_argument, NULL, 'B' },
		{ "levels", required_argument, NULL, 'L' }, { "iterations", required_argument, NULL, 'N' },
		{ "no-stacks", no_argument, NULL, 'S' },    { "library", required_argument, NULL, 'l' },
		{ "quiet", no_argument, NULL, 'q' },	    { "list-ops", no_argument, NULL, 'O' },
		{ "json", no_argument, NULL, 'J' },	    { "help", no_argument, NULL, 'h' },
		{ "buffer", required_argument, NULL, 'b' }, { NULL, 0, NULL, 0 },
	};
	int option;

	*out = (struct options){ .levels = TERRA_LEVELS_OPS, .stacks = true };
	/* '+': the command's own options are not ours. */
	while ((option = getopt_long(argc, argv, "+o:qh", names, NULL)) != -1)
		parse_option(option, out);
	out->argv = argv + optind;
	if (out->json && !out->list_ops)
		wrong_usage("--json goes with --list-ops", NULL);
	if (out->list_ops && out->argv[0])
		wrong_usage("--list-ops runs no command", NULL);
	if (!out->list_ops && !out->argv[0])
		wrong_usage("no command", NULL);
}

static char *default_output(char *const *argv)
{
	char *name = terra_target_name(argv), *file = NULL;

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
	uint64_t events, lost, iterations, traps;
	bool recorded, stopped, failed;
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

static void print_summary(const struct options *options, const struct summary *summary)
{
	char events[32], lost[32], number[32], iterations[64] = "", traps[64] = "";
	struct stat file;

	if (!summary->recorded && summary->failed)
		return;
	if (!summary->recorded) {
		say("no trace: the command itself used no PyTorch (what other processes do is not recorded)");
		return;
	}
	if (stat(options->output, &file))
		file.st_size = 0;
	if (summary->stopped)
		snprintf(iterations, sizeof(iterations), ", %llu iterations", (unsigned long long)summary->iterations);
	if (summary->traps)
		snprintf(traps, sizeof(traps), ", %s traps", grouped(summary->traps, number));
	say("%s: %s events%s, %s lost%s, %.1f MB", options->output, grouped(summary->events, events), iterations,
	    grouped(summary->lost, lost), traps, (double)file.st_size / 1e6);
}

/* A line that is rewritten in place is only for a terminal that the program does not print to. */
static bool wants_progress(const struct options *options)
{
	struct stat out, err;

	if (options->quiet || !isatty(2))
		return false;
	return !isatty(1) || fstat(1, &out) || fstat(2, &err) || out.st_rdev != err.st_rdev;
}

static void show_progress(uint64_t events)
{
	static struct timespec last;
	struct timespec now;
	char text[32];

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (now.tv_sec == last.tv_sec)
		return;
	last = now;
	fprintf(stderr, "\rterra-trace: %s events\033[K", grouped(events, text));
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

/* False when the recording failed. */
static bool record_until_over(struct terra_session *session, struct terra_launch *launch, bool progress)
{
	char err[1024];
	bool ok = true;

	while (!launch->ended && !terra_session_over(session)) {
		terra_launch_wait(launch, STEP_MS);
		if (terra_session_step(session, err, sizeof(err))) {
			say("recording ended early: %s", err);
			ok = false;
		}
		if (progress)
			show_progress(terra_session_result(session)->events);
	}
	if (progress)
		erase_progress();
	return ok;
}

static void run_bpf(const struct options *options, struct terra_launch *launch, struct terra_session *session,
		    struct summary *summary)
{
	const struct terra_session_result *result = terra_session_result(session);
	char err[1024];
	bool ok;

	release(launch, options);
	ok = record_until_over(session, launch, wants_progress(options));
	if (terra_session_finish(session, err, sizeof(err)) && ok) {
		say("%s", err);
		ok = false;
	}
	*summary = (struct summary){ .events = result->events,
				     .lost = result->lost,
				     .iterations = result->iterations,
				     .traps = result->traps,
				     .recorded = result->recorded,
				     .stopped = result->stopped,
				     .failed = !ok };
	terra_session_close(session);
	while (!launch->ended)
		terra_launch_wait(launch, -1);
}

/* Starts the command held, with everything set up for it. False: this backend cannot, for `reason`. */
static bool start_bpf(const struct options *options, struct terra_launch *launch, struct terra_session **session,
		      char *reason, size_t reason_size)
{
	struct terra_session_options session_options = {
		.output = options->output,
		.library = options->library,
		.argv = options->argv,
		.levels = options->levels,
		.stacks = options->stacks,
		.iterations = options->iterations,
		.ring_bytes = options->buffer_bytes,
		.use_cache = true,
	};
	int error = terra_bpf_supported(reason, reason_size);

	if (error)
		return false;
	error = terra_launch_start(options->argv, NULL, launch);
	if (error) {
		snprintf(reason, reason_size, "cannot start a process: %s", strerror(-error));
		return false;
	}
	if (!terra_session_open(&session_options, launch, session, reason, reason_size))
		return true;
	terra_launch_cancel(launch);
	return false;
}

static int read_summary(const struct options *options, struct summary *summary)
{
	struct terra_trace_reader *reader;
	struct terra_event event;
	char err[512];
	int error;

	if (access(options->output, F_OK))
		return 0;
	error = terra_trace_open(options->output, &reader, err, sizeof(err));
	if (error) {
		say("%s", err);
		return error;
	}
	summary->recorded = true;
	while ((error = terra_trace_next(reader, &event)) > 0)
		summary->events++;
	summary->lost = terra_trace_lost(reader);
	if (error < 0)
		say("%s: %s", options->output, terra_trace_error(reader));
	terra_trace_close(reader);
	return 0;
}

/* The recorder overwrites nothing; a trace that is already there is of an earlier run. */
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

/* The library in the program does the work; here we only wait. */
static void run_preload(const struct options *options, struct terra_launch *launch, struct summary *summary)
{
	struct terra_preload_options preload = {
		.output = options->output,
		.levels = options->levels,
		.stacks = options->stacks,
		.iterations = options->iterations,
	};
	char recorder[4096], **environment;
	int error = terra_preload_find(recorder, sizeof(recorder));

	if (error) {
		say("the recorder %s cannot be used: %s", recorder, strerror(-error));
		exit(EXIT_OURS);
	}
	preload.recorder = recorder;
	environment = terra_preload_environment(environ, &preload);
	error = environment ? terra_launch_start(options->argv, environment, launch) : -ENOMEM;
	if (error) {
		say("cannot start a process: %s", strerror(-error));
		exit(EXIT_OURS);
	}
	terra_preload_environment_free(environment);
	remove_old(options->output);
	release(launch, options);
	while (!launch->ended)
		terra_launch_wait(launch, -1);
	if (!options->quiet)
		read_summary(options, summary);
}

static void check_writable(const char *path)
{
	char folder[4096], *slash;

	snprintf(folder, sizeof(folder), "%s", path);
	slash = strrchr(folder, '/');
	slash[slash == folder] = 0;
	if (access(folder, W_OK)) {
		say("cannot write %s: %s", path, strerror(errno));
		exit(EXIT_OURS);
	}
}

int main(int argc, char **argv)
{
	struct terra_session *session = NULL;
	struct summary summary = { 0 };
	struct terra_launch launch;
	struct options options;
	char reason[1024] = "", *file;

	parse_options(argc, argv, &options);
	if (options.list_ops)
		return terra_list_ops(options.library, options.json, stdout) ? 1 : 0;
	file = options.output ? strdup(options.output) : default_output(options.argv);
	options.output = file ? absolute(file) : NULL;
	if (!options.output) {
		say("out of memory");
		return EXIT_OURS;
	}
	check_writable(options.output);
	if (options.backend != BACKEND_PRELOAD && start_bpf(&options, &launch, &session, reason, sizeof(reason))) {
		run_bpf(&options, &launch, session, &summary);
	} else if (options.backend == BACKEND_BPF) {
		say("the bpf backend cannot be used: %s", reason);
		return EXIT_OURS;
	} else {
		if (options.backend == BACKEND_AUTO && !options.quiet)
			say("recording through a preloaded library (bpf backend: %s)", reason);
		run_preload(&options, &launch, &summary);
	}
	if (!options.quiet)
		print_summary(&options, &summary);
	terra_launch_exit(&launch);
}
