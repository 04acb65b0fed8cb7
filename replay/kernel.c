/* kernel.c - see kernel.h. */
#include "replay/kernel.h"

#include <errno.h>
#include <sys/syscall.h>

#ifndef __x86_64__
#error "the kernel's calling convention is written down for x86-64 only"
#endif

#define LAST_ERROR 4095 /* the kernel's answers from -4095 to -1 are errors */

/* The sixth argument, the offset of a mapping, is 0: none of ours is of a file. */
static long ask(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = 0;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	if (result < 0 && result >= -LAST_ERROR) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

void *kernel_map(void *at, size_t size, int prot, int flags)
{
	flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	return (void *)ask(SYS_mmap, (long)at, (long)size, prot, flags, -1);
}

void *kernel_memory(size_t size)
{
	void *p = kernel_map(NULL, size, PROT_READ | PROT_WRITE, 0);

	return p == MAP_FAILED ? NULL : p;
}

int kernel_unmap(void *p, size_t size)
{
	return (int)ask(SYS_munmap, (long)p, (long)size, 0, 0, 0);
}

int kernel_protect(void *p, size_t size, int prot)
{
	return (int)ask(SYS_mprotect, (long)p, (long)size, prot, 0, 0);
}

int kernel_advise(void *p, size_t size, int advice)
{
	return (int)ask(SYS_madvise, (long)p, (long)size, advice, 0, 0);
}

void *kernel_move(void *from, size_t size, int flags, void *to)
{
	return (void *)ask(SYS_mremap, (long)from, (long)size, (long)size, flags, (long)to);
}
