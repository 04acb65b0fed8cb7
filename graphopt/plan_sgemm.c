/* plan_sgemm.c - the shape of a matrix product as one word of a plan. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/plan.h"

#define LARGEST (1 << 24) /* of any size, so that no product of two overflows; the vendor's sizes are 32 bits */
#define MAX_THREADS 1024

/* A number in [1, most] and the character behind it. */
static bool read_number(const char **at, char end, int64_t most, int64_t *out)
{
	char *stop;

	if (**at < '1' || **at > '9')
		return false;
	*out = strtoll(*at, &stop, 10);
	if (*out > most || *stop != end)
		return false;
	*at = stop + (end != '\0');
	return true;
}

static bool read_order(const char **at, bool *transposed)
{
	char c = *(*at)++;

	*transposed = c == 't';
	return c == 't' || c == 'n';
}

/* "<columns>" or "<columns>b". */
static bool read_tile_end(const char *text, struct terra_sgemm_shape *out)
{
	size_t n = strlen(text);

	out->buffered = n && text[n - 1] == 'b';
	return read_number(&text, out->buffered ? 'b' : '\0', LARGEST, &out->columns) && !*text;
}

static bool tile_is_possible(const struct terra_sgemm_shape *shape)
{
	return shape->rows <= shape->m && shape->columns <= shape->n &&
	       (!shape->buffered || (shape->rows <= TERRA_SGEMM_BUFFER && shape->columns <= TERRA_SGEMM_BUFFER));
}

bool terra_plan_sgemm_shape(const char *text, struct terra_sgemm_shape *out)
{
	int64_t threads;

	memset(out, 0, sizeof(*out));
	if (!read_number(&text, 'x', LARGEST, &out->m) || !read_number(&text, 'x', LARGEST, &out->n) ||
	    !read_number(&text, ',', LARGEST, &out->k) || !read_order(&text, &out->a_transposed) ||
	    !read_number(&text, ',', LARGEST, &out->lda) || !read_order(&text, &out->b_transposed) ||
	    !read_number(&text, ',', LARGEST, &out->ldb) || !read_number(&text, ',', MAX_THREADS, &threads) ||
	    !read_number(&text, 'x', LARGEST, &out->rows) || !read_tile_end(text, out))
		return false;
	out->threads = (uint32_t)threads;
	return out->m > 1 && out->n > 1 && out->k > 1 && out->lda >= (out->a_transposed ? out->m : out->k) &&
	       out->ldb >= (out->b_transposed ? out->k : out->n) && tile_is_possible(out);
}

void terra_plan_sgemm_text(const struct terra_sgemm_shape *shape, char *out, size_t size)
{
	snprintf(out, size, "%lldx%lldx%lld,%c%lld,%c%lld,%u,%lldx%lld%s", (long long)shape->m, (long long)shape->n, (long long)shape->k,
		 shape->a_transposed ? 't' : 'n', (long long)shape->lda, shape->b_transposed ? 't' : 'n',
		 (long long)shape->ldb, shape->threads, (long long)shape->rows, (long long)shape->columns,
		 shape->buffered ? "b" : "");
}

int64_t terra_plan_sgemm_tiles(const struct terra_sgemm_shape *shape)
{
	return ((shape->m + shape->rows - 1) / shape->rows) * ((shape->n + shape->columns - 1) / shape->columns);
}
