/* queue.h - private to queue.c, choose.c and match.c: the trie, instances on their way through it, and how an op binds to an
 * edge. */
#ifndef TERRA_REPLAY_QUEUE_H
#define TERRA_REPLAY_QUEUE_H

#include "replay/replay.h"

struct token {
	uint8_t type;   /* a letter, '#' or '-' as in plan.h */
	uint16_t index; /* of v, i, b and r */
	double number;    /* of '#', and what 's' holds now */
	const char *text; /* of '#': quoted text, else unused */
};

struct edge { /* an op that some region has at this place */
	uint32_t op;
	uint8_t n_args;
	bool by_rows;
	struct token arg[TERRA_PLAN_MAX_ARGS];
	struct node *to;
	struct terra_plan_region *single;           /* fallback kernel for this op alone */
	uint8_t single_input[TERRA_PLAN_MAX_ARGS];  /* input number in the fallback's form */
};

struct node {
	struct edge *edges;
	uint32_t n_edges;
	struct terra_plan_region *region; /* ends here, or NULL */
};

struct instance {
	const struct node *node;
	const struct terra_plan_region *accepted; /* longest region that ended on the way, or NULL */
	uint8_t accepted_ops;
	uint8_t n_ops, n_inputs, n_scalars;
	bool open;        /* may still grow */
	bool listed;      /* began with a part of an op on a list */
	uint32_t element; /* for this one of the list's tensors */
	bool wave_start;  /* ordered behind an earlier instance: runs after everything before it */
	uint32_t mxcsr;   /* when its ops were issued */
	uint64_t place;   /* where it began (place.h) */
	int64_t numel;
	int64_t columns;  /* of its ops that go by rows, 0: none yet */
	const struct edge *edge[TERRA_PLAN_MAX_OPS];
	uint8_t scalar_at[TERRA_PLAN_MAX_OPS]; /* scalars before op k */
	void *result[TERRA_PLAN_MAX_OPS];
	void *store[TERRA_PLAN_MAX_OPS];       /* result, NULL where nobody will read it */
	void *input[TERRA_PLAN_MAX_INPUTS];
	bool full[TERRA_PLAN_MAX_INPUTS];
	int64_t input_span[TERRA_PLAN_MAX_INPUTS]; /* elements from the first to the last one used, plus one */
	struct terra_strided strided[TERRA_PLAN_MAX_INPUTS];
	double scalar[TERRA_PLAN_MAX_SCALARS];
};

struct binding { /* what each argument of the op is, seen from the instance */
	struct token token[TERRA_PLAN_MAX_ARGS];
	struct terra_strided strided[TERRA_PLAN_MAX_ARGS];
	int64_t span[TERRA_PLAN_MAX_ARGS];
};

struct waiting { /* instances, in the order in which they will run */
	struct instance *instances;
	uint32_t n;
	struct instance *growing; /* the last one, when it may still grow and did not begin in a list; else NULL */
	struct {
		const char *begin, *end; /* words of the tensors that the last op on a list is for */
		bool seen;               /* some instance began in one */
		uint32_t n_open;         /* of those instances */
	} lists;
	bool due; /* enough waits: a flush at the next op, when what made the last results has freed what it needs no more */
};
extern struct waiting waiting; /* queue.c */

struct choice {
	const struct edge *edge; /* NULL: none; the op runs at once */
	struct instance *inst;   /* NULL: a new one */
	bool listed;             /* the op is part of an op on a list */
	uint32_t element;        /* for which of the list's tensors */
	struct binding binding;
};

/* choose.c */
void choose(const struct call *call, uint64_t place, struct choice *choice);
/* An op was taken: instances that it, being in a list or not, shows to be at their end. */
void choose_closes_others(bool listed);
/* It began with a part of an op on a list. */
void instance_begins_list(struct instance *inst, uint32_t element);
/* It will not grow any more. */
void instance_close(struct instance *inst);

static inline size_t op_bytes(const struct call *call)
{
	return (size_t)call->numel * sizeof(float);
}

const struct node *match_root(void);
/* The edge that the op takes from where the instance stands (NULL: from the root), with its binding; NULL: none. */
const struct edge *match_edge(const struct instance *inst, const struct call *call, struct binding *binding);

#endif
