/* The index of the traces of one recording; see process.h. */
#include "collector/process.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "collector/gate.h"
#include "collector/report_json.h"
#include "collector/trace.h"

int terra_index_add(struct terra_index *index, const struct terra_index_entry *entry)
{
	if (index->n == index->capacity) {
		uint32_t wanted = index->capacity ? 2 * index->capacity : 8;
		struct terra_index_entry *larger = realloc(index->entries, wanted * sizeof(*larger));

		if (!larger)
			return -ENOMEM;
		index->entries = larger;
		index->capacity = wanted;
	}
	index->entries[index->n++] = *entry;
	return 0;
}

static void read_events(struct terra_trace_reader *reader, struct terra_index_entry *entry)
{
	struct terra_event event;
	int got;

	entry->end_ns = entry->start_ns;
	while ((got = terra_trace_next(reader, &event)) != 0 && got != -ENOMEM) {
		if (got < 0)
			continue;
		entry->events++;
		if (event.time_ns > entry->end_ns)
			entry->end_ns = event.time_ns;
		if (event.type != TERRA_EVENT_NOTE)
			continue;
		terra_process_parse(event.text, &entry->process);
		if (terra_gate_stopped_by(event.text))
			entry->stopped = terra_gate_stopped_by(event.text);
	}
	entry->lost = terra_trace_lost(reader);
	entry->complete = terra_trace_ended_cleanly(reader);
}

int terra_index_add_trace(struct terra_index *index, const char *path, char *err, size_t err_size)
{
	struct terra_index_entry entry = { .file = strdup(path) };
	const struct terra_trace_info *info;
	struct terra_trace_reader *reader;
	int error = terra_trace_open(path, &reader, err, err_size);

	if (error) {
		free(entry.file);
		return error;
	}
	info = terra_trace_info(reader);
	entry.command = strdup(info->command);
	entry.start_ns = info->start_ns;
	entry.process = (struct terra_process){ .pid = (pid_t)info->pid, .rank = -1, .local_rank = -1, .world_size = -1 };
	read_events(reader, &entry);
	terra_trace_close(reader);
	error = entry.file && entry.command ? terra_index_add(index, &entry) : -ENOMEM;
	if (error) {
		free(entry.file);
		free(entry.command);
		snprintf(err, err_size, "out of memory");
	}
	return error;
}

void terra_index_free(struct terra_index *index)
{
	for (uint32_t i = 0; i < index->n; i++) {
		free(index->entries[i].file);
		free(index->entries[i].command);
	}
	free(index->entries);
	*index = (struct terra_index){ 0 };
}

static void number_or_null(struct json *json, const char *key, int64_t n)
{
	json_key(json, key);
	if (n < 0)
		json_null(json);
	else
		json_i64(json, n);
}

static void write_entry(struct json *json, const struct terra_index_entry *entry)
{
	const char *slash = strrchr(entry->file, '/');

	json_open(json, '{');
	json_member_string(json, "file", slash ? slash + 1 : entry->file);
	number_or_null(json, "pid", entry->process.pid);
	number_or_null(json, "parent", entry->process.parent ? entry->process.parent : -1);
	number_or_null(json, "rank", entry->process.rank);
	number_or_null(json, "local_rank", entry->process.local_rank);
	number_or_null(json, "world_size", entry->process.world_size);
	json_member_string(json, "command", entry->command);
	json_member_u64(json, "start_ns", entry->start_ns);
	json_member_u64(json, "end_ns", entry->end_ns);
	json_member_u64(json, "events", entry->events);
	json_member_u64(json, "lost", entry->lost);
	json_key(json, "complete");
	json_bool(json, entry->complete);
	json_close(json, '}');
}

static int by_start(const void *a, const void *b)
{
	const struct terra_index_entry *one = a, *other = b;

	return (one->start_ns > other->start_ns) - (one->start_ns < other->start_ns);
}

int terra_index_write(struct terra_index *index, const char *path)
{
	struct json json = { .out = fopen(path, "we") };
	int error = 0;

	if (!json.out)
		return -errno;
	if (index->n)
		qsort(index->entries, index->n, sizeof(*index->entries), by_start);
	json_open(&json, '{');
	json_key(&json, "terra_index");
	json_i64(&json, 1);
	json_key(&json, "traces");
	json_open(&json, '[');
	for (uint32_t i = 0; i < index->n; i++) {
		write_entry(&json, &index->entries[i]);
		fputc('\n', json.out);
	}
	json_close(&json, ']');
	json_close(&json, '}');
	fputc('\n', json.out);
	error = ferror(json.out) ? -EIO : 0;
	if (fclose(json.out) && !error)
		error = -errno;
	return error;
}
