/* machine.c - facts about processor and process from /proc. */
#include "collector/machine.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct {
	const char *flag, *name;
} features[] = {
	{ "avx2", "AVX2" },		  { "fma", "FMA" },
	{ "avx512f", "AVX512F" },	  { "avx512vl", "AVX512VL" },
	{ "avx512bw", "AVX512BW" },	  { "avx512_bf16", "AVX512_BF16" },
	{ "avx512_vnni", "AVX512_VNNI" }, { "amx_tile", "AMX" },
};

static ssize_t read_file(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t at = 0;
	ssize_t n = 0;

	if (fd < 0)
		return -1;
	while (at < size - 1 && (n = read(fd, buffer + at, size - 1 - at)) > 0)
		at += (size_t)n;
	close(fd);
	buffer[at] = 0;
	return n < 0 ? -1 : (ssize_t)at;
}

/* The value of a "key<tab>: value" line; its end is *end. */
static const char *find_value(const char *text, const char *key, const char **end)
{
	const char *line = strstr(text, key), *value;

	if (!line)
		return NULL;
	value = strchr(line, ':');
	*end = strchr(line, '\n');
	if (!value || !*end || value > *end)
		return NULL;
	for (value++; *value == ' '; value++)
		;
	return value;
}

static bool has_word(const char *text, const char *end, const char *word)
{
	size_t n = strlen(word);

	for (const char *at = text; at + n <= end; at++)
		if (memcmp(at, word, n) == 0 && (at == text || at[-1] == ' ') && (at[n] == ' ' || at + n == end))
			return true;
	return false;
}

void terra_machine_cpu(char *buffer, size_t size)
{
	char text[8192]; /* one processor's entry is under 4 KB */
	const char *value, *end;
	size_t at;

	buffer[0] = 0;
	if (read_file("/proc/cpuinfo", text, sizeof(text)) <= 0)
		return;
	value = find_value(text, "model name", &end);
	if (value)
		snprintf(buffer, size, "%.*s", (int)(end - value), value);
	value = find_value(text, "flags", &end);
	for (size_t i = 0; value && i < sizeof(features) / sizeof(features[0]); i++) {
		at = strlen(buffer);
		if (has_word(value, end, features[i].flag))
			snprintf(buffer + at, size - at, "%s%s", at ? " " : "", features[i].name);
	}
}

void terra_machine_command(int pid, char *buffer, size_t size)
{
	char path[64];
	ssize_t n;

	buffer[0] = 0;
	snprintf(path, sizeof(path), "/proc/%d/cmdline", pid ? pid : (int)getpid());
	n = read_file(path, buffer, size);
	for (ssize_t i = 0; i + 1 < n; i++)
		if (!buffer[i])
			buffer[i] = ' ';
}
