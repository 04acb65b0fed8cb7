/* syscalls.c - system calls do not fault on closed pages, they fail: run what waits before the kernel looks.
 *
 * Each wrapper looks at the memory that the call is given and flushes when any of it is closed. What reaches the kernel
 * without passing here (inline system calls, io_uring submissions) is named in docs/TRANSPARENCY.md.
 */
#include <aio.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "replay/replay.h"

static void give(const void *p, size_t n)
{
#ifndef TERRA_NO_GUARD_SYSCALLS
	if (replay_attention.pending != 0 && n > 0 && !guard_admits(p, n))
		queue_flush(FLUSH_SYSCALL);
#endif
}

static void give_vector(const struct iovec *iov, size_t n)
{
	for (size_t i = 0; replay_attention.pending != 0 && i < n; i++)
		give(iov[i].iov_base, iov[i].iov_len);
}

static void give_message(const struct msghdr *msg)
{
	if (replay_attention.pending != 0 && msg != NULL)
		give_vector(msg->msg_iov, msg->msg_iovlen);
}

/* Calls whose arguments we can't judge: whatever waits is run. */
static void give_all(void)
{
#ifndef TERRA_NO_GUARD_SYSCALLS
	queue_flush(FLUSH_SYSCALL);
#endif
}

#define WRAP(ret, name, params, args, prepare)                                                                         \
	REPLAY_EXPORT ret name params                                                                                  \
	{                                                                                                              \
		static ret(*real) params;                                                                              \
		if (real == NULL)                                                                                      \
			real = (ret(*) params)dlsym(RTLD_NEXT, #name);                                                 \
		prepare;                                                                                               \
		return real args;                                                                                      \
	}

WRAP(ssize_t, read, (int fd, void *p, size_t n), (fd, p, n), give(p, n))
WRAP(ssize_t, write, (int fd, const void *p, size_t n), (fd, p, n), give(p, n))
WRAP(ssize_t, pread, (int fd, void *p, size_t n, off_t at), (fd, p, n, at), give(p, n))
WRAP(ssize_t, pread64, (int fd, void *p, size_t n, off64_t at), (fd, p, n, at), give(p, n))
WRAP(ssize_t, pwrite, (int fd, const void *p, size_t n, off_t at), (fd, p, n, at), give(p, n))
WRAP(ssize_t, pwrite64, (int fd, const void *p, size_t n, off64_t at), (fd, p, n, at), give(p, n))
WRAP(ssize_t, readv, (int fd, const struct iovec *v, int n), (fd, v, n), give_vector(v, (size_t)n))
WRAP(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n), give_vector(v, (size_t)n))
WRAP(ssize_t, preadv, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at), give_vector(v, (size_t)n))
WRAP(ssize_t, preadv64, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at), give_vector(v, (size_t)n))
WRAP(ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at), give_vector(v, (size_t)n))
WRAP(ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at), give_vector(v, (size_t)n))
WRAP(ssize_t, preadv2, (int fd, const struct iovec *v, int n, off_t at, int flags), (fd, v, n, at, flags),
     give_vector(v, (size_t)n))
WRAP(ssize_t, preadv64v2, (int fd, const struct iovec *v, int n, off64_t at, int flags), (fd, v, n, at, flags),
     give_vector(v, (size_t)n))
WRAP(ssize_t, pwritev2, (int fd, const struct iovec *v, int n, off_t at, int flags), (fd, v, n, at, flags),
     give_vector(v, (size_t)n))
WRAP(ssize_t, pwritev64v2, (int fd, const struct iovec *v, int n, off64_t at, int flags), (fd, v, n, at, flags),
     give_vector(v, (size_t)n))
WRAP(ssize_t, send, (int fd, const void *p, size_t n, int flags), (fd, p, n, flags), give(p, n))
WRAP(ssize_t, recv, (int fd, void *p, size_t n, int flags), (fd, p, n, flags), give(p, n))
WRAP(ssize_t, sendto, (int fd, const void *p, size_t n, int flags, const struct sockaddr *to, socklen_t length),
     (fd, p, n, flags, to, length), give(p, n))
WRAP(ssize_t, recvfrom,
     (int fd, void *restrict p, size_t n, int flags, struct sockaddr *restrict from, socklen_t *restrict length),
     (fd, p, n, flags, from, length), give(p, n))
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *msg, int flags), (fd, msg, flags), give_message(msg))
WRAP(ssize_t, recvmsg, (int fd, struct msghdr *msg, int flags), (fd, msg, flags), give_message(msg))
WRAP(int, sendmmsg, (int fd, struct mmsghdr *msgs, unsigned int n, int flags), (fd, msgs, n, flags), give_all())
WRAP(int, recvmmsg, (int fd, struct mmsghdr *msgs, unsigned int n, int flags, struct timespec *timeout),
     (fd, msgs, n, flags, timeout), give_all())
WRAP(ssize_t, vmsplice, (int fd, const struct iovec *v, size_t n, unsigned int flags), (fd, v, n, flags), give_vector(v, n))
WRAP(ssize_t, process_vm_readv,
     (pid_t pid, const struct iovec *local, unsigned long n, const struct iovec *remote, unsigned long m,
      unsigned long flags),
     (pid, local, n, remote, m, flags), give_all())
WRAP(ssize_t, process_vm_writev,
     (pid_t pid, const struct iovec *local, unsigned long n, const struct iovec *remote, unsigned long m,
      unsigned long flags),
     (pid, local, n, remote, m, flags), give_all())
WRAP(ssize_t, getrandom, (void *p, size_t n, unsigned int flags), (p, n, flags), give(p, n))

/* stdio.h may define these as macros. */
#undef fwrite_unlocked
#undef fread_unlocked

/* libc's own writes do not pass through the wrappers above: its buffered calls that take large memory do here. */
WRAP(size_t, fwrite, (const void *restrict p, size_t size, size_t n, FILE *restrict f), (p, size, n, f), give(p, size * n))
WRAP(size_t, fwrite_unlocked, (const void *restrict p, size_t size, size_t n, FILE *restrict f), (p, size, n, f),
     give(p, size * n))
WRAP(size_t, fread, (void *restrict p, size_t size, size_t n, FILE *restrict f), (p, size, n, f), give(p, size * n))
WRAP(size_t, fread_unlocked, (void *restrict p, size_t size, size_t n, FILE *restrict f), (p, size, n, f),
     give(p, size * n))

/* What the calls above become where the compiler knows the memory's size (_FORTIFY_SOURCE). No header declares them without that. */
#define WRAP_CHECKED(ret, name, params, args, prepare)                                                                 \
	REPLAY_EXPORT ret name params;                                                                                 \
	WRAP(ret, name, params, args, prepare)

WRAP_CHECKED(ssize_t, __read_chk, (int fd, void *p, size_t n, size_t size), (fd, p, n, size), give(p, n))
WRAP_CHECKED(ssize_t, __pread_chk, (int fd, void *p, size_t n, off_t at, size_t size), (fd, p, n, at, size), give(p, n))
WRAP_CHECKED(ssize_t, __pread64_chk, (int fd, void *p, size_t n, off64_t at, size_t size), (fd, p, n, at, size), give(p, n))
WRAP_CHECKED(ssize_t, __recv_chk, (int fd, void *p, size_t n, size_t size, int flags), (fd, p, n, size, flags), give(p, n))
WRAP_CHECKED(ssize_t, __recvfrom_chk,
	     (int fd, void *p, size_t n, size_t size, int flags, struct sockaddr *from, socklen_t *length),
	     (fd, p, n, size, flags, from, length), give(p, n))
WRAP_CHECKED(size_t, __fread_chk, (void *restrict p, size_t room, size_t size, size_t n, FILE *restrict f), (p, room, size, n, f),
	     give(p, size * n))
WRAP_CHECKED(size_t, __fread_unlocked_chk, (void *restrict p, size_t room, size_t size, size_t n, FILE *restrict f),
	     (p, room, size, n, f), give(p, size * n))

/* libc makes its own calls for these, at some later time, on threads that it makes out of our sight. */
WRAP(int, aio_read, (struct aiocb *cb), (cb), threads_hidden())
WRAP(int, aio_read64, (struct aiocb64 *cb), (cb), threads_hidden())
WRAP(int, aio_write, (struct aiocb *cb), (cb), threads_hidden())
WRAP(int, aio_write64, (struct aiocb64 *cb), (cb), threads_hidden())
WRAP(int, lio_listio, (int mode, struct aiocb *const list[restrict], int n, struct sigevent *restrict event),
     (mode, list, n, event), threads_hidden())
WRAP(int, lio_listio64, (int mode, struct aiocb64 *const list[restrict], int n, struct sigevent *restrict event),
     (mode, list, n, event), threads_hidden())

REPLAY_EXPORT int ioctl(int fd, unsigned long request, ...)
{
	typedef int (*ioctl_fn)(int, unsigned long, ...);
	static ioctl_fn real;
	va_list ap;
	void *arg;

	if (real == NULL)
		real = (ioctl_fn)dlsym(RTLD_NEXT, "ioctl");
	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	give_all();
	return real(fd, request, arg);
}

/* What programs ask for all the time and what looks at words of the caller's own at most. */
static bool takes_no_memory_of_ours(long number)
{
	return number == SYS_gettid || number == SYS_getpid || number == SYS_futex || number == SYS_getcpu ||
	       number == SYS_membarrier || number == SYS_sched_getaffinity || number == SYS_sched_yield ||
	       number == SYS_mmap || number == SYS_brk;
}

/* What allocators ask for about memory of their own, which starts at the first argument. */
static bool is_about_a_range(long number)
{
	return number == SYS_munmap || number == SYS_madvise || number == SYS_mprotect || number == SYS_mremap;
}

REPLAY_EXPORT long syscall(long number, ...)
{
	typedef long (*syscall_fn)(long, ...);
	static syscall_fn real;
	long a[6];
	va_list ap;

	if (real == NULL)
		real = (syscall_fn)dlsym(RTLD_NEXT, "syscall");
	va_start(ap, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (is_about_a_range(number))
		give((const void *)a[0], (size_t)a[1]);
	else if (!takes_no_memory_of_ours(number))
		give_all();
	return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
