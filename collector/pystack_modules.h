/* pystack_modules.h - which torch.nn.Module an address is: its path below the outermost module that is being called, as
 * named_modules() has it, read from a program's memory without its help.
 *
 * Modules are found by their `_modules` dicts. An index of all modules below a root is kept; whatever led to a module (the
 * dicts, their tables, the entry itself, the types) is read again whenever it is used, and must be what it was. So a path is
 * that of now, some milliseconds after the call that is asked about, or none.
 */
#ifndef TERRA_COLLECTOR_PYSTACK_MODULES_H
#define TERRA_COLLECTOR_PYSTACK_MODULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "collector/pystack_layout.h"
#include "collector/pystack_priv.h"

struct pystack_modules;

/* Whether instances and dicts of that interpreter are understood. */
bool pystack_modules_known(const struct pystack_layout *layout);

/* Borrows both. NULL when out of memory. */
struct pystack_modules *pystack_modules_new(struct pystack_process *process, const struct pystack_layout *layout);
void pystack_modules_free(struct pystack_modules *modules);

/* `selves`: the modules that are being called at `time_ns` (CLOCK_MONOTONIC), innermost first; the last is the root. Class of
 * the root, then the path of the innermost that is below it; NULL: not known. Lives as long as `modules`. */
const char *pystack_modules_path(struct pystack_modules *modules, const uint64_t *selves, uint32_t n, uint64_t time_ns);

#endif
