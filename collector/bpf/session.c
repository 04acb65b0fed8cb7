/* From a program that is about to run to a trace of it: library, probes, Python, consumer, file. */
#include "collector/bpf/session.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "collector/bpf/backend.h"
#include "collector/consume.h"
#include "collector/extensions.h"
#include "collector/iterations.h"
#include "collector/machine.h"
#include "collector/pystack.h"
#include "collector/target.h"
#include "probes/find.h"

/* Between looks at the program. Its imports take much longer than the first interval; one that has not shown what we
 * look for after many looks may never do so, and is then looked at less often. */
#define FIRST_LOOK_NS 10000000
#define LAST_LOOK_NS 100000000
#define QUICK_LOOKS 1000

#define EXTENSIONS_INTERVAL_NS 250000000 /* a program that ends sooner after it loaded one is not asked */

#define FLUSH_INTERVAL_NS 250000000 /* what a tracer that is killed may lose of the file */

struct terra_session {
	struct terra_session_options options;
	const struct terra_launch *launch;
	char library[4096]; /* "" until one is known */
	struct terra_op_table *table;
	struct terra_offsets offsets;
	struct terra_bpf *bpf;
	struct terra_trace_writer *writer;
	struct terra_consumer *consumer;
	struct terra_iteration_finder *finder;
	struct pystack_layout layout;
	struct pystack_names *names;
	char python_reason[256]; /* why there are no stacks so far */
	uint64_t lost_told;	 /* events without a buffer that the trace already knows of */
	uint64_t next_look_ns, next_flush_ns;
	uint32_t looks;
	char begin_error[512];
	bool mapped;	  /* the program has the library */
	bool python_done; /* no more tries */
	bool storage_done;
	struct terra_extensions extensions;
	uint64_t next_extensions_ns;
	char storage_reason[256]; /* why ops are not linked by autograd so far */
	bool over;
	struct terra_session_result result;
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

__attribute__((format(printf, 4, 5))) static int fail(char *err, size_t err_size, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(err, err_size, format, arguments);
	va_end(arguments);
	return error;
}

/* At the outer of the recorded levels: no Python code runs between an op's call and its redispatch. */
static uint32_t stack_levels(const struct terra_session_options *options)
{
	if (!options->stacks)
		return 0;
	return options->levels & 1u << TERRA_LEVEL_CALL ? 1u << TERRA_LEVEL_CALL : 1u << TERRA_LEVEL_REDISPATCH;
}

static int attach(struct terra_session *session, char *err, size_t err_size)
{
	struct terra_bpf_options options = {
		.size = sizeof(options),
		.pid = session->launch->pid,
		.levels = session->options.levels,
		.stack_levels = stack_levels(&session->options),
		.ring_bytes = session->options.ring_bytes,
		.use_cache = session->options.use_cache,
	};
	int error = terra_op_table_load(session->library, options.use_cache, &session->table, err, err_size);

	if (!error)
		error = terra_offsets_load(session->library, options.use_cache, &session->offsets, err, err_size);
	if (!error)
		error = terra_bpf_open(session->table, &session->offsets, &options, &session->bpf, err, err_size);
	if (!error)
		error = terra_bpf_attach(session->bpf, err, err_size);
	return error;
}

static void forget_library(struct terra_session *session)
{
	terra_bpf_close(session->bpf);
	terra_op_table_free(session->table);
	session->bpf = NULL;
	session->table = NULL;
	session->library[0] = 0;
}

static int guess_library(struct terra_session *session, char *err, size_t err_size)
{
	const char *library = session->options.library;

	if (library) {
		if (strlen(library) >= sizeof(session->library))
			return fail(err, err_size, -ENAMETOOLONG, "%s: %s", library, strerror(ENAMETOOLONG));
		strcpy(session->library, library);
		return 0;
	}
	if (terra_find_libtorch(session->options.argv[0], session->library, sizeof(session->library)))
		session->library[0] = 0;
	return 0;
}

int terra_session_open(const struct terra_session_options *options, const struct terra_launch *launch,
		       struct terra_session **out, char *err, size_t err_size)
{
	struct terra_session *session = calloc(1, sizeof(*session));
	int error;

	*out = NULL;
	if (!session)
		return fail(err, err_size, -ENOMEM, "out of memory");
	session->options = *options;
	session->launch = launch;
	session->python_done = !options->stacks;
	error = guess_library(session, err, err_size);
	if (!error && session->library[0])
		error = attach(session, err, err_size);
	if (error) {
		terra_session_close(session);
		return error;
	}
	*out = session;
	return 0;
}

void terra_session_close(struct terra_session *session)
{
	if (!session)
		return;
	forget_library(session);
	terra_consumer_free(session->consumer);
	if (session->writer)
		terra_trace_finish(session->writer);
	terra_iteration_finder_free(session->finder);
	terra_extensions_free(&session->extensions);
	pystack_names_free(session->names);
	free(session);
}

bool terra_session_over(const struct terra_session *session)
{
	return session->over;
}

const struct terra_session_result *terra_session_result(const struct terra_session *session)
{
	return &session->result;
}

/* Shapes are left out of the comparison: they may change from one iteration to the next. */
static int on_event(void *context, struct terra_event *event)
{
	struct terra_session *session = context;
	int64_t iterations;
	int error = terra_consumer_write(session->writer, event);

	if (error || !session->finder || event->type != TERRA_EVENT_OP_ENTER ||
	    event->thread != (uint32_t)session->launch->pid)
		return error;
	iterations = terra_iteration_finder_feed(session->finder, terra_op_identity(event, false));
	if (iterations < 0)
		return (int)iterations;
	session->result.iterations = (uint64_t)iterations;
	return 0;
}

static int on_stack_entry(void *context, const struct pystack_entry *entry, struct terra_frame *frame)
{
	struct terra_session *session = context;

	return session->names ? pystack_names_resolve(session->names, entry, frame) : -ENOENT;
}

static void join_words(char *const *words, char *out, size_t size)
{
	size_t used = 0;

	for (int i = 0; words[i] && used < size; i++)
		used += (size_t)snprintf(out + used, size - used, "%s%s", i ? " " : "", words[i]);
}

static int create_file(struct terra_session *session, char *err, size_t err_size)
{
	char build_id[2 * sizeof(session->table->build_id) + 1], cpu[512], command[4096];
	struct terra_trace_info info = {
		.backend = "bpf",
		.command = command,
		.library = session->library,
		.build_id = build_id,
		.cpu = cpu,
		.pid = (uint32_t)session->launch->pid,
		.threads = terra_target_threads(session->launch->pid),
		.start_ns = now_ns(),
	};
	int error;

	terra_machine_command(session->launch->pid, command, sizeof(command));
	terra_machine_cpu(cpu, sizeof(cpu));
	terra_target_hex(session->table->build_id, session->table->build_id_size, build_id);
	if (!command[0]) /* it has ended already */
		join_words(session->options.argv, command, sizeof(command));
	error = terra_trace_create(session->options.output, &info, &session->writer, err, err_size);
	session->result.recorded = !error;
	return error;
}

static int note(struct terra_session *session, const char *text)
{
	return terra_consumer_note(session->consumer, text, now_ns());
}

/* What the reader of the trace has to know of this backend. */
static int write_notes(struct terra_session *session)
{
	char text[512], gap[384];
	int error = note(session, "child processes of the program are not recorded");

	if (!error && terra_offsets_remark(&session->offsets, text, sizeof(text)))
		error = note(session, text);
	if (!error)
		error = note(session, "floating-point arguments passed in registers are not readable by this backend");
	terra_bpf_gap(session->bpf, gap, sizeof(gap));
	if (!error && gap[0] && snprintf(text, sizeof(text), "beside the ops not seen in this libtorch: %s", gap) > 0)
		error = note(session, text);
	return error;
}

static int begin_recording(struct terra_session *session, char *err, size_t err_size)
{
	struct terra_consumer_options options = {
		.table = session->table,
		.layouts = terra_bpf_layouts(session->bpf),
		.offsets = &session->offsets,
		.sink = on_event,
		.sink_ctx = session,
		.resolve = on_stack_entry,
		.resolve_ctx = session,
	};
	int error = create_file(session, err, err_size);

	if (error)
		return error;
	session->consumer = terra_consumer_new(&options);
	if (session->options.iterations)
		session->finder = terra_iteration_finder_new(TERRA_ITERATION_MIN_OPS);
	if (!session->consumer || (session->options.iterations && !session->finder))
		return fail(err, err_size, -ENOMEM, "out of memory");
	error = write_notes(session);
	return error ? fail(err, err_size, error, "cannot write %s: %s", session->options.output, strerror(-error)) : 0;
}

static bool same_file(const char *a, const char *b)
{
	struct stat one, other;

	return !stat(a, &one) && !stat(b, &other) && one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

/* The program has mapped another library than the one found beforehand, or none was found. It waits while the probes
 * are put in place: the loader has only just begun with the library. */
static int attach_to_mapped(struct terra_session *session, const char *library, char *err, size_t err_size)
{
	int error;

	forget_library(session);
	strcpy(session->library, library);
	kill(session->launch->pid, SIGSTOP);
	error = attach(session, err, err_size);
	kill(session->launch->pid, SIGCONT);
	return error;
}

static int look_for_library(struct terra_session *session, char *err, size_t err_size)
{
	char mapped[sizeof(session->library)];
	int error = terra_target_library(session->launch->pid, mapped, sizeof(mapped));
	bool late = false;

	if (error)
		return 0;
	if (!session->bpf || !same_file(mapped, session->library)) {
		late = true;
		error = attach_to_mapped(session, mapped, err, err_size);
	}
	session->mapped = true;
	if (!error)
		error = begin_recording(session, err, err_size);
	if (!error && late)
		error = note(session, "the program had mapped libtorch before it was found: first ops may be missing");
	return error;
}

static int look_for_python(struct terra_session *session)
{
	int error = pystack_layout_load(session->launch->pid, &session->layout, session->python_reason,
					sizeof(session->python_reason));

	if (error == -ENOTSUP)
		session->python_done = true;
	if (error)
		return 0;
	session->names = pystack_names_new(session->launch->pid, &session->layout);
	session->python_done = true;
	session->python_reason[0] = 0;
	if (!session->names)
		return -ENOMEM;
	terra_bpf_set_python(session->bpf, &session->layout);
	return 0;
}

static void look_for_storage(struct terra_session *session)
{
	int error = terra_bpf_look_for_storage(session->bpf, session->storage_reason, sizeof(session->storage_reason));

	session->storage_done = error != -EAGAIN;
	if (!error)
		session->storage_reason[0] = 0;
}

static int on_extension(void *context, const char *path)
{
	char text[4600];

	terra_extensions_remark(path, text, sizeof(text));
	return note(context, text);
}

static int look_for_extensions(struct terra_session *session)
{
	session->next_extensions_ns = now_ns() + EXTENSIONS_INTERVAL_NS;
	return terra_extensions_look(&session->extensions, session->launch->pid, session->library, on_extension, session);
}

/* Looks at the program every few milliseconds until all that is wanted of it is known. */
static int look(struct terra_session *session, char *err, size_t err_size)
{
	uint64_t now = now_ns();
	int error = 0;

	if (now < session->next_look_ns)
		return 0;
	session->next_look_ns = now + (session->looks++ < QUICK_LOOKS ? FIRST_LOOK_NS : LAST_LOOK_NS);
	if (!session->mapped)
		error = look_for_library(session, err, err_size);
	if (!error && session->mapped && !session->storage_done)
		look_for_storage(session);
	if (!error && session->consumer && now >= session->next_extensions_ns) {
		error = look_for_extensions(session);
		if (error)
			fail(err, err_size, error, "cannot write %s: %s", session->options.output, strerror(-error));
	}
	if (!error && session->bpf && !session->python_done) {
		error = look_for_python(session);
		if (error)
			fail(err, err_size, error, "out of memory");
	}
	return error;
}

/* Recording ends with the last iteration; what is in the ring behind it is not wanted. */
static int on_record(void *context, const struct terra_record *record)
{
	struct terra_session *session = context;
	int error = 0;

	/* A busy machine, or a program that is over at once: its ops came before we had a look. */
	if (!session->consumer) {
		session->mapped = true;
		error = begin_recording(session, session->begin_error, sizeof(session->begin_error));
	}
	if (!error)
		error = terra_consumer_record(session->consumer, record);
	if (!error && session->options.iterations && session->result.iterations >= session->options.iterations)
		return -ECANCELED;
	return error;
}

static int tell_losses(struct terra_session *session)
{
	struct terra_bpf_counts counts;
	uint64_t lost;

	terra_bpf_counts(session->bpf, &counts);
	lost = counts.lost_events - session->lost_told;
	session->lost_told = counts.lost_events;
	return lost ? terra_consumer_lost(session->consumer, 0, lost, now_ns()) : 0;
}

static int fail_writing(const struct terra_session *session, int error, char *err, size_t err_size)
{
	if (session->begin_error[0])
		return fail(err, err_size, error, "%s", session->begin_error);
	return fail(err, err_size, error, "cannot write %s: %s", session->options.output, strerror(-error));
}

static int consume(struct terra_session *session, char *err, size_t err_size)
{
	int got = terra_bpf_consume(session->bpf, on_record, session);

	if (got >= 0 && session->consumer)
		got = tell_losses(session);
	if (got == -ECANCELED) {
		session->over = true;
		session->result.stopped = true;
		return 0;
	}
	return got < 0 ? fail_writing(session, got, err, err_size) : 0;
}

static int flush(struct terra_session *session, char *err, size_t err_size)
{
	uint64_t now = now_ns();
	int error;

	if (now < session->next_flush_ns)
		return 0;
	session->next_flush_ns = now + FLUSH_INTERVAL_NS;
	error = terra_trace_flush(session->writer);
	return error ? fail_writing(session, error, err, err_size) : 0;
}

int terra_session_step(struct terra_session *session, char *err, size_t err_size)
{
	int error = 0;

	if (session->over)
		return 0;
	error = look(session, err, err_size);
	if (!error && session->bpf)
		error = consume(session, err, err_size);
	if (!error && session->writer)
		error = flush(session, err, err_size);
	session->over |= error != 0;
	if (session->consumer)
		session->result.events = terra_consumer_stats(session->consumer)->events;
	return error;
}

/* Chunks that found no room and had no successor whose number would show the gap. */
static int tell_last_losses(struct terra_session *session)
{
	struct terra_bpf_counts counts;
	int error = tell_losses(session);
	uint64_t told = terra_consumer_stats(session->consumer)->lost, lost;

	terra_bpf_counts(session->bpf, &counts);
	lost = counts.lost_chunks + counts.lost_events;
	if (!error && !session->over && lost > told)
		error = terra_consumer_lost(session->consumer, 0, lost - told, now_ns());
	return error;
}

static int tell_python_reason(struct terra_session *session)
{
	char text[320];

	if (!session->options.stacks || session->names || !session->python_reason[0])
		return 0;
	snprintf(text, sizeof(text), "no Python call stacks: %s", session->python_reason);
	return note(session, text);
}

static int tell_storage_reason(struct terra_session *session)
{
	char text[320];

	if (!session->storage_reason[0])
		return 0;
	snprintf(text, sizeof(text), "backward ops are not linked to forward ops: %s", session->storage_reason);
	return note(session, text);
}

static int take_rest(struct terra_session *session)
{
	int error = 0;

	terra_bpf_detach(session->bpf);
	if (!session->over)
		error = terra_bpf_consume(session->bpf, on_record, session);
	if (error == -ECANCELED || error > 0)
		error = 0;
	if (error || !session->consumer)
		return error;
	error = tell_last_losses(session);
	if (!error)
		error = tell_python_reason(session);
	if (!error)
		error = tell_storage_reason(session);
	return error;
}

int terra_session_finish(struct terra_session *session, char *err, size_t err_size)
{
	const struct terra_consumer_stats *stats;
	int error, closing;

	if (!session->bpf)
		return 0;
	error = take_rest(session);
	session->over = true;
	if (!session->consumer)
		return error ? fail_writing(session, error, err, err_size) : 0;
	stats = terra_consumer_stats(session->consumer);
	session->result.events = stats->events;
	session->result.lost = stats->lost;
	closing = terra_trace_finish(session->writer);
	session->writer = NULL;
	if (!error)
		error = closing;
	return error ? fail_writing(session, error, err, err_size) : 0;
}
