/* calibrate_operators.c - the name of a torch::jit::Operator by example.
 *
 * The library hands out its operators by name. The name's place is found by following words from an operator until one
 * leads to the characters; of all ways the only one, or the first, that works for two names counts.
 */
#include "probes/calibrate.h"

#include <dlfcn.h>
#include <string.h>

#define WORD sizeof(uint64_t)
#define N_NAMES 2
#define MAX_STEP 128 /* bytes into each structure */

/* std::string of libstdc++: address, length, and room for short ones. */
struct string {
	const char *data;
	uint64_t size;
	char room[16];
};


/* Begin and end of the operators of that name, shared pointers of two words. */
static bool find_operators(const struct terra_torch_abi *abi, const char *name, uint64_t range[2])
{
	uint32_t (*symbol)(const struct string *) =
		dlsym(abi->library, "_ZN3c106Symbol14fromQualStringERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE");
	const uint64_t *(*operators)(uint32_t symbol) = /* a std::vector of the registry */
		dlsym(abi->library, "_ZN5torch3jit18getAllOperatorsForEN3c106SymbolE");
	struct string string = {.data = name, .size = strlen(name)};

	if (!symbol || !operators || !terra_read_memory((uintptr_t)operators(symbol(&string)), range, 2 * WORD))
		return false;
	return range[1] > range[0];
}

/* Whether the words at `a` of the operator and at `b` of what that leads to lead to `name`. */
static bool leads_to(uint64_t operator, size_t a, size_t b, const char *name)
{
	uint64_t definition;
	struct string string;
	char characters[32] = "";

	return terra_read_memory(operator + a, &definition, sizeof(definition)) &&
	       terra_read_memory(definition + b, &string, sizeof(string)) && string.size == strlen(name) &&
	       terra_read_memory((uintptr_t)string.data, characters, string.size) && !strcmp(characters, name);
}

/* Not all operators have it there: those of TorchScript alone are made otherwise. */
static bool any_leads_to(const uint64_t range[2], size_t a, size_t b, const char *name)
{
	for (uint64_t at = range[0]; at < range[1]; at += 2 * WORD)
		if (leads_to(*(const uint64_t *)(uintptr_t)at, a, b, name))
			return true;
	return false;
}

void terra_calibrate_operators(const struct terra_torch_abi *abi, struct terra_offsets *out)
{
	static const char *const names[N_NAMES] = {"aten::bernoulli", "aten::mul"}; /* within and without the string's room */
	uint64_t ranges[N_NAMES][2];

	for (size_t i = 0; i < N_NAMES; i++)
		if (!find_operators(abi, names[i], ranges[i]))
			return;
	for (size_t a = 0; a < MAX_STEP && !out->operator_definition.known; a += WORD)
		for (size_t b = 0; b < MAX_STEP && !out->operator_definition.known; b += WORD) {
			if (!any_leads_to(ranges[0], a, b, names[0]) || !any_leads_to(ranges[1], a, b, names[1]))
				continue;
			out->operator_definition = (struct terra_field){(uint16_t)a, WORD, 1};
			out->definition_name = (struct terra_field){(uint16_t)b, WORD, 1};
		}
}
