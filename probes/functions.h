/* functions.h - functions of libtorch that are no ops but that a trace tells of: those through which the program reads a
 * tensor's memory itself, and those that run ops past the typed entry points.
 *
 * They are known by name only. One that a library does not have, or that a backend cannot see, is a gap, which
 * terra_functions_gap puts into words for the trace.
 */
#ifndef TERRA_PROBES_FUNCTIONS_H
#define TERRA_PROBES_FUNCTIONS_H

#ifndef __bpf__
#include <stddef.h>
#include <stdint.h>
#endif

/* What the arguments say. */
enum terra_function_form {
	TERRA_FUNCTION_PLAIN,     /* nothing that is recorded */
	TERRA_FUNCTION_TENSOR,    /* first: at::Tensor const& */
	TERRA_FUNCTION_STORAGE,   /* first: c10::Storage const& */
	TERRA_FUNCTION_BYTES,     /* third and fourth: address and number of bytes */
	TERRA_FUNCTION_OPERATORS, /* second and third: array of shared_ptr<torch::jit::Operator>, and its length */
};

struct terra_function {
	const char *library; /* base name */
	const char *symbol;
	const char *what;    /* in a trace: how the memory is read, or the ops are run */
	uint8_t reads;       /* 1: reads memory; 0: runs ops */
	uint8_t form;        /* enum terra_function_form */
};

#define TERRA_N_FUNCTIONS 12
extern const struct terra_function terra_functions[TERRA_N_FUNCTIONS];

#ifndef __bpf__
#include <stdbool.h>

/* The libtorch library beside the libtorch_cpu.so at `libtorch`. 0 or -ENAMETOOLONG. */
int terra_functions_library(const char *libtorch, const char *name, char *path, size_t size);

/* offsets[i]: place in its file of function i, for those in the library `name` at `path`; others are left alone. Symbols
 * of functions that are not exported are looked at too. Returns how many were found, or -errno. */
int terra_functions_find(const char *path, const char *name, bool use_cache, uint64_t *offsets);

enum terra_function_seen {
	TERRA_FUNCTION_ABSENT, /* the library has no such symbol */
	TERRA_FUNCTION_SEEN,
	TERRA_FUNCTION_UNSEEN, /* it is there, but calls of it are not seen */
};

/* What of `what` is not seen, or not on all its ways, in words for people; "" when all is. `seen` has an enum
 * terra_function_seen for each function. */
void terra_functions_gap(const uint8_t *seen, char *out, size_t size);
#endif

#endif
