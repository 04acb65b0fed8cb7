/* codegen_compile.c - runs the system compiler on generated source. */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "graphopt/codegen_internal.h"

extern char **environ;

struct build {
	char dir[4096];
	bool temporary;
	char source[4160], object[4160], messages[4160];
};

static void name_files(struct build *build)
{
	snprintf(build->source, sizeof(build->source), "%s/kernels.c", build->dir);
	snprintf(build->object, sizeof(build->object), "%s/kernels.so", build->dir);
	snprintf(build->messages, sizeof(build->messages), "%s/messages.txt", build->dir);
}

static int build_open(struct build *build, const char *work_dir, char *err, size_t err_size)
{
	const char *tmp = getenv("TMPDIR");

	build->temporary = !work_dir;
	if (work_dir)
		snprintf(build->dir, sizeof(build->dir), "%s", work_dir);
	else
		snprintf(build->dir, sizeof(build->dir), "%s/terra-kernels-XXXXXX", tmp && *tmp ? tmp : "/tmp");
	if (build->temporary ? !mkdtemp(build->dir) : mkdir(build->dir, 0700) < 0 && errno != EEXIST)
		return codegen_error(err, err_size, -errno, "can't make the directory %s: %s", build->dir,
				     strerror(errno));
	name_files(build);
	return 0;
}

static void build_close(struct build *build)
{
	if (!build->temporary)
		return;
	unlink(build->source);
	unlink(build->object);
	unlink(build->messages);
	rmdir(build->dir);
}

static int write_file(const char *path, const char *data, size_t size, char *err, size_t err_size)
{
	FILE *f = fopen(path, "we");
	int ret = 0;

	if (!f || fwrite(data, 1, size, f) != size)
		ret = -errno;
	if (f && fclose(f) && !ret)
		ret = -errno;
	return ret ? codegen_error(err, err_size, ret, "can't write %s: %s", path, strerror(-ret)) : 0;
}

static int read_file(const char *path, void **data, size_t *size)
{
	struct stat st;
	FILE *f = fopen(path, "re");
	int ret = 0;

	*data = NULL;
	if (!f || fstat(fileno(f), &st) < 0) {
		ret = -errno;
		goto err_out;
	}
	*size = (size_t)st.st_size;
	*data = malloc(*size + 1);
	if (!*data || fread(*data, 1, *size, f) != *size) {
		ret = *data ? -EIO : -ENOMEM;
		free(*data);
		*data = NULL;
	} else {
		((char *)*data)[*size] = 0;
	}
err_out:
	if (f)
		fclose(f);
	return ret;
}

/* $CC may hold options ("ccache gcc"). Returns the number of words written to argv. */
static size_t split_words(char *words, char **argv, size_t max)
{
	size_t n = 0;
	char *state;

	for (char *w = strtok_r(words, " \t", &state); w && n < max; w = strtok_r(NULL, " \t", &state))
		argv[n++] = w;
	return n;
}

/* Waits for the compiler; its messages go to a file. Exit status, or -errno when it could not be started. */
static int run(char **argv, const char *messages)
{
	posix_spawn_file_actions_t actions;
	int status = 0, ret;
	pid_t pid;

	ret = posix_spawn_file_actions_init(&actions);
	if (ret)
		return -ret;
	ret = posix_spawn_file_actions_addopen(&actions, 1, messages, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (!ret)
		ret = posix_spawn_file_actions_adddup2(&actions, 1, 2);
	if (!ret)
		ret = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (ret)
		return -ret;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run_compiler(struct build *build, const char *compiler, char *err, size_t err_size)
{
	/* -ffp-contract=off: rules say where a multiply and an add are fused. No -march=native: the plan's cpu line
	 * says what the code needs. */
	static char *const options[] = {"-std=gnu11",
					"-O3",
					"-ffp-contract=off",
					"-fno-math-errno",
					"-mavx2",
					"-mfma",
					"-mno-avx512f",
					"-fPIC",
					"-fvisibility=default",
					"-shared",
					"-nostartfiles",
					"-Wl,--build-id=none",
					"-Wl,-s",
					"-Wl,-z,noexecstack",
					"-o"};
	char *argv[16 + sizeof(options) / sizeof(options[0]) + 3], words[512], first[256] = "", *text;
	size_t n, size;
	int ret;

	snprintf(words, sizeof(words), "%s", compiler);
	n = split_words(words, argv, 16);
	if (!n)
		return codegen_error(err, err_size, -ENOENT, "no C compiler: $CC is empty");
	memcpy(argv + n, options, sizeof(options));
	n += sizeof(options) / sizeof(options[0]);
	argv[n++] = build->object;
	argv[n++] = build->source;
	argv[n] = NULL;
	ret = run(argv, build->messages);
	if (ret < 0)
		return codegen_error(err, err_size, ret, "can't run the C compiler %s (%s): install one or set CC",
				     argv[0], strerror(-ret));
	if (ret == 0)
		return 0;
	if (!read_file(build->messages, (void **)&text, &size)) {
		snprintf(first, sizeof(first), "%.*s", (int)strcspn(text, "\n"), text);
		free(text);
	}
	return codegen_error(err, err_size, -ENOEXEC, "%s failed with status %d: %s", argv[0], ret, first);
}

static const char *choose_compiler(const struct codegen_options *options)
{
	const char *cc = getenv("CC");

	if (options && options->compiler)
		return options->compiler;
	return cc && *cc ? cc : "cc";
}

int codegen_compile(const char *source, size_t size, const struct codegen_options *options, void **code,
		    size_t *code_size, char *err, size_t err_size)
{
	struct build build;
	int ret;

	ret = build_open(&build, options ? options->work_dir : NULL, err, err_size);
	if (ret < 0)
		return ret;
	ret = write_file(build.source, source, size, err, err_size);
	if (!ret)
		ret = run_compiler(&build, choose_compiler(options), err, err_size);
	if (!ret) {
		ret = read_file(build.object, code, code_size);
		if (ret < 0)
			codegen_error(err, err_size, ret, "can't read %s: %s", build.object, strerror(-ret));
	}
	build_close(&build);
	return ret;
}
