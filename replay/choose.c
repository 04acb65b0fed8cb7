/* choose.c - which waiting instance an op goes on with.
 *
 * What the program issues itself goes on with the last instance, or ends it. The parts of ops on lists (_foreach_mul_) come
 * as one op for all tensors, then the next: instances that begin with such a part stay open together.
 *
 * A part may so be added to an instance when later ones have begun. It is run with its own instance, before those, though it
 * was issued behind what they hold: that is right only when they write nothing that it reads, and neither read nor write
 * what it writes. Where that is not so it is not added.
 */
#include "replay/queue.h"

#include <immintrin.h>

#include "replay/blocks.h"
#include "probes/clock.h"
#include "replay/place.h"
#include "replay/trial.h"

#define LIST_MAX 4096 /* elements of a list that are told apart */

static uint16_t began_with[LIST_MAX]; /* number + 1 of an instance that began with this element, if it is still there */

void instance_begins_list(struct instance *inst, uint32_t element)
{
	inst->listed = true;
	inst->element = element;
	waiting.lists.seen = true;
	waiting.lists.n_open++;
	if (element < LIST_MAX)
		began_with[element] = (uint16_t)(inst - waiting.instances + 1);
}

void instance_close(struct instance *inst)
{
	if (inst->listed && inst->open && waiting.lists.n_open > 0) /* a signal handler may have flushed */
		waiting.lists.n_open--;
	inst->open = false;
	if (inst == waiting.growing)
		waiting.growing = NULL;
}

/* Whether the op, run with the instance, would come before a later instance that was begun earlier and writes what the op
 * reads, or has to do with what it writes. */
static bool overtakes(const struct instance *inst, const struct call *call)
{
	uint32_t number = (uint32_t)(inst - waiting.instances);

#ifdef TERRA_NO_GUARD_ORDER
	return false;
#endif
	if (number + 1 == waiting.n)
		return false;
	for (uint32_t i = 0; i < call->n_args; i++) {
		const struct tensor_view *t = &call->arg[i].t;
		void *base;

		if (!call_arg_has_memory(&call->arg[i]))
			continue;
		base = block_base(t->data, (size_t)tensor_span(t) * sizeof(float));
		if (base != NULL && block_is_used_behind(base, number, call->in_place && i == 0))
			return true;
	}
	return false;
}

/* Sets the choice to the edge that the instance takes, if there is one. */
static bool goes_on(struct instance *inst, const struct call *call, struct choice *choice)
{
	if (!inst->open || inst->numel != call->numel || inst->mxcsr != (_mm_getcsr() & ~_MM_EXCEPT_MASK))
		return false;
	choice->edge = match_edge(inst, call, &choice->binding);
	if (choice->edge != NULL && overtakes(inst, call)) {
		instance_close(inst);
		choice->edge = NULL;
	}
	choice->inst = inst;
	return choice->edge != NULL;
}

static bool goes_on_by_number(uint32_t number, const struct call *call, struct choice *choice)
{
	struct instance *inst = number > 0 ? &waiting.instances[number - 1] : NULL;

	return inst != NULL && inst->listed && goes_on(inst, call, choice);
}

/* An instance that has to do with a tensor of the op. */
static bool goes_on_with_memory(const struct call *call, struct choice *choice)
{
	for (uint32_t i = 0; i < call->n_args; i++) {
		const struct call_arg *arg = &call->arg[i];
		const struct block *b;
		void *base;

		if (arg->kind != ARG_TENSOR || !arg->full)
			continue;
		base = block_base(arg->t.data, op_bytes(call));
		b = base ? block_find(base) : NULL;
		if (b != NULL && (goes_on_by_number(b->writer, call, choice) || goes_on_by_number(b->reader, call, choice) ||
				  goes_on_by_number(b->earlier_reader, call, choice)))
			return true;
	}
	return false;
}

/* Else the one that began with the same element of its list: what belongs together has the same place in all lists. A guess,
 * which costs speed when wrong. */
static bool goes_on_by_element(const struct call *call, struct choice *choice)
{
	uint32_t number = choice->element < LIST_MAX ? began_with[choice->element] : 0;

	return number > 0 && number <= waiting.n && waiting.instances[number - 1].element == choice->element &&
	       goes_on_by_number(number, call, choice);
}

/* What the program issues itself goes on with the last instance or ends it. */
static bool goes_on_with_last(const struct call *call, struct choice *choice)
{
	struct instance *last = waiting.growing;

	if (last == NULL || goes_on(last, call, choice))
		return last != NULL;
	instance_close(last);
	return false;
}

/* Asked where a batch would begin. */
static bool slower_than_alone(uint64_t place)
{
	return waiting.n == 0 && replay_config.trials && trial_leaves_alone(place, clock_now(), replay_region_ops);
}

static bool in_list(const struct call *call)
{
	const char *first = call->first;

	return first >= waiting.lists.begin && first < waiting.lists.end;
}

void choose(const struct call *call, uint64_t place, struct choice *choice)
{
	choice->edge = NULL;
	choice->listed = in_list(call);
	if (choice->listed)
		choice->element = (uint32_t)(((const char *)call->first - waiting.lists.begin) / (ptrdiff_t)sizeof(void *));
	if (!choice->listed) {
		if (goes_on_with_last(call, choice))
			return;
	} else if (waiting.lists.n_open > 0) {
		if (goes_on_with_memory(call, choice) || goes_on_by_element(call, choice))
			return;
	}
	choice->inst = NULL;
	choice->edge = match_edge(NULL, call, &choice->binding);
	if (choice->edge != NULL && (place_is_losing(place) || slower_than_alone(place))) {
		choice->edge = NULL;
		replay_counts.left_alone++;
	}
}

void choose_closes_others(bool listed)
{
	if (listed) {
		if (waiting.growing != NULL)
			instance_close(waiting.growing);
		return;
	}
	for (uint32_t i = 0; i < waiting.n && waiting.lists.n_open > 0; i++)
		if (waiting.instances[i].listed)
			instance_close(&waiting.instances[i]);
}
