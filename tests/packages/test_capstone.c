// Capstone: instruction boundaries, returns, tail jumps and displacements, the four things that Terra reads from code.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <capstone/capstone.h>
#include <cmocka.h>

// mov rax, [rdi+0x18]; add rax, 1; ret; jmp rax
static const uint8_t code[] = { 0x48, 0x8b, 0x47, 0x18, 0x48, 0x83, 0xc0, 0x01, 0xc3, 0xff, 0xe0 };

enum { ADDRESS = 0x1000, INSTRUCTIONS = 4 };

struct disassembly {
	csh handle;
	cs_insn *insns;
	size_t count;
};

static int open_code(void **state)
{
	static struct disassembly d;

	if (cs_open(CS_ARCH_X86, CS_MODE_64, &d.handle) != CS_ERR_OK)
		return -1;
	cs_option(d.handle, CS_OPT_DETAIL, CS_OPT_ON);
	d.count = cs_disasm(d.handle, code, sizeof(code), ADDRESS, 0, &d.insns);
	*state = &d;
	return 0;
}

static int close_code(void **state)
{
	struct disassembly *d = *state;

	cs_free(d->insns, d->count);
	cs_close(&d->handle);
	return 0;
}

static void capstone_finds_instruction_boundaries(void **state)
{
	const uint64_t expected[INSTRUCTIONS] = { ADDRESS, ADDRESS + 4, ADDRESS + 8, ADDRESS + 9 };
	struct disassembly *d = *state;

	assert_int_equal(d->count, INSTRUCTIONS);
	for (size_t i = 0; i < d->count; i++)
		assert_int_equal(d->insns[i].address, expected[i]);
}

static void capstone_finds_returns(void **state)
{
	struct disassembly *d = *state;

	for (size_t i = 0; i < d->count; i++)
		assert_int_equal(cs_insn_group(d->handle, &d->insns[i], CS_GRP_RET), i == 2);
}

static void capstone_tells_tail_jumps_through_a_register(void **state)
{
	struct disassembly *d = *state;
	const cs_x86 *jump = &d->insns[3].detail->x86;

	assert_true(cs_insn_group(d->handle, &d->insns[3], CS_GRP_JUMP));
	assert_int_equal(jump->op_count, 1);
	assert_int_equal(jump->operands[0].type, X86_OP_REG);
	assert_int_equal(jump->operands[0].reg, X86_REG_RAX);
}

static void capstone_reads_field_displacements(void **state)
{
	struct disassembly *d = *state;
	const cs_x86_op *source = &d->insns[0].detail->x86.operands[1];

	assert_int_equal(source->type, X86_OP_MEM);
	assert_int_equal(source->mem.base, X86_REG_RDI);
	assert_int_equal(source->mem.disp, 0x18);
	assert_int_equal(source->size, 8);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(capstone_finds_instruction_boundaries),
		cmocka_unit_test(capstone_finds_returns),
		cmocka_unit_test(capstone_tells_tail_jumps_through_a_register),
		cmocka_unit_test(capstone_reads_field_displacements),
	};

	return cmocka_run_group_tests(tests, open_code, close_code);
}
