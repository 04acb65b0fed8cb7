/* fuzz_cache.c - cache files of op tables and of the places to probe in them that say what they like.
 *
 * The first byte chooses the kind of file, 'o' for ops and 's' for sites, the second what the rest is, since a fuzzer
 * cannot guess checksums: 'c' contents, with a header that is right, 'f' a whole file. A cache that is not to be believed
 * costs time: what was asked for comes from the library then.
 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "collector/bpf/sites.h"
#include "probes/cache.h"
#include "tests/fuzz/table_input.h"
#include "tests/unit/elf_sample.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define KEY_OFFSET 8 /* behind the magic of a cache file */

static char folder[] = "/tmp/terra-fuzz-XXXXXX";
static char library[64];
static const char *const kinds[] = {"ops", "sites"};
static char files[2][PATH_MAX];
static struct terra_cache_key keys[2];

static void remove_folder(void)
{
	for (int i = 0; i < 2; i++)
		unlink(files[i]);
	unlink(library);
	strcat(library, "-cache/terra");
	rmdir(library);
	*strrchr(library, '/') = '\0';
	rmdir(library);
	rmdir(folder);
}

static void write_file(const char *path, const void *data, size_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	table_input_check(fd >= 0 && write(fd, data, size) == (ssize_t)size, "a file can be written");
	close(fd);
}

static void make_library(void)
{
	static const uint8_t code[] = {0x55, 0x5d, 0xc3, 0x5f, 0xff, 0xe0}; /* push, pop, ret; pop, jmp *rax */
	static struct elf_sample sample;

	sample_init(&sample, 7);
	memcpy(sample.rodata, code, sizeof(code));
	sample.rodata_size = sizeof(code) + 1;
	sample_symbol(&sample, "_ZN2at4_ops4add_4callERNS_6TensorERKS2_RKN3c106ScalarE", 0);
	sample_symbol(&sample, "_ZN2at4_ops1x10redispatchEN3c1014DispatchKeySetEdSt8optionalIdEm", 0);
	sample_string(&sample, "add_(Tensor(a!) self, Tensor other, Scalar alpha=1) -> Tensor(a!)");
	sample_finish(&sample);
	write_file(library, sample.data, sample.size);
}

static void check_probe(const struct terra_op_table *table, const struct terra_probe *probe)
{
	const struct terra_site *site = &probe->site;

	table_input_check(site->op < table->n_ops, "a site is that of an op");
	table_input_check(site->sp.base < TERRA_REGISTERS && site->result.base < TERRA_REGISTERS, "registers that exist");
	for (int i = 0; i < 6; i++)
		table_input_check(site->gpr[i].base < TERRA_REGISTERS, "registers that exist");
	for (int i = 0; i < 8; i++)
		table_input_check(site->xmm[i].base < TERRA_REGISTERS, "registers that exist");
}

/* The library's table, its sites too. */
static struct terra_op_table *load(void)
{
	struct terra_op_table *table;
	struct terra_sites *sites;
	char err[PATH_MAX + 256];

	table_input_check(terra_op_table_load(library, true, &table, err, sizeof(err)) == 0, "there is a table");
	table_input_use(table);
	if (terra_sites_find(table, true, &sites, err, sizeof(err)) == 0) {
		for (size_t i = 0; i < sites->n_exits; i++)
			check_probe(table, &sites->exits[i]);
		for (uint32_t i = 0; i < table->n_ops; i++)
			check_probe(table, &sites->entries[i]);
		terra_sites_free(sites);
	}
	return table;
}

/* What the files are called and what their keys are, from those that are written when there are none. */
static void set_up(void)
{
	char path[PATH_MAX];
	struct dirent *entry;
	DIR *dir;

	table_input_check(mkdtemp(folder), "a folder can be made");
	snprintf(library, sizeof(library), "%s/library", folder);
	snprintf(path, sizeof(path), "%s-cache", library);
	setenv("XDG_CACHE_HOME", path, 1);
	make_library();
	terra_op_table_free(load());
	strcat(path, "/terra");
	dir = opendir(path);
	table_input_check(dir, "a cache was made");
	while ((entry = readdir(dir)))
		for (int i = 0; i < 2; i++)
			if (strncmp(entry->d_name, kinds[i], strlen(kinds[i])) == 0)
				table_input_check((size_t)snprintf(files[i], PATH_MAX, "%s/%s", path, entry->d_name) < PATH_MAX,
						  "a short path");
	closedir(dir);
	for (int i = 0; i < 2; i++) {
		int fd = open(files[i], O_RDONLY | O_CLOEXEC);

		table_input_check(fd >= 0 && pread(fd, &keys[i], sizeof(keys[i]), KEY_OFFSET) == sizeof(keys[i]),
				  "both files are there");
		close(fd);
	}
	atexit(remove_folder);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int kind = size > 2 && data[0] == 's';

	if (!files[0][0])
		set_up();
	if (size < 3)
		return 0;
	unlink(files[!kind]);
	if (data[1] == 'f')
		write_file(files[kind], data + 2, size - 2);
	else
		table_input_check(terra_cache_write(kinds[kind], &keys[kind], data + 2, size - 2) == 0, "a cache is written");
	terra_op_table_free(load());
	return 0;
}
