/* plan_parse.c - reads the text section. Strict: one blank between words, sections in order, nothing after `end`. */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/plan_internal.h"

struct parser {
	const char *at; /* next character; the text ends with a terminator */
	uint32_t line;
	char *err;
	size_t err_size;
};

static int fail(const struct parser *parser, const char *what)
{
	return plan_error(parser->err, parser->err_size, -EINVAL, "line %u of the text section: %s", parser->line,
			  what);
}

/* Grows an array of `size`-byte elements by one zeroed element; NULL without memory. Capacities are powers of two, so
 * the count alone says when to grow. */
static void *grow(void **array, uint32_t *n, size_t size)
{
	void *moved;

	if ((*n & (*n - 1)) == 0) {
		moved = realloc(*array, (*n ? (size_t)*n * 2 : 1) * size);
		if (!moved)
			return NULL;
		*array = moved;
	}
	memset((char *)*array + *n * size, 0, size);
	return (char *)*array + (*n)++ * size;
}

static bool accept(struct parser *parser, const char *text)
{
	size_t n = strlen(text);

	if (strncmp(parser->at, text, n))
		return false;
	parser->at += n;
	return true;
}

static int expect(struct parser *parser, const char *text)
{
	return accept(parser, text) ? 0 : fail(parser, "not what the format has here");
}

static int end_line(struct parser *parser)
{
	int ret = expect(parser, "\n");

	parser->line++;
	return ret;
}

/* A word runs up to a blank or the line's end; a quote inside it (a constant) takes blanks along. */
static size_t word_span(const char *p)
{
	size_t n = 0;
	bool quoted = false;

	for (; p[n] && p[n] != '\n' && (quoted || p[n] != ' '); n++) {
		if (p[n] == '"')
			quoted = !quoted;
		else if (quoted && p[n] == '\\' && p[n + 1] && p[n + 1] != '\n')
			n++;
	}
	return n;
}

static int read_word(struct parser *parser, char **out)
{
	size_t n = word_span(parser->at);

	if (!n || n > PLAN_MAX_WORD)
		return fail(parser, "an empty or overlong word");
	*out = strndup(parser->at, n);
	if (!*out)
		return plan_error(parser->err, parser->err_size, -ENOMEM, "out of memory");
	parser->at += n;
	return 0;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One character of a quoted text; 0 when malformed (a text can't hold the terminator). */
static char read_quoted_char(struct parser *parser)
{
	char c = *parser->at++;
	int high, low;

	if (c != '\\')
		return c == '\n' ? 0 : c;
	c = *parser->at++;
	if (c == '"' || c == '\\')
		return c;
	if (c != 'x')
		return 0;
	high = hex_digit(parser->at[0]);
	low = high < 0 ? -1 : hex_digit(parser->at[1]);
	if (low < 0)
		return 0;
	parser->at += 2;
	return (char)(high << 4 | low);
}

static int read_quoted(struct parser *parser, char **out)
{
	char *text = malloc(PLAN_MAX_WORD + 1);
	size_t n = 0;

	if (!text)
		return plan_error(parser->err, parser->err_size, -ENOMEM, "out of memory");
	*out = text; /* freed with the plan, also after an error */
	text[0] = '\0';
	if (*parser->at++ != '"')
		return fail(parser, "a quoted text is missing");
	while (*parser->at != '"') {
		if (n == PLAN_MAX_WORD || !*parser->at)
			return fail(parser, "an unterminated or overlong text");
		text[n] = read_quoted_char(parser);
		if (!text[n++])
			return fail(parser, "a malformed text");
		text[n] = '\0';
	}
	parser->at++;
	text = realloc(text, n + 1);
	if (text)
		*out = text;
	return 0;
}

static int read_integer(struct parser *parser, uint64_t max, uint64_t *out)
{
	size_t n = strspn(parser->at, "0123456789");
	char *end;

	if (!n || n > 18)
		return fail(parser, "a number is missing or overlong");
	*out = strtoull(parser->at, &end, 10);
	parser->at = end;
	return *out <= max ? 0 : fail(parser, "a number beyond what a plan may have");
}

static int read_double(struct parser *parser, double *out)
{
	size_t n = word_span(parser->at);
	char text[40];

	if (!n || n >= sizeof(text))
		return fail(parser, "a number is missing or overlong");
	memcpy(text, parser->at, n);
	text[n] = '\0';
	if (!plan_number(text, out))
		return fail(parser, "a malformed number");
	parser->at += n;
	return 0;
}

static int parse_environment(struct parser *parser, struct terra_plan *plan)
{
	uint64_t threads = 0;
	int ret;

	if ((ret = expect(parser, "terra-plan 1\nbuild-id ")))
		return ret;
	parser->line++;
	if ((ret = read_word(parser, &plan->build_id)) || (ret = end_line(parser)))
		return ret;
	if ((ret = expect(parser, "cpu ")) || (ret = read_quoted(parser, &plan->cpu)) || (ret = end_line(parser)))
		return ret;
	if ((ret = expect(parser, "cpu-vendor ")) || (ret = read_quoted(parser, &plan->cpu_vendor)) ||
	    (ret = end_line(parser)))
		return ret;
	if ((ret = expect(parser, "threads ")) || (ret = read_integer(parser, UINT32_MAX, &threads)) ||
	    (ret = end_line(parser)))
		return ret;
	plan->threads = (uint32_t)threads;
	if ((ret = expect(parser, "source ")) || (ret = read_quoted(parser, &plan->source)))
		return ret;
	return end_line(parser);
}

static int parse_names(struct parser *parser, const char *keyword, char ***names, uint32_t *n)
{
	char **name;
	int ret;

	while (accept(parser, keyword)) {
		if (*n == PLAN_MAX_NAMES)
			return fail(parser, "more names than a plan may have");
		name = grow((void **)names, n, sizeof(*name));
		if (!name)
			return plan_error(parser->err, parser->err_size, -ENOMEM, "out of memory");
		if ((ret = read_word(parser, name)) || (ret = end_line(parser)))
			return ret;
	}
	return 0;
}

static int parse_op(struct parser *parser, struct terra_plan_region *region)
{
	struct terra_plan_op *op;
	int ret;

	if (region->n_ops == TERRA_PLAN_MAX_OPS)
		return fail(parser, "more ops than a region may have");
	op = grow((void **)&region->ops, &region->n_ops, sizeof(*op));
	if (!op)
		return plan_error(parser->err, parser->err_size, -ENOMEM, "out of memory");
	if ((ret = read_word(parser, &op->op)))
		return ret;
	while (accept(parser, " ")) {
		if (op->n_args == TERRA_PLAN_MAX_ARGS)
			return fail(parser, "more arguments than an op may have");
		if ((ret = read_word(parser, &op->arg[op->n_args])))
			return ret;
		op->n_args++;
	}
	return end_line(parser);
}

static int parse_region_head(struct parser *parser, struct terra_plan_region *region)
{
	uint64_t value;
	int ret;

	if ((ret = read_integer(parser, UINT32_MAX, &value)) || (ret = expect(parser, " ")))
		return ret;
	region->id = (uint32_t)value;
	if ((ret = read_quoted(parser, &region->name)) || (ret = expect(parser, " kernel=")) ||
	    (ret = read_word(parser, &region->kernel)) || (ret = expect(parser, " gain=")) ||
	    (ret = read_double(parser, &region->gain)) || (ret = expect(parser, " eager-ns=")) ||
	    (ret = read_double(parser, &region->eager_ns)) || (ret = expect(parser, " fused-ns=")) ||
	    (ret = read_double(parser, &region->fused_ns)) || (ret = expect(parser, " numel=")) ||
	    (ret = read_integer(parser, (uint64_t)PLAN_MAX_NUMEL, &value)))
		return ret;
	region->numel = (int64_t)value;
	return end_line(parser);
}

static int parse_regions(struct parser *parser, struct terra_plan *plan)
{
	struct terra_plan_region *region;
	bool fallback;
	int ret;

	for (;;) {
		fallback = accept(parser, "fallback ");
		if (!fallback && !accept(parser, "region "))
			return 0;
		if (plan->n_regions == PLAN_MAX_REGIONS)
			return fail(parser, "more regions than a plan may have");
		region = grow((void **)&plan->regions, &plan->n_regions, sizeof(*region));
		if (!region)
			return plan_error(parser->err, parser->err_size, -ENOMEM, "out of memory");
		region->fallback = fallback;
		if ((ret = parse_region_head(parser, region)))
			return ret;
		while (accept(parser, "\t"))
			if ((ret = parse_op(parser, region)))
				return ret;
	}
}

static int parse_replaces(struct parser *parser, struct terra_plan *plan)
{
	struct terra_plan_replace *replace;
	int ret;

	while (accept(parser, "replace ")) {
		if (plan->n_replaces == PLAN_MAX_REPLACES)
			return fail(parser, "more replacements than a plan may have");
		replace = grow((void **)&plan->replaces, &plan->n_replaces, sizeof(*replace));
		if (!replace)
			return plan_error(parser->err, parser->err_size, -ENOMEM, "out of memory");
		if ((ret = read_word(parser, &replace->op)) || (ret = expect(parser, " form=")) ||
		    (ret = read_word(parser, &replace->form)) ||
		    (accept(parser, " shape=") && (ret = read_word(parser, &replace->shape))) ||
		    (ret = expect(parser, " kernel=")) ||
		    (ret = read_word(parser, &replace->kernel)) || (ret = expect(parser, " gain=")) ||
		    (ret = read_double(parser, &replace->gain)) || (ret = end_line(parser)))
			return ret;
	}
	return 0;
}

int plan_parse(const char *text, size_t size, struct terra_plan *plan, char *err, size_t err_size)
{
	struct parser parser = {.at = text, .line = 1, .err = err, .err_size = err_size};
	int ret;

	if (strlen(text) != size)
		return fail(&parser, "a zero byte in the text");
	if ((ret = parse_environment(&parser, plan)) ||
	    (ret = parse_names(&parser, "passive ", &plan->passive, &plan->n_passive)) ||
	    (ret = parse_names(&parser, "list ", &plan->lists, &plan->n_lists)) ||
	    (ret = parse_names(&parser, "import ", &plan->imports, &plan->n_imports)) ||
	    (ret = parse_regions(&parser, plan)) || (ret = parse_replaces(&parser, plan)) ||
	    (ret = expect(&parser, "end")) || (ret = end_line(&parser)))
		return ret;
	return *parser.at ? fail(&parser, "something follows the end") : 0;
}
