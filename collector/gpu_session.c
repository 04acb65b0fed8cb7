/* gpu_session.c - before and after a program whose GPU activity is recorded. */
#include "collector/gpu_session.h"

#include <errno.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "collector/gpu_kinds.h"
#include "collector/gpu_merge.h"
#include "collector/preload_session.h"

#define INJECTION "CUDA_INJECTION64_PATH"

/* OUTPUT.gpu.PID: the files, to be freed by globfree; none when memory ran out. */
static void find_files(const char *output, glob_t *found)
{
	size_t n = 0;
	char *pattern = malloc(2 * strlen(output) + sizeof(".gpu.[0-9]*"));

	memset(found, 0, sizeof(*found));
	if (!pattern)
		return;
	for (; *output; output++) {
		if (strchr("*?[]\\", *output))
			pattern[n++] = '\\';
		pattern[n++] = *output;
	}
	strcpy(pattern + n, ".gpu.[0-9]*");
	if (glob(pattern, GLOB_NOSORT, NULL, found) != 0)
		found->gl_pathc = 0;
	free(pattern);
}

static void remove_old(const char *output)
{
	glob_t found;

	find_files(output, &found);
	for (size_t i = 0; i < found.gl_pathc; i++)
		unlink(found.gl_pathv[i]);
	globfree(&found);
}

static int set_environment(const char *output, const char *kinds, const char *library)
{
	char file[4096];

	if ((size_t)snprintf(file, sizeof(file), "%s.gpu", output) >= sizeof(file))
		return -ENAMETOOLONG;
	if (setenv(INJECTION, library, 1) || setenv("TERRA_GPU_FILE", file, 1) || setenv("TERRA_GPU_KINDS", kinds, 1))
		return -ENOMEM;
	return 0;
}

int terra_gpu_prepare(const char *output, const char *kinds, char *remark, size_t size)
{
	const char *words = kinds ? kinds : TERRA_GPU_DEFAULT, *wrong, *other = getenv(INJECTION);
	char library[4096];
	uint32_t wanted;
	int code;

	remark[0] = 0;
	if (!terra_gpu_parse_kinds(words, &wanted, &wrong)) {
		snprintf(remark, size, "no such kind of GPU activity: %s", wrong);
		return -EINVAL;
	}
	unsetenv("TERRA_GPU_FILE");
	remove_old(output);
	if (!wanted)
		return 0;
	code = terra_library_find("libterra_cupti.so", library, sizeof(library));
	if (code) {
		snprintf(remark, size, "no GPU activity can be recorded: %s: %s; it is built where CUPTI's headers are", library,
			 strerror(-code));
		if (kinds)
			return -ENOENT;
		remark[0] = 0; /* nobody asked */
		return 0;
	}
	if (other && other[0] && strcmp(other, library) != 0) {
		snprintf(remark, size, "no GPU activity is recorded: %s is set already, to %s", INJECTION, other);
		return 0;
	}
	return set_environment(output, words, library);
}

/* The trace of the process: OUTPUT.PID where there is one. */
static void trace_of(const char *output, const char *file, char *trace, size_t size)
{
	snprintf(trace, size, "%s%s", output, strrchr(file, '.'));
	if (access(trace, F_OK) != 0)
		snprintf(trace, size, "%s", output);
}

static void collect(const char *output, const char *file, bool recorded_only, void (*say)(const char *text))
{
	const struct terra_gpu_merge_options options = { .recorded_only = recorded_only };
	char trace[4096], err[1024], text[6144];

	trace_of(output, file, trace, sizeof(trace));
	if (terra_gpu_merge(trace, file, &options, err, sizeof(err)) == 0) {
		unlink(file);
		return;
	}
	snprintf(text, sizeof(text), "GPU activity stays in %s: %s", file, err);
	say(text);
}

void terra_gpu_collect(const char *output, bool recorded_only, void (*say)(const char *text))
{
	glob_t found;

	find_files(output, &found);
	for (size_t i = 0; i < found.gl_pathc; i++)
		collect(output, found.gl_pathv[i], recorded_only, say);
	globfree(&found);
}

/* A process that runs. */

static bool has_mapped(pid_t pid, const char *library)
{
	char path[64], line[4352];
	bool found = false;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	maps = fopen(path, "re");
	while (maps && !found && fgets(line, sizeof(line), maps))
		found = strstr(line, library) != NULL;
	if (maps)
		fclose(maps);
	return found;
}

/* The file that the library in the process writes. */
static bool find_running(pid_t pid, char *file, size_t size)
{
	static const char name[] = "TERRA_GPU_FILE=";
	char path[64], *variable = NULL;
	size_t capacity = 0;
	bool found = false;
	FILE *environment;

	snprintf(path, sizeof(path), "/proc/%d/environ", (int)pid);
	environment = fopen(path, "re");
	while (environment && !found && getdelim(&variable, &capacity, 0, environment) > 0)
		found = strncmp(variable, name, sizeof(name) - 1) == 0;
	if (found)
		found = (size_t)snprintf(file, size, "%s.%d", variable + sizeof(name) - 1, (int)pid) < size;
	free(variable);
	if (environment)
		fclose(environment);
	return found && access(file, R_OK) == 0;
}

void terra_gpu_attached(pid_t pid, const char *trace, void (*say)(const char *text))
{
	static const char none[] = "no GPU activity: the program was started without libterra_cupti.so, which CUDA loads at its start "
				   "only";
	const struct terra_gpu_merge_options options = { .recorded_only = true, .running = true };
	char file[4096], err[1024];
	int code;

	if (!has_mapped(pid, "/libcuda.so"))
		return;
	if (has_mapped(pid, "/libterra_cupti.so") && find_running(pid, file, sizeof(file)))
		code = terra_gpu_merge(trace, file, &options, err, sizeof(err));
	else
		code = terra_gpu_note(trace, none, err, sizeof(err));
	if (code)
		say(err);
}
