/* Where ops end: rets and tail jumps of hand-assembled functions in a made-up library. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "collector/bpf/exits.h"
#include "tests/unit/elf_sample.h"

/* One function each; the first byte pattern is unique, so that the place in the file can be found. */
static const uint8_t one_ret[] = {
	0x55, 0x48, 0x89, 0xe5, 0x5d, 0xc3, 0x0f, 0x1f, 0x40, 0x00
};											    /* push..pop; ret; nop */
static const uint8_t two_rets[] = { 0x53, 0x85, 0xff, 0x74, 0x02, 0x5b, 0xc3, 0x5b, 0xc3 }; /* je over; pop; ret */
static const uint8_t tail_register[] = { 0x54, 0x41, 0x5f, 0xff, 0xe0 };		    /* pop r15; jmp *rax */
static const uint8_t tail_direct[] = { 0x56, 0x5e, 0xe9, 0x00, 0x10, 0x00, 0x00 };	    /* pop; jmp far */
static const uint8_t both_ways[] = { 0x57, 0x85, 0xff, 0x74, 0x02, 0x5f, 0xc3, 0x5f, 0xff, 0xe0 };
static const uint8_t switch_jump[] = { 0x50, 0x48, 0x89, 0xf8, 0xff, 0xe0, 0x58, 0xc3 }; /* mov; jmp *rax; pop; ret */
static const uint8_t hidden_c3[] = { 0x51, 0xb8, 0xc3, 0xc3, 0xc3, 0xc3, 0x59, 0xc3 };	 /* mov $0xc3c3c3c3, eax */
static const uint8_t not_code[] = { 0x52, 0x06, 0x06, 0x06 };				 /* no 64-bit instruction */

static const struct {
	const uint8_t *code;
	size_t size;
	unsigned int n_exits;
	unsigned int exits[2]; /* offsets */
	unsigned int tail_jump;
} functions[] = {
	{ one_ret, sizeof(one_ret), 1, { 5 }, 0 },
	{ two_rets, sizeof(two_rets), 2, { 6, 8 }, 0 },
	{ tail_register, sizeof(tail_register), 0, { 0 }, 1 },
	{ tail_direct, sizeof(tail_direct), 0, { 0 }, 1 },
	{ both_ways, sizeof(both_ways), 1, { 6 }, 1 },
	{ switch_jump, sizeof(switch_jump), 1, { 7 }, 0 },
	{ hidden_c3, sizeof(hidden_c3), 1, { 7 }, 0 },
	{ not_code, sizeof(not_code), 0, { 0 }, 1 },
};

#define N_FUNCTIONS (sizeof(functions) / sizeof(*functions))

struct library {
	char path[64];
	struct terra_op ops[N_FUNCTIONS];
	struct terra_op_table table;
};

static void make_ops(struct library *library, const struct elf_sample *sample)
{
	library->table = (struct terra_op_table){ .library = library->path, .n_ops = N_FUNCTIONS, .ops = library->ops };
	for (size_t i = 0; i < N_FUNCTIONS; i++) {
		const uint8_t *at = memmem(sample->data, sample->size, functions[i].code, functions[i].size);

		assert_non_null(at);
		library->ops[i] =
			(struct terra_op){ .file_offset = (uint64_t)(at - sample->data), .size = functions[i].size };
		library->ops[i].address = SAMPLE_BASE + library->ops[i].file_offset;
	}
}

static int set_up(void **state)
{
	struct library *library = calloc(1, sizeof(*library));
	struct elf_sample *sample = malloc(sizeof(*sample));
	char folder[] = "/tmp/terra-test-XXXXXX";
	int fd;

	assert_non_null(mkdtemp(folder));
	setenv("XDG_CACHE_HOME", folder, 1);
	sample_init(sample, 7);
	sample_symbol(sample, "something", 0);
	for (size_t i = 0; i < N_FUNCTIONS; i++) {
		memcpy(sample->rodata + sample->rodata_size, functions[i].code, functions[i].size);
		sample->rodata_size += functions[i].size;
	}
	sample_finish(sample);
	snprintf(library->path, sizeof(library->path), "%s/library.so", folder);
	fd = open(library->path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(write(fd, sample->data, sample->size) == (ssize_t)sample->size);
	close(fd);
	make_ops(library, sample);
	free(sample);
	*state = library;
	return 0;
}

static int tear_down(void **state)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -r '%s'", getenv("XDG_CACHE_HOME"));
	assert_int_equal(system(command), 0);
	free(*state);
	return 0;
}

static void expect(const struct library *library, const struct terra_exits *exits)
{
	size_t at = 0;

	for (uint32_t i = 0; i < N_FUNCTIONS; i++) {
		assert_int_equal(exits->tail_jumps[i], functions[i].tail_jump);
		for (unsigned int k = 0; k < functions[i].n_exits; k++, at++) {
			assert_true(at < exits->n);
			assert_int_equal(exits->exits[at].op, i);
			assert_int_equal(exits->exits[at].file_offset,
					 library->ops[i].file_offset + functions[i].exits[k]);
		}
	}
	assert_int_equal(exits->n, at);
}

static void test_found(void **state)
{
	struct library *library = *state;
	struct terra_exits *exits;
	char err[256];

	assert_int_equal(terra_exits_find(&library->table, false, &exits, err, sizeof(err)), 0);
	expect(library, exits);
	terra_exits_free(exits);
}

/* The second time they come from the cache, also when that must be refused because the table is another one. */
static void test_cached(void **state)
{
	struct library *library = *state;
	struct terra_exits *exits;
	char err[256];

	for (int i = 0; i < 2; i++) {
		assert_int_equal(terra_exits_find(&library->table, true, &exits, err, sizeof(err)), 0);
		expect(library, exits);
		terra_exits_free(exits);
	}
	library->table.n_ops = 1;
	assert_int_equal(terra_exits_find(&library->table, true, &exits, err, sizeof(err)), 0);
	assert_int_equal(exits->n, 1);
	terra_exits_free(exits);
	library->table.n_ops = N_FUNCTIONS;
}

static void test_outside_of_file(void **state)
{
	struct library *library = *state;
	struct terra_op saved = library->ops[0];
	struct terra_exits *exits;
	char err[256] = "";

	library->ops[0].file_offset = 1u << 20;
	assert_int_equal(terra_exits_find(&library->table, false, &exits, err, sizeof(err)), -ENOEXEC);
	assert_non_null(strstr(err, library->path));
	assert_null(exits);
	library->ops[0].file_offset = UINT64_MAX - 4;
	assert_int_equal(terra_exits_find(&library->table, false, &exits, err, sizeof(err)), -ENOEXEC);
	library->ops[0] = saved;
	library->table.library = (char *)"/no/such/library.so";
	assert_int_equal(terra_exits_find(&library->table, false, &exits, err, sizeof(err)), -ENOENT);
	assert_non_null(strstr(err, "/no/such/library.so"));
	library->table.library = library->path;
}

/* Ops that all are the whole file, as a hostile one says: each would be gone through once more. */
static void test_more_code_than_the_file_has(void **state)
{
	struct library *library = *state;
	struct terra_op saved[2] = { library->ops[0], library->ops[1] };
	struct terra_exits *exits;
	char err[256] = "";

	for (int i = 0; i < 2; i++) {
		library->ops[i].file_offset = 0;
		library->ops[i].size = 600; /* of about 900 bytes */
	}
	assert_int_equal(terra_exits_find(&library->table, false, &exits, err, sizeof(err)), -ENOEXEC);
	assert_null(exits);
	library->ops[1] = saved[1];
	assert_int_equal(terra_exits_find(&library->table, false, &exits, err, sizeof(err)), 0);
	terra_exits_free(exits);
	library->ops[0] = saved[0];
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_found),
		cmocka_unit_test(test_cached),
		cmocka_unit_test(test_outside_of_file),
		cmocka_unit_test(test_more_code_than_the_file_has),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
