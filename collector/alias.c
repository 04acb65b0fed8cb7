/* Sharing of memory between results and arguments; see alias.h. */
#include "collector/alias.h"

#include "collector/dataflow.h"

enum terra_alias terra_alias_of(const struct terra_tensor *a, const struct terra_tensor *b)
{
	if (!a->defined || !b->defined)
		return TERRA_ALIAS_NONE;
	if (a->impl && a->impl == b->impl)
		return TERRA_ALIAS_SAME;
	if (!a->storage || !b->storage)
		return TERRA_ALIAS_UNKNOWN;
	/* Two storages over one piece of memory are two to PyTorch as well, unless they begin at one place. */
	if (a->storage == b->storage || (a->storage_data && a->storage_data == b->storage_data))
		return TERRA_ALIAS_STORAGE;
	return TERRA_ALIAS_NONE;
}

struct search {
	struct terra_alias_pair *pairs;
	uint32_t n, most;
};

static void add(struct search *search, struct terra_alias_pair pair)
{
	if (pair.alias == TERRA_ALIAS_NONE)
		return;
	if (search->n < search->most)
		search->pairs[search->n] = pair;
	search->n++;
}

static void compare_with_arguments(struct search *search, const struct terra_event *enter,
				   const struct terra_tensor *result, struct terra_alias_pair pair)
{
	for (pair.argument = 0; pair.argument < enter->n_values; pair.argument++) {
		uint32_t n;
		const struct terra_tensor *tensors = terra_value_tensors(&enter->values[pair.argument], &n);

		for (pair.argument_element = 0; pair.argument_element < n; pair.argument_element++) {
			pair.alias = (uint8_t)terra_alias_of(result, &tensors[pair.argument_element]);
			add(search, pair);
		}
	}
}

uint32_t terra_alias_pairs(const struct terra_event *enter, const struct terra_event *exit, struct terra_alias_pair *pairs,
			   uint32_t most)
{
	struct search search = { .pairs = pairs, .most = most };

	for (uint32_t i = 0; i < exit->n_values; i++) {
		uint32_t n;
		const struct terra_tensor *tensors = terra_value_tensors(&exit->values[i], &n);

		for (uint32_t k = 0; k < n; k++)
			compare_with_arguments(&search, enter, &tensors[k],
					       (struct terra_alias_pair){ .result = i, .result_element = k });
	}
	return search.n;
}
