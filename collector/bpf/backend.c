/* Loading the programs, attaching them to every op in each target, and reading the ring. */
#include "collector/bpf/backend.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "collector/bpf/link.h"
#include "collector/bpf/namespace.h"
#include "collector/bpf/shared.h"
#include "collector/bpf/sites.h"
#include "collector/bpf/task.h"
#include "collector/target_tls.h"
#include "probes/catches.h"
#include "trace.skel.h"

/* What waits while we are not let run grows with the processors that make it. Zeroed when a recording begins: 64 MB take 20 ms. */
#define RING_BYTES_PER_CPU (32u << 20)
#define SMALLEST_RING_BYTES (64u << 20)
#define LARGEST_RING_BYTES (512u << 20)

#define MAX_CATCHES 4 /* C++ libraries that processes of one libtorch use, with all copies that they bring */
#define MAX_LINKS (4 + MAX_CATCHES)

_Static_assert(TERRA_BPF_TARGETS == BPF_TARGETS, "one is public");
_Static_assert(TERRA_N_FUNCTIONS <= BPF_FUNCTIONS && !(BPF_FUNCTIONS & (BPF_FUNCTIONS - 1)), "an index is masked");

struct target {
	int links[MAX_LINKS];
	int n_links;
	uint32_t n_catches; /* probed: as many from the first of the backend's */
	bool taken;
};

/* Where handlers of exceptions begin: a file, and the place in it. */
struct catches {
	char path[4096];
	dev_t device;
	ino_t inode;
	uint64_t offset;
};

/* Where functions beside the ops are. */
static const char *const function_libraries[] = { "libtorch_cpu.so", "libtorch_python.so" };
#define N_FUNCTION_LIBRARIES (sizeof(function_libraries) / sizeof(*function_libraries))

struct function_library {
	char path[4096];
	uint64_t offsets[TERRA_N_FUNCTIONS]; /* in the file; 0: not there */
};

struct terra_bpf {
	const struct terra_op_table *table;
	struct terra_bpf_options options;
	struct trace_bpf *skeleton;
	struct ring_buffer *ring;
	struct terra_sites *sites;
	struct terra_op_layout *layouts;
	struct target targets[BPF_TARGETS];
	struct bpf_target *shared; /* BPF_TARGETS of them, the programs' own */
	struct bpf_sequence *sequences;
	uint32_t n_producers;
	uint8_t functions[TERRA_N_FUNCTIONS]; /* enum terra_function_seen */
	struct function_library function_libraries[N_FUNCTION_LIBRARIES];
	struct catches catches[MAX_CATCHES];
	uint32_t n_catches;
	bool catches_elsewhere; /* libtorch has no C++ library inside */
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
	for (size_t i = 0; i < bpf->sites->n_exits; i++) {
		uint32_t op = bpf->sites->exits[i].site.op;

		bpf->layouts[op].has_exit = !bpf->sites->tail_jumps[op];
	}
	return 0;
}

static int fill_config(struct terra_bpf *bpf, const struct terra_offsets *offsets)
{
	struct bpf_config *config = &bpf->skeleton->bss->config;

	config->stack_levels = bpf->options.stack_levels;
	config->storage_levels = 1u << terra_outer_level(bpf->options.levels);
	config->offsets = *offsets;
	config->images = terra_images_of(offsets);
	config->no_op.level = bpf->options.stack_levels & 1u << TERRA_LEVEL_CALL ? TERRA_LEVEL_CALL : TERRA_LEVEL_REDISPATCH;
	for (size_t i = 0; i < TERRA_N_FUNCTIONS; i++)
		config->function_forms[i] = terra_functions[i].form;
	return namespace_of_pids(&config->namespace_device, &config->namespace_inode);
}

/* The elements of an array map in our memory, 8-aligned as the kernel lays them out; NULL on failure. */
static void *map_array(const struct bpf_map *map, size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(map), 0);

	return at == MAP_FAILED ? NULL : at;
}

_Static_assert(sizeof(struct terra_op_layout) % 8 == 0 && sizeof(struct terra_site) % 8 == 0, "as the kernel aligns them");

static int fill_ops(struct terra_bpf *bpf)
{
	size_t bytes = bpf->table->n_ops * sizeof(*bpf->layouts);
	struct terra_op_layout *layouts = map_array(bpf->skeleton->maps.ops, bytes);

	if (!layouts)
		return -errno;
	memcpy(layouts, bpf->layouts, bytes);
	munmap(layouts, bytes);
	return 0;
}

/* Cookies: entries by op, then the exits. */
static int fill_sites(struct terra_bpf *bpf)
{
	uint32_t n_ops = bpf->table->n_ops;
	size_t bytes = (n_ops + bpf->sites->n_exits) * sizeof(struct terra_site);
	struct terra_site *sites = map_array(bpf->skeleton->maps.sites, bytes);

	if (!sites)
		return -errno;
	for (uint32_t i = 0; i < n_ops; i++)
		sites[i] = bpf->sites->entries[i].site;
	for (size_t i = 0; i < bpf->sites->n_exits; i++)
		sites[n_ops + i] = bpf->sites->exits[i].site;
	munmap(sites, bytes);
	return 0;
}

static size_t default_ring_bytes(void)
{
	size_t bytes = SMALLEST_RING_BYTES;

	while (bytes < LARGEST_RING_BYTES && bytes < RING_BYTES_PER_CPU * (size_t)libbpf_num_possible_cpus())
		bytes *= 2;
	return bytes;
}

static int load_programs(struct terra_bpf *bpf)
{
	size_t ring_bytes = bpf->options.ring_bytes ? bpf->options.ring_bytes : default_ring_bytes();
	struct trace_bpf *skeleton = trace_bpf__open();
	int error;

	if (!skeleton)
		return -errno;
	bpf->skeleton = skeleton;
	bpf_program__set_expected_attach_type(skeleton->progs.op_enter, (enum bpf_attach_type)LINK_ATTACH_TYPE);
	bpf_program__set_expected_attach_type(skeleton->progs.op_exit, (enum bpf_attach_type)LINK_ATTACH_TYPE);
	bpf_program__set_expected_attach_type(skeleton->progs.function_enter, (enum bpf_attach_type)LINK_ATTACH_TYPE);
	bpf_program__set_expected_attach_type(skeleton->progs.exception_caught, (enum bpf_attach_type)LINK_ATTACH_TYPE);
	error = bpf_map__set_max_entries(skeleton->maps.ops, bpf->table->n_ops);
	if (!error)
		error = bpf_map__set_max_entries(skeleton->maps.sites, bpf->table->n_ops + (uint32_t)bpf->sites->n_exits);
	if (!error)
		error = bpf_map__set_max_entries(skeleton->maps.ring, (uint32_t)ring_bytes);
	if (!error)
		error = bpf_map__set_max_entries(skeleton->maps.sequences, bpf->n_producers * BPF_TARGETS);
	if (!error)
		error = trace_bpf__load(skeleton);
	return error;
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

/* Once for all processes: hundreds of thousands of symbols are looked at. */
static void find_functions(struct terra_bpf *bpf)
{
	for (size_t i = 0; i < N_FUNCTION_LIBRARIES; i++) {
		struct function_library *library = &bpf->function_libraries[i];

		if (!terra_functions_library(bpf->table->library, function_libraries[i], library->path, sizeof(library->path)))
			terra_functions_find(library->path, function_libraries[i], bpf->options.use_cache, library->offsets);
	}
}

static int open_all(struct terra_bpf *bpf, const struct terra_offsets *offsets, char *err, size_t err_size)
{
	int error = terra_sites_find(bpf->table, bpf->options.use_cache, &bpf->sites, err, err_size);

	if (error)
		return error;
	find_functions(bpf);
	bpf->catches_elsewhere = terra_catches_elsewhere(bpf->table->library);
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
		error = fill_sites(bpf);
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
		munmap(bpf->shared, BPF_TARGETS * sizeof(*bpf->shared));
	if (bpf->sequences)
		munmap(bpf->sequences, sequences_size(bpf));
	ring_buffer__free(bpf->ring);
	trace_bpf__destroy(bpf->skeleton);
	terra_sites_free(bpf->sites);
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

static bool is_wanted(const struct terra_bpf *bpf, uint32_t op)
{
	return bpf->options.ops ? bpf->options.ops[op] : terra_op_chosen(&bpf->table->ops[op], bpf->options.levels);
}

/* Adds those of `n` probes whose ops are wanted; the first one's cookie is `cookie`. */
static void probe_list_add(struct probe_list *list, const struct terra_bpf *bpf, const struct terra_probe *probes, size_t n,
			   uint64_t cookie)
{
	for (size_t i = 0; i < n; i++) {
		if (!is_wanted(bpf, probes[i].site.op))
			continue;
		list->offsets[list->n] = probes[i].file_offset;
		list->cookies[list->n++] = cookie + i;
	}
}

/* The probes of a list, in one link; 0 or -errno. */
static int attach_list(struct terra_bpf *bpf, uint32_t target, struct bpf_program *program, const char *library,
		       const struct probe_list *list)
{
	struct target *own = &bpf->targets[target];
	int fd;

	if (!list->n)
		return 0;
	fd = link_create(bpf_program__fd(program), library, list->offsets, list->cookies, list->n,
			 (pid_t)bpf->shared[target].pid);
	if (fd < 0)
		return fd;
	own->links[own->n_links++] = fd;
	return 0;
}

/* The low half of a probe's cookie is its place among all sites, the high half the target. */
static int attach_probes(struct terra_bpf *bpf, uint32_t target, struct bpf_program *program,
			 const struct terra_probe *probes, size_t n, uint32_t first)
{
	struct probe_list list;
	int error = probe_list_init(&list, n);

	if (!error)
		probe_list_add(&list, bpf, probes, n, (uint64_t)target << 32 | first);
	if (!error)
		error = attach_list(bpf, target, program, bpf->table->library, &list);
	probe_list_free(&list);
	return error;
}

/* Those of one library; without it, or without the symbols, there is a gap, which terra_bpf_gap tells. */
static int attach_functions(struct terra_bpf *bpf, uint32_t target, const struct function_library *library)
{
	struct probe_list list;
	int error = probe_list_init(&list, TERRA_N_FUNCTIONS);

	for (uint32_t i = 0; !error && i < TERRA_N_FUNCTIONS; i++)
		if (library->offsets[i]) {
			list.offsets[list.n] = library->offsets[i];
			list.cookies[list.n++] = (uint64_t)target << 32 | i;
		}
	if (!error)
		error = attach_list(bpf, target, bpf->skeleton->progs.function_enter, library->path, &list);
	for (size_t i = 0; !error && i < TERRA_N_FUNCTIONS; i++)
		if (library->offsets[i])
			bpf->functions[i] = TERRA_FUNCTION_SEEN;
	probe_list_free(&list);
	return error;
}

/* Those of the backend's places that the target has not got yet. */
static int attach_catches(struct terra_bpf *bpf, uint32_t target)
{
	uint64_t cookie = (uint64_t)target << 32;
	struct target *own = &bpf->targets[target];
	int error = 0;

	while (!error && own->n_catches < bpf->n_catches) {
		struct catches *catches = &bpf->catches[own->n_catches];
		struct probe_list list = { &catches->offset, &cookie, 1 };

		error = attach_list(bpf, target, bpf->skeleton->progs.exception_caught, catches->path, &list);
		own->n_catches += !error;
	}
	return error;
}

/* A file that is known may be reached by another path now: through another process' root folder. */
static int add_catches(struct terra_bpf *bpf, const char *path)
{
	struct catches *catches = bpf->catches;
	struct stat file;
	int error = 0;

	if (stat(path, &file))
		return -errno;
	if (strlen(path) >= sizeof(catches->path))
		return -ENAMETOOLONG;
	while (catches < bpf->catches + bpf->n_catches && (catches->device != file.st_dev || catches->inode != file.st_ino))
		catches++;
	if (catches == bpf->catches + MAX_CATCHES)
		return -ENOSPC;
	if (catches == bpf->catches + bpf->n_catches)
		error = terra_catches_find(path, &catches->offset);
	if (error)
		return error;
	bpf->n_catches += catches == bpf->catches + bpf->n_catches;
	strcpy(catches->path, path);
	catches->device = file.st_dev;
	catches->inode = file.st_ino;
	return 0;
}

int terra_bpf_see_catches(struct terra_bpf *bpf, uint32_t target, const char *path)
{
	int error = add_catches(bpf, path);

	return error ? error : attach_catches(bpf, target);
}

bool terra_bpf_sees_catches(const struct terra_bpf *bpf, uint32_t target)
{
	return bpf->catches_elsewhere && bpf->targets[target].n_catches;
}

/* Exits first: an entry without its exit would look like an op that was left by an exception. */
static int attach_all(struct terra_bpf *bpf, uint32_t target)
{
	const struct terra_sites *sites = bpf->sites;
	uint32_t n_ops = bpf->table->n_ops;
	int error = attach_probes(bpf, target, bpf->skeleton->progs.op_exit, sites->exits, sites->n_exits, n_ops);

	if (!error)
		error = attach_probes(bpf, target, bpf->skeleton->progs.op_enter, sites->entries, n_ops, 0);
	for (size_t i = 0; !error && i < N_FUNCTION_LIBRARIES; i++)
		error = attach_functions(bpf, target, &bpf->function_libraries[i]);
	if (!error)
		(void)attach_catches(bpf, target); /* else a gap, which terra_bpf_sees_catches tells */
	return error;
}

/* A target that had the number before has left its counts. */
static void begin_target(struct terra_bpf *bpf, uint32_t target, pid_t pid)
{
	bpf->targets[target].taken = true;
	bpf->targets[target].n_catches = 0;
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

void terra_bpf_forget(struct terra_bpf *bpf, uint32_t target)
{
	__atomic_store_n(&bpf->shared[target].python_ready, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&bpf->shared[target].storage_module, 0, __ATOMIC_SEQ_CST);
}

int terra_bpf_look_for_storage(struct terra_bpf *bpf, uint32_t target, char *reason, size_t reason_size)
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
	error = terra_target_tls_module((pid_t)bpf->shared[target].pid, bpf->table->library, &module);
	if (error)
		return fail(reason, reason_size, error, "libtorch's thread-local storage was not found: %s",
			    error == -EAGAIN ? "the program has not set it up" : strerror(-error));
	__atomic_store_n(&bpf->shared[target].storage_module, module, __ATOMIC_SEQ_CST);
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

struct terra_bpf_unread terra_bpf_unread(const struct terra_bpf *bpf)
{
	struct terra_bpf_unread unread = { 0 };

	for (uint32_t i = 0; i < bpf->table->n_ops; i++) {
		const struct terra_op *op = &bpf->table->ops[i];

		if (!is_wanted(bpf, i))
			continue;
		unread.arguments += terra_entry_misses_doubles(op, &bpf->sites->entries[i].site);
		unread.results += bpf->layouts[i].ret_kind == TERRA_KIND_DOUBLE;
	}
	return unread;
}

void terra_bpf_counts(const struct terra_bpf *bpf, uint32_t target, struct terra_bpf_counts *out)
{
	*out = (struct terra_bpf_counts){
		.lost_events = __atomic_load_n(&bpf->shared[target].no_buffer, __ATOMIC_SEQ_CST),
	};
	for (uint32_t i = 0; i < bpf->n_producers; i++) {
		const struct bpf_sequence *sequence = &bpf->sequences[(size_t)i * BPF_TARGETS + target];

		out->lost_chunks += __atomic_load_n(&sequence->lost, __ATOMIC_RELAXED);
		out->traps += __atomic_load_n(&sequence->records, __ATOMIC_RELAXED);
	}
}
