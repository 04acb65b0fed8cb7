/* terra-report.c - what a trace holds: summary, times, call sites, or every event. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "collector/report.h"

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
	"    terra-report --help\n"
	"\n"
	"DESCRIPTION\n"
	"    Reads a trace that terra-trace wrote and prints the program, its ops, threads and iterations, the time\n"
	"    by op and by call site in the program, what was lost, and the recorder's notes. Times are those of the\n"
	"    recorded run: they include what recording cost, most for the shortest ops.\n"
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
	"               Stacks go from the innermost frame outwards; \"?\" is a value that could not be read.\n"
	"    -h, --help Print this text.\n"
	"\n"
	"EXIT STATUS\n"
	"    0  the whole trace was reported\n"
	"    1  the trace is damaged or ended abnormally; what is intact was reported\n"
	"    2  wrong usage, or FILE cannot be read at all\n"
	"\n"
	"EXAMPLES\n"
	"    terra-trace -o train.terra -- python train.py\n"
	"    terra-report --top 30 train.terra\n"
	"    terra-report --json train.terra | python -m json.tool\n"
	"    terra-report --dump train.terra | grep ' raised'\n"
	"\n"
	"SEE ALSO\n"
	"    terra-trace, terra-opt, docs/trace-format.md\n";

struct options {
	const char *path;
	unsigned int top;
	bool json;
	bool dump;
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

/* -1: go on; else the exit status. */
static int parse_options(int argc, char **argv, struct options *options)
{
	static const struct option longs[] = {
		{"json", no_argument, NULL, 'j'},
		{"top", required_argument, NULL, 't'},
		{"dump", no_argument, NULL, 'd'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	int option;

	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
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
	return -1;
}

static int dump(struct terra_trace_reader *reader, const struct options *options)
{
	bool damaged;

	terra_trace_dump(reader, options->json, stdout, &damaged);
	return damaged ? EXIT_DAMAGED : EXIT_COMPLETE;
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
		json_close(&json, '}');
		putchar('\n');
	} else {
		terra_summary_print(summary, options->path, options->top, stdout);
	}
	status = summary->n_damage || !summary->ended_cleanly ? EXIT_DAMAGED : EXIT_COMPLETE;
	terra_summary_free(summary);
	return status;
}

int main(int argc, char **argv)
{
	struct options options = {.top = 15};
	struct terra_trace_reader *reader;
	char err[320];
	int status = parse_options(argc, argv, &options);

	if (status >= 0)
		return status;
	if (terra_trace_open(options.path, &reader, err, sizeof(err)) != 0) {
		fprintf(stderr, "terra-report: %s\n", err);
		return EXIT_UNREADABLE;
	}
	status = options.dump ? dump(reader, &options) : summarise(reader, &options);
	terra_trace_close(reader);
	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, "terra-report: cannot write the report: %s\n", strerror(errno));
		return EXIT_UNREADABLE;
	}
	return status;
}
