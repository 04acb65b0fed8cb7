/* oprules.c - the table of elementwise float32 ops and what each computes.
 *
 * Where these come from: candidates were compared with the framework over special values (zeros, infinities, NaNs with
 * payloads, denormals, ties) and random bits, as one long tensor, in pieces of 7 elements (the framework's scalar tail)
 * and strided. What they show about the framework (x86-64, AVX2 build):
 *   - add and sub are fused multiply-adds with alpha, also when alpha is 1; that shows in which of two NaNs survives.
 *     The second operand goes first in mul, too: hence vmul($1, $0).
 *   - numbers are converted to float before anything else; number / tensor really divides.
 *   - addcmul is fused, addcdiv is not; lerp switches formula at |weight| = 0.5.
 *   - sqrt, exp, log, tanh, erf, sin, ... are MKL's vector functions, whose bits do not depend on position; rsqrt and
 *     pow(-0.5) are the correctly rounded instructions.
 *   - whenever an op's vector body and scalar tail use different functions (sigmoid, gelu, ...), the bits of an element
 *     depend on how the tensor is cut into vectors and threads: such ops are left out, see excluded[].
 * When several different NaNs meet in one operation, body and tail of the framework itself differ in which one
 * survives. The rules follow the body.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/oprules.h"

/* clang-format off: one rule, one line */
/* An op and its in-place form, whose first argument must be a tensor of the domain. */
#define BOTH(name, overload, first, rest, values, c)                                                                   \
	{.op = name overload, .args = first rest, .constants = values, .expr = c},                                     \
	{                                                                                                              \
		.op = name "_" overload, .args = "t" rest, .constants = values, .expr = c, .in_place = true            \
	}
#define VML(name, symbol)                                                                                              \
	{.op = name, .args = "t", .import = symbol},                                                                   \
	{                                                                                                              \
		.op = name "_", .args = "t", .import = symbol, .in_place = true                                        \
	}
#define POWER(exponent, c)                                                                                             \
	{.op = "aten::pow.Tensor_Scalar", .args = "tc", .constants = exponent, .expr = c},                             \
	{                                                                                                              \
		.op = "aten::pow_.Scalar", .args = "tc", .constants = exponent, .expr = c, .in_place = true            \
	}
#define LERP "vsel_lt(vabs($2), vnum(0.5f), vfma($2, vsub($1, $0), $0), vfma(vsub($2, vnum(1)), vsub($1, $0), $1))"
#define CLAMP "vsel_nan($2, $2, vsel_nan($1, $1, vmin($2, vmax($1, $0))))"

static const struct oprule rules[] = {
    /* alpha * other is taken out of the scalar tail's loop, and so rounded, when other is the same for all elements of
     * a row. With alpha 1 that makes no difference. */
    BOTH("aten::add", ".Tensor", "e", "ds", NULL, "vfma($1, $2, $0)"),
    BOTH("aten::add", ".Tensor", "e", "ec", "1", "vfma($1, vnum(1), $0)"),
    BOTH("aten::add", ".Scalar", "t", "sc", "1", "vfma($1, vnum(1), $0)"),
    BOTH("aten::sub", ".Tensor", "e", "ds", NULL, "vfma($1, vneg($2), $0)"),
    BOTH("aten::sub", ".Tensor", "e", "ec", "1", "vfma($1, vnum(-1), $0)"),
    BOTH("aten::sub", ".Scalar", "t", "sc", "1", "vfma($1, vnum(-1), $0)"),
    {.op = "aten::rsub.Tensor", .args = "des", .expr = "vfma($0, vneg($2), $1)"},
    {.op = "aten::rsub.Tensor", .args = "eec", .constants = "1", .expr = "vfma($0, vnum(-1), $1)"},
    {.op = "aten::rsub.Scalar", .args = "dss", .expr = "vfma($0, vneg($2), $1)"},
    {.op = "aten::rsub.Scalar", .args = "tsc", .constants = "1", .expr = "vfma($0, vnum(-1), $1)"},
    BOTH("aten::mul", ".Tensor", "e", "e", NULL, "vmul($1, $0)"),
    BOTH("aten::mul", ".Scalar", "t", "s", NULL, "vmul($1, $0)"),
    BOTH("aten::div", ".Tensor", "e", "e", NULL, "vdiv($0, $1)"),
    BOTH("aten::div", ".Scalar", "t", "s", NULL, "vdiv($0, $1)"),

    BOTH("aten::neg", "", "t", "", NULL, "vneg($0)"),
    BOTH("aten::abs", "", "t", "", NULL, "vabs($0)"),
    BOTH("aten::sign", "", "t", "", NULL,
	 "vsub(vsel_lt(vnum(0), $0, vnum(1), vnum(0)), vsel_lt($0, vnum(0), vnum(1), vnum(0)))"),
    BOTH("aten::relu", "", "t", "", NULL, "vmax(vnum(0), $0)"),
    BOTH("aten::threshold", "", "t", "ss", NULL, "vsel_le($0, $1, $2, $0)"),
    {.op = "aten::threshold_backward", .args = "tts", .expr = "vsel_le($1, $2, vnum(0), $0)"},
    BOTH("aten::leaky_relu", "", "t", "s", NULL, "vmul(vsel_lt(vnum(0), $0, vnum(1), $1), $0)"),
    /* clamp with both limits makes everything NaN when one of them is; with one limit a NaN limit does nothing; and
     * clamp_min, clamp_max are as clamp with both. */
    BOTH("aten::clamp_min", "", "t", "s", NULL, "vsel_nan($1, $1, vmax($1, $0))"),
    BOTH("aten::clamp_max", "", "t", "s", NULL, "vsel_nan($1, $1, vmin($1, $0))"),
    BOTH("aten::clamp", "", "t", "ss", NULL, CLAMP),
    BOTH("aten::clamp", "", "t", "s-", NULL, "vmax($1, $0)"),
    BOTH("aten::clamp", "", "t", "-s", NULL, "vmin($2, $0)"),
    BOTH("aten::hardtanh", "", "t", "ss", NULL, CLAMP),

    BOTH("aten::reciprocal", "", "t", "", NULL, "vdiv(vnum(1), $0)"),
    BOTH("aten::rsqrt", "", "t", "", NULL, "vdiv(vnum(1), vsqrt($0))"),
    BOTH("aten::square", "", "t", "", NULL, "vmul($0, $0)"),
    POWER("2", "vmul($0, $0)"),
    POWER("3", "vmul(vmul($0, $0), $0)"),
    POWER("-0.5", "vdiv(vnum(1), vsqrt($0))"),
    POWER("-1", "vdiv(vnum(1), $0)"),
    POWER("-2", "vdiv(vnum(1), vmul($0, $0))"),
    {.op = "aten::pow.Tensor_Scalar", .args = "tc", .constants = "0.5", .import = "vmsSqrt"},
    {.op = "aten::pow_.Scalar", .args = "tc", .constants = "0.5", .import = "vmsSqrt", .in_place = true},

    VML("aten::sqrt", "vmsSqrt"),
    VML("aten::exp", "vmsExp"),
    VML("aten::log", "vmsLn"),
    VML("aten::log2", "vmsLog2"),
    VML("aten::log10", "vmsLog10"),
    VML("aten::tanh", "vmsTanh"),
    VML("aten::erf", "vmsErf"),
    VML("aten::erfc", "vmsErfc"),
    VML("aten::sin", "vmsSin"),
    VML("aten::cos", "vmsCos"),
    VML("aten::tan", "vmsTan"),
    VML("aten::asin", "vmsAsin"),
    VML("aten::acos", "vmsAcos"),
    VML("aten::atan", "vmsAtan"),
    VML("aten::trunc", "vmsTrunc"),

    /* With one output for a whole row 1 - output^2 is rounded in between. */
    {.op = "aten::tanh_backward", .args = "td", .expr = "vmul($0, vfnma($1, $1, vnum(1)))"},
    {.op = "aten::sigmoid_backward", .args = "tt", .expr = "vmul(vmul(vsub(vnum(1), $1), $0), $1)"},

    /* With weight 1 the body gives end + 0 * (end - self), the tail end - 0 * (end - self): -0 comes out differently.
     */
    BOTH("aten::lerp", ".Scalar", "t", "tc", "!1", LERP),
    /* With a factor that is the same for a whole row another of two NaNs survives. */
    BOTH("aten::addcmul", "", "t", "dds", NULL, "vfma(vmul($1, $3), $2, $0)"),
    BOTH("aten::addcdiv", "", "t", "tts", NULL, "vadd(vdiv(vmul($1, $3), $2), $0)"),

    /* What follows goes by rows. All the loss's gradient is zero but one number in each row; type 6 is float32. */
    {.op = "aten::nll_loss_backward", .args = "fdr-ccf", .constants = "1 *",
     .expr = "vcolumn($2, %5, i, vneg(vdiv($0, $6)))"},
    {.op = "aten::nll_loss_backward", .args = "fdr-ccf", .constants = "2 *",
     .expr = "vcolumn($2, %5, i, vneg($0))"},
    {.op = "aten::_log_softmax_backward_data", .args = "ddlc", .constants = "6", .function = "Sleef_expf8_u10",
     .sum = "$0", .expr = "vfnma($f($1), $r, $0)"},
};

#define SQRT(name, schema, values, place)                                                                              \
	{                                                                                                              \
		.op = name, .args = schema, .constants = values, .expr = "vsqrt_refined($0)", .import = "vmsSqrt",      \
		.in_place = place                                                                                      \
	}

static const struct oprule inlined[] = {
    SQRT("aten::sqrt", "t", NULL, false),
    SQRT("aten::sqrt_", "t", NULL, true),
    SQRT("aten::pow.Tensor_Scalar", "tc", "0.5", false),
    SQRT("aten::pow_.Scalar", "tc", "0.5", true),
};

/* clang-format on */

static const char by_position[] =
    "the vector body and the scalar tail use different functions: bits depend on position";
static const char nan_by_position[] = "a NaN has other bits in the vector body than in the scalar tail";
static const char not_float[] = "reads or makes a tensor that is not float32";

static const struct {
	const char *op; /* without overload and in-place underscore */
	const char *reason;
} excluded[] = {
    {"aten::sigmoid", by_position},
    {"aten::silu", by_position},
    {"aten::silu_backward", by_position},
    {"aten::elu", by_position},
    {"aten::mish", by_position},
    {"aten::softplus", by_position},
    {"aten::exp2", by_position},
    {"aten::atan2", by_position},
    {"aten::pow", "only the exponents -2, -1, -0.5, 0.5, 2 and 3 are arithmetic; others depend on position"},
    {"aten::gelu", "without approximation it is oneDNN's own code; with tanh bits depend on position"},
    {"aten::gelu_backward", "without approximation it is oneDNN's own code; with tanh bits depend on position"},
    {"aten::maximum", "the sign of a zero and the bits of a NaN differ between vector body and scalar tail"},
    {"aten::minimum", "the sign of a zero and the bits of a NaN differ between vector body and scalar tail"},
    {"aten::hardswish", nan_by_position},
    {"aten::hardsigmoid", nan_by_position},
    {"aten::hardtanh_backward", nan_by_position},
    {"aten::leaky_relu_backward", "signalling NaNs and flushed denormals differ between vector body and scalar tail"},
    {"aten::gt", not_float},
    {"aten::ge", not_float},
    {"aten::lt", not_float},
    {"aten::le", not_float},
    {"aten::eq", not_float},
    {"aten::ne", not_float},
    {"aten::where", not_float},
    {"aten::masked_fill", not_float},
};

const struct oprule *oprule_inlined(size_t *n)
{
	*n = sizeof(inlined) / sizeof(inlined[0]);
	return inlined;
}

const struct oprule *oprule_table(size_t *n)
{
	*n = sizeof(rules) / sizeof(rules[0]);
	return rules;
}

const struct oprule *oprule_find(const char *op)
{
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		if (!strcmp(rules[i].op, op))
			return &rules[i];
	return NULL;
}

/* What the `c` number n may be. */
static const char *constant_word(const char *list, size_t n)
{
	for (; n && list; n--) {
		list = strchr(list, ' ');
		list = list ? list + 1 : NULL;
	}
	return list;
}

/* Compared as numbers: 0.5 is 5e-1. */
static bool constant_fits(const struct oprule *rule, size_t n, double value)
{
	const char *word = constant_word(rule->constants, n);

	if (!word)
		return false;
	if (*word == '*' || *word == '!')
		return isfinite(value) && !(*word == '!' && value == strtod(word + 1, NULL));
	return value == strtod(word, NULL);
}

/* The token #<x>, or, with numbers given, a number that can be made one. */
static bool constant_token_fits(const struct oprule *rule, size_t n, const char *token, const double *number)
{
	char *end;
	double value;

	if (*token == 's')
		return number && constant_fits(rule, n, *number);
	if (*token != '#')
		return false;
	value = strtod(token + 1, &end);
	return end != token + 1 && !*end && constant_fits(rule, n, value);
}

static bool token_fits(const struct oprule *rule, size_t arg, const char *token)
{
	switch (rule->args[arg]) {
	case 't':
		return *token == 'v' || *token == 'i' || (*token == 'b' && !(rule->in_place && arg == 0));
	case 'd':
		return *token == 'v' || *token == 'i';
	case 'e':
		return *token == 'v' || *token == 'i' || *token == 'b' || *token == 's';
	case 's':
	case 'f':
	case 'r':
	case 'l':
		return *token == rule->args[arg];
	default:
		return *token == '-';
	}
}

static bool fits(const struct oprule *rule, const struct terra_plan_op *op, const double *number)
{
	size_t constant = 0;
	bool tensor = false, ok = true;

	if (strcmp(rule->op, op->op) || strlen(rule->args) != op->n_args)
		return false;
	for (size_t i = 0; ok && i < op->n_args; i++) {
		if (rule->args[i] == 'c')
			ok = constant_token_fits(rule, constant++, op->arg[i], number ? &number[i] : NULL);
		else
			ok = token_fits(rule, i, op->arg[i]);
		tensor |= *op->arg[i] == 'v' || *op->arg[i] == 'i' || *op->arg[i] == 'b'; /* r alone has no domain */
	}
	return ok && tensor;
}

bool oprule_fits(const struct oprule *rule, const struct terra_plan_op *op)
{
	return fits(rule, op, NULL);
}

const struct oprule *oprule_match(const struct terra_plan_op *op)
{
	return oprule_choose(op, NULL);
}

const struct oprule *oprule_choose(const struct terra_plan_op *op, const double *number)
{
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		if (fits(&rules[i], op, number))
			return &rules[i];
	return NULL;
}

/* "aten::sigmoid_" and "aten::pow.Tensor_Scalar" against "aten::sigmoid", "aten::pow". */
static bool base_name_is(const char *op, const char *base)
{
	size_t n = strlen(base);

	if (strncmp(op, base, n))
		return false;
	op += n;
	op += *op == '_';
	return !*op || *op == '.';
}

const char *oprule_excluded(const char *op)
{
	for (size_t i = 0; i < sizeof(excluded) / sizeof(excluded[0]); i++)
		if (base_name_is(op, excluded[i].op))
			return excluded[i].reason;
	return NULL;
}
