/* The dynamic linker writes a module's number into the module's own table, for its calls of __tls_get_addr. */
#include "collector/target_tls.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "collector/pystack_priv.h"
#include "probes/elf_file.h"

/* Address of the word that takes the number of the module itself: relocations for it name no symbol. */
static bool find_word(const struct terra_elf *elf, uint64_t *address)
{
	for (size_t i = 0; i < elf->n_sections; i++) {
		size_t size;
		const uint8_t *data = elf->sections[i].sh_type == SHT_RELA ? terra_elf_section_data(elf, i, &size) : NULL;

		for (size_t at = 0; data && at + sizeof(Elf64_Rela) <= size; at += sizeof(Elf64_Rela)) {
			Elf64_Rela relocation;

			memcpy(&relocation, data + at, sizeof(relocation));
			if (relocation.r_info != ELF64_R_INFO(0, R_X86_64_DTPMOD64))
				continue;
			*address = relocation.r_offset;
			return true;
		}
	}
	return false;
}

/* What is to be added to the file's addresses in the process; 0: it is not mapped there. */
static uint64_t find_bias(pid_t pid, const char *library, const struct terra_elf *elf)
{
	char name[64], line[4352];
	uint64_t bias = 0;
	FILE *maps;

	snprintf(name, sizeof(name), "/proc/%d/maps", pid);
	maps = fopen(name, "re");
	while (maps && !bias && fgets(line, sizeof(line), maps)) {
		unsigned long long start, offset;
		int at = 0;

		if (sscanf(line, "%llx-%*x %*s %llx %*s %*s %n", &start, &offset, &at) < 2 || !at || offset)
			continue;
		line[strcspn(line, "\n")] = 0;
		if (strcmp(line + at, library))
			continue;
		for (size_t i = 0; i < elf->n_segments && !bias; i++)
			if (elf->segments[i].p_type == PT_LOAD)
				bias = start - (elf->segments[i].p_vaddr & ~0xfffull);
	}
	if (maps)
		fclose(maps);
	return bias;
}

int terra_target_tls_module(pid_t pid, const char *library, uint64_t *module)
{
	struct pystack_process process;
	uint64_t word = 0, bias;
	struct terra_elf elf;
	int error = terra_elf_open(library, &elf);

	if (error)
		return error;
	if (!find_word(&elf, &word)) {
		terra_elf_close(&elf);
		return -ENOTSUP;
	}
	bias = find_bias(pid, library, &elf);
	terra_elf_close(&elf);
	if (!bias)
		return -EAGAIN;
	pystack_process_open(pid, &process);
	error = pystack_read(&process, bias + word, module, sizeof(*module));
	pystack_process_close(&process);
	if (error == -EFAULT || error == -EIO) /* the loader maps one part after the other */
		return -EAGAIN;
	if (error)
		return error;
	return *module ? 0 : -EAGAIN;
}
