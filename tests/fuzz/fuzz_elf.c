/* fuzz_elf.c - ELF files: the op table, the places to probe in ops, where handlers of exceptions begin, and where a script
 * says that torch is. */
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <unistd.h>

#include "collector/bpf/sites.h"
#include "probes/catches.h"
#include "probes/find.h"
#include "tests/fuzz/table_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_sites(const struct terra_op_table *table, const struct terra_sites *sites)
{
	for (size_t i = 0; i < sites->n_exits; i++) {
		const struct terra_op *op = &table->ops[sites->exits[i].site.op];

		table_input_check(sites->exits[i].file_offset - op->file_offset < op->size, "an op ends inside it");
	}
	for (uint32_t i = 0; i < table->n_ops; i++)
		table_input_check(sites->entries[i].site.op == i && sites->tail_jumps[i] <= 1, "each op has an entry");
}

static void check_catches(const char *path)
{
	struct terra_elf elf;
	uint64_t offset;

	if (terra_elf_open(path, &elf))
		return;
	if (!terra_catches_find_in(&elf, &offset))
		table_input_check(offset < elf.size, "a handler begins in the file");
	terra_elf_close(&elf);
}

static void run_file(const char *path)
{
	struct terra_op_table *table;
	struct terra_sites *sites;
	char err[PATH_MAX + 256] = "";

	check_catches(path);
	if (terra_op_table_load(path, false, &table, err, sizeof(err))) {
		table_input_check(err[0], "a refusal has a reason");
		return;
	}
	if (terra_sites_find(table, false, &sites, err, sizeof(err)) == 0) {
		check_sites(table, sites);
		terra_sites_free(sites);
	} else {
		table_input_check(err[0], "a refusal has a reason");
	}
	terra_op_table_free(table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("library", MFD_CLOEXEC);
	char path[64], found[PATH_MAX];

	table_input_run(data, size);
	table_input_check(fd >= 0 && write(fd, data, size) == (ssize_t)size, "there is room for the input");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	run_file(path);
	if (size > 1 && data[0] == '#')
		terra_find_libtorch(path, found, sizeof(found));
	close(fd);
	return 0;
}
