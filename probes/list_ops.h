/* list_ops.h - prints an op table for people (and programs): `terra-trace --list-ops`. */
#ifndef TERRA_PROBES_LIST_OPS_H
#define TERRA_PROBES_LIST_OPS_H

#include <stdbool.h>
#include <stdio.h>

/* One op a line with the place of each argument at its entry, then the totals; or all of it as one JSON object.
 * `library` NULL: the one terra_find_libtorch finds. Returns 0 or -errno, after a message on stderr. */
int terra_list_ops(const char *library, bool json, FILE *out);

#endif
