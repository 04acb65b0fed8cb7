/* The ranks of a distributed program as text and as JSON. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "collector/ranks.h"
#include "collector/report_json.h"

/* Collectives that are alike: the same operator and tensors from the same line of the first rank. */
struct group {
	const struct terra_collective *first;
	uint32_t times;
	uint64_t wait_ns; /* the first to come waits for the last, all times together */
};

static uint64_t wait_of(const struct terra_ranks *ranks, uint32_t position)
{
	uint64_t first = UINT64_MAX, last = 0;

	for (uint32_t i = 0; i < ranks->n; i++) {
		uint64_t at = ranks->ranks[i].items[position].enter_ns;

		first = at < first ? at : first;
		last = at > last ? at : last;
	}
	return last - first;
}

/* As many as matched; *n of them. NULL when out of memory. */
static struct group *make_groups(const struct terra_ranks *ranks, uint32_t *n)
{
	struct group *groups = calloc(ranks->matched + 1, sizeof(*groups));

	*n = 0;
	for (uint32_t at = 0; groups && at < ranks->matched; at++) {
		const struct terra_collective *item = &ranks->ranks[0].items[at];
		uint32_t i = 0;

		while (i < *n && (strcmp(groups[i].first->what, item->what) || strcmp(groups[i].first->from, item->from)))
			i++;
		if (i == *n)
			groups[(*n)++].first = item;
		groups[i].times++;
		groups[i].wait_ns += wait_of(ranks, at);
	}
	return groups;
}

static void name_rank(const struct terra_index_entry *entry, char out[32])
{
	if (entry->process.rank >= 0)
		snprintf(out, 32, "rank %" PRId64, entry->process.rank);
	else
		snprintf(out, 32, "process %d", entry->process.pid);
}

static uint32_t count(const struct terra_rank *rank, bool messages)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < rank->n; i++)
		n += rank->items[i].point_to_point == messages;
	return n;
}

static const struct terra_collective *at(const struct terra_rank *rank, uint32_t position)
{
	return position < count(rank, false) ? &rank->items[position] : NULL;
}

static void print_mismatch(const struct terra_ranks *ranks, FILE *out)
{
	char name[32];

	fprintf(out, "\nMISMATCH: collective %" PRIu32 " is not the same in all ranks (later ones are not compared)\n",
		ranks->matched + 1);
	for (uint32_t i = 0; i < ranks->n; i++) {
		const struct terra_collective *item = at(&ranks->ranks[i], ranks->matched);

		name_rank(&ranks->ranks[i].entry, name);
		fprintf(out, "  %-12s %s%s%s\n", name, item ? item->what : "none: it has no more",
			item && item->from[0] ? "  from " : "", item ? item->from : "");
	}
}

static void print_rank(const struct terra_rank *rank, FILE *out)
{
	char name[32];

	name_rank(&rank->entry, name);
	fprintf(out, "  %-12s pid %-8d %9" PRIu64 " events %6" PRIu64 " lost %6" PRIu32 " collectives %4" PRIu32
		" messages  %s%s\n",
		name, rank->entry.process.pid, rank->entry.events, rank->entry.lost, count(rank, false),
		count(rank, true), rank->entry.file, rank->entry.complete ? "" : " (ended abnormally)");
}

static void print_other(const struct terra_index_entry *entry, FILE *out)
{
	char name[32];

	name_rank(entry, name);
	fprintf(out, "  %-12s pid %-8d %9" PRIu64 " events %6" PRIu64 " lost  %s%s  %s\n", name, entry->process.pid,
		entry->events, entry->lost, entry->file, entry->complete ? "" : " (ended abnormally)", entry->command);
}

void terra_ranks_print(const struct terra_ranks *ranks, const char *index, FILE *out)
{
	struct group *groups;
	uint32_t n;

	fprintf(out, "%s: %" PRIu32 " traces, %" PRIu32 " of them with collectives (c10d)\n", index, ranks->n_traces,
		ranks->n);
	for (uint32_t i = 0; i < ranks->n; i++)
		print_rank(&ranks->ranks[i], out);
	for (uint32_t i = 0; i < ranks->n_others; i++)
		print_other(&ranks->others[i], out);
	if (!ranks->n)
		return;
	fprintf(out, "\nCollectives: %" PRIu32 " of %" PRIu32 " match in all ranks\n", ranks->matched, ranks->most);
	fprintf(out, "  %6s %12s %10s  operator, sizes and dtypes  (from)\n", "times", "elements", "wait");
	groups = make_groups(ranks, &n);
	for (uint32_t i = 0; groups && i < n; i++)
		fprintf(out, "  %6" PRIu32 " %12" PRIu64 " %7.3f ms  %s  (%s)\n", groups[i].times,
			groups[i].first->elements, (double)groups[i].wait_ns / groups[i].times / 1e6,
			groups[i].first->what, groups[i].first->from);
	free(groups);
	if (ranks->matched < ranks->most)
		print_mismatch(ranks, out);
}

static void json_entry(struct json *json, const struct terra_index_entry *entry)
{
	json_key(json, "rank");
	if (entry->process.rank >= 0)
		json_i64(json, entry->process.rank);
	else
		json_null(json);
	json_member_u64(json, "pid", (uint64_t)entry->process.pid);
	json_member_string(json, "file", entry->file);
	json_member_u64(json, "events", entry->events);
	json_member_u64(json, "lost", entry->lost);
}

static void json_other(struct json *json, const struct terra_index_entry *entry)
{
	json_open(json, '{');
	json_entry(json, entry);
	json_member_string(json, "command", entry->command);
	json_close(json, '}');
}

static void json_rank(struct json *json, const struct terra_rank *rank)
{
	json_open(json, '{');
	json_entry(json, &rank->entry);
	json_member_u64(json, "collectives", count(rank, false));
	json_member_u64(json, "messages", count(rank, true));
	json_close(json, '}');
}

static void json_collective(struct json *json, const struct terra_ranks *ranks, uint32_t position)
{
	const struct terra_collective *item = &ranks->ranks[0].items[position];

	json_open(json, '{');
	json_member_string(json, "what", item->what);
	json_member_string(json, "from", item->from);
	json_member_u64(json, "elements", item->elements);
	json_key(json, "enter_ns");
	json_open(json, '[');
	for (uint32_t i = 0; i < ranks->n; i++)
		json_u64(json, ranks->ranks[i].items[position].enter_ns);
	json_close(json, ']');
	json_close(json, '}');
}

static void json_mismatch(struct json *json, const struct terra_ranks *ranks)
{
	json_key(json, "mismatch");
	if (ranks->matched == ranks->most) {
		json_null(json);
		return;
	}
	json_open(json, '[');
	for (uint32_t i = 0; i < ranks->n; i++) {
		const struct terra_collective *item = at(&ranks->ranks[i], ranks->matched);

		json_string(json, item ? item->what : NULL);
	}
	json_close(json, ']');
}

void terra_ranks_json(const struct terra_ranks *ranks, const char *index, FILE *out)
{
	struct json json = { .out = out };

	json_open(&json, '{');
	json_member_string(&json, "index", index);
	json_member_u64(&json, "traces", ranks->n_traces);
	json_key(&json, "ranks");
	json_open(&json, '[');
	for (uint32_t i = 0; i < ranks->n; i++)
		json_rank(&json, &ranks->ranks[i]);
	json_close(&json, ']');
	json_key(&json, "others");
	json_open(&json, '[');
	for (uint32_t i = 0; i < ranks->n_others; i++)
		json_other(&json, &ranks->others[i]);
	json_close(&json, ']');
	json_key(&json, "matched");
	json_open(&json, '[');
	for (uint32_t i = 0; i < ranks->matched; i++)
		json_collective(&json, ranks, i);
	json_close(&json, ']');
	json_mismatch(&json, ranks);
	json_close(&json, '}');
	fputc('\n', out);
}
