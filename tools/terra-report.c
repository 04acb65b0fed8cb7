/* terra-report.c - what a trace holds: summary, times, call sites, every event, or a file for another tool. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "collector/export.h"
#include "collector/ranks.h"
#include "collector/report.h"
#include "graphopt/graph_report.h"

enum {
	EXIT_COMPLETE = 0,
	EXIT_DAMAGED = 1,
	EXIT_UNREADABLE = 2,
};

static const char help[] =
	"NAME\n"
	"    terra-report - report what a trace holds\n"
	"\n"
	"SYNOPSIS\n"
	"    terra-report [--json] [--top N] FILE\n"
	"    terra-report --dump [--json] FILE\n"
	"    terra-report [--json] FILE.index\n"
	"    terra-report --export perfetto|chrome|chakra|json [-o OUT] FILE\n"
	"    terra-report --help\n"
	"\n"
	"DESCRIPTION\n"
	"    Reads a trace that terra-trace wrote and prints the program, its ops, threads and iterations, the time\n"
	"    by op and by call site in the program, what was lost, and the recorder's notes. Times are those of the\n"
	"    recorded run: they include what recording cost, most for the shortest ops.\n"
	"\n"
	"    Then the regions that terra-opt can convert: their ops as a plan has them, the program's lines, the gain\n"
	"    that the cost model expects (terra-opt measures), and the ops that end regions, with the reason.\n"
	"\n"
	"    Of an index that terra-trace wrote for a program of several processes: its ranks side by side, their\n"
	"    collectives matched one by one, how long the first to come waited for the last, and where they differ.\n"
	"    Processes without collectives are listed.\n"
	"\n"
	"    A trace whose program died, or that was damaged, is reported as far as it can be read.\n"
	"\n"
	"OPTIONS\n"
	"    --json     Print one JSON object; its lists are complete. With --dump a JSON object per line.\n"
	"    --top N    Entries per list, 15 unless given.\n"
	"    --dump     Print every event instead of the summary, one per line:\n"
	"                 SEQ SECONDS tTHREAD > OP LEVEL [keys=SET] [in=SEQ] (ARGUMENTS) [at FILE:LINE NAME < ...]\n"
	"                 SEQ SECONDS tTHREAD < OP LEVEL [of=SEQ] [raised] (RESULTS)\n"
	"                 SEQ SECONDS tTHREAD ! N events lost\n"
	"                 SEQ SECONDS tTHREAD # NOTE\n"
	"                 SEQ SECONDS tTHREAD @ GPU-ACTIVITY NAME DURATION correlation=N [op=SEQ] ...\n"
	"               Stacks go from the innermost frame outwards; \"?\" is a value that could not be read.\n"
	"    --export FORMAT\n"
	"               Write the trace as a file that other tools open (docs/export.md):\n"
	"                 perfetto  a timeline for ui.perfetto.dev and trace_processor, protobuf\n"
	"                 chrome    a timeline for chrome://tracing and others that take its JSON\n"
	"                 chakra    an MLCommons Chakra execution trace, protobuf: nodes with dependencies\n"
	"                 json      everything, a JSON object per line (docs/export-json.md)\n"
	"    -o, --output OUT\n"
	"               With --export: the file to write, standard output unless given.\n"
	"    -h, --help Print this text.\n"
	"\n"
	"EXIT STATUS\n"
	"    0  the whole trace was reported\n"
	"    1  the trace is damaged or ended abnormally; what is intact was reported\n"
	"    2  wrong usage, FILE cannot be read at all, or the output cannot be written\n"
	"\n"
	"EXAMPLES\n"
	"    terra-trace -o train.terra -- python train.py\n"
	"    terra-report --top 30 train.terra\n"
	"    terra-report --json train.terra | python -m json.tool\n"
	"    terra-report --dump train.terra | grep ' raised'\n"
	"    terra-report --export perfetto -o train.pftrace train.terra\n"
	"\n"
	"SEE ALSO\n"
	"    terra-trace, terra-opt, docs/trace-format.md, docs/export.md\n";

struct options {
	const char *path;
	unsigned int top;
	bool json;
	bool dump;
	bool export;
	enum terra_export_format format;
	const char *output;
};

static int usage(const char *message, const char *what)
{
	fprintf(stderr, "terra-report: %s%s; `terra-report --help` explains the options\n", message, what);
	return EXIT_UNREADABLE;
}

static bool parse_top(const char *s, unsigned int *top)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(s, &end, 10);
	if (errno || end == s || *end || *s == '-' || v == 0 || v > UINT_MAX)
		return false;
	*top = (unsigned int)v;
	return true;
}

static bool parse_format(const char *s, struct options *options)
{
	unsigned int format = 0;

	while (terra_export_name(format) && strcmp(terra_export_name(format), s) != 0)
		format++;
	if (!terra_export_name(format))
		return false;
	options->export = true;
	options->format = (enum terra_export_format)format;
	return true;
}

/* What does not go together. -1 or the exit status. */
static int check_options(const struct options *options)
{
	if (options->export && options->dump)
		return usage("--export and --dump are two things: give one", "");
	if (options->export && options->json)
		return usage("--json does not go with --export; the format is called json: --export ", "json");
	if (options->output && !options->export)
		return usage("-o goes with --export", "");
	if (options->export && !options->output && terra_export_is_binary(options->format) && isatty(STDOUT_FILENO))
		return usage("the format is binary and standard output a terminal; name a file: -o ", "OUT");
	return -1;
}

/* -1: go on; else the exit status. */
static int parse_options(int argc, char **argv, struct options *options)
{
	static const struct option longs[] = {
		{"json", no_argument, NULL, 'j'},
		{"top", required_argument, NULL, 't'},
		{"dump", no_argument, NULL, 'd'},
		{"export", required_argument, NULL, 'e'},
		{"output", required_argument, NULL, 'o'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	int option;

	while ((option = getopt_long(argc, argv, "ho:", longs, NULL)) != -1) {
		switch (option) {
		case 'j':
			options->json = true;
			break;
		case 'd':
			options->dump = true;
			break;
		case 't':
			if (!parse_top(optarg, &options->top))
				return usage("--top takes a number from 1 on, not ", optarg);
			break;
		case 'e':
			if (!parse_format(optarg, options))
				return usage("--export takes perfetto, chrome, chakra or json, not ", optarg);
			break;
		case 'o':
			options->output = optarg;
			break;
		case 'h':
			return fputs(help, stdout) < 0 || fflush(stdout) != 0 ? EXIT_UNREADABLE : EXIT_COMPLETE;
		default: /* getopt has said which */
			return usage("unknown option or missing value", "");
		}
	}
	if (optind == argc)
		return usage("no trace given: name the FILE that terra-trace wrote", "");
	if (optind + 1 < argc)
		return usage("more than one FILE: ", argv[optind + 1]);
	options->path = argv[optind];
	return check_options(options);
}

static int dump(struct terra_trace_reader *reader, const struct options *options)
{
	bool damaged;

	terra_trace_dump(reader, options->json, stdout, &damaged);
	return damaged ? EXIT_DAMAGED : EXIT_COMPLETE;
}

/* Export. */

static bool same_file(const char *a, const char *b)
{
	struct stat x, y;

	return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static FILE *open_output(const struct options *options)
{
	FILE *out;

	if (!options->output)
		return stdout;
	if (same_file(options->path, options->output)) {
		fprintf(stderr, "terra-report: %s is the trace itself; name another file to write\n", options->output);
		return NULL;
	}
	out = fopen(options->output, "wbe");
	if (!out)
		fprintf(stderr, "terra-report: cannot write %s: %s\n", options->output, strerror(errno));
	return out;
}

/* What the output cannot have, since the trace has it not. */
static bool say_incomplete(const struct terra_export_result *result)
{
	bool damaged = result->n_damage || !result->ended_cleanly;

	if (damaged)
		fprintf(stderr, "terra-report: the trace %s; what is intact was exported\n",
			result->n_damage ? "is damaged" : "ended abnormally");
	if (result->lost || result->missing)
		fprintf(stderr, "terra-report: %" PRIu64 " events were lost when recording, %" PRIu64
				" are missing in the file\n",
			result->lost, result->missing);
	if (result->without_exit || result->without_enter)
		fprintf(stderr, "terra-report: %" PRIu64 " ops have no exit, their ends are the latest possible; %" PRIu64
				" exits have no op and were left out\n",
			result->without_exit, result->without_enter);
	if (result->left_out)
		fprintf(stderr,
			"terra-report: %" PRIu64 " GPU activities were left out: this format has no place for them\n",
			result->left_out);
	if (result->unknown)
		fprintf(stderr,
			"terra-report: %" PRIu64 " events of a type that no format has a place for were left out\n",
			result->unknown);
	return damaged;
}

static int export(struct terra_trace_reader *reader, const struct options *options)
{
	struct terra_export_result result;
	FILE *out = open_output(options);
	int err;

	if (!out)
		return EXIT_UNREADABLE;
	err = terra_export(reader, options->format, out, &result);
	if (out != stdout && fclose(out) != 0 && !err)
		err = -errno;
	if (err) {
		fprintf(stderr, "terra-report: cannot write %s: %s\n", options->output ? options->output : "the export",
			strerror(-err));
		return EXIT_UNREADABLE;
	}
	return say_incomplete(&result) ? EXIT_DAMAGED : EXIT_COMPLETE;
}

/* Convertible regions, as text. */

static void print_source(const char *file, const char *function, int32_t line)
{
	const struct terra_frame frame = {.file = file, .function = function, .line = line};

	if (file[0])
		report_print_frame(&frame, stdout);
}

static void print_region(const struct terra_report_region *region)
{
	printf("  %s: %u ops, %u times, %" PRId64 " elements, %.3f ms traced, %.2f MB less traffic, expected %.2fx\n",
	       region->name, region->n_ops, region->count, region->numel, region->traced_ns / 1e6,
	       region->saved_bytes / 1e6, region->expected_gain);
	if (region->dropped)
		printf("    not used: %s\n", region->dropped);
	for (uint32_t i = 0; i < region->n_ops; i++) {
		printf("    %-40s ", region->ops[i].line);
		print_source(region->ops[i].file, region->ops[i].function, region->ops[i].source_line);
		putchar('\n');
	}
}

static void print_blocker(const struct terra_report_blocker *blocker)
{
	printf("  %6u  %-36s %s  ", blocker->count, blocker->op, blocker->reason);
	print_source(blocker->file, blocker->function, blocker->line);
	putchar('\n');
}

static void print_more(uint32_t all, unsigned int top)
{
	if (all > top)
		printf("  ... and %u more (--top %u shows all)\n", all - top, all);
}

static double percent(double part, double all)
{
	return all > 0 ? 100 * part / all : 0;
}

static void print_convertible(const struct terra_graph_report *graph, unsigned int top)
{
	printf("\nConvertible regions (iteration %" PRIu64 ": %u ops, %u of them views, metadata and allocation, %u "
	       "fusible, %u in regions)\n",
	       graph->iteration, graph->n_ops, graph->n_passive, graph->n_fusible, graph->n_in_regions);
	printf("  %.3f ms in matrix products, %.3f ms in other ops, of which %.0f %% in regions and %.0f %% in ops with another "
	       "kernel\n",
	       graph->products_ns / 1e6, graph->others_ns / 1e6, percent(graph->in_regions_ns, graph->others_ns),
	       percent(graph->replaced_ns, graph->others_ns));
	for (uint32_t i = 0; i < graph->n_regions && i < top; i++)
		print_region(&graph->regions[i]);
	print_more(graph->n_regions, top);
	printf("\nBlockers: what ends regions\n  %6s  %-36s reason\n", "times", "op");
	for (uint32_t i = 0; i < graph->n_blockers && i < top; i++)
		print_blocker(&graph->blockers[i]);
	print_more(graph->n_blockers, top);
}

/* The same as JSON. */

static void member_double(struct json *json, const char *key, double v)
{
	json_key(json, key);
	json_double(json, v);
}

static void json_source(struct json *json, const char *file, const char *function, int32_t line)
{
	json_member_string(json, "file", file[0] ? file : NULL);
	json_key(json, "line");
	json_i64(json, line);
	json_member_string(json, "function", function);
}

static void json_region(struct json *json, const struct terra_report_region *region)
{
	json_open(json, '{');
	json_member_string(json, "name", region->name);
	json_member_u64(json, "count", region->count);
	json_key(json, "numel");
	json_i64(json, region->numel);
	member_double(json, "saved_bytes", region->saved_bytes);
	member_double(json, "expected_gain", region->expected_gain);
	member_double(json, "traced_ns", region->traced_ns);
	json_member_string(json, "dropped", region->dropped);
	json_key(json, "ops");
	json_open(json, '[');
	for (uint32_t i = 0; i < region->n_ops; i++) {
		json_open(json, '{');
		json_member_string(json, "op", region->ops[i].line);
		json_source(json, region->ops[i].file, region->ops[i].function, region->ops[i].source_line);
		json_close(json, '}');
	}
	json_close(json, ']');
	json_close(json, '}');
}

static void json_blocker(struct json *json, const struct terra_report_blocker *blocker)
{
	json_open(json, '{');
	json_member_string(json, "op", blocker->op);
	json_member_string(json, "reason", blocker->reason);
	json_member_u64(json, "count", blocker->count);
	json_source(json, blocker->file, blocker->function, blocker->line);
	json_close(json, '}');
}

static void json_convertible(struct json *json, const struct terra_graph_report *graph)
{
	json_member_u64(json, "iteration", graph->iteration);
	json_member_u64(json, "ops", graph->n_ops);
	json_member_u64(json, "passive", graph->n_passive);
	json_member_u64(json, "fusible", graph->n_fusible);
	json_member_u64(json, "in_regions", graph->n_in_regions);
	member_double(json, "products_ns", graph->products_ns);
	member_double(json, "others_ns", graph->others_ns);
	member_double(json, "in_regions_ns", graph->in_regions_ns);
	member_double(json, "replaced_ns", graph->replaced_ns);
	json_key(json, "regions");
	json_open(json, '[');
	for (uint32_t i = 0; i < graph->n_regions; i++)
		json_region(json, &graph->regions[i]);
	json_close(json, ']');
	json_key(json, "blockers");
	json_open(json, '[');
	for (uint32_t i = 0; i < graph->n_blockers; i++)
		json_blocker(json, &graph->blockers[i]);
	json_close(json, ']');
}

/* A trace without a steady iteration, or one that ends early, still has the rest of its report. */
static void report_convertible(const struct options *options, struct json *json)
{
	struct terra_graph_report *graph = NULL;
	char err[320] = "";
	int ret = terra_graph_report(options->path, &graph, err, sizeof(err));

	if (options->json) {
		json_key(json, "convertible");
		json_open(json, '{');
		json_member_string(json, "error", ret ? err : NULL);
		if (!ret)
			json_convertible(json, graph);
		json_close(json, '}');
	} else if (ret) {
		printf("\nConvertible regions: %s\n", err);
	} else {
		print_convertible(graph, options->top);
	}
	terra_graph_report_free(graph);
}

static int summarise(struct terra_trace_reader *reader, const struct options *options)
{
	struct json json = {.out = stdout};
	struct terra_summary *summary;
	int status;

	if (terra_summary_new(reader, &summary) != 0) {
		fprintf(stderr, "terra-report: no memory for the summary of %s; --dump needs less\n", options->path);
		return EXIT_UNREADABLE;
	}
	if (options->json) {
		json_open(&json, '{');
		terra_summary_json(summary, options->path, &json);
		report_convertible(options, &json);
		json_close(&json, '}');
		putchar('\n');
	} else {
		terra_summary_print(summary, options->path, options->top, stdout);
		report_convertible(options, NULL);
	}
	status = summary->n_damage || !summary->ended_cleanly ? EXIT_DAMAGED : EXIT_COMPLETE;
	terra_summary_free(summary);
	return status;
}

/* The traces of a distributed program, side by side. */
static int report_ranks(const struct options *options)
{
	struct terra_ranks ranks;
	char err[512];

	if (options->dump || options->export)
		return usage("--dump and --export take one of the traces that the index lists, not the index: ", options->path);
	if (terra_ranks_load(options->path, &ranks, err, sizeof(err)) != 0) {
		fprintf(stderr, "terra-report: %s\n", err);
		return EXIT_UNREADABLE;
	}
	if (options->json)
		terra_ranks_json(&ranks, options->path, stdout);
	else
		terra_ranks_print(&ranks, options->path, stdout);
	terra_ranks_free(&ranks);
	return EXIT_COMPLETE;
}

static int report_trace(const struct options *options)
{
	struct terra_trace_reader *reader;
	char err[320];
	int status;

	if (terra_trace_open(options->path, &reader, err, sizeof(err)) != 0) {
		fprintf(stderr, "terra-report: %s\n", err);
		return EXIT_UNREADABLE;
	}
	if (options->export)
		status = export(reader, options);
	else
		status = options->dump ? dump(reader, options) : summarise(reader, options);
	terra_trace_close(reader);
	return status;
}

int main(int argc, char **argv)
{
	struct options options = {.top = 15};
	int status = parse_options(argc, argv, &options);

	if (status >= 0)
		return status;
	status = terra_ranks_is_index(options.path) ? report_ranks(&options) : report_trace(&options);
	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, "terra-report: cannot write the report: %s\n", strerror(errno));
		return EXIT_UNREADABLE;
	}
	return status;
}
