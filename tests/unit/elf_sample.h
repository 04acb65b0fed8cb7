/* elf_sample.h - builds small ELF libraries in memory: dynamic symbols, read-only strings and a build-id. */
#ifndef TERRA_TESTS_ELF_SAMPLE_H
#define TERRA_TESTS_ELF_SAMPLE_H

#include <elf.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_BASE 0x10000u /* virtual address of the file's first byte */
#define SAMPLE_MAX 65536

enum { SAMPLE_NULL, SAMPLE_DYNSYM, SAMPLE_DYNSTR, SAMPLE_RODATA, SAMPLE_NAMES, SAMPLE_RELA, SAMPLE_SECTIONS };

struct elf_sample {
	_Alignas(16) uint8_t data[SAMPLE_MAX];
	size_t size;
	Elf64_Sym symbols[64];
	size_t n_symbols;
	char dynstr[16384];
	size_t dynstr_size;
	char rodata[16384];
	size_t rodata_size;
	Elf64_Rela relocations[8]; /* .rela.plt; r_offset within rodata until the file is laid out */
	size_t n_relocations;
	uint8_t build_id[20];
};

static inline void sample_init(struct elf_sample *sample, uint8_t id)
{
	memset(sample, 0, sizeof(*sample));
	sample->n_symbols = 1;
	sample->dynstr_size = 1;
	sample->rodata_size = 1;
	memset(sample->build_id, id, sizeof(sample->build_id));
}

/* A function of 16 bytes at the start of the file plus `offset`. */
static inline void sample_symbol(struct elf_sample *sample, const char *name, uint64_t offset)
{
	Elf64_Sym *symbol = &sample->symbols[sample->n_symbols++];

	symbol->st_name = (Elf64_Word)sample->dynstr_size;
	symbol->st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC);
	symbol->st_shndx = SAMPLE_RODATA;
	symbol->st_value = SAMPLE_BASE + offset;
	symbol->st_size = 16;
	strcpy(sample->dynstr + sample->dynstr_size, name);
	sample->dynstr_size += strlen(name) + 1;
}

static inline void sample_string(struct elf_sample *sample, const char *text)
{
	strcpy(sample->rodata + sample->rodata_size, text);
	sample->rodata_size += strlen(text) + 1;
}

/* The word at `offset` of rodata is the slot through which the function `name` of another library is called. */
static inline void sample_relocation(struct elf_sample *sample, const char *name, uint64_t offset)
{
	Elf64_Rela *relocation = &sample->relocations[sample->n_relocations++];

	sample_symbol(sample, name, 0);
	sample->symbols[sample->n_symbols - 1].st_shndx = SHN_UNDEF;
	relocation->r_offset = offset;
	relocation->r_info = ELF64_R_INFO(sample->n_symbols - 1, R_X86_64_JUMP_SLOT);
}

static inline uint64_t sample_put(struct elf_sample *sample, const void *bytes, size_t size)
{
	uint64_t at = (sample->size + 7) / 8 * 8;

	memcpy(sample->data + at, bytes, size);
	sample->size = at + size;
	return at;
}

static inline void sample_section(Elf64_Shdr *section, uint32_t name, uint32_t type, uint64_t offset, uint64_t size)
{
	section->sh_name = name;
	section->sh_type = type;
	section->sh_offset = offset;
	section->sh_size = size;
}

/* Lays the file out; afterwards data and size are it. */
static inline void sample_finish(struct elf_sample *sample)
{
	static const char names[] = "\0.dynsym\0.dynstr\0.rodata\0.shstrtab\0.rela.plt";
	Elf64_Ehdr header = {.e_type = ET_DYN, .e_machine = EM_X86_64, .e_version = EV_CURRENT, .e_phnum = 2};
	Elf64_Phdr segments[2] = {{.p_type = PT_LOAD, .p_vaddr = SAMPLE_BASE}, {.p_type = PT_NOTE}};
	Elf64_Shdr sections[SAMPLE_SECTIONS] = {{.sh_type = SHT_NULL}};
	struct {
		Elf64_Nhdr header;
		char name[4];
		uint8_t id[20];
	} note = {{4, 20, NT_GNU_BUILD_ID}, "GNU", {0}};
	size_t symbols_size = sample->n_symbols * sizeof(Elf64_Sym);

	memcpy(header.e_ident, ELFMAG, SELFMAG);
	header.e_ident[EI_CLASS] = ELFCLASS64;
	header.e_ident[EI_DATA] = ELFDATA2LSB;
	header.e_ident[EI_VERSION] = EV_CURRENT;
	memcpy(note.id, sample->build_id, sizeof(note.id));
	sample->size = sizeof(header) + sizeof(segments);
	segments[1].p_offset = sample_put(sample, &note, sizeof(note));
	segments[1].p_filesz = sizeof(note);
	sample_section(&sections[SAMPLE_DYNSYM], 1, SHT_DYNSYM, sample_put(sample, sample->symbols, symbols_size),
		       symbols_size);
	sections[SAMPLE_DYNSYM].sh_link = SAMPLE_DYNSTR;
	sections[SAMPLE_DYNSYM].sh_entsize = sizeof(Elf64_Sym);
	sample_section(&sections[SAMPLE_DYNSTR], 9, SHT_STRTAB, sample_put(sample, sample->dynstr, sample->dynstr_size),
		       sample->dynstr_size);
	sample_section(&sections[SAMPLE_RODATA], 17, SHT_PROGBITS,
		       sample_put(sample, sample->rodata, sample->rodata_size), sample->rodata_size);
	sample_section(&sections[SAMPLE_NAMES], 25, SHT_STRTAB, sample_put(sample, names, sizeof(names)),
		       sizeof(names));
	for (size_t i = 0; i < sample->n_relocations; i++)
		sample->relocations[i].r_offset += SAMPLE_BASE + sections[SAMPLE_RODATA].sh_offset;
	sample_section(&sections[SAMPLE_RELA], 35, SHT_RELA,
		       sample_put(sample, sample->relocations, sample->n_relocations * sizeof(Elf64_Rela)),
		       sample->n_relocations * sizeof(Elf64_Rela));
	header.e_shoff = sample_put(sample, sections, sizeof(sections));
	header.e_shentsize = sizeof(Elf64_Shdr);
	header.e_shnum = SAMPLE_SECTIONS;
	header.e_shstrndx = SAMPLE_NAMES;
	header.e_phoff = sizeof(header);
	header.e_phentsize = sizeof(Elf64_Phdr);
	segments[0].p_filesz = segments[0].p_memsz = sample->size;
	memcpy(sample->data, &header, sizeof(header));
	memcpy(sample->data + sizeof(header), segments, sizeof(segments));
}

#endif
