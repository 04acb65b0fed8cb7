/* fuzz_plan.c - plan files. The first byte chooses what the rest is, since a fuzzer cannot guess checksums: 't' the text
 * section of a file whose sums are right. Else the whole input is a file.
 *
 * Whatever is taken must be a plan that can be written, and read again as the same bytes; and the code generator must
 * have an answer for each of its regions. No code is loaded.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/codegen.h"
#include "graphopt/plan_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "plan input: %s\n", what);
	abort();
}

static uint8_t *encode(const struct terra_plan *plan, size_t *size)
{
	char err[256] = "";
	uint8_t *bytes;

	check(plan_encode(plan, &bytes, size, err, sizeof(err)) == 0, err);
	return bytes;
}

static void check_stable(const struct terra_plan *plan)
{
	struct terra_plan *again;
	uint8_t *first, *second;
	size_t first_size, second_size;
	char err[256] = "";

	first = encode(plan, &first_size);
	check(plan_decode(first, first_size, &again, err, sizeof(err)) == 0, err);
	second = encode(again, &second_size);
	check(first_size == second_size && memcmp(first, second, first_size) == 0, "written anew it is the same");
	free(first);
	free(second);
	terra_plan_free(again);
}

static void generate(const struct terra_plan *plan)
{
	char err[256];

	for (uint32_t i = 0; i < plan->n_regions; i++) {
		err[0] = '\0';
		check(codegen_verify_region(&plan->regions[i], err, sizeof(err)) == 0 || err[0],
		      "a region without a kernel has a reason");
	}
}

static void run_file(const uint8_t *data, size_t size)
{
	uint8_t *exact = malloc(size ? size : 1);
	struct terra_plan *plan;
	char err[256] = "";
	int ret;

	check(exact, "memory");
	if (size)
		memcpy(exact, data, size);
	ret = plan_decode(exact, size, &plan, err, sizeof(err));
	free(exact);
	check(ret == 0 || (!plan && err[0] && !strchr(err, '\n')), "a refusal has one line of reason");
	if (ret)
		return;
	check_stable(plan);
	generate(plan);
	terra_plan_free(plan);
}

static void run_text(const uint8_t *text, size_t text_size)
{
	static const char code[] = "code";
	struct plan_header header = {text_size, sizeof(code), plan_crc32c(text, text_size),
				     plan_crc32c(code, sizeof(code))};
	size_t size = plan_code_offset(text_size) + sizeof(code);
	uint8_t *file = calloc(1, size);

	check(file, "memory");
	plan_header_encode(&header, file);
	memcpy(file + PLAN_HEADER_SIZE, text, text_size);
	memcpy(file + plan_code_offset(text_size), code, sizeof(code));
	run_file(file, size);
	free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size > 0 && data[0] == 't')
		run_text(data + 1, size - 1);
	else
		run_file(data, size);
	return 0;
}
