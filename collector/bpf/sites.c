/* The sites of all ops of a library, with a cache per library; see sites.h. */
#include "collector/bpf/sites.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "collector/bpf/sites_private.h"
#include "probes/cache.h"

#define CACHE_KIND "sites"
#define CACHE_VERSION 2u
#define CACHE_LAYOUT ((uint64_t)CACHE_VERSION << 32 | sizeof(struct terra_probe))

static struct terra_sites *sites_new(uint32_t n_ops)
{
	struct terra_sites *sites = calloc(1, sizeof(*sites));

	if (!sites)
		return NULL;
	sites->tail_jumps = calloc(n_ops + 1, 1);
	sites->entries = calloc(n_ops + 1, sizeof(*sites->entries));
	if (!sites->tail_jumps || !sites->entries) {
		terra_sites_free(sites);
		return NULL;
	}
	return sites;
}

void terra_sites_free(struct terra_sites *sites)
{
	if (!sites)
		return;
	free(sites->entries);
	free(sites->exits);
	free(sites->tail_jumps);
	free(sites);
}

static int add_exit(struct terra_sites *sites, const struct terra_probe *probe)
{
	if (!(sites->n_exits & (sites->n_exits - 1))) {
		size_t capacity = sites->n_exits ? 2 * sites->n_exits : 1;
		struct terra_probe *grown = realloc(sites->exits, capacity * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		sites->exits = grown;
	}
	sites->exits[sites->n_exits++] = *probe;
	return 0;
}

/* Whether the function (also) leaves by a jump into another one. What does not disassemble to its end may hide an end.
 */
static bool has_tail_jump(const struct code *code)
{
	for (uint32_t i = 1; i < code->n; i++) {
		const struct code_insn *insn = &code->insns[i];
		bool leaves =
		    insn->kind == CODE_JUMP_INDIRECT || (insn->kind == CODE_JUMP && insn->target == CODE_OUTSIDE);

		if (leaves && code->insns[i - 1].takes_frame_down)
			return true;
	}
	return !code->whole;
}

static int scan_op(struct code *code, const struct terra_op *op, uint32_t index, struct terra_sites *sites)
{
	struct terra_probe exits[SITES_MAX_EXITS];
	int error = code_read(code, op), n;

	if (error)
		return error;
	sites->entries[index] = sites_find_entry(code, op, index);
	sites->tail_jumps[index] = has_tail_jump(code);
	n = sites_find_exits(code, op, &sites->entries[index], exits);
	for (int i = 0; i < n && !error; i++)
		error = add_exit(sites, &exits[i]);
	return n < 0 ? n : error;
}

/* Ops have code of their own, or share it where the linker found two alike. Were all of them the whole file, as a hostile
 * one may say, looking at them would take until tomorrow. */
static bool fits_file(const struct terra_op_table *table, const struct terra_elf *elf)
{
	uint64_t left = elf->size;

	for (uint32_t i = 0; i < table->n_ops; i++) {
		if (table->ops[i].size > left)
			return false;
		left -= table->ops[i].size;
	}
	return true;
}

static int scan_table(const struct terra_op_table *table, const struct terra_elf *elf, struct terra_sites *sites)
{
	struct code code;
	int error;

	if (!fits_file(table, elf))
		return -ENOEXEC;
	error = code_open(&code, elf);
	for (uint32_t i = 0; !error && i < table->n_ops; i++)
		error = scan_op(&code, &table->ops[i], i, sites);
	code_close(&code);
	return error;
}

/* Cached form: number of ops, number of exits, the entries, the exits, then the tail_jumps bytes. */
struct cached {
	uint64_t n_ops, n_exits;
};

static bool is_possible_source(const struct terra_source *source)
{
	return source->kind <= TERRA_SOURCE_MEMORY && source->base < TERRA_REGISTERS;
}

/* Whoever decodes indexes registers by these numbers. */
static bool is_possible_site(const struct terra_site *site)
{
	if (!is_possible_source(&site->sp) || !is_possible_source(&site->result))
		return false;
	for (size_t i = 0; i < sizeof(site->gpr) / sizeof(site->gpr[0]); i++)
		if (!is_possible_source(&site->gpr[i]))
			return false;
	for (size_t i = 0; i < sizeof(site->xmm) / sizeof(site->xmm[0]); i++)
		if (!is_possible_source(&site->xmm[i]))
			return false;
	return true;
}

static bool probe_in_op(const struct terra_op_table *table, const struct terra_probe *probe)
{
	const struct terra_op *op;

	if (probe->site.op >= table->n_ops || !is_possible_site(&probe->site))
		return false;
	op = &table->ops[probe->site.op];
	return probe->file_offset >= op->file_offset && probe->file_offset - op->file_offset < op->size;
}

static bool probes_in_ops(const struct terra_op_table *table, const struct terra_sites *sites)
{
	for (uint32_t i = 0; i < table->n_ops; i++)
		if (sites->entries[i].site.op != i || !probe_in_op(table, &sites->entries[i]))
			return false;
	for (size_t i = 0; i < sites->n_exits; i++)
		if (!probe_in_op(table, &sites->exits[i]))
			return false;
	return true;
}

static int unpack(const struct terra_op_table *table, const struct cached *cached, size_t size,
		  struct terra_sites *sites)
{
	size_t entry_bytes = table->n_ops * sizeof(*sites->entries), exit_bytes;
	const char *at = (const char *)(cached + 1);

	if (size < sizeof(*cached) || cached->n_ops != table->n_ops || cached->n_exits > size / sizeof(*sites->exits))
		return -ENODATA;
	exit_bytes = cached->n_exits * sizeof(*sites->exits);
	if (size != sizeof(*cached) + entry_bytes + exit_bytes + table->n_ops)
		return -ENODATA;
	sites->exits = malloc(exit_bytes + 1);
	if (!sites->exits)
		return -ENOMEM;
	memcpy(sites->entries, at, entry_bytes);
	memcpy(sites->exits, at + entry_bytes, exit_bytes);
	memcpy(sites->tail_jumps, at + entry_bytes + exit_bytes, table->n_ops);
	sites->n_exits = cached->n_exits;
	return probes_in_ops(table, sites) ? 0 : -ENODATA;
}

static int read_cached(const struct terra_op_table *table, const struct terra_cache_key *key, struct terra_sites *sites)
{
	struct cached *cached = NULL;
	size_t size = 0;
	int error = terra_cache_read(CACHE_KIND, key, (void **)&cached, &size);

	if (!error)
		error = unpack(table, cached, size, sites);
	free(cached);
	return error;
}

static void write_cached(const struct terra_op_table *table, const struct terra_cache_key *key,
			 const struct terra_sites *sites)
{
	size_t entry_bytes = table->n_ops * sizeof(*sites->entries),
	       exit_bytes = sites->n_exits * sizeof(*sites->exits);
	size_t size = sizeof(struct cached) + entry_bytes + exit_bytes + table->n_ops;
	struct cached *cached = malloc(size);
	char *at = (char *)(cached + 1);

	if (!cached)
		return;
	*cached = (struct cached){.n_ops = table->n_ops, .n_exits = sites->n_exits};
	memcpy(at, sites->entries, entry_bytes);
	if (exit_bytes)
		memcpy(at + entry_bytes, sites->exits, exit_bytes);
	memcpy(at + entry_bytes + exit_bytes, sites->tail_jumps, table->n_ops);
	terra_cache_write(CACHE_KIND, key, cached, size);
	free(cached);
}

static int find(const struct terra_op_table *table, const struct terra_elf *elf, bool use_cache,
		struct terra_sites **out)
{
	struct terra_cache_key key;
	int error;

	if (terra_cache_key_make(elf, CACHE_LAYOUT, &key))
		use_cache = false;
	*out = sites_new(table->n_ops);
	if (!*out)
		return -ENOMEM;
	if (use_cache && !read_cached(table, &key, *out))
		return 0;
	terra_sites_free(*out); /* what was cached may be half in it */
	*out = sites_new(table->n_ops);
	if (!*out)
		return -ENOMEM;
	error = scan_table(table, elf, *out);
	if (!error && use_cache)
		write_cached(table, &key, *out);
	return error;
}

int terra_sites_find(const struct terra_op_table *table, bool use_cache, struct terra_sites **out, char *err,
		     size_t err_size)
{
	struct terra_elf elf;
	int error = terra_elf_open(table->library, &elf);

	*out = NULL;
	if (!error) {
		error = find(table, &elf, use_cache, out);
		terra_elf_close(&elf);
	}
	if (error) {
		snprintf(err, err_size, "cannot find where the ops of %s begin and end: %s", table->library,
			 strerror(-error));
		terra_sites_free(*out);
		*out = NULL;
	}
	return error;
}
