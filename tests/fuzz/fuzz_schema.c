/* fuzz_schema.c - mangled names and schema texts, put into a library that is otherwise sound.
 *
 * The input is strings that end in a NUL. One that begins with '(' is the schema of "x", one with ':' a whole schema;
 * any other one is the parameters in the mangled name of "x", or of another class when it is a whole name.
 */
#include <stdbool.h>

#include "tests/fuzz/table_input.h"
#include "tests/unit/elf_sample.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void add_symbol(struct elf_sample *sample, const char *text)
{
	static const char *const starts[] = {"_ZN2at4_ops1x4callE", "_ZN2at4_ops1x10redispatchE"};
	char name[4096];

	for (int level = 0; level < 2; level++) {
		const char *start = strncmp(text, "_Z", 2) == 0 ? "" : starts[level];
		size_t n = (size_t)snprintf(name, sizeof(name), "%s%s", start, text);

		if (n >= sizeof(name) || sample->n_symbols == 64 || n >= sizeof(sample->dynstr) - sample->dynstr_size)
			return;
		sample_symbol(sample, name, 0);
	}
}

static void add_schema(struct elf_sample *sample, const char *text)
{
	char schema[4096];
	size_t n = (size_t)snprintf(schema, sizeof(schema), "%s%s", *text == '(' ? "x" : "", text + (*text == ':'));

	if (n < sizeof(schema) && n < sizeof(sample->rodata) - sample->rodata_size)
		sample_string(sample, schema);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct elf_sample sample;
	char *text = malloc(size + 1);

	if (!text)
		return 0;
	if (size)
		memcpy(text, data, size);
	text[size] = '\0';
	sample_init(&sample, 1);
	for (size_t at = 0; at < size; at += strlen(text + at) + 1)
		if (text[at] == '(' || text[at] == ':')
			add_schema(&sample, text + at);
		else
			add_symbol(&sample, text + at);
	free(text);
	sample_finish(&sample);
	table_input_run(sample.data, sample.size);
	return 0;
}
