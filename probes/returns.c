/* returns.c - how an op returns its result.
 *
 * C++ mangling leaves return types out, so they come from the op's schema. The dispatcher's code generator maps them to
 * C++ as follows, and the ABI decides the rest:
 *   ()                      void
 *   Tensor                  at::Tensor: not trivially copyable, so through the hidden result pointer (sret)
 *   Tensor(a!)              at::Tensor & (or const &), the argument that was written: in rax
 *   (Tensor, Tensor)        std::tuple: libstdc++'s is never trivial for calls, so sret, last element first in memory
 *   (Tensor(a!), ...)       std::tuple of references, likewise sret
 *   Tensor[]                std::vector<at::Tensor>: sret
 *   bool, int, float, ...   registers
 *   Scalar, SymInt, ...     not trivially copyable: sret
 */
#include "probes/schema.h"

#include <string.h>

static bool one_of(const char *text, const char *const *names)
{
	for (; *names; names++)
		if (strcmp(text, *names) == 0)
			return true;
	return false;
}

static void set(struct terra_op *op, enum terra_return ret, uint8_t has_sret)
{
	op->ret = (uint8_t)ret;
	op->has_sret = has_sret;
}

static void set_single(const struct terra_schema_type *type, struct terra_op *op)
{
	static const char *const in_registers[] = {"int", "bool", "float", "ScalarType", "Layout", "MemoryFormat",
						   "QScheme", "Device", "DeviceIndex", NULL};
	static const char *const in_memory[] = {"Scalar", "SymInt", "SymBool", "SymFloat", "Storage", "str", NULL};

	if (strcmp(type->text, "Tensor") == 0)
		set(op, type->is_mutable ? TERRA_RET_TENSOR_REF : TERRA_RET_TENSOR, !type->is_mutable);
	else if (strcmp(type->text, "Tensor[]") == 0)
		set(op, TERRA_RET_TENSOR_LIST, 1);
	else if (one_of(type->text, in_registers))
		set(op, TERRA_RET_VALUE, 0);
	else if (one_of(type->text, in_memory))
		set(op, TERRA_RET_OTHER_SRET, 1);
}

void terra_returns_parse(const char *returns, struct terra_op *op)
{
	struct terra_schema_argument element;
	struct terra_schema_type first = {.is_mutable = false};
	char single[256];
	const char *at = returns;
	unsigned n = 0, tensors = 0, mutables = 0;

	set(op, TERRA_RET_UNKNOWN, 0xff);
	op->n_returns = 0;
	if (*at == '(') {
		at++;
	} else {
		size_t size = strnlen(at, sizeof(single));

		/* The list iterator wants a closing bracket. */
		if (size + 2 > sizeof(single))
			return;
		memcpy(single, at, size);
		memcpy(single + size, ")", 2);
		at = single;
	}
	while (n < TERRA_MAX_RETURNS && terra_schema_next_argument(&at, &element)) {
		if (n++ == 0)
			first = element.type;
		tensors += strcmp(element.type.text, "Tensor") == 0;
		mutables += element.type.is_mutable;
	}
	if (!at || *at != ')')
		return;
	if (n == 0) {
		set(op, TERRA_RET_VOID, 0);
	} else if (n == 1) {
		set_single(&first, op);
	} else if (tensors == n && (mutables == 0 || mutables == n)) {
		set(op, mutables ? TERRA_RET_TENSOR_REFS : TERRA_RET_TENSORS, 1);
		op->n_returns = (uint8_t)n;
	} else {
		set(op, TERRA_RET_OTHER_SRET, 1);
	}
}
