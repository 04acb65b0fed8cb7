/* Registering ops takes a torch::Library, or the same through the stable C ABI: a library that imports either does so. */
#include "collector/extensions.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probes/catches.h"
#include "probes/elf_file.h"

static bool registers_ops(const char *path)
{
	static const char *const marks[] = { "_ZN5torch7LibraryC", "aoti_torch_library_init" };
	struct terra_elf elf;
	bool found = false;

	if (terra_elf_open(path, &elf))
		return false;
	for (size_t i = 0; i < elf.n_symbols && !found; i++) {
		const char *name = elf.symbols[i].st_shndx == SHN_UNDEF ? terra_elf_symbol_name(&elf, &elf.symbols[i]) : NULL;

		for (size_t k = 0; name && k < sizeof(marks) / sizeof(marks[0]); k++)
			found |= strncmp(name, marks[k], strlen(marks[k])) == 0;
	}
	terra_elf_close(&elf);
	return found;
}

/* 1: new, 0: seen before, -ENOMEM. */
static int add_file(struct terra_extensions *extensions, uint64_t file)
{
	for (size_t i = extensions->n; i-- > 0;)
		if (extensions->files[i] == file)
			return 0;
	if (extensions->n == extensions->capacity) {
		size_t capacity = extensions->capacity ? 2 * extensions->capacity : 256;
		uint64_t *files = realloc(extensions->files, capacity * sizeof(*files));

		if (!files)
			return -ENOMEM;
		extensions->files = files;
		extensions->capacity = capacity;
	}
	extensions->files[extensions->n++] = file;
	return 1;
}

static bool same_folder(const char *path, const char *libtorch)
{
	const char *slash = strrchr(libtorch, '/'), *own = strrchr(path, '/');

	return slash && own && own - path == slash - libtorch && !strncmp(path, libtorch, (size_t)(slash - libtorch));
}

/* A line's executable mapping of a file: its path, and a number that tells files apart. */
static char *parse_line(char *line, uint64_t *file)
{
	unsigned int major, minor;
	unsigned long inode;
	char rights[5];
	int at = 0;

	if (sscanf(line, "%*s %4s %*s %x:%x %lu %n", rights, &major, &minor, &inode, &at) < 4 || !at || rights[2] != 'x' ||
	    line[at] != '/')
		return NULL;
	line[strcspn(line, "\n")] = 0;
	*file = (uint64_t)(major << 20 | minor) << 40 ^ inode;
	return line + at;
}

static int look_at(const char *path, terra_extension_found found, void *context)
{
	if (terra_catches_library(path))
		return found(context, TERRA_EXTENSION_CATCHES, path);
	return registers_ops(path) ? found(context, TERRA_EXTENSION_OPS, path) : 0;
}

int terra_extensions_look(struct terra_extensions *extensions, pid_t pid, const char *libtorch,
			  terra_extension_found found, void *context)
{
	char name[64], line[4352], *path;
	uint64_t file;
	FILE *maps;
	int error = 0;

	snprintf(name, sizeof(name), "/proc/%d/maps", pid);
	maps = fopen(name, "re");
	while (maps && !error && fgets(line, sizeof(line), maps)) {
		path = parse_line(line, &file);
		if (!path || (same_folder(path, libtorch) && !terra_catches_library(path)))
			continue;
		error = add_file(extensions, file);
		if (error > 0)
			error = look_at(path, found, context);
	}
	if (maps)
		fclose(maps);
	return error;
}

void terra_extensions_free(struct terra_extensions *extensions)
{
	free(extensions->files);
	*extensions = (struct terra_extensions){ 0 };
}

void terra_extensions_remark(const char *path, char *out, size_t size)
{
	snprintf(out, size, "%s registers ops of its own: of them at most calls by name (torch.ops) are seen, without arguments, "
			    "and the ops that they call", path);
}
