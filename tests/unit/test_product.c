/* test_product.c - the question that replay asks before it multiplies in tiles: is this full precision?
 *
 * No processor here multiplies float32 in fewer bits, so the framework's place is taken by products in the formats that
 * others have. What is tested is the answer to the question.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "replay/product.c"

#define MOST 8

struct framework framework;
struct replay_counts replay_counts;

struct matrix {
	float data[PROBE * PROBE];
	bool used;
};
static struct matrix matrices[MOST];
static const int64_t sizes[2] = {PROBE, PROBE}, strides[2] = {PROBE, 1};

void framework_empty(void *result, const int64_t *size, int64_t ndim)
{
	for (int i = 0; i < MOST; i++) {
		if (matrices[i].used)
			continue;
		matrices[i].used = true;
		*(struct matrix **)result = &matrices[i];
		return;
	}
	fail_msg("tensors are lost");
}

void framework_drop(void *result)
{
	(*(struct matrix **)result)->used = false;
}

bool framework_view(const void *tensor, struct tensor_view *out)
{
	struct matrix *m = *(struct matrix *const *)tensor;

	*out = (struct tensor_view){.data = m->data, .numel = PROBE * PROBE, .ndim = 2, .size = sizes, .stride = strides};
	return true;
}

bool framework_has_names(const void *tensor)
{
	return false;
}

const void *call_object(const struct terra_arg *arg, const struct hook_regs *regs)
{
	return NULL;
}

bool framework_scalar(const void *scalar, double *out)
{
	return false;
}

int framework_thread_number(void)
{
	return 0;
}

void framework_alone(int64_t n, void (*fn)(int64_t begin, int64_t end, void *ctx), void *ctx)
{
	fn(0, n, ctx);
}

void framework_parallel(int64_t n, int64_t piece, void (*fn)(int64_t begin, int64_t end, void *ctx), void *ctx)
{
	fn(0, n, ctx);
}

/* The float with its last bits cut off, as a format with fewer bits has it. */
static float cut(float x, int bits)
{
	union {
		float f;
		uint32_t u;
	} number = {.f = x};

	number.u &= ~0u << bits;
	return number.f;
}

static int cut_off;   /* bits that a factor loses */
static bool in_parts; /* the products of factors' upper halves, and of upper and lower, added: what three products of a
			 16-bit format give */

static float times(float a, float b)
{
	float high_a = cut(a, cut_off), high_b = cut(b, cut_off);

	return in_parts ? high_a * high_b + high_a * (b - high_b) + (a - high_a) * high_b : high_a * high_b;
}

static void multiply(void *result, uint64_t keyset, const void *a, const void *b)
{
	const float *x = (*(struct matrix *const *)a)->data, *y = (*(struct matrix *const *)b)->data;
	float *z;

	framework_empty(result, sizes, 2);
	z = (*(struct matrix **)result)->data;
	for (int i = 0; i < PROBE; i++)
		for (int j = 0; j < PROBE; j++) {
			z[i * PROBE + j] = 0;
			for (int l = 0; l < PROBE; l++)
				z[i * PROBE + j] += times(x[i * PROBE + l], y[l * PROBE + j]);
		}
}

/* With a bias of nothing, as replay passes it. */
static void multiply_and_add(void *result, uint64_t keyset, const void *bias, const void *a, const void *b, const void *beta,
			     const void *alpha)
{
	const float *add = (*(struct matrix *const *)bias)->data;
	float *z;

	assert_ptr_equal(beta, &cut_off);
	assert_ptr_equal(alpha, &in_parts);
	multiply(result, keyset, a, b);
	z = (*(struct matrix **)result)->data;
	for (int i = 0; i < PROBE * PROBE; i++)
		z[i] += add[i % PROBE];
}

static const struct product_original originals[] = {
    {.fn = (void (*)(void))multiply},
    {.fn = (void (*)(void))multiply_and_add, .beta = &cut_off, .alpha = &in_parts},
};

static void test_full_precision(void **state)
{
	cut_off = 0;
	in_parts = false;
	for (int i = 0; i < 3 * MOST; i++) /* more often than there are tensors: none is kept */
		assert_true(product_is_exact(&originals[i % 2]));
}

static void test_shorter_formats(void **state)
{
	in_parts = false;
	for (cut_off = 13; cut_off <= 16; cut_off++) /* 10 bits behind the point (tf32, half) to 7 (bfloat16) */
		for (int i = 0; i < 2; i++)
			assert_false(product_is_exact(&originals[i]));
}

static void test_in_parts(void **state)
{
	in_parts = true;
	cut_off = 16;
	for (int i = 0; i < 2; i++)
		assert_false(product_is_exact(&originals[i]));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_full_precision),
	    cmocka_unit_test(test_shorter_formats),
	    cmocka_unit_test(test_in_parts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
