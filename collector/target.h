/* target.h - facts about the traced program and its machine that go into a trace's header. */
#ifndef TERRA_COLLECTOR_TARGET_H
#define TERRA_COLLECTOR_TARGET_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Whether process `pid` exists, is a process and may be looked into. 0, or -errno with what is wrong and what helps. */
int terra_target_check(pid_t pid, char *err, size_t err_size);

/* The path by which we reach what the process calls `path`: another one when its root folder is not ours. -ENAMETOOLONG
 * when `size` does not suffice. */
int terra_target_path(pid_t pid, const char *path, char *out, size_t size);

/* Calls `tell` for every child of process `pid`, of all its threads. Kernels without the list tell of none. */
void terra_target_children(pid_t pid, void (*tell)(void *context, pid_t parent, pid_t child), void *context);

/* First word of the process' command line, "" when it cannot be read. */
void terra_target_program(pid_t pid, char *out, size_t size);

/* Path, as we reach it, of the libtorch_cpu.so that process `pid` has mapped. 0, -ENOENT when it has none (yet), or
 * -errno. */
int terra_target_library(pid_t pid, char *path, size_t size);

/* "train" for `python -O train.py --epochs 3` and for ./train.py: the script's name, else that of the module after -m,
 * else that of the command; without folder and extension. malloc'ed; NULL when out of memory. */
char *terra_target_name(char *const *argv);

/* OpenMP threads that process `pid` starts with, if it has our environment; 0 when not known. */
uint32_t terra_target_threads(pid_t pid);

/* `size` bytes as hexadecimal digits; `out` holds 2 * size + 1. */
void terra_target_hex(const uint8_t *bytes, size_t size, char *out);

#endif
