/* target.h - facts about the traced program and its machine that go into a trace's header. */
#ifndef TERRA_COLLECTOR_TARGET_H
#define TERRA_COLLECTOR_TARGET_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Path of the libtorch_cpu.so that process `pid` has mapped. 0, -ENOENT when it has none (yet), or -errno. */
int terra_target_library(pid_t pid, char *path, size_t size);

/* "train" for `python -O train.py --epochs 3` and for ./train.py: the script's name, else that of the module after -m,
 * else that of the command; without folder and extension. malloc'ed; NULL when out of memory. */
char *terra_target_name(char *const *argv);

/* OpenMP threads that process `pid` starts with, if it has our environment; 0 when not known. */
uint32_t terra_target_threads(pid_t pid);

/* `size` bytes as hexadecimal digits; `out` holds 2 * size + 1. */
void terra_target_hex(const uint8_t *bytes, size_t size, char *out);

#endif
