#include "collector/op_filter.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool matches_name(const char *pattern, const char *name, const char *overload)
{
	char whole[512];

	if (!fnmatch(pattern, name, 0))
		return true;
	return overload[0] && (size_t)snprintf(whole, sizeof(whole), "%s.%s", name, overload) < sizeof(whole) &&
	       !fnmatch(pattern, whole, 0);
}

static bool matches(const char *pattern, const struct terra_op *op)
{
	const char *colon = strrchr(op->name, ':');

	return matches_name(pattern, op->name, op->overload) ||
	       (colon && matches_name(pattern, colon + 1, op->overload));
}

/* Who names a composite op wants it, though the default levels leave it out; who has a pattern wants what is usual. */
static bool is_chosen(const struct terra_op *op, const char *pattern, uint32_t levels)
{
	bool named = !strpbrk(pattern, "*?[");

	return terra_op_chosen(op, levels | (named && levels & TERRA_LEVELS_OPS ? 1u << TERRA_LEVEL_CALL : 0));
}

static int apply(const struct terra_op_table *table, const char *pattern, uint32_t levels, uint8_t *mask, char *err,
		 size_t err_size)
{
	bool any = false, chosen = false;

	for (uint32_t i = 0; i < table->n_ops; i++) {
		if (!matches(pattern, &table->ops[i]))
			continue;
		any = true;
		if (is_chosen(&table->ops[i], pattern, levels))
			mask[i] = chosen = true;
	}
	snprintf(err, err_size, any ? "--ops %s: --levels leaves all such operators out" :
				      "--ops %s: no operator has such a name (--list-ops shows them)", pattern);
	return chosen ? 0 : -ENOENT;
}

int terra_op_filter(const struct terra_op_table *table, const char *patterns, uint32_t levels, uint8_t **mask, char *err,
		    size_t err_size)
{
	char *copy = strdup(patterns), *rest = copy, *pattern;
	int error = 0;

	*mask = calloc(table->n_ops + 1, 1);
	if (!copy || !*mask)
		error = -ENOMEM;
	while (!error && (pattern = strsep(&rest, ",")))
		if (*pattern)
			error = apply(table, pattern, levels, *mask, err, err_size);
	if (error == -ENOMEM)
		snprintf(err, err_size, "out of memory");
	free(copy);
	if (error) {
		free(*mask);
		*mask = NULL;
	}
	return error;
}
