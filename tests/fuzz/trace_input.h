/* trace_input.h - bytes through the trace reader and everything that looks at a trace; for the fuzzers and the mutation
 * test. */
#ifndef TERRA_TESTS_FUZZ_TRACE_INPUT_H
#define TERRA_TESTS_FUZZ_TRACE_INPUT_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#include "collector/export.h"
#include "collector/report.h"
#include "collector/trace_format.h"
#include "graphopt/graph.h"
#include "graphopt/graph_report.h"

/* A reader asks a hostile file for this much work at the most: it may not return more often than bytes can explain. */
static inline void input_check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "trace input: %s\n", what);
	abort();
}

static inline uint64_t input_sum_tensor(const struct terra_tensor *t)
{
	uint64_t sum = t->impl + t->data + (uint64_t)t->numel;

	for (int i = 0; i < t->ndim && i < TERRA_MAX_DIM; i++)
		sum += (uint64_t)t->size[i] ^ (uint64_t)t->stride[i];
	return sum;
}

/* Touches all that a value says it has. */
static inline uint64_t input_sum_value(const struct terra_value *value)
{
	uint64_t sum = value->kind;

	if (!value->present)
		return sum;
	switch (trace_form_of(value->kind)) {
	case TRACE_FORM_TENSOR:
		return sum + input_sum_tensor(value->u.tensor);
	case TRACE_FORM_TENSORS:
		for (uint32_t i = 0; i < value->recorded; i++)
			sum += input_sum_tensor(&value->u.tensors[i]);
		return sum;
	case TRACE_FORM_INTS:
	case TRACE_FORM_DOUBLES:
		for (uint32_t i = 0; i < value->recorded; i++)
			sum += (uint64_t)value->u.ints[i];
		return sum;
	case TRACE_FORM_SCALARS:
		for (uint32_t i = 0; i < value->recorded; i++)
			sum += value->u.scalars[i].present + (uint64_t)value->u.scalars[i].u.i;
		return sum;
	case TRACE_FORM_STRING:
		return sum + strlen(value->u.string);
	default:
		return sum + (uint64_t)value->u.i;
	}
}

static inline uint64_t input_sum_event(const struct terra_event *event)
{
	uint64_t sum = event->seq + (event->text ? strlen(event->text) : 0);

	if (event->type == TERRA_EVENT_OP_ENTER || event->type == TERRA_EVENT_OP_EXIT)
		sum += strlen(event->op) + strlen(event->overload);
	if (event->type == TERRA_EVENT_GPU)
		sum += (event->gpu->name ? strlen(event->gpu->name) : 0) + event->gpu->duration_ns + event->gpu->bytes;
	for (uint32_t i = 0; i < event->n_values; i++)
		sum += input_sum_value(&event->values[i]);
	for (uint32_t i = 0; i < event->n_frames; i++) {
		sum += event->frames[i].file ? strlen(event->frames[i].file) : 0;
		sum += event->frames[i].function ? strlen(event->frames[i].function) : 0;
	}
	return sum;
}

static inline struct terra_trace_reader *input_open(int fd)
{
	struct terra_trace_reader *reader;
	char path[64], err[320] = "";
	int ret;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ret = terra_trace_open(path, &reader, err, sizeof(err));
	input_check(ret == 0 || (ret < 0 && !reader && err[0]), "an open that fails says why");
	return reader;
}

/* Events read; the sum only keeps the reads from being optimised away. */
static inline uint64_t input_read(struct terra_trace_reader *reader, uint64_t *sum)
{
	uint64_t n = 0, errors = 0, next_seq = 0;
	struct terra_event event;
	int ret;

	while ((ret = terra_trace_next(reader, &event)) != 0) {
		if (ret < 0) {
			input_check(ret == -EBADMSG, "damage is EBADMSG");
			input_check(terra_trace_error(reader)[0], "damage has a message");
			input_check(++errors < 1000000, "errors end");
			continue;
		}
		input_check(event.type >= TERRA_EVENT_OP_ENTER && event.type <= TERRA_EVENT_CALL,
			    "event types are known");
		input_check(event.seq >= next_seq, "seqs rise");
		next_seq = event.seq + 1;
		*sum += input_sum_event(&event);
		n++;
	}
	input_check(terra_trace_next(reader, &event) == 0, "the end stays the end");
	return n;
}

static inline void input_report(int fd, FILE *out)
{
	struct terra_trace_reader *reader = input_open(fd);
	struct terra_summary *summary;
	struct json json = {.out = out};
	bool damaged;

	if (!reader)
		return;
	input_check(terra_summary_new(reader, &summary) == 0, "a summary can be made");
	terra_summary_print(summary, "input", 10, out);
	terra_summary_json(summary, "input", &json);
	terra_summary_free(summary);
	terra_trace_close(reader);
	for (int as_json = 0; as_json < 2; as_json++) {
		reader = input_open(fd);
		terra_trace_dump(reader, as_json, out, &damaged);
		terra_trace_close(reader);
	}
}

/* What terra-opt makes of a trace before it compiles anything, and what terra-report says of that. */
static inline void input_graph(int fd, FILE *out)
{
	struct terra_graph_report *report;
	struct graph *graph;
	char path[64], err[320] = "";
	int ret;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ret = graph_build(path, &graph, err, sizeof(err));
	input_check(ret == 0 || (!graph && err[0]), "a graph that is not made says why");
	if (ret)
		return;
	input_check(graph_run_passes(graph, NULL, NULL, err, sizeof(err)) == 0, "the passes take every graph");
	graph_print(graph, out);
	graph_free(graph);
	input_check(terra_graph_report(path, &report, err, sizeof(err)) == 0, "what has a graph has a report");
	terra_graph_report_free(report);
}

static inline void input_export(int fd, enum terra_export_format format, FILE *out)
{
	struct terra_trace_reader *reader = input_open(fd);
	struct terra_export_result result;

	input_check(terra_export(reader, format, out, &result) == 0, "an export can be made");
	terra_trace_close(reader);
}

/* Reads the bytes as a trace, and when `report` is given makes every report, one of the exports, and the graph of them. */
static inline uint64_t input_run(const uint8_t *data, size_t size, FILE *report)
{
	int fd = memfd_create("trace", MFD_CLOEXEC);
	struct terra_trace_reader *reader;
	uint64_t n = 0, sum = 0;

	input_check(fd >= 0 && write(fd, data, size) == (ssize_t)size, "there is room for the input");
	reader = input_open(fd);
	if (reader) {
		n = input_read(reader, &sum);
		terra_trace_close(reader);
		if (report) {
			input_report(fd, report);
			input_export(fd, (enum terra_export_format)(sum % TERRA_EXPORT_COUNT), report);
			input_graph(fd, report);
		}
	}
	close(fd);
	return n + (sum == 0x5eed); /* in effect n */
}

/* Sets all checksums of a file right as far as its structure can be followed, so that what is behind them is reached.
 */
static inline void input_repair(uint8_t *data, size_t size)
{
	size_t pos;

	if (size < TRACE_HEADER_MIN)
		return;
	pos = trace_get32(data + TRACE_HEADER_SIZE);
	if (pos < TRACE_HEADER_MIN || pos > size)
		return;
	trace_put32(data + pos - 4, trace_crc32c(0, data, pos - 4));
	while (size - pos >= TRACE_BLOCK_HEADER_SIZE) {
		uint8_t *h = data + pos;
		uint32_t stored = trace_get32(h + TRACE_BLOCK_STORED);

		if (stored <= size - pos - TRACE_BLOCK_HEADER_SIZE)
			trace_put32(h + TRACE_BLOCK_PAYLOAD_CRC, trace_crc32c(0, h + TRACE_BLOCK_HEADER_SIZE, stored));
		trace_put32(h + TRACE_BLOCK_HEADER_CRC, trace_crc32c(0, h, TRACE_BLOCK_HEADER_CRC));
		if (stored > size - pos - TRACE_BLOCK_HEADER_SIZE)
			return;
		pos += TRACE_BLOCK_HEADER_SIZE + stored;
	}
}

/* The records of a whole file's first block, as they were before compression, in memory of exactly that size, so that a read
 * behind their end is seen. Freed by the caller. */
static inline uint8_t *input_records(const uint8_t *file, size_t *size, uint32_t *n_events)
{
	const uint8_t *h = file + trace_get32(file + TRACE_HEADER_SIZE);
	uint8_t *records;

	*size = trace_get32(h + TRACE_BLOCK_RAW);
	*n_events = trace_get32(h + TRACE_BLOCK_N_EVENTS);
	records = malloc(*size);
	input_check(records, "memory");
	input_check(trace_get32(h + TRACE_BLOCK_TYPE) == TRACE_BLOCK_EVENTS &&
			ZSTD_decompress(records, *size, h + TRACE_BLOCK_HEADER_SIZE, trace_get32(h + TRACE_BLOCK_STORED)) == *size,
		    "a block of events");
	return records;
}

/* A file of one block that holds `records`, all checksums right. Freed by the caller. */
static inline uint8_t *input_build(const uint8_t *records, size_t n_records, uint32_t n_events, size_t *size)
{
	size_t bound = ZSTD_compressBound(n_records), stored;
	uint8_t *file = calloc(1, TRACE_HEADER_MIN + TRACE_BLOCK_HEADER_SIZE + bound), *h;

	input_check(file, "memory");
	memcpy(file, TRACE_MAGIC, TRACE_MAGIC_SIZE);
	trace_put32(file + TRACE_HEADER_VERSION, TRACE_VERSION);
	trace_put32(file + TRACE_HEADER_SIZE, TRACE_HEADER_MIN);
	h = file + TRACE_HEADER_MIN;
	stored = ZSTD_compress(h + TRACE_BLOCK_HEADER_SIZE, bound, records, n_records, 1);
	input_check(!ZSTD_isError(stored), "compression");
	memcpy(h, TRACE_BLOCK_MAGIC, TRACE_MAGIC_SIZE);
	trace_put32(h + TRACE_BLOCK_TYPE, TRACE_BLOCK_EVENTS);
	trace_put32(h + TRACE_BLOCK_STORED, (uint32_t)stored);
	trace_put32(h + TRACE_BLOCK_RAW, (uint32_t)n_records);
	trace_put32(h + TRACE_BLOCK_N_EVENTS, n_events);
	*size = TRACE_HEADER_MIN + TRACE_BLOCK_HEADER_SIZE + stored;
	input_repair(file, *size);
	return file;
}

#endif
