/* A hash table with open addressing. Addresses are used again and again, so it grows to what lives at one time. */
#include "collector/nodes.h"

#include <errno.h>
#include <stdlib.h>

static struct node_entry *place_of(struct node_entry *entries, size_t capacity, uint64_t address)
{
	size_t at = (size_t)((address >> 4) * 0x9e3779b97f4a7c15u >> 20);

	while (entries[at & (capacity - 1)].address && entries[at & (capacity - 1)].address != address)
		at++;
	return &entries[at & (capacity - 1)];
}

static int grow(struct nodes *nodes)
{
	size_t capacity = nodes->capacity ? 2 * nodes->capacity : 1024;
	struct node_entry *entries = calloc(capacity, sizeof(*entries));

	if (!entries)
		return -ENOMEM;
	for (size_t i = 0; i < nodes->capacity; i++)
		if (nodes->entries[i].address)
			*place_of(entries, capacity, nodes->entries[i].address) = nodes->entries[i];
	free(nodes->entries);
	nodes->entries = entries;
	nodes->capacity = capacity;
	return 0;
}

int nodes_add(struct nodes *nodes, uint64_t address, uint64_t number, uint64_t enter_seq)
{
	struct node_entry *entry;

	if (!address)
		return 0;
	if (2 * (nodes->n + 1) > nodes->capacity && grow(nodes))
		return -ENOMEM;
	entry = place_of(nodes->entries, nodes->capacity, address);
	nodes->n += !entry->address;
	*entry = (struct node_entry){ .address = address, .number = number, .enter_seq = enter_seq };
	return 0;
}

uint64_t nodes_find(const struct nodes *nodes, uint64_t address, uint64_t number)
{
	const struct node_entry *entry = nodes->capacity ? place_of(nodes->entries, nodes->capacity, address) : NULL;

	return entry && entry->address == address && address && entry->number == number ? entry->enter_seq : UINT64_MAX;
}

void nodes_free(struct nodes *nodes)
{
	free(nodes->entries);
	*nodes = (struct nodes){ 0 };
}
