/* schema.h - operator schemas, read from the library's own text.
 *
 * libtorch registers every operator with a string such as
 *     add_.Tensor(Tensor(a!) self, Tensor other, *, Scalar alpha=1) -> Tensor(a!)
 * and these strings lie in its read-only data. They hold what a mangled name cannot: the exact split into name and
 * overload (the class add__Tensor is add_.Tensor), the argument names, what is written to, and the return type.
 */
#ifndef TERRA_PROBES_SCHEMA_H
#define TERRA_PROBES_SCHEMA_H

#include "probes/elf_file.h"
#include "probes/mangle.h"

#define TERRA_MAX_RETURNS 32

struct terra_schema {
	const char *text;    /* "add_.Tensor(...) -> ..." without namespace; NUL-terminated, in the ELF mapping */
	uint32_t name_size;  /* bytes of "add_" */
	uint32_t head_size;  /* bytes of "add_.Tensor": the class name is this with '.' as '_' */
	uint32_t text_size;
	bool prefixed;       /* the string had "aten::" before it: written for TorchScript, not for the dispatcher */
};

/* Sorted by class name. */
struct terra_schema_index {
	struct terra_schema *schemas;
	size_t n_schemas;
	size_t capacity;
	uint64_t work_left; /* bytes of text that may still be looked at: a hostile file can make every op agree with
			     * every schema */
};

struct terra_schema_type {
	char text[64];   /* without alias annotation and list lengths: "Tensor[]", "int[]?", "Scalar" */
	bool is_mutable; /* the annotation has a '!' */
};

struct terra_schema_argument {
	struct terra_schema_type type;
	const char *name;
	size_t name_size;
};

/* Collects every schema string of the file's read-only data, where its sections do not overlap. 0 or -ENOMEM. */
int terra_schema_index_build(const struct terra_elf *elf, struct terra_schema_index *index);
void terra_schema_index_free(struct terra_schema_index *index);

/* The one schema whose name gives the signature's class and whose arguments agree with its kinds. False when there is
 * none, when there are several that differ in name or return type, or when the index has been worked too hard. */
bool terra_schema_find(struct terra_schema_index *index, const struct terra_signature *signature,
		       struct terra_schema *out);

/* Iterates over arguments: *at starts at the text behind '(' and moves on. False at the end or at malformed text, with
 * *at on the closing ')' in the first case and NULL in the second. The "*" that starts keyword arguments is skipped. */
bool terra_schema_next_argument(const char **at, struct terra_schema_argument *out);

/* What is behind " -> "; NULL when malformed. */
const char *terra_schema_returns(const struct terra_schema *schema);

/* Fills op->ret, n_returns and has_sret from the text behind " -> ". See returns.c. */
void terra_returns_parse(const char *returns, struct terra_op *op);

#endif
