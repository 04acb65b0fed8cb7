/* plan_check.c - what must hold of a plan's regions, whether they were read or are to be written.
 *
 * Replay indexes arrays by the numbers inside the tokens without looking again, so nothing passes here that could send
 * it out of bounds or make it read a value that does not exist yet.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/plan_internal.h"
#include "graphopt/plan_ops.h"

static bool is_word_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static size_t word_length(const char *s)
{
	size_t n = 0;

	while (is_word_char(s[n]))
		n++;
	return n;
}

bool plan_symbol_valid(const char *name)
{
	size_t n = name ? word_length(name) : 0;

	return n > 0 && n < 256 && !name[n] && !(name[0] >= '0' && name[0] <= '9');
}

/* <namespace>::<name>[.<overload>] */
bool plan_op_name_valid(const char *name)
{
	const char *p = name;
	size_t n;

	if (!p || strlen(p) >= 256)
		return false;
	n = word_length(p);
	if (!n || p[n] != ':' || p[n + 1] != ':')
		return false;
	p += n + 2;
	n = word_length(p);
	if (!n)
		return false;
	p += n;
	if (!*p)
		return true;
	if (*p++ != '.')
		return false;
	n = word_length(p);
	return n && !p[n];
}

bool terra_plan_op_in_place(const char *op)
{
	const char *name = strstr(op, "::");
	size_t n;

	name = name ? name + 2 : op;
	n = word_length(name);
	if (n < 2 || name[n - 1] != '_')
		return false;
	if (name[n - 2] != '_')
		return true;
	return n > 5 && !strncmp(name, "__i", 3);
}

bool terra_plan_token_is_input(const char *token)
{
	return token[0] == 'i' || token[0] == 'b' || token[0] == 'r';
}

bool terra_plan_op_by_rows(const struct terra_plan_op *op)
{
	for (uint32_t i = 0; i < op->n_args; i++)
		if (op->arg[i][0] == 'r' || op->arg[i][0] == 'l')
			return true;
	return false;
}

bool terra_plan_region_by_rows(const struct terra_plan_region *region)
{
	for (uint32_t k = 0; k < region->n_ops; k++)
		if (terra_plan_op_by_rows(&region->ops[k]))
			return true;
	return false;
}

/* Decimal without sign or leading zeros, at most 3 digits: every index of a plan fits. */
static bool parse_index(const char *s, uint32_t *out)
{
	size_t n = strspn(s, "0123456789");

	if (!n || n > 3 || s[n] || (s[0] == '0' && n > 1))
		return false;
	*out = (uint32_t)strtoul(s, NULL, 10);
	return true;
}

static bool quoted_valid(const char *s)
{
	if (*s++ != '"')
		return false;
	for (; *s && *s != '"'; s++) {
		if ((unsigned char)*s < 0x20 || (unsigned char)*s > 0x7e)
			return false;
		if (*s == '\\' && *++s != '"' && *s != '\\')
			return false;
	}
	return s[0] == '"' && !s[1];
}

static bool number_valid(const char *s)
{
	double value;

	return strlen(s) <= 32 && strspn(s, "0123456789+-.einfa") == strlen(s) && plan_number(s, &value);
}

static bool constant_valid(const char *s)
{
	return strlen(s) <= PLAN_MAX_WORD && (*s == '"' ? quoted_valid(s) : number_valid(s));
}

struct region_state {
	uint32_t op; /* index of the op at hand */
	uint32_t n_inputs, n_scalars;
	char letter[TERRA_PLAN_MAX_INPUTS];	    /* i, b or r, as first used */
	bool replaced_input[TERRA_PLAN_MAX_INPUTS]; /* written in place: an older name */
	bool replaced_value[TERRA_PLAN_MAX_OPS];
};

static const char *check_input(struct region_state *state, char letter, uint32_t index)
{
	if (index >= TERRA_PLAN_MAX_INPUTS)
		return "has an input number beyond the most a region may have";
	if (index > state->n_inputs)
		return "skips an input number";
	if (index == state->n_inputs) {
		state->letter[index] = letter;
		state->n_inputs++;
	}
	if (state->letter[index] != letter)
		return "names one input by two letters";
	if (state->replaced_input[index])
		return "uses the old name of a value that was written in place";
	return NULL;
}

static const char *check_value(const struct region_state *state, uint32_t index)
{
	if (index >= state->op)
		return "uses the result of an op that has not run";
	if (state->replaced_value[index])
		return "uses the old name of a value that was written in place";
	return NULL;
}

static const char *check_token(struct region_state *state, const char *token)
{
	uint32_t index;

	if (!token)
		return "lacks an argument";
	switch (token[0]) {
	case 'v':
		return parse_index(token + 1, &index) ? check_value(state, index) : "has a malformed token";
	case 'i':
	case 'b':
	case 'r':
		return parse_index(token + 1, &index) ? check_input(state, token[0], index) : "has a malformed token";
	case 's':
	case 'f':
		if (token[1])
			return "has a malformed token";
		return ++state->n_scalars > TERRA_PLAN_MAX_SCALARS ? "has more numbers than a region may have" : NULL;
	case '#':
		return constant_valid(token + 1) ? NULL : "has a malformed constant";
	case 'l':
	case '-':
		return token[1] ? "has a malformed token" : NULL;
	}
	return "has a malformed token";
}

static const char *check_in_place(struct region_state *state, const struct terra_plan_op *op)
{
	const char *target = op->n_args ? op->arg[0] : "";
	uint32_t index;

	if ((target[0] != 'v' && target[0] != 'i') || !parse_index(target + 1, &index))
		return "writes in place what is not a full tensor";
	if (target[0] == 'v')
		state->replaced_value[index] = true;
	else
		state->replaced_input[index] = true;
	return NULL;
}

static const char *check_op(struct region_state *state, const struct terra_plan_op *op)
{
	const char *wrong = NULL;
	uint32_t i;

	if (!plan_op_name_valid(op->op))
		return "has a malformed op name";
	if (!op->n_args || op->n_args > TERRA_PLAN_MAX_ARGS)
		return "has no or too many arguments";
	for (i = 0; i < op->n_args && !wrong; i++)
		wrong = check_token(state, op->arg[i]);
	if (!wrong && terra_plan_op_in_place(op->op))
		wrong = check_in_place(state, op);
	return wrong;
}

int plan_check_region(const struct terra_plan_region *region, uint32_t *n_inputs, uint32_t *n_scalars, char *err,
		      size_t err_size)
{
	struct region_state state = {0};
	const char *wrong;

	if (!region->n_ops || region->n_ops > TERRA_PLAN_MAX_OPS)
		return plan_error(err, err_size, -EINVAL, "region %u has %u ops, a region has 1 to %d", region->id,
				  region->n_ops, TERRA_PLAN_MAX_OPS);
	for (state.op = 0; state.op < region->n_ops; state.op++) {
		wrong = check_op(&state, &region->ops[state.op]);
		if (wrong)
			return plan_error(err, err_size, -EINVAL, "region %u: op %u %s", region->id, state.op, wrong);
	}
	if (terra_plan_region_by_rows(region) && memchr(state.letter, 'b', state.n_inputs))
		return plan_error(err, err_size, -EINVAL, "region %u goes by rows and has an input that broadcasts", region->id);
	*n_inputs = state.n_inputs;
	*n_scalars = state.n_scalars;
	return 0;
}

static bool measure_valid(double x)
{
	return isfinite(x) && x >= 0;
}

static int check_region_fields(const struct terra_plan_region *region, char *err, size_t err_size)
{
	if (!plan_symbol_valid(region->kernel))
		return plan_error(err, err_size, -EINVAL, "region %u has no valid kernel symbol", region->id);
	if (region->numel < 0 || region->numel > PLAN_MAX_NUMEL)
		return plan_error(err, err_size, -EINVAL, "region %u has an impossible domain", region->id);
	if (!measure_valid(region->gain) || !measure_valid(region->eager_ns) || !measure_valid(region->fused_ns))
		return plan_error(err, err_size, -EINVAL, "region %u has an impossible measurement", region->id);
	if (region->fallback && region->n_ops != 1)
		return plan_error(err, err_size, -EINVAL, "region %u is a fallback of more than one op", region->id);
	return 0;
}

static int op_compare(const struct terra_plan_op *a, const struct terra_plan_op *b)
{
	int order = strcmp(a->op, b->op);
	uint32_t i;

	if (!order)
		order = (int)a->n_args - (int)b->n_args;
	for (i = 0; !order && i < a->n_args; i++)
		order = strcmp(a->arg[i], b->arg[i]);
	return order;
}

/* By what is matched: the canonical lines. */
int plan_region_compare(const struct terra_plan_region *a, const struct terra_plan_region *b)
{
	int order = (a->n_ops > b->n_ops) - (a->n_ops < b->n_ops);
	uint32_t i;

	for (i = 0; !order && i < a->n_ops; i++)
		order = op_compare(&a->ops[i], &b->ops[i]);
	return order;
}

static int by_lines(const void *a, const void *b)
{
	return plan_region_compare(*(struct terra_plan_region *const *)a, *(struct terra_plan_region *const *)b);
}

static int by_id(const void *a, const void *b)
{
	const struct terra_plan_region *x = *(struct terra_plan_region *const *)a;
	const struct terra_plan_region *y = *(struct terra_plan_region *const *)b;

	return (x->id > y->id) - (x->id < y->id);
}

/* Two regions with the same lines, or the same id, could not be told apart. */
static int check_unique(const struct terra_plan *plan, char *err, size_t err_size)
{
	const struct terra_plan_region **sorted;
	uint32_t i, n = plan->n_regions;
	int ret = 0;

	sorted = calloc(n + 1, sizeof(*sorted));
	if (!sorted)
		return plan_error(err, err_size, -ENOMEM, "out of memory");
	for (i = 0; i < n; i++)
		sorted[i] = &plan->regions[i];
	qsort(sorted, n, sizeof(*sorted), by_id);
	for (i = 1; i < n && !ret; i++)
		if (!by_id(&sorted[i - 1], &sorted[i]))
			ret = plan_error(err, err_size, -EINVAL, "two regions have the number %u", sorted[i]->id);
	qsort(sorted, n, sizeof(*sorted), by_lines);
	for (i = 1; i < n && !ret; i++)
		if (!by_lines(&sorted[i - 1], &sorted[i]))
			ret = plan_error(err, err_size, -EINVAL, "regions %u and %u are the same", sorted[i - 1]->id,
					 sorted[i]->id);
	free(sorted);
	return ret;
}

static bool replace_valid(const struct terra_plan_replace *replace)
{
	struct terra_sgemm_shape shape;

	if (!plan_op_name_valid(replace->op) || !plan_symbol_valid(replace->form) || !plan_symbol_valid(replace->kernel) ||
	    !measure_valid(replace->gain))
		return false;
	if (strcmp(replace->form, "sgemm_tiles"))
		return !replace->shape;
	return replace->shape && terra_plan_sgemm_shape(replace->shape, &shape);
}

static int check_names(const struct terra_plan *plan, char *err, size_t err_size)
{
	uint32_t i;

	if (plan->n_passive > PLAN_MAX_NAMES || plan->n_lists > PLAN_MAX_NAMES || plan->n_imports > PLAN_MAX_NAMES ||
	    plan->n_regions > PLAN_MAX_REGIONS || plan->n_replaces > PLAN_MAX_REPLACES)
		return plan_error(err, err_size, -EINVAL, "more names or regions than a plan may have");
	for (i = 0; i < plan->n_passive; i++)
		if (!plan_op_name_valid(plan->passive[i]))
			return plan_error(err, err_size, -EINVAL, "passive op %u has a malformed name", i);
	for (i = 0; i < plan->n_lists; i++)
		if (!plan_op_name_valid(plan->lists[i]))
			return plan_error(err, err_size, -EINVAL, "list op %u has a malformed name", i);
	for (i = 0; i < plan->n_imports; i++)
		if (!plan_symbol_valid(plan->imports[i]))
			return plan_error(err, err_size, -EINVAL, "import %u has a malformed name", i);
	for (i = 0; i < plan->n_replaces; i++)
		if (!replace_valid(&plan->replaces[i]))
			return plan_error(err, err_size, -EINVAL, "replacement %u is malformed", i);
	return 0;
}

static int check_environment(const struct terra_plan *plan, char *err, size_t err_size)
{
	size_t n = plan->build_id ? strlen(plan->build_id) : 0;

	if (n < 2 || n > 128 || n % 2 || strspn(plan->build_id, "0123456789abcdef") != n)
		return plan_error(err, err_size, -EINVAL, "the build-id of the plan is not hexadecimal");
	if (plan->threads > 1u << 20)
		return plan_error(err, err_size, -EINVAL, "impossible number of threads");
	if ((plan->n_regions || plan->n_replaces) && !plan->code_size)
		return plan_error(err, err_size, -EINVAL, "regions without code");
	return 0;
}

int plan_check(const struct terra_plan *plan, char *err, size_t err_size)
{
	uint32_t i, n_inputs, n_scalars;
	int ret = check_environment(plan, err, err_size);

	if (!ret)
		ret = check_names(plan, err, err_size);
	for (i = 0; i < plan->n_regions && !ret; i++) {
		ret = plan_check_region(&plan->regions[i], &n_inputs, &n_scalars, err, err_size);
		if (!ret)
			ret = check_region_fields(&plan->regions[i], err, err_size);
		if (ret)
			break;
		plan->regions[i].n_inputs = n_inputs;
		plan->regions[i].n_scalars = n_scalars;
		plan->regions[i].by_rows = terra_plan_region_by_rows(&plan->regions[i]);
	}
	return ret ? ret : check_unique(plan, err, err_size);
}
