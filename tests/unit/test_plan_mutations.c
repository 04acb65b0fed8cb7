/* test_plan_mutations.c - plans whose checksums are right and whose contents are not.
 *
 * Checksums stop accidents; a file made by someone has them right. So the text is mutated first and the sums are made
 * afterwards: the parser and the checks see every mutation. Whatever is accepted must be a plan that can be written and
 * read again. Meant to be run under AddressSanitizer and UBSan.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "graphopt/plan_internal.h"
#include "tests/unit/plan_sample.h"

#define MUTATIONS 20000

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint32_t draw(uint32_t n)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(random_state >> 33) % n;
}

static const char *const snippets[] = {
    "\t",
    "\n",
    " ",
    "\"",
    "\\",
    "\\x00",
    "v0",
    "v63",
    "i31",
    "i32",
    "b0",
    "s",
    "#",
    "-",
    "end\n",
    "region ",
    "fallback ",
    "999999999999999999",
    "nan",
    "inf",
    "-1",
    "1e999",
    "aten::mul_.Tensor i0 s\n",
    "passive ",
    "list ",
    "import ",
    "\xff",
    "kernel=",
};

static size_t replace_byte(char *text, size_t size, size_t capacity)
{
	text[draw((uint32_t)size)] = (char)draw(256);
	return size;
}

static size_t delete_range(char *text, size_t size, size_t capacity)
{
	size_t at = draw((uint32_t)size), n = 1 + draw(40);

	if (n > size - at)
		n = size - at;
	memmove(text + at, text + at + n, size - at - n);
	return size - n;
}

static size_t insert(char *text, size_t size, size_t capacity, const char *what, size_t n)
{
	size_t at = draw((uint32_t)size + 1);

	if (size + n > capacity)
		return size;
	memmove(text + at + n, text + at, size - at);
	memcpy(text + at, what, n);
	return size + n;
}

static size_t insert_snippet(char *text, size_t size, size_t capacity)
{
	const char *what = snippets[draw(sizeof(snippets) / sizeof(snippets[0]))];

	return insert(text, size, capacity, what, strlen(what));
}

static size_t copy_range(char *text, size_t size, size_t capacity)
{
	char piece[200];
	size_t at = draw((uint32_t)size), n = 1 + draw(sizeof(piece) - 1);

	if (n > size - at)
		n = size - at;
	memcpy(piece, text + at, n);
	return insert(text, size, capacity, piece, n);
}

static size_t change_digit(char *text, size_t size, size_t capacity)
{
	size_t at = draw((uint32_t)size), i;

	for (i = 0; i < size; i++, at = (at + 1) % size)
		if (text[at] >= '0' && text[at] <= '9') {
			text[at] = (char)('0' + draw(10));
			break;
		}
	return size;
}

static size_t (*const mutators[])(char *, size_t, size_t) = {replace_byte, delete_range, insert_snippet, copy_range,
							     change_digit};

/* A whole file around the text, its sums right. */
static uint8_t *wrap(const char *text, size_t text_size, size_t *size)
{
	static const char code[] = "code";
	struct plan_header header = {text_size, sizeof(code), plan_crc32c(text, text_size),
				     plan_crc32c(code, sizeof(code))};
	uint8_t *bytes;

	*size = plan_code_offset(text_size) + sizeof(code);
	bytes = calloc(1, *size);
	plan_header_encode(&header, bytes);
	memcpy(bytes + PLAN_HEADER_SIZE, text, text_size);
	memcpy(bytes + plan_code_offset(text_size), code, sizeof(code));
	return bytes;
}

/* Accepted: writing it and reading that gives the same bytes again. */
static void assert_stable(const struct terra_plan *plan)
{
	struct terra_plan *again;
	uint8_t *first, *second;
	size_t first_size, second_size;
	char err[256];

	assert_int_equal(plan_encode(plan, &first, &first_size, err, sizeof(err)), 0);
	assert_int_equal(plan_decode(first, first_size, &again, err, sizeof(err)), 0);
	assert_int_equal(plan_encode(again, &second, &second_size, err, sizeof(err)), 0);
	assert_int_equal(first_size, second_size);
	assert_memory_equal(first, second, first_size);
	free(first);
	free(second);
	terra_plan_free(again);
}

static bool try_text(const char *text, size_t text_size)
{
	struct terra_plan *plan;
	char err[256] = "";
	uint8_t *bytes;
	size_t size;
	int ret;

	bytes = wrap(text, text_size, &size);
	ret = plan_decode(bytes, size, &plan, err, sizeof(err));
	free(bytes);
	if (ret) {
		assert_null(plan);
		assert_true(err[0] && !strchr(err, '\n'));
		return false;
	}
	assert_stable(plan);
	terra_plan_free(plan);
	return true;
}

static char *sample_section(size_t *size)
{
	struct terra_plan *plan = sample_plan("code", sizeof("code"));
	char *text = NULL;
	FILE *out = open_memstream(&text, size);

	assert_int_equal(plan_print(plan, out), 0);
	fclose(out);
	terra_plan_free(plan);
	return text;
}

static void test_mutated_text(void **state)
{
	size_t size, mutated_size, capacity;
	char *text = sample_section(&size), *mutated;
	int i, j, accepted = 0;

	assert_true(try_text(text, size));
	capacity = size + 1024;
	mutated = malloc(capacity);
	for (i = 0; i < MUTATIONS; i++) {
		memcpy(mutated, text, size);
		mutated_size = size;
		for (j = (int)draw(3); j >= 0 && mutated_size; j--)
			mutated_size =
			    mutators[draw(sizeof(mutators) / sizeof(mutators[0]))](mutated, mutated_size, capacity);
		accepted += try_text(mutated, mutated_size);
	}
	print_message("%d mutations, %d of them still plans\n", MUTATIONS, accepted);
	assert_true(accepted > 0 &&
		    accepted < MUTATIONS / 2); /* else the mutations are too wild, or the checks blind */
	free(mutated);
	free(text);
}

/* Headers whose own sum is right and whose sizes lie. */
static void test_lying_headers(void **state)
{
	static const uint64_t sizes[] = {0,
					 1,
					 15,
					 16,
					 17,
					 UINT32_MAX,
					 UINT64_MAX,
					 UINT64_MAX - 15,
					 PLAN_MAX_TEXT,
					 PLAN_MAX_CODE,
					 PLAN_MAX_TEXT + 1,
					 PLAN_MAX_CODE + 1,
					 (uint64_t)1 << 63};
	size_t size, i, j, n = sizeof(sizes) / sizeof(sizes[0]), text_size;
	char *text = sample_section(&text_size), err[256];
	uint8_t *bytes = wrap(text, text_size, &size);
	struct terra_plan *plan;

	for (i = 0; i < n; i++)
		for (j = 0; j < n; j++) {
			struct plan_header header = {sizes[i], sizes[j], plan_crc32c("", 0), plan_crc32c("", 0)};

			plan_header_encode(&header, bytes);
			assert_int_not_equal(plan_decode(bytes, size, &plan, err, sizeof(err)), 0);
			assert_null(plan);
		}
	free(bytes);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_mutated_text),
	    cmocka_unit_test(test_lying_headers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
