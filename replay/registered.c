/* registered.c - asks the dispatcher for the kernel that it would run, and where that kernel's code lies.
 *
 * An entry of the dispatcher computes the kernel for a key from all that was registered, at any time. A kernel's first words are
 * pointers to an object, or none, and to code that takes boxed and unboxed arguments. The framework's own have code in its
 * library alone, and both kinds of it; an object with one kind is an adapter for a function that somebody handed to the
 * library. A kernel is looked into once, and again when it lies elsewhere or its words have changed.
 *
 * Nothing is taken from headers: that the dispatcher answers as is read here is tried out with ops that every library has.
 */
#include "replay/registered.h"

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
_Static_assert(KEYS - SELECT == REGISTERED_BETWEEN, "all but the backend's");
const char *const registered_between[REGISTERED_BETWEEN] = {"BackendSelect", "ADInplaceOrView"};

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
		const char *name = i < SELECT ? "CPU" : registered_between[i - SELECT];
		uint16_t key = 0;

		while (key < MAX_KEYS && strcmp(ask.key_name(key), name) != 0)
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
	uint32_t code = 0, objects = 0;

	for (size_t i = 0; i < WORDS; i++) {
		struct search search = {words[i], NULL};

		dl_iterate_phdr(look_in, &search);
		if (search.library != NULL && strcmp(search.library, framework.path) != 0)
			return false;
		code += search.library != NULL;
		objects += search.library == NULL && words[i] != 0;
	}
	return code >= 2 || (code == 1 && objects == 0);
}

static bool kernel_is_own(const void *entry, int which, struct registered_kernel *known)
{
	const uint64_t *kernel = ask.compute(entry, ask.dispatcher(), ask.key[which]);

	if (kernel != known->at || memcmp(kernel, known->words, sizeof(known->words)) != 0) {
		known->at = kernel;
		memcpy(known->words, kernel, sizeof(known->words));
		known->own = is_frameworks(kernel);
	}
	return known->own;
}

/* ---- */

/* In-place ops have kernels for counting versions, and for no selection of a backend. */
static bool answers_for(const char *name, const char *overload)
{
	struct registered_kernel backend = {0}, version = {0};
	const void *entry = find_entry(name, overload);

	return entry != NULL && ask.has_kernel(entry, ask.key[BACKEND]) && ask.has_kernel(entry, ask.key[VERSION]) &&
	       !ask.has_kernel(entry, ask.key[SELECT]) && kernel_is_own(entry, BACKEND, &backend) &&
	       kernel_is_own(entry, VERSION, &version) && backend.at != version.at;
}

/* What every library has, and has not: the answers are ones to our questions. Of some ops, as the program may have changed one. */
static bool answers_are_right(void)
{
	static const char *const in_place[] = {"aten::add_", "aten::mul_", "aten::sub_", "aten::div_"};
	const void *empty = find_entry("aten::empty", "memory_format");
	uint32_t right = 0;

	for (size_t i = 0; i < sizeof(in_place) / sizeof(in_place[0]); i++)
		right += answers_for(in_place[i], "Tensor");
	return right >= 2 && find_entry("aten::add_", "no_such") == NULL && empty != NULL &&
	       ask.has_kernel(empty, ask.key[SELECT]) && !ask.has_kernel(empty, ask.key[VERSION]);
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
