/* find.h - finds the libtorch_cpu.so that a Python program would load, without running Python. */
#ifndef TERRA_PROBES_FIND_H
#define TERRA_PROBES_FIND_H

#include <stdbool.h>
#include <stddef.h>

/* Writes the path of libtorch_cpu.so to `path`. Looked at, in this order: the variable TERRA_LIBTORCH; the folders of
 * PYTHONPATH; the packages of `python`, which is an interpreter or a script that names one in its first line, found
 * through PATH when it has no '/'. NULL: python3 of VIRTUAL_ENV, else python3, else python on PATH.
 * Returns 0; -ENAMETOOLONG when `size` does not suffice; -ENOENT when there is none, `path` then being ""; -errno with
 * the path in `path` when TERRA_LIBTORCH names a file that can't be read. */
int terra_find_libtorch(const char *python, char *path, size_t size);

/* The library that a program will use: the one that was `named` for it, if any, else the one that it will look for. False when
 * that can't be told (`program` may be ""). */
bool terra_find_named(const char *named, const char *program, char *path, size_t size);

#endif
