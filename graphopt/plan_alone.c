/* plan_alone.c - the form that an op of a region has as a fallback. Made by terra-opt, found by replay. */
#include <stdio.h>
#include <string.h>

#include "graphopt/plan_ops.h"

void terra_plan_op_stand_alone(const struct terra_plan_op *op, char token[TERRA_PLAN_MAX_ARGS][8])
{
	uint32_t i, e, n = 0;

	for (i = 0; i < op->n_args; i++) {
		if (op->arg[i][0] != 'v' && !terra_plan_token_is_input(op->arg[i])) {
			token[i][0] = '\0'; /* stays as it is */
			continue;
		}
		for (e = 0; e < i && strcmp(op->arg[e], op->arg[i]); e++)
			continue;
		if (e < i)
			memcpy(token[i], token[e], sizeof(token[i]));
		else
			snprintf(token[i], sizeof(token[i]), "%c%u", op->arg[i][0] == 'v' ? 'i' : op->arg[i][0], n++);
	}
}

bool terra_plan_op_is_alone_form(const struct terra_plan_op *op, const struct terra_plan_op *form)
{
	char token[TERRA_PLAN_MAX_ARGS][8];
	uint32_t i;

	if (strcmp(op->op, form->op) || op->n_args != form->n_args)
		return false;
	terra_plan_op_stand_alone(op, token);
	for (i = 0; i < op->n_args; i++)
		if (strcmp(token[i][0] ? token[i] : op->arg[i], form->arg[i]))
			return false;
	return true;
}
