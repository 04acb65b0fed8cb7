/* op.h - the contract for "op": one dispatcher entry point of libtorch and the ABI of its arguments.
 *
 * An op table is derived from the ELF file of the libtorch found in the target: every exported
 * `at::_ops::<op>::call` and `at::_ops::<op>::redispatch`, whose mangled names encode the C++ argument types.
 * From the types follows where the System V AMD64 ABI puts each argument. Nothing here depends on a PyTorch
 * version; a type that is not known is TERRA_KIND_OPAQUE and, when its ABI class is not known either, every
 * argument behind it is opaque too (place TERRA_PLACE_UNKNOWN), so that nothing is ever misread.
 */
#ifndef TERRA_PROBES_OP_H
#define TERRA_PROBES_OP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum terra_level {
	TERRA_LEVEL_CALL = 0,       /* at::_ops::X::call: enters the dispatcher at the highest key */
	TERRA_LEVEL_REDISPATCH = 1, /* at::_ops::X::redispatch: first argument is the DispatchKeySet */
};

/* What a C++ parameter type means. Names follow the schema language where it has a word. */
enum terra_kind {
	TERRA_KIND_OPAQUE = 0,
	TERRA_KIND_TENSOR,        /* at::Tensor const& or at::Tensor&: pointer to an 8-byte TensorImpl pointer */
	TERRA_KIND_OPT_TENSOR,    /* std::optional<at::Tensor> const& */
	TERRA_KIND_TENSOR_LIST,   /* c10::ArrayRef<at::Tensor> by value: {Tensor const *data; size_t length} */
	TERRA_KIND_ITENSOR_LIST,  /* c10::IListRef<at::Tensor> const& */
	TERRA_KIND_OPT_TENSOR_LIST, /* c10::List<std::optional<at::Tensor>> const& */
	TERRA_KIND_SCALAR,        /* c10::Scalar const& */
	TERRA_KIND_OPT_SCALAR,    /* std::optional<c10::Scalar> const& */
	TERRA_KIND_SCALAR_LIST,   /* c10::ArrayRef<c10::Scalar> */
	TERRA_KIND_INT,           /* int64_t */
	TERRA_KIND_OPT_INT,
	TERRA_KIND_INT_LIST,      /* c10::ArrayRef<int64_t> */
	TERRA_KIND_OPT_INT_LIST,  /* c10::OptionalArrayRef<int64_t> */
	TERRA_KIND_SYMINT,        /* c10::SymInt, passed by pointer (not trivially copyable) */
	TERRA_KIND_OPT_SYMINT,
	TERRA_KIND_SYMINT_LIST,
	TERRA_KIND_OPT_SYMINT_LIST,
	TERRA_KIND_DOUBLE,
	TERRA_KIND_OPT_DOUBLE,
	TERRA_KIND_DOUBLE_LIST,   /* c10::ArrayRef<double> */
	TERRA_KIND_OPT_DOUBLE_LIST, /* std::optional<c10::ArrayRef<double>> */
	TERRA_KIND_BOOL,
	TERRA_KIND_OPT_BOOL,
	TERRA_KIND_BOOL_ARRAY,    /* std::array<bool, N>; count in terra_arg.count */
	TERRA_KIND_STRING,        /* c10::string_view / std::string_view by value: {length, pointer} */
	TERRA_KIND_OPT_STRING,
	TERRA_KIND_DTYPE,         /* c10::ScalarType */
	TERRA_KIND_OPT_DTYPE,
	TERRA_KIND_LAYOUT,
	TERRA_KIND_OPT_LAYOUT,
	TERRA_KIND_DEVICE,        /* c10::Device {int8 type, int8 index} */
	TERRA_KIND_OPT_DEVICE,
	TERRA_KIND_MEMORY_FORMAT,
	TERRA_KIND_OPT_MEMORY_FORMAT,
	TERRA_KIND_GENERATOR,     /* std::optional<at::Generator>, passed by pointer */
	TERRA_KIND_STORAGE,
	TERRA_KIND_KEYSET,        /* c10::DispatchKeySet (64 bits), first argument of redispatch */
	TERRA_KIND_COUNT
};

enum terra_place {
	TERRA_PLACE_UNKNOWN = 0,
	TERRA_PLACE_GPR,    /* integer registers index .. index + words - 1, in order rdi rsi rdx rcx r8 r9 */
	TERRA_PLACE_SSE,    /* xmm register number index */
	TERRA_PLACE_STACK,  /* `offset` bytes above the return address' end (i.e. rsp + 8 + offset at entry) */
	TERRA_PLACE_GPR_SSE, /* optional<double> split: payload in xmm `index`, word with the flag in GPR `index2` */
};

struct terra_arg {
	uint8_t kind;    /* enum terra_kind */
	uint8_t place;   /* enum terra_place */
	uint8_t index;   /* register number within its class */
	uint8_t index2;  /* second register number (TERRA_PLACE_GPR_SSE) */
	uint8_t words;   /* 8-byte words taken: 1 or 2 by value, 3 for an optional of a two-word type (always on the
			  * stack), 1 for a pointer */
	uint8_t count;   /* elements of a BOOL_ARRAY, else 0 */
	uint8_t by_ref;  /* 1: the word is a pointer to the object, 0: the object itself */
	uint8_t is_mutable; /* 1: the op writes to it: non-const reference, or marked so in the schema (Tensor(a!)[]) */
	uint16_t offset; /* stack offset in bytes (TERRA_PLACE_STACK) */
};

/* Objects in memory or split over words: std::optional<T> is the payload, then one byte 1 (engaged) or 0; so
 * optional<bool>, <ScalarType>, <Layout>, <MemoryFormat>: byte 0 value, byte 1 engaged; optional<Device>: type, index,
 * engaged; optional<int64_t> and <double>: second word's low byte; optional<ArrayRef> and OptionalArrayRef: {pointer,
 * length, engaged}. Bytes of a register above those an object uses are undefined.
 */

/* What the op returns. Return types are not in mangled names: see probes/returns.c for how it is derived. */
enum terra_return {
	TERRA_RET_UNKNOWN = 0,
	TERRA_RET_VOID,
	TERRA_RET_TENSOR,      /* through the hidden sret pointer (rdi), 8 bytes */
	TERRA_RET_TENSOR_REF,  /* in-place and out ops: a reference to an argument, in rax */
	TERRA_RET_TENSORS,     /* tuple of `n_returns` tensors through sret, last element stored first */
	TERRA_RET_TENSOR_LIST, /* std::vector<at::Tensor> through sret */
	TERRA_RET_VALUE,       /* something else by value in registers (int64, bool, double, ScalarType) */
	TERRA_RET_OTHER_SRET,  /* something else through sret (Scalar, Storage, string, a mixed tuple) */
	TERRA_RET_TENSOR_REFS, /* out ops with several outputs: tuple of `n_returns` Tensor references through sret,
				* last first; each word points to the caller's Tensor */
};

#define TERRA_MAX_ARGS 32

struct terra_op {
	const char *name;     /* "aten::mul"; without a schema the class name "mul_Tensor"; owned by the table */
	const char *overload; /* "Tensor", "" for the default overload and without a schema; owned by the table */
	uint64_t address;     /* symbol value (virtual address in the ELF file) */
	uint64_t file_offset; /* offset in the file, for uprobes */
	uint64_t size;        /* symbol size in bytes */
	uint8_t level;        /* enum terra_level */
	uint8_t ret;          /* enum terra_return */
	uint8_t n_returns;    /* tensors of TERRA_RET_TENSORS, else 0 */
	uint8_t has_sret;     /* 1: rdi is the hidden result pointer and arguments start at rsi; 0xff unknown */
	uint8_t n_args;
	uint8_t complete;     /* 1: every argument has a known place and kind */
	struct terra_arg args[TERRA_MAX_ARGS];
	uint8_t composite;    /* level call only. 1: it only calls other ops ("composite implicit"); see composite.h */
	const char *mangled;  /* full symbol name; owned by the table */
	const char *schema;   /* "mul.Tensor(Tensor self, Tensor other) -> Tensor", NULL: none found; likewise */
};

/* Which entry points to record: bits 1 << enum terra_level for all of a level, or this one for what programs do: the calls
 * of all ops but the composite ones, whose parts are recorded anyway. */
#define TERRA_LEVELS_OPS 4u

static inline bool terra_op_chosen(const struct terra_op *op, uint32_t levels)
{
	return levels >> op->level & 1 || (levels & TERRA_LEVELS_OPS && op->level == TERRA_LEVEL_CALL && !op->composite);
}

/* The outer of the levels that are recorded: neither Python code nor autograd runs between an op's call and its redispatch, so
 * that what they say is asked for there alone. */
static inline enum terra_level terra_outer_level(uint32_t levels)
{
	return levels & (1u << TERRA_LEVEL_CALL | TERRA_LEVELS_OPS) ? TERRA_LEVEL_CALL : TERRA_LEVEL_REDISPATCH;
}

/* The table of one library. Sorted by name, then overload, then level. */
struct terra_op_table {
	char *library;        /* path */
	uint8_t build_id[20];
	uint8_t build_id_size;
	uint32_t n_ops;
	struct terra_op *ops;
	void *storage;        /* private: backs the strings */
};

/* Builds the table from an ELF file (mapped read-only, never executed). Uses the cache keyed by build-id under
 * $XDG_CACHE_HOME/terra (or ~/.cache/terra) when `use_cache`. Returns 0 or -errno and, when `err` is not NULL,
 * a message of at most err_size bytes that says what to do. */
int terra_op_table_load(const char *path, bool use_cache, struct terra_op_table **out, char *err, size_t err_size);
void terra_op_table_free(struct terra_op_table *table);

/* NULL when there is none. `overload` "" is the default overload. A name without namespace means "aten::". */
const struct terra_op *terra_op_table_find(const struct terra_op_table *table, const char *name, const char *overload,
					   enum terra_level level);

/* The schema's name of argument `index` ("self"), "" when not known. Writes at most `size` bytes to `buffer`, which it
 * returns. The keyset of a redispatch is "keyset". */
const char *terra_op_argument_name(const struct terra_op *op, unsigned index, char *buffer, size_t size);

/* In the words of the schema language: "Tensor", "int[]?". */
const char *terra_kind_name(enum terra_kind kind);

#endif
