/* drain.c - takes the records out of all rings in the order of time and writes them as events. */
#include "collector/preload/preload.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "collector/consume.h"
#include "collector/extensions.h"
#include "collector/gate.h"
#include "collector/machine.h"
#include "collector/process.h"
#include "collector/target.h"
#include "probes/clock.h"

#define FLUSH_INTERVAL_NS 250000000ull

static struct {
	pthread_mutex_t lock;
	struct terra_trace_writer *writer;
	struct terra_consumer *consumer;
	struct terra_gate *gate;
	struct pystack_names *names;
	char path[4096 + 16];
	bool further; /* not the program's first trace: without an op there is none */
	bool flight;
	bool any_op;
	uint64_t last_flush_ns;
} drain = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* Set by the signal's handler; what is kept is then written with the next op. */
static volatile sig_atomic_t write_wanted;

static void on_signal(int number)
{
	write_wanted = 1;
}

static int resolve_frame(void *ctx, const struct pystack_entry *entry, struct terra_frame *frame)
{
	if (!drain.names)
		drain.names = pystack_names_new(0, &record_state.layout);
	return drain.names ? pystack_names_resolve(drain.names, entry, frame) : -ENOMEM;
}

static const char *find_module(void *ctx, const struct pystack_entry *entries, uint32_t n, uint64_t time_ns)
{
	if (!drain.names)
		drain.names = pystack_names_new(0, &record_state.layout);
	return drain.names ? pystack_names_module(drain.names, entries, n, time_ns) : NULL;
}

static int create_trace(const struct terra_limits *limits, char *err, size_t err_size)
{
	char command[4096], cpu[512], build_id[2 * sizeof(record_state.table->build_id) + 1];
	struct terra_trace_info info = { .backend = "preload", .command = command, .cpu = cpu, .build_id = build_id,
					 .library = record_state.table->library, .pid = (uint32_t)getpid(),
					 .threads = record_openmp_threads(), .start_ns = clock_now() };
	int code;

	terra_machine_command(0, command, sizeof(command));
	terra_machine_cpu(cpu, sizeof(cpu));
	terra_target_hex(record_state.table->build_id, record_state.table->build_id_size, build_id);
	if (!limits->flight_ns)
		return terra_trace_create(drain.path, &info, &drain.writer, err, err_size);
	code = terra_trace_create_kept(&info, limits->flight_ns, limits->max_bytes, &drain.writer);
	if (code)
		snprintf(err, err_size, "out of memory");
	return code;
}

/* The signal asks for what is kept, unless it has a meaning in the program. */
static void watch_signal(void)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART }, before;

	if (sigaction(RECORD_WRITE_SIGNAL, NULL, &before) || before.sa_handler == on_signal)
		return;
	if (before.sa_handler == SIG_DFL)
		sigaction(RECORD_WRITE_SIGNAL, &action, NULL);
	else
		terra_consumer_note(drain.consumer, "SIGUSR2 is the program's own: what is kept is written at its end only",
				    clock_now());
}

static void describe(void)
{
	char text[TERRA_PROCESS_NOTE];
	struct terra_process process;

	terra_process_describe(0, &process);
	terra_process_note(&process, text);
	terra_consumer_note(drain.consumer, text, clock_now());
}

int record_drain_open(const char *path, bool further, const struct terra_limits *limits, char *err, size_t err_size)
{
	struct terra_consumer_options options = { .table = record_state.table, .layouts = record_state.layouts,
						  .offsets = &record_state.offsets, .sink = terra_gate_take,
						  .resolve = record_state.stacks ? resolve_frame : NULL,
						  .module = record_state.stacks ? find_module : NULL };
	int code;

	snprintf(drain.path, sizeof(drain.path), "%s", path);
	drain.further = further;
	drain.flight = limits->flight_ns != 0;
	code = create_trace(limits, err, err_size);
	if (code)
		return code;
	drain.gate = terra_gate_new(limits, drain.writer, (uint32_t)getpid());
	options.sink_ctx = drain.gate;
	drain.consumer = drain.gate ? terra_consumer_new(&options) : NULL;
	if (!drain.consumer) {
		snprintf(err, err_size, "out of memory");
		return -ENOMEM;
	}
	describe();
	if (drain.flight)
		watch_signal();
	return 0;
}

/* The file is the parent's, and so is what it has not written yet. Code objects are where they were. */
void record_drain_forget(void)
{
	terra_trace_abandon(drain.writer);
	terra_consumer_free(drain.consumer);
	terra_gate_free(drain.gate);
	drain.writer = NULL;
	drain.consumer = NULL;
	drain.gate = NULL;
	drain.any_op = false;
}

/* The ring with the oldest record that was made before `bound`; *next is the time of the second oldest. */
static struct record_ring *oldest_ring(uint64_t bound, uint64_t *next)
{
	struct record_ring *best = NULL;
	uint64_t best_time = bound;

	*next = bound;
	for (struct record_ring *ring = record_rings(); ring; ring = ring->next) {
		const struct terra_record *record = record_ring_peek(ring);

		if (!record || record->time_ns > bound)
			continue;
		if (!best || record->time_ns < best_time) {
			*next = best ? best_time : bound;
			best_time = record->time_ns;
			best = ring;
		} else if (record->time_ns < *next) {
			*next = record->time_ns;
		}
	}
	return best;
}

static int drain_ring(struct record_ring *ring, uint64_t until)
{
	const struct terra_record *record;
	int err = 0;

	while (!err && (record = record_ring_peek(ring)) && record->time_ns <= until) {
		err = terra_consumer_record(drain.consumer, record);
		drain.any_op = true;
		record_ring_pop(ring, record);
	}
	return err;
}

/* The clock is read before the rings: a record that happened before one that is taken now is then visible too. */
static int drain_all(uint64_t now)
{
	struct record_ring *ring;
	uint64_t next;
	int err = 0;

	while (!err && (ring = oldest_ring(now, &next)))
		err = drain_ring(ring, next);
	record_rings_sweep();
	return err;
}

static int write_note(const char *text)
{
	struct terra_event note = { .type = TERRA_EVENT_NOTE, .text = text, .time_ns = clock_now(),
				    .thread = record_state.owner, .parent_seq = UINT64_MAX };

	return terra_trace_write(drain.writer, &note);
}

static int note_extension(void *context, enum terra_extension_what what, const char *path)
{
	char text[4600];

	if (what != TERRA_EXTENSION_OPS)
		return 0;
	terra_extensions_remark(path, text, sizeof(text));
	return write_note(text);
}

static void note_extensions(void)
{
	struct terra_extensions extensions = { 0 };

	(void)terra_extensions_look(&extensions, getpid(), record_state.table->library, note_extension, NULL);
	terra_extensions_free(&extensions);
}

static void note_gaps(void)
{
	const struct terra_consumer_stats *stats = terra_consumer_stats(drain.consumer);
	uint64_t missing = drain.names ? pystack_names_missing(drain.names) : 0;
	char text[256];

	snprintf(text, sizeof(text), "%llu exits without an enter, %llu damaged records, %llu frames of freed code",
		 (unsigned long long)stats->unmatched, (unsigned long long)stats->damaged, (unsigned long long)missing);
	if (stats->unmatched || stats->damaged || missing)
		write_note(text);
}

static void note_modules(void)
{
	char text[PYSTACK_MODULES_REMARK];

	if (drain.names && pystack_names_modules_remark(drain.names, text, sizeof(text)))
		write_note(text);
}

static int write_kept(void)
{
	char err[512];
	int code = terra_trace_write_kept(drain.writer, drain.path, NULL, err, sizeof(err));

	if (code)
		record_failed("%s", err);
	return code;
}

static void end_file(void)
{
	bool empty = drain.further && !drain.any_op;
	int err;

	note_extensions();
	note_gaps();
	note_modules();
	terra_gate_finish(drain.gate, clock_now());
	if (drain.flight && !empty)
		write_kept();
	err = terra_trace_finish(drain.writer);
	drain.writer = NULL;
	if (err)
		record_failed("the trace is not complete: %s", strerror(-err));
	if (empty)
		unlink(drain.path);
}

static void drain_locked(uint64_t now, bool flush)
{
	int err = drain_all(now);

	if (!err && write_wanted) {
		write_wanted = 0;
		write_kept();
	}
	if (!err && (flush || now - drain.last_flush_ns > FLUSH_INTERVAL_NS)) {
		drain.last_flush_ns = now;
		err = terra_trace_flush(drain.writer);
	}
	if (!err)
		return;
	record_stop();
	if (err != -ECANCELED)
		record_failed("recording ended early: %s", strerror(-err));
	end_file();
}

static bool may_write(void)
{
	return drain.writer && record_state.owner == (uint32_t)getpid();
}

void record_drain(bool wait)
{
	if (wait)
		pthread_mutex_lock(&drain.lock);
	else if (pthread_mutex_trylock(&drain.lock) != 0)
		return;
	if (may_write())
		drain_locked(clock_now(), false);
	pthread_mutex_unlock(&drain.lock);
}

/* Does not wait for ever: a signal handler that leaves the program may have interrupted a drain of its own thread. */
void record_drain_close(void)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 5;
	if (pthread_mutex_timedlock(&drain.lock, &until) != 0)
		return;
	if (may_write())
		drain_locked(clock_now(), true);
	if (may_write())
		end_file();
	pthread_mutex_unlock(&drain.lock);
}

void record_drain_note(const char *text)
{
	pthread_mutex_lock(&drain.lock);
	if (may_write())
		terra_consumer_note(drain.consumer, text, clock_now());
	pthread_mutex_unlock(&drain.lock);
}

void record_drain_lock(void)
{
	pthread_mutex_lock(&drain.lock);
}

void record_drain_unlock(void)
{
	pthread_mutex_unlock(&drain.lock);
}
