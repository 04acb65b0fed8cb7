/* calibrate_node.c - autograd's Nodes by example.
 *
 * Nodes are numbered, and the library says the number that is next: so the number's place in a Node is where two Nodes
 * each hold their own. Which word of the thread's storage a function of the library returns is found by writing to the
 * words one at a time, where zeros are, and asking the function.
 */
#include "probes/calibrate.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>

#define TERRA_READ(destination, size, address) (!terra_read_memory((address), (destination), (size)))
#include "probes/tls.h"

#define WORD sizeof(uint64_t)
#define N_NODES 2

/* Its address is what is written. It takes being counted as a Node's owner does, where the mark hits that word. */
static uint64_t mark[8];

struct functions {
	uint64_t (*next)(void);              /* the number of the next Node */
	uint64_t (*advance)(void);           /* takes that number */
	void *(*current)(void *shared_node); /* two words: the Node and its use count */
	void *(*mul)(void *result, const void *self, const void *other);
	void *(*requires_grad)(void *self, bool value);
};

static void resolve(void *library, struct functions *f)
{
	f->next = dlsym(library, "_ZN2at15sequence_number4peekEv");
	f->advance = dlsym(library, "_ZN2at15sequence_number17get_and_incrementEv");
	f->current = dlsym(library, "_ZN5torch8autograd16get_current_nodeEv");
	f->mul = dlsym(library, "_ZN2at4_ops10mul_Tensor4callERKNS_6TensorES4_");
	f->requires_grad = dlsym(library, "_ZN2at4_ops14requires_grad_4callERNS_6TensorEb");
}

/* A Node with its number, which few other words are likely to hold. */
struct sample {
	uint64_t number;
	struct terra_snapshot node;
};

static uint64_t word_at(const void *structure, const struct terra_field *field)
{
	uint64_t word;

	memcpy(&word, (const char *)structure + field->offset, sizeof(word));
	return word;
}

static bool take_sample(const struct terra_torch_abi *abi, const struct functions *f, const struct terra_offsets *out,
			void *leaf, struct sample *sample)
{
	uint64_t meta, node;
	void *result;

	for (int i = 0; i < 7919; i++)
		f->advance();
	if (abi->undefined(&result))
		return false;
	sample->number = f->next();
	/* The undefined tensor's word is overwritten; it holds no reference that would be lost. */
	f->mul(result, leaf, leaf);
	meta = word_at(terra_tensor_impl(result), &out->autograd_meta);
	node = meta ? word_at((const void *)(uintptr_t)meta, &out->grad_fn) : 0;
	sample->node.size = 0;
	if (node)
		terra_snapshot_take((const void *)(uintptr_t)node, &sample->node);
	abi->delete_tensor(result);
	return sample->node.size > 0;
}

static void find_sequence(const struct terra_torch_abi *abi, const struct functions *f, struct terra_offsets *out)
{
	struct sample samples[N_NODES];
	float value = 3;
	void *leaf = terra_new_scalar_tensor(abi, &value, abi->float32);
	unsigned times = 0;
	size_t n = 0;

	if (!leaf)
		return;
	f->requires_grad(leaf, true);
	while (n < N_NODES && take_sample(abi, f, out, leaf, &samples[n]))
		n++;
	abi->delete_tensor(leaf);
	if (n < N_NODES)
		return;
	for (size_t at = 0; (at + 1) * WORD <= samples[0].node.size; at++) {
		for (n = 0; n < N_NODES && samples[n].node.words[at] == samples[n].number;)
			n++;
		if (n < N_NODES)
			continue;
		out->node_sequence = (struct terra_field){(uint16_t)(at * WORD), WORD, 1};
		times++;
	}
	out->node_sequence.known = times == 1;
}

/* The library's thread-local storage. */
struct storage {
	const void *inside; /* an address in the library */
	uint64_t *block;    /* this thread's */
	size_t words;
	uint64_t module;
};

static int find_storage(struct dl_phdr_info *info, size_t size, void *context)
{
	struct storage *storage = context;
	size_t words = 0;
	bool ours = false;

	for (int i = 0; i < info->dlpi_phnum; i++) {
		const Elf64_Phdr *segment = &info->dlpi_phdr[i];
		uintptr_t distance = (uintptr_t)storage->inside - (info->dlpi_addr + segment->p_vaddr);

		ours |= segment->p_type == PT_LOAD && distance < segment->p_memsz;
		if (segment->p_type == PT_TLS)
			words = segment->p_memsz / WORD;
	}
	if (!ours)
		return 0;
	storage->block = info->dlpi_tls_data;
	storage->module = info->dlpi_tls_modid;
	storage->words = storage->block ? words : 0;
	return 1;
}

static uint64_t thread_pointer(void)
{
	uint64_t self;

	__asm__("mov %%fs:0, %0" : "=r"(self));
	return self;
}

static bool shows_next(const struct functions *f, uint64_t *word)
{
	uint64_t before = *word, seen;

	*word = (uintptr_t)mark;
	seen = f->next();
	*word = before;
	return seen == (uintptr_t)mark;
}

static bool shows_current(const struct functions *f, uint64_t *word)
{
	uint64_t shared[2] = {0, 0};

	if (word[0] || word[1])
		return false;
	word[0] = (uintptr_t)mark;
	f->current(shared);
	word[0] = 0;
	return shared[0] == (uintptr_t)mark && shared[1] == 0;
}

static void find_thread_words(const struct functions *f, struct terra_offsets *out)
{
	struct storage storage = {.inside = (const void *)f->next};
	uint64_t shared[2], next = f->next();
	unsigned times[2] = {0, 0};

	f->current(shared); /* both have their storage now */
	if (shared[0] || !dl_iterate_phdr(find_storage, &storage) ||
	    terra_tls_block(thread_pointer(), storage.module) != (uintptr_t)storage.block)
		return;
	for (size_t at = 0; at < storage.words; at++) {
		if (storage.block[at] == next && shows_next(f, &storage.block[at])) {
			out->next_sequence = (struct terra_tls_field){(uint32_t)(at * WORD), 1};
			times[0]++;
		}
		if (at + 1 < storage.words && shows_current(f, &storage.block[at])) {
			out->current_node = (struct terra_tls_field){(uint32_t)(at * WORD), 1};
			times[1]++;
		}
	}
	out->next_sequence.known = times[0] == 1;
	out->current_node.known = times[1] == 1;
}

void terra_calibrate_node(const struct terra_torch_abi *abi, struct terra_offsets *out)
{
	struct functions f;

	resolve(abi->library, &f);
	if (!f.next || !f.advance || !f.current || !f.mul || !f.requires_grad || !out->autograd_meta.known ||
	    !out->grad_fn.known)
		return;
	find_sequence(abi, &f, out);
	find_thread_words(&f, out);
}
