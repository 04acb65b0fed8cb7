/* product.c - matrix products in tiles (plan.h, form sgemm_tiles).
 *
 * The plan's check compared bits at one shape, with aligned memory, up to a thread count, and under the framework's default
 * settings. The first three are compared with the call. Settings differ from version to version (precision of products,
 * preferred libraries), so their effect is asked for instead: right before each use the framework multiplies two small
 * matrices whose exact product fits a float32 and no shorter format.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "replay/arena.h"
#include "replay/replace.h"

#define ALIGNMENT 64
#define MAX_THREADS 64
#define PROBE 64 /* rows and columns: above what libraries take for too small to bother */
#define TILE_FLOATS ((size_t)TERRA_SGEMM_TILE * TERRA_SGEMM_TILE)

static struct {
	bool usable;
	const terra_import_fn *import;
	const struct terra_plan_replace *replaces; /* of the plan; `shapes` has those of form sgemm_tiles, by the same number */
	struct terra_sgemm_shape *shapes;
	float *tiles;   /* one per thread */
	void *probe[2]; /* at::Tensor; kept */
	float expected[PROBE][PROBE];
} product;

/* The vendor's library reads its settings there, and they change its bits: the plan was checked without any. */
static bool has_vendor_settings(void)
{
	extern char **environ;

	for (char **e = environ; e != NULL && *e != NULL; e++)
		if (strncmp(*e, "MKL_", 4) == 0 || strncmp(*e, "OPENBLAS_", 9) == 0)
			return true;
	return false;
}

void product_init(const struct terra_plan *plan)
{
	product.import = plan->import_table;
	product.replaces = plan->replaces;
	product.shapes = calloc(plan->n_replaces + 1, sizeof(*product.shapes));
	product.usable = product.shapes != NULL && !has_vendor_settings();
	for (uint32_t i = 0; product.usable && i < plan->n_replaces; i++)
		if (plan->replaces[i].shape != NULL)
			terra_plan_sgemm_shape(plan->replaces[i].shape, &product.shapes[i]); /* valid, or not read as a plan */
}

/* ---- the probe ---- */

/* A holds odd numbers of 12 bits, B such numbers on its diagonal: each product is exact in 24 bits, and whatever is cut off
 * of a factor, or left out of a product of parts, shows. */
static float probe_number(uint32_t i, uint32_t j)
{
	return (float)(2049 + 2 * ((i * 37 + j * 101) % 1024));
}

static bool make_probe(void)
{
	const int64_t size[2] = {PROBE, PROBE};
	struct tensor_view a, b;

	for (int i = 0; i < 2; i++)
		framework_empty(&product.probe[i], size, 2);
	if (!framework_view(&product.probe[0], &a) || !framework_view(&product.probe[1], &b))
		return false;
	for (uint32_t i = 0; i < PROBE; i++) {
		for (uint32_t j = 0; j < PROBE; j++) {
			a.data[i * PROBE + j] = probe_number(i, j);
			b.data[i * PROBE + j] = i == j ? probe_number(j, 7) : 0;
			product.expected[i][j] = probe_number(i, j) * probe_number(j, 7);
		}
	}
	return true;
}

bool product_is_exact(product_mm_fn mm)
{
	struct tensor_view c;
	void *result;
	bool exact;

	if (product.probe[0] == NULL && !make_probe())
		return false;
	mm(&result, framework.cpu_keyset, &product.probe[0], &product.probe[1]);
	exact = framework_view(&result, &c) && c.numel == PROBE * PROBE &&
		memcmp(c.data, product.expected, sizeof(product.expected)) == 0;
	framework_drop(&result);
	return exact;
}

/* ---- one product ---- */

static bool is_stored(const struct tensor_view *t, int64_t rows, int64_t columns, bool transposed, int64_t ld)
{
	return t->dtype == framework.float32 && t->ndim == 2 && t->size[0] == rows && t->size[1] == columns &&
	       t->stride[0] == (transposed ? 1 : ld) && t->stride[1] == (transposed ? ld : 1) &&
	       (uintptr_t)t->data % ALIGNMENT == 0;
}

static bool is_for_call(const struct terra_sgemm_shape *s, const void *a, const void *b, struct terra_sgemm_args *args)
{
	struct tensor_view ta, tb;

	if (!framework_view(a, &ta) || !framework_view(b, &tb) || framework_has_names(a) || framework_has_names(b))
		return false;
	args->a = ta.data;
	args->b = tb.data;
	return is_stored(&ta, s->m, s->k, s->a_transposed, s->lda) && is_stored(&tb, s->k, s->n, s->b_transposed, s->ldb);
}

static bool tiles_ready(void)
{
	void *p;

	if (product.tiles != NULL)
		return true;
	p = mmap(NULL, MAX_THREADS * TILE_FLOATS * sizeof(float), PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	product.tiles = p == MAP_FAILED ? NULL : p;
	return product.tiles != NULL;
}

struct job {
	terra_sgemm_tiles_fn fn;
	struct terra_sgemm_args args;
};

static void run_tiles(int64_t begin, int64_t end, void *ctx)
{
	const struct job *job = ctx;
	struct terra_sgemm_args args = job->args;

	args.tile = product.tiles + (size_t)framework_thread_number() * TILE_FLOATS;
	if (begin < end)
		job->fn(&args, begin, end);
}

/* The result, or NULL where it is no aligned memory. */
static float *make_result(const struct terra_sgemm_shape *s, void *result)
{
	const int64_t size[2] = {s->m, s->n};
	struct tensor_view c;

	framework_empty(result, size, 2); /* may throw, as the framework's own would */
	if (framework_view(result, &c) && (uintptr_t)c.data % ALIGNMENT == 0)
		return c.data;
	framework_drop(result);
	return NULL;
}

static bool is_mm(const struct terra_op *op)
{
	if (op->n_args != 3 || op->ret != TERRA_RET_TENSOR || op->has_sret != 1 || op->args[0].kind != TERRA_KIND_KEYSET)
		return false;
	for (int i = 0; i < 3; i++)
		if (op->args[i].place != TERRA_PLACE_GPR || (i > 0 && op->args[i].kind != TERRA_KIND_TENSOR))
			return false;
	return true;
}

bool product_mm(const struct terra_plan_replace *replace, const struct terra_op *op, void *original,
		struct hook_regs *regs)
{
	struct job job = {.fn = (terra_sgemm_tiles_fn)(uintptr_t)replace->fn};
	int threads = framework.max_threads();
	void *result = (void *)regs->gpr[0];

	if (!product.usable || !is_mm(op))
		return false;
	job.args.shape = product.shapes[replace - product.replaces];
	if (threads < 1 || (uint32_t)threads > job.args.shape.threads ||
	    !is_for_call(&job.args.shape, (void *)regs->gpr[op->args[1].index], (void *)regs->gpr[op->args[2].index],
			 &job.args))
		return false;
	if (!product_is_exact((product_mm_fn)original) || !tiles_ready())
		return false;
	job.args.c = make_result(&job.args.shape, result);
	job.args.import = product.import;
	if (job.args.c == NULL)
		return false;
	framework_parallel(terra_plan_sgemm_tiles(&job.args.shape), run_tiles, &job);
	regs->ret = (uint64_t)result;
	return true;
}
