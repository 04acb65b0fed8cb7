/* Iterations are found by the period of the op stream: streams shaped like programs, with the answer known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "collector/iterations.h"

struct stream {
	uint64_t ids[400000];
	size_t n;
	size_t begins[2000]; /* where iterations begin, as the generator knows */
	size_t ends[2000];
	uint32_t n_iterations;
};

static struct stream stream;
static uint64_t random_state;

static uint64_t random_u64(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static void op(uint64_t id)
{
	assert_true(stream.n < sizeof(stream.ids) / sizeof(stream.ids[0]));
	stream.ids[stream.n++] = id;
}

static void ops(uint64_t first, int n)
{
	for (int i = 0; i < n; i++)
		op(first + (uint64_t)i);
}

/* What a training program looks like. All counts in ops. */
struct program {
	int init;        /* before the loop, all different */
	int layers;      /* of the same ops */
	int forward;     /* of a layer */
	int backward;    /* of a layer */
	int head;        /* loss and its backward */
	int optimizer;   /* per layer, in a loop over parameters */
	int state;       /* the optimizer's first step makes its state, per layer */
	int print_every; /* 0: never */
	int eval_every;  /* 0: never; forward of three batches */
	int iterations;
	int rest;        /* ops after the loop, all different */
};

static void forward(const struct program *p)
{
	for (int i = 0; i < p->layers; i++)
		ops(1000, p->forward);
}

static void iteration(const struct program *p, int step)
{
	stream.begins[stream.n_iterations] = stream.n;
	op(900);
	op(901);
	forward(p);
	ops(2000, p->head);
	for (int i = 0; i < p->layers; i++)
		ops(3000, p->backward);
	for (int i = 0; i < p->layers; i++) {
		if (step == 0)
			ops(5000, p->state);
		ops(4000, p->optimizer);
	}
	if (p->print_every && step % p->print_every == 0)
		ops(6000, 2);
	stream.ends[stream.n_iterations++] = stream.n;
	if (p->eval_every && step % p->eval_every == p->eval_every - 1)
		for (int i = 0; i < 3; i++) {
			ops(950, 3);
			forward(p);
			ops(7000, 4);
		}
}

static void run(const struct program *p)
{
	memset(&stream, 0, sizeof(stream));
	for (int i = 0; i < p->layers; i++)
		ops(500, 6);
	ops(10000, p->init);
	for (int i = 0; i < p->iterations; i++)
		iteration(p, i);
	ops(20000, p->rest);
}

static void expect(const struct program *p, uint32_t at_least)
{
	struct terra_iterations found;
	uint32_t item = 0;

	run(p);
	assert_int_equal(terra_iterations_find(stream.ids, stream.n, &found), 0);
	assert_true(found.n >= at_least);
	/* Every one found is one of the program's: it begins where that begins and ends with it, or with what follows
	 * up to the next. */
	for (uint32_t i = 0; i < found.n; i++) {
		while (item < stream.n_iterations && stream.begins[item] < found.items[i].begin)
			item++;
		assert_true(item < stream.n_iterations);
		assert_int_equal(found.items[i].begin, stream.begins[item]);
		assert_in_range(found.items[i].end, stream.ends[item] - 2, stream.ends[item]);
	}
	assert_int_equal(found.period, 2 + p->layers * (p->forward + p->backward + p->optimizer) + p->head);
	assert_true(found.steady < found.n);
	assert_int_equal(found.items[found.steady].end - found.items[found.steady].begin, found.period);
	terra_iterations_free(&found);
}

static const struct program mlp = {.init = 10, .layers = 3, .forward = 4, .backward = 6, .head = 5, .optimizer = 9,
				   .state = 2, .iterations = 40};
static const struct program gpt = {.init = 40, .layers = 12, .forward = 30, .backward = 60, .head = 12, .optimizer = 14,
				   .state = 3, .print_every = 10, .iterations = 30, .rest = 9};

static void test_plain_loop(void **state)
{
	struct program p = mlp;

	p.state = 0;
	expect(&p, 40);
}

static void test_first_step_differs(void **state)
{
	expect(&mlp, 39);
	expect(&gpt, 29);
}

static void test_prints(void **state)
{
	struct program p = mlp;

	for (int every = 1; every <= 12; every++) {
		p.print_every = every == 1 ? 0 : every;
		expect(&p, 39);
	}
}

static void test_evaluation_between(void **state)
{
	struct program p = gpt;

	p.eval_every = 7;
	p.rest = 500;
	expect(&p, 29);
}

/* A loop over many equal layers covers most of the stream, but not all. */
static void test_deep_model(void **state)
{
	struct program p = gpt;

	p.layers = 60;
	p.optimizer = 100;
	expect(&p, 29);
	p.iterations = 3;
	expect(&p, 2);
}

static void test_few_iterations(void **state)
{
	struct program p = gpt;

	for (p.iterations = 3; p.iterations < 8; p.iterations++)
		expect(&p, (uint32_t)p.iterations - 1);
	p.state = 20; /* the first step is too long to be one of them, and still they begin where it begins */
	p.rest = 0;
	for (p.iterations = 3; p.iterations < 8; p.iterations++)
		expect(&p, (uint32_t)p.iterations - 1);
	p = mlp;
	p.state = 0;
	p.iterations = 2;
	expect(&p, 2);
}

static void test_long_prefix(void **state)
{
	struct program p = gpt;

	p.init = 20000;
	p.iterations = 6;
	expect(&p, 5);
}

static void test_tiny_loops(void **state)
{
	for (int period = 1; period < 12; period++) {
		struct terra_iterations found;

		memset(&stream, 0, sizeof(stream));
		ops(500, 5);
		for (int i = 0; i < 50; i++)
			ops(1000, period);
		assert_int_equal(terra_iterations_find(stream.ids, stream.n, &found), 0);
		assert_int_equal(found.period, period);
		assert_in_range(found.n, 47, 50);
		assert_in_range(found.items[0].begin, 5, 5 + 3 * (uint64_t)period);
		terra_iterations_free(&found);
	}
}

/* Ops of the prefix come back in the iterations: the loop still begins where it begins. */
static void test_prefix_shares_ops(void **state)
{
	struct terra_iterations found;

	memset(&stream, 0, sizeof(stream));
	ops(1040, 10);
	ops(500, 30);
	for (int i = 0; i < 20; i++)
		ops(1000, 100);
	assert_int_equal(terra_iterations_find(stream.ids, stream.n, &found), 0);
	assert_int_equal(found.n, 20);
	assert_int_equal(found.items[0].begin, 40);
	assert_int_equal(found.period, 100);
	terra_iterations_free(&found);
}

static void test_no_period(void **state)
{
	struct terra_iterations found;

	memset(&stream, 0, sizeof(stream));
	assert_int_equal(terra_iterations_find(stream.ids, 0, &found), -ENOENT);
	ops(1, 5000);
	for (size_t n = 1; n <= 5000; n = n * 3 + 1)
		assert_int_equal(terra_iterations_find(stream.ids, n, &found), -ENOENT);
	random_state = 42;
	stream.n = 0;
	for (int i = 0; i < 20000; i++)
		op(random_u64() % 50);
	assert_int_equal(terra_iterations_find(stream.ids, stream.n, &found), -ENOENT);
}

/* Any stream gives an answer in which iterations are in order, apart and within the stream. */
static void test_random_streams(void **state)
{
	random_state = 7;
	for (int round = 0; round < 300; round++) {
		struct terra_iterations found;
		uint64_t alphabet = 1 + random_u64() % 9, end = 0;
		int err;

		stream.n = 0;
		for (uint64_t i = 0, n = random_u64() % 400; i < n; i++)
			op(random_u64() % alphabet);
		err = terra_iterations_find(stream.ids, stream.n, &found);
		assert_true(err == 0 || err == -ENOENT);
		for (uint32_t i = 0; !err && i < found.n; i++) {
			assert_true(found.items[i].begin >= end);
			assert_true(found.items[i].end > found.items[i].begin);
			end = found.items[i].end;
		}
		assert_true(end <= stream.n);
		if (!err)
			terra_iterations_free(&found);
	}
}

/* While running: never more than there are, and not much later than they are complete. */
static void expect_live(const struct program *p, size_t min_ops)
{
	struct terra_iteration_finder *finder = terra_iteration_finder_new(min_ops);
	int64_t reported = 0;
	uint32_t complete = 0;

	run(p);
	for (size_t i = 0; i < stream.n; i++) {
		int64_t now = terra_iteration_finder_feed(finder, stream.ids[i]);

		while (complete < stream.n_iterations && stream.ends[complete] <= i + 1)
			complete++;
		assert_true(now >= reported);
		assert_true(now <= complete);
		if (i >= min_ops + min_ops / 2 && complete >= 4)
			assert_true(now + 3 + complete / 3 >= complete);
		reported = now;
	}
	assert_true(reported + 3 >= stream.n_iterations);
	terra_iteration_finder_free(finder);
}

static void test_live(void **state)
{
	struct program p = mlp;

	p.iterations = 400;
	expect_live(&p, 400);
	p.print_every = 10;
	expect_live(&p, TERRA_ITERATION_MIN_OPS);
	p = gpt;
	p.iterations = 60;
	expect_live(&p, TERRA_ITERATION_MIN_OPS);
}

/* Two thirds of the way through the first forward pass a loop over layers must not count as iterations. */
static void test_live_in_layers(void **state)
{
	struct terra_iteration_finder *finder = terra_iteration_finder_new(TERRA_ITERATION_MIN_OPS);
	struct program p = {.layers = 80, .forward = 100, .iterations = 1};

	run(&p);
	assert_true(stream.n < TERRA_ITERATION_MIN_OPS + 512);
	for (size_t i = 0; i < TERRA_ITERATION_MIN_OPS - 1; i++)
		assert_int_equal(terra_iteration_finder_feed(finder, stream.ids[i]), 0);
	terra_iteration_finder_free(finder);
}

/* Events: one enclosing op with one inside, fed as a trace would. */
static void add_op(struct terra_op_stream *s, uint64_t *seq, const char *name, struct terra_tensor *t, uint32_t thread)
{
	struct terra_value value = {.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = t};
	struct terra_event enter = {.type = TERRA_EVENT_OP_ENTER, .op = name, .overload = "", .thread = thread,
				    .n_values = 1, .values = &value, .parent_seq = UINT64_MAX, .seq = *seq};
	struct terra_event inner = enter;
	struct terra_event exit = {.type = TERRA_EVENT_OP_EXIT, .thread = thread, .op = name, .overload = ""};

	inner.level = TERRA_LEVEL_REDISPATCH;
	inner.parent_seq = enter.seq;
	inner.seq = enter.seq + 1;
	assert_int_equal(terra_op_stream_add(s, &enter), 0);
	assert_int_equal(terra_op_stream_add(s, &inner), 0);
	exit.seq = enter.seq + 2;
	assert_int_equal(terra_op_stream_add(s, &exit), 0);
	exit.seq = enter.seq + 3;
	assert_int_equal(terra_op_stream_add(s, &exit), 0);
	*seq += 4;
}

/* `batch` 0: another one each step. */
static void expect_stream(int64_t batch, bool shapes)
{
	static const char *const names[] = {"aten::linear", "aten::relu", "aten::mse_loss", "aten::add_", "aten::neg"};
	struct terra_op_stream *s = terra_op_stream_new();
	struct terra_tensor t = {.defined = 1, .ndim = 2, .dtype = 6, .size = {batch, 8}};
	struct terra_iterations found;
	uint64_t seq = 0;

	for (int i = 0; i < 7; i++)
		add_op(s, &seq, i % 2 ? "aten::normal_" : "aten::uniform_", &t, 10);
	for (int step = 0; step < 20; step++) {
		t.size[0] = batch ? batch : (step * 7) % 13 + 1;
		for (int i = 0; i < 5; i++) {
			add_op(s, &seq, names[i], &t, 10);
			if (i == 2)
				add_op(s, &seq, "aten::copy_", &t, 11);
		}
	}
	assert_int_equal(terra_op_stream_iterations(s, 10, &found), 0);
	assert_int_equal(found.n, 20);
	assert_int_equal(found.period, 10);
	assert_int_equal(found.shapes, shapes);
	assert_int_equal(found.thread, 10);
	for (uint32_t i = 0; i < 20; i++) {
		assert_int_equal(found.items[i].begin, 4 * (7 + 6 * i));
		assert_int_equal(found.items[i].end, 4 * (7 + 6 * (i + 1)));
	}
	terra_iterations_free(&found);
	assert_int_equal(terra_op_stream_iterations(s, 99, &found), 0); /* no such thread: the busiest */
	assert_int_equal(found.thread, 10);
	terra_iterations_free(&found);
	terra_op_stream_free(s);
}

static void test_op_stream(void **state)
{
	expect_stream(4, true);
	expect_stream(0, false);
}

static void test_identity(void **state)
{
	struct terra_tensor a = {.defined = 1, .ndim = 2, .dtype = 6, .size = {3, 4}}, b = a;
	struct terra_value x = {.kind = TERRA_KIND_TENSOR, .present = 1, .u.tensor = &a}, y = x;
	struct terra_event e = {.op = "aten::add", .overload = "Tensor", .n_values = 1, .values = &x}, f = e;

	y.u.tensor = &b;
	f.values = &y;
	b.impl = b.data = 77;
	assert_int_equal(terra_op_identity(&e, true), terra_op_identity(&f, true));
	b.size[1] = 5;
	assert_int_not_equal(terra_op_identity(&e, true), terra_op_identity(&f, true));
	assert_int_equal(terra_op_identity(&e, false), terra_op_identity(&f, false));
	f.level = 1;
	assert_int_not_equal(terra_op_identity(&e, false), terra_op_identity(&f, false));
	f.level = 0;
	f.overload = "Scalar";
	assert_int_not_equal(terra_op_identity(&e, false), terra_op_identity(&f, false));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_plain_loop),
		cmocka_unit_test(test_first_step_differs),
		cmocka_unit_test(test_prints),
		cmocka_unit_test(test_evaluation_between),
		cmocka_unit_test(test_deep_model),
		cmocka_unit_test(test_few_iterations),
		cmocka_unit_test(test_long_prefix),
		cmocka_unit_test(test_tiny_loops),
		cmocka_unit_test(test_prefix_shares_ops),
		cmocka_unit_test(test_no_period),
		cmocka_unit_test(test_random_streams),
		cmocka_unit_test(test_live),
		cmocka_unit_test(test_live_in_layers),
		cmocka_unit_test(test_op_stream),
		cmocka_unit_test(test_identity),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
