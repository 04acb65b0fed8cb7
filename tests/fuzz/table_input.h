/* table_input.h - what a table of ops must be, whatever it was made of; for the fuzzers. */
#ifndef TERRA_TESTS_FUZZ_TABLE_INPUT_H
#define TERRA_TESTS_FUZZ_TABLE_INPUT_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probes/optable.h"
#include "probes/record.h"

static inline void table_input_check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "op table input: %s\n", what);
	abort();
}

/* Registers that exist: replay and the decoder index arrays by these numbers. */
static inline void table_input_argument(const struct terra_op *op, const struct terra_arg *arg)
{
	table_input_check(arg->kind < TERRA_KIND_COUNT && *terra_kind_name(arg->kind), "a kind that has a name");
	table_input_check(arg->place <= TERRA_PLACE_GPR_SSE, "a place that exists");
	if (arg->place == TERRA_PLACE_GPR)
		table_input_check(arg->index + arg->words <= 6, "six integer registers");
	if (arg->place == TERRA_PLACE_SSE || arg->place == TERRA_PLACE_GPR_SSE)
		table_input_check(arg->index < 8, "eight vector registers");
	if (arg->place == TERRA_PLACE_GPR_SSE)
		table_input_check(arg->index2 < 6, "six integer registers, one of them for the flag");
	if (arg->place == TERRA_PLACE_UNKNOWN)
		table_input_check(!op->complete, "a complete op knows its places");
}

/* Strings end, places exist, and what needs a table can use it. */
static inline void table_input_use(const struct terra_op_table *table)
{
	char name[64];

	for (uint32_t i = 0; i < table->n_ops; i++) {
		const struct terra_op *op = &table->ops[i];
		struct terra_op_layout layout = terra_op_layout(op, 1);

		table_input_check(strlen(op->name) + strlen(op->mangled) + strlen(op->overload) < SIZE_MAX, "names");
		table_input_check(layout.n_args <= TERRA_MAX_ARGS, "the most arguments that an op may have");
		for (unsigned k = 0; k < op->n_args; k++) {
			terra_op_argument_name(op, k, name, sizeof(name));
			table_input_argument(op, &op->args[k]);
		}
	}
}

/* The bytes as a library; a table made of one has every op by its name. */
static inline void table_input_run(const void *data, size_t size)
{
	struct terra_op_table *table;
	void *copy = malloc(size ? size : 1);

	table_input_check(copy, "memory");
	memcpy(copy, data, size);
	if (terra_op_table_from_memory(copy, size, &table) == 0) {
		table_input_use(table);
		for (uint32_t i = 0; i < table->n_ops; i++)
			table_input_check(terra_op_table_find(table, table->ops[i].name, table->ops[i].overload,
							      table->ops[i].level),
					  "every op can be found by its name");
		terra_op_table_free(table);
	}
	free(copy);
}

#endif
