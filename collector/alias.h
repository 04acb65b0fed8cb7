/* alias.h - which results of an op share memory with which of its arguments, from its two events. */
#ifndef TERRA_COLLECTOR_ALIAS_H
#define TERRA_COLLECTOR_ALIAS_H

#include "collector/trace.h"

/* Of two tensors; larger is closer, but for UNKNOWN. */
enum terra_alias {
	TERRA_ALIAS_NONE,
	TERRA_ALIAS_UNKNOWN, /* a storage could not be read */
	TERRA_ALIAS_STORAGE, /* one storage: a view, or what is left of one */
	TERRA_ALIAS_SAME,    /* one tensor: an op that writes to its argument, or that has nothing to do */
};

/* Both must live at the same time, or have lived during one op: addresses are given out again. Tensors without a storage
 * (undefined, empty of a kind that has none) share none. */
enum terra_alias terra_alias_of(const struct terra_tensor *a, const struct terra_tensor *b);

/* One pair that shares memory, or may. Elements of values that are no lists are 0. */
struct terra_alias_pair {
	uint32_t result, result_element;
	uint32_t argument, argument_element;
	uint8_t alias; /* enum terra_alias, not NONE */
};

/* All pairs of an op's OP_ENTER and OP_EXIT, results first. Fills at most `most` of *pairs and returns how many there are.
 * Arguments are as they were at the enter: an op that gives its argument another storage (set_, resize_) is seen by its
 * result's being the SAME tensor. Elements of a list that were not recorded are in no pair. */
uint32_t terra_alias_pairs(const struct terra_event *enter, const struct terra_event *exit, struct terra_alias_pair *pairs,
			   uint32_t most);

#endif
