/* call.c - reads an op's arguments from the registers and stack that it was called with. */
#include "replay/call.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const uint64_t *arg_word(const struct terra_arg *arg, const struct hook_regs *regs)
{
	switch (arg->place) {
	case TERRA_PLACE_GPR:
		return &regs->gpr[arg->index];
	case TERRA_PLACE_STACK:
		return (const uint64_t *)((const char *)regs->stack + arg->offset);
	default:
		return NULL;
	}
}

const void *call_object(const struct terra_arg *arg, const struct hook_regs *regs)
{
	const uint64_t *word = arg_word(arg, regs);

	return word == NULL ? NULL : arg->by_ref ? *(void *const *)word : (const void *)word;
}

/* A redispatch: the schema's arguments begin behind the keyset. */
static bool has_keyset(const struct terra_op *op)
{
	return op->n_args > 0 && op->args[0].kind == TERRA_KIND_KEYSET;
}

uint64_t call_keyset(const struct terra_op *op, const struct hook_regs *regs)
{
	const uint64_t *word = has_keyset(op) ? arg_word(&op->args[0], regs) : NULL;

	return word ? *word : 0;
}

/* One element of a number type, in memory that can be read now without a fault. */
static bool read_number(struct call_arg *arg)
{
	const struct tensor_view *t = &arg->t;

	if (t->numel != 1 || !guard_admits(t->data, 8))
		return false;
	if (t->dtype == framework.float32)
		arg->number = (double)*t->data;
	else if (t->dtype == framework.float64 && t->ndim == 0)
		memcpy(&arg->number, t->data, sizeof(double));
	else if (t->dtype == framework.int64 && t->ndim == 0) {
		int64_t i;

		memcpy(&i, t->data, sizeof(i));
		arg->number = (double)i;
		return i > -(1ll << 53) && i < 1ll << 53;
	} else
		return false;
	return true;
}

static bool read_tensor(const void *tensor, struct call_arg *arg)
{
	arg->kind = ARG_TENSOR;
	if (!framework_view(tensor, &arg->t) || arg->t.ndim > 8 || framework_has_names(tensor))
		return false;
	arg->scalar_ok = read_number(arg);
	arg->is_float = arg->t.dtype == framework.float32;
	if (arg->scalar_ok || arg->is_float)
		return true;
	arg->kind = ARG_COLUMNS;
	return arg->t.dtype == framework.int64 && arg->t.ndim == 1 && arg->t.numel > 1 && arg->t.stride[0] == 1;
}

static bool read_string(const uint64_t *word, struct call_arg *arg)
{
	size_t length = word[0];

	arg->kind = ARG_CONST;
	if (length > sizeof(arg->text) - 4)
		return false;
	snprintf(arg->text, sizeof(arg->text), "#\"%.*s\"", (int)length, (const char *)word[1]);
	return true;
}

/* The framework raises, or rounds to infinity, where a number does not fit the tensors' type: its own business. */
static bool fits_float(const struct call_arg *arg)
{
	bool number = arg->kind == ARG_NUMBER || (arg->kind == ARG_TENSOR && arg->scalar_ok);

	return !number || isinf(arg->number) || !(fabs(arg->number) > FLT_MAX);
}

/* std::optional<at::Tensor>: the tensor, then the flag that it is there. Code that autograd made passes undefined tensors. */
static bool is_no_tensor(const void *optional)
{
	return ((const uint8_t *)optional)[sizeof(void *)] == 0 || framework_is_undefined(optional);
}

static bool read_constant(int64_t number, struct call_arg *arg)
{
	arg->kind = ARG_CONST;
	arg->number = (double)number;
	return true;
}

static bool read_arg(const struct terra_arg *from, const struct hook_regs *regs, struct call_arg *arg)
{
	const uint64_t *word = arg_word(from, regs);
	const void *object = from->place == TERRA_PLACE_SSE ? NULL : call_object(from, regs);

	arg->scalar_ok = arg->full = false;
	arg->text[0] = '\0';
	switch (from->kind) {
	case TERRA_KIND_TENSOR:
		return object && read_tensor(object, arg);
	case TERRA_KIND_SCALAR:
		arg->kind = ARG_NUMBER;
		return object && framework_scalar(object, &arg->number);
	case TERRA_KIND_OPT_SCALAR: /* the Scalar, then the flag that it is there */
		arg->kind = ((const uint8_t *)object)[32] ? ARG_NUMBER : ARG_ABSENT;
		return arg->kind == ARG_ABSENT || framework_scalar(object, &arg->number);
	case TERRA_KIND_DOUBLE:
		arg->kind = ARG_NUMBER;
		if (from->place != TERRA_PLACE_SSE)
			return false;
		arg->number = regs->xmm[from->index][0];
		return true;
	case TERRA_KIND_INT:
		return word && read_constant((int64_t)*word, arg);
	case TERRA_KIND_DTYPE: /* one byte */
		return word && read_constant((int8_t)*word, arg);
	case TERRA_KIND_BOOL:
		return word && read_constant(*word & 1, arg);
	case TERRA_KIND_SYMINT: /* a symbol has bits that make no small number */
		return object && read_constant(*(const int64_t *)object, arg) && fabs(arg->number) < 0x1p53;
	case TERRA_KIND_OPT_TENSOR:
		arg->kind = ARG_ABSENT;
		return object && is_no_tensor(object);
	case TERRA_KIND_STRING:
		return word != NULL && read_string(word, arg);
	default:
		return false;
	}
}

/* The op's shape: its tensors broadcast together. */
static bool broadcast_shape(struct call *call)
{
	call->ndim = 0;
	for (uint32_t i = 0; i < call->n_args; i++)
		if (call->arg[i].kind == ARG_TENSOR && call->arg[i].t.ndim > call->ndim)
			call->ndim = call->arg[i].t.ndim;
	for (int64_t d = 0; d < call->ndim; d++)
		call->size[d] = 1;
	for (uint32_t i = 0; i < call->n_args; i++) {
		const struct tensor_view *t = &call->arg[i].t;
		int64_t shift = call->ndim - t->ndim;

		if (call->arg[i].kind != ARG_TENSOR)
			continue;
		for (int64_t d = 0; d < t->ndim; d++) {
			int64_t *size = &call->size[shift + d];

			if (t->size[d] == *size || t->size[d] == 1)
				continue;
			if (*size != 1)
				return false; /* the framework raises */
			*size = t->size[d];
		}
	}
	call->numel = 1;
	for (int64_t d = 0; d < call->ndim; d++)
		call->numel *= call->size[d];
	return true;
}

static bool is_full(const struct call *call, const struct tensor_view *t)
{
	int64_t next = 1;

	if (t->ndim != call->ndim || t->numel != call->numel)
		return false;
	for (int64_t d = t->ndim; d-- > 0;) {
		/* Dims of size 1 count too: their strides decide how the framework lays out a result. */
		if (t->stride[d] != next)
			return false;
		next *= t->size[d];
	}
	return true;
}

/* Whether the tensor's own order of dims can't make the framework choose another order for the result. */
static bool c_ordered(const struct call *call, const struct tensor_view *t)
{
	int64_t last = INT64_MAX, shift = call->ndim - t->ndim;

	for (int64_t d = 0; d < t->ndim; d++) {
		if (t->stride[d] == 0 || (t->size[d] == 1 && call->size[shift + d] != 1))
			continue;
		if (t->stride[d] >= last)
			return false;
		last = t->stride[d];
	}
	return true;
}

/* The result's layout is known without asking: contiguous, because some argument has its shape and is contiguous. */
static bool result_is_plain(struct call *call)
{
	bool some = false, ordered = true;

	for (uint32_t i = 0; i < call->n_args; i++) {
		struct call_arg *arg = &call->arg[i];

		if (arg->kind != ARG_TENSOR)
			continue;
		arg->full = is_full(call, &arg->t);
		some |= arg->full;
		ordered &= arg->full || c_ordered(call, &arg->t);
	}
	return call->in_place ? call->arg[0].full : some && ordered;
}

/* A new tensor, or the first argument and nothing else that is written. */
static bool returns_first_or_new(const struct terra_op *op, uint32_t first)
{
	for (uint32_t i = first; i < op->n_args; i++)
		if (op->args[i].is_mutable != (op->ret == TERRA_RET_TENSOR_REF && i == first))
			return false;
	return op->ret == TERRA_RET_TENSOR_REF || op->ret == TERRA_RET_TENSOR;
}

bool call_read(const struct terra_op *op, const struct hook_regs *regs, struct call *call)
{
	uint32_t first = has_keyset(op) ? 1 : 0;

	call->n_args = op->n_args - first;
	call->in_place = op->ret == TERRA_RET_TENSOR_REF;
	call->result = (void *)regs->gpr[0];
	if (call->n_args == 0 || call->n_args > TERRA_PLAN_MAX_ARGS)
		return false;
	for (uint32_t i = 0; i < call->n_args; i++)
		if (!read_arg(&op->args[first + i], regs, &call->arg[i]) || !fits_float(&call->arg[i]))
			return false;
	call->first = call_object(&op->args[first], regs);
	return call->arg[0].kind == ARG_TENSOR && returns_first_or_new(op, first) && broadcast_shape(call) && result_is_plain(call);
}

/* ---- what may an op that runs at once touch? ---- */

int64_t tensor_span(const struct tensor_view *t)
{
	int64_t span = 1;

	for (int64_t d = 0; d < t->ndim; d++)
		span += t->stride[d] * (t->size[d] - 1);
	return span;
}

static bool tensor_is_apart(const void *tensor)
{
	struct tensor_view t;

	if (tensor == NULL)
		return false;
	if (!framework_view(tensor, &t))
		return framework_is_undefined(tensor);
	if (t.numel == 0)
		return true;
	/* Other types by their widest element: complex double. */
	return guard_admits(t.data, (size_t)tensor_span(&t) * (t.dtype == framework.float32 ? sizeof(float) : 16));
}

static bool list_is_apart(const uint64_t *word)
{
	const void *const *tensor = word ? (const void *const *)word[0] : NULL;

	for (uint64_t i = 0; word && i < word[1]; i++)
		if (!tensor_is_apart(&tensor[i]))
			return false;
	return word != NULL;
}

bool call_list(const struct terra_op *op, const struct hook_regs *regs, const void **tensors, uint64_t *n)
{
	uint32_t first = has_keyset(op) ? 1 : 0;
	const uint64_t *word;

	if (op->n_args <= first || op->args[first].kind != TERRA_KIND_TENSOR_LIST || op->args[first].by_ref)
		return false;
	word = arg_word(&op->args[first], regs);
	if (word == NULL)
		return false;
	*tensors = (const void *)word[0];
	*n = word[1];
	return true;
}

bool call_is_apart(const struct terra_op *op, const struct hook_regs *regs)
{
	if (!op->complete)
		return false;
	for (uint32_t i = 0; i < op->n_args; i++) {
		const struct terra_arg *arg = &op->args[i];
		bool apart = true;

		switch (arg->kind) {
		case TERRA_KIND_TENSOR:
			apart = tensor_is_apart(call_object(arg, regs));
			break;
		case TERRA_KIND_TENSOR_LIST:
			apart = !arg->by_ref && list_is_apart(arg_word(arg, regs));
			break;
		case TERRA_KIND_OPAQUE:
		case TERRA_KIND_OPT_TENSOR:
		case TERRA_KIND_ITENSOR_LIST:
		case TERRA_KIND_OPT_TENSOR_LIST:
		case TERRA_KIND_STORAGE:
			apart = false;
			break;
		default:
			break;
		}
		if (!apart)
			return false;
	}
	return true;
}
