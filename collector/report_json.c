/* report_json.c - JSON to a stream. */
#include "collector/report_json.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static void before_value(struct json *json)
{
	if (json->comma)
		fputc(',', json->out);
	json->comma = true;
}

void json_open(struct json *json, char bracket)
{
	before_value(json);
	fputc(bracket, json->out);
	json->comma = false;
}

void json_close(struct json *json, char bracket)
{
	fputc(bracket, json->out);
	json->comma = true;
}

void json_key(struct json *json, const char *key)
{
	json_string(json, key);
	fputc(':', json->out);
	json->comma = false;
}

size_t json_utf8_length(const unsigned char *p, size_t size)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	size_t length = p[0] < 0x80 ? 1 : p[0] < 0xc0 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf8 ? 4 : 0;
	uint32_t code;

	if (length <= 1 || length > size)
		return length > size ? 0 : length;
	code = p[0] & (0x7fu >> length);
	for (size_t i = 1; i < length; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (p[i] & 0x3f);
	}
	return code < least[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : length;
}

static void put_char(struct json *json, const unsigned char *p, size_t length)
{
	if (length == 0)
		fprintf(json->out, "\\udc%02x", *p);
	else if (*p == '"' || *p == '\\')
		fprintf(json->out, "\\%c", *p);
	else if (*p < 0x20 || *p == 0x7f)
		fprintf(json->out, "\\u%04x", *p);
	else
		fwrite(p, 1, length, json->out);
}

void json_bytes(struct json *json, const char *s, size_t size)
{
	const unsigned char *p = (const unsigned char *)s, *end = p + size;

	before_value(json);
	fputc('"', json->out);
	while (p < end) {
		size_t length = json_utf8_length(p, (size_t)(end - p));

		put_char(json, p, length);
		p += length ? length : 1;
	}
	fputc('"', json->out);
}

void json_string(struct json *json, const char *s)
{
	if (s)
		json_bytes(json, s, strlen(s));
	else
		json_null(json);
}

void json_u64(struct json *json, uint64_t v)
{
	before_value(json);
	fprintf(json->out, "%" PRIu64, v);
}

void json_i64(struct json *json, int64_t v)
{
	before_value(json);
	fprintf(json->out, "%" PRId64, v);
}

void json_double(struct json *json, double v)
{
	if (isnan(v) || isinf(v)) {
		json_string(json, isnan(v) ? "NaN" : v > 0 ? "Infinity" : "-Infinity");
		return;
	}
	before_value(json);
	fprintf(json->out, "%.17g", v);
	if (v == floor(v) && fabs(v) < 1e17)
		fputs(".0", json->out); /* %g writes whole numbers without a point, which would read as integers */
}

void json_bool(struct json *json, bool v)
{
	before_value(json);
	fputs(v ? "true" : "false", json->out);
}

void json_null(struct json *json)
{
	before_value(json);
	fputs("null", json->out);
}

void json_hex(struct json *json, uint64_t v)
{
	before_value(json);
	fprintf(json->out, "\"0x%" PRIx64 "\"", v);
}

void json_fixed(struct json *json, double v, int digits)
{
	before_value(json);
	fprintf(json->out, "%.*f", digits, v);
}

void json_member_string(struct json *json, const char *key, const char *s)
{
	json_key(json, key);
	json_string(json, s);
}

void json_member_u64(struct json *json, const char *key, uint64_t v)
{
	json_key(json, key);
	json_u64(json, v);
}

void json_member_i64(struct json *json, const char *key, int64_t v)
{
	json_key(json, key);
	json_i64(json, v);
}
