/* plan_internal.h - what the files of the plan library share. The byte format is docs/plan-format.md.
 *
 * The library is linked into a preload library, so it depends on libc and the dynamic linker alone, and it takes every
 * byte of a plan for hostile until it is checked.
 */
#ifndef TERRA_GRAPHOPT_PLAN_INTERNAL_H
#define TERRA_GRAPHOPT_PLAN_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "graphopt/plan.h"

#define PLAN_HEADER_SIZE 64
#define PLAN_MAX_TEXT ((uint64_t)16 << 20)
#define PLAN_MAX_CODE ((uint64_t)256 << 20)
#define PLAN_MAX_NAMES 65536 /* passive ops, list ops, imports */
#define PLAN_MAX_REGIONS 4096
#define PLAN_MAX_REPLACES 256
#define PLAN_MAX_WORD 4096 /* one name, token or quoted text, decoded */
#define PLAN_MAX_NUMEL ((int64_t)1 << 48)

/* plan_format.c: the header and its checksums. */
struct plan_header {
	uint64_t text_size;
	uint64_t code_size;
	uint32_t text_crc;
	uint32_t code_crc;
};
void plan_header_encode(const struct plan_header *header, uint8_t out[PLAN_HEADER_SIZE]);
int plan_header_decode(const uint8_t *bytes, size_t size, struct plan_header *out, char *err, size_t err_size);
/* Where the code starts: the text is padded with zero bytes to a multiple of 16. */
uint64_t plan_code_offset(uint64_t text_size);
uint32_t plan_crc32c(const void *data, size_t size);

/* plan_image.c: a whole file in memory. */
int plan_decode(const uint8_t *bytes, size_t size, struct terra_plan **out, char *err, size_t err_size);
/* *out is malloc'ed. */
int plan_encode(const struct terra_plan *plan, uint8_t **out, size_t *size, char *err, size_t err_size);

/* plan_parse.c, plan_text.c: the text section. `text` ends with a terminator that `size` does not count. */
int plan_parse(const char *text, size_t size, struct terra_plan *plan, char *err, size_t err_size);
int plan_print(const struct terra_plan *plan, FILE *out);
void plan_print_quoted(FILE *out, const char *text);

/* plan_check.c: what must hold of any plan, whether it was read or is to be written. Sets n_inputs and n_scalars. */
int plan_check(const struct terra_plan *plan, char *err, size_t err_size);
int plan_check_region(const struct terra_plan_region *region, uint32_t *n_inputs, uint32_t *n_scalars, char *err,
		      size_t err_size);
bool plan_op_name_valid(const char *name);
bool plan_symbol_valid(const char *name);
int plan_region_compare(const struct terra_plan_region *a, const struct terra_plan_region *b);

/* plan_link.c: what a region or replacement owns, for terra_plan_free and for taking one out of a plan. */
void plan_region_free(struct terra_plan_region *region);
void plan_replace_free(struct terra_plan_replace *replace);

/* plan_cpu.c */
const char *plan_cpu_mismatch(const char *features, const char *vendor);
void plan_cpu_vendor(char out[13]);
/* "<family>.<model>.<stepping>", as /proc/cpuinfo has them. */
#define PLAN_CPU_MODEL_SIZE 32
void plan_cpu_model(char out[PLAN_CPU_MODEL_SIZE]);
/* The value of a `capability=` word of the plan's cpu line into out, "" when there is none. */
void plan_cpu_capability(const char *features, char *out, size_t size);

/* plan_util.c. plan_error formats the message and returns `code`. plan_number reads a whole string as a number,
 * whatever locale the program has set; false when it is none. */
bool plan_number(const char *text, double *out);
int plan_error(char *err, size_t err_size, int code, const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
