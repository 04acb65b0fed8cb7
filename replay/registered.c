/* registered.c - asks the dispatcher for the kernel that it would run, and where that kernel's code lies.
 *
 * An entry of the dispatcher computes the kernel for a key from all that was registered, at any time. A kernel is an object
 * with pointers to code: where the first words hold pointers into the framework's library and into no other, it is the
 * framework's own. It is looked into once, and again when it lies elsewhere or its words have changed.
 *
 * Nothing is taken from headers: that the dispatcher answers as is read here is tried out with ops that every library has.
 */
#include "replay/registered.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>

#define MAX_KEYS 256
#define WORDS (sizeof(((struct registered_kernel *)0)->words) / sizeof(uint64_t))

struct string { /* std::string */
	const char *data;
	size_t size;
	char local[16];
};

struct op_name { /* c10::OperatorName */
	struct string name, overload;
};

struct found { /* std::optional of c10::OperatorHandle */
	const void *entry, *node;
	uint64_t has;
};

enum { BACKEND, SELECT, VERSION, KEYS };
static const char *const key_names[KEYS] = {"CPU", "BackendSelect", "ADInplaceOrView"};

static struct {
	const char *(*key_name)(uint16_t key);
	void *(*dispatcher)(void);
	void (*find)(struct found *out, void *dispatcher, const struct op_name *name);
	const uint64_t *(*compute)(const void *entry, const void *dispatcher, uint16_t key);
	bool (*has_kernel)(const void *entry, uint16_t key);
	uint16_t key[KEYS];
} ask;

static bool resolve_all(void)
{
	return framework_resolve(&ask.key_name, "_ZN3c108toStringENS_11DispatchKeyE") &&
	       framework_resolve(&ask.dispatcher, "_ZN3c1010Dispatcher13realSingletonEv") &&
	       framework_resolve(&ask.find, "_ZN3c1010Dispatcher10findSchemaERKNS_12OperatorNameE") &&
	       framework_resolve(&ask.compute,
		       "_ZNK3c104impl13OperatorEntry25computeDispatchTableEntryERKNS_10DispatcherENS_11DispatchKeyE") &&
	       framework_resolve(&ask.has_kernel, "_ZNK3c104impl13OperatorEntry23hasKernelForDispatchKeyENS_11DispatchKeyE");
}

static bool find_keys(void)
{
	for (int i = 0; i < KEYS; i++) {
		uint16_t key = 0;

		while (key < MAX_KEYS && strcmp(ask.key_name(key), key_names[i]) != 0)
			key++;
		if (key == MAX_KEYS)
			return false;
		ask.key[i] = key;
	}
	return true;
}

/* ---- an op's entry ---- */

static bool string_is(const struct string *s, const char *text)
{
	return s->size == strlen(text) && memcmp(s->data, text, s->size) == 0;
}

static const void *find_entry(const char *name, const char *overload)
{
	const struct op_name wanted = {{name, strlen(name), ""}, {overload, strlen(overload), ""}}, *own_name;
	struct found found = {0};

	ask.find(&found, ask.dispatcher(), &wanted);
	/* A list's node: two pointers, then the definition, of which the entry is the first part, and its name of that. */
	if ((found.has & 0xff) != 1 || (uintptr_t)found.entry != (uintptr_t)found.node + 2 * sizeof(void *))
		return NULL;
	own_name = found.entry;
	return string_is(&own_name->name, name) && string_is(&own_name->overload, overload) ? found.entry : NULL;
}

/* ---- a kernel's code ---- */

struct search {
	uintptr_t address;
	const char *library; /* that it is code of; NULL: it is no code */
};

static int look_in(struct dl_phdr_info *info, size_t size, void *ctx)
{
	struct search *search = ctx;

	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &info->dlpi_phdr[i];

		if (part->p_type == PT_LOAD && (part->p_flags & PF_X) != 0 &&
		    search->address - (info->dlpi_addr + part->p_vaddr) < part->p_memsz) {
			search->library = info->dlpi_name;
			return 1;
		}
	}
	return 0;
}

static bool is_frameworks(const uint64_t words[WORDS])
{
	struct link_map *map;
	bool own = false;

	if (dlinfo(framework.cpu, RTLD_DI_LINKMAP, &map) != 0)
		return false;
	for (size_t i = 0; i < WORDS; i++) {
		struct search search = {words[i], NULL};

		dl_iterate_phdr(look_in, &search);
		if (search.library != NULL && strcmp(search.library, map->l_name) != 0)
			return false;
		own |= search.library != NULL;
	}
	return own;
}

static bool kernel_is_own(const void *entry, int which, struct registered_kernel *known)
{
	const uint64_t *kernel = ask.compute(entry, ask.dispatcher(), ask.key[which]);

	if (kernel == known->at && memcmp(kernel, known->words, sizeof(known->words)) == 0)
		return true;
	if (!is_frameworks(kernel))
		return false;
	known->at = kernel;
	memcpy(known->words, kernel, sizeof(known->words));
	return true;
}

/* ---- */

/* What every library has, and has not: the answers are ones to our questions. */
static bool answers_are_right(void)
{
	struct registered_kernel add = {0}, add_between = {0}, empty = {0};
	const void *entry[2] = {find_entry("aten::add_", "Tensor"), find_entry("aten::empty", "memory_format")};

	return entry[0] != NULL && entry[1] != NULL && entry[0] != entry[1] && find_entry("aten::add_", "no_such") == NULL &&
	       ask.has_kernel(entry[0], ask.key[BACKEND]) && ask.has_kernel(entry[0], ask.key[VERSION]) &&
	       !ask.has_kernel(entry[0], ask.key[SELECT]) && ask.has_kernel(entry[1], ask.key[SELECT]) &&
	       !ask.has_kernel(entry[1], ask.key[VERSION]) && kernel_is_own(entry[0], BACKEND, &add) &&
	       kernel_is_own(entry[0], VERSION, &add_between) && kernel_is_own(entry[1], BACKEND, &empty) &&
	       add.at != empty.at && add.at != add_between.at;
}

static bool is_known(void)
{
	static enum { UNKNOWN, NO, YES } known;

	if (known == UNKNOWN) {
		known = resolve_all() && find_keys() && answers_are_right() ? YES : NO;
		if (known == NO)
			replay_say("the dispatcher's kernels can't be asked for: nothing is deferred");
	}
	return known == YES;
}

static bool find(struct registered *op, const struct terra_op *of)
{
	if (op->state == REGISTERED_UNKNOWN) {
		op->entry = is_known() ? find_entry(of->name, of->overload) : NULL;
		op->state = op->entry != NULL ? REGISTERED_FOUND : REGISTERED_MISSING;
	}
	return op->state == REGISTERED_FOUND;
}

bool registered_is_own(struct registered *op, const struct terra_op *of)
{
	return find(op, of) && kernel_is_own(op->entry, BACKEND, &op->backend);
}

bool registered_passes_over(struct registered *op, const struct terra_op *of)
{
	if (!find(op, of))
		return false;
	for (int i = SELECT; i < KEYS; i++)
		if (ask.has_kernel(op->entry, ask.key[i]) || !kernel_is_own(op->entry, i, &op->between[i - SELECT]))
			return false;
	return true;
}
