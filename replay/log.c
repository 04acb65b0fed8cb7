/* log.c - what replay did, told at exit when asked for (TERRA_LOG=summary, TERRA_LOG=json:FILE). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "replay/arena.h"
#include "replay/replay.h"
#include "replay/trial.h"

struct replay_counts replay_counts;
struct region_counts *replay_region_counts;

static const char *const reason_names[FLUSH_REASONS] = {
	[FLUSH_OP] = "op",           [FLUSH_COMPLETE] = "complete", [FLUSH_MEMORY] = "memory",
	[FLUSH_ACCESS] = "access",   [FLUSH_SYSCALL] = "syscall",   [FLUSH_FORK] = "fork",
	[FLUSH_THREAD] = "thread",   [FLUSH_SETTING] = "setting",   [FLUSH_EXIT] = "exit",
};

static const char *const mode_names[] = {"off", "alloc", "observe", "replay"};

static uint64_t peak_bytes(void)
{
	struct rusage usage;

	return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0;
}

static void print_string(FILE *f, const char *s)
{
	fputc('"', f);
	for (; *s != '\0'; s++) {
		if (*s == '"' || *s == '\\')
			fprintf(f, "\\%c", *s);
		else if ((unsigned char)*s < 0x20)
			fprintf(f, "\\u%04x", *s);
		else
			fputc(*s, f);
	}
	fputc('"', f);
}

static void json_regions(FILE *f, const struct terra_plan *plan)
{
	const char *comma = "";

	fputs("\"regions\":[", f);
	for (uint32_t r = 0; plan && replay_region_counts && r < plan->n_regions; r++) {
		const struct terra_plan_region *region = &plan->regions[r];
		const struct region_counts *n = &replay_region_counts[r];

		if (region->fallback)
			continue;
		fprintf(f, "%s{\"id\":%u,\"name\":", comma, region->id);
		print_string(f, region->name);
		fprintf(f, ",\"ops\":%u,\"runs\":%llu,\"dead_results\":%llu,\"elements\":%llu}", region->n_ops,
			(unsigned long long)n->runs, (unsigned long long)n->dead, (unsigned long long)n->elements);
		comma = ",";
	}
	fputs("]", f);
}

static void json_log(const struct terra_plan *plan)
{
	FILE *f = fopen(replay_config.log_json, "we");
	struct arena_stats arena;

	if (f == NULL) {
		replay_say("%s can't be written", replay_config.log_json);
		return;
	}
	arena_stats(&arena);
	fprintf(f, "{\"mode\":\"%s\",\"ops_seen\":%llu,\"ops_deferred\":%llu,\"ops_fused\":%llu,\"ops_singly\":%llu,"
		   "\"ops_replaced\":%llu,\"left_alone\":%llu,",
		mode_names[replay_config.mode], (unsigned long long)replay_ops_seen,
		(unsigned long long)replay_counts.deferred, (unsigned long long)replay_counts.fused,
		(unsigned long long)replay_counts.finished_singly, (unsigned long long)replay_counts.replaced,
		(unsigned long long)replay_counts.left_alone);
	json_regions(f, plan);
	fputs(",\"flushes\":{", f);
	for (int i = 0; i < FLUSH_REASONS; i++)
		fprintf(f, "%s\"%s\":%llu", i ? "," : "", reason_names[i], (unsigned long long)replay_counts.flushes[i]);
	fprintf(f, "},\"pages\":{\"closings\":%llu,\"ahead\":%llu,\"lowered\":%llu,\"openings\":%llu",
		(unsigned long long)replay_counts.closings, (unsigned long long)replay_counts.ahead,
		(unsigned long long)replay_counts.lowered, (unsigned long long)replay_counts.openings);
	fprintf(f, "},\"trials\":{\"verdicts\":%llu,\"lost\":%llu", (unsigned long long)trial_counts.trials,
		(unsigned long long)trial_counts.lost);
	fprintf(f, "},\"threads\":{\"count\":%d,\"last_made_by\":", replay_program_threads);
	print_string(f, replay_thread_maker);
	fprintf(f, "},\"held_peak_bytes\":%llu,\"arena_peak_bytes\":%llu,\"peak_bytes\":%llu}\n",
		(unsigned long long)replay_counts.held_peak, (unsigned long long)arena.peak_resident_bytes,
		(unsigned long long)peak_bytes());
	fclose(f);
}

static void summary_log(const struct terra_plan *plan)
{
	struct arena_stats arena;
	uint64_t runs = 0;
	uint32_t used = 0, regions = 0;
	char flushes[256] = "";
	size_t at = 0;

	for (uint32_t r = 0; plan && replay_region_counts && r < plan->n_regions; r++) {
		runs += replay_region_counts[r].runs;
		used += replay_region_counts[r].runs != 0;
		regions += !plan->regions[r].fallback;
	}
	for (int i = 0; i < FLUSH_REASONS; i++)
		if (replay_counts.flushes[i] != 0)
			at += (size_t)snprintf(flushes + at, sizeof(flushes) - at, " %s %llu", reason_names[i],
					       (unsigned long long)replay_counts.flushes[i]);
	arena_stats(&arena);
	replay_say("mode %s: %llu ops seen, %llu deferred, %llu fused in %llu runs, %llu singly, %llu replaced",
		   mode_names[replay_config.mode], (unsigned long long)replay_ops_seen,
		   (unsigned long long)replay_counts.deferred, (unsigned long long)replay_counts.fused,
		   (unsigned long long)runs, (unsigned long long)replay_counts.finished_singly,
		   (unsigned long long)replay_counts.replaced);
	replay_say("regions: %u of the plan's %u ran; %llu times none began where that had cost more than it gained, or to compare",
		   used, regions, (unsigned long long)replay_counts.left_alone);
	replay_say("trials: %llu, of which waiting lost %llu", (unsigned long long)trial_counts.trials,
		   (unsigned long long)trial_counts.lost);
	replay_say("flushes:%s", at ? flushes : " none");
	replay_say("pages: closed by %llu calls, %llu of them ahead of need, opened by %llu; %llu granules touched ahead of need",
		   (unsigned long long)replay_counts.closings, (unsigned long long)replay_counts.ahead,
		   (unsigned long long)replay_counts.openings, (unsigned long long)replay_counts.lowered);
	replay_say("memory: peak %.0f MB, arena %.0f MB at most, %.0f MB given back and %.0f MB moved, waiting results %.1f MB at most",
		   (double)peak_bytes() / 1e6, (double)arena.peak_resident_bytes / 1e6, (double)arena.trimmed_bytes / 1e6,
		   (double)arena.moved_bytes / 1e6,
		   (double)replay_counts.held_peak / 1e6);
}

/* For tests in the process: "deferred", "fused", "replaced", "parallel", "closings", "ahead",
 * "lowered", "waiting", or a flush reason. ~0: no such count. */
REPLAY_EXPORT uint64_t terra_replay_count(const char *name)
{
	static const struct {
		const char *name;
		const uint64_t *count;
	} counts[] = {
	    {"deferred", &replay_counts.deferred}, {"fused", &replay_counts.fused},       {"replaced", &replay_counts.replaced},
	    {"parallel", &replay_counts.parallel}, {"closings", &replay_counts.closings}, {"ahead", &replay_counts.ahead},
	    {"lowered", &replay_counts.lowered},
	};

	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
		if (strcmp(name, counts[i].name) == 0)
			return *counts[i].count;
	if (strcmp(name, "waiting") == 0)
		return replay_attention.pending;
	for (int i = 0; i < FLUSH_REASONS; i++)
		if (strcmp(name, reason_names[i]) == 0)
			return replay_counts.flushes[i];
	return ~0ull;
}

void log_exit(const struct terra_plan *plan)
{
	if (replay_config.log_summary)
		summary_log(plan);
	if (replay_config.log_json != NULL)
		json_log(plan);
}
