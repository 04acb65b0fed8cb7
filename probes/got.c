/* got.c - see got.h. One pass over each library's relocations; names are looked up in a hash set of the patches. */
#include "probes/got.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FETCH_AHEAD 8

/* A loaded library, copied out of dl_iterate_phdr: the linker may not be entered again from its callback. */
struct library {
	char *path; /* "" is the main program */
	uintptr_t base;
	const Elf64_Phdr *phdr;
	size_t n_phdr;
};

struct library_list {
	struct library *items;
	size_t n, capacity;
	size_t skip; /* how many from the start are not wanted */
	size_t seen;
	unsigned long long adds, subs;
	int error;
};

/* The parts of a library's dynamic section that slots are found by. */
struct relocations {
	const Elf64_Rela *jmprel, *rela;
	size_t n_jmprel, n_rela, n_relative;
	const Elf64_Sym *symtab;
	const char *strtab;
	uintptr_t relro_start, relro_end;
};

/* Open-addressing set of the patches by symbol name. */
struct symbol_set {
	struct got_patch *patches;
	size_t n;
	size_t prefix; /* bytes that all names share: rejects nearly every foreign symbol without hashing it */
	uint32_t *table; /* patch index + 1 */
	uint32_t *hashes;
	uint32_t mask;
};

/* One walk: which slots are written, and with what. */
struct walk {
	struct symbol_set set;
	const char *only_library;
	bool undo;
	bool relro_open;
	void *handle; /* of the library being walked */
	int written;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static uint32_t hash_name(const char *name, uint32_t *length)
{
	uint32_t h = 5381;
	const char *p = name;

	for (; *p; p++)
		h = h * 33 + (unsigned char)*p;
	*length = (uint32_t)(p - name);
	return h ^ (h >> 15);
}

static size_t common_prefix(const char *a, const char *b, size_t limit)
{
	size_t i = 0;

	while (i < limit && a[i] && a[i] == b[i])
		i++;
	return i;
}

static void set_init(struct symbol_set *set, struct got_patch *patches, size_t n)
{
	*set = (struct symbol_set){ .patches = patches, .n = n };
	set->prefix = n ? strlen(patches[0].symbol) : 0;
	for (size_t i = 1; i < n; i++)
		set->prefix = common_prefix(patches[0].symbol, patches[i].symbol, set->prefix);
}

static void set_insert(struct symbol_set *set, uint32_t index)
{
	uint32_t length, h = hash_name(set->patches[index].symbol + set->prefix, &length);
	uint32_t slot = h & set->mask;

	while (set->table[slot])
		slot = (slot + 1) & set->mask;
	set->table[slot] = index + 1;
	set->hashes[slot] = h;
}

/* Built at the first name that has the prefix: most libraries have none. */
static int set_build(struct symbol_set *set)
{
	size_t capacity = 16;

	if (set->table)
		return 0;
	while (capacity < set->n * 2)
		capacity *= 2;
	set->table = calloc(capacity, sizeof(*set->table));
	set->hashes = calloc(capacity, sizeof(*set->hashes));
	if (!set->table || !set->hashes)
		return -ENOMEM;
	set->mask = (uint32_t)capacity - 1;
	for (size_t i = 0; i < set->n; i++)
		if (set->patches[i].replacement)
			set_insert(set, (uint32_t)i);
	return 0;
}

static void set_free(struct symbol_set *set)
{
	free(set->table);
	free(set->hashes);
}

static struct got_patch *set_find(const struct symbol_set *set, const char *name)
{
	uint32_t length, h = hash_name(name + set->prefix, &length);

	for (uint32_t slot = h & set->mask; set->table[slot]; slot = (slot + 1) & set->mask) {
		struct got_patch *patch = &set->patches[set->table[slot] - 1];

		if (set->hashes[slot] == h && strcmp(patch->symbol, name) == 0)
			return patch;
	}
	return NULL;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static bool is_c_library(const char *path)
{
	static const char *const names[] = { "libc.so.",  "libm.so.",  "libpthread.so.", "libdl.so.",
					     "librt.so.", "ld-linux-", "linux-vdso.so." };
	const char *name = base_name(path);

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strncmp(name, names[i], strlen(names[i])) == 0)
			return true;
	return false;
}

static bool library_contains(const struct library *library, uintptr_t address)
{
	for (size_t i = 0; i < library->n_phdr; i++) {
		const Elf64_Phdr *phdr = &library->phdr[i];

		if (phdr->p_type == PT_LOAD && address - (library->base + phdr->p_vaddr) < phdr->p_memsz)
			return true;
	}
	return false;
}

static int collect_library(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct library_list *list = arg;
	struct library *grown;

	list->adds = info->dlpi_adds;
	list->subs = info->dlpi_subs;
	if (list->seen++ < list->skip)
		return 0;
	if (list->n == list->capacity) {
		list->capacity = list->capacity ? list->capacity * 2 : 64;
		grown = realloc(list->items, list->capacity * sizeof(*grown));
		if (!grown) {
			list->error = -ENOMEM;
			return 1;
		}
		list->items = grown;
	}
	list->items[list->n] = (struct library){ strdup(info->dlpi_name ? info->dlpi_name : ""), info->dlpi_addr,
						 info->dlpi_phdr, info->dlpi_phnum };
	if (!list->items[list->n].path) {
		list->error = -ENOMEM;
		return 1;
	}
	list->n++;
	return 0;
}

static void list_free(struct library_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->items[i].path);
	free(list->items);
}

/* glibc relocates the pointers of the dynamic section in place, other linkers leave them relative. */
static uintptr_t dynamic_pointer(const struct library *library, uintptr_t value)
{
	return value < library->base ? library->base + value : value;
}

static void read_dynamic(const struct library *library, const Elf64_Dyn *dyn, struct relocations *out)
{
	for (; dyn->d_tag != DT_NULL; dyn++) {
		uintptr_t pointer = dynamic_pointer(library, dyn->d_un.d_ptr);

		switch (dyn->d_tag) {
		case DT_JMPREL:
			out->jmprel = (const Elf64_Rela *)pointer;
			break;
		case DT_PLTRELSZ:
			out->n_jmprel = dyn->d_un.d_val / sizeof(Elf64_Rela);
			break;
		case DT_RELA:
			out->rela = (const Elf64_Rela *)pointer;
			break;
		case DT_RELASZ:
			out->n_rela = dyn->d_un.d_val / sizeof(Elf64_Rela);
			break;
		case DT_RELACOUNT:
			out->n_relative = dyn->d_un.d_val;
			break;
		case DT_SYMTAB:
			out->symtab = (const Elf64_Sym *)pointer;
			break;
		case DT_STRTAB:
			out->strtab = (const char *)pointer;
			break;
		}
	}
}

static bool find_relocations(const struct library *library, struct relocations *out)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);

	*out = (struct relocations){ 0 };
	for (size_t i = 0; i < library->n_phdr; i++) {
		const Elf64_Phdr *phdr = &library->phdr[i];
		uintptr_t start = library->base + phdr->p_vaddr;

		if (phdr->p_type == PT_DYNAMIC)
			read_dynamic(library, (const Elf64_Dyn *)start, out);
		if (phdr->p_type == PT_GNU_RELRO) {
			/* rounded as the dynamic linker rounds it: a last partial page stays writable */
			out->relro_start = start & -page;
			out->relro_end = (start + phdr->p_memsz) & -page;
		}
	}
	return out->symtab && out->strtab;
}

/* The definition that calls from this library mean: looked up in its own scope (itself, then its dependencies). */
static int resolve_original(struct walk *walk, struct got_patch *patch)
{
	if (!patch->original)
		patch->original = dlsym(walk->handle, patch->symbol);
	return patch->original ? 0 : -ENOENT;
}

static int open_relro(struct walk *walk, const struct relocations *rel, uintptr_t slot)
{
	if (walk->relro_open || slot < rel->relro_start || slot >= rel->relro_end)
		return 0;
	if (mprotect((void *)rel->relro_start, rel->relro_end - rel->relro_start, PROT_READ | PROT_WRITE) < 0)
		return -errno;
	walk->relro_open = true;
	return 0;
}

static int close_relro(struct walk *walk, const struct relocations *rel)
{
	if (!walk->relro_open)
		return 0;
	walk->relro_open = false;
	if (mprotect((void *)rel->relro_start, rel->relro_end - rel->relro_start, PROT_READ) < 0)
		return -errno;
	return 0;
}

static int write_slot(struct walk *walk, const struct relocations *rel, void **slot, struct got_patch *patch)
{
	void *from = walk->undo ? patch->replacement : NULL;
	void *to = walk->undo ? patch->original : patch->replacement;
	void *held = __atomic_load_n(slot, __ATOMIC_RELAXED);
	int err;

	if (held == to || (from && held != from))
		return 0;
	err = open_relro(walk, rel, (uintptr_t)slot);
	if (err)
		return err;
	__atomic_store_n(slot, to, __ATOMIC_RELEASE);
	walk->written++;
	if (!walk->undo)
		patch->n_slots++;
	return 0;
}

/* A slot that is not bound yet leads to its own library's code, which will ask the linker: in the global scope, then in the
 * library's own. */
static bool leads_to_original(const struct walk *walk, const struct library *library, const struct got_patch *patch,
			      void **slot)
{
	void *held = __atomic_load_n(slot, __ATOMIC_RELAXED), *global;

	if (held == patch->original || held == patch->replacement)
		return true;
	if (!library_contains(library, (uintptr_t)held) || dlsym(walk->handle, patch->symbol) != patch->original)
		return false;
	global = dlsym(RTLD_DEFAULT, patch->symbol);
	return !global || global == patch->original;
}

static int visit_slot(struct walk *walk, const struct library *library, const struct relocations *rel,
		      const Elf64_Rela *rela)
{
	struct symbol_set *set = &walk->set;
	void **slot = (void **)(library->base + rela->r_offset);
	struct got_patch *patch;
	const char *name;
	int err;

	name = rel->strtab + rel->symtab[ELF64_R_SYM(rela->r_info)].st_name;
	if (strncmp(name, set->patches[0].symbol, set->prefix) != 0)
		return 0;
	err = set_build(set);
	if (err)
		return err;
	patch = set_find(set, name);
	/* Undefined weak symbols have slots and no definition; they stay as they are. */
	if (!patch || resolve_original(walk, patch) != 0)
		return 0;
	return patch->exact && !leads_to_original(walk, library, patch, slot) ? 0 : write_slot(walk, rel, slot, patch);
}

static bool is_slot(const Elf64_Rela *rela)
{
	uint32_t type = ELF64_R_TYPE(rela->r_info);

	return type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT;
}

/* Symbols and names lie all over a library of hundreds of megabytes, so that the time goes into cache misses: fetched
 * ahead, they overlap. */
static void fetch_ahead(const struct relocations *rel, const Elf64_Rela *rela, size_t left)
{
	if (left > 2 * FETCH_AHEAD && is_slot(&rela[2 * FETCH_AHEAD]))
		__builtin_prefetch(&rel->symtab[ELF64_R_SYM(rela[2 * FETCH_AHEAD].r_info)]);
	if (left > FETCH_AHEAD && is_slot(&rela[FETCH_AHEAD]))
		__builtin_prefetch(rel->strtab + rel->symtab[ELF64_R_SYM(rela[FETCH_AHEAD].r_info)].st_name);
}

static int visit_table(struct walk *walk, const struct library *library, const struct relocations *rel,
		       const Elf64_Rela *rela, size_t n)
{
	int err = 0;

	for (size_t i = 0; i < n && !err; i++) {
		fetch_ahead(rel, &rela[i], n - i);
		if (is_slot(&rela[i]))
			err = visit_slot(walk, library, rel, &rela[i]);
	}
	return err;
}

static int visit_relocations(struct walk *walk, const struct library *library, const struct relocations *rel)
{
	int err = visit_table(walk, library, rel, rel->jmprel, rel->n_jmprel);

	/* The relative ones come first (DT_RELACOUNT) and name no symbol. */
	if (!err && rel->n_rela > rel->n_relative)
		err = visit_table(walk, library, rel, rel->rela + rel->n_relative, rel->n_rela - rel->n_relative);
	return err;
}

/* Keeps the library loaded while its tables are read; NULL when it has gone, or when the address is another's now. */
static void *pin_library(const struct library *library)
{
	void *handle = dlopen(library->path[0] ? library->path : NULL, RTLD_NOLOAD | RTLD_LAZY);
	struct link_map *map;

	if (handle && dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map->l_addr == library->base)
		return handle;
	if (handle)
		dlclose(handle);
	return NULL;
}

static int visit_library(struct walk *walk, const struct library *library)
{
	struct relocations rel;
	int err = 0, restored;

	if (is_c_library(library->path) ||
	    (walk->only_library && strcmp(base_name(library->path), walk->only_library) != 0))
		return 0;
	walk->handle = pin_library(library);
	if (!walk->handle)
		return 0;
	if (!library_contains(library, (uintptr_t)&lock) && find_relocations(library, &rel)) {
		err = visit_relocations(walk, library, &rel);
		restored = close_relro(walk, &rel);
		err = err ? err : restored;
	}
	dlclose(walk->handle);
	return err;
}

/* Visits the libraries behind the first `watch->n_libraries`, and notes what was there. */
static int walk_libraries(struct walk *walk, struct got_watch *watch)
{
	struct library_list list = { .skip = watch->n_libraries };
	int err;

	dl_iterate_phdr(collect_library, &list);
	err = list.error;
	for (size_t i = 0; i < list.n && !err; i++)
		err = visit_library(walk, &list.items[i]);
	if (!err)
		*watch = (struct got_watch){ list.adds, list.subs, list.seen };
	list_free(&list);
	return err ? err : walk->written;
}

static int run_walk(struct got_patch *patches, size_t n, const char *only_library, bool undo, struct got_watch *watch)
{
	struct walk walk = { .only_library = only_library, .undo = undo };
	int result;

	if (n == 0)
		return 0;
	pthread_mutex_lock(&lock);
	set_init(&walk.set, patches, n);
	result = walk_libraries(&walk, watch);
	set_free(&walk.set);
	pthread_mutex_unlock(&lock);
	return result;
}

int got_patch(struct got_patch *patches, size_t n, const char *only_library)
{
	struct got_watch watch = { 0 };

	return run_walk(patches, n, only_library, false, &watch);
}

int got_unpatch(struct got_patch *patches, size_t n)
{
	struct got_watch watch = { 0 };

	return run_walk(patches, n, NULL, true, &watch);
}

static int read_counters(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct got_watch *now = arg;

	now->adds = info->dlpi_adds;
	now->subs = info->dlpi_subs;
	return 1;
}

int got_patch_new_libraries(struct got_patch *patches, size_t n, const char *only_library, struct got_watch *watch)
{
	struct got_watch now = { 0 };

	dl_iterate_phdr(read_counters, &now);
	if (now.adds == watch->adds && now.subs == watch->subs)
		return 0;
	/* New libraries come at the end of the linker's list, but an unload moves the ones behind it. */
	if (now.subs != watch->subs)
		watch->n_libraries = 0;
	return run_walk(patches, n, only_library, false, watch);
}
