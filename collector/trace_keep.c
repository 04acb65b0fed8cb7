/* The last blocks of a trace in memory. Blocks stand alone, so old ones are simply dropped; what is written out in the end
 * goes through reader and writer once, since numbers count from the first event of a file. */
#include "collector/trace_keep.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NOTES_MAX 64

struct block {
	struct block *next;
	uint64_t time_ns;
	size_t size;
	uint8_t bytes[];
};

struct trace_keep {
	struct terra_trace_info info; /* with strings of our own */
	uint64_t keep_ns, keep_bytes;
	struct block *header, *first, *last;
	uint64_t bytes; /* of the blocks */
	uint32_t n_notes;
	char *notes[NOTES_MAX];
};

static const char *copy(const char *string)
{
	return strdup(string ? string : "");
}

struct trace_keep *trace_keep_new(const struct terra_trace_info *info, uint64_t keep_ns, uint64_t keep_bytes)
{
	struct trace_keep *keep = calloc(1, sizeof(*keep));

	if (!keep)
		return NULL;
	keep->info = *info;
	keep->info.backend = copy(info->backend);
	keep->info.command = copy(info->command);
	keep->info.library = copy(info->library);
	keep->info.build_id = copy(info->build_id);
	keep->info.cpu = copy(info->cpu);
	keep->keep_ns = keep_ns;
	keep->keep_bytes = keep_bytes;
	if (keep->info.backend && keep->info.command && keep->info.library && keep->info.build_id && keep->info.cpu)
		return keep;
	trace_keep_free(keep);
	return NULL;
}

static void drop_first(struct trace_keep *keep)
{
	struct block *block = keep->first;

	keep->first = block->next;
	if (!keep->first)
		keep->last = NULL;
	keep->bytes -= block->size;
	free(block);
}

void trace_keep_free(struct trace_keep *keep)
{
	if (!keep)
		return;
	while (keep->first)
		drop_first(keep);
	for (uint32_t i = 0; i < keep->n_notes; i++)
		free(keep->notes[i]);
	free(keep->header);
	free((char *)keep->info.backend);
	free((char *)keep->info.command);
	free((char *)keep->info.library);
	free((char *)keep->info.build_id);
	free((char *)keep->info.cpu);
	free(keep);
}

static struct block *new_block(const uint8_t *bytes, size_t size, uint64_t time_ns)
{
	struct block *block = malloc(sizeof(*block) + size);

	if (!block)
		return NULL;
	*block = (struct block){ .time_ns = time_ns, .size = size };
	memcpy(block->bytes, bytes, size);
	return block;
}

int trace_keep_header(struct trace_keep *keep, const uint8_t *bytes, size_t size)
{
	keep->header = new_block(bytes, size, 0);
	return keep->header ? 0 : -ENOMEM;
}

int trace_keep_block(struct trace_keep *keep, const uint8_t *bytes, size_t size, uint64_t time_ns)
{
	struct block *block = new_block(bytes, size, time_ns);

	if (!block)
		return -ENOMEM;
	if (keep->last)
		keep->last->next = block;
	else
		keep->first = block;
	keep->last = block;
	keep->bytes += size;
	while (keep->first != block &&
	       (keep->first->time_ns + keep->keep_ns < time_ns || (keep->keep_bytes && keep->bytes > keep->keep_bytes)))
		drop_first(keep);
	return 0;
}

int trace_keep_note(struct trace_keep *keep, const char *text)
{
	char *own;

	if (keep->n_notes == NOTES_MAX)
		return 0;
	own = strdup(text);
	if (!own)
		return -ENOMEM;
	keep->notes[keep->n_notes++] = own;
	return 0;
}

static int write_all(int fd, const struct block *block)
{
	size_t done = 0;

	while (done < block->size) {
		ssize_t n = write(fd, block->bytes + done, block->size - done);

		if (n < 0 && errno != EINTR)
			return -errno;
		done += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

/* What is kept as a file that a reader opens. */
static int to_memory(const struct trace_keep *keep)
{
	int fd = memfd_create("terra-kept", MFD_CLOEXEC), error;

	if (fd < 0)
		return -errno;
	error = write_all(fd, keep->header);
	for (const struct block *block = keep->first; block && !error; block = block->next)
		error = write_all(fd, block);
	if (!error)
		return fd;
	close(fd);
	return error;
}

/* New numbers of the events, by old ones; UINT64_MAX for those that are left out. */
struct numbers {
	uint64_t first; /* old number of at[0] */
	uint64_t n, capacity;
	uint64_t *at;
};

static uint64_t new_number(const struct numbers *numbers, uint64_t old)
{
	return old == UINT64_MAX || old < numbers->first || old - numbers->first >= numbers->n ?
		       UINT64_MAX :
		       numbers->at[old - numbers->first];
}

static int add_number(struct numbers *numbers, uint64_t old, uint64_t new)
{
	uint64_t *larger;

	if (!numbers->n)
		numbers->first = old;
	while (numbers->n <= old - numbers->first) {
		if (numbers->n == numbers->capacity) {
			numbers->capacity = numbers->capacity ? 2 * numbers->capacity : 4096;
			larger = realloc(numbers->at, numbers->capacity * sizeof(*larger));
			if (!larger)
				return -ENOMEM;
			numbers->at = larger;
		}
		numbers->at[numbers->n++] = UINT64_MAX;
	}
	numbers->at[old - numbers->first] = new;
	return 0;
}

/* -EAGAIN: the event is left out. */
static int renumber(const struct numbers *numbers, uint64_t since_ns, struct terra_event *event)
{
	if (event->time_ns < since_ns || event->type == TERRA_EVENT_NOTE)
		return -EAGAIN;
	event->parent_seq = new_number(numbers, event->parent_seq);
	event->enter_seq = new_number(numbers, event->enter_seq);
	return event->type == TERRA_EVENT_OP_EXIT && event->enter_seq == UINT64_MAX ? -EAGAIN : 0;
}

static int write_counted(struct terra_trace_writer *writer, struct terra_event *event, struct terra_trace_counts *counts)
{
	int error = terra_trace_write(writer, event);

	if (!error) {
		counts->events++;
		counts->lost += event->type == TERRA_EVENT_LOST ? event->lost : 0;
	}
	return error;
}

static int copy_events(struct terra_trace_reader *reader, struct terra_trace_writer *writer, uint64_t since_ns,
		       struct terra_trace_counts *counts)
{
	struct numbers numbers = { 0 };
	struct terra_event event;
	int error, got;

	for (error = 0; !error && (got = terra_trace_next(reader, &event));) {
		uint64_t old = event.seq;

		if (got == -ENOMEM)
			error = got;
		if (got < 0) /* the blocks that were dropped */
			continue;
		error = renumber(&numbers, since_ns, &event);
		if (!error)
			error = write_counted(writer, &event, counts);
		if (!error)
			error = add_number(&numbers, old, event.seq);
		if (error == -EAGAIN)
			error = 0;
	}
	free(numbers.at);
	return error;
}

static int write_notes(const struct trace_keep *keep, uint64_t time_ns, struct terra_trace_writer *writer,
		       struct terra_trace_counts *counts)
{
	struct terra_event event = { .type = TERRA_EVENT_NOTE, .time_ns = time_ns, .parent_seq = UINT64_MAX };
	char text[128];
	int error = 0;

	for (uint32_t i = 0; i < keep->n_notes && !error; i++) {
		event.text = keep->notes[i];
		error = write_counted(writer, &event, counts);
	}
	snprintf(text, sizeof(text), "flight recorder: the last %.3g seconds before the trace was written",
		 (double)keep->keep_ns / 1e9);
	event.text = text;
	return error ? error : write_counted(writer, &event, counts);
}

static int write_file(const struct trace_keep *keep, int fd, uint64_t time_ns, const char *path,
		      struct terra_trace_counts *counts, char *err, size_t err_size)
{
	uint64_t since = time_ns > keep->keep_ns ? time_ns - keep->keep_ns : 0;
	struct terra_trace_writer *writer = NULL;
	struct terra_trace_reader *reader;
	char source[64];
	int error, closing;

	snprintf(source, sizeof(source), "/proc/self/fd/%d", fd);
	error = terra_trace_open(source, &reader, err, err_size);
	if (error)
		return error;
	error = terra_trace_create(path, &keep->info, &writer, err, err_size);
	if (!error) {
		error = write_notes(keep, since, writer, counts);
		if (!error)
			error = copy_events(reader, writer, since, counts);
		closing = terra_trace_finish(writer);
		error = error ? error : closing;
		if (error)
			snprintf(err, err_size, "cannot write %s: %s", path, strerror(-error));
	}
	terra_trace_close(reader);
	return error;
}

int trace_keep_write(const struct trace_keep *keep, uint64_t time_ns, const char *path, struct terra_trace_counts *counts,
		     char *err, size_t err_size)
{
	struct terra_trace_counts written = { 0 };
	char part[4096 + 8];
	int fd = to_memory(keep), error;

	if (fd < 0) {
		snprintf(err, err_size, "no memory for what was kept: %s", strerror(-fd));
		return fd;
	}
	snprintf(part, sizeof(part), "%s.part", path);
	error = write_file(keep, fd, time_ns, part, &written, err, err_size);
	close(fd);
	if (!error && rename(part, path)) {
		error = -errno;
		snprintf(err, err_size, "cannot write %s: %s", path, strerror(-error));
	}
	if (error)
		unlink(part);
	else if (counts)
		*counts = written;
	return error;
}
