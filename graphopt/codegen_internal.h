/* codegen_internal.h - what the files of the code generator share. */
#ifndef TERRA_GRAPHOPT_CODEGEN_INTERNAL_H
#define TERRA_GRAPHOPT_CODEGEN_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "graphopt/codegen.h"

/* The framework functions that the regions of one plan call, in the order of the plan's imports. */
struct codegen_imports {
	uint32_t n;
	char **names; /* malloc'ed, as the strings */
};

/* A region, its tokens resolved: what emission needs. */
enum codegen_token {
	CODEGEN_VALUE,
	CODEGEN_INPUT,
	CODEGEN_STRIDED,
	CODEGEN_COLUMNS,  /* r */
	CODEGEN_SCALAR,   /* s and f */
	CODEGEN_CONSTANT, /* # */
	CODEGEN_LAST_DIM, /* l */
	CODEGEN_ABSENT
};
struct codegen_arg {
	enum codegen_token token;
	uint32_t index; /* of the value, the input (i, b and r counted together), or the number */
};
struct codegen_op {
	const struct oprule *rule;
	uint32_t import; /* index into codegen_imports, when the op calls a function, for blocks or vectors */
	uint32_t run;	 /* ops of one run are computed in one loop; an op that is an import is a run of its own */
	bool stored;	 /* read from memory: by an import or by a later run */
	struct codegen_arg arg[TERRA_PLAN_MAX_ARGS];
};
struct codegen_region {
	const struct terra_plan_region *plan;
	uint32_t n_inputs;
	uint32_t n_scalars;
	bool by_rows;
	char letter[TERRA_PLAN_MAX_INPUTS]; /* i, b or r */
	struct codegen_op op[TERRA_PLAN_MAX_OPS];
};

/* Whether the op calls a function of the framework for a whole block: an inlined rule names one too, but has an expression for it. */
static inline bool codegen_calls(const struct codegen_op *op)
{
	return !op->rule->expr;
}

/* codegen_region.c. `options` may be NULL; `imports` grows by what the region calls. */
int codegen_resolve(const struct terra_plan_region *region, const struct codegen_options *options,
		    struct codegen_imports *imports, struct codegen_region *out, char *err, size_t err_size);
/* The index of a function among the imports, added when it is new. -ENOMEM. */
int codegen_import(struct codegen_imports *imports, const char *name, uint32_t *out);
void codegen_imports_free(struct codegen_imports *imports);

/* codegen_emit.c. Errors show in the stream. */
void codegen_emit_prelude(FILE *out);
/* By rows in codegen_rows.c, else in codegen_emit.c. */
void codegen_emit_region(const struct codegen_region *region, const char *symbol, FILE *out);

/* What a loop has in registers so far. */
struct codegen_loaded {
	bool input[TERRA_PLAN_MAX_INPUTS];
	bool value[TERRA_PLAN_MAX_OPS];
};
/* Loads a tensor argument that is not in a register yet. */
void codegen_emit_load(const struct codegen_arg *arg, bool part, struct codegen_loaded *loaded, FILE *out);
/* The op's value, computed in a loop over vectors (`part`: for the lanes of a mask). */
void codegen_emit_value(const struct codegen_region *region, uint32_t k, bool part, struct codegen_loaded *loaded, FILE *out);
/* `c`, an expression of op k's rule, whose arguments are loaded. */
void codegen_emit_expression(const struct codegen_region *region, uint32_t k, const char *c, FILE *out);
/* The loop over n elements that computes ops [from, to) and stores what is wanted. */
void codegen_emit_loop(const struct codegen_region *region, uint32_t from, uint32_t to, FILE *out);

/* codegen_rows.c */
void codegen_emit_rows(const struct codegen_region *region, FILE *out);

/* codegen_compile.c. *code is malloc'ed. */
int codegen_compile(const char *source, size_t size, const struct codegen_options *options, void **code,
		    size_t *code_size, char *err, size_t err_size);

/* Formats the message and returns `code`. */
int codegen_error(char *err, size_t err_size, int code, const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
