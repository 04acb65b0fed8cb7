/* fuzz_elf.c - the ELF reader, the schema scanner and the parser of mangled names, on anything. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "probes/mangle.h"
#include "probes/optable.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What a table says must be usable: places exist, strings end, every op can be found by its name. */
static void use_table(const struct terra_op_table *table)
{
	char name[64];

	for (uint32_t i = 0; i < table->n_ops; i++) {
		const struct terra_op *op = &table->ops[i];

		if (!terra_op_table_find(table, op->name, op->overload, op->level) || strlen(op->mangled) == 0)
			abort();
		for (unsigned k = 0; k < op->n_args; k++) {
			const struct terra_arg *arg = &op->args[k];

			terra_op_argument_name(op, k, name, sizeof(name));
			if (arg->place == TERRA_PLACE_GPR && arg->index + arg->words > 6)
				abort();
			if (arg->place == TERRA_PLACE_UNKNOWN && op->complete)
				abort();
		}
	}
}

/* The whole input as a file. */
static void fuzz_file(const uint8_t *data, size_t size)
{
	struct terra_op_table *table;
	void *copy = malloc(size ? size : 1);

	if (!copy)
		return;
	memcpy(copy, data, size);
	if (terra_op_table_from_memory(copy, size, &table) == 0) {
		use_table(table);
		terra_op_table_free(table);
	}
	free(copy);
}

/* The input as the parameters of an op. */
static void fuzz_name(const uint8_t *data, size_t size)
{
	static const char start[] = "_ZN2at4_ops1x4callE";
	struct terra_signature signature;
	struct terra_op op = {.level = 0};
	char *name = malloc(sizeof(start) + size);

	if (!name)
		return;
	memcpy(name, start, sizeof(start) - 1);
	memcpy(name + sizeof(start) - 1, data, size);
	name[sizeof(start) - 1 + size] = '\0';
	if (terra_mangle_parse(name, &signature) == 0)
		terra_places_assign(&signature, size % 3 == 2 ? 0xff : size % 3, &op);
	free(name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_file(data, size);
	fuzz_name(data, size);
	return 0;
}
