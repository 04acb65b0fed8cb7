/* passive.c - ops that neither read nor write tensor data, by schema name.
 *
 * Views and their in-place metadata forms return another description of the same memory; allocations return memory that
 * nothing has been written to. Replay lets them run while the memory they describe waits for its contents. An op
 * belongs here only when its result is an alias in every case: reshape and contiguous copy at times, resize_ moves
 * memory.
 */
#include <string.h>

#include "graphopt/graph.h"

static const char *const passive_ops[] = {
    "aten::_conj",
    "aten::_neg_view",
    "aten::_reshape_alias",
    "aten::_unsafe_view",
    "aten::alias",
    "aten::as_strided",
    "aten::as_strided_",
    "aten::detach",
    "aten::detach_",
    "aten::diagonal",
    "aten::empty.memory_format",
    "aten::empty_like",
    "aten::empty_permuted",
    "aten::empty_strided",
    "aten::expand",
    "aten::imag",
    "aten::lift_fresh",
    "aten::movedim.int",
    "aten::movedim.intlist",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::permute",
    "aten::real",
    "aten::select.int",
    "aten::slice.Tensor",
    "aten::split.Tensor",
    "aten::split_with_sizes",
    "aten::squeeze",
    "aten::squeeze.dim",
    "aten::squeeze.dims",
    "aten::squeeze_",
    "aten::squeeze_.dim",
    "aten::squeeze_.dims",
    "aten::swapaxes_",
    "aten::swapdims_",
    "aten::t",
    "aten::t_",
    "aten::transpose.int",
    "aten::transpose_",
    "aten::unbind.int",
    "aten::unfold",
    "aten::unsqueeze",
    "aten::unsqueeze_",
    "aten::view",
    "aten::view.dtype",
    "aten::view_as_complex",
    "aten::view_as_real",
};

const char *const *passive_list(size_t *n)
{
	*n = sizeof(passive_ops) / sizeof(passive_ops[0]);
	return passive_ops;
}

bool passive_op(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(passive_ops) / sizeof(passive_ops[0]); i++)
		if (!strcmp(name, passive_ops[i]))
			return true;
	return false;
}
