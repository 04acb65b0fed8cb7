/* dispatch.c - computes the key set that the dispatcher would, from the tensors' keys and the thread's.
 *
 * keys = (those of all tensors | included by the thread) & ~excluded by the thread & ~passed over by the op. Where that is
 * the CPU backend's and nothing else, the call reaches the kernel that a redispatch with this set reaches.
 *
 * Nothing is taken from headers. The place of a tensor's keys is found with tensors of two devices, the thread's two words by
 * setting them through an exported function and putting them back, keys by the names that they print as. One thing that does
 * not come out as expected and no call is ever taken.
 */
#include "replay/dispatch.h"

#include <dlfcn.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "replay/call.h"
#include "replay/registered.h"

#define MAX_WORDS 32 /* of a TensorImpl that are looked at */

static struct {
	size_t word;		   /* of a TensorImpl: its keys */
	uint64_t middle;	   /* both as a key set */
	uint64_t included, excluded; /* what the thread's words are when nothing is; they are kept as differences */
	bool (*watched)(void);
} dispatch;

static struct {
	void (*force)(uint64_t included, uint64_t excluded);
	void *(*meta)(void *result, const int64_t *size, size_t ndim, const int64_t *stride, size_t n, int dtype);
} ask;

static bool resolve_all(void)
{
	return framework_resolve(&ask.force, "_ZN3c104impl33_force_tls_local_dispatch_key_setENS0_19LocalDispatchKeySetE") &&
	       framework_resolve(&ask.meta, "_ZN2at6detail18empty_strided_metaEN3c108ArrayRefIlEES3_NS1_10ScalarTypeE") &&
	       framework_resolve(&dispatch.watched, "_ZN2at12hasCallbacksEv");
}

/* The calling thread's two words. */
static uint64_t *thread_words(void)
{
	static _Thread_local uint64_t *words;

	if (words == NULL)
		words = dlsym(framework.cpu, "_ZN3c104impl26raw_local_dispatch_key_setE");
	return words;
}

/* ---- keys ---- */

static uint64_t bit_of(const char *name)
{
	for (int bit = 0; bit < 64; bit++)
		if (framework_keyset_is(1ull << bit, name))
			return 1ull << bit;
	return 0;
}

static bool learn_middle(void)
{
	for (int i = 0; i < REGISTERED_BETWEEN; i++) {
		uint64_t bit = bit_of(registered_between[i]);

		if (bit == 0 || (bit & framework.cpu_keyset) != 0)
			return false;
		dispatch.middle |= bit;
	}
	return true;
}

/* ---- the thread's words ---- */

static bool words_follow(uint64_t *words, uint64_t included, uint64_t excluded)
{
	ask.force(included, excluded);
	return words[0] == (dispatch.included ^ included) && words[1] == (dispatch.excluded ^ excluded);
}

static bool learn_thread(void)
{
	uint64_t *words = thread_words(), before[2];
	bool as_expected;

	if (words == NULL)
		return false;
	memcpy(before, words, sizeof(before));
	ask.force(0, 0);
	dispatch.included = words[0];
	dispatch.excluded = words[1];
	as_expected = words_follow(words, dispatch.middle, framework.cpu_keyset) &&
		      words_follow(words, framework.cpu_keyset, dispatch.middle);
	memcpy(words, before, sizeof(before));
	return as_expected;
}

/* ---- a tensor's keys ---- */

static bool begins_with(uint64_t keyset, const char *name)
{
	char wanted[64], text[64];
	int n = snprintf(wanted, sizeof(wanted), "DispatchKeySet(%s", name);

	framework_keyset_text(keyset, text, sizeof(text));
	return strncmp(text, wanted, (size_t)n) == 0 && (text[n] == ',' || text[n] == ')');
}

/* The word that is keys with the CPU's among them in two tensors of the CPU, and the other device's in one of that. */
static bool find_word(const uint64_t *a, const uint64_t *b, const uint64_t *meta)
{
	size_t n = malloc_usable_size((void *)a) / sizeof(*a), found = 0;

	for (size_t i = 1; i < n && i < MAX_WORDS; i++) {
		if (a[i] != b[i] || (a[i] & framework.cpu_keyset) != framework.cpu_keyset || !begins_with(a[i], "CPU") ||
		    !begins_with(meta[i], "Meta"))
			continue;
		dispatch.word = i;
		found++;
	}
	return found == 1;
}

static bool learn_word(void)
{
	static const int64_t small[1] = {3}, large[2] = {5, 7}, stride[1] = {1};
	void *a, *b, *meta;
	bool found;

	framework_empty(&a, small, 1);
	framework_empty(&b, large, 2);
	ask.meta(&meta, small, 1, stride, 1, framework.float32);
	found = find_word(a, b, meta);
	framework_drop(&a);
	framework_drop(&b);
	framework_drop(&meta);
	return found;
}

/* ---- */

bool dispatch_known(void)
{
	static int known = -1;

	if (known < 0) {
		known = 0; /* making tensors comes here again */
		known = resolve_all() && learn_middle() && learn_thread() && learn_word();
	}
	return known == 1;
}

/* False: an argument that may have keys and is not a tensor. */
static bool keys_of_arguments(const struct terra_op *op, const struct hook_regs *regs, uint64_t *keys)
{
	*keys = 0;
	for (uint32_t i = 0; i < op->n_args; i++) {
		const void *object;

		switch (op->args[i].kind) {
		case TERRA_KIND_TENSOR:
			object = call_object(&op->args[i], regs);
			if (object == NULL)
				return false;
			*keys |= (*(const uint64_t *const *)object)[dispatch.word];
			break;
		case TERRA_KIND_SCALAR:
		case TERRA_KIND_OPT_SCALAR:
		case TERRA_KIND_INT:
		case TERRA_KIND_DOUBLE:
		case TERRA_KIND_BOOL:
		case TERRA_KIND_STRING:
			break;
		default:
			return false;
		}
	}
	return true;
}

bool dispatch_to_cpu(const struct terra_op *op, const struct hook_regs *regs)
{
	const uint64_t *words = thread_words();
	uint64_t keys;

	if (!op->complete || !keys_of_arguments(op, regs, &keys))
		return false;
	keys = (keys | (words[0] ^ dispatch.included)) & ~(words[1] ^ dispatch.excluded) & ~dispatch.middle;
	return keys == framework.cpu_keyset && !dispatch.watched();
}
