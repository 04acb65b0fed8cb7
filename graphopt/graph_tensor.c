/* graph_tensor.c - what the passes ask of tensors. Replay asks the same of live tensors (replay/call.c), by the same
 * rules: what differs here is found there as a region that never matches. */
#include <string.h>

#include "graphopt/graph.h"

static const struct {
	const char *name;
	size_t size;
} dtypes[] = {
    {"f32", 4}, {"f64", 8}, {"f16", 2}, {"bf16", 2}, {"i64", 8}, {"i32", 4},
    {"i16", 2}, {"i8", 1},  {"u8", 1},	{"b8", 1},   {"c64", 8}, {"c128", 16},
};

size_t graph_dtype_size(const char *dtype)
{
	size_t i;

	for (i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++)
		if (!strcmp(dtypes[i].name, dtype))
			return dtypes[i].size;
	return 0;
}

bool graph_tensor_contiguous(const struct graph_tensor *tensor)
{
	uint64_t next = 1; /* unsigned: sizes may be anything in a damaged trace */
	int d;

	for (d = tensor->ndim; d-- > 0;) {
		if (tensor->size[d] != 1 && (uint64_t)tensor->stride[d] != next)
			return false;
		next *= (uint64_t)tensor->size[d];
	}
	return true;
}

void graph_tensor_range(const struct graph_tensor *tensor, uint64_t *begin, uint64_t *end)
{
	size_t size = graph_dtype_size(tensor->dtype);
	uint64_t last = 0;
	int d;

	*begin = *end = (uint64_t)tensor->offset * size;
	if (!tensor->numel)
		return;
	for (d = 0; d < tensor->ndim; d++)
		last += (uint64_t)tensor->stride[d] * (uint64_t)(tensor->size[d] - 1);
	*end += (last + 1) * size;
}

static bool broadcast(const struct graph_tensor *tensor, uint8_t ndim, int64_t *size)
{
	int64_t *own;
	int d;

	for (d = 0; d < tensor->ndim; d++) {
		own = &size[ndim - tensor->ndim + d];
		if (tensor->size[d] == *own || tensor->size[d] == 1)
			continue;
		if (*own != 1)
			return false;
		*own = tensor->size[d];
	}
	return true;
}

static bool has_domain(const struct graph_op *op, const char *letters, uint32_t i)
{
	return op->args[i].kind == GRAPH_TENSOR && !(i < strlen(letters) && letters[i] == 'r');
}

bool graph_op_domain(const struct graph_op *op, const char *letters, uint8_t *ndim, int64_t size[GRAPH_MAX_DIM])
{
	uint32_t i;
	int d;

	*ndim = 0;
	for (i = 0; i < op->n_args; i++)
		if (has_domain(op, letters, i) && op->args[i].tensor->ndim > *ndim)
			*ndim = op->args[i].tensor->ndim;
	for (d = 0; d < *ndim; d++)
		size[d] = 1;
	for (i = 0; i < op->n_args; i++)
		if (has_domain(op, letters, i) && !broadcast(op->args[i].tensor, *ndim, size))
			return false;
	return true;
}

bool graph_tensor_is_number(const struct graph_tensor *tensor)
{
	if (tensor->numel != 1)
		return false;
	if (!strcmp(tensor->dtype, "f32"))
		return true;
	return !tensor->ndim && (!strcmp(tensor->dtype, "f64") || !strcmp(tensor->dtype, "i64"));
}

bool graph_tensor_is_full(const struct graph_tensor *tensor, uint8_t ndim, const int64_t size[GRAPH_MAX_DIM])
{
	return tensor->ndim == ndim && !memcmp(tensor->size, size, ndim * sizeof(*size)) &&
	       graph_tensor_contiguous(tensor);
}
