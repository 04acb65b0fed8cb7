/* trace_read.c - the trace reader: finds the intact blocks of a file that may be cut or damaged anywhere.
 *
 * A file that simply ends early is the normal result of a crash: everything complete is delivered and the end is not
 * clean. Bytes that contradict their checksum, missing blocks and blocks of other files are damage: terra_trace_next
 * reports each place once and goes on behind it.
 */
#include "collector/trace_append.h"
#include "collector/trace_decode.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

struct terra_trace_reader {
	int fd;
	uint64_t size, pos;
	uint64_t good; /* end of the last complete block that is not the end block */
	uint64_t file_id;
	uint8_t *header;
	struct terra_trace_info info;
	uint32_t next_block;
	uint64_t next_seq;
	uint64_t lost;    /* by LOST records */
	uint64_t missing; /* in damaged or missing blocks */
	bool in_block;
	bool ended;
	bool clean;
	struct trace_decoder decoder;
	uint8_t *stored, *raw;
	size_t stored_capacity, raw_capacity;
	ZSTD_DCtx *zstd;
	char error[320];
};

struct block_header {
	uint32_t number, type, stored, raw;
	uint64_t first_seq;
	uint32_t n_events, payload_crc;
	uint64_t base_time;
};

__attribute__((format(printf, 3, 4))) static int fail(struct terra_trace_reader *reader, int err, const char *format,
						      ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(reader->error, sizeof(reader->error), format, args);
	va_end(args);
	return err;
}

static bool ensure(uint8_t **buffer, size_t *capacity, size_t size)
{
	uint8_t *larger;

	if (size <= *capacity)
		return true;
	larger = realloc(*buffer, size);
	if (!larger)
		return false;
	*buffer = larger;
	*capacity = size;
	return true;
}

/* Bytes read, less than `size` at the end of the file only; -errno. */
static ssize_t read_at(const struct terra_trace_reader *reader, uint64_t pos, void *data, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = pread(reader->fd, (uint8_t *)data + done, size - done, (off_t)(pos + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

/* Opening. */

bool terra_trace_is_one(const char *path)
{
	uint8_t start[TRACE_MAGIC_SIZE];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, start, sizeof(start));

	if (fd >= 0)
		close(fd);
	return n > 0 && !memcmp(start, TRACE_MAGIC, (size_t)n);
}

static int check_magic(struct terra_trace_reader *reader, const char *path, const uint8_t *start, size_t size)
{
	size_t n = size < TRACE_MAGIC_SIZE ? size : TRACE_MAGIC_SIZE;
	uint32_t version;

	if (size == 0)
		return fail(reader, -ENODATA, "%s is empty: the recording stopped before it began; record it again",
			    path);
	if (memcmp(start, TRACE_MAGIC, n) != 0)
		return fail(reader, -EINVAL,
			    "%s is not a trace: record one with `terra-trace -o FILE -- python program.py`", path);
	if (size < TRACE_HEADER_STRINGS)
		return fail(reader, -ENODATA,
			    "%s ends inside its header: the recording stopped before the first op; record it again",
			    path);
	version = trace_get32(start + TRACE_HEADER_VERSION);
	if (version != TRACE_VERSION)
		return fail(reader, -EPROTONOSUPPORT,
			    "%s is a trace of version %" PRIu32 ", this program reads version %d: use the Terra that "
			    "recorded it, or record it again",
			    path, version, TRACE_VERSION);
	return 0;
}

/* The next string of the header, NULL when it does not fit. */
static const char *header_string(const uint8_t *header, size_t end, size_t *pos)
{
	const char *string = (const char *)header + *pos + 4;
	uint32_t size;

	if (end - *pos < 5)
		return NULL;
	size = trace_get32(header + *pos);
	if (size > end - *pos - 5 || string[size] != 0 || memchr(string, 0, size))
		return NULL;
	*pos += (size_t)size + 5;
	return string;
}

static bool parse_header(struct terra_trace_reader *reader, size_t size)
{
	const uint8_t *h = reader->header;
	struct terra_trace_info *info = &reader->info;
	const char **strings[TRACE_HEADER_N_STRINGS] = {&info->backend, &info->command, &info->library, &info->build_id,
							&info->cpu};
	size_t pos = TRACE_HEADER_STRINGS;

	if (trace_crc32c(0, h, size - 4) != trace_get32(h + size - 4))
		return false;
	for (int i = 0; i < TRACE_HEADER_N_STRINGS; i++) {
		*strings[i] = header_string(h, size - 4, &pos);
		if (!*strings[i])
			return false;
	}
	info->version = trace_get32(h + TRACE_HEADER_VERSION);
	info->start_ns = trace_get64(h + TRACE_HEADER_START);
	info->pid = trace_get32(h + TRACE_HEADER_PID);
	info->threads = trace_get32(h + TRACE_HEADER_THREADS);
	reader->file_id = trace_get64(h + TRACE_HEADER_FILE_ID);
	return true;
}

static int read_header(struct terra_trace_reader *reader, const char *path)
{
	uint8_t start[TRACE_HEADER_STRINGS];
	ssize_t n = read_at(reader, 0, start, sizeof(start));
	uint32_t size;
	int err;

	if (n < 0)
		return fail(reader, (int)n, "cannot read %s: %s", path, strerror((int)-n));
	err = check_magic(reader, path, start, (size_t)n);
	if (err)
		return err;
	size = trace_get32(start + TRACE_HEADER_SIZE);
	if (size < TRACE_HEADER_MIN || size > TRACE_HEADER_MAX)
		return fail(reader, -EBADMSG, "%s is damaged in its header; record it again", path);
	if (size > reader->size)
		return fail(reader, -ENODATA,
			    "%s ends inside its header: the recording stopped before the first op; record it again",
			    path);
	reader->header = malloc(size);
	if (!reader->header)
		return fail(reader, -ENOMEM, "no memory to read %s", path);
	if (read_at(reader, 0, reader->header, size) != (ssize_t)size || !parse_header(reader, size))
		return fail(reader, -EBADMSG, "%s is damaged in its header; record it again", path);
	reader->pos = reader->good = size;
	return 0;
}

static int open_file(struct terra_trace_reader *reader, const char *path)
{
	struct stat st;

	reader->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (reader->fd < 0 || fstat(reader->fd, &st) != 0)
		return fail(reader, -errno, "cannot open %s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return fail(reader, -EINVAL, "%s is not a file: give the trace that terra-trace wrote", path);
	reader->size = (uint64_t)st.st_size;
	return read_header(reader, path);
}

int terra_trace_open(const char *path, struct terra_trace_reader **out, char *err, size_t err_size)
{
	struct terra_trace_reader *reader = calloc(1, sizeof(*reader));
	int ret = -ENOMEM;

	*out = NULL;
	if (!reader) {
		if (err)
			snprintf(err, err_size, "no memory to read %s", path);
		return -ENOMEM;
	}
	reader->fd = -1;
	fail(reader, 0, "no memory to read %s", path);
	reader->zstd = ZSTD_createDCtx();
	if (!reader->zstd || trace_decoder_init(&reader->decoder) != 0)
		goto err_out;
	ret = open_file(reader, path);
	if (ret)
		goto err_out;
	reader->error[0] = 0;
	*out = reader;
	return 0;

err_out:
	if (err)
		snprintf(err, err_size, "%s", reader->error);
	terra_trace_close(reader);
	return ret;
}

void terra_trace_close(struct terra_trace_reader *reader)
{
	if (!reader)
		return;
	if (reader->fd >= 0)
		close(reader->fd);
	trace_decoder_free(&reader->decoder);
	ZSTD_freeDCtx(reader->zstd);
	free(reader->header);
	free(reader->stored);
	free(reader->raw);
	free(reader);
}

/* Blocks. */

static bool parse_block_header(const struct terra_trace_reader *reader, const uint8_t *h, struct block_header *b)
{
	if (memcmp(h, TRACE_BLOCK_MAGIC, TRACE_MAGIC_SIZE) != 0 ||
	    trace_get64(h + TRACE_BLOCK_FILE_ID) != reader->file_id ||
	    trace_get32(h + TRACE_BLOCK_HEADER_CRC) != trace_crc32c(0, h, TRACE_BLOCK_HEADER_CRC))
		return false;
	b->number = trace_get32(h + TRACE_BLOCK_NUMBER);
	b->type = trace_get32(h + TRACE_BLOCK_TYPE);
	b->stored = trace_get32(h + TRACE_BLOCK_STORED);
	b->raw = trace_get32(h + TRACE_BLOCK_RAW);
	b->first_seq = trace_get64(h + TRACE_BLOCK_FIRST_SEQ);
	b->n_events = trace_get32(h + TRACE_BLOCK_N_EVENTS);
	b->payload_crc = trace_get32(h + TRACE_BLOCK_PAYLOAD_CRC);
	b->base_time = trace_get64(h + TRACE_BLOCK_BASE_TIME);
	return b->raw <= TRACE_BLOCK_MAX && b->stored <= ZSTD_COMPRESSBOUND(TRACE_BLOCK_MAX) && b->n_events <= b->raw &&
	       b->first_seq <= TRACE_SEQ_MAX && b->number >= reader->next_block && b->first_seq >= reader->next_seq;
}

/* Position of the next block header behind `from` that checks out, then in *b, or the file's end. */
static uint64_t find_block(const struct terra_trace_reader *reader, uint64_t from, struct block_header *b)
{
	uint8_t window[16384];

	while (from < reader->size) {
		ssize_t n = read_at(reader, from, window, sizeof(window));
		uint8_t *p = window;

		if (n < TRACE_BLOCK_HEADER_SIZE)
			break;
		while ((p = memmem(p, (size_t)(window + n - p), TRACE_BLOCK_MAGIC, TRACE_MAGIC_SIZE))) {
			if (window + n - p < TRACE_BLOCK_HEADER_SIZE)
				break;
			if (parse_block_header(reader, p, b))
				return from + (uint64_t)(p - window);
			p++;
		}
		from += (uint64_t)(n - TRACE_BLOCK_HEADER_SIZE + 1);
	}
	return reader->size;
}

static int skip_damage(struct terra_trace_reader *reader)
{
	struct block_header b;
	uint64_t at = reader->pos, events;

	reader->pos = find_block(reader, at + 1, &b);
	if (reader->pos >= reader->size)
		return fail(reader, -EBADMSG, "damaged from byte %" PRIu64 " to the end", at);
	events = b.first_seq - reader->next_seq;
	reader->missing += events;
	reader->next_block = b.number;
	reader->next_seq = b.first_seq;
	return fail(reader, -EBADMSG, "damaged from byte %" PRIu64 " to %" PRIu64 ": %" PRIu64 " events are missing",
		    at, reader->pos, events);
}

/* The file ends inside a block: what a crash or a full disk leaves. */
static int cut_here(struct terra_trace_reader *reader)
{
	reader->ended = true;
	return fail(reader, 0, "ended abnormally: the file stops at byte %" PRIu64 " without an end marker",
		    reader->size);
}

/* The machine, not the file: what is left of it cannot be had. */
static int give_up(struct terra_trace_reader *reader, int err)
{
	reader->ended = true;
	return fail(reader, err, "cannot read the trace beyond byte %" PRIu64 ": %s", reader->pos, strerror(-err));
}

static int decompress(struct terra_trace_reader *reader, const struct block_header *b)
{
	size_t n;

	if (!ensure(&reader->raw, &reader->raw_capacity, b->raw + 1)) /* not NULL, be it empty */
		return fail(reader, -ENOMEM, "no memory for a block of %" PRIu32 " bytes", b->raw);
	n = ZSTD_decompressDCtx(reader->zstd, reader->raw, b->raw, reader->stored, b->stored);
	if (ZSTD_isError(n) || n != b->raw)
		return fail(reader, -EBADMSG,
			    "block %" PRIu32 " cannot be decompressed: %" PRIu32 " events are missing", b->number,
			    b->n_events);
	return 0;
}

static int check_end(struct terra_trace_reader *reader, const struct block_header *b)
{
	uint64_t n_events = trace_get64(reader->stored);

	reader->ended = true;
	if (b->stored != TRACE_END_SIZE || n_events != b->first_seq)
		return fail(reader, -EBADMSG, "the end marker contradicts itself");
	reader->clean = true;
	if (reader->pos < reader->size)
		return fail(reader, -EBADMSG, "%" PRIu64 " bytes that do not belong to the trace follow its end marker",
			    reader->size - reader->pos);
	return 0;
}

/* Blocks are numbered, so that one cut out without a trace is noticed too. */
static int note_gap(struct terra_trace_reader *reader, const struct block_header *b)
{
	uint64_t events = b->first_seq - reader->next_seq;
	uint32_t blocks = b->number - reader->next_block;

	reader->missing += events;
	reader->next_block = b->number;
	reader->next_seq = b->first_seq;
	if (blocks == 0 && events == 0)
		return 0;
	return fail(reader, -EBADMSG, "%" PRIu32 " blocks with %" PRIu64 " events are missing before byte %" PRIu64,
		    blocks, events, reader->pos);
}

static int load_payload(struct terra_trace_reader *reader, const struct block_header *b)
{
	ssize_t n;
	int err;

	if (b->stored > reader->size) /* no reason to make room for it */
		return cut_here(reader);
	if (!ensure(&reader->stored, &reader->stored_capacity, b->stored + TRACE_END_SIZE))
		return give_up(reader, -ENOMEM);
	n = read_at(reader, reader->pos + TRACE_BLOCK_HEADER_SIZE, reader->stored, b->stored);
	if (n < 0)
		return give_up(reader, (int)n);
	reader->pos += TRACE_BLOCK_HEADER_SIZE + (uint64_t)n;
	reader->next_block = b->number + 1;
	reader->next_seq = b->first_seq + b->n_events;
	if ((size_t)n < b->stored)
		return cut_here(reader);
	if (b->type != TRACE_BLOCK_END)
		reader->good = reader->pos;
	if (trace_crc32c(0, reader->stored, b->stored) != b->payload_crc) {
		reader->missing += b->n_events;
		return fail(reader, -EBADMSG, "block %" PRIu32 " is damaged: %" PRIu32 " events are missing", b->number,
			    b->n_events);
	}
	if (b->type == TRACE_BLOCK_END)
		return check_end(reader, b);
	if (b->type != TRACE_BLOCK_EVENTS)
		return 0; /* of a later version */
	err = decompress(reader, b);
	if (err) {
		reader->missing += b->n_events;
		return err;
	}
	trace_decoder_begin(&reader->decoder, reader->raw, b->raw, b->first_seq, b->n_events, b->base_time);
	reader->in_block = true;
	return 0;
}

/* Goes to the next block. 0 with `in_block` or `ended` set, or neither for a block to pass over. */
static int next_block(struct terra_trace_reader *reader)
{
	uint8_t h[TRACE_BLOCK_HEADER_SIZE];
	struct block_header b;
	ssize_t n = read_at(reader, reader->pos, h, sizeof(h));
	int err;

	if (n < 0)
		return give_up(reader, (int)n);
	if (n < TRACE_BLOCK_HEADER_SIZE) {
		size_t prefix = n < TRACE_MAGIC_SIZE ? (size_t)n : TRACE_MAGIC_SIZE;

		if (memcmp(h, TRACE_BLOCK_MAGIC, prefix) == 0)
			return cut_here(reader);
		return skip_damage(reader);
	}
	if (!parse_block_header(reader, h, &b))
		return skip_damage(reader);
	err = note_gap(reader, &b);
	return err ? err : load_payload(reader, &b);
}

static int decode_failed(struct terra_trace_reader *reader, int err)
{
	struct trace_decoder *d = &reader->decoder;

	reader->in_block = false;
	reader->missing += d->end_seq - d->seq;
	if (err == -ENOMEM)
		return fail(reader, err, "no memory for the event %" PRIu64, d->seq);
	return fail(reader, err, "the records from event %" PRIu64 " to %" PRIu64 " make no sense", d->seq, d->end_seq);
}

int terra_trace_next(struct terra_trace_reader *reader, struct terra_event *event)
{
	int ret;

	while (!reader->ended || reader->in_block) {
		if (!reader->in_block) {
			ret = next_block(reader);
			if (ret)
				return ret;
			continue;
		}
		ret = trace_decode(&reader->decoder, event);
		if (ret < 0)
			return decode_failed(reader, ret);
		if (ret == 0)
			reader->in_block = false;
		else if (event->type == TERRA_EVENT_LOST)
			reader->lost += event->lost;
		if (ret)
			return ret;
	}
	return 0;
}

struct trace_tail trace_reader_tail(const struct terra_trace_reader *reader)
{
	return (struct trace_tail){.file_id = reader->file_id,
				   .end = reader->good,
				   .next_block = reader->next_block - (reader->clean ? 1 : 0),
				   .next_seq = reader->next_seq,
				   .lost = reader->lost,
				   .clean = reader->clean};
}

const struct terra_trace_info *terra_trace_info(const struct terra_trace_reader *reader)
{
	return &reader->info;
}

const char *terra_trace_error(const struct terra_trace_reader *reader)
{
	return reader->error;
}

bool terra_trace_ended_cleanly(const struct terra_trace_reader *reader)
{
	return reader->clean;
}

uint64_t terra_trace_lost(const struct terra_trace_reader *reader)
{
	return reader->lost;
}

uint64_t terra_trace_missing(const struct terra_trace_reader *reader)
{
	return reader->missing;
}
