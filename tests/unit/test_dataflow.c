/* Who wrote what an op reads: new values, views, in-place and out variants, addresses used again, what is not known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "collector/dataflow.h"
#include "trace_sample.h"

/* Tensors by letters: the same storage for the same `storage`, the same TensorImpl for the same `impl`. */
static struct terra_tensor tensor(uint64_t impl, uint64_t storage)
{
	struct terra_tensor t = sample_tensor(0);

	t.impl = 0x1000 + impl * 64;
	t.storage = 0x100000 + storage * 64;
	t.storage_data = t.data = 0x10000000 + storage * 4096;
	t.storage_bytes = 48;
	return t;
}

#define LIST_MAX 4

/* An op with tensors as arguments and as results; `list` puts the first n arguments into one list. */
struct op {
	const char *name;
	struct terra_tensor args[LIST_MAX], results[LIST_MAX];
	uint32_t n_args, n_results, list, count;
};

static struct terra_event event_of(const struct op *op, bool exit, struct terra_value *values)
{
	struct terra_tensor *tensors = (struct terra_tensor *)(exit ? op->results : op->args);
	uint32_t n = exit ? op->n_results : op->n_args, at = 0;
	struct terra_event event = {.type = exit ? TERRA_EVENT_OP_EXIT : TERRA_EVENT_OP_ENTER,
				    .op = op->name,
				    .overload = "",
				    .values = values};

	if (!exit && op->list) {
		values[event.n_values++] = (struct terra_value){.kind = TERRA_KIND_TENSOR_LIST,
								.present = 1,
								.count = op->count ? op->count : op->list,
								.recorded = op->list,
								.u.tensors = tensors};
		at = op->list;
	}
	for (; at < n; at++)
		values[event.n_values++] =
		    (struct terra_value){.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &tensors[at]};
	return event;
}

static void enter(struct terra_dataflow *flow, const struct op *op, struct terra_dataflow_call *call)
{
	struct terra_value values[LIST_MAX];
	struct terra_event event = event_of(op, false, values);

	assert_int_equal(terra_dataflow_enter(flow, &event, call), 0);
}

static void leave(struct terra_dataflow *flow, const struct op *op, struct terra_dataflow_call *call, uint64_t writer)
{
	struct terra_value values[LIST_MAX];
	struct terra_event event = event_of(op, true, values);

	assert_int_equal(terra_dataflow_exit(flow, call, &event, writer), 0);
}

static void run(struct terra_dataflow *flow, const struct op op, uint64_t writer)
{
	struct terra_dataflow_call call;

	enter(flow, &op, &call);
	leave(flow, &op, &call, writer);
}

static struct terra_dataflow_ids look(struct terra_dataflow *flow, struct terra_tensor t)
{
	struct terra_dataflow_ids ids;

	assert_int_equal(terra_dataflow_look(flow, &t, &ids), 0);
	return ids;
}

#define ARGS(n, ...) .args = {__VA_ARGS__}, .n_args = n
#define RESULTS(n, ...) .results = {__VA_ARGS__}, .n_results = n

static void test_new_and_views(void **state)
{
	struct terra_dataflow *flow = terra_dataflow_new();
	struct terra_dataflow_ids made, view;

	assert_int_equal(look(flow, tensor(1, 1)).producer, TERRA_DATAFLOW_NONE);
	run(flow, (struct op){"aten::mul", ARGS(1, tensor(1, 1)), RESULTS(1, tensor(2, 2))}, 10);
	run(flow, (struct op){"aten::t", ARGS(1, tensor(2, 2)), RESULTS(1, tensor(3, 2))}, 11);
	made = look(flow, tensor(2, 2));
	view = look(flow, tensor(3, 2));
	assert_int_equal(made.producer, 10);
	assert_int_equal(view.producer, 10);
	assert_int_equal(made.storage, view.storage);
	assert_int_not_equal(made.tensor, view.tensor);
	assert_int_equal(look(flow, tensor(1, 1)).producer, TERRA_DATAFLOW_NONE);
	run(flow, (struct op){"aten::t", ARGS(1, tensor(2, 2)), RESULTS(1, tensor(3, 2))},
	    12); /* the view before is gone */
	assert_true(look(flow, tensor(3, 2)).tensor > view.tensor);
	assert_int_equal(look(flow, tensor(3, 2)).storage, view.storage);
	terra_dataflow_free(flow);
}

/* Writes through a view are writes to all that share the storage; contiguous() returns its argument and writes nothing.
 */
static void test_in_place(void **state)
{
	struct terra_dataflow *flow = terra_dataflow_new();

	run(flow, (struct op){"aten::empty", RESULTS(1, tensor(1, 1))}, 1);
	run(flow, (struct op){"aten::select", ARGS(1, tensor(1, 1)), RESULTS(1, tensor(2, 1))}, 2);
	run(flow, (struct op){"aten::contiguous", ARGS(1, tensor(2, 1)), RESULTS(1, tensor(2, 1))}, 3);
	assert_int_equal(look(flow, tensor(1, 1)).producer, 1);
	run(flow, (struct op){"aten::add_", ARGS(2, tensor(2, 1), tensor(5, 5)), RESULTS(1, tensor(2, 1))}, 4);
	assert_int_equal(look(flow, tensor(1, 1)).producer, 4);
	assert_int_equal(look(flow, tensor(5, 5)).producer, TERRA_DATAFLOW_NONE);
	run(flow, (struct op){"aten::__iand__", ARGS(1, tensor(1, 1)), RESULTS(1, tensor(1, 1))}, 5);
	assert_int_equal(look(flow, tensor(2, 1)).producer, 5);
	run(flow, (struct op){"aten::__lshift__", ARGS(1, tensor(1, 1)), RESULTS(1, tensor(1, 1))}, 6);
	assert_int_equal(look(flow, tensor(2, 1)).producer, 5);
	terra_dataflow_free(flow);
}

static void test_out_and_void(void **state)
{
	struct terra_dataflow *flow = terra_dataflow_new();
	struct op foreach = {"aten::_foreach_add_", ARGS(3, tensor(1, 1), tensor(2, 2), tensor(3, 3)), .list = 2};
	struct op fused = {"aten::_fused_adamw_", ARGS(3, tensor(1, 1), tensor(2, 2), tensor(3, 3)), .list = 2};

	run(flow, (struct op){"aten::add", ARGS(3, tensor(1, 1), tensor(2, 2), tensor(3, 3)), RESULTS(1, tensor(3, 3))},
	    1);
	assert_int_equal(look(flow, tensor(3, 3)).producer, 1);
	assert_int_equal(look(flow, tensor(2, 2)).producer, TERRA_DATAFLOW_NONE);
	run(flow, foreach, 2);
	assert_int_equal(look(flow, tensor(1, 1)).producer, 2);
	assert_int_equal(look(flow, tensor(2, 2)).producer, 2);
	assert_int_equal(look(flow, tensor(3, 3)).producer, 1);
	run(flow, fused, 3);
	assert_int_equal(look(flow, tensor(3, 3)).producer, 3);
	foreach
		.count = 3; /* one of the list is not in the trace: it may be any */
	run(flow, foreach, 4);
	assert_int_equal(look(flow, tensor(1, 1)).producer, 4);
	assert_int_equal(look(flow, tensor(3, 3)).producer, TERRA_DATAFLOW_NONE);
	terra_dataflow_free(flow);
}

/* What ops inside make and write, the outermost made; its result is the value that the inner one began. */
static void test_inner_ops(void **state)
{
	const struct op outer = {"aten::zeros_like", ARGS(1, tensor(1, 1)), RESULTS(1, tensor(2, 2))};
	const struct op empty = {"aten::empty", RESULTS(1, tensor(2, 2))};
	struct terra_dataflow *flow = terra_dataflow_new();
	struct terra_dataflow_call call;
	struct terra_dataflow_ids inner, after;

	enter(flow, &outer, &call);
	run(flow, empty, 7);
	inner = look(flow, tensor(2, 2));
	run(flow, (struct op){"aten::add_", ARGS(1, tensor(1, 1)), RESULTS(1, tensor(1, 1))}, 7);
	leave(flow, &outer, &call, 7);
	after = look(flow, tensor(2, 2));
	assert_int_equal(after.producer, 7);
	assert_int_equal(after.storage, inner.storage);
	assert_int_equal(after.tensor, inner.tensor);
	assert_int_equal(look(flow, tensor(1, 1)).producer, 7);
	terra_dataflow_free(flow);
}

/* Addresses come again: as a result, or as an argument that differs from what was there. */
static void test_address_reuse(void **state)
{
	struct terra_dataflow *flow = terra_dataflow_new();
	struct terra_dataflow_ids first, second;
	struct terra_tensor other = tensor(1, 1);

	run(flow, (struct op){"aten::randn", RESULTS(1, tensor(1, 1))}, 1);
	first = look(flow, tensor(1, 1));
	run(flow, (struct op){"aten::randn", RESULTS(1, tensor(1, 1))}, 2);
	second = look(flow, tensor(1, 1));
	assert_int_equal(second.producer, 2);
	assert_int_not_equal(first.storage, second.storage);
	assert_int_not_equal(first.tensor, second.tensor);
	other.storage_bytes *= 2;
	assert_int_equal(look(flow, other).producer, TERRA_DATAFLOW_NONE);
	assert_int_not_equal(look(flow, other).storage, second.storage);
	terra_dataflow_free(flow);
}

/* resize_ keeps both addresses and has other memory afterwards. */
static void test_new_memory_in_place(void **state)
{
	struct terra_dataflow *flow = terra_dataflow_new();
	struct terra_tensor larger = tensor(1, 1);

	larger.storage_bytes = 4096;
	larger.storage_data = larger.data = 0x77770000;
	run(flow, (struct op){"aten::empty", RESULTS(1, tensor(1, 1))}, 1);
	run(flow, (struct op){"aten::resize_", ARGS(1, tensor(1, 1)), RESULTS(1, larger)}, 2);
	assert_int_equal(look(flow, larger).producer, 2);
	terra_dataflow_free(flow);
}

static void test_forgotten(void **state)
{
	struct terra_dataflow *flow = terra_dataflow_new();
	const struct op op = {"aten::mul", ARGS(1, tensor(1, 1)), RESULTS(1, tensor(2, 2))};
	struct terra_dataflow_call call;
	struct terra_dataflow_ids before, after;

	run(flow, op, 1);
	before = look(flow, tensor(2, 2));
	terra_dataflow_forget(flow);
	after = look(flow, tensor(2, 2));
	assert_int_equal(after.producer, TERRA_DATAFLOW_NONE);
	assert_true(after.storage > before.storage);
	run(flow, op, 2);
	enter(flow, &op, &call);
	terra_dataflow_drop(flow, &call);
	assert_int_equal(look(flow, tensor(2, 2)).producer, TERRA_DATAFLOW_NONE);
	terra_dataflow_free(flow);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_new_and_views), cmocka_unit_test(test_in_place),
	    cmocka_unit_test(test_out_and_void),  cmocka_unit_test(test_inner_ops),
	    cmocka_unit_test(test_address_reuse), cmocka_unit_test(test_new_memory_in_place),
	    cmocka_unit_test(test_forgotten),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
