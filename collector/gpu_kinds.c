/* gpu_kinds.c - the words for kinds of GPU activity. */
#include "collector/gpu_kinds.h"

#include <string.h>

static const struct {
	const char *word;
	uint32_t kinds;
} words[] = {
	{ "none", 0 },
	{ "kernels", TERRA_GPU_WANT_KERNELS },
	{ "memcpy", TERRA_GPU_WANT_MEMCPY },
	{ "memset", TERRA_GPU_WANT_MEMSET },
	{ "runtime", TERRA_GPU_WANT_RUNTIME },
	{ "driver", TERRA_GPU_WANT_DRIVER },
	{ "overhead", TERRA_GPU_WANT_OVERHEAD },
	{ "graphs", TERRA_GPU_WANT_GRAPHS },
};

static bool find_word(const char *text, size_t n, uint32_t *kinds)
{
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		if (strlen(words[i].word) == n && memcmp(words[i].word, text, n) == 0) {
			*kinds |= words[i].kinds;
			return true;
		}
	}
	return false;
}

bool terra_gpu_parse_kinds(const char *text, uint32_t *kinds, const char **wrong)
{
	*kinds = 0;
	for (;;) {
		size_t n = strcspn(text, ",");

		if (!find_word(text, n, kinds)) {
			*wrong = text;
			return false;
		}
		if (!text[n])
			return true;
		text += n + 1;
	}
}
