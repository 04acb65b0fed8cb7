/* trace_format.c - what writer and reader of a trace share: the checksum and how each kind is written. */
#include "collector/trace_format.h"

#include <pthread.h>

/* The kinds' numbers are part of the file format: new ones go before TERRA_KIND_COUNT, none may move. */
_Static_assert(TERRA_KIND_OPAQUE == 0 && TERRA_KIND_TENSOR == 1 && TERRA_KIND_SCALAR == 6 && TERRA_KIND_INT == 9 &&
		       TERRA_KIND_DOUBLE == 17 && TERRA_KIND_BOOL == 21 && TERRA_KIND_STRING == 24 &&
		       TERRA_KIND_DTYPE == 26 && TERRA_KIND_GENERATOR == 34 && TERRA_KIND_KEYSET == 36,
	       "kind numbers are fixed by docs/trace-format.md");

enum trace_form trace_form_of(unsigned int kind)
{
	switch (kind) {
	case TERRA_KIND_TENSOR:
	case TERRA_KIND_OPT_TENSOR:
		return TRACE_FORM_TENSOR;
	case TERRA_KIND_TENSOR_LIST:
	case TERRA_KIND_ITENSOR_LIST:
	case TERRA_KIND_OPT_TENSOR_LIST:
		return TRACE_FORM_TENSORS;
	case TERRA_KIND_SCALAR:
	case TERRA_KIND_OPT_SCALAR:
		return TRACE_FORM_SCALAR;
	case TERRA_KIND_SCALAR_LIST:
		return TRACE_FORM_SCALARS;
	case TERRA_KIND_INT_LIST:
	case TERRA_KIND_OPT_INT_LIST:
	case TERRA_KIND_SYMINT_LIST:
	case TERRA_KIND_OPT_SYMINT_LIST:
	case TERRA_KIND_BOOL_ARRAY:
		return TRACE_FORM_INTS;
	case TERRA_KIND_DOUBLE:
	case TERRA_KIND_OPT_DOUBLE:
		return TRACE_FORM_DOUBLE;
	case TERRA_KIND_DOUBLE_LIST:
	case TERRA_KIND_OPT_DOUBLE_LIST:
		return TRACE_FORM_DOUBLES;
	case TERRA_KIND_STRING:
	case TERRA_KIND_OPT_STRING:
		return TRACE_FORM_STRING;
	default:
		return kind < TERRA_KIND_COUNT ? TRACE_FORM_INT : TRACE_FORM_UNKNOWN;
	}
}

static uint32_t crc_table[8][256];

static void crc_table_init(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
		crc_table[0][i] = crc;
	}
	for (uint32_t i = 0; i < 256; i++)
		for (int t = 1; t < 8; t++)
			crc_table[t][i] = crc_table[t - 1][i] >> 8 ^ crc_table[0][crc_table[t - 1][i] & 0xff];
}

/* Eight bytes a step: the recorder checksums while the traced program waits for a core. */
static uint32_t crc_step8(uint32_t crc, const uint8_t *p)
{
	uint32_t low = crc ^ trace_get32(p), high = trace_get32(p + 4);

	return crc_table[7][low & 0xff] ^ crc_table[6][low >> 8 & 0xff] ^ crc_table[5][low >> 16 & 0xff] ^
	       crc_table[4][low >> 24] ^ crc_table[3][high & 0xff] ^ crc_table[2][high >> 8 & 0xff] ^
	       crc_table[1][high >> 16 & 0xff] ^ crc_table[0][high >> 24];
}

uint32_t trace_crc32c(uint32_t crc, const void *data, size_t size)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	const uint8_t *p = data;

	pthread_once(&once, crc_table_init);
	crc = ~crc;
	for (; size >= 8; size -= 8, p += 8)
		crc = crc_step8(crc, p);
	for (; size > 0; size--, p++)
		crc = crc >> 8 ^ crc_table[0][(crc ^ *p) & 0xff];
	return ~crc;
}
