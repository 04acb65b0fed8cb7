/* pystack.h - Python call stacks of a running CPython 3.11 to 3.15, without its help: file, function and line per
 * frame.
 *
 * Three steps, which may happen in different places:
 *   1. pystack_layout_load() finds the interpreter in a process, takes the offsets of its structures (published by 3.13
 *      and later, a table for 3.11 and 3.12) and checks them against the live stacks. A layout that does not give sane
 *      results is refused with a reason: then there are no stacks, never wrong ones.
 *   2. A walk (pystack_self() here, or pystack_walk.h in BPF) turns a thread's frames into small entries.
 *   3. pystack_names_resolve() turns entries into names and lines, from any thread, also of another process.
 */
#ifndef TERRA_COLLECTOR_PYSTACK_H
#define TERRA_COLLECTOR_PYSTACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "collector/pystack_layout.h"
#include "collector/trace.h"

/* Finds the interpreter of process `pid` (0: this one). Returns 0, or with a message in `err` (when not NULL):
 * -ENOENT: no Python interpreter is mapped (yet); -EAGAIN: there is one but no stack to check against (yet);
 * -ENOTSUP: an interpreter that is not understood; or -errno when the process cannot be read. */
int pystack_layout_load(pid_t pid, struct pystack_layout *out, char *err, size_t err_size);

/* The calling thread's stack, innermost frame first. For a layout of this process only; about 20 ns a frame, no locks,
 * no memory. Returns the number of entries (at most `max`); 0 for threads without Python. `*truncated` is set when
 * frames are missing at the outer end. */
uint32_t pystack_self(const struct pystack_layout *layout, struct pystack_entry *entries, uint32_t max,
		      bool *truncated);

/* Names of one process' code objects, cached. Not thread-safe. */
struct pystack_names;

/* `pid` 0: this process. NULL when out of memory. */
struct pystack_names *pystack_names_new(pid_t pid, const struct pystack_layout *layout);
void pystack_names_free(struct pystack_names *names);

/* Fills *frame; its strings live as long as `names`. An entry whose code object is gone gives "?" and line 0, and is
 * counted. A frame that has not begun gives the line of its def. Returns 0, -ENOMEM, or -EINVAL for an empty entry. */
int pystack_names_resolve(struct pystack_names *names, const struct pystack_entry *entry, struct terra_frame *frame);
/* The path of the torch.nn.Module whose call a stack of CLOCK_MONOTONIC `time_ns` is in, as pystack_modules.h has it. NULL: in
 * none, or not known. Lives as long as `names`. */
const char *pystack_names_module(struct pystack_names *names, const struct pystack_entry *entries, uint32_t n,
				 uint64_t time_ns);
/* A sentence about module paths that are missing; false when none are. */
#define PYSTACK_MODULES_REMARK 192
bool pystack_names_modules_remark(const struct pystack_names *names, char *text, size_t size);

uint64_t pystack_names_missing(const struct pystack_names *names);

/* Line of the instruction at byte `offset` in a PEP 626 location table; 0 when the table gives it none. */
int32_t pystack_line(const uint8_t *table, size_t size, int32_t first_line, uint32_t offset);

#endif
