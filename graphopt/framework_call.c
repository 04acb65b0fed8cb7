/* framework_call.c - calls an op of the framework with its arguments where the System V ABI puts them.
 *
 * The op table says which register or stack word each argument has; here the words are filled and one function type
 * with all integer registers, all vector registers and some stack words is called. A callee ignores what it does not
 * take.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/framework_internal.h"

#define MAX_CALL_ARGS 16
#define STACK_WORDS 8

struct registers {
	uint64_t gpr[6];
	double sse[8];
	uint64_t stack[STACK_WORDS];
};

typedef uint64_t (*entry_fn)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, double, double, double, double,
			     double, double, double, double, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
			     uint64_t, uint64_t);

/* What the words point to while the call runs. */
struct storage {
	struct framework_scalar scalar[MAX_CALL_ARGS];
	framework_tensor number[MAX_CALL_ARGS]; /* 0-dim tensors to be freed */
	int64_t symint[MAX_CALL_ARGS];
	char text[MAX_CALL_ARGS][64];
};

static uint64_t enter(void *entry, const struct registers *r)
{
	const uint64_t *g = r->gpr, *s = r->stack;
	const double *x = r->sse;

	return ((entry_fn)entry)(g[0], g[1], g[2], g[3], g[4], g[5], x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7],
				 s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]);
}

static bool put_words(struct registers *r, const struct terra_arg *to, const uint64_t *words, unsigned n)
{
	uint64_t *target = to->place == TERRA_PLACE_GPR ? r->gpr + to->index : r->stack + to->offset / 8;
	size_t room = to->place == TERRA_PLACE_GPR ? 6 : STACK_WORDS;
	size_t first = to->place == TERRA_PLACE_GPR ? to->index : to->offset / 8;

	if ((to->place != TERRA_PLACE_GPR && to->place != TERRA_PLACE_STACK) || first + n > room)
		return false;
	memcpy(target, words, n * sizeof(*words));
	return true;
}

static bool put_word(struct registers *r, const struct terra_arg *to, uint64_t word)
{
	return put_words(r, to, &word, 1);
}

static bool put_double(struct registers *r, const struct terra_arg *to, double value)
{
	uint64_t word;

	memcpy(&word, &value, sizeof(word));
	if (to->place == TERRA_PLACE_SSE)
		r->sse[to->index] = value;
	return to->place == TERRA_PLACE_SSE || put_word(r, to, word);
}

int framework_make_scalar(const struct framework *fw, double value, struct framework_scalar *out)
{
	framework_tensor tensor = framework_number(fw, value);
	struct registers r = {.gpr = {(uint64_t)out->bytes, (uint64_t)tensor}};

	if (!tensor)
		return -ENOMEM;
	memset(out->bytes, 1, sizeof(out->bytes));
	enter(fw->to_scalar->entry, &r);
	framework_free(fw, tensor);
	return 0;
}

static bool put_number(const struct framework *fw, struct registers *r, const struct terra_arg *to, double value,
		       struct storage *storage, size_t i)
{
	switch (to->kind) {
	case TERRA_KIND_TENSOR:
		storage->number[i] = framework_number(fw, value);
		return storage->number[i] && put_word(r, to, (uint64_t)storage->number[i]);
	case TERRA_KIND_SCALAR:
	case TERRA_KIND_OPT_SCALAR:
		return to->by_ref && !framework_make_scalar(fw, value, &storage->scalar[i]) &&
		       put_word(r, to, (uint64_t)storage->scalar[i].bytes);
	case TERRA_KIND_DOUBLE:
		return put_double(r, to, value);
	case TERRA_KIND_INT:
	case TERRA_KIND_BOOL:
	case TERRA_KIND_DTYPE:
		return put_word(r, to, (uint64_t)(int64_t)value);
	case TERRA_KIND_SYMINT: /* a number that is no symbol is its own 64 bits */
		storage->symint[i] = (int64_t)value;
		return put_word(r, to, to->by_ref ? (uint64_t)&storage->symint[i] : (uint64_t)storage->symint[i]);
	default:
		return false;
	}
}

static bool put_float(const struct framework *fw, struct registers *r, const struct terra_arg *to, double value,
		      struct storage *storage, size_t i)
{
	storage->number[i] = framework_empty(fw, 0, NULL, NULL, FRAMEWORK_FLOAT32);
	if (!storage->number[i] || to->kind != TERRA_KIND_TENSOR)
		return false;
	*(float *)framework_data(fw, storage->number[i]) = (float)value;
	return put_word(r, to, (uint64_t)storage->number[i]);
}

/* Text of a plan line: in quotes, a backslash before quotes and backslashes. */
static bool put_text(struct registers *r, const struct terra_arg *to, const char *quoted, char *out, size_t size)
{
	uint64_t words[2];
	size_t n = 0;

	for (const char *c = quoted + 1; *c && *c != '"' && n < size; c++) {
		c += *c == '\\' && c[1];
		out[n++] = *c;
	}
	words[0] = n;
	words[1] = (uint64_t)out;
	return to->kind == TERRA_KIND_STRING && !to->by_ref && put_words(r, to, words, 2);
}

static bool put_constant(const struct framework *fw, struct registers *r, const struct terra_arg *to, const char *text,
			 struct storage *storage, size_t i)
{
	char *end;
	double value;

	if (*text == '"')
		return put_text(r, to, text, storage->text[i], sizeof(storage->text[i]));
	value = strtod(text, &end);
	return !*end && end != text && put_number(fw, r, to, value, storage, i);
}

/* An optional that is passed by pointer and is not engaged: all bytes 0. */
static bool put_absent(struct registers *r, const struct terra_arg *to)
{
	static const struct framework_scalar nothing;

	switch (to->kind) {
	case TERRA_KIND_OPT_SCALAR:
	case TERRA_KIND_OPT_TENSOR:
	case TERRA_KIND_GENERATOR:
		return to->by_ref && put_word(r, to, (uint64_t)nothing.bytes);
	default:
		return false;
	}
}

static bool put_arg(const struct framework *fw, struct registers *r, const struct terra_arg *to,
		    const struct framework_arg *arg, struct storage *storage, size_t i)
{
	switch (arg->type) {
	case FRAMEWORK_ARG_TENSOR:
		return to->kind == TERRA_KIND_TENSOR && put_word(r, to, (uint64_t)arg->tensor);
	case FRAMEWORK_ARG_NUMBER:
		return put_number(fw, r, to, arg->number, storage, i);
	case FRAMEWORK_ARG_FLOAT:
		return put_float(fw, r, to, arg->number, storage, i);
	case FRAMEWORK_ARG_CONSTANT:
		return put_constant(fw, r, to, arg->constant, storage, i);
	default:
		return put_absent(r, to);
	}
}

int framework_call(const struct framework *fw, const struct framework_op *op, const struct framework_arg *args,
		   size_t n_args, framework_tensor *result)
{
	const bool in_place = op->op->ret == TERRA_RET_TENSOR_REF;
	struct registers r = {0};
	struct storage storage;
	int ret = 0;

	*result = NULL;
	memset(storage.number, 0, sizeof(storage.number));
	if (n_args != op->op->n_args || n_args > MAX_CALL_ARGS || (in_place && args[0].type != FRAMEWORK_ARG_TENSOR))
		return -EINVAL;
	for (size_t i = 0; i < n_args && !ret; i++)
		if (!put_arg(fw, &r, &op->op->args[i], &args[i], &storage, i))
			ret = -EINVAL;
	if (!ret && in_place) {
		enter(op->entry, &r);
		*result = args[0].tensor;
	} else if (!ret) {
		/* An at::Tensor is one pointer; operator new, so that the library can delete it like its own. */
		*result = fw->operator_new(sizeof(void *));
		r.gpr[0] = (uint64_t)*result;
		enter(op->entry, &r);
	}
	for (size_t i = 0; i < n_args; i++)
		framework_free(fw, storage.number[i]);
	return ret;
}

static const struct terra_op *look_up(const struct framework *fw, const char *name)
{
	const char *dot = strchr(name, '.');
	char base[256];

	snprintf(base, sizeof(base), "%.*s", (int)(dot ? dot - name : (ptrdiff_t)strlen(name)), name);
	return terra_op_table_find(fw->table, base, dot ? dot + 1 : "", TERRA_LEVEL_CALL);
}

static bool is_callable(const struct terra_op *op)
{
	return op->complete &&
	       (op->ret == TERRA_RET_TENSOR || op->ret == TERRA_RET_TENSOR_REF || op->ret == TERRA_RET_OTHER_SRET);
}

int framework_op_find(struct framework *fw, const char *name, const struct framework_op **out, char *err,
		      size_t err_size)
{
	const struct terra_op *found;
	struct framework_op *op;

	for (op = fw->ops; op && strcmp(op->name, name); op = op->next)
		;
	*out = op;
	if (op)
		return 0;
	found = look_up(fw, name);
	if (!found || !is_callable(found)) {
		if (err && err_size)
			snprintf(err, err_size, "this libtorch has no %s%s", name,
				 found ? " that can be called from C" : "");
		return found ? -ENOTSUP : -ENOENT;
	}
	op = calloc(1, sizeof(*op) + strlen(name) + 1);
	if (!op)
		return -ENOMEM;
	strcpy(op->name, name);
	op->op = found;
	op->entry = dlsym(fw->handle, found->mangled);
	if (!op->entry) {
		free(op);
		return -ENOENT;
	}
	op->next = fw->ops;
	fw->ops = op;
	*out = op;
	return 0;
}
