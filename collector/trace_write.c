/* trace_write.c - the trace writer: blocks of records to a file that is readable whatever happens next. */
#include "collector/trace_append.h"
#include "collector/trace_encode.h"
#include "collector/trace_keep.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

/* Fast rather than small: the recorder shares the machine with the program it records. */
#define COMPRESSION_LEVEL 1

struct terra_trace_writer {
	int fd; /* -1: blocks are kept in memory */
	struct trace_keep *keep;
	int error;      /* first failure to write; the file ends there */
	off_t good;     /* bytes up to the end of the last complete block */
	uint64_t file_id;
	uint64_t seq;
	uint64_t lost;
	uint64_t last_time;
	uint32_t n_blocks;
	struct trace_encoder encoder;
	struct trace_buffer out;
	ZSTD_CCtx *zstd;
};

static int write_all(int fd, const uint8_t *p, size_t size)
{
	while (size > 0) {
		ssize_t n = write(fd, p, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		size -= (size_t)n;
	}
	return 0;
}

/* On a failure the half-written piece is cut off: it would only take the space that ran out. */
static int write_piece(struct terra_trace_writer *writer, const uint8_t *p, size_t size)
{
	int err = writer->keep ? trace_keep_block(writer->keep, p, size, writer->last_time) :
				 write_all(writer->fd, p, size);

	if (!err) {
		writer->good += (off_t)size;
		return 0;
	}
	writer->error = err;
	if (!writer->keep && ftruncate(writer->fd, writer->good) != 0)
		return err; /* a pipe, or the disk refuses: the reader takes a cut block as the end */
	return err;
}

static void put_header_string(struct trace_buffer *out, const char *string)
{
	size_t size = string ? strlen(string) : 0;

	if (!trace_buffer_reserve(out, size + 5))
		return;
	trace_put32(out->data + out->size, (uint32_t)size);
	if (size)
		memcpy(out->data + out->size + 4, string, size);
	out->data[out->size + 4 + size] = 0;
	out->size += size + 5;
}

static int build_header(struct terra_trace_writer *writer, const struct terra_trace_info *info)
{
	struct trace_buffer *out = &writer->out;
	const char *strings[TRACE_HEADER_N_STRINGS] = {info->backend, info->command, info->library, info->build_id,
						       info->cpu};
	size_t total = TRACE_HEADER_MIN;

	for (int i = 0; i < TRACE_HEADER_N_STRINGS; i++)
		total += strings[i] ? strlen(strings[i]) : 0;
	if (total > TRACE_HEADER_MAX)
		return -E2BIG;
	if (!trace_buffer_reserve(out, total))
		return -ENOMEM;
	memcpy(out->data, TRACE_MAGIC, TRACE_MAGIC_SIZE);
	trace_put32(out->data + TRACE_HEADER_VERSION, TRACE_VERSION);
	trace_put32(out->data + TRACE_HEADER_SIZE, (uint32_t)total);
	trace_put64(out->data + TRACE_HEADER_FILE_ID, writer->file_id);
	trace_put64(out->data + TRACE_HEADER_START, info->start_ns);
	trace_put32(out->data + TRACE_HEADER_PID, info->pid);
	trace_put32(out->data + TRACE_HEADER_THREADS, info->threads);
	out->size = TRACE_HEADER_STRINGS;
	for (int i = 0; i < TRACE_HEADER_N_STRINGS; i++)
		put_header_string(out, strings[i]);
	trace_put32(out->data + out->size, trace_crc32c(0, out->data, out->size));
	out->size += 4;
	return 0;
}

/* Only has to differ between files, so that a block of another file is not taken for one of this. */
static uint64_t new_file_id(void)
{
	struct timespec now;
	uint64_t id;

	if (getrandom(&id, sizeof(id), GRND_NONBLOCK) == sizeof(id))
		return id;
	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec << 20 ^ (uint64_t)getpid();
}

static void writer_free(struct terra_trace_writer *writer)
{
	if (writer->fd >= 0)
		close(writer->fd);
	trace_keep_free(writer->keep);
	trace_encoder_free(&writer->encoder);
	free(writer->out.data);
	ZSTD_freeCCtx(writer->zstd);
	free(writer);
}

static int create_failed(const char *path, int err, char *message, size_t size)
{
	const char *hint = "choose another file with -o";

	if (err == -ENOSPC || err == -EDQUOT)
		hint = "free some space or choose another file with -o";
	else if (err == -ENOENT)
		hint = "make its folder first, or choose another file with -o";
	if (message)
		snprintf(message, size, "cannot write the trace %s: %s; %s", path, strerror(-err), hint);
	return err;
}

/* A writer with its header in `out`; NULL with the reason in *error. */
static struct terra_trace_writer *writer_new(const struct terra_trace_info *info, int *error)
{
	struct terra_trace_writer *writer = calloc(1, sizeof(*writer));

	*error = -ENOMEM;
	if (!writer)
		return NULL;
	writer->fd = -1;
	trace_encoder_init(&writer->encoder);
	writer->file_id = new_file_id();
	writer->zstd = ZSTD_createCCtx();
	if (writer->zstd)
		*error = build_header(writer, info);
	if (!*error)
		return writer;
	writer_free(writer);
	return NULL;
}

static int open_file(struct terra_trace_writer *writer, const char *path)
{
	do {
		writer->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	} while (writer->fd < 0 && errno == EINTR);
	return writer->fd < 0 ? -errno : write_piece(writer, writer->out.data, writer->out.size);
}

int terra_trace_create(const char *path, const struct terra_trace_info *info, struct terra_trace_writer **out,
		       char *err, size_t err_size)
{
	struct terra_trace_writer *writer;
	int error;

	*out = NULL;
	writer = writer_new(info, &error);
	if (writer)
		error = open_file(writer, path);
	if (!error) {
		*out = writer;
		return 0;
	}
	if (writer)
		writer_free(writer);
	return create_failed(path, error, err, err_size);
}

int terra_trace_create_kept(const struct terra_trace_info *info, uint64_t keep_ns, uint64_t keep_bytes,
			    struct terra_trace_writer **out)
{
	struct terra_trace_writer *writer;
	int error;

	*out = NULL;
	writer = writer_new(info, &error);
	if (!writer)
		return error;
	writer->keep = trace_keep_new(info, keep_ns, keep_bytes);
	error = writer->keep ? trace_keep_header(writer->keep, writer->out.data, writer->out.size) : -ENOMEM;
	if (error)
		writer_free(writer);
	else
		*out = writer;
	return error;
}

int terra_trace_write_kept(struct terra_trace_writer *writer, const char *path, struct terra_trace_counts *counts, char *err,
			   size_t err_size)
{
	int error = terra_trace_flush(writer);

	if (!error)
		return trace_keep_write(writer->keep, writer->last_time, path, counts, err, err_size);
	snprintf(err, err_size, "cannot write %s: %s", path, strerror(-error));
	return error;
}

uint64_t terra_trace_size(const struct terra_trace_writer *writer)
{
	return (uint64_t)writer->good + writer->encoder.raw.size;
}

/* Cuts off the end and goes on there. */
static int open_behind(struct terra_trace_writer *writer, const char *path, const struct trace_tail *tail)
{
	writer->fd = open(path, O_WRONLY | O_CLOEXEC);
	if (writer->fd < 0)
		return -errno;
	if (lseek(writer->fd, (off_t)tail->end, SEEK_SET) < 0 || ftruncate(writer->fd, (off_t)tail->end) != 0)
		return -errno;
	return 0;
}

int trace_writer_append(const char *path, const struct trace_tail *tail, struct terra_trace_writer **out, char *err,
			size_t err_size)
{
	struct terra_trace_writer *writer = calloc(1, sizeof(*writer));
	int ret = -ENOMEM;

	*out = NULL;
	if (!writer)
		return create_failed(path, -ENOMEM, err, err_size);
	*writer = (struct terra_trace_writer){.fd = -1,
					      .good = (off_t)tail->end,
					      .file_id = tail->file_id,
					      .seq = tail->next_seq,
					      .lost = tail->lost,
					      .n_blocks = tail->next_block};
	trace_encoder_init(&writer->encoder);
	trace_encoder_begin(&writer->encoder, writer->seq);
	writer->zstd = ZSTD_createCCtx();
	if (writer->zstd)
		ret = open_behind(writer, path, tail);
	if (!ret) {
		*out = writer;
		return 0;
	}
	writer_free(writer);
	return create_failed(path, ret, err, err_size);
}

static void fill_block_header(struct terra_trace_writer *writer, uint32_t type, uint32_t raw_size)
{
	uint8_t *h = writer->out.data;
	uint32_t stored = (uint32_t)(writer->out.size - TRACE_BLOCK_HEADER_SIZE);

	memcpy(h, TRACE_BLOCK_MAGIC, TRACE_MAGIC_SIZE);
	trace_put64(h + TRACE_BLOCK_FILE_ID, writer->file_id);
	trace_put32(h + TRACE_BLOCK_NUMBER, writer->n_blocks);
	trace_put32(h + TRACE_BLOCK_TYPE, type);
	trace_put32(h + TRACE_BLOCK_STORED, stored);
	trace_put32(h + TRACE_BLOCK_RAW, raw_size);
	trace_put64(h + TRACE_BLOCK_FIRST_SEQ, writer->encoder.first_seq);
	trace_put32(h + TRACE_BLOCK_N_EVENTS, writer->encoder.n_events);
	trace_put32(h + TRACE_BLOCK_PAYLOAD_CRC, trace_crc32c(0, h + TRACE_BLOCK_HEADER_SIZE, stored));
	trace_put64(h + TRACE_BLOCK_BASE_TIME, writer->encoder.base_time);
	trace_put32(h + TRACE_BLOCK_RESERVED, 0);
	trace_put32(h + TRACE_BLOCK_HEADER_CRC, trace_crc32c(0, h, TRACE_BLOCK_HEADER_CRC));
}

static int compress_block(struct terra_trace_writer *writer)
{
	struct trace_buffer *raw = &writer->encoder.raw, *out = &writer->out;
	size_t bound = ZSTD_compressBound(raw->size), n;

	out->size = 0;
	out->failed = false;
	if (!trace_buffer_reserve(out, TRACE_BLOCK_HEADER_SIZE + bound))
		return -ENOMEM;
	n = ZSTD_compressCCtx(writer->zstd, out->data + TRACE_BLOCK_HEADER_SIZE, bound, raw->data, raw->size,
			      COMPRESSION_LEVEL);
	if (ZSTD_isError(n))
		return -ENOMEM; /* the only failure left: the output bound holds */
	out->size = TRACE_BLOCK_HEADER_SIZE + n;
	fill_block_header(writer, TRACE_BLOCK_EVENTS, (uint32_t)raw->size);
	return 0;
}

int terra_trace_flush(struct terra_trace_writer *writer)
{
	int err;

	if (writer->error)
		return writer->error;
	if (writer->encoder.n_events > 0) {
		err = compress_block(writer);
		if (!err)
			err = write_piece(writer, writer->out.data, writer->out.size);
		if (err)
			return err;
		writer->n_blocks++;
	}
	trace_encoder_begin(&writer->encoder, writer->seq);
	return 0;
}

/* A refused event may leave definitions behind that nothing uses; without them the block is as it was. The next
 * block starts at once because those definitions count as made in this one. */
static int refuse(struct terra_trace_writer *writer, size_t raw_size, int err)
{
	int flush_err;

	writer->encoder.raw.size = raw_size;
	flush_err = terra_trace_flush(writer);
	return flush_err ? flush_err : err;
}

int terra_trace_write(struct terra_trace_writer *writer, struct terra_event *event)
{
	size_t before;
	int err;

	if (writer->error)
		return writer->error;
	if (writer->encoder.raw.size >= TRACE_BLOCK_TARGET) {
		err = terra_trace_flush(writer);
		if (err)
			return err;
	}
	before = writer->encoder.raw.size;
	err = trace_encode(&writer->encoder, event, writer->seq);
	if (err)
		return refuse(writer, before, err);
	writer->seq++;
	/* A note is made when it is due; only what the program did makes what is kept older. */
	if (writer->keep && event->type == TERRA_EVENT_NOTE)
		return trace_keep_note(writer->keep, event->text);
	writer->last_time = event->time_ns;
	if (event->type == TERRA_EVENT_LOST)
		writer->lost += event->lost;
	return 0;
}

static int write_end(struct terra_trace_writer *writer)
{
	struct trace_buffer *out = &writer->out;
	uint8_t *payload;

	out->size = 0;
	if (!trace_buffer_reserve(out, TRACE_BLOCK_HEADER_SIZE + TRACE_END_SIZE))
		return -ENOMEM;
	payload = out->data + TRACE_BLOCK_HEADER_SIZE;
	trace_put64(payload, writer->seq);
	trace_put64(payload + 8, writer->n_blocks);
	trace_put64(payload + 16, writer->lost);
	out->size = TRACE_BLOCK_HEADER_SIZE + TRACE_END_SIZE;
	fill_block_header(writer, TRACE_BLOCK_END, TRACE_END_SIZE);
	return write_piece(writer, out->data, out->size);
}

void terra_trace_abandon(struct terra_trace_writer *writer)
{
	if (writer)
		writer_free(writer);
}

static int finish(struct terra_trace_writer *writer, bool with_end)
{
	int err;

	if (writer->keep) {
		writer_free(writer);
		return 0;
	}
	err = terra_trace_flush(writer);

	if (!err && with_end)
		err = write_end(writer);
	if (close(writer->fd) != 0 && !err && errno != EINTR)
		err = -errno;
	writer->fd = -1;
	writer_free(writer);
	return err;
}

int terra_trace_finish(struct terra_trace_writer *writer)
{
	return finish(writer, true);
}

int trace_writer_leave(struct terra_trace_writer *writer)
{
	return finish(writer, false);
}
