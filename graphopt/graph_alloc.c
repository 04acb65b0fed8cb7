/* graph_alloc.c - memory that lives as long as its graph: passes make many small things and free none. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/graph.h"

#define CHUNK_SIZE ((size_t)64 << 10)
#define ALIGNMENT 16

struct graph_chunk {
	struct graph_chunk *next;
	size_t size, used;
	_Alignas(ALIGNMENT) unsigned char bytes[];
};

struct graph *graph_new(void)
{
	struct graph *graph = calloc(1, sizeof(*graph));

	if (graph)
		graph->after = graph->build_id = graph->library = graph->source = "";
	return graph;
}

void graph_free(struct graph *graph)
{
	struct graph_chunk *chunk, *next;

	if (!graph)
		return;
	for (chunk = graph->chunks; chunk; chunk = next) {
		next = chunk->next;
		free(chunk);
	}
	free(graph);
}

static struct graph_chunk *add_chunk(struct graph *graph, size_t size)
{
	size_t n = size > CHUNK_SIZE ? size : CHUNK_SIZE;
	struct graph_chunk *chunk = malloc(sizeof(*chunk) + n);

	if (!chunk)
		return NULL;
	chunk->size = n;
	chunk->used = 0;
	chunk->next = graph->chunks;
	graph->chunks = chunk;
	return chunk;
}

void *graph_alloc(struct graph *graph, size_t size)
{
	struct graph_chunk *chunk = graph->chunks;
	void *p;

	size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	if (!chunk || size > chunk->size - chunk->used)
		chunk = add_chunk(graph, size);
	if (!chunk)
		return NULL;
	p = chunk->bytes + chunk->used;
	chunk->used += size;
	return memset(p, 0, size);
}

char *graph_strndup(struct graph *graph, const char *text, size_t n)
{
	char *copy = graph_alloc(graph, n + 1);

	return copy ? memcpy(copy, text, n) : NULL;
}

char *graph_strdup(struct graph *graph, const char *text)
{
	return graph_strndup(graph, text, strlen(text));
}

char *graph_format(struct graph *graph, const char *format, ...)
{
	char text[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	return graph_strdup(graph, text);
}

void *graph_grow(struct graph *graph, void *array, uint32_t n, size_t element)
{
	void *moved;

	if (n & (n - 1)) {
		memset((char *)array + n * element, 0, element);
		return array;
	}
	moved = graph_alloc(graph, (n ? (size_t)n * 2 : 1) * element);
	if (moved && n)
		memcpy(moved, array, n * element);
	return moved;
}
