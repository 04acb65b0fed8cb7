/* protobuf.h - the protobuf wire format, as far as the exports write it (protobuf.dev, "Encoding").
 *
 * Fields are appended to a buffer, whose `failed` is sticky: callers append freely and look once. A message inside
 * another is written between pb_begin and pb_end.
 */
#ifndef TERRA_COLLECTOR_PROTOBUF_H
#define TERRA_COLLECTOR_PROTOBUF_H

#include "collector/trace_intern.h"

/* uint64, uint32, bool, enums; int64 and int32 by their two's complement. */
void pb_uint(struct trace_buffer *out, uint32_t field, uint64_t v);
void pb_fixed64(struct trace_buffer *out, uint32_t field, uint64_t v);
void pb_bytes(struct trace_buffer *out, uint32_t field, const void *data, size_t size);
/* Bytes that are not UTF-8 become '?': readers refuse a string that is not. NULL is "". */
void pb_string(struct trace_buffer *out, uint32_t field, const char *s);

/* The length of a message is known at its end. pb_begin returns what pb_end needs. */
size_t pb_begin(struct trace_buffer *out, uint32_t field);
void pb_end(struct trace_buffer *out, size_t begin);

/* A number as it stands before a message in a stream of messages. */
void pb_varint(struct trace_buffer *out, uint64_t v);

#endif
