/* The command line of terra-trace. */
#include "tools/trace_options.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probes/op.h"

#define ALL_LEVELS (1u << TERRA_LEVEL_CALL | 1u << TERRA_LEVEL_REDISPATCH)

static const char usage[] =
	"NAME\n"
	"    terra-trace - record the tensor operators that a PyTorch program runs\n"
	"\n"
	"SYNOPSIS\n"
	"    terra-trace [OPTION]... [--] COMMAND [ARGUMENT]...\n"
	"    terra-trace [OPTION]... -p PID\n"
	"    terra-trace --list-ops [--json] [--library PATH]\n"
	"\n"
	"DESCRIPTION\n"
	"    Runs COMMAND, unchanged, or attaches to a process that runs, and writes every\n"
	"    operator that it hands to PyTorch's dispatcher to a trace file: the arguments\n"
	"    with sizes, strides and types, the results, the time and the Python call\n"
	"    stack. terra-report and terra-opt read the file. The command keeps its input,\n"
	"    output, signals and exit status. Processes that it starts get traces of their\n"
	"    own. docs/terra-trace.md says more.\n"
	"\n"
	"OPTIONS\n"
	"    -p, --pid PID       attach to this process, until it ends or ^C is typed; it\n"
	"                        goes on as if nothing had been (bpf backend)\n"
	"    -o, --output FILE   the trace file; by default train.terra for train.py, or\n"
	"                        the command's name. An older trace is replaced. Further\n"
	"                        processes write FILE.PID, and FILE.index then lists all\n"
	"        --backend NAME  bpf: from outside, by uprobes (needs CAP_BPF and\n"
	"                        CAP_PERFMON, and Linux 6.6)\n"
	"                        preload: from inside, by a library in LD_PRELOAD\n"
	"                        auto: bpf where it may be used, else preload (default)\n"
	"        --no-children   do not follow the processes that the program starts\n"
	"        --hold-children stop a forked process until its probes are in place (some\n"
	"                        tens of milliseconds), so that nothing of it is missing;\n"
	"                        its parent can see that (bpf backend, Linux 6.13)\n"
	"        --levels NAME   ops: the calls of all operators but those that only call\n"
	"                        others, such as linear: the others are recorded (default)\n"
	"                        call: the calls of all operators\n"
	"                        redispatch: as autograd and others pass them on\n"
	"                        all: both\n"
	"        --ops PATTERN   record only operators of these names, such as 'aten::mm' or\n"
	"                        '*conv*'; several with commas or by repeating the option\n"
	"        --start-after N leave out the first N iterations of the main loop\n"
	"        --iterations N  record at least N iterations of the program's main loop,\n"
	"                        found by its repetition, then detach; the program goes on\n"
	"        --duration S    record for S seconds from the first operator on, then\n"
	"                        detach; the program goes on\n"
	"        --max-size N    detach before a trace grows over N bytes (k, M and G may\n"
	"                        follow); the program goes on\n"
	"        --flight-recorder S\n"
	"                        keep only the last S seconds, in memory (of at most\n"
	"                        --max-size, 256M by default), and write them when the\n"
	"                        program ends, on ^C, and when terra-trace gets SIGUSR2\n"
	"        --no-stacks     do not record Python call stacks\n"
	"        --library PATH  the libtorch_cpu.so that the command uses, where it is\n"
	"                        not found by itself\n"
	"        --buffer MB     memory for what waits to be written, a power of two\n"
	"                        (bpf backend; 128 by default)\n"
	"        --gpu KINDS     GPU activity to record through CUPTI, where the command uses\n"
	"                        CUDA: kernels, memcpy, memset, runtime, driver, overhead\n"
	"                        (all of these by default), graphs (CUDA graphs as a\n"
	"                        whole, without their kernels), none\n"
	"    -q, --quiet         say nothing but errors\n"
	"        --list-ops      print the operators of the libtorch found, and how their\n"
	"                        arguments are passed\n"
	"        --json          the summary at the end, or --list-ops, as JSON\n"
	"    -h, --help          this text\n"
	"\n"
	"EXIT STATUS\n"
	"    That of COMMAND; 125 when terra-trace itself fails before COMMAND begins, 126\n"
	"    when COMMAND cannot be executed, 127 when it is not found, 2 for wrong usage.\n"
	"    With -p: 0 when a trace was written, 1 when there was nothing to record, 125\n"
	"    when terra-trace fails.\n"
	"\n"
	"EXAMPLES\n"
	"    terra-trace -- python train.py\n"
	"    terra-trace --iterations 20 -o steady.terra -- python train.py --epochs 3\n"
	"    terra-trace --duration 10 -o now.terra -p 4711\n"
	"    terra-trace --flight-recorder 30 -- torchrun --nproc-per-node 2 train.py\n";

void say(const char *format, ...)
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

/* Up to 2^53, so that sums of a few do not overflow. */
static uint64_t parse_count(const char *text, const char *what)
{
	char *end;
	unsigned long long n = strtoull(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || !n || n >> 53)
		wrong_usage(what, text);
	return n;
}

static pid_t parse_pid(const char *text)
{
	uint64_t n = parse_count(text, "not a process");

	if (n > INT32_MAX)
		wrong_usage("not a process", text);
	return (pid_t)n;
}

static uint64_t parse_seconds(const char *text)
{
	char *end;
	double seconds = strtod(text, &end);

	if (((*text < '0' || *text > '9') && *text != '.') || *end || !(seconds > 0) || seconds > 1e9)
		wrong_usage("not a number of seconds", text);
	return seconds * 1e9 < 1 ? 1 : (uint64_t)(seconds * 1e9);
}

static uint64_t parse_size(const char *text)
{
	static const char units[] = "kMG";
	size_t n = strlen(text);
	const char *unit = n ? strchr(units, text[n - 1]) : NULL;
	int shift = unit ? 10 * (int)(unit - units + 1) : 0;
	char digits[32] = "";
	uint64_t size;

	if (n < sizeof(digits))
		memcpy(digits, text, unit ? n - 1 : n);
	size = parse_count(digits, "not a size in bytes");
	if (size >> (53 - shift))
		wrong_usage("not a size in bytes", text);
	size <<= shift;
	if (size < 64 << 10)
		wrong_usage("a trace needs at least 64k", text);
	return size;
}

static size_t parse_buffer(const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || !n || n & (n - 1) || n > 2048)
		wrong_usage("the buffer is a power of two of at most 2048", text);
	return (size_t)n << 20;
}

static char *add_patterns(char *patterns, const char *more)
{
	char *joined;

	if (!more[strspn(more, ",")])
		wrong_usage("no name of an operator", more);
	if (asprintf(&joined, "%s%s%s", patterns ? patterns : "", patterns ? "," : "", more) < 0)
		exit(125);
	free(patterns);
	return joined;
}

static void parse_limit(int option, struct terra_limits *limits)
{
	switch (option) {
	case 'A':
		limits->start_after = parse_count(optarg, "not a number of iterations");
		break;
	case 'N':
		limits->iterations = parse_count(optarg, "not a number of iterations");
		break;
	case 'D':
		limits->duration_ns = parse_seconds(optarg);
		break;
	case 'M':
		limits->max_bytes = parse_size(optarg);
		break;
	case 'F':
		limits->flight_ns = parse_seconds(optarg);
		break;
	default:
		wrong_usage("wrong usage", NULL);
	}
}

static void parse_option(int option, struct options *out)
{
	switch (option) {
	case 'p':
		out->pid = parse_pid(optarg);
		break;
	case 'o':
		out->output = optarg;
		break;
	case 'B':
		out->backend = parse_backend(optarg);
		break;
	case 'C':
		out->children = false;
		break;
	case 'H':
		out->hold = true;
		break;
	case 'L':
		out->levels = parse_levels(optarg);
		break;
	case 'P':
		out->ops = add_patterns(out->ops, optarg);
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
	case 'G':
		out->gpu = optarg;
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
		parse_limit(option, &out->limits);
	}
}

static void check_options(const struct options *options)
{
	if (options->list_ops && (options->argv[0] || options->pid))
		wrong_usage("--list-ops runs no command", NULL);
	if (options->pid && options->argv[0])
		wrong_usage("-p takes no command", options->argv[0]);
	if (options->pid && options->gpu)
		wrong_usage("--gpu is for a command: CUDA loads its library at a program's start only", NULL);
	if (options->pid && options->backend == BACKEND_PRELOAD)
		wrong_usage("-p needs the bpf backend: a library can be preloaded only into a program that begins", NULL);
	if (options->hold && (!options->children || options->backend == BACKEND_PRELOAD))
		wrong_usage("--hold-children is for children, in the bpf backend", NULL);
	if (!options->list_ops && !options->pid && !options->argv[0])
		wrong_usage("no command", NULL);
}

void options_parse(int argc, char **argv, struct options *out)
{
	static const struct option names[] = {
		{ "pid", required_argument, NULL, 'p' },
		{ "output", required_argument, NULL, 'o' },
		{ "backend", required_argument, NULL, 'B' },
		{ "no-children", no_argument, NULL, 'C' },
		{ "hold-children", no_argument, NULL, 'H' },
		{ "levels", required_argument, NULL, 'L' },
		{ "ops", required_argument, NULL, 'P' },
		{ "start-after", required_argument, NULL, 'A' },
		{ "iterations", required_argument, NULL, 'N' },
		{ "duration", required_argument, NULL, 'D' },
		{ "max-size", required_argument, NULL, 'M' },
		{ "flight-recorder", required_argument, NULL, 'F' },
		{ "no-stacks", no_argument, NULL, 'S' },
		{ "library", required_argument, NULL, 'l' },
		{ "buffer", required_argument, NULL, 'b' },
		{ "gpu", required_argument, NULL, 'G' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "list-ops", no_argument, NULL, 'O' },
		{ "json", no_argument, NULL, 'J' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	*out = (struct options){ .levels = TERRA_LEVELS_OPS, .stacks = true, .children = true };
	/* '+': the command's own options are not ours. */
	while ((option = getopt_long(argc, argv, "+p:o:qh", names, NULL)) != -1)
		parse_option(option, out);
	out->argv = argv + optind;
	if (out->limits.flight_ns && !out->limits.max_bytes)
		out->limits.max_bytes = 256u << 20;
	check_options(out);
}
