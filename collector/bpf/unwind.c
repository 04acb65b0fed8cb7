/* A reader of .eh_frame_hdr, .eh_frame and .gcc_except_table as far as one question needs them; see unwind.h. */
#include "collector/bpf/unwind.h"

#include <string.h>

/* DW_EH_PE_*, Linux Standard Base, Core, 10.5. */
#define FORMAT 0x0f
#define ULEB128 0x01
#define UDATA2 0x02
#define UDATA4 0x03
#define UDATA8 0x04
#define SDATA4 0x0b
#define SDATA8 0x0c
#define ABSENT 0xff
#define DATA_RELATIVE 0x30
#define PC_RELATIVE 0x10

/* Reading stops for good at the end of the file or at what is not understood. */
struct reader {
	const uint8_t *at, *end;
	uint64_t address;
	bool failed;
};

static struct reader reader_at(const struct terra_elf *elf, uint64_t address)
{
	struct reader r = {.address = address};
	uint64_t offset;

	r.failed = !terra_elf_file_offset(elf, address, &offset) || offset > elf->size;
	if (!r.failed) {
		r.at = elf->data + offset;
		r.end = elf->data + elf->size;
	}
	return r;
}

static uint64_t take(struct reader *r, size_t size)
{
	uint64_t value = 0;

	if (r->failed || (size_t)(r->end - r->at) < size) {
		r->failed = true;
		return 0;
	}
	memcpy(&value, r->at, size);
	r->at += size;
	r->address += size;
	return value;
}

static uint64_t take_uleb(struct reader *r)
{
	uint64_t value = 0, byte;
	unsigned int shift = 0;

	do {
		byte = take(r, 1);
		if (shift < 64)
			value |= (byte & 0x7f) << shift;
		shift += 7;
	} while (byte & 0x80 && !r->failed);
	return value;
}

/* Without what it is relative to. */
static uint64_t take_encoded(struct reader *r, uint8_t encoding)
{
	switch (encoding & FORMAT) {
	case ULEB128:
		return take_uleb(r);
	case UDATA2:
		return take(r, 2);
	case UDATA4:
		return take(r, 4);
	case SDATA4:
		return (uint64_t)(int64_t)(int32_t)take(r, 4);
	case 0:
	case UDATA8:
	case SDATA8:
		return take(r, 8);
	default:
		r->failed = true;
		return 0;
	}
}

void unwind_open(struct unwind *unwind, const struct terra_elf *elf)
{
	struct reader r;
	uint8_t frame, count, table;

	memset(unwind, 0, sizeof(*unwind));
	unwind->elf = elf;
	for (size_t i = 0; i < elf->n_segments; i++)
		if (elf->segments[i].p_type == PT_GNU_EH_FRAME)
			unwind->header = elf->segments[i].p_vaddr;
	if (!unwind->header)
		return;
	r = reader_at(elf, unwind->header);
	if (take(&r, 1) != 1)
		return;
	frame = (uint8_t)take(&r, 1);
	count = (uint8_t)take(&r, 1);
	table = (uint8_t)take(&r, 1);
	take_encoded(&r, frame);
	unwind->n = take_encoded(&r, count);
	unwind->table = r.at;
	unwind->understood = !r.failed && table == (DATA_RELATIVE | SDATA4) && unwind->n <= (size_t)(r.end - r.at) / 8;
}

static uint64_t table_address(const struct unwind *unwind, uint64_t i, int column)
{
	int32_t distance;

	memcpy(&distance, unwind->table + 8 * i + 4 * column, 4);
	return unwind->header + (uint64_t)(int64_t)distance;
}

/* Address of the description (FDE) that may be the function's: the last that does not begin behind it; 0: none. */
static uint64_t find_description(const struct unwind *unwind, uint64_t address)
{
	uint64_t low = 0, high = unwind->n;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (table_address(unwind, middle, 0) <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low ? table_address(unwind, low - 1, 1) : 0;
}

/* Of a common description (CIE): how functions and their tables are pointed to. False: not understood. */
static bool read_encodings(const struct terra_elf *elf, uint64_t address, uint8_t *function, uint8_t *table)
{
	struct reader r = reader_at(elf, address);
	const char *augmentation;
	size_t n;

	*function = 0;
	*table = ABSENT;
	take(&r, 4);
	if (take(&r, 4) || take(&r, 1) > 3 || r.failed)
		return false;
	augmentation = (const char *)r.at;
	n = strnlen(augmentation, (size_t)(r.end - r.at));
	if (n > 8 || (augmentation[0] && augmentation[0] != 'z'))
		return false;
	for (size_t i = 0; i <= n; i++)
		take(&r, 1);
	take_uleb(&r); /* code and data alignment: a signed one has the same length */
	take_uleb(&r);
	take(&r, 1);
	if (augmentation[0])
		take_uleb(&r);
	for (size_t i = 1; i < n; i++) {
		if (augmentation[i] == 'P')
			take_encoded(&r, (uint8_t)take(&r, 1));
		else if (augmentation[i] == 'L')
			*table = (uint8_t)take(&r, 1);
		else if (augmentation[i] == 'R')
			*function = (uint8_t)take(&r, 1);
		else if (augmentation[i] != 'S' && augmentation[i] != 'B')
			return false;
	}
	return !r.failed;
}

/* A call site whose action is not "none" may lead to a handler; without one, what it lands in only cleans up. Returns
 * false when the table is not understood. */
static bool read_call_sites(struct reader *r, uint8_t encoding, const uint8_t *end, uint64_t base,
			    struct unwind_function *out)
{
	while (r->at < end && !r->failed) {
		uint64_t pad;

		take_encoded(r, encoding);
		take_encoded(r, encoding);
		pad = take_encoded(r, encoding);
		if (take_uleb(r))
			out->may_catch = true;
		if (!pad)
			continue;
		if (out->n_pads == UNWIND_MAX_PADS)
			return false;
		out->pads[out->n_pads++] = base + pad;
	}
	return !r->failed;
}

static bool read_table(const struct terra_elf *elf, uint64_t address, uint64_t function, struct unwind_function *out)
{
	struct reader r = reader_at(elf, address);
	uint8_t encoding = (uint8_t)take(&r, 1);
	uint64_t size;

	if (encoding != ABSENT) /* landing pads elsewhere than in the function */
		return false;
	encoding = (uint8_t)take(&r, 1);
	if (encoding != ABSENT)
		take_uleb(&r);
	encoding = (uint8_t)take(&r, 1);
	size = take_uleb(&r);
	if (r.failed || size > (size_t)(r.end - r.at))
		return false;
	return read_call_sites(&r, encoding, r.at + size, function, out);
}

/* False: not understood. */
static bool read_description(const struct unwind *unwind, uint64_t description, uint64_t address,
			     struct unwind_function *out)
{
	struct reader r = reader_at(unwind->elf, description);
	uint8_t function_encoding, table_encoding;
	uint64_t at, begin, size, table;

	take(&r, 4);
	at = r.address;
	if (!read_encodings(unwind->elf, at - take(&r, 4), &function_encoding, &table_encoding) ||
	    (function_encoding & 0xf0) != PC_RELATIVE)
		return false;
	at = r.address;
	begin = at + take_encoded(&r, function_encoding);
	size = take_encoded(&r, function_encoding & FORMAT);
	if (r.failed || address < begin || address - begin >= size)
		return !r.failed;
	if (table_encoding == ABSENT)
		return true;
	take_uleb(&r);
	at = r.address;
	table = take_encoded(&r, table_encoding);
	if (r.failed || (table_encoding & 0xf0) != PC_RELATIVE)
		return false;
	return !table || read_table(unwind->elf, at + table, begin, out);
}

void unwind_function(const struct unwind *unwind, uint64_t address, struct unwind_function *out)
{
	uint64_t description;

	out->may_catch = false;
	out->n_pads = 0;
	if (!unwind->header)
		return;
	out->may_catch = !unwind->understood;
	if (out->may_catch)
		return;
	description = find_description(unwind, address);
	if (description && !read_description(unwind, description, address, out))
		out->may_catch = true;
}
