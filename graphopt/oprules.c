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
 * When several different NaNs meet in one operation, body and tail of the framework itself differ in which one survives.
 * The rules follow the body.
 */
#include <stdlib.h>
#include <string.h>

#include "graphopt/oprules.h"

/* An op and its in-place form, whose first argument must be a tensor of the domain. */
#define BOTH(name, overload, first, rest, c)                                                                           \
	{.op = name overload, .args = first rest, .expr = c},                                                          \
	{                                                                                                              \
		.op = name "_" overload, .args = "t" rest, .expr = c, .in_place = true                                 \
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
#define CLAMP_MIN(x, min) "vsel_nan(" min ", " min ", vmax(" min ", " x "))"
#define CLAMP_MAX(x, max) "vsel_nan(" max ", " max ", vmin(" max ", " x "))"
#define CLAMP "vsel_nan($2, $2, vsel_nan($1, $1, vmin($2, vmax($1, $0))))"

static const struct oprule rules[] = {
	BOTH("aten::add", ".Tensor", "e", "es", "vfma($1, $2, $0)"),
	BOTH("aten::add", ".Scalar", "t", "ss", "vfma($1, $2, $0)"),
	BOTH("aten::sub", ".Tensor", "e", "es", "vfma($1, vneg($2), $0)"),
	BOTH("aten::sub", ".Scalar", "t", "ss", "vfma($1, vneg($2), $0)"),
	{.op = "aten::rsub.Tensor", .args = "ees", .expr = "vfma($0, vneg($2), $1)"},
	{.op = "aten::rsub.Scalar", .args = "tss", .expr = "vfma($0, vneg($2), $1)"},
	BOTH("aten::mul", ".Tensor", "e", "e", "vmul($1, $0)"),
	BOTH("aten::mul", ".Scalar", "t", "s", "vmul($1, $0)"),
	BOTH("aten::div", ".Tensor", "e", "e", "vdiv($0, $1)"),
	BOTH("aten::div", ".Scalar", "t", "s", "vdiv($0, $1)"),

	BOTH("aten::neg", "", "t", "", "vneg($0)"),
	BOTH("aten::abs", "", "t", "", "vabs($0)"),
	BOTH("aten::sign", "", "t", "",
	     "vsub(vsel_lt(vnum(0), $0, vnum(1), vnum(0)), vsel_lt($0, vnum(0), vnum(1), vnum(0)))"),
	BOTH("aten::relu", "", "t", "", "vmax(vnum(0), $0)"),
	BOTH("aten::threshold", "", "t", "ss", "vsel_le($0, $1, $2, $0)"),
	{.op = "aten::threshold_backward", .args = "tts", .expr = "vsel_le($1, $2, vnum(0), $0)"},
	BOTH("aten::leaky_relu", "", "t", "s", "vmul(vsel_lt(vnum(0), $0, vnum(1), $1), $0)"),
	{.op = "aten::leaky_relu_backward",
	 .args = "ttsc",
	 .constants = "0",
	 .expr = "vmul(vsel_lt(vnum(0), $1, vnum(1), $2), $0)"},
	BOTH("aten::clamp_min", "", "t", "s", CLAMP_MIN("$0", "$1")),
	BOTH("aten::clamp_max", "", "t", "s", CLAMP_MAX("$0", "$1")),
	BOTH("aten::clamp", "", "t", "ss", CLAMP),
	BOTH("aten::clamp", "", "t", "s-", CLAMP_MIN("$0", "$1")),
	BOTH("aten::clamp", "", "t", "-s", CLAMP_MAX("$0", "$2")),
	BOTH("aten::hardtanh", "", "t", "ss", CLAMP),

	BOTH("aten::reciprocal", "", "t", "", "vdiv(vnum(1), $0)"),
	BOTH("aten::rsqrt", "", "t", "", "vdiv(vnum(1), vsqrt($0))"),
	BOTH("aten::square", "", "t", "", "vmul($0, $0)"),
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

	{.op = "aten::tanh_backward", .args = "tt", .expr = "vmul($0, vfnma($1, $1, vnum(1)))"},
	{.op = "aten::sigmoid_backward", .args = "tt", .expr = "vmul(vmul(vsub(vnum(1), $1), $0), $1)"},

	/* With weight 1 the body gives end + 0 * (end - self), the tail end - 0 * (end - self): -0 comes out differently. */
	{.op = "aten::lerp.Scalar", .args = "tts", .expr = LERP, .has_exception = true, .exception_arg = 2, .exception = 1},
	{.op = "aten::lerp_.Scalar",
	 .args = "tts",
	 .expr = LERP,
	 .in_place = true,
	 .has_exception = true,
	 .exception_arg = 2,
	 .exception = 1},
	BOTH("aten::addcmul", "", "t", "tts", "vfma(vmul($1, $3), $2, $0)"),
	BOTH("aten::addcdiv", "", "t", "tts", "vadd(vdiv(vmul($1, $3), $2), $0)"),
};

static const char by_position[] = "the vector body and the scalar tail use different functions: bits depend on position";
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
	{"aten::leaky_relu_backward", "the derivative from the result is not in the table"},
	{"aten::gt", not_float},
	{"aten::ge", not_float},
	{"aten::lt", not_float},
	{"aten::le", not_float},
	{"aten::eq", not_float},
	{"aten::ne", not_float},
	{"aten::where", not_float},
	{"aten::masked_fill", not_float},
};

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

/* The blank-separated word number n of a list equals `text`. Numbers are compared as numbers: 0.5 is 5e-1. */
static bool constant_is(const char *list, size_t n, const char *text)
{
	char *list_end, *text_end;
	double want, have;
	size_t length;

	for (; n && list; n--) {
		list = strchr(list, ' ');
		list = list ? list + 1 : NULL;
	}
	if (!list)
		return false;
	length = strcspn(list, " ");
	if (strlen(text) == length && !strncmp(list, text, length))
		return true;
	want = strtod(list, &list_end);
	have = strtod(text, &text_end);
	return list_end == list + length && text_end != text && !*text_end && want == have;
}

static bool token_fits(const struct oprule *rule, size_t arg, size_t constant, const char *token)
{
	switch (rule->args[arg]) {
	case 't':
		return *token == 'v' || *token == 'i' || (*token == 'b' && !(rule->in_place && arg == 0));
	case 'e':
		return *token == 'v' || *token == 'i' || *token == 'b' || *token == 's';
	case 's':
		return *token == 's';
	case 'c':
		return *token == '#' && constant_is(rule->constants, constant, token + 1);
	default:
		return *token == '-';
	}
}

bool oprule_fits(const struct oprule *rule, const struct terra_plan_op *op)
{
	size_t constant = 0;
	bool tensor = false;

	if (strcmp(rule->op, op->op) || strlen(rule->args) != op->n_args)
		return false;
	for (size_t i = 0; i < op->n_args; i++) {
		if (!token_fits(rule, i, constant, op->arg[i]))
			return false;
		constant += rule->args[i] == 'c';
		tensor |= *op->arg[i] == 'v' || *op->arg[i] == 'i' || *op->arg[i] == 'b';
	}
	return tensor;
}

const struct oprule *oprule_match(const struct terra_plan_op *op)
{
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		if (oprule_fits(&rules[i], op))
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
