/* report_modules.c - sums by module path. */
#include "collector/report_modules.h"
#include "collector/trace_intern.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The module of an op, inner ones too: Nodes are made by them. */
struct op_module {
	uint64_t seq;
	uint32_t module;
};

struct report_modules {
	struct trace_intern names;
	struct trace_buffer sums; /* struct summary_module per name */
	struct trace_buffer ops;  /* struct op_module, by seq */
};

struct report_modules *report_modules_new(void)
{
	return calloc(1, sizeof(struct report_modules));
}

void report_modules_free(struct report_modules *modules)
{
	if (!modules)
		return;
	trace_intern_free(&modules->names);
	free(modules->sums.data);
	free(modules->ops.data);
	free(modules);
}

static struct summary_module *sums_of(struct report_modules *modules)
{
	return (struct summary_module *)modules->sums.data;
}

static int compare_ops(const void *a, const void *b)
{
	const struct op_module *x = a, *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static const struct op_module *find_op(const struct report_modules *modules, uint64_t seq)
{
	struct op_module key = { .seq = seq };
	size_t n = modules->ops.size / sizeof(key);

	return n ? bsearch(&key, modules->ops.data, n, sizeof(key), compare_ops) : NULL;
}

static int number_of(struct report_modules *modules, const char *name, uint32_t *number)
{
	static const struct summary_module none;
	struct trace_intern_entry *entry = trace_intern_get(&modules->names, name, strlen(name) + 1);

	if (!entry)
		return -ENOMEM;
	*number = (uint32_t)(entry - modules->names.entries);
	if (modules->sums.size == *number * sizeof(none))
		trace_buffer_put(&modules->sums, &none, sizeof(none));
	return modules->sums.failed ? -ENOMEM : 0;
}

int report_modules_enter(struct report_modules *modules, const struct terra_event *event, uint64_t *place)
{
	bool outermost = event->parent_seq == UINT64_MAX;
	struct op_module op = { .seq = event->seq };
	const struct op_module *forward;

	*place = REPORT_NO_MODULE;
	if (event->module) {
		if (number_of(modules, event->module, &op.module))
			return -ENOMEM;
		trace_buffer_put(&modules->ops, &op, sizeof(op));
		if (outermost) {
			sums_of(modules)[op.module].ops++;
			*place = 2ull * op.module;
		}
		return modules->ops.failed ? -ENOMEM : 0;
	}
	forward = outermost && event->autograd && event->forward_seq != UINT64_MAX ? find_op(modules, event->forward_seq) : NULL;
	if (forward) {
		sums_of(modules)[forward->module].backward_ops++;
		*place = 2ull * forward->module + 1;
	}
	return 0;
}

void report_modules_leave(struct report_modules *modules, uint64_t place, uint64_t ns)
{
	struct summary_module *sum = place == REPORT_NO_MODULE ? NULL : &sums_of(modules)[place / 2];

	if (sum && place & 1)
		sum->backward_ns += ns;
	else if (sum)
		sum->total_ns += ns;
}

static int most_time(const void *a, const void *b)
{
	const struct summary_module *x = a, *y = b;
	uint64_t x_ns = x->total_ns + x->backward_ns, y_ns = y->total_ns + y->backward_ns;

	if (x_ns != y_ns)
		return x_ns > y_ns ? -1 : 1;
	return strcmp(x->module, y->module);
}

const struct summary_module *report_modules_finish(struct report_modules *modules, uint32_t *n)
{
	struct summary_module *sums = sums_of(modules);
	uint32_t kept = 0;

	*n = modules->names.n_entries;
	for (uint32_t i = 0; i < *n; i++) {
		sums[i].module = (const char *)modules->names.keys.data + modules->names.entries[i].key;
		if (sums[i].ops || sums[i].backward_ops)
			sums[kept++] = sums[i];
	}
	*n = kept;
	if (kept)
		qsort(sums, kept, sizeof(*sums), most_time);
	return sums;
}
