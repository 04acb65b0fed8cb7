// libbpf: a program that counts in a map is loaded and run by the kernel. Needs the right to load BPF programs.
#include <errno.h>
#include <linux/bpf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <cmocka.h>

#define INSN(op, dst, src, offset, immediate) \
	{ .code = (op), .dst_reg = (dst), .src_reg = (src), .off = (offset), .imm = (immediate) }

enum { FRAME = BPF_REG_10, RETURN_VALUE = 42 };

// counts[0]++; return 42;
static int load_counter(int map)
{
	const struct bpf_insn code[] = {
		INSN(BPF_ST | BPF_MEM | BPF_W, FRAME, 0, -4, 0),
		INSN(BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, map),
		INSN(0, 0, 0, 0, 0),
		INSN(BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_2, FRAME, 0, 0),
		INSN(BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, -4),
		INSN(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_map_lookup_elem),
		INSN(BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_0, 0, 2, 0),
		INSN(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_1, 0, 0, 1),
		INSN(BPF_STX | BPF_ATOMIC | BPF_DW, BPF_REG_0, BPF_REG_1, 0, BPF_ADD),
		INSN(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, RETURN_VALUE),
		INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
	};

	return bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, "terra_counter", "GPL", code,
			     sizeof(code) / sizeof(code[0]), NULL);
}

// A missing right skips the test by name, and fails it where TERRA_REQUIRE_BPF=1 says that the right is there.
static void need_right(int error)
{
	const char *required = getenv("TERRA_REQUIRE_BPF");

	if (error == -EPERM && !(required && strcmp(required, "1") == 0))
		skip();
	if (error < 0)
		fail_msg("bpf(2): %s", strerror(-error));
}

static void libbpf_loads_and_runs_a_program(void **state)
{
	char packet[64] = { 0 };
	LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet, .data_size_in = sizeof(packet), .repeat = 1);
	const uint32_t key = 0;
	uint64_t count = 0;
	int map, program;

	libbpf_set_strict_mode(LIBBPF_STRICT_ALL);
	map = bpf_map_create(BPF_MAP_TYPE_ARRAY, "terra_counts", sizeof(key), sizeof(count), 1, NULL);
	need_right(map);
	program = load_counter(map);
	need_right(program);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(bpf_prog_test_run_opts(program, &options), 0);
		assert_int_equal(options.retval, RETURN_VALUE);
	}
	assert_int_equal(bpf_map_lookup_elem(map, &key, &count), 0);
	assert_int_equal(count, 3);
	close(program);
	close(map);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(libbpf_loads_and_runs_a_program),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
