/* mangle.h - from the mangled name of an op entry point to the kinds of its arguments.
 *
 * Covers the part of the Itanium C++ ABI that parameter types of libtorch's ops use: builtin types, cv-qualifiers,
 * pointers and references, nested and std:: names, templates with type and integer arguments, substitutions. Anything
 * else ends the parse there: the arguments before it stand, the rest is one opaque argument.
 */
#ifndef TERRA_PROBES_MANGLE_H
#define TERRA_PROBES_MANGLE_H

#include "probes/op.h"

#define TERRA_GPR_COUNT 6 /* registers that arguments travel in */
#define TERRA_SSE_COUNT 8

/* How an argument travels (System V AMD64 ABI, 3.2.3). A two-word class goes into registers whole or not at all. */
enum terra_abi_class {
	TERRA_ABI_UNKNOWN = 0,
	TERRA_ABI_INTEGER,         /* one general register */
	TERRA_ABI_INTEGER_INTEGER, /* two general registers */
	TERRA_ABI_SSE,             /* one vector register */
	TERRA_ABI_SSE_INTEGER,     /* first word in a vector register, second in a general one */
	TERRA_ABI_MEMORY,          /* on the stack, by value */
};

struct terra_parameter {
	uint8_t kind;  /* enum terra_kind */
	uint8_t abi;   /* enum terra_abi_class */
	uint8_t words;
	uint8_t count; /* elements of a BOOL_ARRAY */
	uint8_t by_ref;
	uint8_t is_mutable;
};

struct terra_signature {
	const char *class_name; /* inside the mangled name: "add__Tensor" of at::_ops::add__Tensor::call */
	size_t class_size;      /* bytes of class_name; no terminator */
	uint8_t level;          /* enum terra_level */
	uint8_t n_parameters;
	bool whole;             /* every parameter was parsed; else the last one stands for the rest */
	struct terra_parameter parameters[TERRA_MAX_ARGS];
};

/* Returns 0; -ENOENT when `mangled` names no op entry point; -E2BIG for more than TERRA_MAX_ARGS parameters. */
int terra_mangle_parse(const char *mangled, struct terra_signature *out);

/* The parameter types of an op entry point in C++, each with a ';' behind it ("at::Tensor const&;double;"): two functions
 * take the same when the texts are equal. Returns 0; -ENOENT when `mangled` names something else; -ENOTSUP for a type
 * that is not parsed; -E2BIG when `size` does not suffice. */
int terra_mangle_spell_op(const char *mangled, char *types, size_t size);

/* The same of a function at::NAMESPACE::NAME; `name` points into `mangled`. */
int terra_mangle_spell_function(const char *mangled, const char *namespace, const char **name, size_t *name_size,
				char *types, size_t size);

/* Gives every argument of `op` its kind and place. `has_sret` 0xff (not known) leaves all places unknown, since the
 * hidden result pointer would shift them. Sets args, n_args, has_sret and complete. See places.c. */
void terra_places_assign(const struct terra_signature *signature, uint8_t has_sret, struct terra_op *op);

#endif
