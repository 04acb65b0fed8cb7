/* Replacements of single ops against the framework: random numbers, matrix products in tiles. */
#include "tests/unit/codegen_support.h"

static struct terra_plan *plan_of_bernoulli(void)
{
	struct terra_plan *plan = plan_of(NULL, 0);

	plan->n_replaces = 1;
	plan->replaces = calloc(1, sizeof(*plan->replaces));
	plan->replaces[0].op = strdup("aten::bernoulli_.float");
	plan->replaces[0].form = strdup("mt19937_bernoulli");
	make_code(plan, NULL);
	return plan;
}

static bool vendor_has_own_stream(void)
{
	unsigned int eax, ebx, ecx, edx;

	return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_INTEL_ebx;
}

/* Where the framework draws from the vendor's generator the check must say no, elsewhere yes. */
static void bernoulli_is_identical(void **state)
{
	const struct check_options options = {.framework = framework, .seed = 11, .measure = true, .repeats = 3};
	struct terra_plan *plan;
	struct check_result result;

	need_framework();
	plan = plan_of_bernoulli();
	if (check_replace(plan, &plan->replaces[0], &options, &result) < 0)
		fail_msg("%s", result.first);
	if (!result.identical && !vendor_has_own_stream())
		fail_msg("%s", result.first);
	if (result.identical)
		assert_true(plan->replaces[0].gain > 0 && result.compared > 100000);
	terra_plan_free(plan);
}

static terra_mt19937_bernoulli_fn right;

static void wrong_state(float *out, int64_t n, double p, uint32_t *state, int32_t *left, uint32_t *next)
{
	right(out, n, p, state, left, next);
	state[5] ^= 1;
}

static void wrong_draw(float *out, int64_t n, double p, uint32_t *state, int32_t *left, uint32_t *next)
{
	right(out, n, p, state, left, next);
	out[n - 1] = 1 - out[n - 1];
}

static void check_refuses_wrong_replacements(void **state)
{
	const struct check_options options = {.framework = framework, .seed = 11};
	const terra_mt19937_bernoulli_fn wrong[] = {wrong_state, wrong_draw};
	struct terra_plan *plan;
	struct check_result result;

	need_framework();
	plan = plan_of_bernoulli();
	right = (terra_mt19937_bernoulli_fn)(uintptr_t)plan->replaces[0].fn;
	for (int i = 0; i < 2; i++) {
		plan->replaces[0].fn = (void *)(uintptr_t)wrong[i];
		assert_int_equal(check_replace(plan, &plan->replaces[0], &options, &result), 0);
		assert_false(result.identical);
	}
	terra_plan_free(plan);
}

static struct terra_plan *plan_of_product(const char *op, const char *shape)
{
	struct terra_plan *plan = plan_of(NULL, 0);

	plan->n_replaces = 1;
	plan->replaces = calloc(1, sizeof(*plan->replaces));
	plan->replaces[0].op = strdup(op);
	plan->replaces[0].form = strdup("sgemm_tiles");
	plan->replaces[0].shape = strdup(shape);
	make_code(plan, NULL);
	return plan;
}

/* Every order in which the two can be stored, and sizes at and around the tile's. Whether the vendor's library adds up a tile
 * as it does the whole is its affair: on a machine where it does not, the kernel is not used. */
static void products_are_compared(void **state)
{
	static const struct {
		const char *op, *shape;
	} products[] = {{"aten::mm", "512x1024x40,n40,n1024,2,512x512b"},   {"aten::mm", "512x1025x40,n40,t40,2,512x513"},
			{"aten::mm", "513x511x33,t513,n511,2,512x511b"},    {"aten::mm", "700x1500x17,t700,t17,1,100x1500"},
			{"aten::mm", "2x3x4,n4,n3,1,2x3"},		    {"aten::mm", "600x600x64,n70,n640,2,7x600"},
			{"aten::addmm", "64x512x784,n784,t784,2,64x128"}, {"aten::addmm", "300x600x64,n64,n600,2,300x512b"}};
	struct check_options options = {.framework = framework, .seed = 3};
	struct check_result result;
	int identical = 0;

	need_framework();
	for (size_t i = 0; i < 2 * sizeof(products) / sizeof(products[0]); i++) {
		struct terra_plan *plan = plan_of_product(products[i / 2].op, products[i / 2].shape);
		struct terra_sgemm_shape shape;

		options.measure = i % 2;
		if (check_replace(plan, &plan->replaces[0], &options, &result) < 0)
			fail_msg("%s: %s", products[i / 2].shape, result.first);
		assert_true(result.compared > 0);
		assert_true(!options.measure || !result.identical || plan->replaces[0].gain > 0);
		/* As given, or the division that was found best. */
		assert_true(terra_plan_sgemm_shape(plan->replaces[0].shape, &shape));
		if (!options.measure)
			assert_string_equal(plan->replaces[0].shape, products[i / 2].shape);
		identical += result.identical;
		if (!result.identical)
			print_message("%s: %s\n", plan->replaces[0].shape, result.first);
		terra_plan_free(plan);
	}
	assert_true(identical > 0);
}

static terra_sgemm_tiles_fn right_tiles;

static void one_bit_off(const struct terra_sgemm_args *args, int64_t begin, int64_t end)
{
	right_tiles(args, begin, end);
	if (end == terra_plan_sgemm_tiles(&args->shape))
		((uint32_t *)args->c)[args->shape.m * args->shape.n - 1] ^= 1;
}

static void bias_left_out(const struct terra_sgemm_args *args, int64_t begin, int64_t end)
{
	struct terra_sgemm_args without = *args;

	without.bias = NULL;
	right_tiles(&without, begin, end);
}

static void a_tile_left_out(const struct terra_sgemm_args *args, int64_t begin, int64_t end)
{
	right_tiles(args, begin ? begin : 1, end);
}

/* The same sums in another order: A's columns and B's rows from the last to the first. */
static void other_order(const struct terra_sgemm_args *args, int64_t begin, int64_t end)
{
	const struct terra_sgemm_shape *s = &args->shape;

	if (begin)
		return;
	for (int64_t i = 0; i < s->m; i++)
		for (int64_t j = 0; j < s->n; j++) {
			float sum = 0;

			for (int64_t l = s->k; l-- > 0;)
				sum = fmaf(args->a[i * s->lda + l], args->b[l * s->ldb + j], sum);
			args->c[i * s->n + j] = sum;
		}
}

static void check_refuses_wrong_products(void **state)
{
	const terra_sgemm_tiles_fn wrong[] = {one_bit_off, a_tile_left_out, other_order, bias_left_out};
	struct check_options options = {.framework = framework, .seed = 3};
	struct check_result result;
	struct terra_plan *plan;

	need_framework();
	plan = plan_of_product("aten::addmm", "520x530x40,n40,n530,2,512x256");
	right_tiles = (terra_sgemm_tiles_fn)(uintptr_t)plan->replaces[0].fn;
	for (size_t i = 0; i < 2 * sizeof(wrong) / sizeof(wrong[0]); i++) {
		options.measure = i % 2; /* the search for a division must not make one right */
		plan->replaces[0].fn = (void *)(uintptr_t)wrong[i / 2];
		assert_int_equal(check_replace(plan, &plan->replaces[0], &options, &result), 0);
		assert_false(result.identical);
		assert_true(result.first[0]);
	}
	terra_plan_free(plan);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(bernoulli_is_identical),
	    cmocka_unit_test(check_refuses_wrong_replacements),
	    cmocka_unit_test(products_are_compared),
	    cmocka_unit_test(check_refuses_wrong_products),
	};

	return cmocka_run_group_tests(tests, open_framework, close_framework);
}
