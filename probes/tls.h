/* tls.h - a library's thread-local variables, seen from outside of the compiler: in another process (BPF) or without a
 * call (preload). The includer defines TERRA_READ(destination, size, address), which returns 0 when it could read.
 *
 * glibc's dynamic thread vector: the second word of the block that the thread pointer (fsbase) leads to is its address;
 * element n, of two words, begins with the address of module n's block, all ones while the thread has none; the element
 * before the first holds how many there are. calibrate_node.c checks that against the dynamic linker's own answer.
 */
#ifndef TERRA_PROBES_TLS_H
#define TERRA_PROBES_TLS_H

#ifndef __bpf__
#include <stdint.h>
#endif

/* Address of the module's block; 0: the thread has none, or it cannot be found. */
static inline __attribute__((always_inline)) uint64_t terra_tls_block(uint64_t thread_pointer, uint64_t module)
{
	uint64_t vector = 0, n = 0, block = 0;

	if (!thread_pointer || !module || TERRA_READ(&vector, 8, thread_pointer + 8) || TERRA_READ(&n, 8, vector - 16) ||
	    module > n || TERRA_READ(&block, 8, vector + 16 * module))
		return 0;
	return block == ~0ull ? 0 : block;
}

#endif
