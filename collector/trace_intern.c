/* trace_intern.c - bytes that grow, and byte strings that get numbers. */
#include "collector/trace_intern.h"

#include <stdlib.h>
#include <string.h>

bool trace_buffer_reserve(struct trace_buffer *buffer, size_t extra)
{
	size_t capacity = buffer->capacity ? buffer->capacity : 4096;
	uint8_t *data;

	if (buffer->failed)
		return false;
	if (buffer->size + extra <= buffer->capacity)
		return true;
	while (capacity < buffer->size + extra)
		capacity *= 2;
	data = realloc(buffer->data, capacity);
	if (!data) {
		buffer->failed = true;
		return false;
	}
	buffer->data = data;
	buffer->capacity = capacity;
	return true;
}

void trace_buffer_put(struct trace_buffer *buffer, const void *data, size_t size)
{
	if (size == 0 || !trace_buffer_reserve(buffer, size))
		return;
	memcpy(buffer->data + buffer->size, data, size);
	buffer->size += size;
}

static uint64_t hash_bytes(const uint8_t *p, size_t size)
{
	uint64_t hash = 0xcbf29ce484222325u;

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ p[i]) * 0x100000001b3u;
	return hash ^ hash >> 29;
}

static bool intern_grow_slots(struct trace_intern *intern)
{
	uint32_t n_slots = intern->n_slots ? intern->n_slots * 2 : 256;
	uint32_t *slots = calloc(n_slots, sizeof(*slots));

	if (!slots)
		return false;
	for (uint32_t i = 0; i < intern->n_entries; i++) {
		uint32_t slot = (uint32_t)intern->entries[i].hash & (n_slots - 1);

		while (slots[slot])
			slot = (slot + 1) & (n_slots - 1);
		slots[slot] = i + 1;
	}
	free(intern->slots);
	intern->slots = slots;
	intern->n_slots = n_slots;
	return true;
}

static bool intern_grow_entries(struct trace_intern *intern)
{
	uint32_t capacity = intern->entries_capacity ? intern->entries_capacity * 2 : 128;
	struct trace_intern_entry *entries = realloc(intern->entries, capacity * sizeof(*entries));

	if (!entries)
		return false;
	intern->entries = entries;
	intern->entries_capacity = capacity;
	return true;
}

struct trace_intern_entry *trace_intern_get(struct trace_intern *intern, const void *key, size_t size)
{
	uint64_t hash = hash_bytes(key, size);
	struct trace_intern_entry *entry;
	uint32_t slot;

	if (intern->n_entries * 2 >= intern->n_slots && !intern_grow_slots(intern))
		return NULL;
	slot = (uint32_t)hash & (intern->n_slots - 1);
	for (; intern->slots[slot]; slot = (slot + 1) & (intern->n_slots - 1)) {
		entry = &intern->entries[intern->slots[slot] - 1];
		if (entry->hash == hash && entry->key_size == size &&
		    (size == 0 || memcmp(intern->keys.data + entry->key, key, size) == 0))
			return entry;
	}
	if (intern->n_entries == intern->entries_capacity && !intern_grow_entries(intern))
		return NULL;
	if (!trace_buffer_reserve(&intern->keys, size + 1)) {
		intern->keys.failed = false;
		return NULL;
	}
	entry = &intern->entries[intern->n_entries];
	*entry = (struct trace_intern_entry){.hash = hash, .key = intern->keys.size, .key_size = (uint32_t)size};
	trace_buffer_put(&intern->keys, key, size);
	intern->slots[slot] = ++intern->n_entries;
	return entry;
}

void trace_intern_free(struct trace_intern *intern)
{
	free(intern->entries);
	free(intern->slots);
	free(intern->keys.data);
}
