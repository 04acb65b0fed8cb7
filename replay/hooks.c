/* hooks.c - puts our stubs in front of every redispatch entry point of the library, and decides what each call does.
 *
 * Redispatch is where an op goes on below autograd. Ops that have no redispatch (inference mode, ops without a derivative)
 * are not hooked: what they touch is guarded by its pages.
 *
 * Where the plan has ops on lists, the `call` of a region's ops is hooked too: their parts that make new tensors have no
 * redispatch. A call is the backend's own only where dispatch.c can say so; any other comes again as a redispatch, or is
 * none of ours.
 */
#include "replay/hooks.h"

#include <dlfcn.h>
#include <errno.h>
#include <immintrin.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>

#include "probes/got.h"
#include "probes/op.h"
#include "replay/call.h"
#include "probes/clock.h"
#include "replay/dispatch.h"
#include "replay/registered.h"
#include "replay/replace.h"
#include "replay/replay.h"
#include "replay/stubs.h"
#include "replay/trial.h"

#define DEFAULT_MXCSR 0x1f80 /* all exceptions masked, round to nearest, denormals kept */
#define STUBS (REPLAY_PLAIN_STUBS + REPLAY_REGION_STUBS)

_Static_assert(sizeof(struct hook_regs) == REPLAY_REGS_SIZE, "trampoline.S saves this struct");
_Static_assert(sizeof(struct replay_attention) == 8, "trampoline.S tests it as one word");

__attribute__((visibility("hidden"))) void *replay_originals[STUBS];
__attribute__((visibility("hidden"))) extern char replay_plain_stubs[], replay_region_stubs[];
volatile uint64_t replay_ops_seen;
uint64_t replay_region_ops;

static struct terra_op_table *table;
static const struct terra_op *op_of[STUBS];
static bool passive[REPLAY_PLAIN_STUBS], list[REPLAY_REGION_STUBS];
static uint32_t same_op[REPLAY_REGION_STUBS]; /* the number that the op has in regions: its redispatch's */
static const struct terra_plan_replace *replace_of[REPLAY_REGION_STUBS];
static struct registered registered[REPLAY_REGION_STUBS];
static uint32_t n_plain, n_region;
static struct got_patch *patches;
static size_t n_patches;

/* ---- what a call does ---- */

/* The framework's pool threads keep the floating-point mode that they were made with, so once a program has used another
 * mode than the default, a kernel cannot know which elements were computed in which. */
static bool default_float_mode(void)
{
	if ((_mm_getcsr() & ~_MM_EXCEPT_MASK) == DEFAULT_MXCSR)
		return true;
	queue_flush(FLUSH_SETTING);
	replay_disabled = 1;
	return false;
}

static bool may_wait(void)
{
	return replay_config.mode == MODE_REPLAY && !replay_disabled && threads_alone() && !framework_in_parallel() &&
	       default_float_mode();
}

static void run_what_it_may_touch(const struct terra_op *op, const struct hook_regs *regs)
{
	if (replay_attention.pending == 0 || (!queue_is_due() && call_is_apart(op, regs)))
		return;
#ifndef TERRA_NO_GUARD_OPS
	queue_flush(may_wait() ? FLUSH_OP : FLUSH_THREAD);
#endif
}

static bool call_goes_to_backend(uint32_t number, const struct hook_regs *regs)
{
	const struct terra_op *op = op_of[REPLAY_PLAIN_STUBS + number];

#ifdef TERRA_NO_GUARD_KEYS
	return true;
#endif
	return dispatch_known() && dispatch_to_cpu(op, regs) && registered_passes_over(&registered[number], op);
}

/* Above the backend (an in-place op is seen twice) it comes here again. */
static bool at_backend(uint32_t number, const struct hook_regs *regs)
{
	const struct terra_op *op = op_of[number];

	if (op->level == TERRA_LEVEL_CALL)
		return may_wait() && call_goes_to_backend(number - REPLAY_PLAIN_STUBS, regs);
#ifdef TERRA_NO_GUARD_LEVEL
	return (call_keyset(op, regs) & framework.cpu_keyset) == framework.cpu_keyset;
#else
	return call_keyset(op, regs) == framework.cpu_keyset;
#endif
}

/* Whether the plan speaks for the op: its kernel is the one that it was checked against. */
static bool plan_speaks_for(uint32_t number)
{
#ifdef TERRA_NO_GUARD_REGISTERED
	return true;
#else
	return registered_is_own(&registered[number - REPLAY_PLAIN_STUBS], op_of[number]);
#endif
}

static int region_op(uint32_t number, struct hook_regs *regs)
{
	const struct terra_op *op = op_of[number];
	struct call call;
	bool ours;

	if (!at_backend(number, regs))
		return 0;
	ours = may_wait() && plan_speaks_for(number);
	call.op = same_op[number - REPLAY_PLAIN_STUBS];
	if (ours && call_read(op, regs, &call) && queue_offer(&call)) {
		regs->ret = (uint64_t)(call.in_place ? call.first : call.result);
		return 1;
	}
	run_what_it_may_touch(op, regs);
	if (ours && replace_of[number - REPLAY_PLAIN_STUBS] != NULL && may_wait() &&
	    replace_run(replace_of[number - REPLAY_PLAIN_STUBS], op, replay_originals[number], regs))
		return 1;
	return 0;
}

/* It touches its tensors by the ops that it issues, which come here themselves; if it did otherwise, their pages say so. */
static void list_op(const struct terra_op *op, const struct hook_regs *regs)
{
	const void *tensors;
	uint64_t n;

	if (may_wait() && call_keyset(op, regs) == framework.cpu_keyset && call_list(op, regs, &tensors, &n))
		queue_list(tensors, n);
	else
		run_what_it_may_touch(op, regs);
}

/* Kernels of others issue calls of them, too, but no redispatch. */
static bool counts_as_region_op(uint32_t number)
{
	return number >= REPLAY_PLAIN_STUBS && op_of[number]->level == TERRA_LEVEL_REDISPATCH;
}

/* The op may be the one at which what is timed ends. */
static void time_op(uint32_t number)
{
	if (replay_disabled || replay_program_threads != 1 || framework_in_parallel())
		trial_spoilt();
	else if (trial_op(number, counts_as_region_op(number), replay_region_ops))
		trial_left_alone(clock_now());
}

int hook_enter(uint32_t number, struct hook_regs *regs)
{
	replay_region_ops += counts_as_region_op(number);
	if (replay_attention.timed)
		time_op(number);
	if (number < REPLAY_PLAIN_STUBS) {
		if (!passive[number])
			run_what_it_may_touch(op_of[number], regs);
		return 0;
	}
	if (!list[number - REPLAY_PLAIN_STUBS])
		return region_op(number, regs);
	list_op(op_of[number], regs);
	return 0;
}

/* ---- installing ---- */

static bool full_name_is(const struct terra_op *op, const char *name)
{
	size_t n = strlen(op->name);

	if (strncmp(op->name, name, n) != 0)
		return false;
	return op->overload[0] == '\0' ? name[n] == '\0' : name[n] == '.' && strcmp(name + n + 1, op->overload) == 0;
}

static bool listed(const struct terra_op *op, char *const *names, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (full_name_is(op, names[i]))
			return true;
	return false;
}

static const struct terra_plan_replace *replacement(const struct terra_plan *plan, const struct terra_op *op)
{
	for (uint32_t i = 0; i < plan->n_replaces; i++)
		if (full_name_is(op, plan->replaces[i].op))
			return &plan->replaces[i];
	return NULL;
}

static bool in_a_region(const struct terra_plan *plan, const struct terra_op *op)
{
	for (uint32_t r = 0; r < plan->n_regions; r++)
		for (uint32_t k = 0; k < plan->regions[r].n_ops; k++)
			if (full_name_is(op, plan->regions[r].ops[k].op))
				return true;
	return false;
}

int hooks_op_number(const char *name, void *unused)
{
	for (uint32_t i = 0; i < n_region; i++)
		if (op_of[REPLAY_PLAIN_STUBS + i]->level == TERRA_LEVEL_REDISPATCH &&
		    full_name_is(op_of[REPLAY_PLAIN_STUBS + i], name))
			return (int)(REPLAY_PLAIN_STUBS + i);
	return -1;
}

/* A call has the number of its redispatch, which comes behind it in the table. */
static void number_calls(void)
{
	for (uint32_t i = 0; i < n_region; i++)
		for (uint32_t k = i; k < n_region; k++)
			if (op_of[REPLAY_PLAIN_STUBS + k]->level == TERRA_LEVEL_REDISPATCH &&
			    strcmp(op_of[REPLAY_PLAIN_STUBS + k]->name, op_of[REPLAY_PLAIN_STUBS + i]->name) == 0 &&
			    strcmp(op_of[REPLAY_PLAIN_STUBS + k]->overload, op_of[REPLAY_PLAIN_STUBS + i]->overload) == 0) {
				same_op[i] = REPLAY_PLAIN_STUBS + k;
				break;
			}
}

static void *region_stub(const struct terra_op *op, void *original)
{
	if (n_region == REPLAY_REGION_STUBS)
		return NULL;
	op_of[REPLAY_PLAIN_STUBS + n_region] = op;
	replay_originals[REPLAY_PLAIN_STUBS + n_region] = original;
	return replay_region_stubs + REPLAY_STUB_SIZE * n_region++;
}

/* In-place ops are redispatched below autograd, too, but in inference mode. */
static bool called_by_lists(const struct terra_plan *plan, const struct terra_op *op)
{
	return plan->n_lists > 0 && op->ret == TERRA_RET_TENSOR && in_a_region(plan, op);
}

static void *stub_for(const struct terra_plan *plan, const struct terra_op *op, void *original)
{
	const struct terra_plan_replace *replace;
	bool is_list;

	if (op->level == TERRA_LEVEL_CALL)
		return called_by_lists(plan, op) ? region_stub(op, original) : NULL;
	replace = replacement(plan, op);
	is_list = listed(op, plan->lists, plan->n_lists);
	if ((replace != NULL || is_list || in_a_region(plan, op)) && n_region < REPLAY_REGION_STUBS) {
		replace_of[n_region] = replace;
		list[n_region] = is_list;
		return region_stub(op, original);
	}
	if (n_plain == REPLAY_PLAIN_STUBS)
		return NULL;
	op_of[n_plain] = op;
	replay_originals[n_plain] = original;
	passive[n_plain] = listed(op, plan->passive, plan->n_passive);
	return replay_plain_stubs + REPLAY_STUB_SIZE * n_plain++;
}

static int prepare(const struct terra_plan *plan)
{
	struct link_map *map;

	if (dlinfo(framework.cpu, RTLD_DI_LINKMAP, &map) != 0)
		return -ENOENT;
	patches = calloc(table->n_ops, sizeof(*patches));
	if (patches == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < table->n_ops; i++) {
		const struct terra_op *op = &table->ops[i];
		void *stub;

		stub = stub_for(plan, op, (void *)(map->l_addr + op->address));
		if (stub != NULL)
			patches[n_patches++] = (struct got_patch){.symbol = op->mangled, .replacement = stub};
	}
	number_calls();
	return 0;
}

int hooks_prepare(const struct terra_plan *plan, char *why, size_t size)
{
	int err = terra_op_table_load(framework.path, true, &table, why, size);

	return err ? err : prepare(plan);
}

int hooks_install(void)
{
	return got_patch(patches, n_patches, NULL);
}
