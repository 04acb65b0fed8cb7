/* entry.c - the way in: two functions that torch's libraries look up in the global scope, where a preloaded library comes
 * first. Their first call says that libtorch is mapped and initialised. dlopen and dlsym stay untouched.
 *
 * at::globalContext is called when Python imports torch, before any op. c10::alloc_cpu is called by the first op that
 * makes a CPU tensor: what is left to a program without Python, or to a torch whose import changes.
 */
#include "collector/preload/preload.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef void *(*alloc_cpu_fn)(size_t);
typedef void *(*global_context_fn)(void);

__attribute__((visibility("default"))) void *_ZN3c109alloc_cpuEm(size_t size);
__attribute__((visibility("default"))) void *_ZN2at13globalContextEv(void);

static void *alloc_cpu, *global_context;

/* The definition that the program would have called without us. */
static void *find_original(void **slot, const char *library, const char *symbol)
{
	void *handle = dlopen(library, RTLD_NOLOAD | RTLD_LAZY);
	void *found = handle ? dlsym(handle, symbol) : NULL;

	if (!found) { /* a caller without a callee: there is nothing that could be returned */
		fprintf(stderr, "terra: %s was called, but %s does not have it\n", symbol, library);
		abort();
	}
	__atomic_store_n(slot, found, __ATOMIC_RELEASE);
	record_libtorch_seen();
	return found;
}

/* Throws what the original throws (compiled with -fexceptions). */
void *_ZN3c109alloc_cpuEm(size_t size)
{
	void *original = __atomic_load_n(&alloc_cpu, __ATOMIC_ACQUIRE);

	if (!original)
		original = find_original(&alloc_cpu, "libc10.so", "_ZN3c109alloc_cpuEm");
	return ((alloc_cpu_fn)original)(size);
}

/* Returns at::Context &. */
void *_ZN2at13globalContextEv(void)
{
	void *original = __atomic_load_n(&global_context, __ATOMIC_ACQUIRE);

	if (!original)
		original = find_original(&global_context, "libtorch_cpu.so", "_ZN2at13globalContextEv");
	return ((global_context_fn)original)();
}
