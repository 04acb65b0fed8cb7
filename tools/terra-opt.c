/* terra-opt - makes a plan of a trace. A thin main over graphopt/. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graphopt/assemble.h"
#include "graphopt/graph.h"
#include "graphopt/plan_internal.h"
#include "graphopt/plan_ops.h"
#include "graphopt/show.h"
#include "graphopt/verify.h"

#define EXIT_USAGE 2
#define MAX_NAMES 32

static const char usage[] =
    "NAME\n"
    "    terra-opt - make a plan of a recorded program: which operators run fused, and the kernels for them\n"
    "\n"
    "SYNOPSIS\n"
    "    terra-opt [OPTION]... FILE.terra\n"
    "    terra-opt [OPTION]... FILE.plan\n"
    "    terra-opt --passes\n"
    "\n"
    "DESCRIPTION\n"
    "    Finds the repeating iteration of a trace that terra-trace wrote, the regions of elementwise operators in it "
    "that\n"
    "    can be computed in one go, and compiles a kernel for each. Every kernel is compared with the framework's own\n"
    "    operators on this machine, bit for bit, and timed; what differs or does not gain is left out and listed with\n"
    "    the reason. The plan is for this machine's kind of CPU and for the libtorch that was traced.\n"
    "\n"
    "    Given a plan, lists it, installs it, or writes it without some regions.\n"
    "\n"
    "OPTIONS\n"
    "    -o, --output FILE       the plan; by default train.plan for train.terra, unless --install; - for none. Given a\n"
    "                            plan, that file is rewritten only by --drop-region\n"
    "        --install           put the plan where the replay library finds it when the same script runs:\n"
    "                            $XDG_CACHE_HOME/terra/plans\n"
    "        --script FILE       the script that --install is for, where the traced command does not tell\n"
    "        --drop-region ID|NAME\n"
    "                            leave a region out, by its number or by how its name begins; may be given again\n"
    "        --list              print the plan's regions; alone with a plan, write nothing\n"
    "        --json              print the plan as JSON instead\n"
    "        --no-measure        compare bits but take no times: nothing is left out for gaining too little\n"
    "        --disable-pass PASS leave a pass out, and with a base (--passes) what follows; may be given again\n"
    "        --dump-after PASS   print the graph as it is after a pass, and stop\n"
    "        --passes            print the passes\n"
    "    -q, --quiet             no progress and no summary\n"
    "    -h, --help              this text\n"
    "\n"
    "EXIT STATUS\n"
    "    0  done   1  it could not be done, with the reason on stderr   2  wrong usage\n"
    "\n"
    "FILES\n"
    "    docs/plan-format.md describes the plan, graphopt/README.md the passes and the graph's text form. A graph in "
    "its\n"
    "    text form (*.tg) is read as well.\n";

struct names {
	const char *items[MAX_NAMES + 1]; /* NULL-terminated */
	size_t n;
};

static struct {
	const char *input, *output, *script, *dump_after;
	bool install, list, json, no_measure, quiet;
	struct names disabled, drop;
} options;

static volatile sig_atomic_t interrupted;
static bool progress_shown;

static void on_signal(int number)
{
	interrupted = number;
}

static void end_progress(void)
{
	if (progress_shown)
		fputs("\r\033[K", stderr);
	progress_shown = false;
}

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...)
{
	va_list args;

	end_progress();
	fputs("terra-opt: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

/* On a terminal one line that is rewritten; logs get a single one. */
static bool show_progress(void *ctx, const char *what, uint32_t done, uint32_t total)
{
	if (!options.quiet && !done && !isatty(STDERR_FILENO))
		say("compiling and checking kernels in %u steps", total);
	if (!options.quiet && isatty(STDERR_FILENO)) {
		fprintf(stderr, "\r\033[Kterra-opt: %u of %u: %.90s", done + 1, total, what);
		progress_shown = true;
	}
	return interrupted;
}

/* The work so far cleans up after itself; then we end as the signal would have ended us. */
static void end_if_interrupted(void)
{
	if (!interrupted)
		return;
	end_progress();
	signal(interrupted, SIG_DFL);
	raise(interrupted);
}

static void catch_signals(void)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
}

/* ---- options ---- */

static _Noreturn void wrong_usage(const char *what, const char *detail)
{
	say("%s%s%s (--help lists the options)", what, detail ? ": " : "", detail ? detail : "");
	exit(EXIT_USAGE);
}

static void add_name(struct names *names, const char *name)
{
	if (names->n == MAX_NAMES)
		wrong_usage("an option is given too often", name);
	names->items[names->n++] = name;
}

static _Noreturn void list_passes(void)
{
	const struct graph_pass *pass;

	for (pass = graph_passes; pass->name; pass++)
		printf("%-10s %-9s %s\n", pass->name, pass->carries ? "base" : "optional", pass->what);
	exit(fflush(stdout) ? 1 : 0);
}

enum { OPT_INSTALL = 256, OPT_SCRIPT, OPT_DROP, OPT_LIST, OPT_JSON, OPT_NO_MEASURE, OPT_DISABLE, OPT_DUMP, OPT_PASSES };

static const struct option long_options[] = {
    {"output", required_argument, NULL, 'o'},
    {"install", no_argument, NULL, OPT_INSTALL},
    {"script", required_argument, NULL, OPT_SCRIPT},
    {"drop-region", required_argument, NULL, OPT_DROP},
    {"list", no_argument, NULL, OPT_LIST},
    {"json", no_argument, NULL, OPT_JSON},
    {"no-measure", no_argument, NULL, OPT_NO_MEASURE},
    {"disable-pass", required_argument, NULL, OPT_DISABLE},
    {"dump-after", required_argument, NULL, OPT_DUMP},
    {"passes", no_argument, NULL, OPT_PASSES},
    {"quiet", no_argument, NULL, 'q'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static void take_option(int c)
{
	switch (c) {
	case 'o':
		options.output = optarg;
		break;
	case OPT_INSTALL:
		options.install = true;
		break;
	case OPT_SCRIPT:
		options.script = optarg;
		break;
	case OPT_DROP:
		add_name(&options.drop, optarg);
		break;
	case OPT_LIST:
		options.list = true;
		break;
	case OPT_JSON:
		options.json = true;
		break;
	case OPT_NO_MEASURE:
		options.no_measure = true;
		break;
	case OPT_DISABLE:
		add_name(&options.disabled, optarg);
		break;
	case OPT_DUMP:
		options.dump_after = optarg;
		break;
	case OPT_PASSES:
		list_passes();
	case 'q':
		options.quiet = true;
		break;
	case 'h':
		fputs(usage, stdout);
		exit(fflush(stdout) ? 1 : 0);
	default:
		wrong_usage("unknown or incomplete option", NULL);
	}
}

static void check_pass_names(void)
{
	size_t i;

	if (options.dump_after && strcmp(options.dump_after, "build") && !graph_pass_find(options.dump_after))
		wrong_usage("there is no such pass, --passes lists them", options.dump_after);
	for (i = 0; i < options.disabled.n; i++)
		if (!graph_pass_find(options.disabled.items[i]))
			wrong_usage("there is no such pass, --passes lists them", options.disabled.items[i]);
}

static void read_options(int argc, char **argv)
{
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:qh", long_options, NULL)) >= 0)
		take_option(c);
	if (optind + 1 != argc)
		wrong_usage(optind < argc ? "more than one file" : "no file", optind < argc ? argv[optind + 1] : NULL);
	options.input = argv[optind];
	check_pass_names();
}

/* ---- what kind of file ---- */

enum input_kind { INPUT_TRACE, INPUT_PLAN, INPUT_TEXT };

static enum input_kind input_kind(const char *path)
{
	char start[12] = "";
	FILE *file = fopen(path, "r");
	size_t n = file ? fread(start, 1, sizeof(start) - 1, file) : 0;

	if (file)
		fclose(file);
	if (n >= 8 && !memcmp(start, "TERRAPLN", 8))
		return INPUT_PLAN;
	return !strncmp(start, "terra-graph", 11) || start[0] == '#' ? INPUT_TEXT : INPUT_TRACE;
}

/* ---- graphs ---- */

static int read_text_graph(const char *path, struct graph **out, char *err, size_t err_size)
{
	FILE *file = fopen(path, "r");
	char *text = NULL;
	size_t size = 0;
	int ret;

	if (!file) {
		snprintf(err, err_size, "%s", strerror(errno));
		return -errno;
	}
	if (getdelim(&text, &size, '\0', file) < 0) {
		free(text);
		text = NULL;
	}
	fclose(file);
	ret = graph_read(text ? text : "", out, err, err_size);
	free(text);
	return ret;
}

static int dump(const struct graph *graph)
{
	return graph_print(graph, stdout) || fflush(stdout) ? 1 : 0;
}

static int make_graph(enum input_kind kind, struct graph **graph)
{
	char err[512] = "";
	int ret = kind == INPUT_TEXT ? read_text_graph(options.input, graph, err, sizeof(err))
				     : graph_build(options.input, graph, err, sizeof(err));

	if (!ret && options.dump_after && !strcmp(options.dump_after, "build"))
		return 0;
	if (!ret)
		ret = graph_run_passes(*graph, options.dump_after, options.disabled.items, err, sizeof(err));
	if (ret && strstr(err, options.input))
		say("%s", err);
	else if (ret)
		say("%s: %s", options.input, err);
	return ret;
}

/* ---- dropping regions ---- */

static bool names_region(const char *wanted, const struct terra_plan_region *region)
{
	char *end;
	unsigned long id = strtoul(wanted, &end, 10);

	if (*wanted && !*end)
		return region->id == id;
	return *wanted && !strncmp(region->name, wanted, strlen(wanted));
}

static int drop_one(const struct terra_plan *plan, const char *wanted, bool *drop)
{
	uint32_t r, n = 0;

	for (r = 0; r < plan->n_regions; r++)
		if (!plan->regions[r].fallback && names_region(wanted, &plan->regions[r])) {
			drop[r] = true;
			n++;
		}
	if (!n)
		say("there is no region \"%s\" (--list names them)", wanted);
	return n ? 0 : -ENOENT;
}

static int drop_regions(struct terra_plan *plan)
{
	bool drop[PLAN_MAX_REGIONS] = {0};
	size_t i;
	int ret = 0;

	for (i = 0; i < options.drop.n && !ret; i++)
		ret = drop_one(plan, options.drop.items[i], drop);
	if (!ret && options.drop.n)
		plan_drop_regions(plan, drop);
	return ret;
}

/* ---- output ---- */

static int write_plan(const struct terra_plan *plan, const char *path)
{
	char err[256];
	int ret = terra_plan_write(plan, path, err, sizeof(err));

	if (ret)
		say("%s: %s", path, err);
	else if (!options.quiet)
		say("wrote %s", path);
	return ret;
}

/* train.terra to train.plan, beside it. */
static int default_output(char *out, size_t size)
{
	size_t n = strlen(options.input);
	const char *dot = strrchr(options.input, '.');

	if (dot && !strchr(dot, '/'))
		n = (size_t)(dot - options.input);
	return (size_t)snprintf(out, size, "%.*s.plan", (int)n, options.input) < size ? 0 : -ENAMETOOLONG;
}

static int make_folders(const char *path)
{
	char folder[PATH_MAX], *slash;

	snprintf(folder, sizeof(folder), "%s", path);
	for (slash = strchr(folder + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		if (mkdir(folder, 0700) && errno != EEXIST)
			return -errno;
		*slash = '/';
	}
	return 0;
}

/* The plan's source is "train.terra: python train.py". */
static const char *script_of(const struct terra_plan *plan, char *buffer, size_t size)
{
	const char *command = plan->source ? strstr(plan->source, ": ") : NULL;

	if (options.script)
		return options.script;
	return command && command_script(command + 2, buffer, size) ? buffer : NULL;
}

static int install_plan(const struct terra_plan *plan)
{
	char path[PATH_MAX], buffer[PATH_MAX];
	const char *script = script_of(plan, buffer, sizeof(buffer));
	int ret;

	if (!script) {
		say("the traced command names no script: say which one with --script FILE, or use TERRA_PLAN");
		return -ENOENT;
	}
	ret = terra_plan_install_path(script, plan->build_id, path, sizeof(path));
	if (ret) {
		say("%s: %s (--script FILE names the script that the plan is for)", script, strerror(-ret));
		return ret;
	}
	ret = make_folders(path);
	if (ret) {
		say("%s: %s", path, strerror(-ret));
		return ret;
	}
	return write_plan(plan, path);
}

static int show(const struct terra_plan *plan, const struct graph *graph)
{
	if (options.json)
		show_plan_json(plan, graph, stdout);
	else if (options.list || (graph && !options.quiet))
		show_plan(plan, graph, stdout);
	if (fflush(stdout)) {
		say("writing to stdout: %s", strerror(errno));
		return -EIO;
	}
	return 0;
}

/* ---- the two ways through ---- */

static int finish_graph(struct graph *graph, struct terra_plan *plan)
{
	char path[PATH_MAX];
	int ret = drop_regions(plan);

	if (ret)
		return ret;
	if (!options.output && !options.install) {
		ret = default_output(path, sizeof(path));
		options.output = path;
	}
	if (!ret && options.output && strcmp(options.output, "-"))
		ret = write_plan(plan, options.output);
	if (!ret && options.install)
		ret = install_plan(plan);
	return ret ? ret : show(plan, graph);
}

static int from_graph(struct graph *graph)
{
	struct verify_options verify = {.measure = !options.no_measure, .progress = show_progress};
	struct terra_plan *plan;
	char err[512] = "";
	int ret = assemble_plan(graph, &plan);

	if (ret) {
		say("out of memory");
		return ret;
	}
	ret = verify_plan(graph, plan, &verify, err, sizeof(err));
	end_if_interrupted();
	end_progress();
	if (ret)
		say("%s", err);
	else
		ret = finish_graph(graph, plan);
	terra_plan_free(plan);
	return ret;
}

static int from_trace(enum input_kind kind)
{
	struct graph *graph = NULL;
	int ret = make_graph(kind, &graph);

	end_if_interrupted();
	if (!ret)
		ret = options.dump_after ? dump(graph) : from_graph(graph);
	graph_free(graph);
	return ret;
}

static int from_plan(void)
{
	struct terra_plan *plan;
	char err[256];
	int ret;

	if (options.dump_after || options.disabled.n || options.no_measure)
		wrong_usage("passes run on traces, and this is a plan", options.input);
	ret = terra_plan_read(options.input, false, &plan, err, sizeof(err));
	if (ret) {
		say("%s: %s", options.input, err);
		return ret;
	}
	ret = drop_regions(plan);
	if (!ret && options.output && strcmp(options.output, "-"))
		ret = write_plan(plan, options.output);
	else if (!ret && options.drop.n && !options.output)
		ret = write_plan(plan, options.input);
	if (!ret && options.install)
		ret = install_plan(plan);
	options.list |= !options.install && !options.drop.n && !options.output;
	if (!ret)
		ret = show(plan, NULL);
	terra_plan_free(plan);
	return ret;
}

int main(int argc, char **argv)
{
	enum input_kind kind;
	int ret;

	read_options(argc, argv);
	catch_signals();
	kind = input_kind(options.input);
	ret = kind == INPUT_PLAN ? from_plan() : from_trace(kind);
	end_if_interrupted();
	return ret ? 1 : 0;
}
