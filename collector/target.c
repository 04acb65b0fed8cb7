/* What a trace's header says about the program and the machine. */
#include "collector/target.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* Field six of a line of /proc/PID/maps, without the newline; NULL for mappings without a file. */
static char *mapped_path(char *line)
{
	int at = 0;

	sscanf(line, "%*s %*s %*s %*s %*s %n", &at);
	if (!at || line[at] != '/')
		return NULL;
	line[strcspn(line, "\n")] = 0;
	return line + at;
}

int terra_target_library(pid_t pid, char *path, size_t size)
{
	char name[64], line[4352], *mapped;
	int error = -ENOENT;
	FILE *maps;

	snprintf(name, sizeof(name), "/proc/%d/maps", pid);
	maps = fopen(name, "re");
	if (!maps)
		return -errno;
	while (error == -ENOENT && fgets(line, sizeof(line), maps)) {
		mapped = mapped_path(line);
		if (!mapped || strcmp(base_name(mapped), "libtorch_cpu.so"))
			continue;
		error = strlen(mapped) < size ? 0 : -ENAMETOOLONG;
		if (!error)
			strcpy(path, mapped);
	}
	fclose(maps);
	return error;
}

static bool is_python(const char *command)
{
	const char *name = base_name(command);

	return !strncmp(name, "python", 6) && strspn(name + 6, "0123456789.t") == strlen(name + 6);
}

/* What goes before the extension; of a module its last name: "train" of "pkg.train". */
static char *stem(const char *name, bool is_module)
{
	const char *end;

	if (is_module) {
		const char *dot = strrchr(name, '.');

		return strdup(dot && dot[1] ? dot + 1 : name);
	}
	name = base_name(name);
	end = strrchr(name, '.');
	return end && end != name ? strndup(name, (size_t)(end - name)) : strdup(name);
}

/* Python's options that take a value, which may be in the same word or the next. */
static bool takes_value(const char *option)
{
	return (option[1] == 'X' || option[1] == 'W') && !option[2];
}

char *terra_target_name(char *const *argv)
{
	if (!is_python(argv[0]))
		return stem(argv[0], false);
	for (int i = 1; argv[i]; i++) {
		const char *word = argv[i];

		if (word[0] != '-')
			return stem(word, false);
		if (!strcmp(word, "-m") && argv[i + 1])
			return stem(argv[i + 1], true);
		if (!strcmp(word, "-c") || !strcmp(word, "-"))
			break;
		if (takes_value(word) && argv[i + 1])
			i++;
	}
	return strdup("python");
}

/* What libgomp starts with: as many threads as asked for, else one for each CPU that the process may use. */
uint32_t terra_target_threads(pid_t pid)
{
	const char *value = getenv("OMP_NUM_THREADS");
	unsigned long n = value ? strtoul(value, NULL, 10) : 0;
	cpu_set_t cpus;

	if (n > 0 && n <= 65536)
		return (uint32_t)n;
	return sched_getaffinity(pid, sizeof(cpus), &cpus) ? 0 : (uint32_t)CPU_COUNT(&cpus);
}

void terra_target_hex(const uint8_t *bytes, size_t size, char *out)
{
	out[0] = 0;
	for (size_t i = 0; i < size; i++)
		snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}
