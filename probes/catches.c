#include "probes/catches.h"

#include <errno.h>
#include <string.h>

bool terra_catches_library(const char *path)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;

	return (!strncmp(name, "libstdc++", 9) || !strncmp(name, "libc++", 6)) && strstr(name, ".so");
}

static const Elf64_Sym *find_symbol(const struct terra_elf *elf)
{
	for (size_t i = 0; i < elf->n_symbols; i++) {
		const char *name = terra_elf_symbol_name(elf, &elf->symbols[i]);

		if (name && !strcmp(name, TERRA_BEGIN_CATCH))
			return &elf->symbols[i];
	}
	return NULL;
}

/* Behind the mark that jumps may lead here, which the kernel would have to step over; what follows mostly is a push, which
 * it emulates. */
static uint64_t behind_mark(const struct terra_elf *elf, uint64_t offset)
{
	static const uint8_t endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa };
	bool marked = offset < elf->size && elf->size - offset > sizeof(endbr64) &&
		      !memcmp(elf->data + offset, endbr64, sizeof(endbr64));

	return marked ? offset + sizeof(endbr64) : offset;
}

int terra_catches_find_in(const struct terra_elf *elf, uint64_t *offset)
{
	const Elf64_Sym *symbol = find_symbol(elf);

	if (!symbol || symbol->st_shndx == SHN_UNDEF || ELF64_ST_TYPE(symbol->st_info) != STT_FUNC ||
	    !terra_elf_file_offset(elf, symbol->st_value, offset))
		return -ENOENT;
	*offset = behind_mark(elf, *offset);
	return 0;
}

int terra_catches_find(const char *path, uint64_t *offset)
{
	struct terra_elf elf;
	int error = terra_elf_open(path, &elf);

	if (error)
		return error;
	error = terra_catches_find_in(&elf, offset);
	terra_elf_close(&elf);
	return error;
}

bool terra_catches_elsewhere(const char *path)
{
	const Elf64_Sym *symbol;
	struct terra_elf elf;
	bool elsewhere;

	if (terra_elf_open(path, &elf))
		return false;
	symbol = find_symbol(&elf);
	elsewhere = symbol && symbol->st_shndx == SHN_UNDEF;
	terra_elf_close(&elf);
	return elsewhere;
}
