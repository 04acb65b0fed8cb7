/* Module paths from memory that is not what it should be. The objects are doubles, laid out as CPython 3.13 does and not
 * executed: test_pystack.c has them from the interpreters themselves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "collector/pystack_modules.h"

#define ENTRIES 4
#define OBJECTS 80

struct text {
	uint64_t words[5];
	char characters[16];
};

struct keys {
	uint64_t header[4]; /* log2 of the index's size, kind, entries */
	uint64_t index;
	uint64_t entries[ENTRIES][2];
};

struct dict {
	uint64_t words[6];
	struct keys keys;
};

/* A module: its dict, in which `_modules` is, and that. */
struct object {
	uint64_t dict_word, unused[2];
	uint64_t words[2];
	struct dict dict, modules;
};

static struct {
	uint64_t unicode_type[32], dict_type[32], module_type[32], none_type[32];
	uint64_t none[2];
	struct text attribute, other, names[ENTRIES];
	struct object objects[OBJECTS];
} image;

static struct pystack_layout layout;
static struct pystack_process process;

static uint64_t at(const void *p)
{
	return (uint64_t)(uintptr_t)p;
}

static void make_text(struct text *text, const char *characters)
{
	text->words[0] = 1;
	text->words[1] = at(image.unicode_type);
	text->words[2] = strlen(characters);
	text->words[4] = 1 << 2 | 1 << 5 | 1 << 6; /* one byte a character, compact, ASCII */
	strcpy(text->characters, characters);
}

static void add(struct dict *dict, const struct text *key, uint64_t value)
{
	uint64_t *n = &dict->keys.header[3];

	dict->keys.entries[*n][0] = at(key);
	dict->keys.entries[*n][1] = value;
	++*n;
}

static void make_dict(struct dict *dict)
{
	memset(dict, 0, sizeof(*dict));
	dict->words[1] = at(image.dict_type);
	dict->words[4] = at(&dict->keys);
	dict->keys.header[1] = 3 | 3 << 8 | 1 << 16;
}

static uint64_t module_at(int i)
{
	return at(image.objects[i].words);
}

/* 0 holds 1 as "a" and 2 as "b", 1 holds 0 and 2, and None is in both. */
static void make_image(void)
{
	memset(&image, 0, sizeof(image));
	image.dict_type[21] = 1ull << 29;
	image.module_type[21] = 1ull << 4;
	image.module_type[3] = at("Net");
	image.none[1] = at(image.none_type);
	make_text(&image.attribute, "_modules");
	make_text(&image.other, "training");
	for (int i = 0; i < ENTRIES; i++)
		make_text(&image.names[i], (const char *[]){ "a", "b", "c", "d" }[i]);
	for (int i = 0; i < OBJECTS; i++) {
		struct object *object = &image.objects[i];

		object->dict_word = at(&object->dict);
		object->words[1] = at(image.module_type);
		make_dict(&object->dict);
		make_dict(&object->modules);
		add(&object->dict, &image.other, at(image.none));
		add(&object->dict, &image.attribute, at(&object->modules));
	}
	add(&image.objects[0].modules, &image.names[2], at(image.none));
	add(&image.objects[0].modules, &image.names[0], module_at(1));
	add(&image.objects[0].modules, &image.names[1], module_at(2));
	add(&image.objects[1].modules, &image.names[2], module_at(0));
	add(&image.objects[1].modules, &image.names[3], module_at(3));
	layout = (struct pystack_layout){ .version = 0x030d0000, .unicode_type = at(image.unicode_type), .unicode_length = 16,
					  .unicode_state = 32, .unicode_ascii = 40, .unicode_compact = 56, .frame_locals = 72 };
}

static const char *path_of(struct pystack_modules *modules, int module)
{
	uint64_t selves[2] = { module_at(module), module_at(0) };
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return pystack_modules_path(modules, selves, module ? 2 : 1, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
}

/* From an index of its own. NULL and "" are told apart by nobody. */
static void expect_fresh(int module, const char *path)
{
	struct pystack_modules *modules = pystack_modules_new(&process, &layout);
	const char *found = path_of(modules, module);

	assert_string_equal(found ? found : "", path);
	pystack_modules_free(modules);
}

static void paths(void **state)
{
	make_image();
	assert_true(pystack_modules_known(&layout));
	expect_fresh(0, "Net");
	expect_fresh(1, "Net.a");
	expect_fresh(2, "Net.b");
	expect_fresh(3, "Net.a.d");
	expect_fresh(4, "Net"); /* held by nobody */
	layout.version = 0x03100000;
	assert_false(pystack_modules_known(&layout));
	expect_fresh(1, "");
}

/* What led to a module is another by now. */
static void changes(void **state)
{
	uint64_t *words[] = { &image.objects[0].words[1],	  &image.objects[0].dict_word,
			      &image.objects[0].dict.words[4],	  &image.objects[0].dict.words[5],
			      &image.objects[0].modules.words[4], &image.objects[0].modules.words[5],
			      &image.objects[0].dict.keys.entries[1][1], &image.objects[0].modules.keys.entries[1][1] };

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		struct pystack_modules *modules;
		const char *found;

		make_image();
		modules = pystack_modules_new(&process, &layout);
		assert_string_equal(path_of(modules, 3), "Net.a.d");
		*words[i] ^= 0x1000;
		found = path_of(modules, 3);
		assert_true(!found || !strcmp(found, "Net"));
		pystack_modules_free(modules);
	}
}

static void cycles(void **state)
{
	make_image();
	for (int i = 0; i < OBJECTS; i++)
		image.objects[i].modules.keys.header[3] = 0;
	/* each holds the next twice, and the first: without a memory of what was met, 2^40 ways */
	for (int i = 0; i < 40; i++) {
		add(&image.objects[i].modules, &image.names[0], module_at(0));
		add(&image.objects[i].modules, &image.names[1], module_at(i + 1));
		add(&image.objects[i].modules, &image.names[2], module_at(i + 1));
	}
	expect_fresh(2, "Net.b.b");
	/* deeper than any model: no index at all */
	for (int i = 40; i < 70; i++)
		add(&image.objects[i].modules, &image.names[0], module_at(i + 1));
	expect_fresh(2, "");
}

/* Not every untrue size shows; none makes up a name. */
static void expect_nothing_below(void)
{
	struct pystack_modules *modules = pystack_modules_new(&process, &layout);
	const char *found = path_of(modules, 4);

	assert_true(!found || !strcmp(found, "Net"));
	pystack_modules_free(modules);
}

static void sizes(void **state)
{
	static const uint64_t bad[] = { 5, 1000, 65536, 65537, 1ull << 40, UINT64_MAX };

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		make_image();
		image.objects[0].modules.keys.header[3] = bad[i];
		if (bad[i] > 65536)
			expect_fresh(4, "");
		else
			expect_nothing_below();
		make_image();
		image.objects[1].modules.keys.header[1] = bad[i] << 8;
		expect_nothing_below();
		make_image();
		image.names[3].words[2] = 65537 + bad[i];
		expect_nothing_below();
	}
}

/* What could not be read may hold the module that is asked for. */
static void unreadable(void **state)
{
	make_image();
	image.objects[1].dict_word = 8;
	expect_fresh(2, "Net.b");
	expect_fresh(4, "");
}

/* All of it readable, and more than any model has. */
static void too_many(void **state)
{
	uint64_t n = 70000, *keys = calloc(5 + 2 * n, sizeof(*keys));

	assert_non_null(keys);
	make_image();
	memcpy(keys, &image.objects[0].modules.keys, sizeof(struct keys));
	image.objects[0].modules.words[4] = at(keys);
	expect_fresh(2, "Net.b");
	keys[3] = n;
	expect_fresh(2, "");
	free(keys);
}

/* Every word of the model in turn is another; a module has one of its names, the root's, or none. */
static void any_word(void **state)
{
	uint64_t *words = (uint64_t *)image.objects, n = 4 * sizeof(struct object) / 8;

	make_image();
	for (uint64_t i = 0; i < n; i++) {
		uint64_t bad[] = { 0, 1, 8, UINT64_MAX, 1ull << 47, module_at(0), module_at(3), at(&image.objects[1].modules),
				   at(&image.objects[1].dict), at(&image.objects[1].modules.keys), words[i] + 8, words[i] ^ 1 };

		for (size_t b = 0; b < sizeof(bad) / sizeof(bad[0]); b++) {
			struct pystack_modules *modules = pystack_modules_new(&process, &layout);
			uint64_t before = words[i];
			const char *found;

			words[i] = bad[b];
			found = path_of(modules, 3);
			assert_true(!found || !strncmp(found, "Net", 3));
			words[i] = before;
			pystack_modules_free(modules);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(paths), cmocka_unit_test(changes), cmocka_unit_test(cycles), cmocka_unit_test(sizes),
		cmocka_unit_test(unreadable), cmocka_unit_test(too_many), cmocka_unit_test(any_word),
	};

	pystack_process_open(getpid(), &process);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
