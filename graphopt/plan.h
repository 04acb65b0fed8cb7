/* plan.h - the contract for "plan": what terra-opt writes and libterra_replay.so executes.
 *
 * A plan bundle is one file (docs/plan-format.md): a fixed header {magic, version, sizes, CRC-32C checksums}, a text section
 * (the environment the plan is for, op lists, regions in the textual IR below) and a code section: an ELF shared
 * object with the kernels. The plan decides what is fused and how: no kernel body lives in replay/.
 *
 * REGION: a straight line of elementwise ops over one DOMAIN (all results have the same shape and are dense in the
 * same order, numel elements). Regions are shape-generic: the same region serves any sizes of the same broadcast form.
 * Replay matches ops as the program issues them against a trie made of all regions, by the canonical line of each op:
 *
 *     <schema name>[.<overload>] <arg> <arg> ...      e.g.  aten::mul.Tensor i0 s
 *                                                           aten::addcdiv_ i0 i1 v5 s
 * with one token per schema argument, in schema order:
 *     v<k>   the result of the region's k-th op (0-based). A tensor is recognised by its memory: same address, numel
 *            and linear order as that result. An in-place op's result is the newest value in that memory: later uses
 *            of the memory are v<that op>, never the older name.
 *     i<j>   external tensor of the domain's full numel and linear order; numbered from 0 in order of first use,
 *            counted over i and b together. The same memory met again is the same number.
 *     b<j>   external tensor that broadcasts into the domain (or has any other strides): passed with strides. The same
 *            memory in two forms (full and strided, or two strides) is two inputs: a number has one letter throughout.
 *     r<j>   external one-dimensional int64 tensor, contiguous, one element for each row of the domain, which has two
 *            dims; numbered with i and b: each a column of the row, or the op's last constant, which stands for none.
 *     l      an int that names the domain's last dim, counted from the front or as -1.
 *     s      a number that the kernel takes at run time: a Scalar, double or int64 argument, or a 0-dim or one-element
 *            tensor (read when the op is issued). Numbered implicitly in order of appearance, by position in the region.
 *     f      the same, always in a float32 tensor without dims; numbered with s.
 *     #<x>   a constant the kernel is specialised for (ints, bools, strings as %.17g / decimal / quoted text), and
 *            the Scalar exponent of pow.
 *     -      an absent optional.
 * A region with a token r or l goes BY ROWS: its ops look at a row as a whole, and it has no b. All ops with such a token have
 * the same number of columns (the size of the last dim); others in the region see the same memory in any shape.
 * All tensors are float32 except where an op's rule says otherwise (see graphopt/README.md).
 *
 * KERNEL ABI: see terra_kernel_fn.
 */
#ifndef TERRA_GRAPHOPT_PLAN_H
#define TERRA_GRAPHOPT_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TERRA_PLAN_VERSION 1
#define TERRA_PLAN_MAX_OPS 64     /* ops of one region */
#define TERRA_PLAN_MAX_INPUTS 32  /* external tensors of one region */
#define TERRA_PLAN_MAX_SCALARS 64 /* numbers of one region */
#define TERRA_PLAN_MAX_ARGS 8     /* arguments of one op */
#define TERRA_KERNEL_BLOCK 512    /* elements a kernel works on at a time; scratch holds one block per value */
#define TERRA_KERNEL_MAX_DIM 6

/* A tensor that broadcasts into the domain. The domain's dims are collapsed, outermost first; element strides. */
struct terra_strided {
	const float *data;
	int32_t ndim;
	int64_t size[TERRA_KERNEL_MAX_DIM]; /* of the domain, same for all inputs of one call */
	int64_t stride[TERRA_KERNEL_MAX_DIM];
};

/* Functions of the framework itself that a kernel calls so that its bits are the framework's. Resolved by replay and by
 * terra-opt from the libtorch in the process (dlsym), in the order of the plan's `import` lines. */
typedef void (*terra_import_fn)(void);

struct terra_kernel_args {
	void *const *input;     /* per external tensor: data pointer of i<j>; unused for others */
	const struct terra_strided *strided; /* per external tensor, used for b<j>, and for r<j> with no dims and the int64
				   numbers at `data` */
	void *const *result;    /* per op: where its result goes; for an in-place op the memory of its target.
				   NULL: nobody will read it (dead), keep it in scratch only */
	const double *scalar;   /* per `s` or `f`, in order of appearance */
	const terra_import_fn *import;
	float *scratch;         /* TERRA_PLAN_MAX_OPS + TERRA_PLAN_MAX_INPUTS blocks of TERRA_KERNEL_BLOCK floats, 64-byte
				   aligned, private to the calling thread */
	int64_t columns;        /* by rows: elements of a row; else unused */
};

/* Computes elements [begin, end) of the domain, in linear order of the dense results. Calls on disjoint ranges may run
 * on different threads; the result must not depend on how the domain is split. `begin` is a multiple of
 * TERRA_KERNEL_BLOCK, by rows of `columns`, and then so is `end`. Must not allocate, lock, throw, or touch anything but its
 * arguments: it also runs in a fault handler. MXCSR is set by the caller to what it was when the ops were issued, which is the
 * default mode. Results that are in-place targets may be the same memory as inputs (exactly, never shifted). */
typedef void (*terra_kernel_fn)(const struct terra_kernel_args *args, int64_t begin, int64_t end);

/* Single-op replacement: a faster kernel for an op that is run at once (no deferral), e.g. aten::bernoulli_.float.
 * The form is named in the plan (`replace aten::bernoulli_.float form=<form> kernel=<symbol>`); each form's C
 * signature is declared in this header and implemented by replay as a caller and by graphopt as the generator. */

/* form "mt19937_bernoulli": fills out[0..n) with 1.0f where draw < p, else 0.0f, from the mt19937 state words, exactly
 * as the framework's serial kernel would, and advances the state. state: 624 words; *left, *next as at::mt19937. */
typedef void (*terra_mt19937_bernoulli_fn)(float *out, int64_t n, double p, uint32_t *state, int32_t *left, uint32_t *next);

/* form "sgemm_tiles": C = A B, or C = bias + A B with one bias for each column, in row-major float32, tile by tile: one call
 * of the vendor's product each, on one thread. Faster where the vendor's own division among threads is not the best for the
 * shape; and through a buffer, where C is too large for the caches and its rows are badly aligned (a vocabulary of 50,257
 * words), since the vendor's kernel goes over C several times. Used for the one shape that it was checked at. */
#define TERRA_SGEMM_PROBE 32   /* rows and columns of the matrices that replay has multiplied before each use, to see the
				  framework's precision: above what libraries take for too small to bother */
#define TERRA_SGEMM_BUFFER 512 /* most rows and columns of a tile that goes through a buffer */

struct terra_sgemm_shape {
	int64_t m, n, k;	    /* A is m x k, B is k x n */
	int64_t lda, ldb;	    /* elements from one stored row to the next */
	bool a_transposed, b_transposed; /* stored as its transpose: element (i, j) at [j * ld + i] */
	uint32_t threads;	    /* of the framework, when bits were compared and time was taken */
	int64_t rows, columns;	    /* of a tile */
	bool buffered;		    /* a tile is made in a buffer, then copied to C past the caches */
};

struct terra_sgemm_args {
	struct terra_sgemm_shape shape;
	const float *a, *b;
	const float *bias;	      /* n floats, or NULL */
	float *c;		      /* m x n, contiguous */
	const terra_import_fn *import;
	float *buffer;		      /* TERRA_SGEMM_BUFFER^2 floats, 64-byte aligned, private to the calling thread; NULL
					 unless buffered */
};

/* Computes tiles [begin, end) of ceil(m / rows) * ceil(n / columns), row of tiles by row of tiles. Calls the framework's own
 * sgemm_, so unlike region kernels it may lock and allocate; never run in a fault handler. */
typedef void (*terra_sgemm_tiles_fn)(const struct terra_sgemm_args *args, int64_t begin, int64_t end);

/* The shape as one word of a plan, "512x50257x512,n512,t512,2,512x512b": m x n x k, how A and B are stored (n plain, t
 * transposed) with lda and ldb, threads, rows and columns of a tile and b when it is buffered. False: not such a word, or
 * impossible. */
bool terra_plan_sgemm_shape(const char *text, struct terra_sgemm_shape *out);
void terra_plan_sgemm_text(const struct terra_sgemm_shape *shape, char *out, size_t size);
int64_t terra_plan_sgemm_tiles(const struct terra_sgemm_shape *shape);

struct terra_plan_op { /* one line of a region */
	char *op;       /* "aten::mul.Tensor" */
	uint8_t n_args;
	char *arg[TERRA_PLAN_MAX_ARGS]; /* tokens as above */
};

struct terra_plan_region {
	uint32_t id;
	char *name;       /* for people: "gelu forward, modeling_gpt2.py:81" */
	char *kernel;     /* symbol in the code section */
	bool fallback;    /* a one-op region that exists so that a region cut short can be finished op by op: it is never
			     a reason to defer and its ops do not count as fused */
	double gain;      /* measured: time of the framework's ops / time of the kernel, at the traced sizes */
	double eager_ns;  /* measured, per instance, at the traced sizes */
	double fused_ns;
	int64_t numel;    /* the traced domain (largest) */
	uint32_t n_ops;
	struct terra_plan_op *ops;
	uint32_t n_inputs;
	uint32_t n_scalars;
	bool by_rows;       /* as n_inputs and n_scalars: found when a plan is read or kernels are made */
	terra_kernel_fn fn; /* filled by terra_plan_link */
};

struct terra_plan_replace {
	char *op;
	char *form;
	char *shape;        /* of form sgemm_tiles; NULL: the form has none */
	char *kernel;
	double gain;
	void *fn;           /* filled by terra_plan_link */
};

struct terra_plan {
	char *build_id;     /* hex, libtorch_cpu.so the kernels were checked against */
	char *cpu;          /* space-separated CPU features that the code needs, spelled as in /proc/cpuinfo ("avx2 fma"),
			       and the framework's choice of kernels as one word, "capability=AVX2": terra_plan_mismatch
			       checks the features, terra_plan_link the capability. "model=25.1.1" (family, model,
			       stepping): kernels compute functions of the vendor's library themselves, which was found
			       to be the same for this model and without the library's settings in the environment */
	char *cpu_vendor;   /* "AuthenticAMD", "GenuineIntel": vendor libraries dispatch on it, so bits depend on it */
	uint32_t threads;   /* thread count that it was checked with; 0: bits do not depend on it */
	char *source;       /* trace and command it came from */
	uint32_t n_passive; /* ops that never read or write tensor data (views, metadata, allocation) */
	char **passive;
	uint32_t n_lists;   /* ops on lists that are made of an op for each tensor, which they issue */
	char **lists;
	uint32_t n_imports;
	char **imports;     /* symbols, in libtorch_cpu.so */
	uint32_t n_regions;
	struct terra_plan_region *regions;
	uint32_t n_replaces;
	struct terra_plan_replace *replaces;
	void *code;         /* the ELF image, not loaded */
	size_t code_size;
	terra_import_fn *import_table; /* filled by terra_plan_link */
	void *handle;       /* dlopen handle of the code */
};

/* Reads and checks a plan file: magic, version, sizes, checksums, every line of the text section. Refuses a file that
 * someone other than the owner and root could write, or that neither the caller nor root owns, unless `any_owner`.
 * Returns 0 or -errno with a one-line message that says what to do. Never runs or maps code. */
int terra_plan_read(const char *path, bool any_owner, struct terra_plan **out, char *err, size_t err_size);
/* Writes atomically (temporary file, then rename), mode 0600. */
int terra_plan_write(const struct terra_plan *plan, const char *path, char *err, size_t err_size);
/* Loads the code section (memfd + dlopen) and resolves kernels and imports. `libtorch` is a dlopen handle. */
int terra_plan_link(struct terra_plan *plan, void *libtorch, char *err, size_t err_size);
/* Whether the environment has settings that the vendor's library reads and that change its bits. */
bool terra_plan_vendor_settings(void);
/* Whether this machine and library are what the plan is for: NULL, or the reason why not (static storage). */
const char *terra_plan_mismatch(const struct terra_plan *plan, const char *build_id_hex);
void terra_plan_free(struct terra_plan *plan);

#endif
