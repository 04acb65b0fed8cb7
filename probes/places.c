/* places.c - System V AMD64 places of an op's arguments, from their classes.
 *
 * Registers are handed out left to right. An argument that needs two and finds fewer goes to the stack whole, and what
 * is left of the registers still serves later arguments; stack slots are 8 bytes, in argument order. The hidden result
 * pointer takes rdi first.
 */
#include "probes/mangle.h"

#include <string.h>

#define WORD 8

struct registers {
	unsigned gpr;
	unsigned sse;
	unsigned stack; /* bytes */
};

static bool take_gpr(struct registers *used, unsigned words, struct terra_arg *arg)
{
	if (TERRA_GPR_COUNT - used->gpr < words)
		return false;
	arg->place = TERRA_PLACE_GPR;
	arg->index = (uint8_t)used->gpr;
	used->gpr += words;
	return true;
}

static bool take_sse(struct registers *used, struct terra_arg *arg)
{
	if (used->sse == TERRA_SSE_COUNT)
		return false;
	arg->place = TERRA_PLACE_SSE;
	arg->index = (uint8_t)used->sse++;
	return true;
}

static bool take_sse_and_gpr(struct registers *used, struct terra_arg *arg)
{
	if (used->sse == TERRA_SSE_COUNT || used->gpr == TERRA_GPR_COUNT)
		return false;
	arg->place = TERRA_PLACE_GPR_SSE;
	arg->index = (uint8_t)used->sse++;
	arg->index2 = (uint8_t)used->gpr++;
	return true;
}

static void take_stack(struct registers *used, struct terra_arg *arg)
{
	arg->place = TERRA_PLACE_STACK;
	arg->offset = (uint16_t)used->stack;
	used->stack += arg->words * WORD;
}

/* False: the class is not known, so neither is the place of anything behind it. */
static bool place_argument(uint8_t abi, struct registers *used, struct terra_arg *arg)
{
	switch (abi) {
	case TERRA_ABI_INTEGER:
		if (!take_gpr(used, 1, arg))
			take_stack(used, arg);
		return true;
	case TERRA_ABI_INTEGER_INTEGER:
		if (!take_gpr(used, 2, arg))
			take_stack(used, arg);
		return true;
	case TERRA_ABI_SSE:
		if (!take_sse(used, arg))
			take_stack(used, arg);
		return true;
	case TERRA_ABI_SSE_INTEGER:
		if (!take_sse_and_gpr(used, arg))
			take_stack(used, arg);
		return true;
	case TERRA_ABI_MEMORY:
		take_stack(used, arg);
		return true;
	default:
		return false;
	}
}

void terra_places_assign(const struct terra_signature *signature, uint8_t has_sret, struct terra_op *op)
{
	struct registers used = {.gpr = has_sret == 1 ? 1 : 0};
	bool known = has_sret <= 1;

	op->has_sret = known ? has_sret : 0xff;
	op->n_args = signature->n_parameters;
	op->complete = signature->whole && known;
	for (unsigned i = 0; i < signature->n_parameters; i++) {
		const struct terra_parameter *parameter = &signature->parameters[i];
		struct terra_arg *arg = &op->args[i];

		memset(arg, 0, sizeof(*arg));
		arg->kind = parameter->kind;
		arg->words = parameter->words;
		arg->count = parameter->count;
		arg->by_ref = parameter->by_ref;
		arg->is_mutable = parameter->is_mutable;
		known = known && place_argument(parameter->abi, &used, arg);
		if (!known)
			arg->kind = TERRA_KIND_OPAQUE;
		if (arg->kind == TERRA_KIND_OPAQUE)
			op->complete = 0;
	}
}
