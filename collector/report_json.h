/* report_json.h - JSON to a stream, one value after the other; commas are set by themselves. */
#ifndef TERRA_COLLECTOR_REPORT_JSON_H
#define TERRA_COLLECTOR_REPORT_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct json {
	FILE *out;
	bool comma; /* the next value or key needs one before it */
};

void json_open(struct json *json, char bracket); /* '{' or '[' */
void json_close(struct json *json, char bracket);
void json_key(struct json *json, const char *key);
/* Bytes that are not UTF-8 become lone surrogates U+DC80.., as Python's "surrogateescape" has it; NULL is null. */
void json_string(struct json *json, const char *s);
void json_bytes(struct json *json, const char *s, size_t size);
void json_u64(struct json *json, uint64_t v);
void json_i64(struct json *json, int64_t v);
/* So many digits that reading gives the same bits. What JSON has no number for is a string: "NaN", "Infinity",
 * "-Infinity". */
void json_double(struct json *json, double v);
void json_bool(struct json *json, bool v);
void json_null(struct json *json);
void json_hex(struct json *json, uint64_t v); /* as a string, "0x..." */
/* A key with its value. */
void json_member_string(struct json *json, const char *key, const char *s);
void json_member_u64(struct json *json, const char *key, uint64_t v);
void json_member_i64(struct json *json, const char *key, int64_t v);
/* Length of the UTF-8 sequence at p, which has `size` bytes at least; 0 when there is none: no overlong forms, no surrogates. */
size_t json_utf8_length(const unsigned char *p, size_t size);
/* A decimal number with `digits` behind the point, for times and shares. */
void json_fixed(struct json *json, double v, int digits);

#endif
