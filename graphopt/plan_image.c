/* plan_image.c - a plan file as one piece of memory. */
#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "graphopt/plan_internal.h"

static int decode_text(const uint8_t *bytes, const struct plan_header *header, struct terra_plan *plan, char *err,
		       size_t err_size)
{
	char *text = malloc(header->text_size + 1);
	int ret;

	if (!text)
		return plan_error(err, err_size, -ENOMEM, "out of memory");
	memcpy(text, bytes + PLAN_HEADER_SIZE, header->text_size);
	text[header->text_size] = '\0';
	ret = plan_parse(text, header->text_size, plan, err, err_size);
	free(text);
	return ret;
}

static int decode_code(const uint8_t *bytes, const struct plan_header *header, struct terra_plan *plan, char *err,
		       size_t err_size)
{
	if (!header->code_size)
		return 0;
	plan->code = malloc(header->code_size);
	if (!plan->code)
		return plan_error(err, err_size, -ENOMEM, "out of memory");
	plan->code_size = header->code_size;
	memcpy(plan->code, bytes + plan_code_offset(header->text_size), header->code_size);
	return 0;
}

static int check_sums(const uint8_t *bytes, const struct plan_header *header, char *err, size_t err_size)
{
	uint64_t at = PLAN_HEADER_SIZE + header->text_size, code = plan_code_offset(header->text_size);

	if (plan_crc32c(bytes + PLAN_HEADER_SIZE, header->text_size) != header->text_crc)
		return plan_error(err, err_size, -EBADMSG,
				  "damaged text section (checksum): make it again with terra-opt");
	for (; at < code; at++)
		if (bytes[at])
			return plan_error(err, err_size, -EBADMSG, "damaged padding: make it again with terra-opt");
	if (plan_crc32c(bytes + code, header->code_size) != header->code_crc)
		return plan_error(err, err_size, -EBADMSG,
				  "damaged code section (checksum): make it again with terra-opt");
	return 0;
}

int plan_decode(const uint8_t *bytes, size_t size, struct terra_plan **out, char *err, size_t err_size)
{
	struct plan_header header;
	struct terra_plan *plan;
	int ret;

	*out = NULL;
	ret = plan_header_decode(bytes, size, &header, err, err_size);
	if (!ret)
		ret = check_sums(bytes, &header, err, err_size);
	if (ret)
		return ret;
	plan = calloc(1, sizeof(*plan));
	if (!plan)
		return plan_error(err, err_size, -ENOMEM, "out of memory");
	ret = decode_text(bytes, &header, plan, err, err_size);
	if (!ret)
		ret = decode_code(bytes, &header, plan, err, err_size);
	if (!ret)
		ret = plan_check(plan, err, err_size);
	if (ret) {
		terra_plan_free(plan);
		return ret;
	}
	*out = plan;
	return 0;
}

/* Numbers are printed as the format wants them, not as the program's locale does. */
static int print_text(const struct terra_plan *plan, char **text, size_t *size)
{
	FILE *stream = open_memstream(text, size);
	locale_t c, before;
	int ret;

	if (!stream)
		return -errno;
	c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
	before = uselocale(c);
	ret = plan_print(plan, stream);
	uselocale(before);
	if (c)
		freelocale(c);
	if (fclose(stream) || ret)
		return -ENOMEM;
	return 0;
}

int plan_encode(const struct terra_plan *plan, uint8_t **out, size_t *size, char *err, size_t err_size)
{
	struct plan_header header = {0};
	char *text = NULL;
	size_t text_size = 0;
	int ret;

	*out = NULL;
	ret = plan_check(plan, err, err_size);
	if (ret)
		return ret;
	ret = print_text(plan, &text, &text_size);
	if (ret || text_size > PLAN_MAX_TEXT || plan->code_size > PLAN_MAX_CODE) {
		ret = plan_error(err, err_size, ret ? ret : -EFBIG, "%s",
				 ret ? "out of memory" : "the plan is too large");
		goto err_out;
	}
	header.text_size = text_size;
	header.code_size = plan->code_size;
	header.text_crc = plan_crc32c(text, text_size);
	header.code_crc = plan_crc32c(plan->code, plan->code_size);
	*size = plan_code_offset(text_size) + plan->code_size;
	*out = calloc(1, *size);
	if (!*out) {
		ret = plan_error(err, err_size, -ENOMEM, "out of memory");
		goto err_out;
	}
	plan_header_encode(&header, *out);
	memcpy(*out + PLAN_HEADER_SIZE, text, text_size);
	if (plan->code_size)
		memcpy(*out + plan_code_offset(text_size), plan->code, plan->code_size);
err_out:
	free(text);
	return ret;
}
