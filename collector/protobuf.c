/* protobuf.c - the protobuf wire format. */
#include "collector/protobuf.h"

#include <string.h>

#include "collector/report_json.h"

enum wire_type {
	WIRE_VARINT = 0,
	WIRE_FIXED64 = 1,
	WIRE_LENGTH = 2,
};

#define VARINT_MAX 10

static size_t encode_varint(uint8_t *p, uint64_t v)
{
	size_t n = 0;

	while (v > 0x7f) {
		p[n++] = (uint8_t)(v | 0x80);
		v >>= 7;
	}
	p[n++] = (uint8_t)v;
	return n;
}

void pb_varint(struct trace_buffer *out, uint64_t v)
{
	uint8_t bytes[VARINT_MAX];

	trace_buffer_put(out, bytes, encode_varint(bytes, v));
}

static void put_tag(struct trace_buffer *out, uint32_t field, enum wire_type type)
{
	pb_varint(out, (uint64_t)field << 3 | type);
}

void pb_uint(struct trace_buffer *out, uint32_t field, uint64_t v)
{
	put_tag(out, field, WIRE_VARINT);
	pb_varint(out, v);
}

void pb_fixed64(struct trace_buffer *out, uint32_t field, uint64_t v)
{
	uint8_t bytes[8];

	for (int i = 0; i < 8; i++)
		bytes[i] = (uint8_t)(v >> 8 * i);
	put_tag(out, field, WIRE_FIXED64);
	trace_buffer_put(out, bytes, sizeof(bytes));
}

void pb_bytes(struct trace_buffer *out, uint32_t field, const void *data, size_t size)
{
	put_tag(out, field, WIRE_LENGTH);
	pb_varint(out, size);
	trace_buffer_put(out, data, size);
}

void pb_string(struct trace_buffer *out, uint32_t field, const char *s)
{
	size_t size = s ? strlen(s) : 0, length;
	uint8_t *p;

	pb_bytes(out, field, s ? s : "", size);
	if (out->failed)
		return;
	for (p = out->data + out->size - size; size; p += length, size -= length) {
		length = json_utf8_length(p, size);
		if (length == 0) {
			*p = '?';
			length = 1;
		}
	}
}

/* One byte is kept for the length; the few messages that need more are moved. */
size_t pb_begin(struct trace_buffer *out, uint32_t field)
{
	put_tag(out, field, WIRE_LENGTH);
	trace_buffer_put(out, "", 1);
	return out->size;
}

void pb_end(struct trace_buffer *out, size_t begin)
{
	uint8_t bytes[VARINT_MAX];
	size_t size, n;

	if (out->failed)
		return;
	size = out->size - begin;
	n = encode_varint(bytes, size);
	if (n > 1) {
		if (!trace_buffer_reserve(out, n - 1))
			return;
		memmove(out->data + begin + n - 1, out->data + begin, size);
		out->size += n - 1;
	}
	memcpy(out->data + begin - 1, bytes, n);
}
