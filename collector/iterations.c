/* iterations.c - the period of a sequence of op identities.
 *
 * Every run of GRAM ops is a candidate anchor: something that happens once per iteration. Its occurrences cut the
 * stream into segments; a good anchor's segments hold the same ops, give or take a few, and cover nearly everything
 * from the first to the last. Anchors inside a loop over layers cut small equal segments too, but a large rest
 * remains between the loops. So: the shortest period among those that cover the most.
 */
#include "collector/iterations.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define GRAM 4
#define MAX_PERIODS 64 /* candidates that are looked at closely */
#define MIN_SHARE 16   /* iterations cover at least 1/16 of the stream; less is chance */
#define NEARLY(x) ((x) - (x) / 10)

struct gram {
	uint64_t hash;
	uint32_t position;
};

/* One anchor: grams[first .. first + count), by position. */
struct anchor {
	size_t first;
	uint32_t count;
	uint32_t gap;     /* the typical distance between occurrences */
	uint64_t covered; /* ops in segments of about that length */
};

struct finder {
	const uint64_t *ids;
	size_t n;
	uint64_t *pairs;      /* each op with its successor: likeness minds the order */
	struct gram *grams;
	size_t n_grams;
	struct anchor *anchors;
	size_t n_anchors;
	uint32_t *gaps;       /* scratch */
	uint64_t *reference;  /* sorted pairs of a typical segment */
	uint64_t *other;      /* scratch, sorted pairs of another */
	size_t n_reference;
};

static uint64_t mix(uint64_t hash, uint64_t v)
{
	hash = (hash ^ v) * 0x9e3779b97f4a7c15u;
	return hash ^ hash >> 32;
}

static uint64_t gram_hash(const uint64_t *ids)
{
	uint64_t hash = 0;

	for (int i = 0; i < GRAM; i++)
		hash = mix(hash, ids[i]);
	return hash;
}

static int compare_grams(const void *a, const void *b)
{
	const struct gram *x = a, *y = b;

	if (x->hash != y->hash)
		return x->hash < y->hash ? -1 : 1;
	return x->position < y->position ? -1 : 1;
}

static int compare_u32(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* How far the lengths of two iterations may differ: a few ops, or a tenth. */
static uint64_t tolerance(uint64_t period)
{
	return period < 16 ? period / 3 : 3 + period / 10;
}

/* And how many of their pairs: one more op breaks a pair and makes two. */
static uint64_t pair_tolerance(uint64_t period)
{
	return period < 16 ? (period + 1) / 2 : 6 + period / 10;
}

static bool about(uint64_t length, uint64_t period)
{
	return (length > period ? length - period : period - length) <= tolerance(period);
}

static void sort_grams(struct finder *f)
{
	f->n_grams = f->n - GRAM + 1;
	for (size_t i = 0; i < f->n; i++)
		f->pairs[i] = mix(mix(0, f->ids[i]), i + 1 < f->n ? f->ids[i + 1] : 0);
	for (size_t i = 0; i < f->n_grams; i++)
		f->grams[i] = (struct gram){.hash = gram_hash(f->ids + i), .position = (uint32_t)i};
	qsort(f->grams, f->n_grams, sizeof(*f->grams), compare_grams);
}

static uint32_t position(const struct finder *f, const struct anchor *a, uint32_t i)
{
	return f->grams[a->first + i].position;
}

/* From sorted gaps: the most frequent one, the shorter of two equally frequent, among those that are about as long as
 * the gap in which the middle op lies. When all differ and the last of them in the stream is not much shorter, it is
 * that: what comes first is the least typical. */
static uint32_t typical_gap(const uint32_t *gaps, uint32_t n, uint64_t total, uint32_t last)
{
	uint32_t middle = 0, best = 0, run = 0, typical;
	uint64_t sum = 0;

	while (middle + 1 < n && (sum += gaps[middle]) <= total / 2)
		middle++;
	typical = last >= gaps[middle] / 2 ? last : gaps[middle];
	for (uint32_t i = 0; i < n; i++) {
		run = i > 0 && gaps[i] == gaps[i - 1] ? run + 1 : 1;
		if (run > best && run > 1 && about(gaps[i], gaps[middle])) {
			best = run;
			typical = gaps[i];
		}
	}
	return typical;
}

static void measure_gaps(struct finder *f, struct anchor *a)
{
	uint32_t n_gaps = a->count - 1;
	uint64_t rest = f->n - position(f, a, n_gaps);
	uint32_t last = position(f, a, n_gaps) - position(f, a, n_gaps - 1);

	for (uint32_t i = 0; i < n_gaps; i++)
		f->gaps[i] = position(f, a, i + 1) - position(f, a, i);
	qsort(f->gaps, n_gaps, sizeof(*f->gaps), compare_u32);
	a->gap = typical_gap(f->gaps, n_gaps, position(f, a, n_gaps) - position(f, a, 0), last);
	a->covered = rest < a->gap ? rest : a->gap;
	for (uint32_t i = 0; i < n_gaps; i++)
		a->covered += about(f->gaps[i], a->gap) ? f->gaps[i] : 0;
}

/* Whether most segments can be iterations: an anchor that also occurs inside them cuts most of them too short. Of the
 * anchors with one period only the first is looked at closely, so such a one would stand in the way of the good ones. */
static bool cuts_iterations(const struct finder *f, const struct anchor *a)
{
	uint32_t long_enough = 1; /* the last may be */

	for (uint32_t i = 0; i + 1 < a->count; i++)
		long_enough += f->gaps[i] + tolerance(a->gap) >= a->gap;
	return (long_enough + 1) * 4 >= a->count * 3;
}

static void collect_anchors(struct finder *f)
{
	size_t end;

	for (size_t first = 0; first < f->n_grams; first = end) {
		struct anchor a = {.first = first};

		for (end = first; end < f->n_grams && f->grams[end].hash == f->grams[first].hash;)
			end++;
		a.count = (uint32_t)(end - first);
		if (a.count < 2)
			continue;
		measure_gaps(f, &a);
		if (cuts_iterations(f, &a))
			f->anchors[f->n_anchors++] = a;
	}
}

/* By cover, then the shorter period. */
static int compare_anchors(const void *a, const void *b)
{
	const struct anchor *x = a, *y = b;

	if (x->covered != y->covered)
		return x->covered > y->covered ? -1 : 1;
	return x->gap < y->gap ? -1 : x->gap > y->gap;
}

static void sort_segment(const struct finder *f, uint64_t *to, uint64_t begin, uint64_t length)
{
	memcpy(to, f->pairs + begin, length * sizeof(*to));
	qsort(to, length, sizeof(*to), compare_u64);
}

/* Numbers that two sorted arrays have in common. */
static uint64_t common(const uint64_t *a, uint64_t n_a, const uint64_t *b, uint64_t n_b)
{
	uint64_t i = 0, j = 0, n = 0;

	while (i < n_a && j < n_b) {
		if (a[i] == b[j]) {
			i++;
			j++;
			n++;
		} else if (a[i] < b[j]) {
			i++;
		} else {
			j++;
		}
	}
	return n;
}

/* Whether all but `tolerated` pairs are those of the reference. */
static bool similar(struct finder *f, uint64_t begin, uint64_t length, uint64_t tolerated)
{
	uint64_t larger = length > f->n_reference ? length : f->n_reference;

	sort_segment(f, f->other, begin, length);
	return larger - common(f->reference, f->n_reference, f->other, length) <= tolerated;
}

/* A segment of the typical length or nearest to it, from the middle of the stream on: by then the warm-up is over. */
static void choose_reference(struct finder *f, const struct anchor *a)
{
	uint32_t chosen = 0, least = UINT32_MAX;

	for (uint32_t i = 0; i + 1 < a->count; i++) {
		uint32_t gap = position(f, a, i + 1) - position(f, a, i);
		uint32_t off = gap > a->gap ? gap - a->gap : a->gap - gap;

		if (off < least || (off == least && i <= a->count / 2)) {
			least = off;
			chosen = i;
		}
	}
	f->n_reference = position(f, a, chosen + 1) - position(f, a, chosen);
	sort_segment(f, f->reference, position(f, a, chosen), f->n_reference);
}

/* Segment `i`: up to the next occurrence, or one typical length at the end of the stream or when other work follows. In
 * the latter case it must match closely: the beginning of a longer iteration is none. False when the ops are not those
 * of an iteration. */
static bool segment(struct finder *f, const struct anchor *a, uint32_t i, struct terra_iteration *out)
{
	uint64_t begin = position(f, a, i), end = i + 1 < a->count ? position(f, a, i + 1) : f->n;
	uint64_t tolerated = pair_tolerance(f->n_reference);

	if (i + 1 == a->count || !about(end - begin, f->n_reference)) {
		if (end - begin < f->n_reference)
			return false;
		if (i + 1 < a->count)
			tolerated /= 4;
		end = begin + f->n_reference;
	}
	*out = (struct terra_iteration){.begin = begin, .end = end};
	return similar(f, begin, end - begin, tolerated);
}

/* Ops in segments that really are alike; 0 when not most of the segments are: an anchor inside an inner loop cuts
 * small ones besides. */
static uint64_t verify(struct finder *f, const struct anchor *a)
{
	struct terra_iteration item;
	uint64_t covered = 0;
	uint32_t alike = 0;

	choose_reference(f, a);
	for (uint32_t i = 0; i < a->count; i++) {
		if (!segment(f, a, i, &item))
			continue;
		covered += item.end - item.begin;
		alike++;
	}
	return alike >= 2 && (alike + 1) * 4 >= a->count * 3 ? covered : 0;
}

/* The anchor of the shortest period that covers nearly as much as any; NULL when nothing repeats. */
static const struct anchor *choose_period(struct finder *f)
{
	const struct anchor *looked_at[MAX_PERIODS];
	uint64_t covered[MAX_PERIODS], most = 0;
	const struct anchor *best = NULL;
	size_t n = 0;

	for (size_t i = 0; i < f->n_anchors && n < MAX_PERIODS; i++) {
		size_t known = 0;

		while (known < n && looked_at[known]->gap != f->anchors[i].gap)
			known++;
		if (known < n)
			continue;
		looked_at[n] = &f->anchors[i];
		covered[n] = verify(f, &f->anchors[i]);
		most = covered[n] > most ? covered[n] : most;
		n++;
	}
	for (size_t i = 0; i < n; i++)
		if (covered[i] > f->n / MIN_SHARE && covered[i] >= NEARLY(most) &&
		    (!best || looked_at[i]->gap < best->gap))
			best = looked_at[i];
	return best;
}

/* The occurrence of `a` last before position `before`; UINT32_MAX when there is none. */
static uint32_t last_before(const struct finder *f, const struct anchor *a, uint32_t before)
{
	uint32_t last = UINT32_MAX;

	for (uint32_t i = 0; i < a->count && position(f, a, i) <= before; i++)
		last = position(f, a, i);
	return last;
}

/* Whether the first occurrences of both are of one iteration: as far apart as later ones, where a first iteration may
 * hold more (an optimizer that makes its state). An op that the prefix has in common with the iterations is not. */
static bool same_first(const struct finder *f, const struct anchor *a, const struct anchor *best)
{
	uint32_t middle = position(f, best, best->count / 2), last = last_before(f, a, middle);
	uint32_t usual = middle - last, at_first = position(f, best, 0) - position(f, a, 0);

	return last != UINT32_MAX && at_first + tolerance(best->gap) >= usual && at_first <= usual + best->gap / 2;
}

/* Whether `a` occurs once between any two occurrences of `best`, or nearly so. */
static bool interleaved(const struct finder *f, const struct anchor *a, const struct anchor *best)
{
	uint32_t once = 0, i = 0;

	for (uint32_t b = 0; b + 1 < best->count; b++) {
		uint32_t inside = 0;

		for (; i < a->count && position(f, a, i) < position(f, best, b + 1); i++)
			inside += position(f, a, i) >= position(f, best, b);
		once += inside == 1;
	}
	return once >= NEARLY(best->count - 1);
}

/* Among the anchors with that period, the one that occurs first: iterations then begin where the program begins
 * them. That may cost one, when the first holds more than the others or the stream ends inside the last. */
static struct anchor choose_start(const struct finder *f, const struct anchor *best)
{
	struct anchor start = *best;

	for (size_t i = 0; i < f->n_anchors; i++) {
		const struct anchor *a = &f->anchors[i];

		if (a->count + 1 >= best->count && NEARLY(a->count) <= best->count + 1 &&
		    position(f, a, 0) < position(f, &start, 0) && same_first(f, a, best) && interleaved(f, a, best))
			start = *a;
	}
	start.gap = best->gap;
	return start;
}

/* Ops before the anchor that belong to the same iteration: they precede nearly every occurrence, the first too. */
static uint32_t steps_back(const struct finder *f, const struct anchor *a)
{
	uint32_t back = 0;

	while (back + 1 < a->gap && position(f, a, 0) > back) {
		uint64_t id = f->ids[position(f, a, 0) - back - 1];
		uint32_t same = 0;

		for (uint32_t i = 0; i < a->count; i++)
			same += f->ids[position(f, a, i) - back - 1] == id;
		if (same < NEARLY(a->count))
			break;
		back++;
	}
	return back;
}

static uint64_t content_hash(const struct finder *f, const struct terra_iteration *item)
{
	uint64_t hash = item->end - item->begin;

	for (uint64_t i = item->begin; i < item->end; i++)
		hash = mix(hash, f->ids[i]);
	return hash;
}

struct content {
	uint64_t hash;
	uint64_t length;
	uint32_t item;
};

static int compare_contents(const void *a, const void *b)
{
	const struct content *x = a, *y = b;

	if (x->length != y->length)
		return x->length < y->length ? -1 : 1;
	if (x->hash != y->hash)
		return x->hash < y->hash ? -1 : 1;
	return x->item < y->item ? -1 : x->item > y->item;
}

/* The last iteration with the most frequent content, the shorter of two equally frequent: additions make longer. When
 * none is like another, the middle one by length. */
static int choose_steady(const struct finder *f, struct terra_iterations *out)
{
	struct content *contents = malloc(out->n * sizeof(*contents));
	uint32_t best = 1, run = 0;

	if (!contents)
		return -ENOMEM;
	for (uint32_t i = 0; i < out->n; i++)
		contents[i] = (struct content){.hash = content_hash(f, &out->items[i]),
					       .length = out->items[i].end - out->items[i].begin,
					       .item = i};
	qsort(contents, out->n, sizeof(*contents), compare_contents);
	out->steady = contents[out->n / 2].item;
	for (uint32_t i = 0; i < out->n; i++) {
		bool same = i > 0 && contents[i].hash == contents[i - 1].hash;

		run = same ? run + 1 : 1;
		if (run > best) {
			best = run;
			out->steady = contents[i].item;
		}
	}
	out->period = out->items[out->steady].end - out->items[out->steady].begin;
	free(contents);
	return 0;
}

static int deliver(struct finder *f, const struct anchor *a, struct terra_iterations *out)
{
	uint32_t back = steps_back(f, a);

	out->items = malloc(a->count * sizeof(*out->items));
	if (!out->items)
		return -ENOMEM;
	for (uint32_t i = 0; i < a->count; i++)
		f->grams[a->first + i].position -= back;
	choose_reference(f, a);
	for (uint32_t i = 0; i < a->count; i++)
		if (segment(f, a, i, &out->items[out->n]))
			out->n++;
	return out->n < 2 ? -ENOENT : choose_steady(f, out);
}

static bool finder_alloc(struct finder *f)
{
	f->pairs = malloc(f->n * sizeof(*f->pairs));
	f->grams = malloc(f->n * sizeof(*f->grams));
	f->anchors = malloc((f->n / 2 + 1) * sizeof(*f->anchors));
	f->gaps = malloc(f->n * sizeof(*f->gaps));
	f->reference = malloc(f->n * sizeof(*f->reference));
	f->other = malloc(f->n * sizeof(*f->other));
	return f->pairs && f->grams && f->anchors && f->gaps && f->reference && f->other;
}

static void finder_free(struct finder *f)
{
	free(f->pairs);
	free(f->grams);
	free(f->anchors);
	free(f->gaps);
	free(f->reference);
	free(f->other);
}

/* `anchor` gets the gram that begins the iterations, for those that watch a running program. */
static int find(const uint64_t *ids, size_t n, struct terra_iterations *out, uint64_t *anchor)
{
	struct finder f = {.ids = ids, .n = n};
	const struct anchor *best;
	struct anchor start;
	int err = -ENOENT;

	memset(out, 0, sizeof(*out));
	out->shapes = true;
	if (n < 2 * GRAM || n > UINT32_MAX)
		return -ENOENT;
	if (!finder_alloc(&f)) {
		err = -ENOMEM;
		goto err_out;
	}
	sort_grams(&f);
	collect_anchors(&f);
	qsort(f.anchors, f.n_anchors, sizeof(*f.anchors), compare_anchors);
	best = choose_period(&f);
	if (best) {
		start = choose_start(&f, best);
		*anchor = f.grams[start.first].hash;
		err = deliver(&f, &start, out);
	}
err_out:
	finder_free(&f);
	if (err)
		terra_iterations_free(out);
	return err;
}

int terra_iterations_find(const uint64_t *ids, size_t n, struct terra_iterations *out)
{
	uint64_t anchor;

	return find(ids, n, out, &anchor);
}

void terra_iterations_free(struct terra_iterations *iterations)
{
	free(iterations->items);
	memset(iterations, 0, sizeof(*iterations));
}

/* While the program runs: a full analysis each time the stream has grown by a quarter, and in between the anchor that
 * it found is counted. */
struct terra_iteration_finder {
	uint64_t *ids;
	size_t n, capacity;
	size_t next_analysis;
	uint64_t anchor;   /* valid when period is not 0 */
	uint64_t period;
	size_t last;       /* position of the anchor's last occurrence */
	int64_t confirmed; /* by the last analysis */
	int64_t since;     /* counted since */
	int64_t reported;
};

struct terra_iteration_finder *terra_iteration_finder_new(size_t min_ops)
{
	struct terra_iteration_finder *finder = calloc(1, sizeof(*finder));

	if (finder)
		finder->next_analysis = min_ops < 2 * GRAM ? 2 * GRAM : min_ops;
	return finder;
}

void terra_iteration_finder_free(struct terra_iteration_finder *finder)
{
	if (!finder)
		return;
	free(finder->ids);
	free(finder);
}

static size_t last_occurrence(const struct terra_iteration_finder *finder)
{
	size_t i = finder->n - GRAM;

	while (i > 0 && gram_hash(finder->ids + i) != finder->anchor)
		i--;
	return i;
}

static int analyse(struct terra_iteration_finder *finder)
{
	struct terra_iterations iterations;
	int err = find(finder->ids, finder->n, &iterations, &finder->anchor);

	finder->next_analysis = finder->n + finder->n / 4 + 1;
	finder->since = 0;
	finder->confirmed = 0;
	finder->period = 0;
	if (err)
		return err == -ENOENT ? 0 : err;
	finder->period = iterations.period;
	finder->confirmed = iterations.n;
	finder->last = last_occurrence(finder);
	/* The analysis takes a last segment of full length as complete; it must not be counted again. */
	if (finder->n - finder->last >= finder->period)
		finder->confirmed--;
	terra_iterations_free(&iterations);
	return 0;
}

static void count_anchor(struct terra_iteration_finder *finder)
{
	size_t at = finder->n - GRAM;

	if (!finder->period || gram_hash(finder->ids + at) != finder->anchor || at <= finder->last)
		return;
	if (about(at - finder->last, finder->period))
		finder->since++;
	finder->last = at;
}

static int append(struct terra_iteration_finder *finder, uint64_t id)
{
	if (finder->n == finder->capacity) {
		size_t capacity = finder->capacity ? finder->capacity * 2 : 4096;
		uint64_t *ids = realloc(finder->ids, capacity * sizeof(*ids));

		if (!ids)
			return -ENOMEM;
		finder->ids = ids;
		finder->capacity = capacity;
	}
	finder->ids[finder->n++] = id;
	return 0;
}

int64_t terra_iteration_finder_feed(struct terra_iteration_finder *finder, uint64_t id)
{
	int err = append(finder, id);
	int64_t complete;

	if (err)
		return err;
	if (finder->n >= GRAM)
		count_anchor(finder);
	if (finder->n >= finder->next_analysis) {
		err = analyse(finder);
		if (err)
			return err;
	}
	complete = finder->confirmed + finder->since;
	if (complete > finder->reported)
		finder->reported = complete;
	return finder->reported;
}
