/* From a program to the traces of its processes: who is recorded, from when, with which library. */
#include "collector/bpf/session.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "collector/bpf/follow.h"
#include "collector/bpf/recording.h"
#include "collector/target.h"
#include "probes/clock.h"
#include "probes/find.h"

/* Between looks at a process. Its imports take much longer than the first interval; one that has not shown what we look
 * for after many looks may never do so, and is then looked at less often. */
#define FIRST_LOOK_NS 10000000
#define LAST_LOOK_NS 100000000
#define QUICK_LOOKS 1000

struct terra_session {
	struct terra_session_options options;
	struct library *libraries;
	struct recording *recordings;
	struct recording *first; /* of the program itself; freed like the others */
	struct terra_follow *follow; /* NULL: children are not followed */
	char follow_reason[256];     /* why, when they should be */
	int follow_error;
	pid_t pid;
	bool output_taken; /* a process writes to options.output */
	bool over;
	char message[512]; /* of the first recording that failed since the last step */
	int error;
	struct terra_index index;
	struct terra_session_result result;
};

static struct library *find_library(const struct terra_session *session, const char *path)
{
	struct library *library = session->libraries;

	while (library && !library_is(library, path))
		library = library->next;
	return library;
}

/* Loads the library if no other process uses it already. */
static int get_library(struct terra_session *session, const char *path, struct library **out, char *err, size_t err_size)
{
	int error;

	*out = find_library(session, path);
	if (*out)
		return 0;
	error = library_open(path, &session->options, out, err, err_size);
	if (error)
		return error;
	(*out)->next = session->libraries;
	session->libraries = *out;
	return 0;
}

static void consume(struct terra_session *session);

/* Takes the probes out, and what they made until then out of the ring. */
static void let_go(struct terra_session *session, struct recording *recording)
{
	recording_detach(recording);
	consume(session);
	recording_release(recording);
}

static int attach(struct terra_session *session, struct recording *recording, const char *path, char *err,
		  size_t err_size)
{
	struct library *library;
	int error = get_library(session, path, &library, err, err_size);

	if (error || recording->library == library)
		return error;
	let_go(session, recording);
	return recording_attach(recording, library, err, err_size);
}

static void failed(struct terra_session *session, struct recording *recording, int error, const char *message)
{
	if (recording->error)
		return;
	recording->error = error;
	recording->over = true;
	snprintf(recording->message, sizeof(recording->message), "%s", message);
}

static struct recording *find_recording(const struct terra_session *session, pid_t pid)
{
	struct recording *recording = session->recordings;

	while (recording && recording->pid != pid)
		recording = recording->next;
	return recording;
}

static struct recording *add_recording(struct terra_session *session, pid_t pid)
{
	struct recording *recording = recording_new(pid, &session->options);

	if (!recording)
		return NULL;
	recording->next = session->recordings;
	session->recordings = recording;
	return recording;
}

static bool path_is_free(const struct terra_session *session, const char *path)
{
	for (uint32_t i = 0; i < session->index.n; i++)
		if (!strcmp(session->index.entries[i].file, path))
			return false;
	for (const struct recording *other = session->recordings; other; other = other->next)
		if (!strcmp(other->output, path))
			return false;
	return true;
}

/* OUTPUT, OUTPUT.PID, or when a process that was recorded executed another program OUTPUT.PID.2 and so on. */
static void choose_output(struct terra_session *session, struct recording *recording)
{
	char path[sizeof(recording->output)];
	int n = snprintf(path, sizeof(path) - 16, "%s", session->options.output);

	if (session->output_taken)
		n += snprintf(path + n, sizeof(path) - (size_t)n, ".%d", recording->pid);
	for (int i = 2; !path_is_free(session, path) && i < 100; i++)
		snprintf(path + n, sizeof(path) - (size_t)n, ".%d", i);
	session->output_taken = true;
	strcpy(recording->output, path);
}

static void begin(struct terra_session *session, struct recording *recording)
{
	choose_output(session, recording);
	recording_begin(recording);
	if (!recording->error && session->follow_reason[0] && recording == session->first) {
		char text[320];

		snprintf(text, sizeof(text), "child processes are not recorded: %s", session->follow_reason);
		terra_consumer_note(recording->consumer, text, clock_now());
	}
}

/* Records of a process that is over, or of another program that it ran before, are not wanted. */
static int on_record(void *context, uint32_t target, const struct terra_record *record)
{
	struct terra_session *session = ((void **)context)[0];
	struct library *library = ((void **)context)[1];
	struct recording *recording = library->recordings[target];

	if (!recording || recording->over)
		return 0;
	recording->mapped = true;
	if (!recording->consumer)
		begin(session, recording);
	recording_take(recording, record);
	return 0;
}

static void consume(struct terra_session *session)
{
	for (struct library *library = session->libraries; library; library = library->next) {
		void *context[2] = { session, library };
		int got = terra_bpf_consume(library->bpf, on_record, context);

		if (got < 0 && !session->error) {
			session->error = got;
			snprintf(session->message, sizeof(session->message), "cannot read the BPF ring: %s",
				 strerror(-got));
		}
	}
}

/* A process that has mapped a library that nobody expected. The program that we started ourselves waits while the probes
 * are put in place: the loader has only just begun with the library. Others we do not stop: their parents could see it. */
static void attach_to_mapped(struct terra_session *session, struct recording *recording, const char *path)
{
	bool hold = session->options.argv && recording == session->first;
	uint64_t begin_ns = clock_now();
	char err[512];
	int error;

	if (hold)
		kill(recording->pid, SIGSTOP);
	error = attach(session, recording, path, err, sizeof(err));
	if (hold)
		kill(recording->pid, SIGCONT);
	if (error == -ESRCH)
		recording->ended = true;
	else if (error)
		failed(session, recording, error, err);
	if (!recording->remark[0])
		snprintf(recording->remark, sizeof(recording->remark),
			 "the program had mapped libtorch before it was found: first ops may be missing (%s for %.1f ms)",
			 hold ? "it was stopped" : "probes were put in place",
			 (double)(clock_now() - begin_ns) / 1e6);
}

static void look_for_library(struct terra_session *session, struct recording *recording)
{
	char mapped[4096];

	if (terra_target_library(recording->pid, mapped, sizeof(mapped)))
		return;
	if (!recording->library || !library_is(recording->library, mapped))
		attach_to_mapped(session, recording, mapped);
	recording->mapped = true;
	/* A process that does nothing with it leaves no file, unless it is the one that we are asked for. */
	if (!recording->over && recording->library && !recording->consumer && recording == session->first &&
	    !session->output_taken)
		begin(session, recording);
}

/* Looks at the process every few milliseconds until all that is wanted of it is known. */
static void look(struct terra_session *session, struct recording *recording, uint64_t now)
{
	if (now < recording->next_look_ns || recording->over)
		return;
	recording->next_look_ns = now + (recording->looks++ < QUICK_LOOKS ? FIRST_LOOK_NS : LAST_LOOK_NS);
	if (!recording->mapped)
		look_for_library(session, recording);
	if (recording->library && recording->mapped && !recording->storage_done)
		recording_look_for_storage(recording);
	if (recording->consumer)
		recording_look_for_extensions(recording, now);
	if (recording->library && !recording->python_done)
		recording_look_for_python(recording);
}

/* A forked process runs with its parent's library and does so at once: what it does before its probes are there is
 * missing, and how long that was is said. One that was held has done nothing. */
static void attach_forked(struct terra_session *session, const struct follow_event *event)
{
	struct recording *parent = find_recording(session, (pid_t)event->parent), *child;
	char err[512];

	if (find_recording(session, (pid_t)event->process) || (session->first && session->first->over))
		return;
	child = add_recording(session, (pid_t)event->process);
	if (!child) /* no memory: one trace less */
		return;
	if (event->shares_memory) /* what it has mapped is its parent's; it is looked at when it has executed something */
		child->next_look_ns = clock_now() + LAST_LOOK_NS;
	if (!parent || event->shares_memory || child->ended || !parent->library)
		return;
	snprintf(child->command, sizeof(child->command), "%s", parent->command);
	child->process = parent->process;
	child->process.pid = child->pid;
	child->process.parent = parent->pid;
	recording_inherit_python(child, parent);
	if (recording_attach(child, parent->library, err, sizeof(err)))
		return; /* tried again where it is looked at, and said if it fails again */
	child->mapped = parent->mapped;
	if (event->held)
		return;
	snprintf(child->remark, sizeof(child->remark),
		 "forked from process %d: operators of its first %.1f ms, while probes were put in place, are missing",
		 parent->pid, (double)(clock_now() - event->time_ns) / 1e6);
}

static void on_fork(struct terra_session *session, const struct follow_event *event)
{
	attach_forked(session, event);
	if (event->held)
		terra_follow_let_go(session->follow, (pid_t)event->process);
}

static void finish_recording(struct terra_session *session, struct recording *recording);
static void drop(struct terra_session *session, struct recording *recording);

/* Probes follow the process into its new program; what was recorded was another one. */
static void on_exec(struct terra_session *session, const struct follow_event *event)
{
	struct recording *recording = find_recording(session, (pid_t)event->process);
	char program[4096], path[4096], err[512];
	bool was_first = recording && recording == session->first;

	if (!recording)
		return;
	recording->replaced = true;
	consume(session); /* what the program before has done */
	if (recording->consumer) {
		finish_recording(session, recording);
		drop(session, recording);
		recording = add_recording(session, (pid_t)event->process);
		if (!recording)
			return;
		if (was_first)
			session->first = recording;
	}
	pystack_names_free(recording->names);
	recording->names = NULL;
	recording->python_done = !session->options.stacks;
	recording->storage_done = false;
	if (recording->library)
		terra_bpf_forget(recording->library->bpf, recording->target);
	recording->replaced = false;
	recording->mapped = false;
	recording->looks = 0;
	recording->next_look_ns = 0;
	recording->remark[0] = 0;
	terra_target_program(recording->pid, program, sizeof(program));
	if (terra_find_named(session->options.library, program, path, sizeof(path)))
		attach(session, recording, path, err, sizeof(err)); /* else it is found when it is mapped */
}

static int on_event(void *context, const struct follow_event *event)
{
	struct terra_session *session = context;

	if (event->type == FOLLOW_FORK)
		on_fork(session, event);
	else
		on_exec(session, event);
	return 0;
}

static void follow(struct terra_session *session)
{
	if (session->follow)
		terra_follow_poll(session->follow, on_event, session);
}

static void check_end(struct recording *recording)
{
	struct pollfd ready = { .fd = recording->pidfd, .events = POLLIN };

	if (recording->pidfd >= 0)
		recording->ended = poll(&ready, 1, 0) > 0;
	else
		recording->ended = kill(recording->pid, 0) && errno == ESRCH;
}

static void add_to_index(struct terra_session *session, const struct recording *recording)
{
	struct terra_index_entry entry = {
		.file = strdup(recording->output),
		.command = strdup(recording->command),
		.process = recording->process,
		.start_ns = recording->start_ns,
		.end_ns = recording->end_ns,
		.events = recording->written.events,
		.lost = recording->written.lost,
		.complete = !recording->error,
	};

	if (entry.file && entry.command && !terra_index_add(&session->index, &entry))
		return;
	free(entry.file);
	free(entry.command);
}

static void add_to_result(struct terra_session *session, const struct recording *recording)
{
	uint64_t iterations = terra_gate_iterations(recording->gate);

	session->result.traces++;
	session->result.lost += recording->written.lost;
	session->result.traps += recording->traps;
	if (iterations > session->result.iterations)
		session->result.iterations = iterations;
	if (terra_gate_reason(recording->gate))
		session->result.stopped = terra_gate_reason(recording->gate);
}

static void take_error(struct terra_session *session, struct recording *recording)
{
	if (!recording->error || session->error)
		return;
	session->error = recording->error;
	snprintf(session->message, sizeof(session->message), "%s", recording->message);
}

/* Probes out, the rest of its records in, the file complete. */
static void finish_recording(struct terra_session *session, struct recording *recording)
{
	bool recorded;

	recording_detach(recording);
	consume(session);
	recorded = recording->writer && recording->consumer;
	recording_finish(recording);
	recording_release(recording);
	take_error(session, recording);
	if (!recorded || access(recording->output, F_OK)) /* what a flight recorder kept may have found no room */
		return;
	add_to_result(session, recording);
	add_to_index(session, recording);
}

static void drop(struct terra_session *session, struct recording *recording)
{
	struct recording **link = &session->recordings;

	while (*link != recording)
		link = &(*link)->next;
	*link = recording->next;
	if (recording == session->first)
		session->first = NULL;
	recording_free(recording);
}

/* A process that was recorded long enough keeps its place, so that what it starts has a parent. */
static void sweep(struct terra_session *session)
{
	struct recording *recording, *next;

	for (recording = session->recordings; recording; recording = next) {
		next = recording->next;
		if (!recording->ended && !(recording->over && recording->library))
			continue;
		finish_recording(session, recording);
		if (!recording->ended)
			continue;
		if (session->follow)
			terra_follow_remove(session->follow, recording->pid);
		session->over |= recording == session->first;
		drop(session, recording);
	}
}

/* The first process was recorded as long as asked for, and no other is being. */
static bool is_enough(const struct terra_session *session)
{
	if (!session->first || !session->first->over)
		return false;
	for (const struct recording *other = session->recordings; other; other = other->next)
		if (!other->over && other->consumer)
			return false;
	return true;
}

static void count_events(struct terra_session *session, uint64_t *events)
{
	*events = 0;
	for (uint32_t i = 0; i < session->index.n; i++)
		*events += session->index.entries[i].events;
	for (struct recording *recording = session->recordings; recording; recording = recording->next)
		if (recording->writer && recording->consumer)
			*events += terra_consumer_stats(recording->consumer)->events;
}

static int take_message(struct terra_session *session, char *err, size_t err_size)
{
	int error = session->error;

	session->error = 0;
	if (error)
		snprintf(err, err_size, "%s", session->message);
	return error;
}

int terra_session_step(struct terra_session *session, char *err, size_t err_size)
{
	uint64_t now = clock_now();

	if (session->over)
		return 0;
	follow(session);
	for (struct recording *recording = session->recordings; recording; recording = recording->next) {
		check_end(recording);
		if (!recording->ended)
			look(session, recording, now);
	}
	consume(session);
	for (struct recording *recording = session->recordings; recording; recording = recording->next)
		recording_step(recording, now);
	sweep(session);
	session->over |= is_enough(session);
	count_events(session, &session->result.events);
	session->result.waiting = session->first && !session->first->mapped;
	return take_message(session, err, err_size);
}

bool terra_session_over(const struct terra_session *session)
{
	return session->over;
}

int terra_session_fd(const struct terra_session *session)
{
	return session->follow ? terra_follow_fd(session->follow) : -1;
}

int terra_session_write_kept(struct terra_session *session, char *err, size_t err_size)
{
	int error = 0;

	consume(session);
	for (struct recording *recording = session->recordings; recording; recording = recording->next)
		if (recording->writer && recording->consumer && recording_write_kept(recording)) {
			error = recording->error;
			snprintf(err, err_size, "%s", recording->message);
		}
	return error;
}

int terra_session_finish(struct terra_session *session, char *err, size_t err_size)
{
	while (session->recordings) {
		finish_recording(session, session->recordings);
		drop(session, session->recordings);
	}
	session->over = true;
	count_events(session, &session->result.events);
	return take_message(session, err, err_size);
}

const struct terra_session_result *terra_session_result(const struct terra_session *session)
{
	return &session->result;
}

struct terra_index *terra_session_index(struct terra_session *session)
{
	return &session->index;
}

void terra_session_close(struct terra_session *session)
{
	if (!session)
		return;
	while (session->recordings)
		drop(session, session->recordings);
	while (session->libraries) {
		struct library *library = session->libraries;

		session->libraries = library->next;
		library_close(library);
	}
	terra_follow_close(session->follow);
	terra_index_free(&session->index);
	free(session);
}

static void join_words(char *const *words, char *out, size_t size)
{
	size_t used = 0;

	for (int i = 0; words[i] && used < size; i++)
		used += (size_t)snprintf(out + used, size - used, "%s%s", i ? " " : "", words[i]);
}

static const char in_the_middle[] = "attached to a process that ran already: the trace begins in its middle, and has no "
				    "GPU activity, whose recorder has to be there when a process starts";

static enum follow_how follow_how(const struct terra_session *session)
{
	return session->options.hold ? FOLLOW_HOLD : FOLLOW_ONLY;
}

static void add_running(void *context, pid_t parent, pid_t child)
{
	struct terra_session *session = context;
	struct recording *recording;

	if (find_recording(session, child))
		return;
	if (session->follow)
		terra_follow_add(session->follow, child, follow_how(session));
	recording = add_recording(session, child);
	if (recording)
		strcpy(recording->remark, in_the_middle);
	terra_target_children(child, add_running, session);
}

/* Where the program's library is: of one that begins, where it will look for it; path[0] 0: not known (yet). */
static int find_path(struct terra_session *session, char *path, size_t size, char *err, size_t err_size)
{
	int error;

	path[0] = 0;
	if (session->options.argv) {
		join_words(session->options.argv, session->first->command, sizeof(session->first->command));
		if (!terra_find_named(session->options.library, session->options.argv[0], path, size))
			path[0] = 0;
		return 0;
	}
	strcpy(session->first->remark, in_the_middle);
	error = terra_target_library(session->pid, path, size);
	if (error)
		path[0] = 0;
	if (!error || error == -ENOENT)
		return 0;
	snprintf(err, err_size, "cannot look into process %d: %s", session->pid, strerror(-error));
	return error;
}

static void *open_follow(void *context)
{
	struct terra_session *session = context;

	session->follow_error = terra_follow_open(session->options.hold, &session->follow, session->follow_reason,
						  sizeof(session->follow_reason));
	return NULL;
}

/* Held children are asked for: without them is not what is wanted. */
static int begin_to_follow(struct terra_session *session, char *err, size_t err_size)
{
	if (!session->options.children)
		return 0;
	if (!session->follow_error)
		return terra_follow_add(session->follow, session->pid, follow_how(session));
	snprintf(err, err_size, "%s", session->follow_reason);
	return session->options.hold ? session->follow_error : 0;
}

/* Loads what follows children and what records ops. Each takes a tenth of a second, which someone who attaches waits for: at
 * once, each on a processor of its own. */
static int open_parts(struct terra_session *session, const char *path, char *err, size_t err_size)
{
	struct library *library;
	pthread_t thread;
	bool threaded;
	int error = 0;

	threaded = session->options.children && !pthread_create(&thread, NULL, open_follow, session);
	if (session->options.children && !threaded)
		open_follow(session);
	if (path[0])
		error = get_library(session, path, &library, err, err_size);
	if (threaded)
		pthread_join(thread, NULL);
	return error ? error : begin_to_follow(session, err, err_size);
}

/* Followed first, so that no child falls between the look at them and that; and probed before a program that begins has its
 * library. */
static int open_program(struct terra_session *session, char *err, size_t err_size)
{
	char path[4096];
	int error = find_path(session, path, sizeof(path), err, err_size);

	if (!error)
		error = open_parts(session, path, err, err_size);
	if (!error && path[0])
		error = attach(session, session->first, path, err, err_size);
	if (session->follow && !session->options.argv)
		terra_target_children(session->pid, add_running, session);
	return error;
}

/* A process takes some files of ours, and many may be traced. What is started from here on would inherit the limit. */
static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int terra_session_open(const struct terra_session_options *options, pid_t pid, struct terra_session **out, char *err,
		       size_t err_size)
{
	struct terra_session *session = calloc(1, sizeof(*session));
	int error = -ENOMEM;

	*out = NULL;
	snprintf(err, err_size, "out of memory");
	if (!session)
		return error;
	session->options = *options;
	session->pid = pid;
	session->first = add_recording(session, pid);
	if (session->first)
		error = open_program(session, err, err_size);
	if (error) {
		terra_session_close(session);
		return error;
	}
	raise_file_limit();
	*out = session;
	return 0;
}
