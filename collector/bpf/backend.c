/* Loading the programs, attaching them to every op, and reading the ring. */
#include "collector/bpf/backend.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "collector/bpf/exits.h"
#include "collector/bpf/link.h"
#include "collector/bpf/shared.h"
#include "collector/bpf/task.h"
#include "collector/target_tls.h"
#include "trace.skel.h"

#define DEFAULT_RING_BYTES (128u << 20)
#define MAX_LINKS 6

struct terra_bpf {
	const struct terra_op_table *table;
	struct terra_bpf_options options;
	struct trace_bpf *skeleton;
	struct ring_buffer *ring;
	struct terra_exits *exits;
	struct terra_op_layout *layouts;
	int links[MAX_LINKS];
	int n_links;
	uint8_t functions[TERRA_N_FUNCTIONS]; /* enum terra_function_seen */
	uint32_t n_entries, n_exits;
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

	bpf->take_error = bpf->take(bpf->take_context, data);
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

/* The kernel numbers devices in another way than stat(2). */
static int fill_namespace(struct bpf_config *config)
{
	struct stat namespace;

	if (stat("/proc/self/ns/pid", &namespace))
		return -errno;
	config->namespace_device = (uint64_t)major(namespace.st_dev) << 20 | minor(namespace.st_dev);
	config->namespace_inode = namespace.st_ino;
	return 0;
}

static int fill_config(struct terra_bpf *bpf, const struct terra_offsets *offsets)
{
	struct bpf_config *config = &bpf->skeleton->bss->config;

	config->pid = (uint32_t)bpf->options.pid;
	config->stack_levels = bpf->options.stack_levels;
	config->storage_levels = bpf->options.levels & 1u << TERRA_LEVEL_CALL ? 1u << TERRA_LEVEL_CALL
									       : 1u << TERRA_LEVEL_REDISPATCH;
	config->offsets = *offsets;
	config->no_op.level = bpf->options.stack_levels & 1u << TERRA_LEVEL_CALL ? TERRA_LEVEL_CALL : TERRA_LEVEL_REDISPATCH;
	for (size_t i = 0; i < TERRA_N_FUNCTIONS; i++)
		config->function_forms[i] = terra_functions[i].form;
	return fill_namespace(config);
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
	bpf_program__set_expected_attach_type(skeleton->progs.function_enter, (enum bpf_attach_type)LINK_ATTACH_TYPE);
	error = bpf_map__set_max_entries(skeleton->maps.ops, bpf->table->n_ops);
	if (!error)
		error = bpf_map__set_max_entries(skeleton->maps.ring, (uint32_t)ring_bytes);
	if (!error)
		error = trace_bpf__load(skeleton);
	return error;
}

static int open_ring(struct terra_bpf *bpf)
{
	bpf->ring = ring_buffer__new(bpf_map__fd(bpf->skeleton->maps.ring), on_record, bpf, NULL);
	return bpf->ring ? 0 : -errno;
}

static int open_all(struct terra_bpf *bpf, const struct terra_offsets *offsets, char *err, size_t err_size)
{
	int error = terra_exits_find(bpf->table, bpf->options.use_cache, &bpf->exits, err, err_size);

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
	terra_bpf_detach(bpf);
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

static void probe_list_add(struct probe_list *list, uint64_t offset, uint32_t op)
{
	list->offsets[list->n] = offset;
	list->cookies[list->n++] = op;
}

static int attach_list(struct terra_bpf *bpf, struct bpf_program *program, const char *library,
		       const struct probe_list *list)
{
	int fd;

	if (!list->n)
		return 0;
	fd = link_create(bpf_program__fd(program), library, list->offsets, list->cookies, list->n,
			 bpf->options.pid);
	if (fd < 0)
		return fd;
	bpf->links[bpf->n_links++] = fd;
	return 0;
}

static int attach_entries(struct terra_bpf *bpf, uint8_t level)
{
	const struct terra_op_table *table = bpf->table;
	struct probe_list list;
	int error = probe_list_init(&list, table->n_ops);

	for (uint32_t i = 0; !error && i < table->n_ops; i++)
		if (table->ops[i].level == level)
			probe_list_add(&list, table->ops[i].file_offset, i);
	if (!error)
		error = attach_list(bpf, bpf->skeleton->progs.op_enter, table->library, &list);
	bpf->n_entries += error ? 0 : list.n;
	probe_list_free(&list);
	return error;
}

static int attach_exits(struct terra_bpf *bpf, uint8_t level)
{
	const struct terra_exit *exits = bpf->exits->exits;
	struct probe_list list;
	int error = probe_list_init(&list, bpf->exits->n);

	for (size_t i = 0; !error && i < bpf->exits->n; i++)
		if (bpf->table->ops[exits[i].op].level == level)
			probe_list_add(&list, exits[i].file_offset, exits[i].op);
	if (!error)
		error = attach_list(bpf, bpf->skeleton->progs.op_exit, bpf->table->library, &list);
	bpf->n_exits += error ? 0 : list.n;
	probe_list_free(&list);
	return error;
}

/* Those of one library; without it, or without the symbols, there is a gap, which terra_bpf_gap tells. */
static int attach_functions(struct terra_bpf *bpf, const char *name)
{
	uint64_t offsets[TERRA_N_FUNCTIONS] = { 0 };
	struct probe_list list;
	char path[4096];
	int error;

	if (terra_functions_library(bpf->table->library, name, path, sizeof(path)) ||
	    terra_functions_find(path, name, offsets) <= 0)
		return 0;
	error = probe_list_init(&list, TERRA_N_FUNCTIONS);
	for (uint32_t i = 0; !error && i < TERRA_N_FUNCTIONS; i++)
		if (offsets[i])
			probe_list_add(&list, offsets[i], i);
	if (!error)
		error = attach_list(bpf, bpf->skeleton->progs.function_enter, path, &list);
	for (size_t i = 0; !error && i < TERRA_N_FUNCTIONS; i++)
		if (offsets[i])
			bpf->functions[i] = TERRA_FUNCTION_SEEN;
	probe_list_free(&list);
	return error;
}

/* Exits first: an entry without its exit would look like an op that was left by an exception. */
int terra_bpf_attach(struct terra_bpf *bpf, char *err, size_t err_size)
{
	int error = 0;

	for (uint8_t level = 0; !error && level < 2; level++)
		if (bpf->options.levels >> level & 1)
			error = attach_exits(bpf, level);
	for (uint8_t level = 0; !error && level < 2; level++)
		if (bpf->options.levels >> level & 1)
			error = attach_entries(bpf, level);
	if (!error)
		error = attach_functions(bpf, "libtorch_cpu.so");
	if (!error)
		error = attach_functions(bpf, "libtorch_python.so");
	if (!error)
		return 0;
	terra_bpf_detach(bpf);
	return fail(err, err_size, error, "cannot attach to %s: %s", bpf->table->library, strerror(-error));
}

void terra_bpf_detach(struct terra_bpf *bpf)
{
	/* The links go one by one; the flag makes the recording end at one point. */
	if (bpf->skeleton && bpf->skeleton->bss)
		__atomic_store_n(&bpf->skeleton->bss->config.stopped, bpf->n_links > 0, __ATOMIC_SEQ_CST);
	while (bpf->n_links)
		close(bpf->links[--bpf->n_links]);
}

void terra_bpf_set_python(struct terra_bpf *bpf, const struct pystack_layout *layout)
{
	struct bpf_config *config = &bpf->skeleton->bss->config;

	config->python = *layout;
	__atomic_store_n(&config->python_ready, 1, __ATOMIC_SEQ_CST);
}

int terra_bpf_look_for_storage(struct terra_bpf *bpf, char *reason, size_t reason_size)
{
	struct bpf_config *config = &bpf->skeleton->bss->config;
	uint64_t module;
	int error = 0;

	if (!config->offsets.next_sequence.known || !config->offsets.node_sequence.known)
		return fail(reason, reason_size, -ENOTSUP, "this libtorch's numbers of Nodes were not found");
	if (!config->task_fsbase)
		error = task_fsbase_offset(&config->task_fsbase);
	if (error)
		return fail(reason, reason_size, -ENOTSUP, "the kernel publishes no types (BTF): %s", strerror(-error));
	error = terra_target_tls_module(bpf->options.pid, bpf->table->library, &module);
	if (error)
		return fail(reason, reason_size, error, "libtorch's thread-local storage was not found: %s",
			    error == -EAGAIN ? "the program has not set it up" : strerror(-error));
	__atomic_store_n(&config->storage_module, module, __ATOMIC_SEQ_CST);
	return 0;
}

void terra_bpf_gap(const struct terra_bpf *bpf, char *out, size_t size)
{
	terra_functions_gap(bpf->functions, out, size);
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

/* Buffers are per CPU; the map gives all of a buffer's copies at once. */
static uint64_t lost_chunks(const struct terra_bpf *bpf)
{
	int n_cpus = libbpf_num_possible_cpus(), fd = bpf_map__fd(bpf->skeleton->maps.buffers);
	size_t stride = (sizeof(struct bpf_buffer) + 7) & ~(size_t)7;
	char *values = n_cpus > 0 ? malloc((size_t)n_cpus * stride) : NULL;
	uint64_t lost = 0;

	for (uint32_t i = 0; values && i < BPF_BUFFERS; i++) {
		if (bpf_map_lookup_elem(fd, &i, values))
			continue;
		for (int cpu = 0; cpu < n_cpus; cpu++)
			lost += ((struct bpf_buffer *)(values + (size_t)cpu * stride))->lost;
	}
	free(values);
	return lost;
}

void terra_bpf_counts(const struct terra_bpf *bpf, struct terra_bpf_counts *out)
{
	out->lost_chunks = lost_chunks(bpf);
	out->lost_events = __atomic_load_n(&bpf->skeleton->bss->counts.no_buffer, __ATOMIC_SEQ_CST);
	out->entries = bpf->n_entries;
	out->exits = bpf->n_exits;
}
