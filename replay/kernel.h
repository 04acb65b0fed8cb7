/* kernel.h - calls of the kernel about memory that no other library can stand in front of.
 *
 * Allocators and tracers put themselves in front of mmap and its like, and may go on by way of functions that this library
 * wraps itself (tcmalloc's mmap calls `syscall`). The arena makes its calls under its lock: what came back to us from there
 * would wait for that lock for ever.
 *
 * Sizes are bytes; results and errno as of the namesake in libc, unless said otherwise.
 */
#pragma once

#include <stddef.h>
#include <sys/mman.h>

/* Zeroed memory of our own, NULL if there is none; what is never touched takes up nothing. */
void *kernel_memory(size_t size);

/* mmap of private anonymous memory that is not reserved; `flags` are those about the place. */
void *kernel_map(void *at, size_t size, int prot, int flags);
int kernel_unmap(void *p, size_t size);
int kernel_protect(void *p, size_t size, int prot);
int kernel_advise(void *p, size_t size, int advice);

/* mremap to a fixed place, the size unchanged. */
void *kernel_move(void *from, size_t size, int flags, void *to);
