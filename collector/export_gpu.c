/* export_gpu.c - GPU activity in timelines. */
#include "collector/export_gpu.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "collector/report_gpu.h"

/* The window. */

#define WINDOW 2048

struct waiting {
	uint64_t time_ns, seq;
	uint32_t thread;
	uint32_t name; /* its number in the window's names plus 1; 0: none */
	struct terra_gpu gpu;
};

struct export_window {
	struct trace_intern names;
	uint32_t n;
	struct waiting waiting[WINDOW];
};

static int compare_waiting(const void *a, const void *b)
{
	const struct waiting *x = a, *y = b;

	if (x->time_ns != y->time_ns)
		return x->time_ns < y->time_ns ? -1 : 1;
	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* The oldest `n` leave. */
static int release(struct export_walk *walk, uint32_t n)
{
	struct export_window *window = walk->window;
	int err = 0;

	qsort(window->waiting, window->n, sizeof(window->waiting[0]), compare_waiting);
	for (uint32_t i = 0; i < n && !err; i++) {
		struct waiting *one = &window->waiting[i];
		const struct terra_event event = {.type = TERRA_EVENT_GPU,
						  .thread = one->thread,
						  .time_ns = one->time_ns,
						  .seq = one->seq,
						  .parent_seq = UINT64_MAX,
						  .enter_seq = UINT64_MAX,
						  .gpu = &one->gpu};

		if (one->name)
			one->gpu.name = (const char *)window->names.keys.data + window->names.entries[one->name - 1].key;
		err = walk->writer->gpu(walk, &event);
	}
	window->n -= n;
	memmove(window->waiting, window->waiting + n, window->n * sizeof(window->waiting[0]));
	return err;
}

int export_window_add(struct export_walk *walk, const struct terra_event *event)
{
	struct waiting one = {.time_ns = event->time_ns, .seq = event->seq, .thread = event->thread, .gpu = *event->gpu};
	struct trace_intern_entry *name = NULL;

	if (!walk->window)
		walk->window = calloc(1, sizeof(*walk->window));
	if (!walk->window)
		return -ENOMEM;
	if (event->gpu->name) {
		name = trace_intern_get(&walk->window->names, event->gpu->name, strlen(event->gpu->name) + 1);
		if (!name)
			return -ENOMEM;
		one.name = (uint32_t)(name - walk->window->names.entries) + 1;
	}
	walk->window->waiting[walk->window->n++] = one;
	return walk->window->n == WINDOW ? release(walk, WINDOW / 2) : 0;
}

int export_window_flush(struct export_walk *walk)
{
	return walk->window ? release(walk, walk->window->n) : 0;
}

void export_window_free(struct export_window *window)
{
	if (window)
		trace_intern_free(&window->names);
	free(window);
}

/* Kinds. */

bool export_gpu_has_track(const struct terra_gpu *gpu)
{
	return gpu->kind >= TERRA_GPU_KERNEL && gpu->kind <= TERRA_GPU_OVERHEAD;
}

bool export_gpu_is_call(const struct terra_gpu *gpu)
{
	return gpu->kind == TERRA_GPU_RUNTIME || gpu->kind == TERRA_GPU_DRIVER;
}

bool export_gpu_is_joined(const struct terra_gpu *gpu)
{
	return gpu->correlation != 0 && gpu->kind != TERRA_GPU_OVERHEAD;
}

const char *export_gpu_category(const struct terra_gpu *gpu)
{
	return gpu_kind_name(gpu->kind);
}

/* Tracks. */

/* What a track is found by; the same for all of a device's stream, of a thread's calls. `lane` tells further tracks apart. */
struct key {
	uint32_t kind; /* of calls; 0: of a device; GROUP */
	uint32_t owner; /* device or thread */
	uint32_t context, stream, lane;
};

#define GROUP UINT32_MAX

void export_gpu_free(struct export_gpu_tracks *tracks)
{
	trace_intern_free(&tracks->keys);
	free(tracks->ends.data);
	*tracks = (struct export_gpu_tracks){0};
}

/* The number of a key, from 1; 0 when memory ran out. */
static uint32_t number_of(struct export_gpu_tracks *tracks, const struct key *key, bool *is_new)
{
	uint32_t known = tracks->keys.n_entries;
	struct trace_intern_entry *entry = trace_intern_get(&tracks->keys, key, sizeof(*key));
	const uint64_t end = 0;

	if (!entry)
		return 0;
	*is_new = tracks->keys.n_entries > known;
	if (*is_new)
		trace_buffer_put(&tracks->ends, &end, sizeof(end));
	return tracks->ends.failed ? 0 : (uint32_t)(entry - tracks->keys.entries) + 1;
}

static struct key key_of(const struct terra_event *event)
{
	const struct terra_gpu *gpu = event->gpu;

	if (export_gpu_is_call(gpu))
		return (struct key){.kind = gpu->kind, .owner = event->thread};
	if (gpu->kind == TERRA_GPU_OVERHEAD)
		return (struct key){.kind = gpu->kind};
	return (struct key){.owner = gpu->device, .context = gpu->context, .stream = gpu->stream};
}

static void name_track(const struct key *key, struct export_gpu_place *place)
{
	char *name = place->track_name;
	const size_t size = sizeof(place->track_name);
	int n;

	if (key->kind == TERRA_GPU_OVERHEAD)
		n = snprintf(name, size, "overhead of CUPTI and driver");
	else if (key->kind)
		n = snprintf(name, size, "CUDA %s calls of thread %" PRIu32, gpu_kind_name(key->kind), key->owner);
	else
		n = snprintf(name, size, "context %" PRIu32 ", stream %" PRIu32, key->context, key->stream);
	if (key->lane)
		snprintf(name + n, size - (size_t)n, " (%" PRIu32 ")", key->lane + 1);
	if (key->owner == TERRA_GPU_NO_DEVICE)
		snprintf(place->group_name, sizeof(place->group_name), "GPU ?");
	else
		snprintf(place->group_name, sizeof(place->group_name), "GPU %" PRIu32, key->owner);
}

int export_gpu_place(struct export_gpu_tracks *tracks, const struct terra_event *event, struct export_gpu_place *place)
{
	struct key key = key_of(event);
	const struct key group = {.kind = GROUP, .owner = key.owner};
	uint64_t *end;

	*place = (struct export_gpu_place){.thread = event->thread};
	if (!key.kind) {
		place->group = number_of(tracks, &group, &place->group_is_new);
		if (!place->group)
			return -ENOMEM;
	}
	for (;; key.lane++) {
		place->track = number_of(tracks, &key, &place->track_is_new);
		if (!place->track)
			return -ENOMEM;
		end = (uint64_t *)tracks->ends.data + place->track - 1;
		if (place->track_is_new || *end <= event->time_ns)
			break;
	}
	*end = event->time_ns + event->gpu->duration_ns;
	name_track(&key, place);
	return 0;
}

/* What is said of one. */

const char *export_gpu_name(struct export_text *text, const struct terra_gpu *gpu)
{
	FILE *out = export_text_begin(text);
	char *plain = gpu->name && gpu->kind == TERRA_GPU_KERNEL ? gpu_demangled(gpu->name) : NULL;

	fputs(plain ? plain : gpu->name ? gpu->name : gpu_kind_name(gpu->kind), out);
	if (gpu->kind == TERRA_GPU_MEMCPY)
		fprintf(out, " %s", gpu_copy_name(gpu->copy_kind));
	free(plain);
	return export_text_end(text);
}

static void number(const char *name, uint64_t v, export_pair pair, void *context)
{
	char text[24];

	snprintf(text, sizeof(text), "%" PRIu64, v);
	pair(context, name, text);
}

static void three(const char *name, const uint32_t *v, export_pair pair, void *context)
{
	char text[40];

	snprintf(text, sizeof(text), "%" PRIu32 ",%" PRIu32 ",%" PRIu32, v[0], v[1], v[2]);
	pair(context, name, text);
}

static void details(const struct terra_gpu *gpu, export_pair pair, void *context)
{
	if (gpu->kind == TERRA_GPU_KERNEL) {
		three("grid", gpu->grid, pair, context);
		three("block", gpu->block, pair, context);
		number("static_shared", gpu->static_shared, pair, context);
		number("dynamic_shared", gpu->dynamic_shared, pair, context);
		number("registers", gpu->registers, pair, context);
	} else if (gpu->kind == TERRA_GPU_MEMCPY || gpu->kind == TERRA_GPU_MEMSET) {
		number("bytes", gpu->bytes, pair, context);
	} else if (export_gpu_is_call(gpu) && gpu->result) {
		number("result", gpu->result, pair, context);
	}
	if (gpu->kind == TERRA_GPU_MEMSET)
		number("value", gpu->value, pair, context);
}

void export_gpu_pairs(const struct terra_event *event, export_pair pair, void *context)
{
	const struct terra_gpu *gpu = event->gpu;

	number("seq", event->seq, pair, context);
	if (gpu->op_seq != UINT64_MAX)
		number("op", gpu->op_seq, pair, context);
	if (gpu->correlation)
		number("correlation", gpu->correlation, pair, context);
	if (gpu->graph)
		number("graph", gpu->graph, pair, context);
	details(gpu, pair, context);
}
