/* decode_chunk.h - part of decode.h: the decoder's state, and writing values into chunks of at most TERRA_CHUNK_SIZE bytes. */
#ifndef TERRA_PROBES_DECODE_CHUNK_H
#define TERRA_PROBES_DECODE_CHUNK_H

#include "probes/images.h"
#include "probes/record.h"

#define TERRA_INLINE static inline __attribute__((always_inline))
#define TERRA_NOINLINE static __attribute__((noinline)) /* a BPF subprogram */

#ifdef __bpf__
#define TERRA_LOOP(n, body, ctx) bpf_loop(n, body, ctx, 0)
#else
#include <errno.h>
#include <string.h>

static inline void terra_loop(uint64_t n, long (*body)(uint64_t, void *), void *ctx)
{
	for (uint64_t i = 0; i < n; i++)
		if (body(i, ctx))
			return;
}

/* Addresses come from pointers that the op's caller passes: they are valid, null, or not what we take them for. */
static inline int terra_read_memory(void *dst, uint64_t size, uint64_t src)
{
	if (src < 65536 || src >= (1ULL << 47))
		return -EFAULT;
	memcpy(dst, (const void *)(uintptr_t)src, size);
	return 0;
}

#define TERRA_LOOP(n, body, ctx) terra_loop(n, body, ctx)
#ifndef TERRA_READ
#define TERRA_READ(dst, size, src) terra_read_memory(dst, size, src)
#endif
#endif

/* Where decoding is: private to it. In a map value, of whose contents the verifier knows nothing: on the stack it would look
 * at all code once for every position that it knows, which takes seven times as long. */
struct terra_cursor {
	uint32_t pos;   /* bytes of the chunk in use */
	uint32_t value; /* where the header of the value being written lies */
	uint32_t stride, mode; /* list walks */
	uint64_t base, count;
	uint64_t node;  /* grad_fn of the first tensor that has one */
};

/* Kept small: it is on the 512-byte BPF stack. */
struct terra_decoder {
	/* Set by the caller. */
	const struct terra_op_layout *layout;
	const struct terra_offsets *offsets;
	const struct terra_images *images; /* made of them */
	const struct terra_regs *regs;
	uint8_t *chunk; /* TERRA_CHUNK_BUFFER bytes, 8-aligned */
	uint64_t *image; /* TERRA_IMAGE_WORDS */
	void *sink;     /* TERRA_EMIT's own */
	uint32_t op, tid, producer;
	struct terra_cursor *at; /* memory for what follows */
};

#define TERRA_MASK (TERRA_CHUNK_SIZE - 1)
#define TERRA_AT(d, type, at) ((type *)((d)->chunk + ((at) & (TERRA_MASK & ~7u))))
#define TERRA_RECORD_OF(d) ((struct terra_record *)(d)->chunk)

/* No list of an op has more elements than this; a larger count is not a list. */
#define TERRA_MAX_LIST 65536
#define TERRA_BLOCK_INTS 32

TERRA_INLINE struct terra_packed *terra_value_header(struct terra_decoder *d)
{
	return TERRA_AT(d, struct terra_packed, d->at->value);
}

TERRA_INLINE void terra_open_value(struct terra_decoder *d, uint8_t kind, uint8_t flags, uint32_t count)
{
	struct terra_packed *value;

	d->at->value = d->at->pos;
	value = terra_value_header(d);
	value->kind = kind;
	value->present = 1;
	value->flags = flags;
	value->unused = 0;
	value->count = count;
	value->recorded = 0;
	value->bytes = 0;
	d->at->pos += sizeof(*value);
}

TERRA_INLINE void terra_close_value(struct terra_decoder *d)
{
	terra_value_header(d)->bytes = d->at->pos - d->at->value - sizeof(struct terra_packed);
}

TERRA_INLINE void terra_finish_chunk(struct terra_decoder *d, uint8_t flags)
{
	struct terra_record *record = TERRA_RECORD_OF(d);
	uint32_t size = d->at->pos <= TERRA_CHUNK_SIZE ? d->at->pos : TERRA_CHUNK_SIZE;

	record->size = size;
	record->flags = flags;
	TERRA_EMIT(d, record, size);
}

/* Makes sure that one more item (at most 256 bytes) fits, in a further chunk when need be: the open value is closed
 * here and continued there. */
TERRA_NOINLINE int terra_make_room(struct terra_decoder *d)
{
	struct terra_packed *value;
	uint32_t count;
	uint8_t kind;

	if (d->at->pos <= TERRA_CHUNK_SIZE - 256)
		return 0;
	terra_close_value(d);
	value = terra_value_header(d);
	kind = value->kind;
	count = value->count;
	terra_finish_chunk(d, TERRA_RECORD_MORE);
	TERRA_RECORD_OF(d)->chunk++;
	d->at->pos = sizeof(struct terra_record);
	terra_open_value(d, kind, TERRA_PACKED_CONTINUED, count);
	return 0;
}

TERRA_INLINE void terra_put_word(struct terra_decoder *d, uint64_t word)
{
	*TERRA_AT(d, uint64_t, d->at->pos) = word;
	d->at->pos += 8;
}

TERRA_INLINE void terra_unreadable(struct terra_decoder *d)
{
	terra_value_header(d)->flags |= TERRA_PACKED_UNREADABLE;
	terra_value_header(d)->present = 0;
}

TERRA_INLINE void terra_absent(struct terra_decoder *d)
{
	terra_value_header(d)->present = 0;
}

/* The beginning of the structure at `address`, of which terra_image_field reads. 0 when it is there. */
TERRA_INLINE int terra_read_image(struct terra_decoder *d, uint64_t address, uint32_t extent)
{
	return !address || TERRA_READ(d->image, extent & (TERRA_IMAGE_BYTES - 1), address) ? -1 : 0;
}

#define TERRA_IMAGE_WORD(d, word) (&(d)->image[(word) & (TERRA_IMAGE_BYTES / 8 - 1)])

/* A field of the structure that was read last; 0 when it is not known. */
TERRA_INLINE uint64_t terra_image_field(const struct terra_decoder *d, const struct terra_image_field *field)
{
	return *TERRA_IMAGE_WORD(d, field->word) >> (field->shift & 63) & field->mask;
}

/* A field of a structure at `base`. Returns 0 when it is known and could be read. */
TERRA_INLINE int terra_read_field(uint64_t base, const struct terra_field *field, uint64_t *out)
{
	uint32_t width = field->width;

	*out = 0;
	if (!field->known || width > 8 || !base)
		return -1;
	return TERRA_READ(out, width, base + field->offset) ? -1 : 0;
}

#endif
