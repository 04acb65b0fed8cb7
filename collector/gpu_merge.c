/* gpu_merge.c - the trace is read once for its ops, the GPU activity twice: for its calls, and to be written. */
#include "collector/gpu_merge.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "collector/gpu_link.h"
#include "collector/trace.h"
#include "collector/trace_append.h"

struct merge {
	const char *trace, *gpu;
	const struct terra_gpu_merge_options *options;
	struct gpu_linker *linker;
	struct terra_trace_writer *writer;
	uint64_t first_ns, last_ns; /* of the trace's events */
	uint64_t left_out;
	uint64_t missing; /* events of the GPU's file */
	bool cut;         /* that file has no end */
	char *err;
	size_t err_size;
};

__attribute__((format(printf, 3, 4))) static int fail(struct merge *m, int code, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(m->err, m->err_size, format, arguments);
	va_end(arguments);
	return code;
}

/* The trace. */

static int read_ops(struct merge *m, struct terra_trace_reader *reader)
{
	struct terra_event event;
	int ret;

	while ((ret = terra_trace_next(reader, &event)) > 0) {
		if (event.type == TERRA_EVENT_GPU)
			return fail(m, -EINVAL, "%s has GPU activity already", m->trace);
		if (event.time_ns && (!m->first_ns || event.time_ns < m->first_ns))
			m->first_ns = event.time_ns;
		if (event.time_ns > m->last_ns)
			m->last_ns = event.time_ns;
		if (gpu_linker_op(m->linker, &event))
			return fail(m, -ENOMEM, "no memory to find the ops of GPU activity");
	}
	return ret ? fail(m, -EINVAL, "%s: %s", m->trace, terra_trace_error(reader)) : 0;
}

static int read_trace(struct merge *m, struct trace_tail *tail, uint32_t *pid)
{
	struct terra_trace_reader *reader;
	int err = terra_trace_open(m->trace, &reader, m->err, m->err_size);

	if (err)
		return err;
	*pid = terra_trace_info(reader)->pid;
	err = read_ops(m, reader);
	*tail = trace_reader_tail(reader);
	terra_trace_close(reader);
	return err;
}

/* The GPU's file. */

typedef int (*take_fn)(struct merge *m, struct terra_event *event);

static int take_call(struct merge *m, struct terra_event *event)
{
	return gpu_linker_call(m->linker, event);
}

static bool is_wanted(const struct merge *m, const struct terra_event *event)
{
	uint64_t asked;

	if (event->gpu->kind == TERRA_GPU_LINK)
		return false;
	asked = gpu_linker_asked_ns(m->linker, event);
	return !m->options->recorded_only || !asked || (asked >= m->first_ns && asked <= m->last_ns);
}

static int write_event(struct merge *m, struct terra_event *event)
{
	if (event->type == TERRA_EVENT_GPU) {
		if (!is_wanted(m, event)) {
			m->left_out += event->gpu->kind != TERRA_GPU_LINK;
			return 0;
		}
		gpu_linker_find(m->linker, event);
	} else if (event->type != TERRA_EVENT_NOTE && event->type != TERRA_EVENT_LOST) {
		return 0;
	}
	return terra_trace_write(m->writer, event);
}

static int read_gpu(struct merge *m, uint32_t pid, take_fn take)
{
	struct terra_trace_reader *reader;
	struct terra_event event;
	int ret, err = terra_trace_open(m->gpu, &reader, m->err, m->err_size);

	if (err)
		return err;
	if (terra_trace_info(reader)->pid != pid)
		err = fail(m, -EINVAL, "%s is of another process than %s", m->gpu, m->trace);
	while (!err && (ret = terra_trace_next(reader, &event)) != 0) {
		err = ret > 0 ? take(m, &event) : 0; /* damage is counted by the reader */
		if (err)
			fail(m, err, "cannot write GPU activity to %s: %s", m->trace, strerror(-err));
	}
	m->missing = terra_trace_missing(reader);
	m->cut = !terra_trace_ended_cleanly(reader);
	terra_trace_close(reader);
	return err;
}

/* What the trace says of all this. */

__attribute__((format(printf, 2, 3))) static int note(struct merge *m, const char *format, ...)
{
	char text[512];
	struct terra_event event = { .type = TERRA_EVENT_NOTE, .text = text, .time_ns = m->last_ns, .parent_seq = UINT64_MAX };
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	return terra_trace_write(m->writer, &event);
}

static int lose(struct merge *m)
{
	struct terra_event event = { .type = TERRA_EVENT_LOST, .lost = m->missing, .time_ns = m->last_ns, .parent_seq = UINT64_MAX };
	int err = note(m, "%" PRIu64 " events of GPU activity were damaged", m->missing);

	return err ? err : terra_trace_write(m->writer, &event);
}

static int write_notes(struct merge *m)
{
	const struct gpu_link_counts *n = gpu_linker_counts(m->linker);
	int err;

	err = note(m, "ops of GPU activity: %" PRIu64 " found by external id, %" PRIu64 " by thread and time, %" PRIu64 " not",
		   n->by_external_id, n->by_time, n->without);
	if (!err && n->without && !n->calls)
		err = note(m, "no calls of CUDA's are in this trace (--gpu runtime,driver): without them ops are not found by thread and "
			      "time");
	if (!err && n->differ)
		err = note(m, "for %" PRIu64 " calls external id and time name different ops; the id was taken", n->differ);
	if (!err && m->left_out)
		err = note(m, "%" PRIu64 " GPU activities before or after what was recorded are left out", m->left_out);
	if (!err && m->missing)
		err = lose(m);
	if (!err && m->options->running)
		err = note(m, "the GPU activity of about the last second may be missing: the program was not at its end");
	else if (!err && m->cut)
		err = note(m, "GPU activity ends abnormally: the last of it was not written");
	return err;
}

static int append(struct merge *m, const struct trace_tail *tail, uint32_t pid)
{
	int end_err, err = trace_writer_append(m->trace, tail, &m->writer, m->err, m->err_size);

	if (err)
		return err;
	err = read_gpu(m, pid, write_event);
	if (!err)
		err = write_notes(m);
	end_err = tail->clean ? terra_trace_finish(m->writer) : trace_writer_leave(m->writer);
	if (!err && end_err)
		err = fail(m, end_err, "cannot write GPU activity to %s: %s", m->trace, strerror(-end_err));
	return err;
}

int terra_gpu_merge(const char *trace, const char *gpu, const struct terra_gpu_merge_options *options, char *err,
		    size_t err_size)
{
	struct merge m = { .trace = trace, .gpu = gpu, .options = options, .linker = gpu_linker_new(), .err = err,
			   .err_size = err_size };
	struct trace_tail tail;
	uint32_t pid = 0;
	int code = m.linker ? read_trace(&m, &tail, &pid) : fail(&m, -ENOMEM, "no memory");

	if (!code)
		code = read_gpu(&m, pid, take_call);
	if (!code) {
		gpu_linker_ready(m.linker);
		code = append(&m, &tail, pid);
	}
	gpu_linker_free(m.linker);
	return code;
}

int terra_gpu_note(const char *trace, const char *text, char *err, size_t err_size)
{
	struct merge m = { .trace = trace, .linker = gpu_linker_new(), .err = err, .err_size = err_size };
	struct trace_tail tail;
	uint32_t pid;
	int end_err, code = m.linker ? read_trace(&m, &tail, &pid) : fail(&m, -ENOMEM, "no memory");

	gpu_linker_free(m.linker);
	if (!code)
		code = trace_writer_append(trace, &tail, &m.writer, err, err_size);
	if (code)
		return code;
	code = note(&m, "%s", text);
	end_err = tail.clean ? terra_trace_finish(m.writer) : trace_writer_leave(m.writer);
	return code || end_err ? fail(&m, code ? code : end_err, "cannot write to %s", trace) : 0;
}
