/* Loading the programs, attaching them to every op in each target, and reading the ring. */
#include "collector/bpf/backend.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "collector/bpf/exits.h"
#include "collector/bpf/link.h"
#include "collector/bpf/namespace.h"
#include "collector/bpf/shared.h"
#include "trace.skel.h"

#define DEFAULT_RING_BYTES (128u << 20)
#define MAX_LINKS 4

_Static_assert(TERRA_BPF_TARGETS == BPF_TARGETS, "one is public");

struct target {
	int links[MAX_LINKS];
	int n_links;
	bool taken;
};

struct terra_bpf {
	const struct terra_op_table *table;
	struct terra_bpf_options options;
	struct trace_bpf *skeleton;
	struct ring_buffer *ring;
	struct terra_exits *exits;
	struct terra_op_layout *layouts;
	struct target targets[BPF_TARGETS];
	struct bpf_target *shared; /* BPF_TARGETS of them, the programs' own */
	struct bpf_sequence *sequences;
	uint32_t n_producers;
	terra_bpf_take take; /* of the terra_bpf_consume that runs */
	void *take_context;
	int take_error;
};

static int quiet(enum libbpf_print_level level, const char *format, va_list arguments)
{
	return 0;
}

__attribute__((format(printf, 4, 5))) static int fail(char *err, size_t err_size, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(err, err_size, format, arguments);
	va_end(arguments);
	return error;
}

static int on_record(void *context, void *data, size_t size)
{
	struct terra_bpf *bpf = context;

	const struct terra_record *record = data;

	bpf->take_error = bpf->take(bpf->take_context, record->producer >> BPF_TARGET_SHIFT, record);
	return bpf->take_error;
}

static int make_layouts(struct terra_bpf *bpf)
{
	uint32_t n = bpf->table->n_ops;

	bpf->layouts = calloc(n + 1, sizeof(*bpf->layouts));
	if (!bpf->layouts)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++)
		bpf->layouts[i] = terra_op_layout(&bpf->table->ops[i], 0);
	for (size_t i = 0; i < bpf->exits->n; i++) {
		uint32_t op = bpf->exits->exits[i].op;

		bpf->layouts[op].has_exit = !bpf->exits->tail_jumps[op];
	}
	return 0;
}

static int fill_config(struct terra_bpf *bpf, const struct terra_offsets *offsets)
{
	struct bpf_config *config = &bpf->skeleton->bss->config;

	config->stack_levels = bpf->options.stack_levels;
	config->offsets = *offsets;
	return namespace_of_pids(&config->namespace_device, &config->namespace_inode);
}

static int fill_ops(struct terra_bpf *bpf)
{
	int fd = bpf_map__fd(bpf->skeleton->maps.ops);

	for (uint32_t i = 0; i < bpf->table->n_ops; i++)
		if (bpf_map_update_elem(fd, &i, &bpf->layouts[i], BPF_ANY))
			return -errno;
	return 0;
}

static int load_programs(struct terra_bpf *bpf)
{
	size_t ring_bytes = bpf->options.ring_bytes ? bpf->options.ring_bytes : DEFAULT_RING_BYTES;
	struct trace_bpf *skeleton = trace_bpf__open();
	int error;

	if (!skeleton)
		return -errno;
	bpf->skeleton = skeleton;
	bpf_program__set_expected_attach_type(skeleton->progs.op_enter, (enum bpf_attach_type)LINK_ATTACH_TYPE);
	bpf_program__set_expected_attach_type(skeleton->progs.op_exit, (enum bpf_attach_type)LINK_ATTACH_TYPE);
	error = bpf_map__set_max_entries(skeleton->maps.ops, bpf->table->n_ops);
	if (!error)
		error = bpf_map__set_max_entries(skeleton->maps.ring, (uint32_t)ring_bytes);
	if (!error)
		error = bpf_map__set_max_entries(skeleton->maps.sequences, bpf->n_producers * BPF_TARGETS);
	if (!error)
		error = trace_bpf__load(skeleton);
	return error;
}

static size_t page_align(size_t size)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (size + page - 1) & ~(page - 1);
}

static void *map_array(const struct bpf_map *map, size_t size)
{
	void *at = mmap(NULL, page_align(size), PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(map), 0);

	return at == MAP_FAILED ? NULL : at;
}

static size_t sequences_size(const struct terra_bpf *bpf)
{
	return (size_t)bpf->n_producers * BPF_TARGETS * sizeof(struct bpf_sequence);
}

static int map_shared(struct terra_bpf *bpf)
{
	bpf->shared = map_array(bpf->skeleton->maps.targets, BPF_TARGETS * sizeof(*bpf->shared));
	bpf->sequences = map_array(bpf->skeleton->maps.sequences, sequences_size(bpf));
	return bpf->shared && bpf->sequences ? 0 : -ENOMEM;
}

static int open_ring(struct terra_bpf *bpf)
{
	bpf->ring = ring_buffer__new(bpf_map__fd(bpf->skeleton->maps.ring), on_record, bpf, NULL);
	return bpf->ring ? 0 : -errno;
}

static int open_all(struct terra_bpf *bpf, const struct terra_offsets *offsets, char *err, size_t err_size)
{
	struct terra_op_table with_exits = *bpf->table;
	int error;

	with_exits.n_ops -= bpf->options.entry_only;
	error = terra_exits_find(&with_exits, bpf->options.use_cache, &bpf->exits, err, err_size);
	if (error)
		return error;
	error = make_layouts(bpf);
	if (error)
		return fail(err, err_size, error, "out of memory");
	error = load_programs(bpf);
	if (error)
		return fail(err, err_size, error, "the kernel did not take the BPF programs: %s", strerror(-error));
	error = fill_config(bpf, offsets);
	if (!error)
		error = fill_ops(bpf);
	if (!error)
		error = map_shared(bpf);
	if (!error)
		error = open_ring(bpf);
	return error ? fail(err, err_size, error, "cannot set the BPF programs up: %s", strerror(-error)) : 0;
}

int terra_bpf_open(const struct terra_op_table *table, const struct terra_offsets *offsets,
		   const struct terra_bpf_options *options, struct terra_bpf **out, char *err, size_t err_size)
{
	struct terra_bpf *bpf = calloc(1, sizeof(*bpf));
	int error;

	*out = NULL;
	if (!bpf)
		return fail(err, err_size, -ENOMEM, "out of memory");
	bpf->table = table;
	memcpy(&bpf->options, options, options->size < sizeof(bpf->options) ? options->size : sizeof(bpf->options));
	bpf->n_producers = (uint32_t)libbpf_num_possible_cpus() * BPF_BUFFERS;
	libbpf_set_print(quiet);
	error = open_all(bpf, offsets, err, err_size);
	if (error) {
		terra_bpf_close(bpf);
		return error;
	}
	*out = bpf;
	return 0;
}

void terra_bpf_close(struct terra_bpf *bpf)
{
	if (!bpf)
		return;
	for (uint32_t i = 0; i < BPF_TARGETS; i++)
		if (bpf->targets[i].taken)
			terra_bpf_detach(bpf, i);
	if (bpf->shared)
		munmap(bpf->shared, page_align(BPF_TARGETS * sizeof(*bpf->shared)));
	if (bpf->sequences)
		munmap(bpf->sequences, page_align(sequences_size(bpf)));
	ring_buffer__free(bpf->ring);
	trace_bpf__destroy(bpf->skeleton);
	terra_exits_free(bpf->exits);
	free(bpf->layouts);
	free(bpf);
}

/* File offsets and cookies of the probes of one link. */
struct probe_list {
	uint64_t *offsets, *cookies;
	uint32_t n;
};

static int probe_list_init(struct probe_list *list, size_t most)
{
	list->n = 0;
	list->offsets = malloc((most + 1) * sizeof(*list->offsets));
	list->cookies = malloc((most + 1) * sizeof(*list->cookies));
	return list->offsets && list->cookies ? 0 : -ENOMEM;
}

static void probe_list_free(struct probe_list *list)
{
	free(list->offsets);
	free(list->cookies);
}

static void probe_list_add(struct probe_list *list, uint64_t offset, uint32_t op, uint32_t target)
{
	list->offsets[list->n] = offset;
	list->cookies[list->n++] = (uint64_t)target << 32 | op;
}

static int attach_list(struct terra_bpf *bpf, uint32_t target, struct bpf_program *program,
		       const struct probe_list *list)
{
	struct target *own = &bpf->targets[target];
	int fd;

	if (!list->n)
		return 0;
	fd = link_create(bpf_program__fd(program), bpf->table->library, list->offsets, list->cookies, list->n,
			 (pid_t)bpf->shared[target].pid);
	if (fd < 0)
		return fd;
	own->links[own->n_links++] = fd;
	return 0;
}

static bool is_wanted(const struct terra_bpf *bpf, uint32_t op, uint8_t level)
{
	return bpf->table->ops[op].level == level && (!bpf->options.ops || bpf->options.ops[op]);
}

static int attach_entries(struct terra_bpf *bpf, uint32_t target, uint8_t level)
{
	const struct terra_op_table *table = bpf->table;
	struct probe_list list;
	int error = probe_list_init(&list, table->n_ops);

	for (uint32_t i = 0; !error && i < table->n_ops; i++)
		if (is_wanted(bpf, i, level))
			probe_list_add(&list, table->ops[i].file_offset, i, target);
	if (!error)
		error = attach_list(bpf, target, bpf->skeleton->progs.op_enter, &list);
	probe_list_free(&list);
	return error;
}

static int attach_exits(struct terra_bpf *bpf, uint32_t target, uint8_t level)
{
	const struct terra_exit *exits = bpf->exits->exits;
	struct probe_list list;
	int error = probe_list_init(&list, bpf->exits->n);

	for (size_t i = 0; !error && i < bpf->exits->n; i++)
		if (is_wanted(bpf, exits[i].op, level))
			probe_list_add(&list, exits[i].file_offset, exits[i].op, target);
	if (!error)
		error = attach_list(bpf, target, bpf->skeleton->progs.op_exit, &list);
	probe_list_free(&list);
	return error;
}

/* Exits first: an entry without its exit would look like an op that was left by an exception. */
static int attach_all(struct terra_bpf *bpf, uint32_t target)
{
	int error = 0;

	for (uint8_t level = 0; !error && level < 2; level++)
		if (bpf->options.levels >> level & 1)
			error = attach_exits(bpf, target, level);
	for (uint8_t level = 0; !error && level < 2; level++)
		if (bpf->options.levels >> level & 1)
			error = attach_entries(bpf, target, level);
	return error;
}

/* A target that had the number before has left its counts. */
static void begin_target(struct terra_bpf *bpf, uint32_t target, pid_t pid)
{
	bpf->targets[target].taken = true;
	for (uint32_t i = 0; i < bpf->n_producers; i++)
		bpf->sequences[(size_t)i * BPF_TARGETS + target] = (struct bpf_sequence){ 0 };
	bpf->shared[target] = (struct bpf_target){ .pid = (uint32_t)pid };
}

int terra_bpf_attach(struct terra_bpf *bpf, pid_t pid, uint32_t *target, char *err, size_t err_size)
{
	uint32_t free_one = 0;
	int error;

	while (free_one < BPF_TARGETS && bpf->targets[free_one].taken)
		free_one++;
	if (free_one == BPF_TARGETS)
		return fail(err, err_size, -EAGAIN, "%d processes are traced already", BPF_TARGETS);
	begin_target(bpf, free_one, pid);
	error = attach_all(bpf, free_one);
	if (error) {
		terra_bpf_detach(bpf, free_one);
		terra_bpf_release(bpf, free_one);
		return fail(err, err_size, error, "cannot attach to %s: %s", bpf->table->library, strerror(-error));
	}
	*target = free_one;
	return 0;
}

void terra_bpf_detach(struct terra_bpf *bpf, uint32_t target)
{
	struct target *own = &bpf->targets[target];

	/* The links go one by one; the flag makes the recording end at one point. */
	if (own->n_links)
		__atomic_store_n(&bpf->shared[target].stopped, 1, __ATOMIC_SEQ_CST);
	while (own->n_links)
		close(own->links[--own->n_links]);
}

void terra_bpf_release(struct terra_bpf *bpf, uint32_t target)
{
	bpf->targets[target].taken = false;
}

void terra_bpf_set_python(struct terra_bpf *bpf, uint32_t target, const struct pystack_layout *layout)
{
	bpf->shared[target].python = *layout;
	__atomic_store_n(&bpf->shared[target].python_ready, 1, __ATOMIC_SEQ_CST);
}

const struct terra_op_layout *terra_bpf_layouts(const struct terra_bpf *bpf)
{
	return bpf->layouts;
}

int terra_bpf_consume(struct terra_bpf *bpf, terra_bpf_take take, void *context)
{
	int n;

	bpf->take = take;
	bpf->take_context = context;
	bpf->take_error = 0;
	n = ring_buffer__consume(bpf->ring);
	return bpf->take_error ? bpf->take_error : n;
}

void terra_bpf_counts(const struct terra_bpf *bpf, uint32_t target, struct terra_bpf_counts *out)
{
	out->lost_chunks = 0;
	for (uint32_t i = 0; i < bpf->n_producers; i++)
		out->lost_chunks += __atomic_load_n(&bpf->sequences[(size_t)i * BPF_TARGETS + target].lost,
						    __ATOMIC_RELAXED);
	out->lost_events = __atomic_load_n(&bpf->shared[target].no_buffer, __ATOMIC_SEQ_CST);
}
