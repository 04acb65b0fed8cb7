/* threads.c - nothing waits while two threads could look.
 *
 * Work waits only while the process has a single program thread: with more, each result would have to be published for
 * threads that may be watching, and orders between threads kept. Workers of OpenMP and BLAS pools are not program
 * threads: they run only inside a call that some program thread waits in. They are told apart by who creates them.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

#include "replay/arena.h"
#include "replay/replay.h"

volatile int replay_program_threads = 1;
volatile int replay_disabled;

typedef int (*create_fn)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

struct start {
	void *(*routine)(void *);
	void *arg;
};

static void thread_gone(void *unused)
{
	__atomic_sub_fetch(&replay_program_threads, 1, __ATOMIC_SEQ_CST);
}

static void *thread_main(void *p)
{
	struct start start = *(struct start *)p;
	void *result;

	free(p);
	pthread_cleanup_push(thread_gone, NULL);
	result = start.routine(start.arg);
	pthread_cleanup_pop(1);
	return result;
}

/* Libraries whose threads work only inside a call that a program thread is waiting in, and run no code of the program. */
static const char *const pool_libraries[] = {"libgomp", "libiomp", "libomp", "libopenblas", "libscipy_openblas", "libmkl_"};

static bool is_pool_library(const void *caller)
{
	Dl_info info;
	const char *name;

	if (dladdr(caller, &info) == 0 || info.dli_fname == NULL)
		return false;
	name = strrchr(info.dli_fname, '/');
	name = name ? name + 1 : info.dli_fname;
	for (size_t i = 0; i < sizeof(pool_libraries) / sizeof(pool_libraries[0]); i++)
		if (strncmp(name, pool_libraries[i], strlen(pool_libraries[i])) == 0)
			return true;
	return false;
}

REPLAY_EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*routine)(void *), void *arg)
{
	static create_fn real;
	struct start *start;
	int err;

	if (real == NULL)
		real = (create_fn)dlsym(RTLD_NEXT, "pthread_create");
	if (is_pool_library(__builtin_return_address(0)))
		return real(thread, attr, routine, arg);
	start = malloc(sizeof(*start));
	if (start == NULL)
		return EAGAIN;
	*start = (struct start){routine, arg};
#ifndef TERRA_NO_GUARD_THREADS
	__atomic_add_fetch(&replay_program_threads, 1, __ATOMIC_SEQ_CST);
	queue_flush(FLUSH_THREAD);
#else
	__atomic_add_fetch(&replay_program_threads, 0, __ATOMIC_SEQ_CST);
#endif
	err = real(thread, attr, thread_main, start);
	if (err != 0) {
		free(start);
		thread_gone(NULL);
	}
	return err;
}

/* C11 threads: libc makes them without passing through the symbol above. */
REPLAY_EXPORT int thrd_create(thrd_t *thread, thrd_start_t routine, void *arg)
{
	typedef int (*thrd_create_fn)(thrd_t *, thrd_start_t, void *);
	static thrd_create_fn real;

	if (real == NULL)
		real = (thrd_create_fn)dlsym(RTLD_NEXT, "thrd_create");
	/* Its end is not watched: with such a thread nothing waits any more. */
	__atomic_add_fetch(&replay_program_threads, 1, __ATOMIC_SEQ_CST);
	queue_flush(FLUSH_THREAD);
	return real(thread, routine, arg);
}

/* ---- fork: what waits is done before, and the child runs as it would without us ---- */

static void before_fork(void)
{
#ifndef TERRA_NO_GUARD_FORK
	queue_flush(FLUSH_FORK);
#endif
	arena_before_fork();
}

static void after_fork_parent(void)
{
	arena_after_fork(false);
}

static void after_fork_child(void)
{
	arena_after_fork(true);
	replay_disabled = 1;
}

void threads_init(void)
{
	pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}
