/* stubs.c - one few-byte function per op, made at run time: loads the op's index, then goes to the trampoline. */
#include "collector/preload/preload.h"

#include <string.h>
#include <sys/mman.h>

/* endbr64 (for machines that check indirect branches); mov $index, %r11d; jmp trampoline. The jump is relative to the
 * page of addresses behind the stubs only when it reaches; so it goes through one absolute jump there. */
static const uint8_t stub_code[RECORD_STUB_SIZE] = {
	0xf3, 0x0f, 0x1e, 0xfa,       /* endbr64 */
	0x41, 0xbb, 0, 0, 0, 0,       /* mov $index, %r11d */
	0xe9, 0, 0, 0, 0,             /* jmp far_jump */
	0xcc,
};

static const uint8_t far_jump[16] = {
	0xff, 0x25, 2, 0, 0, 0,       /* jmp *2(%rip) */
	0xcc, 0xcc,                   /* then the address */
};

static void write_stub(uint8_t *at, uint32_t index, const uint8_t *target)
{
	int32_t distance = (int32_t)(target - (at + 15));

	memcpy(at, stub_code, sizeof(stub_code));
	memcpy(at + 6, &index, sizeof(index));
	memcpy(at + 11, &distance, sizeof(distance));
}

uint8_t *record_make_stubs(uint32_t n)
{
	size_t size = (size_t)n * RECORD_STUB_SIZE + sizeof(far_jump);
	void *trampoline = record_trampoline;
	uint8_t *code = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *last = code + (size_t)n * RECORD_STUB_SIZE;

	if (code == MAP_FAILED)
		return NULL;
	memcpy(last, far_jump, sizeof(far_jump));
	memcpy(last + 8, &trampoline, sizeof(trampoline));
	for (uint32_t i = 0; i < n; i++)
		write_stub(code + (size_t)i * RECORD_STUB_SIZE, i, last);
	if (mprotect(code, size, PROT_READ | PROT_EXEC) == 0)
		return code;
	munmap(code, size);
	return NULL;
}
