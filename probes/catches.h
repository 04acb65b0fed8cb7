/* catches.h - where a handler of a C++ exception begins: code calls __cxa_begin_catch as the first thing in it.
 *
 * At that function's first instruction the stack pointer is that of the frame with the handler, less the return address.
 * What that frame called, directly or not, has been left: its return addresses lie at the stack pointer or below. That
 * holds for every handler, `catch (...)` that throws on included, and for exceptions that Python is to be told of.
 *
 * The function is in the C++ library that a program has loaded (or has in itself, which is not seen).
 */
#ifndef TERRA_PROBES_CATCHES_H
#define TERRA_PROBES_CATCHES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "probes/elf_file.h"

#define TERRA_BEGIN_CATCH "__cxa_begin_catch"

/* What a trace says where handlers are not seen. */
#define TERRA_CATCHES_GAP                                                                                              \
	"handlers of C++ exceptions are not seen: an op that raised may end as late as with the next one of its thread, "    \
	"which may count as inside it"

/* Whether a library of that path may bring the function, by its name: libstdc++ or libc++ of any version. */
bool terra_catches_library(const char *path);

/* File offset of a place in the library at `path` that every call of the function passes with the stack pointer still as it
 * came. 0 or -errno; -ENOENT when it is not in there. */
int terra_catches_find(const char *path, uint64_t *offset);

/* Whether the library at `path` calls the function in another one. */
bool terra_catches_elsewhere(const char *path);

/* The same of a file in memory. */
int terra_catches_find_in(const struct terra_elf *elf, uint64_t *offset);

#endif
