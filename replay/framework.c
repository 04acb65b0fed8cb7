/* framework.c - what replay asks of the PyTorch in its own process, through exported functions only.
 *
 * Nothing here knows a version: tensors are read through the stable C ABI, the keyset of a backend-level CPU op and the tags
 * of c10::Scalar are learned by asking exported functions. What cannot be learned switches off what needs it.
 */
#include "replay/replay.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define MAX_THREADS 64 /* queue.c has scratch for so many */

struct framework framework;

typedef int32_t (*get_word_fn)(const void *tensor, void *out);

struct array_ref {
	const int64_t *data;
	size_t size;
};

static struct {
	get_word_fn dim, sizes, strides, numel, dtype, device, data;
	int32_t (*drop)(void *tensor);
	void *(*empty)(void *result, struct array_ref size, struct array_ref stride, int dtype, bool pinned);
	void (*parallel)(void (*fn)(void *), void *data, unsigned threads, unsigned flags);
	int (*max_threads)(void);
	int (*num_threads)(void);
	int (*thread_num)(void);
	int (*in_parallel)(void);
	bool (*has_names)(const void *impl); /* NULL: tensors have no names */
	void **undefined;
	int32_t cpu_device;
	void *(*new_object)(size_t n); /* operator new; NULL: not found */
	int (*vendor_threads)(int n); /* sets the calling thread's, returns what it was; NULL: this vendor has none */
} torch;

/* ---- finding it ---- */

static void read_build_id(const struct dl_phdr_info *info, char out[41])
{
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		const char *p = (const char *)(info->dlpi_addr + ph->p_vaddr), *end = p + ph->p_memsz;

		while (ph->p_type == PT_NOTE && p + sizeof(ElfW(Nhdr)) <= end) {
			const ElfW(Nhdr) *note = (const void *)p;
			const unsigned char *desc = (const unsigned char *)(note + 1) + ((note->n_namesz + 3) & ~3u);

			if (note->n_type == NT_GNU_BUILD_ID && note->n_descsz <= 20) {
				for (uint32_t k = 0; k < note->n_descsz; k++)
					snprintf(out + 2 * k, 3, "%02x", desc[k]);
				return;
			}
			p = (const char *)desc + ((note->n_descsz + 3) & ~3u);
		}
	}
}

static int look_for_torch(struct dl_phdr_info *info, size_t size, void *ctx)
{
	const char *base = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;

	if (base == NULL || strcmp(base, "/libtorch_cpu.so") != 0)
		return 0;
	snprintf(framework.path, sizeof(framework.path), "%s", info->dlpi_name);
	read_build_id(info, framework.build_id);
	return 1;
}

int framework_find(const char **why)
{
	*why = "libtorch_cpu.so is not loaded";
	if (dl_iterate_phdr(look_for_torch, NULL) == 0)
		return -ENOENT;
	framework.cpu = dlopen(framework.path, RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL);
	if (framework.cpu == NULL)
		return -ENOENT;
	return 0;
}

/* ---- learning ---- */

bool framework_resolve(void *slot, const char *symbol)
{
	void *address = dlsym(framework.cpu, symbol);

	memcpy(slot, &address, sizeof(address));
	return address != NULL;
}

static int32_t constant(const char *name)
{
	int32_t (*get)(void);

	return framework_resolve(&get, name) ? get() : -1;
}

size_t framework_keyset_text(uint64_t keyset, char *out, size_t size)
{
	struct { /* std::string */
		char *data;
		size_t size;
		char local[16];
	} text = {0};
	static void (*print)(void *, uint64_t), (*give_back)(void *);

	if (print == NULL) {
		framework_resolve(&print, "_ZN3c108toStringB5cxx11ENS_14DispatchKeySetE");
		framework_resolve(&give_back, "_ZdlPv");
	}
	out[0] = '\0';
	if (print == NULL)
		return 0;
	print(&text, keyset);
	snprintf(out, size, "%.*s", (int)text.size, text.data);
	if (text.data != text.local && give_back != NULL)
		give_back(text.data);
	return text.size;
}

bool framework_keyset_is(uint64_t keyset, const char *name)
{
	char wanted[64], text[64];
	size_t n = (size_t)snprintf(wanted, sizeof(wanted), "DispatchKeySet(%s)", name);

	return framework_keyset_text(keyset, text, sizeof(text)) == n && strcmp(text, wanted) == 0;
}

/* The keyset that prints as "DispatchKeySet(CPU)": the CPU backend's bit, which is the lowest, and Dense's. */
static uint64_t learn_cpu_keyset(void)
{
	for (int bit = 1; bit < 48; bit++) {
		uint64_t keyset = 1ull << bit | 1;

		if (framework_keyset_is(keyset, "CPU"))
			return keyset;
	}
	return 0;
}

struct scalar {
	int32_t tag;
	int32_t pad[3];
	union {
		double d;
		int64_t i;
	} u;
	int64_t imag;
};

/* Tag 0 is a double and tag 1 an integer exactly when negation treats them so. */
static bool learn_scalars(void)
{
	void (*negate)(struct scalar *, const struct scalar *);
	struct scalar d = {.tag = 0, .u.d = 2.5}, i = {.tag = 1, .u.i = 5}, out;

	if (!framework_resolve(&negate, "_ZNK3c106ScalarngEv"))
		return false;
	negate(&out, &d);
	if (out.tag != 0 || out.u.d != -2.5)
		return false;
	negate(&out, &i);
	return out.tag == 1 && out.u.i == -5;
}

/* Where a name can't even be made, no tensor has one. */
static bool learn_names(void)
{
	void *make;

	return framework_resolve(&torch.has_names, "_ZN2at4impl9has_namesEPKN3c1010TensorImplE") ||
	       !framework_resolve(&make, "_ZN2at7Dimname10fromSymbolEN3c106SymbolE");
}

int framework_learn(const char **why)
{
	struct {
		void *slot;
		const char *name;
	} wanted[] = {
		{&torch.dim, "aoti_torch_get_dim"},
		{&torch.sizes, "aoti_torch_get_sizes"},
		{&torch.strides, "aoti_torch_get_strides"},
		{&torch.numel, "aoti_torch_get_numel"},
		{&torch.dtype, "aoti_torch_get_dtype"},
		{&torch.device, "aoti_torch_get_device_type"},
		{&torch.data, "aoti_torch_get_data_ptr"},
		{&torch.drop, "aoti_torch_delete_tensor_object"},
		{&torch.empty, "_ZN2at6detail17empty_strided_cpuEN3c108ArrayRefIlEES3_NS1_10ScalarTypeEb"},
		{&torch.undefined, "_ZN3c1019UndefinedTensorImpl10_singletonE"},
		{&torch.parallel, "GOMP_parallel"},
		{&torch.max_threads, "omp_get_max_threads"},
		{&torch.num_threads, "omp_get_num_threads"},
		{&torch.thread_num, "omp_get_thread_num"},
		{&torch.in_parallel, "omp_in_parallel"},
	};

	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		*why = wanted[i].name;
		if (!framework_resolve(wanted[i].slot, wanted[i].name))
			return -ENOSYS;
	}
	framework_resolve(&torch.new_object, "_Znwm");
	framework_resolve(&torch.vendor_threads, "MKL_Set_Num_Threads_Local");
	framework.float32 = constant("aoti_torch_dtype_float32");
	framework.float64 = constant("aoti_torch_dtype_float64");
	framework.int64 = constant("aoti_torch_dtype_int64");
	torch.cpu_device = constant("aoti_torch_device_type_cpu");
	framework.cpu_keyset = learn_cpu_keyset();
	framework.scalars = learn_scalars();
	framework.max_threads = torch.max_threads;
	*why = "which tensors have names can't be learned";
	if (!learn_names())
		return -ENOSYS;
	*why = "the keyset of CPU tensors can't be learned";
	if (framework.cpu_keyset == 0 || framework.float32 < 0)
		return -ENOSYS;
	return 0;
}

/* ---- using it ---- */

bool framework_is_undefined(const void *tensor)
{
	return *(void *const *)tensor == (void *)torch.undefined;
}

bool framework_has_names(const void *tensor)
{
	return torch.has_names && torch.has_names(*(void *const *)tensor);
}

bool framework_in_parallel(void)
{
	return torch.in_parallel() != 0;
}

bool framework_view(const void *tensor, struct tensor_view *out)
{
	int32_t device;

	if (framework_is_undefined(tensor) || *(void *const *)tensor == NULL)
		return false;
	return torch.device(tensor, &device) == 0 && device == torch.cpu_device && torch.dtype(tensor, &out->dtype) == 0 &&
	       torch.numel(tensor, &out->numel) == 0 && torch.dim(tensor, &out->ndim) == 0 &&
	       torch.sizes(tensor, &out->size) == 0 && torch.strides(tensor, &out->stride) == 0 &&
	       torch.data(tensor, &out->data) == 0;
}

bool framework_scalar(const void *scalar, double *out)
{
	const struct scalar *s = scalar;

	if (!framework.scalars)
		return false;
	if (s->tag == 0) {
		*out = s->u.d;
		return true;
	}
	*out = (double)s->u.i;
	return s->tag == 1 && s->u.i > -(1ll << 53) && s->u.i < 1ll << 53;
}

void framework_empty(void *result, const int64_t *size, int64_t ndim)
{
	int64_t stride[8], next = 1;

	for (int64_t d = ndim; d-- > 0;) {
		stride[d] = next;
		next *= size[d] > 1 ? size[d] : 1;
	}
	torch.empty(result, (struct array_ref){size, (size_t)ndim}, (struct array_ref){stride, (size_t)ndim},
		    framework.float32, false);
}

void framework_drop(void *result)
{
	/* Deletes a heap-allocated at::Tensor: hand it one that owns the reference of `result`. */
	void **tensor = torch.new_object ? torch.new_object(sizeof(void *)) : NULL;

	if (tensor == NULL)
		return; /* leaks one tensor */
	memcpy(tensor, result, sizeof(void *));
	torch.drop(tensor);
}

struct parallel {
	void (*fn)(int64_t, int64_t, void *);
	void *ctx;
	int64_t n, piece;
	_Atomic int64_t next;
};

/* The vendor's functions that kernels call start threads of their own, for 512 elements too, once a program has set the
 * number of threads. Whatever is set is put back. */
static void run_pieces(struct parallel *p)
{
	int before = torch.vendor_threads ? torch.vendor_threads(1) : 0;
	int64_t begin;

	while ((begin = atomic_fetch_add_explicit(&p->next, p->piece, memory_order_relaxed)) < p->n)
		p->fn(begin, begin + p->piece < p->n ? begin + p->piece : p->n, p->ctx);
	if (torch.vendor_threads)
		torch.vendor_threads(before);
}

void framework_alone(int64_t n, void (*fn)(int64_t begin, int64_t end, void *ctx), void *ctx)
{
	struct parallel p = {.fn = fn, .ctx = ctx, .n = n, .piece = n};

	run_pieces(&p);
}

static void parallel_part(void *data)
{
	run_pieces(data);
}

void framework_parallel(int64_t n, int64_t piece, void (*fn)(int64_t begin, int64_t end, void *ctx), void *ctx)
{
	struct parallel p = {.fn = fn, .ctx = ctx, .n = n, .piece = piece};
	int threads = torch.max_threads();

	if (threads <= 1 || torch.num_threads() > 1) {
		framework_alone(n, fn, ctx);
		return;
	}
	torch.parallel(parallel_part, &p, (unsigned)(threads < MAX_THREADS ? threads : MAX_THREADS), 0);
}

int framework_thread_number(void)
{
	int n = torch.thread_num();

	return n >= 0 && n < MAX_THREADS ? n : 0;
}
