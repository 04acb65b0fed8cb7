/* graph.h - the TraceGraph of one iteration, and the passes that turn it into regions.
 *
 * Like a compiler's intermediate form it has a text form (graph_text.c, described in graphopt/README.md): every pass
 * can be run on text and its result printed, so each is tested alone. A graph owns everything it points to
 * (graph_alloc).
 */
#ifndef TERRA_GRAPHOPT_GRAPH_H
#define TERRA_GRAPHOPT_GRAPH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "graphopt/plan.h"

#define GRAPH_MAX_DIM 8
#define GRAPH_NONE UINT32_MAX

/* A tensor as one op saw it. Memory is an address in the trace; the values pass names it by storage and version. */
struct graph_tensor {
	uint64_t address; /* of the storage's first byte; 0: unknown or undefined */
	uint64_t bytes;	  /* of the storage */
	uint32_t storage; /* number of the storage, GRAPH_NONE before the values pass */
	uint32_t version; /* counts the in-place writes to the storage */
	int64_t offset;	  /* elements from the storage's start */
	int64_t numel;
	int64_t size[GRAPH_MAX_DIM];
	int64_t stride[GRAPH_MAX_DIM];
	uint8_t ndim;
	char dtype[8]; /* "f32", "i64", ...; "?" when it is none of those with a name here */
};

enum graph_arg_kind {
	GRAPH_ABSENT, /* an absent optional, or an undefined tensor */
	GRAPH_TENSOR,
	GRAPH_TENSORS, /* a list of them */
	GRAPH_NUMBER,  /* Scalar or double */
	GRAPH_CONST,   /* int or bool: `text` in decimal; string: `text` in quotes; list of ints: `text` is [1,2] */
	GRAPH_OTHER,   /* whatever else: it may hold tensors that are not seen here */
};

struct graph_arg {
	uint8_t kind;
	uint32_t n; /* TENSOR: 1; TENSORS: how many */
	struct graph_tensor *tensor;
	double number;
	const char *text;
};

enum graph_class {
	GRAPH_UNKNOWN, /* before the kinds pass */
	GRAPH_FUSIBLE, /* has a rule and may be part of a region */
	GRAPH_PASSIVE, /* neither reads nor writes data: passes between the ops of a region */
	GRAPH_SMALL,   /* only touches tensors too small to be deferred: likewise */
	GRAPH_STOP,    /* ends a run; `reason` says why */
};

struct graph_op {
	const char *name; /* "aten::mul.Tensor" */
	uint32_t n_args;
	struct graph_arg *args;
	uint32_t n_results; /* tensors; an in-place op's result is its first argument */
	struct graph_tensor *results;
	bool plain_keys; /* dispatched with the backend's own keys and no other functionality */
	bool call_only;	 /* reached its kernel without redispatch: replay does not see it */
	const char *list; /* "aten::_foreach_mul_.Scalar": the op on a list that issued it for one of its tensors, or NULL */
	bool raised;
	uint64_t ns;	  /* traced duration, tracing included */
	const char *file; /* innermost Python frame; "" without stacks */
	const char *function;
	int32_t line;
	uint8_t class;	    /* enum graph_class */
	const char *reason; /* of GRAPH_STOP, else NULL */
};

struct graph_value { /* made by the liveness pass: one version of one storage */
	uint32_t storage;
	uint32_t version;
	uint32_t made; /* op that wrote it; GRAPH_NONE: a feed, it was there before the iteration */
	uint32_t last; /* last op that reads it; GRAPH_NONE: none in this iteration */
	bool fetched;  /* the host reads it (item and the like) */
	bool lives_on; /* newest version of memory that was there before the iteration: the next one reads it */
};

struct graph_region {
	struct terra_plan_op *lines; /* canonical */
	uint32_t n_ops;
	const char *name;
	int64_t numel;		   /* largest domain */
	uint32_t count;		   /* instances in the iteration */
	uint32_t *at;		   /* count * n_ops op numbers */
	int64_t *domain;	   /* per instance */
	double saved_bytes;	   /* cost pass: memory traffic saved, all instances */
	double gain;		   /* cost pass: expected; check: measured */
	double eager_ns, fused_ns; /* check, at numel, one instance */
	const char *dropped;	   /* why it is not used, or NULL */
};

struct graph_stop { /* why a run ended: op and how many runs of the iteration it ended */
	uint32_t op;
	const char *reason;
};

struct graph_chunk;

struct graph {
	const char *after; /* name of the last pass that ran: "build" */
	const char *build_id;
	const char *library;
	const char *source; /* trace and command */
	uint32_t threads;
	uint64_t iterations; /* found in the trace, and which one this is */
	uint64_t iteration;
	uint32_t n_ops;
	struct graph_op *ops;
	uint32_t n_storages; /* values pass */
	uint32_t n_values;
	struct graph_value *values;
	uint32_t n_regions;
	struct graph_region *regions;
	uint32_t n_stops;
	struct graph_stop *stops;
	struct graph_chunk *chunks;
};

/* ---- graph_alloc.c: memory that lives as long as the graph ---- */
struct graph *graph_new(void);
void graph_free(struct graph *graph);
/* Zeroed; NULL without memory. */
void *graph_alloc(struct graph *graph, size_t size);
char *graph_strndup(struct graph *graph, const char *text, size_t n);
char *graph_strdup(struct graph *graph, const char *text);
char *graph_format(struct graph *graph, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Room for one more element behind n (capacities are powers of two, so n alone says when to move). The new element is
 * zeroed; the caller counts it. NULL without memory. */
void *graph_grow(struct graph *graph, void *array, uint32_t n, size_t element);

/* ---- graph_text.c, graph_read.c: the text form ---- */
int graph_print(const struct graph *graph, FILE *out);
/* Returns 0 or -errno with a message that names the line. */
int graph_read(const char *text, struct graph **out, char *err, size_t err_size);
void graph_print_tensor(const struct graph_tensor *tensor, FILE *out);

/* ---- graph_build.c: from a trace ---- */
/* Returns 0, -ENODATA when no iteration repeats, or another -errno with a message. */
int graph_build(const char *trace_path, struct graph **out, char *err, size_t err_size);

/* ---- graph_tensor.c: what the passes ask of tensors ---- */
size_t graph_dtype_size(const char *dtype); /* 0: unknown */
bool graph_tensor_contiguous(const struct graph_tensor *tensor);
/* Bytes of the storage from the first to the last element that the tensor reaches: [*begin, *end). */
void graph_tensor_range(const struct graph_tensor *tensor, uint64_t *begin, uint64_t *end);
/* The broadcast shape of all tensor arguments but those with letter r (oprules.h). False: they do not broadcast. */
bool graph_op_domain(const struct graph_op *op, const char *letters, uint8_t *ndim, int64_t size[GRAPH_MAX_DIM]);
/* A tensor that is passed as a number (token s): one element, of a type that a double holds. */
bool graph_tensor_is_number(const struct graph_tensor *tensor);
/* All elements of the domain in C order. */
bool graph_tensor_is_full(const struct graph_tensor *tensor, uint8_t ndim, const int64_t size[GRAPH_MAX_DIM]);

/* ---- passes ---- */
struct graph_pass {
	const char *name;
	const char *what; /* one line for --passes */
	bool carries;	  /* those behind it work on what it finds: left out, so are they, and no region is there */
	int (*run)(struct graph *graph, char *err, size_t err_size);
};

int pass_values(struct graph *graph, char *err, size_t err_size);   /* pass_values.c */
int pass_liveness(struct graph *graph, char *err, size_t err_size); /* pass_liveness.c */
int pass_kinds(struct graph *graph, char *err, size_t err_size);    /* pass_kinds.c */
int pass_inplace(struct graph *graph, char *err, size_t err_size);
int pass_passive(struct graph *graph, char *err, size_t err_size);
int pass_small(struct graph *graph, char *err, size_t err_size);
int pass_regions(struct graph *graph, char *err, size_t err_size); /* regions.c */
int pass_cost(struct graph *graph, char *err, size_t err_size);	   /* pass_cost.c */

/* All of them in order; NULL-terminated by a NULL name. */
extern const struct graph_pass graph_passes[];
const struct graph_pass *graph_pass_find(const char *name);
/* Runs the passes that come behind graph->after, up to `last` (NULL: all), leaving out those named in `disabled` (NULL,
 * or NULL-terminated), and all behind one of these that carries them. Each can be left out: the result is right without it, only
 * slower. Returns 0, -EINVAL for an unknown name, or what a pass returned. */
int graph_run_passes(struct graph *graph, const char *last, const char *const *disabled, char *err, size_t err_size);

/* passive.c: whether the op (with its overload) neither reads nor writes tensor data. The list, for plans. */
bool passive_op(const char *name);
const char *const *passive_list(size_t *n);

#endif
