/* elf_file.h - the parts of a 64-bit little-endian x86-64 ELF file that the probes need, read without running it.
 *
 * The file may be truncated or hostile: every offset, count and string is checked against the mapping before use, and
 * what does not fit is reported as absent (-ENOEXEC for the file as a whole). This is a few checks over <elf.h> rather
 * than libelf so that the preload libraries bring no further library into the programs they watch.
 */
#ifndef TERRA_PROBES_ELF_FILE_H
#define TERRA_PROBES_ELF_FILE_H

#include <elf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TERRA_BUILD_ID_MAX 20

struct terra_elf {
	const uint8_t *data;
	size_t size;
	bool mapped; /* data is our mapping of a file, not the caller's memory */
	const Elf64_Shdr *sections;
	size_t n_sections;
	const Elf64_Phdr *segments;
	size_t n_segments;
	const char *section_names;
	size_t section_names_size;
	const Elf64_Sym *symbols; /* .dynsym */
	size_t n_symbols;
	const char *strings;      /* .dynstr, ends in a NUL */
	size_t strings_size;
	uint8_t build_id[TERRA_BUILD_ID_MAX];
	uint8_t build_id_size;    /* 0: none */
};

/* Maps `path` read-only. 0 or -errno; -ENOEXEC when it is not an ELF file of this kind. */
int terra_elf_open(const char *path, struct terra_elf *elf);
/* The same over `size` bytes of the caller's memory, which must stay and be 8-byte aligned. */
int terra_elf_from_memory(const void *data, size_t size, struct terra_elf *elf);
void terra_elf_close(struct terra_elf *elf);

/* Name of a dynamic symbol; NULL when its string lies outside of the table. */
const char *terra_elf_symbol_name(const struct terra_elf *elf, const Elf64_Sym *symbol);

/* File offset that holds virtual address `address`; false when no byte of the file does. */
bool terra_elf_file_offset(const struct terra_elf *elf, uint64_t address, uint64_t *offset);

/* Contents and size of section `index` that lie in the file; NULL when it has none. */
const uint8_t *terra_elf_section_data(const struct terra_elf *elf, size_t index, size_t *size);
const char *terra_elf_section_name(const struct terra_elf *elf, size_t index);

/* Gives each function that the symbol tables of `type` (SHT_DYNSYM, SHT_SYMTAB) define to `visit`, until one is answered with
 * something else than 0, which is returned. */
typedef int (*terra_elf_visit)(void *context, const Elf64_Sym *symbol, const char *name);
int terra_elf_functions(const struct terra_elf *elf, uint32_t type, terra_elf_visit visit, void *context);

#endif
