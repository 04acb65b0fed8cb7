// zstd: blocks of records are packed and unpacked bit for bit, and a damaged block is told from a good one.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <zstd.h>

enum { BLOCK = 1 << 16 };

static uint8_t block[BLOCK], unpacked[BLOCK], packed[BLOCK + BLOCK / 128 + 512];

// Records that look alike, as those of a training loop do: a counter in each, the rest constant.
static void fill_block(void)
{
	for (uint32_t i = 0; i < BLOCK / 32; i++) {
		memset(block + i * 32, 0xa5, 32);
		memcpy(block + i * 32, &i, sizeof(i));
	}
}

static size_t pack_block(void)
{
	ZSTD_CCtx *context = ZSTD_createCCtx();
	size_t size;

	assert_non_null(context);
	assert_true(ZSTD_compressBound(BLOCK) <= sizeof(packed));
	ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, 1);
	ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
	fill_block();
	size = ZSTD_compress2(context, packed, sizeof(packed), block, BLOCK);
	assert_false(ZSTD_isError(size));
	ZSTD_freeCCtx(context);
	return size;
}

static void zstd_packs_and_unpacks_records(void **state)
{
	size_t size = pack_block();

	assert_true(size < BLOCK / 3);
	assert_int_equal(ZSTD_getFrameContentSize(packed, size), BLOCK);
	assert_int_equal(ZSTD_decompress(unpacked, sizeof(unpacked), packed, size), BLOCK);
	assert_memory_equal(unpacked, block, BLOCK);
}

static void zstd_refuses_truncated_blocks(void **state)
{
	size_t size = pack_block();

	for (size_t cut = 1; cut < size; cut += size / 7)
		assert_true(ZSTD_isError(ZSTD_decompress(unpacked, sizeof(unpacked), packed, size - cut)));
}

static void zstd_refuses_blocks_with_a_flipped_bit(void **state)
{
	size_t size = pack_block();

	for (size_t at = 16; at < size; at += 97) {
		size_t result;

		packed[at] ^= 0x10;
		result = ZSTD_decompress(unpacked, sizeof(unpacked), packed, size);
		assert_true(ZSTD_isError(result) || memcmp(unpacked, block, BLOCK) == 0);
		packed[at] ^= 0x10;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(zstd_packs_and_unpacks_records),
		cmocka_unit_test(zstd_refuses_truncated_blocks),
		cmocka_unit_test(zstd_refuses_blocks_with_a_flipped_bit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
