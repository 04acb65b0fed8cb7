/* check_tiles.c - which division of a matrix product into tiles is the fastest.
 *
 * The vendor's library divides a product among threads by rules of its own, which suit some shapes and not others. Divisions
 * into strips and blocks are timed beside it, all in turn, first briefly and then the best few for longer.
 */
#include <string.h>

#include "graphopt/check_sgemm.h"

#define MAX_DIVISIONS 24
#define FINALISTS 3
#define FIRST_NS 80e6  /* time of the framework's runs in the first round */
#define SECOND_NS 400e6 /* and in the second */
#define MIN_RUNS 2
#define MAX_RUNS 401
#define LONG_NS 40e6		/* products that take longer are tried in fewer divisions */
#define LARGE_BYTES (4 << 20) /* a result that does not stay in a core's caches may gain by a buffer */

struct division {
	int64_t rows, columns;
	bool buffered;
	double run[MAX_RUNS], ns;
};

struct choice {
	struct product *p;
	struct division division[MAX_DIVISIONS];
	uint32_t n;
	double eager[MAX_RUNS], eager_ns;
};

static void add(struct choice *choice, int64_t rows, int64_t columns, bool buffered)
{
	const struct terra_sgemm_shape *s = &choice->p->shape;
	struct division *d = choice->division;

	columns = columns < s->n ? (columns + 15) / 16 * 16 : columns; /* strips begin at aligned memory where rows do */
	rows = rows < s->m ? rows : s->m;
	columns = columns < s->n ? columns : s->n;
	for (uint32_t i = 0; i < choice->n; i++)
		if (d[i].rows == rows && d[i].columns == columns && d[i].buffered == buffered)
			return;
	if (choice->n < MAX_DIVISIONS)
		d[choice->n++] = (struct division){.rows = rows, .columns = columns, .buffered = buffered};
}

static void list_divisions(struct choice *choice)
{
	static const int64_t strips[] = {256, 128, 64};
	const struct terra_sgemm_shape *s = &choice->p->shape;
	const int64_t threads = s->threads;

	add(choice, s->m, (s->n + threads - 1) / threads, false);
	add(choice, (s->m + threads - 1) / threads, s->n, false);
	if (s->m * s->n * (int64_t)sizeof(float) > LARGE_BYTES)
		add(choice, TERRA_SGEMM_BUFFER, TERRA_SGEMM_BUFFER, true);
	if (choice->eager_ns > LONG_NS)
		return;
	for (size_t i = 0; i < sizeof(strips) / sizeof(strips[0]); i++) {
		add(choice, s->m, strips[i], false);
		add(choice, strips[i], s->n, false);
	}
	add(choice, (s->m + 1) / 2, (s->n + 1) / 2, false);
	add(choice, (s->m + threads - 1) / threads, 512, false);
	add(choice, 256, 256, false);
}

static void use(struct choice *choice, const struct division *d)
{
	choice->p->shape.rows = d->rows;
	choice->p->shape.columns = d->columns;
	choice->p->shape.buffered = d->buffered;
}

static void next_set(struct product *p)
{
	p->set = (p->set + 1) % p->n_sets;
}

static int time_eager(struct product *p, double *ns)
{
	framework_tensor result = NULL;
	double start;
	int ret;

	next_set(p);
	start = check_now_ns();
	ret = product_run_eager(p, &result);
	framework_free(p->framework, result);
	*ns = check_now_ns() - start;
	return ret;
}

/* With the question that replay asks first. */
static int time_division(struct choice *choice, const struct division *d, double *ns)
{
	framework_tensor result = NULL;
	double start;
	int ret;

	use(choice, d);
	next_set(choice->p);
	start = check_now_ns();
	product_run_probe(choice->p);
	ret = product_run_tiles(choice->p, &result);
	framework_free(choice->p->framework, result);
	*ns = check_now_ns() - start;
	return ret;
}

static uint32_t runs_for(const struct choice *choice, double total_ns)
{
	double runs = choice->eager_ns > 0 ? total_ns / choice->eager_ns : MAX_RUNS;

	return runs < MIN_RUNS ? MIN_RUNS : runs > MAX_RUNS ? MAX_RUNS : (uint32_t)runs;
}

/* The lower one: what others on the machine take only adds, and by turns. */
static double quartile(double *values, uint32_t n)
{
	check_median(values, n); /* sorts */
	return values[n / 4];
}

static int time_all(struct choice *choice, uint32_t runs)
{
	int ret = 0;

	choice->p->timed = true;
	for (uint32_t r = 0; !ret && r < runs; r++) {
		ret = time_eager(choice->p, &choice->eager[r]);
		for (uint32_t i = 0; !ret && i < choice->n; i++)
			ret = time_division(choice, &choice->division[i], &choice->division[i].run[r]);
	}
	choice->p->timed = false;
	if (ret)
		return ret;
	choice->eager_ns = quartile(choice->eager, runs);
	for (uint32_t i = 0; i < choice->n; i++)
		choice->division[i].ns = quartile(choice->division[i].run, runs);
	return 0;
}

/* Fastest first. */
static void sort(struct choice *choice)
{
	for (uint32_t i = 1; i < choice->n; i++)
		for (uint32_t j = i; j && choice->division[j].ns < choice->division[j - 1].ns; j--) {
			struct division d = choice->division[j];

			choice->division[j] = choice->division[j - 1];
			choice->division[j - 1] = d;
		}
}

/* Leaves out what has other bits than the framework, so that it does not win; check_sgemm compares the winner again. */
static int keep_same_bits(struct choice *choice)
{
	framework_tensor eager = NULL, tiles = NULL;
	struct product *p = choice->p;
	uint32_t n = 0;
	int ret = product_run_eager(p, &eager);

	for (uint32_t i = 0; !ret && i < choice->n; i++) {
		use(choice, &choice->division[i]);
		ret = product_run_tiles(p, &tiles);
		if (!ret && product_is_same(p, eager, tiles))
			choice->division[n++] = choice->division[i];
		framework_free(p->framework, tiles);
	}
	framework_free(p->framework, eager);
	choice->n = n;
	return ret;
}

int product_choose_tiles(struct product *p)
{
	static _Thread_local struct choice choice; /* too large for a stack */
	const struct terra_sgemm_shape given = p->shape;
	double warm_up;
	int ret;

	choice = (struct choice){.p = p};
	p->set = 0;
	ret = time_eager(p, &warm_up);
	if (!ret)
		ret = time_eager(p, &choice.eager_ns);
	if (ret)
		return ret;
	list_divisions(&choice);
	ret = keep_same_bits(&choice);
	p->shape = given;
	if (ret || !choice.n)
		return ret;
	ret = time_all(&choice, runs_for(&choice, FIRST_NS));
	if (ret)
		return ret;
	sort(&choice);
	choice.n = choice.n < FINALISTS ? choice.n : FINALISTS;
	ret = time_all(&choice, runs_for(&choice, SECOND_NS));
	if (ret)
		return ret;
	sort(&choice);
	use(&choice, &choice.division[0]);
	p->out->eager_ns = choice.eager_ns;
	p->out->fused_ns = choice.division[0].ns;
	return 0;
}
