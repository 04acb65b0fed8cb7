/* One process: from raw records to its trace file. */
#include "collector/bpf/recording.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "collector/machine.h"
#include "collector/target.h"
#include "probes/catches.h"
#include "probes/clock.h"

#define EXTENSIONS_INTERVAL_NS 250000000 /* a program that ends sooner after it loaded one is not asked */
#define EARLY_LOOKS 25 /* some 10 ms apart */
#define FLUSH_INTERVAL_NS 250000000 /* what a tracer that is killed may lose of the file */

struct recording *recording_new(pid_t pid, const struct terra_session_options *options)
{
	struct recording *recording = calloc(1, sizeof(*recording));

	if (!recording)
		return NULL;
	recording->pid = pid;
	recording->process = (struct terra_process){ .pid = pid, .rank = -1, .local_rank = -1, .world_size = -1 };
	recording->options = options;
	recording->python_done = !options->stacks;
	recording->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	recording->ended = recording->pidfd < 0 && errno == ESRCH;
	return recording;
}

void recording_free(struct recording *recording)
{
	recording_detach(recording);
	recording_release(recording);
	if (recording->writer)
		terra_trace_finish(recording->writer);
	terra_consumer_free(recording->consumer);
	terra_gate_free(recording->gate);
	pystack_names_free(recording->names);
	terra_extensions_free(&recording->extensions);
	if (recording->pidfd >= 0)
		close(recording->pidfd);
	free(recording);
}

__attribute__((format(printf, 3, 4))) static void fail(struct recording *recording, int error, const char *format, ...)
{
	va_list arguments;

	recording->over = true;
	if (recording->error)
		return;
	recording->error = error;
	va_start(arguments, format);
	vsnprintf(recording->message, sizeof(recording->message), format, arguments);
	va_end(arguments);
}

/* -ECANCELED: it was enough. */
static void check(struct recording *recording, int error)
{
	if (error == -ECANCELED)
		recording->over = true;
	else if (error)
		fail(recording, error, "cannot write %s: %s", recording->output, strerror(-error));
}

int recording_attach(struct recording *recording, struct library *library, char *err, size_t err_size)
{
	int error = terra_bpf_attach(library->bpf, recording->pid, &recording->target, err, err_size);

	if (error)
		return error;
	recording->library = library;
	library->recordings[recording->target] = recording;
	if (recording->names)
		terra_bpf_set_python(library->bpf, recording->target, &recording->layout);
	return 0;
}

void recording_detach(struct recording *recording)
{
	if (recording->library)
		terra_bpf_detach(recording->library->bpf, recording->target);
}

void recording_release(struct recording *recording)
{
	if (!recording->library)
		return;
	recording->library->recordings[recording->target] = NULL;
	terra_bpf_release(recording->library->bpf, recording->target);
	recording->library = NULL;
}

static int on_stack_entry(void *context, const struct pystack_entry *entry, struct terra_frame *frame)
{
	struct recording *recording = context;

	return recording->names ? pystack_names_resolve(recording->names, entry, frame) : -ENOENT;
}

static const char *on_module(void *context, const struct pystack_entry *entries, uint32_t n, uint64_t time_ns)
{
	struct recording *recording = context;

	return recording->names ? pystack_names_module(recording->names, entries, n, time_ns) : NULL;
}

static void note(struct recording *recording, const char *text)
{
	check(recording, terra_consumer_note(recording->consumer, text, clock_now()));
}

/* A program in the kernel has no floating-point registers to look at. */
static void note_unread(struct recording *recording)
{
	struct terra_bpf_unread unread = terra_bpf_unread(recording->library->bpf);
	char text[256];

	if (!unread.arguments && !unread.results)
		return;
	snprintf(text, sizeof(text),
		 "floating-point arguments of %u operators and such results of %u are not readable by this backend",
		 unread.arguments, unread.results);
	note(recording, text);
}

/* What the reader of the trace has to know of this process and this backend. */
static void write_notes(struct recording *recording)
{
	char text[512], gap[384], about[TERRA_PROCESS_NOTE];

	terra_process_note(&recording->process, about);
	note(recording, about);
	if (recording->remark[0])
		note(recording, recording->remark);
	if (!recording->options->children)
		note(recording, "child processes of the program are not recorded");
	if (terra_offsets_remark(&recording->library->offsets, text, sizeof(text)))
		note(recording, text);
	if (!recording->library->collectives.n)
		note(recording, "this libtorch has no local symbols: collectives (c10d) are not seen");
	note_unread(recording);
	terra_bpf_gap(recording->library->bpf, gap, sizeof(gap));
	if (gap[0] && snprintf(text, sizeof(text), "beside the ops not seen in this libtorch: %s", gap) > 0)
		note(recording, text);
}

static int create_trace(struct recording *recording, char *err, size_t err_size)
{
	const struct terra_limits *limits = &recording->options->limits;
	const struct terra_op_table *table = recording->library->table;
	char build_id[2 * sizeof(table->build_id) + 1], cpu[512];
	struct terra_trace_info info = {
		.backend = "bpf",
		.command = recording->command,
		.library = recording->library->path,
		.build_id = build_id,
		.cpu = cpu,
		.pid = (uint32_t)recording->pid,
		.threads = terra_target_threads(recording->pid),
		.start_ns = recording->start_ns,
	};
	int error;

	terra_machine_cpu(cpu, sizeof(cpu));
	terra_target_hex(table->build_id, table->build_id_size, build_id);
	if (!limits->flight_ns)
		return terra_trace_create(recording->output, &info, &recording->writer, err, err_size);
	error = terra_trace_create_kept(&info, limits->flight_ns, limits->max_bytes, &recording->writer);
	if (error)
		snprintf(err, err_size, "out of memory");
	return error;
}

/* What has ended is what its parent said it is. */
static void describe(struct recording *recording)
{
	char command[sizeof(recording->command)];

	if (recording->ended || recording->replaced)
		return;
	terra_machine_command(recording->pid, command, sizeof(command));
	if (!command[0]) /* a zombie has neither */
		return;
	strcpy(recording->command, command);
	terra_process_describe(recording->pid, &recording->process);
}

void recording_begin(struct recording *recording)
{
	struct terra_consumer_options options = {
		.table = recording->library->table,
		.layouts = terra_bpf_layouts(recording->library->bpf),
		.offsets = &recording->library->offsets,
		.sink = terra_gate_take,
		.resolve = on_stack_entry,
		.resolve_ctx = recording,
		.module = on_module,
	};
	char err[512];
	int error;

	recording->start_ns = clock_now();
	describe(recording);
	error = create_trace(recording, err, sizeof(err));
	if (error) {
		fail(recording, error, "%s", err);
		return;
	}
	recording->gate = terra_gate_new(&recording->options->limits, recording->writer, (uint32_t)recording->pid);
	options.sink_ctx = recording->gate;
	recording->consumer = recording->gate ? terra_consumer_new(&options) : NULL;
	if (recording->consumer)
		write_notes(recording);
	else
		fail(recording, -ENOMEM, "out of memory");
}

void recording_take(struct recording *recording, const struct terra_record *record)
{
	if (!recording->over)
		check(recording, terra_consumer_record(recording->consumer, record));
}

void recording_look_for_python(struct recording *recording)
{
	int error = pystack_layout_load(recording->pid, &recording->layout, recording->python_reason,
					sizeof(recording->python_reason));

	if (error == -ENOTSUP)
		recording->python_done = true;
	if (error)
		return;
	recording->names = pystack_names_new(recording->pid, &recording->layout);
	recording->python_done = true;
	recording->python_reason[0] = 0;
	if (!recording->names)
		fail(recording, -ENOMEM, "out of memory");
	else if (recording->library)
		terra_bpf_set_python(recording->library->bpf, recording->target, &recording->layout);
}

void recording_look_for_storage(struct recording *recording)
{
	int error = terra_bpf_look_for_storage(recording->library->bpf, recording->target, recording->storage_reason,
					       sizeof(recording->storage_reason));

	recording->storage_done = error != -EAGAIN;
	if (!error)
		recording->storage_reason[0] = 0;
}

static void see_catches(struct recording *recording, const char *mapped)
{
	char path[4096];
	int error = terra_target_path(recording->pid, mapped, path, sizeof(path));

	if (!error)
		error = terra_bpf_see_catches(recording->library->bpf, recording->target, path);
	recording->catches_error = error ? error : recording->catches_error;
}

static int on_extension(void *context, enum terra_extension_what what, const char *path)
{
	char text[4600];

	if (what == TERRA_EXTENSION_CATCHES) {
		see_catches(context, path);
		return 0;
	}
	terra_extensions_remark(path, text, sizeof(text));
	note(context, text);
	return 0;
}

/* The C++ library is mapped right behind libtorch, and waited for. */
static bool is_early(struct recording *recording)
{
	return recording->extensions_looks++ < EARLY_LOOKS &&
	       !terra_bpf_sees_catches(recording->library->bpf, recording->target);
}

void recording_look_for_extensions(struct recording *recording, uint64_t now)
{
	if (now < recording->next_extensions_ns)
		return;
	check(recording, terra_extensions_look(&recording->extensions, recording->pid, recording->library->path, on_extension,
					       recording));
	recording->next_extensions_ns = is_early(recording) ? now : now + EXTENSIONS_INTERVAL_NS;
}

void recording_inherit_python(struct recording *recording, const struct recording *parent)
{
	if (!parent->names)
		return;
	recording->layout = parent->layout;
	recording->names = pystack_names_new(recording->pid, &recording->layout);
	recording->python_done = recording->names != NULL;
}

static void tell_losses(struct recording *recording)
{
	struct terra_bpf_counts counts;
	uint64_t lost;

	terra_bpf_counts(recording->library->bpf, recording->target, &counts);
	lost = counts.lost_events - recording->lost_told;
	recording->lost_told = counts.lost_events;
	if (lost)
		check(recording, terra_consumer_lost(recording->consumer, 0, lost, clock_now()));
}

void recording_step(struct recording *recording, uint64_t now)
{
	if (recording->consumer && !recording->over)
		tell_losses(recording);
	if (recording->consumer && !recording->over)
		check(recording, terra_gate_time(recording->gate, now));
	if (!recording->consumer || recording->over || now < recording->next_flush_ns)
		return;
	recording->next_flush_ns = now + FLUSH_INTERVAL_NS;
	check(recording, terra_trace_flush(recording->writer));
}

int recording_write_kept(struct recording *recording)
{
	int error = terra_trace_write_kept(recording->writer, recording->output, &recording->written, recording->message,
					   sizeof(recording->message));

	if (error && !recording->error)
		recording->error = error;
	return error;
}

/* Chunks that found no room and had no successor whose number would show the gap. */
static void tell_last_losses(struct recording *recording)
{
	struct terra_bpf_counts counts;
	uint64_t told, lost;

	tell_losses(recording);
	told = terra_consumer_stats(recording->consumer)->lost - terra_consumer_stats(recording->consumer)->lost_exits;
	terra_bpf_counts(recording->library->bpf, recording->target, &counts);
	lost = counts.lost_chunks + counts.lost_events;
	if (!recording->over && lost > told)
		check(recording, terra_consumer_lost(recording->consumer, 0, lost - told, clock_now()));
}

static void last_notes(struct recording *recording)
{
	const struct terra_consumer_stats *stats = terra_consumer_stats(recording->consumer);
	char text[320];

	if (recording->options->stacks && !recording->names && recording->python_reason[0]) {
		snprintf(text, sizeof(text), "no Python call stacks: %s", recording->python_reason);
		note(recording, text);
	}
	if (!recording->over && recording->names && pystack_names_modules_remark(recording->names, text, sizeof(text)))
		note(recording, text);
	if (!recording->over && recording->storage_reason[0]) {
		snprintf(text, sizeof(text), "backward ops are not linked to forward ops: %s", recording->storage_reason);
		note(recording, text);
	}
	if (!recording->over && !terra_bpf_sees_catches(recording->library->bpf, recording->target)) {
		snprintf(text, sizeof(text), "%s%s%s", TERRA_CATCHES_GAP, recording->catches_error ? ": " : "",
			 recording->catches_error ? strerror(-recording->catches_error) : "");
		note(recording, text);
	}
	if (!recording->over && stats->unmatched) {
		snprintf(text, sizeof(text), "%llu exits without an enter: their operators ran when the recording began",
			 (unsigned long long)stats->unmatched);
		note(recording, text);
	}
	if (!recording->over)
		check(recording, terra_gate_finish(recording->gate, clock_now()));
}

static uint64_t count_traps(const struct recording *recording)
{
	struct terra_bpf_counts counts = { 0 };

	if (recording->library)
		terra_bpf_counts(recording->library->bpf, recording->target, &counts);
	return counts.traps;
}

/* Of a flight recorder it is what the file that is there got, which may be an earlier one. */
static void count_written(struct recording *recording)
{
	const struct terra_consumer_stats *stats = recording->consumer ? terra_consumer_stats(recording->consumer) : NULL;

	if (stats && !recording->options->limits.flight_ns)
		recording->written = (struct terra_trace_counts){ .events = stats->events, .lost = stats->lost };
}

void recording_finish(struct recording *recording)
{
	int error;

	if (!recording->writer)
		return;
	recording->traps = count_traps(recording);
	if (recording->consumer && !recording->over)
		tell_last_losses(recording);
	if (recording->consumer && !recording->over)
		last_notes(recording);
	recording->over = true;
	recording->end_ns = clock_now();
	count_written(recording);
	if (recording->options->limits.flight_ns && !recording->error)
		recording_write_kept(recording);
	error = terra_trace_finish(recording->writer);
	recording->writer = NULL;
	if (error)
		check(recording, error);
}
