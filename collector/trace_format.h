/* trace_format.h - the byte format of a trace, private to its writer and reader.
 *
 * docs/trace-format.md is the specification; the names here are its names. Everything is little-endian.
 */
#ifndef TERRA_COLLECTOR_TRACE_FORMAT_H
#define TERRA_COLLECTOR_TRACE_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "collector/trace.h"

#define TRACE_VERSION 1
#define TRACE_MAGIC "\x89TERRA\r\n"
#define TRACE_MAGIC_SIZE 8
#define TRACE_BLOCK_MAGIC "TerraBlk"

/* File header: fixed part, then five strings {u32 length, bytes, NUL}, then the CRC-32C of all before it. */
enum {
	TRACE_HEADER_VERSION = 8,
	TRACE_HEADER_SIZE = 12,
	TRACE_HEADER_FILE_ID = 16,
	TRACE_HEADER_START = 24,
	TRACE_HEADER_PID = 32,
	TRACE_HEADER_THREADS = 36,
	TRACE_HEADER_STRINGS = 40,
	TRACE_HEADER_N_STRINGS = 5,
	TRACE_HEADER_MIN = TRACE_HEADER_STRINGS + TRACE_HEADER_N_STRINGS * 5 + 4,
	TRACE_HEADER_MAX = 1 << 20,
};

/* Block header: offsets of its fields. */
enum {
	TRACE_BLOCK_FILE_ID = 8,
	TRACE_BLOCK_NUMBER = 16,
	TRACE_BLOCK_TYPE = 20,
	TRACE_BLOCK_STORED = 24,
	TRACE_BLOCK_RAW = 28,
	TRACE_BLOCK_FIRST_SEQ = 32,
	TRACE_BLOCK_N_EVENTS = 40,
	TRACE_BLOCK_PAYLOAD_CRC = 44,
	TRACE_BLOCK_BASE_TIME = 48,
	TRACE_BLOCK_RESERVED = 56,
	TRACE_BLOCK_HEADER_CRC = 60,
	TRACE_BLOCK_HEADER_SIZE = 64,
};

enum trace_block_type {
	TRACE_BLOCK_EVENTS = 1,
	TRACE_BLOCK_END = 2,
};

/* Payload of the end block: u64 events, u64 blocks of events, u64 lost. */
#define TRACE_END_SIZE 24

/* Records inside a block: u8 type, varint size, body. Types from TRACE_RECORD_EVENT on are events and take a seq. */
enum trace_record {
	TRACE_RECORD_STRING = 0x01,
	TRACE_RECORD_OP = 0x02,
	TRACE_RECORD_STACK = 0x03,
	TRACE_RECORD_EVENT = 0x10, /* the event's record type is this + enum terra_event_type */
	TRACE_RECORD_EVENT_LAST = 0x7f,
};

/* Bits of an op event's flags byte. */
enum {
	TRACE_FLAG_RAISED = 1,
	TRACE_FLAG_KEYSET = 2,
	TRACE_FLAG_STACK = 4,
	TRACE_FLAG_AUTOGRAD = 8,
	TRACE_FLAGS_KNOWN = 15,
};

/* Bits of a GPU event's flags byte. */
enum {
	TRACE_GPU_UNTIMED = 1,
	TRACE_GPU_BY_EXTERNAL_ID = 2,
	TRACE_GPU_BY_TIME = 4,
	TRACE_GPU_FLAGS_KNOWN = 7,
};

/* Limits, kept by the writer and checked by the reader: no file can make a reader take more than these allow. */
#define TRACE_BLOCK_TARGET (256u << 10) /* a block is closed once its records reach this size */
#define TRACE_BLOCK_MAX (8u << 20)      /* records of one block */
#define TRACE_RECORD_MAX (4u << 20)     /* body of one record */
#define TRACE_STRING_MAX 4095u          /* bytes of an interned string */
#define TRACE_FRAMES_MAX 1024u
#define TRACE_VALUES_MAX 256u           /* arguments or results of one event */
#define TRACE_ELEMENTS_MAX 262144u      /* list elements of one event, all lists together */
#define TRACE_SEQ_MAX (UINT64_MAX >> 2)

/* How the value of a kind is written; derived from the kind alone, so that a reader can never take one member of
 * terra_value's union for another. */
enum trace_form {
	TRACE_FORM_INT,
	TRACE_FORM_DOUBLE,
	TRACE_FORM_SCALAR,
	TRACE_FORM_TENSOR,
	TRACE_FORM_TENSORS,
	TRACE_FORM_INTS,
	TRACE_FORM_DOUBLES,
	TRACE_FORM_SCALARS,
	TRACE_FORM_STRING,
	TRACE_FORM_UNKNOWN,
};

enum trace_form trace_form_of(unsigned int kind);

/* CRC-32C (Castagnoli) of `size` bytes; `crc` is 0 or the result for the bytes before. */
uint32_t trace_crc32c(uint32_t crc, const void *data, size_t size);

static inline void trace_put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static inline void trace_put64(uint8_t *p, uint64_t v)
{
	for (int i = 0; i < 8; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static inline uint32_t trace_get32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t trace_get64(const uint8_t *p)
{
	return (uint64_t)trace_get32(p) | (uint64_t)trace_get32(p + 4) << 32;
}

static inline uint64_t trace_zigzag(int64_t v)
{
	return ((uint64_t)v << 1) ^ (uint64_t)(v >> 63);
}

static inline int64_t trace_unzigzag(uint64_t v)
{
	return (int64_t)((v >> 1) ^ (~(v & 1) + 1));
}

#endif
