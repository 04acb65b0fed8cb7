/* report_print.c - the summary of a trace as text and as JSON. */
#include "collector/report.h"

#include <inttypes.h>
#include <string.h>

void report_print_plain(const char *s, FILE *out)
{
	for (; s && *s; s++)
		fputc((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s, out);
}

static void print_field(const char *name, const char *value, FILE *out)
{
	fprintf(out, "%-12s ", name);
	report_print_plain(value[0] ? value : "unknown", out);
	fputc('\n', out);
}

/* Files of installed packages without what comes before the package. */
static const char *short_path(const char *file)
{
	static const char *const markers[] = {"/site-packages/", "/dist-packages/"};

	for (size_t i = 0; i < sizeof(markers) / sizeof(markers[0]); i++) {
		const char *found = strstr(file, markers[i]);

		if (found)
			return found + strlen(markers[i]);
	}
	return file;
}

void report_print_frame(const struct terra_frame *frame, FILE *out)
{
	report_print_plain(frame->file ? short_path(frame->file) : "?", out);
	fprintf(out, ":%" PRId32 " ", frame->line);
	report_print_plain(frame->function && frame->function[0] ? frame->function : "?", out);
}

static double ms(uint64_t ns)
{
	return (double)ns / 1e6;
}

static void print_head(const struct terra_summary *s, const char *path, FILE *out)
{
	const struct terra_trace_info *info = s->info;

	print_field("trace", path, out);
	print_field("program", info->command, out);
	fprintf(out, "%-12s %" PRIu32 "\n", "process", info->pid);
	print_field("backend", info->backend, out);
	print_field("library", info->library, out);
	print_field("build-id", info->build_id, out);
	print_field("cpu", info->cpu, out);
	if (info->threads)
		fprintf(out, "%-12s %" PRIu32 "\n", "OpenMP", info->threads);
}

static void print_ops(const struct terra_summary *s, FILE *out)
{
	fprintf(out, "%-12s %" PRIu64 " (%" PRIu64 " calls, %" PRIu64 " redispatches), %" PRIu32 " kinds", "ops",
		s->calls + s->redispatches, s->calls, s->redispatches, s->n_kinds);
	if (s->raised)
		fprintf(out, ", %" PRIu64 " raised", s->raised);
	if (s->unfinished)
		fprintf(out, ", %" PRIu64 " without an end", s->unfinished);
	fprintf(out, "\n%-12s %.1f ms from the first event to the last\n", "time", ms(s->last_ns - s->first_ns));
}

static void print_iterations(const struct terra_summary *s, FILE *out)
{
	const struct terra_iterations *it = &s->iterations;

	if (!s->has_iterations) {
		fprintf(out, "%-12s none found: the ops do not repeat; record at least three iterations\n",
			"iterations");
		return;
	}
	fprintf(out, "%-12s %" PRIu32 " of %" PRIu64 " ops on thread %" PRIu32, "iterations", it->n, it->period,
		it->thread);
	if (s->median_ns)
		fprintf(out, ", median %.3f ms", ms(s->median_ns));
	if (!it->shapes)
		fprintf(out, ", of changing shapes");
	fprintf(out, "\n%-12s events %" PRIu64 " to %" PRIu64 "\n", "steady", it->items[it->steady].begin,
		it->items[it->steady].end);
}

static void print_end(const struct terra_summary *s, FILE *out)
{
	fprintf(out, "%-12s %s\n", "end",
		s->ended_cleanly ? "clean" : "ended abnormally: no end marker; what was written before is here");
	fprintf(out, "%-12s %" PRIu64 " events not recorded\n", "lost", s->lost);
	if (!s->n_damage)
		return;
	fprintf(out, "%-12s %" PRIu64 " places, %" PRIu64 " events missing\n", "damage", s->n_damage, s->missing);
	for (uint64_t i = 0; i < s->n_damage && i < SUMMARY_DAMAGE_KEPT; i++)
		fprintf(out, "%-12s   %s\n", "", s->damage[i]);
}

static void print_more(uint32_t shown, uint32_t all, FILE *out)
{
	if (shown < all)
		fprintf(out, "  ... and %" PRIu32 " more (--top %" PRIu32 " shows all)\n", all - shown, all);
}

static uint32_t at_most(uint32_t n, unsigned int top)
{
	return n < top ? n : top;
}

static void print_threads(const struct terra_summary *s, unsigned int top, FILE *out)
{
	uint32_t n = at_most(s->n_threads, top);

	fprintf(out, "\nThreads\n  %10s %10s %12s\n", "thread", "ops", "ms in ops");
	for (uint32_t i = 0; i < n; i++)
		fprintf(out, "  %10" PRIu32 " %10" PRIu64 " %12.3f\n", s->threads[i].thread, s->threads[i].ops,
			ms(s->threads[i].total_ns));
	print_more(n, s->n_threads, out);
}

static void print_kinds(const struct terra_summary *s, unsigned int top, FILE *out)
{
	uint32_t n = at_most(s->n_kinds, top);
	uint64_t all = 0;

	for (uint32_t i = 0; i < s->n_kinds; i++)
		all += s->kinds[i].self_ns;
	fprintf(out, "\nTime by op (recording included; self: without the ops inside)\n");
	fprintf(out, "  %10s %6s %12s %8s %8s  %s\n", "self ms", "%", "total ms", "calls", "redisp.", "op");
	for (uint32_t i = 0; i < n; i++) {
		const struct summary_kind *k = &s->kinds[i];

		fprintf(out, "  %10.3f %6.1f %12.3f %8" PRIu64 " %8" PRIu64 "  ", ms(k->self_ns),
			all ? 100.0 * (double)k->self_ns / (double)all : 0.0, ms(k->total_ns), k->calls,
			k->redispatches);
		report_print_plain(k->op, out);
		if (k->overload[0]) {
			fputc('.', out);
			report_print_plain(k->overload, out);
		}
		fputc('\n', out);
	}
	print_more(n, s->n_kinds, out);
}

static void print_sites(const struct terra_summary *s, unsigned int top, FILE *out)
{
	uint32_t n = at_most(s->n_sites, top);

	if (s->n_sites == 0) {
		fprintf(out, "\nCall sites: the trace holds no Python stacks\n");
		return;
	}
	fprintf(out, "\nSlowest call sites\n  %12s %8s  %s\n", "total ms", "calls", "where");
	for (uint32_t i = 0; i < n; i++) {
		const struct summary_site *site = &s->sites[i];

		fprintf(out, "  %12.3f %8" PRIu64 "  ", ms(site->total_ns), site->calls);
		report_print_frame(&site->frame, out);
		if (site->caller.file) {
			fputs("  from ", out);
			report_print_frame(&site->caller, out);
		}
		fputc('\n', out);
	}
	print_more(n, s->n_sites, out);
	if (s->without_stack)
		fprintf(out, "  %" PRIu64 " outermost ops have no Python stack\n", s->without_stack);
}

static void print_modules(const struct terra_summary *s, unsigned int top, FILE *out)
{
	uint32_t n = at_most(s->n_modules, top);

	if (s->n_modules == 0)
		return;
	fprintf(out, "\nTime by module (backward: ops of the backward pass, by the module of the op that they are of)\n"
		     "  %12s %8s %12s %8s  %s\n", "forward ms", "ops", "backward ms", "ops", "module");
	for (uint32_t i = 0; i < n; i++) {
		const struct summary_module *module = &s->modules[i];

		fprintf(out, "  %12.3f %8" PRIu64 " %12.3f %8" PRIu64 "  ", ms(module->total_ns), module->ops,
			ms(module->backward_ns), module->backward_ops);
		report_print_plain(module->module, out);
		fputc('\n', out);
	}
	print_more(n, s->n_modules, out);
}

static void print_notes(const struct terra_summary *s, unsigned int top, FILE *out)
{
	uint32_t n = at_most(s->n_notes, top);

	if (s->n_notes == 0)
		return;
	fprintf(out, "\nNotes\n");
	for (uint32_t i = 0; i < n; i++) {
		fputs("  ", out);
		report_print_plain(s->notes[i].text, out);
		if (s->notes[i].count > 1)
			fprintf(out, " (%" PRIu64 " times)", s->notes[i].count);
		fputc('\n', out);
	}
	print_more(n, s->n_notes, out);
}

static void print_others(const struct terra_summary *s, unsigned int top, FILE *out)
{
	uint32_t n = at_most(s->n_others, top);

	if (s->n_others == 0)
		return;
	fprintf(out, "\nBeside the operators\n");
	for (uint32_t i = 0; i < n; i++) {
		fprintf(out, "  %8" PRIu64 "  ", s->others[i].count);
		report_print_plain(s->others[i].text, out);
		fputc('\n', out);
	}
	print_more(n, s->n_others, out);
}

void terra_summary_print(const struct terra_summary *s, const char *path, unsigned int top, FILE *out)
{
	print_head(s, path, out);
	print_ops(s, out);
	print_iterations(s, out);
	print_end(s, out);
	print_threads(s, top, out);
	print_kinds(s, top, out);
	report_gpu_print(s->gpu, top, out);
	print_sites(s, top, out);
	print_modules(s, top, out);
	print_others(s, top, out);
	print_notes(s, top, out);
}

/* JSON. */

static void json_head(const struct terra_summary *s, const char *path, struct json *json)
{
	const struct terra_trace_info *info = s->info;

	json_member_string(json, "trace", path);
	json_member_u64(json, "version", info->version);
	json_member_string(json, "command", info->command);
	json_member_u64(json, "pid", info->pid);
	json_member_string(json, "backend", info->backend);
	json_member_string(json, "library", info->library);
	json_member_string(json, "build_id", info->build_id);
	json_member_string(json, "cpu", info->cpu);
	json_member_u64(json, "omp_threads", info->threads);
	json_member_u64(json, "start_ns", info->start_ns);
	json_member_u64(json, "first_ns", s->first_ns);
	json_member_u64(json, "last_ns", s->last_ns);
}

static void json_counts(const struct terra_summary *s, struct json *json)
{
	json_member_u64(json, "events", s->events);
	json_member_u64(json, "calls", s->calls);
	json_member_u64(json, "redispatches", s->redispatches);
	json_member_u64(json, "raised", s->raised);
	json_member_u64(json, "unfinished", s->unfinished);
	json_member_u64(json, "without_stack", s->without_stack);
	json_member_u64(json, "lost", s->lost);
	json_member_u64(json, "missing", s->missing);
	json_key(json, "ended_cleanly");
	json_bool(json, s->ended_cleanly);
	json_member_u64(json, "damaged_places", s->n_damage);
	json_key(json, "damage");
	json_open(json, '[');
	for (uint64_t i = 0; i < s->n_damage && i < SUMMARY_DAMAGE_KEPT; i++)
		json_string(json, s->damage[i]);
	json_close(json, ']');
}

static void json_iterations(const struct terra_summary *s, struct json *json)
{
	const struct terra_iterations *it = &s->iterations;

	json_key(json, "iterations");
	if (!s->has_iterations) {
		json_null(json);
		return;
	}
	json_open(json, '{');
	json_member_u64(json, "count", it->n);
	json_member_u64(json, "period", it->period);
	json_member_u64(json, "steady", it->steady);
	json_member_u64(json, "thread", it->thread);
	json_key(json, "same_shapes");
	json_bool(json, it->shapes);
	json_member_u64(json, "median_ns", s->median_ns);
	json_key(json, "events");
	json_open(json, '[');
	for (uint32_t i = 0; i < it->n; i++) {
		json_open(json, '[');
		json_u64(json, it->items[i].begin);
		json_u64(json, it->items[i].end);
		json_close(json, ']');
	}
	json_close(json, ']');
	json_close(json, '}');
}

static void json_threads(const struct terra_summary *s, struct json *json)
{
	json_key(json, "threads");
	json_open(json, '[');
	for (uint32_t i = 0; i < s->n_threads; i++) {
		json_open(json, '{');
		json_member_u64(json, "thread", s->threads[i].thread);
		json_member_u64(json, "ops", s->threads[i].ops);
		json_member_u64(json, "total_ns", s->threads[i].total_ns);
		json_close(json, '}');
	}
	json_close(json, ']');
}

static void json_kinds(const struct terra_summary *s, struct json *json)
{
	json_key(json, "kinds");
	json_open(json, '[');
	for (uint32_t i = 0; i < s->n_kinds; i++) {
		const struct summary_kind *k = &s->kinds[i];

		json_open(json, '{');
		json_member_string(json, "op", k->op);
		json_member_string(json, "overload", k->overload);
		json_member_u64(json, "calls", k->calls);
		json_member_u64(json, "redispatches", k->redispatches);
		json_member_u64(json, "raised", k->raised);
		json_member_u64(json, "self_ns", k->self_ns);
		json_member_u64(json, "total_ns", k->total_ns);
		json_close(json, '}');
	}
	json_close(json, ']');
}

static void json_frame(const struct terra_frame *frame, struct json *json)
{
	json_open(json, '{');
	json_member_string(json, "file", frame->file);
	json_key(json, "line");
	json_i64(json, frame->line);
	json_member_string(json, "function", frame->function);
	json_close(json, '}');
}

static void json_modules(const struct terra_summary *s, struct json *json)
{
	json_key(json, "modules");
	json_open(json, '[');
	for (uint32_t i = 0; i < s->n_modules; i++) {
		const struct summary_module *module = &s->modules[i];

		json_open(json, '{');
		json_member_string(json, "module", module->module);
		json_member_u64(json, "ops", module->ops);
		json_member_u64(json, "total_ns", module->total_ns);
		json_member_u64(json, "backward_ops", module->backward_ops);
		json_member_u64(json, "backward_ns", module->backward_ns);
		json_close(json, '}');
	}
	json_close(json, ']');
}

static void json_sites(const struct terra_summary *s, struct json *json)
{
	json_key(json, "sites");
	json_open(json, '[');
	for (uint32_t i = 0; i < s->n_sites; i++) {
		const struct summary_site *site = &s->sites[i];

		json_open(json, '{');
		json_key(json, "frame");
		json_frame(&site->frame, json);
		json_key(json, "caller");
		if (site->caller.file)
			json_frame(&site->caller, json);
		else
			json_null(json);
		json_member_u64(json, "calls", site->calls);
		json_member_u64(json, "total_ns", site->total_ns);
		json_close(json, '}');
	}
	json_close(json, ']');
}

static void json_texts(const char *key, const struct summary_note *notes, uint32_t n, struct json *json)
{
	json_key(json, key);
	json_open(json, '[');
	for (uint32_t i = 0; i < n; i++) {
		json_open(json, '{');
		json_member_string(json, "text", notes[i].text);
		json_member_u64(json, "count", notes[i].count);
		json_close(json, '}');
	}
	json_close(json, ']');
}

void terra_summary_json(const struct terra_summary *s, const char *path, struct json *json)
{
	json_head(s, path, json);
	json_counts(s, json);
	json_iterations(s, json);
	json_threads(s, json);
	json_kinds(s, json);
	report_gpu_json(s->gpu, json);
	json_sites(s, json);
	json_modules(s, json);
	json_texts("others", s->others, s->n_others, json);
	json_texts("notes", s->notes, s->n_notes, json);
}
