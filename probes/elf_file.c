/* elf_file.c - bounds-checked reading of an ELF file; see elf_file.h. */
#include "probes/elf_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOTE_ALIGN 4

static bool in_file(const struct terra_elf *elf, uint64_t offset, uint64_t size)
{
	return offset <= elf->size && size <= elf->size - offset;
}

/* A table of `count` entries that lies in the file and can be read in place; NULL otherwise. */
static const void *table_at(const struct terra_elf *elf, uint64_t offset, uint64_t count, size_t entry)
{
	if (count == 0 || count > elf->size / entry || offset % _Alignof(uint64_t) != 0)
		return NULL;
	return in_file(elf, offset, count * entry) ? elf->data + offset : NULL;
}

static bool header_is_ours(const Elf64_Ehdr *header)
{
	return memcmp(header->e_ident, ELFMAG, SELFMAG) == 0 && header->e_ident[EI_CLASS] == ELFCLASS64 &&
	       header->e_ident[EI_DATA] == ELFDATA2LSB && header->e_machine == EM_X86_64;
}

/* A string table is used only up to its last NUL, so that every string in it ends inside. */
static size_t terminated_size(const char *strings, size_t size)
{
	while (size > 0 && strings[size - 1] != '\0')
		size--;
	return size;
}

static void find_tables(struct terra_elf *elf, const Elf64_Ehdr *header)
{
	if (header->e_phentsize == sizeof(Elf64_Phdr)) {
		elf->segments = table_at(elf, header->e_phoff, header->e_phnum, sizeof(Elf64_Phdr));
		elf->n_segments = elf->segments ? header->e_phnum : 0;
	}
	if (header->e_shentsize == sizeof(Elf64_Shdr)) {
		elf->sections = table_at(elf, header->e_shoff, header->e_shnum, sizeof(Elf64_Shdr));
		elf->n_sections = elf->sections ? header->e_shnum : 0;
	}
	if (header->e_shstrndx < elf->n_sections) {
		size_t size;
		const uint8_t *names = terra_elf_section_data(elf, header->e_shstrndx, &size);

		elf->section_names = (const char *)names;
		elf->section_names_size = names ? terminated_size(elf->section_names, size) : 0;
	}
}

static void find_symbols(struct terra_elf *elf)
{
	for (size_t i = 0; i < elf->n_sections; i++) {
		const Elf64_Shdr *section = &elf->sections[i];
		const uint8_t *strings;
		size_t size;

		if (section->sh_type != SHT_DYNSYM || section->sh_entsize != sizeof(Elf64_Sym) ||
		    section->sh_link >= elf->n_sections)
			continue;
		elf->symbols =
			table_at(elf, section->sh_offset, section->sh_size / sizeof(Elf64_Sym), sizeof(Elf64_Sym));
		strings = terra_elf_section_data(elf, section->sh_link, &size);
		if (!elf->symbols || !strings)
			continue;
		elf->n_symbols = section->sh_size / sizeof(Elf64_Sym);
		elf->strings = (const char *)strings;
		elf->strings_size = terminated_size(elf->strings, size);
		return;
	}
}

static void take_build_id(struct terra_elf *elf, const uint8_t *notes, size_t size)
{
	while (size >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr note;
		size_t name, content;

		memcpy(&note, notes, sizeof(note));
		name = ((size_t)note.n_namesz + NOTE_ALIGN - 1) / NOTE_ALIGN * NOTE_ALIGN;
		content = ((size_t)note.n_descsz + NOTE_ALIGN - 1) / NOTE_ALIGN * NOTE_ALIGN;
		if (name + content > size - sizeof(note))
			return;
		if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == sizeof(ELF_NOTE_GNU) &&
		    memcmp(notes + sizeof(note), ELF_NOTE_GNU, sizeof(ELF_NOTE_GNU)) == 0 && note.n_descsz > 0 &&
		    note.n_descsz <= TERRA_BUILD_ID_MAX) {
			memcpy(elf->build_id, notes + sizeof(note) + name, note.n_descsz);
			elf->build_id_size = (uint8_t)note.n_descsz;
			return;
		}
		notes += sizeof(note) + name + content;
		size -= sizeof(note) + name + content;
	}
}

static void find_build_id(struct terra_elf *elf)
{
	for (size_t i = 0; i < elf->n_segments && elf->build_id_size == 0; i++) {
		const Elf64_Phdr *segment = &elf->segments[i];

		if (segment->p_type == PT_NOTE && in_file(elf, segment->p_offset, segment->p_filesz))
			take_build_id(elf, elf->data + segment->p_offset, segment->p_filesz);
	}
}

int terra_elf_from_memory(const void *data, size_t size, struct terra_elf *elf)
{
	memset(elf, 0, sizeof(*elf));
	elf->data = data;
	elf->size = size;
	if (size < sizeof(Elf64_Ehdr) || !header_is_ours(data))
		return -ENOEXEC;
	find_tables(elf, data);
	find_symbols(elf);
	find_build_id(elf);
	return 0;
}

int terra_elf_open(const char *path, struct terra_elf *elf)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *data;
	int err;

	memset(elf, 0, sizeof(*elf));
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0) {
		err = -errno;
		goto err_out;
	}
	if (!S_ISREG(st.st_mode) || st.st_size < (off_t)sizeof(Elf64_Ehdr)) {
		err = -ENOEXEC;
		goto err_out;
	}
	data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED) {
		err = -errno;
		goto err_out;
	}
	close(fd);
	err = terra_elf_from_memory(data, (size_t)st.st_size, elf);
	elf->mapped = true;
	if (err)
		terra_elf_close(elf);
	return err;
err_out:
	close(fd);
	return err;
}

void terra_elf_close(struct terra_elf *elf)
{
	if (elf->mapped)
		munmap((void *)elf->data, elf->size);
	memset(elf, 0, sizeof(*elf));
}

const char *terra_elf_symbol_name(const struct terra_elf *elf, const Elf64_Sym *symbol)
{
	return symbol->st_name < elf->strings_size ? elf->strings + symbol->st_name : NULL;
}

bool terra_elf_file_offset(const struct terra_elf *elf, uint64_t address, uint64_t *offset)
{
	for (size_t i = 0; i < elf->n_segments; i++) {
		const Elf64_Phdr *segment = &elf->segments[i];

		if (segment->p_type != PT_LOAD || address < segment->p_vaddr ||
		    address - segment->p_vaddr >= segment->p_filesz)
			continue;
		*offset = address - segment->p_vaddr + segment->p_offset;
		return *offset < elf->size && segment->p_offset <= *offset;
	}
	return false;
}

const uint8_t *terra_elf_section_data(const struct terra_elf *elf, size_t index, size_t *size)
{
	const Elf64_Shdr *section = &elf->sections[index];

	if (section->sh_type == SHT_NOBITS || !in_file(elf, section->sh_offset, section->sh_size))
		return NULL;
	*size = section->sh_size;
	return elf->data + section->sh_offset;
}

const char *terra_elf_section_name(const struct terra_elf *elf, size_t index)
{
	uint32_t name = elf->sections[index].sh_name;

	return name < elf->section_names_size ? elf->section_names + name : "";
}

static int visit_functions(const struct terra_elf *elf, size_t section, terra_elf_visit visit, void *context)
{
	size_t size, names_size;
	const uint8_t *data = terra_elf_section_data(elf, section, &size);
	const uint8_t *names = terra_elf_section_data(elf, elf->sections[section].sh_link, &names_size);
	const Elf64_Sym *symbols = (const Elf64_Sym *)(const void *)data;
	int answer = 0;

	if (!data || (uintptr_t)data % _Alignof(Elf64_Sym) || !names || !names_size || names[names_size - 1])
		return 0;
	for (size_t i = 0; i < size / sizeof(*symbols) && !answer; i++)
		if (ELF64_ST_TYPE(symbols[i].st_info) == STT_FUNC && symbols[i].st_shndx != SHN_UNDEF &&
		    symbols[i].st_name < names_size)
			answer = visit(context, &symbols[i], (const char *)names + symbols[i].st_name);
	return answer;
}

int terra_elf_functions(const struct terra_elf *elf, uint32_t type, terra_elf_visit visit, void *context)
{
	int answer = 0;

	for (size_t i = 0; i < elf->n_sections && !answer; i++)
		if (elf->sections[i].sh_type == type && elf->sections[i].sh_link < elf->n_sections)
			answer = visit_functions(elf, i, visit, context);
	return answer;
}
