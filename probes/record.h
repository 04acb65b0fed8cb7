/* record.h - the raw record: what a backend (BPF program, preload library) hands to the consumer.
 *
 * One contract for both sides; compiles as BPF C and as user-space C. A record is a header and, for ENTER, EXIT and
 * FUNCTION, a stream of packed values. A record that outgrows a chunk goes on in further ones: same type, op, tid and sp,
 * `chunk` counting up, TERRA_RECORD_MORE set on all but the last. All sizes are multiples of 8, all integers little-endian.
 *
 * Losses: every chunk that a producer (a CPU for BPF, a thread for preload) makes gets the producer's next `seq`, also
 * when there is no room for it, but for the chunks behind a lost one of the same record. A gap is a loss, and its size the
 * number of records lost.
 */
#ifndef TERRA_PROBES_RECORD_H
#define TERRA_PROBES_RECORD_H

#ifndef __bpf__
#include <stdint.h>
#include <string.h>
#endif

#include "probes/op.h"

/* Chunk buffers are TERRA_CHUNK_SIZE bytes plus a slack that masked writes may touch. */
#define TERRA_CHUNK_SIZE 16384
#define TERRA_CHUNK_SLACK 1024
#define TERRA_CHUNK_BUFFER (TERRA_CHUNK_SIZE + TERRA_CHUNK_SLACK)

enum terra_record_type {
	TERRA_RECORD_ENTER = 1,
	TERRA_RECORD_EXIT = 2,
	TERRA_RECORD_FUNCTION = 4, /* `op` is an index into terra_functions (probes/functions.h) */
	TERRA_RECORD_CATCH = 5, /* the handler of an exception begins (probes/catches.h): ops of the thread whose sp is at or
				 * below the record's were left by it. No values */
	TERRA_RECORD_LOST = 3, /* keyset field: how many records were lost that no seq accounts for */
};

enum terra_record_flag {
	TERRA_RECORD_MORE = 1, /* the record goes on in this producer's next chunk */
};

struct terra_record {
	uint32_t size;  /* bytes of this chunk, header included */
	uint8_t type;   /* enum terra_record_type */
	uint8_t level;  /* enum terra_level */
	uint8_t flags;  /* enum terra_record_flag */
	uint8_t unused;
	uint32_t op;    /* index into the op table */
	uint32_t tid;
	uint32_t producer;
	uint32_t chunk; /* 0 for the first of a record */
	uint64_t seq;
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	uint64_t sp;      /* ENTER: stack pointer at the op's first instruction, where the return address lies.
			   * EXIT: the same value. It pairs the two. FUNCTION, CATCH: likewise, at the function's. */
	uint64_t return_address; /* ENTER: the word at sp; 0 when it could not be read */
	uint64_t keyset;  /* redispatch ENTER only */
};

enum terra_packed_flag {
	TERRA_PACKED_UNREADABLE = 1, /* no payload: the value could not be read (a double that BPF finds in a register only, an
				      * opaque type, memory that is not there) */
	TERRA_PACKED_CONTINUED = 2,  /* more elements of the list that the last chunk ended in */
};

/* Not an argument: the Python call stack, `recorded` words, innermost frame first, as collector/pystack_layout.h packs a
 * frame into two or three. A last frame without a code object says that frames further out are missing. */
#define TERRA_PACKED_FRAMES 0xfe

/* Not an argument: autograd's words. ENTER, at the outermost recorded level: the number that the thread's next Node gets,
 * then, when the engine evaluates a Node on this thread, its address and its number. EXIT: address and number of the first
 * result's grad_fn. A Node is known by both: its address may have been another's before. */
#define TERRA_PACKED_NODE 0xfd

/* Header of a packed value; `bytes` bytes of payload follow:
 *   tensors       struct terra_packed_tensor each, cut after its last dimension
 *   INT_LIST...   int64_t each (SYMINT_LIST, BOOL_ARRAY too); DOUBLE_LIST double each
 *   SCALAR, SCALAR_LIST   struct terra_packed_scalar each
 *   STRING        the bytes, padded to a multiple of 8
 *   other kinds   one int64_t or double
 * An absent optional has no payload. */
struct terra_packed {
	uint8_t kind;      /* enum terra_kind, TERRA_PACKED_FRAMES or TERRA_PACKED_NODE */
	uint8_t present;
	uint8_t flags;     /* enum terra_packed_flag */
	uint8_t unused;
	uint32_t count;    /* elements that the list has, bytes of a string */
	uint32_t recorded; /* elements in this piece */
	uint32_t bytes;
};

enum terra_packed_tensor_flag {
	TERRA_TENSOR_NO_STORAGE = 1,  /* storage, storage_data, storage_bytes were not readable */
	TERRA_TENSOR_NO_GEOMETRY = 2, /* ndim, sizes, strides, numel or offset were not readable */
};

struct terra_packed_tensor {
	uint64_t impl;
	uint64_t storage;
	uint64_t storage_data;
	uint64_t storage_bytes;
	int64_t numel;
	int64_t storage_offset;
	uint8_t ndim;     /* of the tensor, at most 255 */
	int8_t dtype;
	int8_t device_type;
	int8_t device_index;
	uint8_t requires_grad; /* 0xff unknown */
	uint8_t defined;
	uint8_t dims;     /* recorded: at most TERRA_PACKED_DIMS */
	uint8_t flags;
	int64_t geometry[]; /* dims sizes, then dims strides */
};

#define TERRA_PACKED_DIMS 8 /* as TERRA_MAX_DIM in collector/trace.h */
#define TERRA_PACKED_STRING 248

struct terra_packed_scalar {
	uint64_t tag; /* as scalar_tag in collector/trace.h */
	uint64_t value[2];
};

/* The registers of an op's entry or exit. */
struct terra_regs {
	uint64_t gpr[8]; /* rdi rsi rdx rcx r8 r9, two unused */
	uint64_t xmm[8]; /* low halves */
	uint64_t sp;
	uint64_t rax;    /* exit only */
	uint64_t has_xmm; /* bit per xmm register that could be read */
};

/* What decoding needs to know of an op: struct terra_op without its pointers, for a BPF array map. */
struct terra_op_layout {
	uint8_t level;
	uint8_t ret;
	uint8_t n_returns;
	uint8_t n_args;
	uint8_t has_exit; /* 1: every normal way out makes an EXIT record, so an op without one was left by an exception;
			   * 0: it may leave by a tail jump that nobody sees */
	uint8_t ret_kind; /* enum terra_kind of TERRA_RET_VALUE and TERRA_RET_OTHER_SRET where it can be read, else 0 */
	uint8_t unused[2];
	struct terra_arg args[TERRA_MAX_ARGS];
};

#ifndef __bpf__
/* From "name(arguments) -> type". */
static inline uint8_t terra_return_kind(const struct terra_op *op)
{
	static const struct {
		const char *type;
		uint8_t ret, kind;
	} types[] = {
		{ "Scalar", TERRA_RET_OTHER_SRET, TERRA_KIND_SCALAR }, { "SymInt", TERRA_RET_OTHER_SRET, TERRA_KIND_SYMINT },
		{ "int", TERRA_RET_VALUE, TERRA_KIND_INT },	       { "bool", TERRA_RET_VALUE, TERRA_KIND_BOOL },
		{ "float", TERRA_RET_VALUE, TERRA_KIND_DOUBLE },       { "ScalarType", TERRA_RET_VALUE, TERRA_KIND_DTYPE },
	};
	const char *arrow = op->schema ? strstr(op->schema, ") -> ") : NULL;

	for (unsigned int i = 0; arrow && i < sizeof(types) / sizeof(types[0]); i++)
		if (types[i].ret == op->ret && strcmp(arrow + 5, types[i].type) == 0)
			return types[i].kind;
	return TERRA_KIND_OPAQUE;
}

static inline struct terra_op_layout terra_op_layout(const struct terra_op *op, int has_exit)
{
	struct terra_op_layout layout = { .level = op->level, .ret = op->ret, .n_returns = op->n_returns,
					  .n_args = op->n_args, .has_exit = has_exit != 0,
					  .ret_kind = terra_return_kind(op) };

	for (unsigned int i = 0; i < op->n_args && i < TERRA_MAX_ARGS; i++)
		layout.args[i] = op->args[i];
	return layout;
}
#endif

#endif
