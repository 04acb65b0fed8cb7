/* storage.c - libtorch's thread-local storage of the calling thread, where autograd keeps what decode.h reads.
 *
 * It is found as the bpf backend finds it, after a call of libtorch has made sure that the thread has it and that the
 * dynamic linker's vector of this thread knows it.
 */
#include "collector/preload/preload.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>

/* The vector is read right after a call that went through it: plain reads do. */
#define TERRA_READ(destination, size, address) (memcpy((destination), (const void *)(uintptr_t)(address), (size)), 0)
#include "probes/tls.h"

static struct {
	uint64_t (*next)(void); /* of libtorch; reads a word of the storage */
	uint64_t module;
} storage;

static int find_module(struct dl_phdr_info *info, size_t size, void *library)
{
	if (strcmp(info->dlpi_name, library) != 0)
		return 0;
	storage.module = info->dlpi_tls_modid;
	return 1;
}

void record_storage_open(const char *path, void *library)
{
	storage.next = (uint64_t (*)(void))dlsym(library, "_ZN2at15sequence_number4peekEv");
	dl_iterate_phdr(find_module, (void *)path);
}

uint64_t record_storage_block(void)
{
	uint64_t thread_pointer;

	if (!storage.next || !storage.module)
		return 0;
	storage.next();
	__asm__("mov %%fs:0, %0" : "=r"(thread_pointer));
	return terra_tls_block(thread_pointer, storage.module);
}
