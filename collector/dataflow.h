/* dataflow.h - which op made what another op reads: the last writer of each storage, through views and in-place
 * updates.
 *
 * Storages are whole: who writes a part of one is the writer of all of it. Addresses are used again, so a result in a
 * storage that no argument has begins a new value there, and so does a storage that is found with another size or place
 * than before.
 *
 * A trace does not say which arguments an op writes. It follows from what it does say:
 *  - an op with an in-place name (one trailing underscore, or Python's __iadd__ and its like) writes those arguments
 * that it returns; when it returns nothing, its first argument, of _foreach_ ops the first list, of _fused_ ops all
 * lists (where the first argument could not be read, as with c10d::allgather_'s list of lists, none is known);
 *  - an op whose results are its last arguments, not counting its first one, is an out variant and writes those;
 *  - a result that shares its storage with an argument otherwise is a view, and nothing is written.
 * So what an op writes without returning it (batch norm's running mean) is not known. What ops inside an op write, the
 * outermost one of them has written.
 */
#ifndef TERRA_COLLECTOR_DATAFLOW_H
#define TERRA_COLLECTOR_DATAFLOW_H

#include <stdbool.h>

#include "collector/trace.h"

#define TERRA_DATAFLOW_NONE UINT64_MAX

struct terra_dataflow_ref; /* private */

/* What one call got, from its enter to its exit. Zeros to begin with. */
struct terra_dataflow_call {
	struct terra_dataflow_ref *refs;
	uint32_t n_refs;
	uint64_t begin;
	bool cut; /* some tensors of its lists are not in the trace */
};

/* Numbers are given in order of appearance, from 1, and never again. */
struct terra_dataflow_ids {
	uint64_t tensor;
	uint64_t storage;
	uint64_t
	    producer; /* as given to terra_dataflow_exit; TERRA_DATAFLOW_NONE: not known, as for what was made before */
};

struct terra_dataflow;

struct terra_dataflow *terra_dataflow_new(void);
void terra_dataflow_free(struct terra_dataflow *flow);

/* The event is an OP_ENTER. Returns 0 or -ENOMEM; the call is to be ended by exit or dropped in any case. */
int terra_dataflow_enter(struct terra_dataflow *flow, const struct terra_event *event,
			 struct terra_dataflow_call *call);
/* The event is the OP_EXIT of that call; `writer` is who made its results. Returns 0 or -ENOMEM. */
int terra_dataflow_exit(struct terra_dataflow *flow, struct terra_dataflow_call *call, const struct terra_event *event,
			uint64_t writer);
/* The call whose exit is not in the trace, or whose enter is not (NULL): nothing is known any more. */
void terra_dataflow_drop(struct terra_dataflow *flow, struct terra_dataflow_call *call);
/* Events are missing here: who wrote what is not known any more. */
void terra_dataflow_forget(struct terra_dataflow *flow);

/* What is known of a defined tensor, which gets numbers when it has none. Returns 0 or -ENOMEM. */
int terra_dataflow_look(struct terra_dataflow *flow, const struct terra_tensor *tensor, struct terra_dataflow_ids *ids);

/* The tensors of a value, which may be none. */
const struct terra_tensor *terra_value_tensors(const struct terra_value *value, uint32_t *n);

#endif
