/* alloc.c - c10::alloc_cpu and c10::free_cpu on top of the arena. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "replay/alloc.h"
#include "replay/arena.h"

#define EXPORT __attribute__((visibility("default")))
#define FALLBACK_ALIGNMENT 64

EXPORT void *_ZN3c109alloc_cpuEm(size_t size);
EXPORT void _ZN3c108free_cpuEPv(void *p);

enum { UNSET = -1 };

void (*alloc_first_call)(void);

static struct {
	void *(*alloc)(size_t size);
	void (*free)(void *p);
	/* PyTorch's flags that change what alloc_cpu does; false where this version has none of the name. */
	const bool *zero_fill, *junk_fill, *numa;
} original;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int enabled = UNSET;
static bool started; /* set up, first call made: the fast path's only question */
static __thread bool starting __attribute__((tls_model("initial-exec")));

static const bool never;

/* Where libc10's own functions can't be found (a statically linked PyTorch), what they do without flags. */
static void *plain_alloc(size_t size)
{
	void *p = NULL;

	return size && !posix_memalign(&p, FALLBACK_ALIGNMENT, size) ? p : NULL;
}

static void *symbol_or(void *library, const char *name, void *otherwise)
{
	void *symbol = library ? dlsym(library, name) : dlsym(RTLD_NEXT, name);

	return symbol ? symbol : otherwise;
}

/* Python loads libtorch with RTLD_LOCAL, so RTLD_NEXT alone wouldn't find it. The handle is kept: it only counts. */
static void find_original(void)
{
	void *c10 = dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD);

	original.zero_fill = symbol_or(c10, "FLAGS_caffe2_cpu_allocator_do_zero_fill", (void *)&never);
	original.junk_fill = symbol_or(c10, "FLAGS_caffe2_cpu_allocator_do_junk_fill", (void *)&never);
	original.numa = symbol_or(c10, "FLAGS_caffe2_cpu_numa_enabled", (void *)&never);
	original.free = (void (*)(void *))symbol_or(c10, "_ZN3c108free_cpuEPv", (void *)free);
	original.alloc = (void *(*)(size_t))symbol_or(c10, "_ZN3c109alloc_cpuEm", (void *)plain_alloc);
}

bool alloc_enabled(void)
{
	if (__atomic_load_n(&enabled, __ATOMIC_RELAXED) == UNSET) {
		const char *mode = getenv("TERRA_MODE");
		int unset = UNSET;

		__atomic_compare_exchange_n(&enabled, &unset, !mode || strcmp(mode, "off") != 0, false,
					    __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	}
	return __atomic_load_n(&enabled, __ATOMIC_RELAXED);
}

void alloc_set_enabled(bool on)
{
	__atomic_store_n(&enabled, on, __ATOMIC_RELAXED);
}

static void start_once(void)
{
	starting = true;
	find_original();
	if (arena_init())
		alloc_set_enabled(false);
	if (alloc_first_call)
		alloc_first_call();
	starting = false;
	__atomic_store_n(&started, true, __ATOMIC_RELEASE);
}

/* A free can come first too: of a block that the original handed out before we were there. The hook itself may
 * allocate, from the same thread. */
static void start(void)
{
	if (!__atomic_load_n(&started, __ATOMIC_ACQUIRE) && !starting)
		pthread_once(&once, start_once);
}

static bool flags_unset(void)
{
	return !*original.zero_fill && !*original.junk_fill && !*original.numa;
}

void *_ZN3c109alloc_cpuEm(size_t size)
{
	start();
	if (size >= TERRA_ARENA_MIN && alloc_enabled() && flags_unset()) {
		void *p = arena_alloc(size);

		if (p)
			return p;
	}
	return original.alloc(size);
}

void _ZN3c108free_cpuEPv(void *p)
{
	start();
	if (!arena_free(p))
		original.free(p);
}
