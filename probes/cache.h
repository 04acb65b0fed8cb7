/* cache.h - files under $XDG_CACHE_HOME/terra (or ~/.cache/terra) that hold what was derived from a library.
 *
 * A cache file is only ever an optimization: one that is absent, damaged, of another key, or that others could have
 * written is not used, and a failure to write one is not an error for the caller.
 */
#ifndef TERRA_PROBES_CACHE_H
#define TERRA_PROBES_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "probes/elf_file.h"

/* What a cached result depends on. Plain bytes, compared whole. The build-id alone is not enough: tools such as
 * patchelf move things about and keep it. */
struct terra_cache_key {
	uint8_t build_id[TERRA_BUILD_ID_MAX];
	uint8_t unused[4];
	uint64_t file_size;
	uint64_t symbols_hash; /* of .dynsym */
	uint64_t layout;       /* version and sizes of the structures stored, chosen by the user of the cache */
};

/* 0; -ENODATA when the file has no build-id, and then nothing can be cached. */
int terra_cache_key_make(const struct terra_elf *elf, uint64_t layout, struct terra_cache_key *key);

/* Reads the file of `kind` ("ops", "offsets") for the key. 0 and a block that the caller frees, or -errno. */
int terra_cache_read(const char *kind, const struct terra_cache_key *key, void **data, size_t *size);

/* Writes it (temporary file, then rename), creating the folder. 0 or -errno. */
int terra_cache_write(const char *kind, const struct terra_cache_key *key, const void *data, size_t size);

#endif
