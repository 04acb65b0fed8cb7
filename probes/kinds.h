/* kinds.h - what each C++ parameter type of an op means and how it travels. */
#ifndef TERRA_PROBES_KINDS_H
#define TERRA_PROBES_KINDS_H

#include "probes/mangle.h"

/* Fills `out` for the type spelled in `text` (no terminator needed). A type that is not in the table is opaque; its
 * class is known only for pointers and references. NULL: a type that could not be parsed. */
void terra_kind_classify(const char *text, size_t size, struct terra_parameter *out);

#endif
