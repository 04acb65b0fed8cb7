/* plan_ops.h - what plan lines mean, for those who build or match them. Part of the plan library. */
#ifndef TERRA_GRAPHOPT_PLAN_OPS_H
#define TERRA_GRAPHOPT_PLAN_OPS_H

#include <stdbool.h>
#include <stddef.h>

#include "graphopt/plan.h"

/* Whether the op writes its first argument: the schema language marks it by one trailing underscore of the name
 * ("aten::mul_.Tensor"), Python's in-place operators by the letter i ("aten::__iand__.Scalar"). */
bool terra_plan_op_in_place(const char *op);
/* Whether the op, or some op of the region, has a token r or l. */
bool terra_plan_op_by_rows(const struct terra_plan_op *op);
bool terra_plan_region_by_rows(const struct terra_plan_region *region);
/* Whether the token is an outside tensor's: i, b or r. */
bool terra_plan_token_is_input(const char *token);
/* The tokens of an op that stands alone, as a fallback does: what was a value of the region is an input, numbered anew by first
 * use; "" where the token stays as it is. */
void terra_plan_op_stand_alone(const struct terra_plan_op *op, char token[TERRA_PLAN_MAX_ARGS][8]);
/* Whether `form` is what the op is when it stands alone. */
bool terra_plan_op_is_alone_form(const struct terra_plan_op *op, const struct terra_plan_op *form);
/* "aten::mul.Tensor i0 s" into out (cut when too long). Returns the full length, as snprintf. */
int terra_plan_op_text(const struct terra_plan_op *op, char *out, size_t size);

/* Where --install puts the plan of a script, and where replay looks for it:
 * $XDG_CACHE_HOME/terra/plans/<hash>.plan, or under ~/.cache. The hash is over the script's real path and the build-id,
 * so a plan is found again only by the same program with the same library. Returns 0, -ENAMETOOLONG, -ENOENT without a
 * home directory, or what realpath said of the script. */
int terra_plan_install_path(const char *script_path, const char *build_id_hex, char *out, size_t n);

#endif
