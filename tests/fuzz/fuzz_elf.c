/* fuzz_elf.c - ELF files: the op table, the places where ops end, and where a script says that torch is. */
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <unistd.h>

#include "collector/bpf/exits.h"
#include "probes/find.h"
#include "tests/fuzz/table_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_exits(const struct terra_op_table *table, const struct terra_exits *exits)
{
	for (size_t i = 0; i < exits->n; i++) {
		const struct terra_op *op = &table->ops[exits->exits[i].op];

		table_input_check(exits->exits[i].file_offset - op->file_offset < op->size, "an op ends inside it");
	}
	for (uint32_t i = 0; i < table->n_ops; i++)
		table_input_check(exits->tail_jumps[i] <= 1, "a tail jump or none");
}

static void run_file(const char *path)
{
	struct terra_op_table *table;
	struct terra_exits *exits;
	char err[PATH_MAX + 256] = "";

	if (terra_op_table_load(path, false, &table, err, sizeof(err))) {
		table_input_check(err[0], "a refusal has a reason");
		return;
	}
	if (terra_exits_find(table, false, &exits, err, sizeof(err)) == 0) {
		check_exits(table, exits);
		terra_exits_free(exits);
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
