/* trace_intern.h - bytes that grow, and byte strings that get numbers; private to writer and report. */
#ifndef TERRA_COLLECTOR_TRACE_INTERN_H
#define TERRA_COLLECTOR_TRACE_INTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that grow. `failed` is sticky: callers append freely and look once. */
struct trace_buffer {
	uint8_t *data;
	size_t size;
	size_t capacity;
	bool failed;
};

struct trace_intern_entry {
	uint64_t hash;
	size_t key;
	uint32_t key_size;
	uint32_t epoch; /* block in which `local` holds, from 1 */
	uint32_t local;
};

/* Maps byte strings to ids that are given in order of appearance. A block may only use what it defines itself, so an
 * entry also knows in which block it was last defined and under which number there. */
struct trace_intern {
	struct trace_intern_entry *entries;
	uint32_t n_entries;
	uint32_t entries_capacity;
	uint32_t *slots; /* entry + 1; 0 is free */
	uint32_t n_slots;
	struct trace_buffer keys;
	uint32_t n_local; /* defined in this block so far */
};

/* Makes room for `extra` bytes more; false, and failed, when memory ran out. */
bool trace_buffer_reserve(struct trace_buffer *buffer, size_t extra);
void trace_buffer_put(struct trace_buffer *buffer, const void *data, size_t size);

/* The entry of a key, new or old; NULL when memory ran out. Its index in `entries` is its number. Valid until the next
 * call. */
struct trace_intern_entry *trace_intern_get(struct trace_intern *intern, const void *key, size_t size);
void trace_intern_free(struct trace_intern *intern);

#endif
