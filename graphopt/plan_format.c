/* plan_format.c - the fixed header of a plan file, and CRC-32C. */
#include <errno.h>
#include <string.h>

#include "graphopt/plan_internal.h"

static const char plan_magic[8] = {'T', 'E', 'R', 'R', 'A', 'P', 'L', 'N'};

enum { /* byte offsets in the header */
       AT_MAGIC = 0,
       AT_VERSION = 8,
       AT_HEADER_SIZE = 12,
       AT_TEXT_SIZE = 16,
       AT_CODE_SIZE = 24,
       AT_TEXT_CRC = 32,
       AT_CODE_CRC = 36,
       AT_RESERVED = 40,
       AT_HEADER_CRC = 60,
};

#define CRC32C_POLYNOMIAL 0x82f63b78u /* Castagnoli, bits reversed */

/* The table is made anew at each call: a plan is read once, and a call costs less than the file system. */
uint32_t plan_crc32c(const void *data, size_t size)
{
	const uint8_t *bytes = data;
	uint32_t table[256];
	uint32_t crc = ~0u;
	size_t i;
	int bit;

	for (i = 0; i < 256; i++) {
		table[i] = (uint32_t)i;
		for (bit = 0; bit < 8; bit++)
			table[i] = table[i] >> 1 ^ (table[i] & 1 ? CRC32C_POLYNOMIAL : 0);
	}
	for (i = 0; i < size; i++)
		crc = crc >> 8 ^ table[(crc ^ bytes[i]) & 0xff];
	return ~crc;
}

static void put(uint8_t *at, uint64_t value, int bytes)
{
	int i;

	for (i = 0; i < bytes; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *at, int bytes)
{
	uint64_t value = 0;
	int i;

	for (i = 0; i < bytes; i++)
		value |= (uint64_t)at[i] << (8 * i);
	return value;
}

uint64_t plan_code_offset(uint64_t text_size)
{
	return PLAN_HEADER_SIZE + (text_size + 15) / 16 * 16;
}

void plan_header_encode(const struct plan_header *header, uint8_t out[PLAN_HEADER_SIZE])
{
	memset(out, 0, PLAN_HEADER_SIZE);
	memcpy(out + AT_MAGIC, plan_magic, sizeof(plan_magic));
	put(out + AT_VERSION, TERRA_PLAN_VERSION, 4);
	put(out + AT_HEADER_SIZE, PLAN_HEADER_SIZE, 4);
	put(out + AT_TEXT_SIZE, header->text_size, 8);
	put(out + AT_CODE_SIZE, header->code_size, 8);
	put(out + AT_TEXT_CRC, header->text_crc, 4);
	put(out + AT_CODE_CRC, header->code_crc, 4);
	put(out + AT_HEADER_CRC, plan_crc32c(out, AT_HEADER_CRC), 4);
}

static int check_fixed_fields(const uint8_t *bytes, char *err, size_t err_size)
{
	uint32_t version = (uint32_t)get(bytes + AT_VERSION, 4);
	int i;

	if (version != TERRA_PLAN_VERSION)
		return plan_error(
		    err, err_size, -EPROTONOSUPPORT,
		    "plan of format version %u, this program reads version %u: make it again with terra-opt", version,
		    TERRA_PLAN_VERSION);
	if (get(bytes + AT_HEADER_CRC, 4) != plan_crc32c(bytes, AT_HEADER_CRC))
		return plan_error(err, err_size, -EBADMSG, "damaged header (checksum): make it again with terra-opt");
	if (get(bytes + AT_HEADER_SIZE, 4) != PLAN_HEADER_SIZE)
		return plan_error(err, err_size, -EBADMSG, "damaged header (size): make it again with terra-opt");
	for (i = AT_RESERVED; i < AT_HEADER_CRC; i++)
		if (bytes[i])
			return plan_error(err, err_size, -EBADMSG,
					  "damaged header (reserved bytes): make it again with terra-opt");
	return 0;
}

int plan_header_decode(const uint8_t *bytes, size_t size, struct plan_header *out, char *err, size_t err_size)
{
	int ret;

	if (size < sizeof(plan_magic) || memcmp(bytes, plan_magic, sizeof(plan_magic)))
		return plan_error(err, err_size, -EINVAL, "not a plan file (terra-opt FILE.terra makes one)");
	if (size < PLAN_HEADER_SIZE)
		return plan_error(err, err_size, -EBADMSG, "cut off inside its header: make it again with terra-opt");
	ret = check_fixed_fields(bytes, err, err_size);
	if (ret)
		return ret;
	out->text_size = get(bytes + AT_TEXT_SIZE, 8);
	out->code_size = get(bytes + AT_CODE_SIZE, 8);
	out->text_crc = (uint32_t)get(bytes + AT_TEXT_CRC, 4);
	out->code_crc = (uint32_t)get(bytes + AT_CODE_CRC, 4);
	if (out->text_size > PLAN_MAX_TEXT || out->code_size > PLAN_MAX_CODE)
		return plan_error(err, err_size, -EFBIG,
				  "sizes beyond what a plan may have: make it again with terra-opt");
	if (size != plan_code_offset(out->text_size) + out->code_size)
		return plan_error(
		    err, err_size, -EBADMSG,
		    "%zu bytes where its header promises %llu: cut off or appended to, make it again with terra-opt",
		    size, (unsigned long long)(plan_code_offset(out->text_size) + out->code_size));
	return 0;
}
