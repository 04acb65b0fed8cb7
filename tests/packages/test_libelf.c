// libelf: a function of this very program is found in its symbol table, and its file offset holds its code.
#include <elf.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <gelf.h>
#include <libelf.h>

extern int terra_landmark(int value);

__attribute__((noinline, visibility("default"))) int terra_landmark(int value)
{
	return value * 40503;
}

static bool find_in_section(Elf *elf, Elf_Scn *section, const char *name, GElf_Sym *symbol)
{
	Elf_Data *data = elf_getdata(section, NULL);
	GElf_Shdr header;

	if (!gelf_getshdr(section, &header) || header.sh_type != SHT_SYMTAB)
		return false;
	for (size_t i = 0; i < header.sh_size / header.sh_entsize; i++) {
		const char *text;

		gelf_getsym(data, (int)i, symbol);
		text = elf_strptr(elf, header.sh_link, symbol->st_name);
		if (text && strcmp(text, name) == 0)
			return true;
	}
	return false;
}

static bool find_symbol(Elf *elf, const char *name, GElf_Sym *symbol)
{
	for (Elf_Scn *section = elf_nextscn(elf, NULL); section; section = elf_nextscn(elf, section)) {
		if (find_in_section(elf, section, name, symbol))
			return true;
	}
	return false;
}

// File offset of a virtual address, through the loadable segment that holds it; 0 when none does.
static uint64_t file_offset(Elf *elf, uint64_t address)
{
	size_t count;
	GElf_Phdr segment;

	assert_int_equal(elf_getphdrnum(elf, &count), 0);
	for (size_t i = 0; i < count; i++) {
		gelf_getphdr(elf, (int)i, &segment);
		if (segment.p_type == PT_LOAD && address >= segment.p_vaddr &&
		    address < segment.p_vaddr + segment.p_filesz)
			return address - segment.p_vaddr + segment.p_offset;
	}
	return 0;
}

static void libelf_finds_a_function_in_the_file(void **state)
{
	unsigned char code[16];
	GElf_Sym symbol;
	uint64_t offset;
	Elf *elf;
	int fd;

	assert_int_not_equal(elf_version(EV_CURRENT), EV_NONE);
	fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	elf = elf_begin(fd, ELF_C_READ, NULL);
	assert_non_null(elf);
	assert_true(find_symbol(elf, "terra_landmark", &symbol));
	assert_int_equal(GELF_ST_TYPE(symbol.st_info), STT_FUNC);
	offset = file_offset(elf, symbol.st_value);
	assert_int_not_equal(offset, 0);
	assert_int_equal(pread(fd, code, sizeof(code), (off_t)offset), sizeof(code));
	assert_memory_equal(code, (const void *)(uintptr_t)terra_landmark, sizeof(code));
	elf_end(elf);
	close(fd);
}

static void libelf_says_what_is_no_elf_file(void **state)
{
	char text[] = "#!/bin/sh\nexit 0\n";
	Elf *elf;

	assert_int_not_equal(elf_version(EV_CURRENT), EV_NONE);
	elf = elf_memory(text, sizeof(text));
	assert_true(!elf || elf_kind(elf) == ELF_K_NONE);
	elf_end(elf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(libelf_finds_a_function_in_the_file),
		cmocka_unit_test(libelf_says_what_is_no_elf_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
