/* check_values.c - numbers that are likely to show a difference. */
#include <math.h>
#include <string.h>

#include "graphopt/check_internal.h"

uint64_t check_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static float from_bits(uint32_t bits)
{
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

static float special(uint64_t *random)
{
	static const uint32_t bits[] = {
	    0x00000000, 0x80000000, /* zeros */
	    0x3f800000, 0xbf800000, 0x40000000, 0x3f000000, 0xbf000000, 0x3f000001,
	    0x3effffff, 0x3f800001, 0xbf7fffff,					    /* around 1/2 and 1 */
	    0x7f800000, 0xff800000,						    /* infinities */
	    0x7fc00000, 0xffc00000, 0x7fc00001, 0xffc12345, 0x7f800001, 0xffa00000, /* NaNs, the last two signalling */
	    0x00000001, 0x80000001, 0x007fffff, 0x807fffff,			    /* denormals */
	    0x00800000, 0x80800000, 0x7f7fffff, 0xff7fffff,			    /* smallest normal, largest */
	    0x4b000001, 0xcb7fffff, 0x4b800001, 0x33800000, 0x33800001,		    /* 2^23, 2^24, half an ulp of 1 */
	    0x1f000000, 0x5f000000, 0x20000001, 0x60000001, /* squares near the ends of the range */
	    0x42b17218, 0xc2ce8ecf, 0x41200000, 0xc1200000, /* exp's ends; tanh, erf and the like saturate */
	};

	return from_bits(bits[check_random(random) % (sizeof(bits) / sizeof(bits[0]))]);
}

/* Sum of uniform numbers: near enough to normal. */
static float ordinary(uint64_t *random)
{
	uint64_t r = check_random(random);
	int32_t sum = 0;

	for (int i = 0; i < 4; i++)
		sum += (int32_t)(r >> 16 * i & 0xffff) - 0x8000;
	return (float)sum * 0x1p-15f * 1.7f + (float)(r & 0xff) * 0x1p-24f;
}

static float positive(uint64_t *random)
{
	uint64_t r = check_random(random);

	return ((float)(r & 0xffffff) + 1) * 0x1p-24f * (r >> 24 & 1 ? 1 : 0x1p-12f);
}

static float draw(enum check_values values, uint64_t *random)
{
	switch (values) {
	case CHECK_VALUES_ORDINARY:
		return ordinary(random);
	case CHECK_VALUES_POSITIVE:
		return positive(random);
	case CHECK_VALUES_MIXED:
		return check_random(random) % 8 ? ordinary(random) : special(random);
	case CHECK_VALUES_SPECIAL:
		return special(random);
	default:
		return from_bits((uint32_t)check_random(random));
	}
}

void check_fill(float *out, size_t n, enum check_values values, uint64_t *random)
{
	for (size_t i = 0; i < n; i++)
		out[i] = draw(values, random);
}

/* Numbers beyond float are not among them: as a Scalar they make the framework raise. */
double check_number(enum check_values values, uint64_t *random)
{
	static const double usual[] = {0.1, 0.9, 0.999, 1e-8, 1.0, -1.0, 0.044715, 0.7978845608028654,
				       2.0, 0.5, 1e-3,	-1.7, 3.0};
	static const double odd[] = {0.0,    -0.0, INFINITY,   -INFINITY, NAN,	      1e-42,
				     -1e-50, 3e38, 0.49999999, 0.5,	  16777217.0, 1e-300};
	const size_t n_usual = sizeof(usual) / sizeof(usual[0]), n_odd = sizeof(odd) / sizeof(odd[0]);
	uint64_t r = check_random(random);

	if (values >= CHECK_VALUES_MIXED && r % 3 == 0)
		return odd[(r >> 8) % n_odd];
	if (r % 5 == 0)
		return (double)(int64_t)check_random(random) * 0x1p-62;
	return usual[(r >> 8) % n_usual];
}
