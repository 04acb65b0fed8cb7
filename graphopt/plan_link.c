/* plan_link.c - from a plan's code section to function pointers.
 *
 * The code is loaded from memory, not from the file: what was checked is what runs, whatever happens to the file.
 */
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "graphopt/plan_internal.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

void plan_region_free(struct terra_plan_region *region)
{
	uint32_t j, k;

	for (j = 0; j < region->n_ops; j++) {
		free(region->ops[j].op);
		for (k = 0; k < TERRA_PLAN_MAX_ARGS; k++)
			free(region->ops[j].arg[k]);
	}
	free(region->ops);
	free(region->name);
	free(region->kernel);
}

void plan_replace_free(struct terra_plan_replace *replace)
{
	free(replace->op);
	free(replace->form);
	free(replace->shape);
	free(replace->kernel);
}

static void free_names(char **names, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		free(names[i]);
	free(names);
}

void terra_plan_free(struct terra_plan *plan)
{
	uint32_t i;

	if (!plan)
		return;
	for (i = 0; i < plan->n_regions; i++)
		plan_region_free(&plan->regions[i]);
	free(plan->regions);
	for (i = 0; i < plan->n_replaces; i++)
		plan_replace_free(&plan->replaces[i]);
	free(plan->replaces);
	free_names(plan->passive, plan->n_passive);
	free_names(plan->lists, plan->n_lists);
	free_names(plan->imports, plan->n_imports);
	free(plan->build_id);
	free(plan->cpu);
	free(plan->cpu_vendor);
	free(plan->source);
	free(plan->code);
	free(plan->import_table);
	if (plan->handle)
		dlclose(plan->handle);
	free(plan);
}

/* The dynamic linker maps what the segments promise and would take a bus error where the file ends earlier. */
static bool is_shared_object(const void *code, size_t size)
{
	const Elf64_Ehdr *ehdr = code;
	Elf64_Phdr phdr;
	size_t i;

	if (size < sizeof(*ehdr) || memcmp(ehdr->e_ident, ELFMAG, SELFMAG) || ehdr->e_ident[EI_CLASS] != ELFCLASS64 ||
	    ehdr->e_type != ET_DYN || ehdr->e_machine != EM_X86_64 || ehdr->e_phentsize != sizeof(phdr))
		return false;
	if (ehdr->e_phoff > size || ehdr->e_phnum > (size - ehdr->e_phoff) / sizeof(phdr))
		return false;
	for (i = 0; i < ehdr->e_phnum; i++) {
		memcpy(&phdr, (const char *)code + ehdr->e_phoff + i * sizeof(phdr), sizeof(phdr));
		if (phdr.p_offset > size || phdr.p_filesz > size - phdr.p_offset)
			return false;
	}
	return true;
}

static int memory_file(const void *code, size_t size)
{
	const char *bytes = code;
	ssize_t n;
	int fd = memfd_create("terra-plan", MFD_CLOEXEC | MFD_EXEC);

	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create("terra-plan", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (size) {
		n = write(fd, bytes, size);
		if (n < 0 && errno != EINTR) {
			n = -errno;
			close(fd);
			return (int)n;
		}
		if (n > 0) {
			bytes += n;
			size -= (size_t)n;
		}
	}
	return fd;
}

/* The dynamic linker takes an object of a known name for loaded, and descriptor numbers come again once closed: so
 * every load in a process spells its path differently, the load's number written in "./" and "/". */
static void unique_path(int fd, char *out, size_t size)
{
	static atomic_uint loads;
	unsigned int number = atomic_fetch_add(&loads, 1);
	size_t n = (size_t)snprintf(out, size, "/proc/self/fd/");
	int bit;

	for (bit = 0; bit < 32; bit++)
		n += (size_t)snprintf(out + n, size - n, "%s", number >> bit & 1 ? "./" : "/");
	snprintf(out + n, size - n, "%d", fd);
}

static int load_code(struct terra_plan *plan, char *err, size_t err_size)
{
	char path[128];
	int fd;

	if (!is_shared_object(plan->code, plan->code_size))
		return plan_error(err, err_size, -ENOEXEC, "the plan's code is not a shared object for x86-64");
	fd = memory_file(plan->code, plan->code_size);
	if (fd < 0)
		return plan_error(err, err_size, fd, "memory for the plan's code: %s", strerror(-fd));
	unique_path(fd, path, sizeof(path));
	plan->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	close(fd);
	return plan->handle ? 0 : plan_error(err, err_size, -ENOEXEC, "loading the plan's code: %s", dlerror());
}

/* dlsym also searches what the object depends on; a kernel must be in the object itself. */
static void *own_symbol(const struct terra_plan *plan, const char *name)
{
	struct link_map *map;
	void *address = dlsym(plan->handle, name);
	Dl_info info;

	if (!address || dlinfo(plan->handle, RTLD_DI_LINKMAP, &map) || !dladdr(address, &info))
		return NULL;
	return (ElfW(Addr))info.dli_fbase == map->l_addr ? address : NULL;
}

static int resolve_kernels(struct terra_plan *plan, char *err, size_t err_size)
{
	uint32_t i;

	for (i = 0; i < plan->n_regions; i++) {
		plan->regions[i].fn = (terra_kernel_fn)own_symbol(plan, plan->regions[i].kernel);
		if (!plan->regions[i].fn)
			return plan_error(err, err_size, -ENOENT, "the plan's code has no kernel %s",
					  plan->regions[i].kernel);
	}
	for (i = 0; i < plan->n_replaces; i++) {
		plan->replaces[i].fn = own_symbol(plan, plan->replaces[i].kernel);
		if (!plan->replaces[i].fn)
			return plan_error(err, err_size, -ENOENT, "the plan's code has no kernel %s",
					  plan->replaces[i].kernel);
	}
	return 0;
}

static int resolve_imports(struct terra_plan *plan, void *libtorch, char *err, size_t err_size)
{
	uint32_t i;

	plan->import_table = calloc(plan->n_imports + 1, sizeof(*plan->import_table));
	if (!plan->import_table)
		return plan_error(err, err_size, -ENOMEM, "out of memory");
	for (i = 0; i < plan->n_imports; i++) {
		plan->import_table[i] = (terra_import_fn)dlsym(libtorch, plan->imports[i]);
		if (!plan->import_table[i])
			return plan_error(err, err_size, -ENOENT,
					  "this libtorch does not export %s, which the plan calls", plan->imports[i]);
	}
	return 0;
}

/* std::string at::get_cpu_capability(), whose result comes through a hidden pointer; libstdc++'s string starts with the
 * pointer to its text and the length. Short texts live inside the object, so there is nothing to free. */
struct cxx_string {
	const char *text;
	size_t length;
	char inside[16];
};
typedef void (*capability_fn)(struct cxx_string *result);

/* The framework picks its kernels at run time (the environment can override the CPU), and bits differ between them. */
static int check_capability(const struct terra_plan *plan, void *libtorch, char *err, size_t err_size)
{
	struct cxx_string found = {0};
	char wanted[16];
	capability_fn get;

	plan_cpu_capability(plan->cpu ? plan->cpu : "", wanted, sizeof(wanted));
	if (!wanted[0])
		return 0;
	get = (capability_fn)dlsym(libtorch, "_ZN2at18get_cpu_capabilityB5cxx11Ev");
	if (!get)
		return plan_error(err, err_size, -ENOTSUP, "this libtorch does not say which CPU capability it uses");
	get(&found);
	if (found.length >= sizeof(wanted) || memcmp(found.text, wanted, found.length) || wanted[found.length])
		return plan_error(err, err_size, -ENOTSUP,
				  "the plan is for the framework's %s kernels, this process uses others", wanted);
	return 0;
}

static void unlink_code(struct terra_plan *plan)
{
	uint32_t i;

	for (i = 0; i < plan->n_regions; i++)
		plan->regions[i].fn = NULL;
	for (i = 0; i < plan->n_replaces; i++)
		plan->replaces[i].fn = NULL;
	free(plan->import_table);
	plan->import_table = NULL;
	if (plan->handle)
		dlclose(plan->handle);
	plan->handle = NULL;
}

int terra_plan_link(struct terra_plan *plan, void *libtorch, char *err, size_t err_size)
{
	int ret;

	unlink_code(plan); /* a plan whose code was made anew is linked anew */
	ret = check_capability(plan, libtorch, err, err_size);
	if (!ret)
		ret = resolve_imports(plan, libtorch, err, err_size);
	if (!ret && plan->code_size)
		ret = load_code(plan, err, err_size);
	if (!ret && plan->code_size)
		ret = resolve_kernels(plan, err, err_size);
	if (ret)
		unlink_code(plan);
	return ret;
}
