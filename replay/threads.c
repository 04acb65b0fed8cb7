/* threads.c - nothing waits while two threads could look.
 *
 * Work waits only while the process has a single program thread: with more, each result would have to be published for
 * threads that may be watching, and orders between threads kept. Workers of OpenMP and BLAS pools are not program
 * threads: they run only inside a call that some program thread waits in. They are told apart by who creates them.
 *
 * Nor do threads of some libraries look while they sleep until there is work for them. Autograd has one for each accelerator
 * of the machine, used or not, from the first backward on; a memory allocator in pyarrow, which much imports, has one. And
 * the one thread that CUDA's driver makes when it is asked what devices there are does nothing until one is in use. Others'
 * threads count in their sleep, too: a device that they serve may be reading memory.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

#include "replay/arena.h"
#include "replay/replay.h"

volatile int replay_program_threads = 1;
volatile int replay_disabled;
char replay_thread_maker[64];

typedef int (*create_fn)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

struct start {
	void *(*routine)(void *);
	void *arg;
	bool sleeps; /* its sleep is not counted */
};

static __thread bool sleeps;

static void count_threads(int more)
{
#ifndef TERRA_NO_GUARD_THREADS
	__atomic_add_fetch(&replay_program_threads, more, __ATOMIC_SEQ_CST);
#endif
}

/* Another thread may look from now on. */
static void not_alone(void)
{
#ifndef TERRA_NO_GUARD_THREADS
	queue_flush(FLUSH_THREAD);
#endif
}

static void thread_gone(void *unused)
{
	count_threads(-1);
}

static void *thread_main(void *p)
{
	struct start start = *(struct start *)p;
	void *result;

	free(p);
	sleeps = start.sleeps;
	pthread_cleanup_push(thread_gone, NULL);
	result = start.routine(start.arg);
	pthread_cleanup_pop(1);
	return result;
}

/* Libraries whose threads work only inside a call that a program thread is waiting in, and run no code of the program. */
static const char *const pool_libraries[] = {"libgomp", "libiomp", "libomp", "libopenblas", "libscipy_openblas", "libmkl_", NULL};
/* Those whose threads sleep on conditions, and serve no device that goes on meanwhile. */
static const char *const sleeping_libraries[] = {"libtorch_cpu", "libarrow", NULL};

/* The name of the library or program that the address is in, without folders; "" for none. */
static const char *library_of(const void *address)
{
	Dl_info info;
	const char *name;

	if (dladdr(address, &info) == 0 || info.dli_fname == NULL)
		return "";
	name = strrchr(info.dli_fname, '/');
	return name ? name + 1 : info.dli_fname;
}

static bool begins_with(const char *name, const char *beginning)
{
	return strncmp(name, beginning, strlen(beginning)) == 0;
}

static bool is_among(const char *name, const char *const *beginnings)
{
	for (; *beginnings != NULL; beginnings++)
		if (begins_with(name, *beginnings))
			return true;
	return false;
}

/* Whose code the thread will run. std::thread passes an object with virtual functions: those of the code that made it. */
static const char *maker_of(const char *caller, const void *arg)
{
	return arg != NULL && begins_with(caller, "libstdc++") ? library_of(*(void *const *)arg) : caller;
}

/* ---- a device of CUDA's ---- */

/* The driver's first thread, not counted as yet. It is made once, under a lock of the driver's. */
static volatile bool driver_waits;

static bool is_drivers_first(const char *caller)
{
	static atomic_bool seen;

	return begins_with(caller, "libcuda.so") && !atomic_exchange(&seen, true);
}

/* Whether some device has a context: asked of the driver. Not known is yes. */
static bool device_in_use(void)
{
	static int (*count)(int *n), (*get)(int *device, int ordinal), (*state)(int device, unsigned *flags, int *active);
	unsigned flags;
	int n, device, active = 1;

	if (state == NULL) {
		void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);

		if (driver == NULL)
			return true;
		count = (int (*)(int *))dlsym(driver, "cuDeviceGetCount");
		get = (int (*)(int *, int))dlsym(driver, "cuDeviceGet");
		state = (int (*)(int, unsigned *, int *))dlsym(driver, "cuDevicePrimaryCtxGetState");
	}
	if (count == NULL || get == NULL || state == NULL || count(&n) != 0)
		return true;
	for (int i = 0; i < n; i++)
		if (get(&device, i) != 0 || state(device, &flags, &active) != 0 || active)
			return true;
	return false;
}

bool threads_alone(void)
{
	if (replay_program_threads != 1)
		return false;
	/* While something waits no device comes into use: that takes a thread of its own, or a system call, which flush. */
	if (!driver_waits || replay_attention.pending != 0 || !device_in_use())
		return true;
	driver_waits = false;
	count_threads(1);
	return replay_program_threads == 1;
}

REPLAY_EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*routine)(void *), void *arg)
{
	static create_fn real;
	const char *caller = library_of(__builtin_return_address(0)), *maker;
	struct start *start;
	int err;

	if (real == NULL)
		real = (create_fn)dlsym(RTLD_NEXT, "pthread_create");
	if (is_among(caller, pool_libraries))
		return real(thread, attr, routine, arg);
	if (is_drivers_first(caller)) {
		driver_waits = true;
		not_alone();
		return real(thread, attr, routine, arg);
	}
	start = malloc(sizeof(*start));
	if (start == NULL)
		return EAGAIN;
	maker = maker_of(caller, arg);
	*start = (struct start){routine, arg, is_among(maker, sleeping_libraries)};
	if (!start->sleeps)
		snprintf(replay_thread_maker, sizeof(replay_thread_maker), "%s", maker); /* the library may be gone later */
	count_threads(1);
	not_alone();
	err = real(thread, attr, thread_main, start);
	if (err != 0) {
		free(start);
		thread_gone(NULL);
	}
	return err;
}

/* Its end is not watched: with such a thread nothing waits any more. */
void threads_hidden(void)
{
	static atomic_bool any;

	if (!atomic_exchange(&any, true))
		count_threads(1);
	not_alone();
}

/* C11 threads: libc makes them without passing through the symbol above. */
REPLAY_EXPORT int thrd_create(thrd_t *thread, thrd_start_t routine, void *arg)
{
	typedef int (*thrd_create_fn)(thrd_t *, thrd_start_t, void *);
	static thrd_create_fn real;

	if (real == NULL)
		real = (thrd_create_fn)dlsym(RTLD_NEXT, "thrd_create");
	threads_hidden();
	return real(thread, routine, arg);
}

static void thread_wakes(void *unused)
{
	count_threads(1);
	not_alone();
}

/* Without a version it could be the one that was replaced when conditions got another layout. */
static void *condition_function(const char *name)
{
	void *symbol = dlvsym(RTLD_NEXT, name, "GLIBC_2.3.2");

	return symbol ? symbol : dlsym(RTLD_NEXT, name);
}

/* Found at once, not at the first wait: looking a name up takes the dynamic linker's lock, and a thread may wait for the
 * first time while another loads a library whose start-up code waits for that thread. */
#define WRAP_SLEEP(name, params, args)                                                                                 \
	static int(*real_##name) params;                                                                               \
	__attribute__((constructor)) static void find_##name(void)                                                     \
	{                                                                                                              \
		real_##name = (int(*) params)condition_function(#name);                                                \
	}                                                                                                              \
	REPLAY_EXPORT int name params                                                                                  \
	{                                                                                                              \
		int err;                                                                                               \
		if (real_##name == NULL) /* start-up code of a library before ours */                                  \
			find_##name();                                                                                 \
		if (!sleeps)                                                                                           \
			return real_##name args;                                                                       \
		thread_gone(NULL);                                                                                     \
		pthread_cleanup_push(thread_wakes, NULL); /* when it is cancelled, too */                              \
		err = real_##name args;                                                                                \
		pthread_cleanup_pop(1);                                                                                \
		return err;                                                                                            \
	}

WRAP_SLEEP(pthread_cond_wait, (pthread_cond_t *restrict c, pthread_mutex_t *restrict m), (c, m))
WRAP_SLEEP(pthread_cond_timedwait, (pthread_cond_t *restrict c, pthread_mutex_t *restrict m, const struct timespec *restrict t),
	   (c, m, t))

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
