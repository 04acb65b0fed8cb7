/* trace.h - the contract for "trace": what a .terra file holds, as seen by programs that read or write one.
 *
 * The byte format is docs/trace-format.md. This header is the in-memory view: a reader that yields decoded op events
 * in program order per thread, and a writer that takes them. The header comes first in the file, blocks are
 * checksummed and independent, losses are records in the stream, and a clean end has a marker: a file cut anywhere is
 * readable up to the cut.
 */
#ifndef TERRA_COLLECTOR_TRACE_H
#define TERRA_COLLECTOR_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "probes/op.h"

#define TERRA_MAX_DIM 8 /* more dims: ndim is right, sizes and strides hold the first 8 */

struct terra_tensor {
	uint64_t impl;      /* TensorImpl address at the time: identity only while the tensor lives */
	uint64_t storage;   /* StorageImpl address, likewise; 0 when it could not be read */
	uint64_t data;      /* data pointer (storage data + storage_offset); 0 when it could not be read */
	uint64_t storage_data; /* base address of the storage; 0 when unknown */
	uint64_t storage_bytes;
	int64_t numel;
	int64_t storage_offset; /* elements */
	int64_t size[TERRA_MAX_DIM];
	int64_t stride[TERRA_MAX_DIM];
	uint8_t ndim;
	int8_t dtype;       /* c10::ScalarType as the library numbers it; -1 unknown */
	int8_t device_type; /* c10::DeviceType; -1 unknown */
	int8_t device_index;
	uint8_t requires_grad; /* 0, 1, or 0xff when it could not be read */
	uint8_t defined;    /* 0: an undefined tensor */
};

/* One argument or result. `kind` says which member holds the value. */
struct terra_value {
	uint8_t kind;       /* enum terra_kind */
	uint8_t present;    /* optionals: engaged; Generator: present; 1 for everything else that was read */
	uint8_t scalar_tag; /* SCALAR: 'f' double, 'i' int64, 'b' bool, 'z' complex, 's' symbolic, '?' unreadable */
	uint32_t count;     /* elements of a list; for a list longer than what was recorded, see `recorded` */
	uint32_t recorded;
	union {
		int64_t i;             /* INT, SYMINT, BOOL, DTYPE, LAYOUT, DEVICE (type << 8 | index), MEMORY_FORMAT */
		double d;              /* DOUBLE and SCALAR tagged 'f' */
		double z[2];           /* SCALAR tagged 'z' */
		struct terra_tensor *tensor;   /* TENSOR, OPT_TENSOR */
		struct terra_tensor *tensors;  /* *_LIST of tensors */
		int64_t *ints;                 /* INT_LIST, SYMINT_LIST, BOOL_ARRAY */
		double *doubles;               /* DOUBLE_LIST */
		struct terra_value *scalars;   /* SCALAR_LIST */
		char *string;                  /* STRING; `recorded` of `count` bytes and a terminator. Written
						  with `recorded` 0, it is taken as complete */
	} u;
};

enum terra_event_type {
	TERRA_EVENT_OP_ENTER = 1,
	TERRA_EVENT_OP_EXIT = 2,   /* results in `values`; `raised` when the op was left by an exception */
	TERRA_EVENT_LOST = 3,      /* `lost` events are missing here on this thread (0: on an unknown thread) */
	TERRA_EVENT_NOTE = 4,      /* text: a gap or a fact about the recording */
	TERRA_EVENT_HOST_READ = 5, /* the program gets at a tensor's memory itself: `text` says how, `values` is the
				    * tensor, or empty where it was not readable */
	TERRA_EVENT_GPU = 6,       /* an activity of a GPU, or a call that asked for one: `gpu` */
	TERRA_EVENT_CALL = 7,      /* ops are run past the typed entry points: `text` says how, `op` and `overload` which,
				    * NULL where that is not known. The op may be recorded further inside, too */
};

/* What CUPTI saw. Numbers without a comment are CUPTI's own (cupti_activity.h). */
enum terra_gpu_kind {
	TERRA_GPU_KERNEL = 1,
	TERRA_GPU_MEMCPY = 2,   /* between devices too */
	TERRA_GPU_MEMSET = 3,
	TERRA_GPU_RUNTIME = 4,  /* a call of CUDA's runtime; the event's thread made it */
	TERRA_GPU_DRIVER = 5,   /* likewise, of the driver's interface */
	TERRA_GPU_GRAPH = 6,    /* a CUDA graph as a whole */
	TERRA_GPU_OVERHEAD = 7, /* what CUPTI and the driver took themselves */
	TERRA_GPU_LINK = 8,     /* the external id of a call; only in the file of the injected library */
	TERRA_GPU_KIND_END
};

/* How op_seq is known. */
enum terra_gpu_link {
	TERRA_GPU_BY_NOTHING = 0,
	TERRA_GPU_BY_EXTERNAL_ID = 1,
	TERRA_GPU_BY_TIME = 2, /* the op that was open on the calling thread when the call began */
};

#define TERRA_GPU_NO_DEVICE UINT32_MAX

struct terra_gpu {
	uint8_t kind;         /* enum terra_gpu_kind; a reader may meet larger ones: then what is common to all is there */
	uint8_t untimed;      /* 1: the device gave no times; the event's time means nothing and the duration is 0 */
	uint8_t linked;       /* enum terra_gpu_link */
	const char *name;     /* of the kernel (mangled), of the function called, of the overhead; NULL: not known */
	uint64_t duration_ns; /* from the event's time on */
	uint64_t op_seq;      /* seq of the OP_ENTER of the innermost recorded op that launched this; UINT64_MAX: none known */
	uint64_t correlation; /* the same for a call and what it launched; 0: none */
	uint32_t device;      /* TERRA_GPU_NO_DEVICE: none */
	uint32_t context, stream;
	uint32_t graph;       /* 0: not from a CUDA graph */
	uint64_t graph_node;
	/* KERNEL */
	uint32_t grid[3], block[3];
	uint32_t static_shared, dynamic_shared; /* bytes */
	uint32_t registers;   /* per thread */
	/* MEMCPY, MEMSET */
	uint64_t bytes;
	uint32_t value;       /* MEMSET */
	uint8_t copy_kind, source_kind, target_kind; /* CUPTI's kinds of copy and memory; a memset has target_kind */
	uint32_t source_device, target_device;       /* MEMCPY between devices, else TERRA_GPU_NO_DEVICE */
	/* RUNTIME, DRIVER: the function's number and what it returned; OVERHEAD: the kind of overhead in `function` */
	uint32_t function, result;
	uint64_t external;    /* LINK */
};

struct terra_frame {
	const char *file;
	const char *function;
	int32_t line;
};

/* Pointers are valid until the next call on the same reader. */
struct terra_event {
	uint8_t type;
	uint8_t level;        /* enum terra_level */
	uint8_t raised;
	uint32_t thread;      /* tid */
	uint64_t time_ns;     /* CLOCK_MONOTONIC */
	uint64_t seq;         /* position in the file's event stream, from 0 */
	uint64_t enter_seq;   /* OP_EXIT: seq of its OP_ENTER */
	uint64_t parent_seq;  /* OP_ENTER, HOST_READ, CALL: seq of the enclosing op's OP_ENTER, or UINT64_MAX */
	const char *op;       /* "aten::mul" */
	const char *overload; /* "Tensor" */
	uint32_t op_index;    /* index into the trace's own op table */
	uint64_t keyset;      /* redispatch only */
	uint8_t autograd;     /* 1: `node` is set. OP_ENTER: the op is part of a backward pass and `node` the Node that
			       * autograd evaluates. OP_EXIT: `node` is the Node that the op made, for its first result */
	uint64_t node;        /* autograd's sequence number, unique for one thread's Nodes; UINT64_MAX: one that
			       * accumulates into a leaf's grad */
	uint64_t forward_seq; /* OP_ENTER with `autograd`: seq of the OP_ENTER of the op that made the Node, or
			       * UINT64_MAX when it is not known */
	uint32_t n_values;
	struct terra_value *values; /* arguments (without the keyset) or results */
	uint32_t n_frames;
	struct terra_frame *frames; /* innermost first; empty when stacks were not recorded */
	const char *module;   /* OP_ENTER: path of the torch.nn.Module whose call the op is part of, "GPT2.transformer.h.3"; NULL:
			       * of none, or not known */
	uint64_t lost;
	const char *text;
	struct terra_gpu *gpu; /* GPU only */
};

struct terra_trace_info {
	uint32_t version;
	const char *backend;   /* "bpf" or "preload" */
	const char *command;   /* the traced command line */
	const char *library;   /* path of the libtorch_cpu.so that was traced */
	const char *build_id;  /* hex, of that library */
	const char *cpu;       /* model name and the features that matter, "AVX2 FMA ..." */
	uint32_t pid;
	uint32_t threads;      /* OpenMP threads the program ran with, 0 unknown */
	uint64_t start_ns;
};

struct terra_trace_reader;

/* Whether the file begins as a trace does, whole or not. */
bool terra_trace_is_one(const char *path);
/* Opens a trace. Returns 0, or -errno with a message in err. A file without an end marker opens; see below. */
int terra_trace_open(const char *path, struct terra_trace_reader **out, char *err, size_t err_size);
const struct terra_trace_info *terra_trace_info(const struct terra_trace_reader *reader);
/* 1: *event was filled; 0: end; -errno: damaged here (what was before stays valid), message by terra_trace_error. Each
 * damaged place is reported once; the next call goes on behind it, so that readers may take all that is intact. A file
 * that stops early gives 0 after its last complete block: see terra_trace_ended_cleanly. */
int terra_trace_next(struct terra_trace_reader *reader, struct terra_event *event);
const char *terra_trace_error(const struct terra_trace_reader *reader);
/* After the end: whether the end marker was there, and how many events the file says were lost. */
bool terra_trace_ended_cleanly(const struct terra_trace_reader *reader);
uint64_t terra_trace_lost(const struct terra_trace_reader *reader);
/* Events that were in damaged or missing blocks, as far as the intact ones tell. Not part of terra_trace_lost. */
uint64_t terra_trace_missing(const struct terra_trace_reader *reader);
void terra_trace_close(struct terra_trace_reader *reader);

struct terra_trace_writer;

/* Creates the file with its header. The writer buffers; a block is complete on disk after each flush. */
int terra_trace_create(const char *path, const struct terra_trace_info *info, struct terra_trace_writer **out, char *err,
		       size_t err_size);
/* A writer that keeps its blocks in memory, and of these only what is not older than keep_ns before the last event, and at
 * most about keep_bytes (0: no limit): a flight recorder. 0 or -errno. */
int terra_trace_create_kept(const struct terra_trace_info *info, uint64_t keep_ns, uint64_t keep_bytes,
			    struct terra_trace_writer **out);
/* What is in a file, as its reader counts it. */
struct terra_trace_counts {
	uint64_t events, lost;
};

/* Writes what is kept now to `path` as a whole trace, in place of a file that is there. May be called again. *counts (may be
 * NULL) is set when that was done. */
int terra_trace_write_kept(struct terra_trace_writer *writer, const char *path, struct terra_trace_counts *counts, char *err,
			   size_t err_size);
/* What the file has at most if it were flushed now, in bytes. */
uint64_t terra_trace_size(const struct terra_trace_writer *writer);
/* Writes one event (copied). Frames and op names are interned by the writer; `seq` and `op_index` are assigned. Returns
 * 0 or -errno. -EINVAL (an event that contradicts itself) and -E2BIG (docs/trace-format.md has the limits) refuse this
 * event only; a failure to write is for good: what is on disk stays readable and every later call returns it again. */
int terra_trace_write(struct terra_trace_writer *writer, struct terra_event *event);
int terra_trace_flush(struct terra_trace_writer *writer);
/* Closes without writing anything: for a forked child, whose parent goes on with the file. */
void terra_trace_abandon(struct terra_trace_writer *writer);
/* Writes the end marker and closes; what a writer keeps in memory is dropped. Returns 0 or -errno (a full disk is reported here at the latest). */
int terra_trace_finish(struct terra_trace_writer *writer);

#endif
