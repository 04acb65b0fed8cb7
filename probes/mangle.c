/* mangle.c - parser of mangled op names; see mangle.h.
 *
 * Types are parsed into their C++ spelling ("std::optional<at::Tensor> const&"), which kinds.c then looks up. Text is
 * enough: the spelling of each substitution candidate is kept, and repeating it is what a substitution means. All text
 * lives in one buffer of fixed size, so a name that expands without end (hostile) fails instead of growing.
 */
#include "probes/mangle.h"

#include <errno.h>
#include <string.h>

#include "probes/kinds.h"

#define TEXT_SIZE 16384
#define MAX_SUBSTITUTIONS 256
#define MAX_DEPTH 32

struct span {
	uint16_t start;
	uint16_t size;
};

struct parser {
	const char *at;
	bool failed;
	unsigned depth;
	unsigned n_substitutions;
	struct span substitutions[MAX_SUBSTITUTIONS];
	size_t used;
	char text[TEXT_SIZE];
};

static const struct span no_span;

static struct span fail(struct parser *p)
{
	p->failed = true;
	return no_span;
}

static bool eat(struct parser *p, char c)
{
	if (*p->at != c)
		return false;
	p->at++;
	return true;
}

static void append(struct parser *p, struct span *span, const char *text, size_t size)
{
	if (size > TEXT_SIZE - p->used) {
		p->failed = true;
		return;
	}
	memmove(p->text + p->used, text, size);
	p->used += size;
	span->size += size;
}

static void append_string(struct parser *p, struct span *span, const char *text)
{
	append(p, span, text, strlen(text));
}

static void append_span(struct parser *p, struct span *span, struct span other)
{
	append(p, span, p->text + other.start, other.size);
}

/* A new span grows at the end of the buffer; nothing else may be written while it grows. */
static struct span new_span(const struct parser *p)
{
	return (struct span){.start = (uint16_t)p->used};
}

static struct span joined(struct parser *p, struct span head, const char *middle, struct span tail)
{
	struct span span = new_span(p);

	append_span(p, &span, head);
	append_string(p, &span, middle);
	append_span(p, &span, tail);
	return span;
}

static struct span literal(struct parser *p, const char *text)
{
	struct span span = new_span(p);

	append_string(p, &span, text);
	return span;
}

static struct span remember(struct parser *p, struct span span)
{
	if (p->n_substitutions == MAX_SUBSTITUTIONS)
		return fail(p);
	p->substitutions[p->n_substitutions++] = span;
	return span;
}

static struct span parse_type(struct parser *p);

/* <number> <identifier>: the identifier's place in the input. */
static bool source_name(const char **at, const char **name, size_t *size)
{
	size_t n = 0;

	if (**at < '1' || **at > '9')
		return false;
	while (**at >= '0' && **at <= '9') {
		n = n * 10 + (size_t)(*(*at)++ - '0');
		if (n > TEXT_SIZE)
			return false;
	}
	if (strnlen(*at, n) < n)
		return false;
	*name = *at;
	*size = n;
	*at += n;
	return true;
}

static struct span parse_source_name(struct parser *p)
{
	struct span span = new_span(p);
	const char *name;
	size_t size;

	if (!source_name(&p->at, &name, &size))
		return fail(p);
	append(p, &span, name, size);
	return span;
}

/* S_, S0_, ... SZ_, S10_ (base 36), after the 'S'. */
static struct span parse_substitution(struct parser *p)
{
	size_t index = 0;

	if (!eat(p, '_')) {
		for (; *p->at != '_'; p->at++) {
			if (*p->at >= '0' && *p->at <= '9')
				index = index * 36 + (size_t)(*p->at - '0');
			else if (*p->at >= 'A' && *p->at <= 'Z')
				index = index * 36 + (size_t)(*p->at - 'A') + 10;
			else
				return fail(p);
			if (index >= MAX_SUBSTITUTIONS)
				return fail(p);
		}
		p->at++;
		index++;
	}
	return index < p->n_substitutions ? p->substitutions[index] : fail(p);
}

/* Abbreviations of the standard library that are substitutions by themselves. */
static const char *standard_name(char c)
{
	switch (c) {
	case 'a':
		return "std::allocator";
	case 'b':
		return "std::basic_string";
	case 's':
		return "std::string";
	default:
		return NULL;
	}
}

/* A literal argument: L <builtin type> <digits> E. Only its digits and the suffix that the type has are spelled. */
static struct span parse_literal(struct parser *p)
{
	struct span span = new_span(p);
	char type = *p->at;

	if (type != 'm' && type != 'l' && type != 'i' && type != 'j' && type != 'b')
		return fail(p);
	p->at++;
	while ((*p->at >= '0' && *p->at <= '9') || *p->at == 'n')
		append(p, &span, p->at++, 1);
	append_string(p, &span, type == 'm' ? "ul" : type == 'l' ? "l" : "");
	return eat(p, 'E') ? span : fail(p);
}

static struct span parse_template_arguments(struct parser *p, struct span name)
{
	struct span whole = joined(p, name, "<", no_span);

	for (bool first = true; !p->failed && !eat(p, 'E'); first = false) {
		struct span argument = eat(p, 'L') ? parse_literal(p) : parse_type(p);

		whole = joined(p, whole, first ? "" : ", ", argument);
	}
	if (p->used > 0 && p->text[p->used - 1] == '>')
		append_string(p, &whole, " ");
	append_string(p, &whole, ">");
	return whole;
}

/* After the 'N': components up to 'E'. Every prefix is a substitution candidate. */
static struct span parse_nested(struct parser *p)
{
	struct span prefix = no_span;
	bool any = false;

	while (!p->failed && !eat(p, 'E')) {
		if (*p->at == 'I' && any) {
			p->at++;
			prefix = remember(p, parse_template_arguments(p, prefix));
		} else if (*p->at == 'S' && !any) {
			p->at++;
			prefix = eat(p, 't') ? literal(p, "std") : parse_substitution(p);
		} else {
			struct span name = parse_source_name(p);

			prefix = remember(p, any ? joined(p, prefix, "::", name) : name);
		}
		any = true;
	}
	return any ? prefix : fail(p);
}

static struct span maybe_template(struct parser *p, struct span name)
{
	return eat(p, 'I') ? remember(p, parse_template_arguments(p, name)) : name;
}

/* After the 'S'. */
static struct span parse_standard_or_substitution(struct parser *p)
{
	const char *name = standard_name(*p->at);

	if (name) {
		p->at++;
		return maybe_template(p, literal(p, name));
	}
	if (eat(p, 't')) {
		struct span std = literal(p, "std::");

		return maybe_template(p, remember(p, joined(p, std, "", parse_source_name(p))));
	}
	return maybe_template(p, parse_substitution(p));
}

static const char *builtin_name(char c)
{
	static const char *const names['z' + 1] = {
		['v'] = "void",
		['b'] = "bool",
		['c'] = "char",
		['a'] = "signed char",
		['h'] = "unsigned char",
		['s'] = "short",
		['t'] = "unsigned short",
		['i'] = "int",
		['j'] = "unsigned int",
		['l'] = "long",
		['m'] = "unsigned long",
		['x'] = "long long",
		['y'] = "unsigned long long",
		['f'] = "float",
		['d'] = "double",
	};

	return c >= 'a' && c <= 'z' ? names[(int)c] : NULL;
}

/* Pointers, references and const are candidates of their own, after what they are applied to. */
static struct span parse_compound(struct parser *p, const char *suffix)
{
	struct span inner = parse_type(p);

	return p->failed ? no_span : remember(p, joined(p, inner, suffix, no_span));
}

static struct span parse_type_by_code(struct parser *p)
{
	const char *builtin = builtin_name(*p->at);

	if (builtin) {
		p->at++;
		return literal(p, builtin);
	}
	if (*p->at >= '1' && *p->at <= '9')
		return maybe_template(p, remember(p, parse_source_name(p)));
	switch (*p->at) {
	case 'R':
		p->at++;
		return parse_compound(p, "&");
	case 'O':
		p->at++;
		return parse_compound(p, "&&");
	case 'P':
		p->at++;
		return parse_compound(p, "*");
	case 'K':
		p->at++;
		return parse_compound(p, " const");
	case 'N':
		p->at++;
		return parse_nested(p);
	case 'S':
		p->at++;
		return parse_standard_or_substitution(p);
	default:
		return fail(p);
	}
}

static struct span parse_type(struct parser *p)
{
	struct span span;

	if (p->failed || p->depth == MAX_DEPTH)
		return fail(p);
	p->depth++;
	span = parse_type_by_code(p);
	p->depth--;
	return span;
}

static void begin_parse(struct parser *p, const char *mangled)
{
	/* Not the text buffer: clearing it would cost more than the parse. */
	p->at = mangled;
	p->failed = false;
	p->depth = 0;
	p->n_substitutions = 0;
	p->used = 0;
}

/* _ZN 2at 4_ops <class> (4call | 10redispatch) E; leaves the parser at the first parameter. */
static int parse_entry_name(struct parser *p, struct terra_signature *out)
{
	static const char prefix[] = "_ZN2at4_ops";
	const char *name;
	size_t size;

	if (strncmp(p->at, prefix, sizeof(prefix) - 1) != 0)
		return -ENOENT;
	p->at += sizeof(prefix) - 1;
	if (!source_name(&p->at, &out->class_name, &out->class_size) || !source_name(&p->at, &name, &size))
		return -ENOENT;
	if (size == 4 && memcmp(name, "call", size) == 0)
		out->level = TERRA_LEVEL_CALL;
	else if (size == 10 && memcmp(name, "redispatch", size) == 0)
		out->level = TERRA_LEVEL_REDISPATCH;
	else
		return -ENOENT;
	if (!eat(p, 'E'))
		return -ENOENT;
	remember(p, literal(p, "at"));
	remember(p, literal(p, "at::_ops"));
	remember(p, new_span(p)); /* the class, which no parameter type names */
	return 0;
}

static int parse_parameters(struct parser *p, struct terra_signature *out)
{
	if (strcmp(p->at, "v") == 0)
		return 0;
	while (*p->at) {
		struct span type;

		if (out->n_parameters == TERRA_MAX_ARGS)
			return -E2BIG;
		type = parse_type(p);
		terra_kind_classify(p->failed ? NULL : p->text + type.start, type.size,
				    &out->parameters[out->n_parameters++]);
		if (p->failed) {
			out->whole = false;
			return 0;
		}
	}
	return 0;
}

int terra_mangle_parse(const char *mangled, struct terra_signature *out)
{
	struct parser p;
	int err;

	begin_parse(&p, mangled);
	memset(out, 0, sizeof(*out));
	out->whole = true;
	err = parse_entry_name(&p, out);
	return err ? err : parse_parameters(&p, out);
}

/* _ZN 2at <namespace> <name> E; leaves the parser at the first parameter. */
static int parse_composite_name(struct parser *p, const char **name, size_t *size)
{
	static const char prefix[] = "_ZN2at25compositeimplicitautograd";

	if (strncmp(p->at, prefix, sizeof(prefix) - 1) != 0)
		return -ENOENT;
	p->at += sizeof(prefix) - 1;
	if (!source_name(&p->at, name, size) || !eat(p, 'E'))
		return -ENOENT;
	remember(p, literal(p, "at"));
	remember(p, literal(p, "at::compositeimplicitautograd"));
	return 0;
}

static int spell_parameters(struct parser *p, char *out, size_t size)
{
	size_t used = 0;

	for (unsigned n = 0; *p->at; n++) {
		struct span type = parse_type(p);

		if (p->failed)
			return -ENOTSUP;
		if (n >= TERRA_MAX_ARGS || used + type.size + 2 > size)
			return -E2BIG;
		memcpy(out + used, p->text + type.start, type.size);
		used += type.size;
		out[used++] = ';';
	}
	out[used] = '\0';
	return 0;
}

int terra_mangle_spell_op(const char *mangled, char *types, size_t size)
{
	struct terra_signature ignored;
	struct parser p;
	int err;

	begin_parse(&p, mangled);
	err = parse_entry_name(&p, &ignored);
	return err ? err : spell_parameters(&p, types, size);
}

int terra_mangle_spell_composite(const char *mangled, const char **name, size_t *name_size, char *types, size_t size)
{
	struct parser p;
	int err;

	begin_parse(&p, mangled);
	err = parse_composite_name(&p, name, name_size);
	return err ? err : spell_parameters(&p, types, size);
}
