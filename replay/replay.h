/* replay.h - what the files of libterra_replay.so share.
 *
 * Data flow: hooks.c (an op is issued) -> match.c (does a region of the plan go on with it?) -> queue.c (its result
 * exists, its work waits) -> guard.c (nobody can see that) -> queue.c (flush: the region's kernel runs).
 *
 * Replay keeps no reference to tensors or storages: what waits are memory blocks of our own arena, which a free leaves in
 * place while they are held. So the program's use counts are what they would be without us, and a result whose block
 * was freed before the flush needs not be written at all.
 *
 * At most one thread, the owner, has work waiting, and only while no other program thread exists.
 */
#ifndef TERRA_REPLAY_REPLAY_H
#define TERRA_REPLAY_REPLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "graphopt/plan.h"
#include "replay/attention.h"

#define REPLAY_EXPORT __attribute__((visibility("default")))

/* ---- why a flush happened, or why an op was not deferred (log.c has the names) ---- */
enum flush_reason {
	FLUSH_OP,        /* an op that no region goes on with, and that may touch what waits */
	FLUSH_COMPLETE,  /* enough work is waiting */
	FLUSH_MEMORY,    /* held results reached the cap */
	FLUSH_ACCESS,    /* memory was touched behind the dispatcher's back (page guard) */
	FLUSH_SYSCALL,   /* a system call was about to be given memory that waits */
	FLUSH_FORK,
	FLUSH_THREAD,    /* a second program thread starts or issues an op */
	FLUSH_SETTING,   /* floating-point mode changed */
	FLUSH_EXIT,
	FLUSH_REASONS
};

/* ---- settings, read once (config.c) ---- */
enum replay_mode { MODE_OFF, MODE_ALLOC, MODE_OBSERVE, MODE_REPLAY };

struct replay_config {
	enum replay_mode mode;
	const char *plan_path;  /* TERRA_PLAN, or the installed plan; NULL: none */
	bool plan_named;        /* by TERRA_PLAN: its absence is an error worth a line */
	bool log_summary;
	const char *log_json;   /* file name or NULL */
	size_t held_cap;        /* bytes of waiting results before a flush */
	size_t work_cap;        /* bytes that waiting work touches before a flush */
	bool trials;            /* what waits is compared with what is left alone (trial.h) */
};
extern struct replay_config replay_config;
void config_read(void);
/* The plan that is installed for this program and library, or NULL. Static storage. */
const char *plan_installed_path(const char *build_id);
/* One line on stderr, "terra: ...". Never more than one per cause. */
void replay_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- the framework in this process (framework.c) ---- */
struct tensor_view { /* what an op's tensor argument looks like now; borrowed from the framework */
	float *data;
	int64_t numel;
	int64_t ndim;
	const int64_t *size;
	const int64_t *stride;
	int32_t dtype;
};

struct framework {
	void *cpu;            /* dlopen handle of libtorch_cpu.so */
	char path[4096];
	char build_id[41];
	uint64_t cpu_keyset;  /* DispatchKeySet(CPU): what a backend-level redispatch of CPU tensors carries */
	int32_t float32, float64, int64;
	bool scalars;         /* the layout of c10::Scalar is known */
	int (*max_threads)(void);
};
extern struct framework framework;
/* Finds libtorch in the process. 0, or -errno with the reason in *why (static text). */
int framework_find(const char **why);
/* The exported symbol's address, into the pointer *slot. False: there is none. */
bool framework_resolve(void *slot, const char *symbol);
/* Fills what needs calls into the framework. */
int framework_learn(const char **why);
/* `tensor` is the argument word (pointer to the intrusive_ptr). False: undefined, not on the CPU, or unreadable. */
bool framework_view(const void *tensor, struct tensor_view *out);
/* A c10::Scalar as double; false when it is not a double, or an integer that a double holds exactly. */
bool framework_scalar(const void *scalar, double *out);
/* New contiguous float32 tensor into *result (8 bytes, an at::Tensor). May throw what the framework throws (no memory). */
void framework_empty(void *result, const int64_t *size, int64_t ndim);
bool framework_is_undefined(const void *tensor);
/* As the framework prints it, "DispatchKeySet(CPU)". Returns the whole length. */
size_t framework_keyset_text(uint64_t keyset, char *out, size_t size);
/* Whether it is the key of this name and no other. */
bool framework_keyset_is(uint64_t keyset, const char *name);
/* Named tensors: their names are part of the result, and checked. */
bool framework_has_names(const void *tensor);
/* Whether the caller is one of several threads of a parallel region. */
bool framework_in_parallel(void);
/* Gives up the reference in *result. */
void framework_drop(void *result);
/* Runs fn(begin, end, ctx) over [0, n) on the framework's own threads, `piece` at a time: a thread that starts late or is held up
 * has fewer. */
void framework_parallel(int64_t n, int64_t piece, void (*fn)(int64_t begin, int64_t end, void *ctx), void *ctx);
/* The same in one piece on the calling thread; also in a fault handler. */
void framework_alone(int64_t n, void (*fn)(int64_t begin, int64_t end, void *ctx), void *ctx);
/* Number of the calling thread among those, 0 outside. */
int framework_thread_number(void);

/* ---- ops (hooks.c, trampoline.S) ---- */
struct hook_regs { /* as trampoline.S saves them */
	uint64_t gpr[6]; /* rdi rsi rdx rcx r8 r9 */
	double xmm[8][2];
	uint64_t ret;    /* rax when the hook answers the call itself */
	const uint64_t *stack; /* first stack argument */
};
extern volatile uint64_t replay_ops_seen;
extern uint64_t replay_region_ops; /* of those, redispatches that some region has, are replaced or on lists */

/* ---- an op as the matcher sees it (call.c reads it from registers) ---- */
enum call_arg_kind { ARG_TENSOR, ARG_COLUMNS, ARG_NUMBER, ARG_CONST, ARG_ABSENT };
struct call_arg {
	uint8_t kind;
	bool full;             /* tensor: the op's shape, C order */
	double number;         /* NUMBER, CONST, and tensors of one element when `scalar_ok` */
	bool scalar_ok;
	bool is_float;         /* tensor: of type float32 */
	char text[32];         /* CONST strings in canonical form, "#\"...\"", else "" */
	struct tensor_view t;  /* TENSOR, and COLUMNS: int64 numbers, one-dimensional and contiguous */
};
static inline bool call_arg_has_memory(const struct call_arg *arg)
{
	return arg->kind == ARG_TENSOR || arg->kind == ARG_COLUMNS;
}

struct call {
	uint32_t op;           /* index into hooks' plan ops */
	bool in_place;
	void *result;          /* functional: where the framework wants the at::Tensor */
	const void *first;     /* the word of the first argument, where the caller has it: an in-place op's result */
	uint32_t n_args;
	struct call_arg arg[TERRA_PLAN_MAX_ARGS];
	int64_t numel;         /* of the op's domain */
	int64_t ndim;
	int64_t size[8];
};

/* ---- the trie of regions (match.c) ---- */
struct node;
int match_build(struct terra_plan *plan, int (*op_index)(const char *name, void *ctx), void *ctx);

/* ---- queue.c ---- */
int queue_init(struct terra_plan *plan);
/* False: this kernel lacks what a sound flush needs; nothing may wait. */
bool queue_usable(void);
/* Offers the op. True: taken, *call.result or the in-place target now stands for work that waits. False: run it. */
bool queue_offer(struct call *call);
/* Whether enough waits: the next op flushes, whatever it is. */
bool queue_is_due(void);
/* An op on a list begins that issues an op for each of the list's tensors. The words are only compared with. */
void queue_list(const void *tensors, uint64_t n);
void queue_flush(enum flush_reason reason);
/* guard_yield under the lock; false when this thread has it already. */
bool queue_yield(const void *p, size_t n);
/* For the fault handler: no parallel region, no waiting on locks that the thread itself holds. */
void queue_flush_here(enum flush_reason reason);
/* Elements from the first to the last that the tensor has, plus one. */
int64_t tensor_span(const struct tensor_view *t);

/* ---- guard.c ---- */
int guard_init(void);
/* Nobody reads or writes (none) or nobody writes (read-only) [p, p + n) unnoticed until guard_open. */
/* False: the system refused, some of it is still open. */
bool guard_close(const void *p, size_t n, bool none);
void guard_open(void);
/* Nanoseconds that closing and opening took for the last batch. */
uint64_t guard_time(void);
/* Whether [p, p + n) may be touched now, because nothing that waits wants it closed. What was closed ahead is then open. */
bool guard_admits(const void *p, size_t n);

/* ---- threads.c ---- */
extern volatile int replay_program_threads;
/* Whether there is one, and no device that might look at memory. */
bool threads_alone(void);
extern volatile int replay_disabled; /* for good: forked child, shutdown */
extern char replay_thread_maker[64]; /* library of the last one that counts in its sleep, too; "": none so far */
/* Threads may be there from now on that are not counted: nothing waits any more. */
void threads_hidden(void);
void threads_init(void);

/* ---- log.c ---- */
struct region_counts {
	uint64_t runs, dead, elements;
};
struct replay_counts {
	uint64_t deferred, fused, finished_singly, replaced;
	uint64_t left_alone; /* times that no region began where that had cost more than it gained (place.h, trial.h), or to compare */
	uint64_t parallel; /* waves that were run on all threads */
	uint64_t flushes[FLUSH_REASONS];
	uint64_t held_peak;
	uint64_t closings, openings; /* system calls */
	uint64_t ahead;              /* closings before there was need */
	uint64_t lowered;            /* granules that were touched then, and opened again */
};
extern struct replay_counts replay_counts;
extern struct region_counts *replay_region_counts;
uint64_t terra_replay_count(const char *name);
void log_exit(const struct terra_plan *plan);

#endif
