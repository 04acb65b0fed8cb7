/* find.c - where a Python interpreter keeps torch; see find.h.
 *
 * Python's own rules in short (Lib/site.py): an interpreter with a pyvenv.cfg beside or above its folder uses that
 * folder's site-packages, and the base installation's only if the file says so; others use those of their prefix, the
 * user's, and on Debian dist-packages.
 */
#include "probes/find.h"

#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIBRARY "torch/lib/libtorch_cpu.so"

static bool join(char *out, size_t size, const char *format, const char *a, const char *b)
{
	int n = snprintf(out, size, format, a, b);

	return n >= 0 && (size_t)n < size;
}

static bool readable(const char *path)
{
	return access(path, R_OK) == 0;
}

static int give(const char *found, char *path, size_t size)
{
	return join(path, size, "%s%s", found, "") ? 0 : -ENAMETOOLONG;
}

/* Calls `visit` for every entry of a colon-separated list; stops at true. */
static bool each_folder(const char *list, bool (*visit)(const char *folder, void *arg), void *arg)
{
	char folder[PATH_MAX];

	while (list && *list) {
		size_t n = strcspn(list, ":");

		if (n > 0 && n < sizeof(folder)) {
			memcpy(folder, list, n);
			folder[n] = '\0';
			if (visit(folder, arg))
				return true;
		}
		list += n + (list[n] == ':');
	}
	return false;
}

struct found {
	const char *name;
	char path[PATH_MAX];
};

static bool has_program(const char *folder, void *arg)
{
	struct found *found = arg;

	return join(found->path, sizeof(found->path), "%s/%s", folder, found->name) && access(found->path, X_OK) == 0;
}

static bool has_library(const char *folder, void *arg)
{
	struct found *found = arg;

	return join(found->path, sizeof(found->path), "%s/" LIBRARY "%s", folder, "") && readable(found->path);
}

/* An executable by path or through PATH. */
static bool find_program(const char *name, struct found *found)
{
	found->name = name;
	if (strchr(name, '/'))
		return join(found->path, sizeof(found->path), "%s%s", name, "") && access(name, X_OK) == 0;
	return each_folder(getenv("PATH"), has_program, found);
}

/* "#!/path/python3" or "#!/usr/bin/env python3": the interpreter's name. */
static bool script_interpreter(const char *script, char *name, size_t size)
{
	FILE *file = fopen(script, "re");
	char line[PATH_MAX], *at;
	bool is_script;

	if (!file)
		return false;
	is_script = fgets(line, sizeof(line), file) && strncmp(line, "#!", 2) == 0;
	fclose(file);
	if (!is_script)
		return false;
	at = line + 2 + strspn(line + 2, " \t");
	at[strcspn(at, "\r\n")] = '\0';
	if (strncmp(at, "/usr/bin/env ", 13) == 0)
		at += 13 + strspn(at + 13, " \t");
	at[strcspn(at, " \t")] = '\0';
	return *at && join(name, size, "%s%s", at, "");
}

/* Cuts the last component off. */
static bool up(char *path)
{
	char *slash = strrchr(path, '/');

	if (!slash || slash == path)
		return false;
	*slash = '\0';
	return true;
}

/* "3.11" from "python3.11", for the folder of packages; "" when the name does not say. */
static void version_of(const char *program, char *version, size_t size)
{
	const char *base = strrchr(program, '/');
	size_t n;

	base = base ? base + 1 : program;
	version[0] = '\0';
	if (strncmp(base, "python3.", 8) != 0)
		return;
	base += 6;
	n = strspn(base, "0123456789.t");
	if (base[n] == '\0' && n < size)
		memcpy(version, base, n + 1);
}

/* Of several versions the newest; a pattern may also say which. */
static bool best_match(const char *pattern, struct found *found)
{
	const char *newest = NULL;
	glob_t matches;
	bool any;

	if (glob(pattern, 0, NULL, &matches) != 0)
		return false;
	for (size_t i = 0; i < matches.gl_pathc; i++)
		if (!newest || strverscmp(matches.gl_pathv[i], newest) > 0)
			newest = matches.gl_pathv[i];
	any = newest && join(found->path, sizeof(found->path), "%s%s", newest, "");
	globfree(&matches);
	return any && readable(found->path);
}

/* The package folders of one prefix, for one version or any ("*"). */
static bool search_prefix(const char *prefix, const char *version, struct found *found)
{
	static const char *const layouts[] = {
		"%s/lib/python%s/site-packages/" LIBRARY,
		"%s/lib64/python%s/site-packages/" LIBRARY,
		"%s/local/lib/python%s/dist-packages/" LIBRARY,
		"%s/lib/python%s/dist-packages/" LIBRARY,
	};
	char pattern[PATH_MAX];
	const char *number = *version ? version : "3*";

	for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++)
		if (join(pattern, sizeof(pattern), layouts[i], prefix, number) && best_match(pattern, found))
			return true;
	return join(pattern, sizeof(pattern), "%s/lib/python3/dist-packages/" LIBRARY "%s", prefix, "") &&
	       best_match(pattern, found);
}

static bool search_user(const char *version, struct found *found)
{
	const char *base = getenv("PYTHONUSERBASE"), *home = getenv("HOME");
	char prefix[PATH_MAX];

	if (base && *base)
		return search_prefix(base, version, found);
	return home && *home && join(prefix, sizeof(prefix), "%s/.local%s", home, "") &&
	       search_prefix(prefix, version, found);
}

/* Whether pyvenv.cfg lets the base installation's packages in. */
static bool includes_system(const char *config)
{
	FILE *file = fopen(config, "re");
	char line[512];
	bool yes = false;

	if (!file)
		return false;
	while (fgets(line, sizeof(line), file))
		if (strncasecmp(line, "include-system-site-packages", 28) == 0)
			yes = strcasestr(line, "true") != NULL;
	fclose(file);
	return yes;
}

/* The folder that holds `program`, absolute. The program itself may be a link out of it, and stays one. */
static bool folder_of(const char *program, char *folder)
{
	char given[PATH_MAX];

	if (!join(given, sizeof(given), "%s%s", program, ""))
		return false;
	if (!up(given))
		strcpy(given, given[0] == '/' ? "/" : ".");
	return realpath(given, folder) != NULL;
}

/* The folder with pyvenv.cfg: that of the interpreter, or the one above. */
static bool find_venv(const char *python, char *prefix, char *config)
{
	if (!folder_of(python, prefix))
		return false;
	for (int level = 0; level < 2; level++) {
		if (join(config, PATH_MAX, "%s/pyvenv.cfg%s", prefix, "") && readable(config))
			return true;
		if (!up(prefix))
			return false;
	}
	return false;
}

static bool search_interpreter(const char *python, struct found *found)
{
	char prefix[PATH_MAX], config[PATH_MAX], real[PATH_MAX], version[16];

	if (!realpath(python, real))
		return false;
	version_of(real, version, sizeof(version));
	if (find_venv(python, prefix, config)) {
		if (search_prefix(prefix, version, found))
			return true;
		if (!includes_system(config))
			return false;
	}
	if (search_user(version, found))
		return true;
	join(prefix, sizeof(prefix), "%s%s", real, "");
	return up(prefix) && up(prefix) && search_prefix(prefix, version, found);
}

static bool choose_python(const char *python, struct found *program)
{
	const char *venv = getenv("VIRTUAL_ENV");
	char name[PATH_MAX];

	if (!python) {
		if (venv && *venv && join(name, sizeof(name), "%s/bin/python3%s", venv, "") &&
		    find_program(name, program))
			return true;
		return find_program("python3", program) || find_program("python", program);
	}
	if (!find_program(python, program))
		return false;
	return !script_interpreter(program->path, name, sizeof(name)) || find_program(name, program);
}

int terra_find_libtorch(const char *python, char *path, size_t size)
{
	const char *chosen = getenv("TERRA_LIBTORCH");
	struct found program, found;
	int err;

	if (chosen && *chosen) {
		err = give(chosen, path, size);
		return !err && !readable(chosen) ? -errno : err;
	}
	if (each_folder(getenv("PYTHONPATH"), has_library, &found))
		return give(found.path, path, size);
	if (choose_python(python, &program) && search_interpreter(program.path, &found))
		return give(found.path, path, size);
	if (size > 0)
		path[0] = '\0';
	return -ENOENT;
}

bool terra_find_named(const char *named, const char *program, char *path, size_t size)
{
	if (named)
		return (size_t)snprintf(path, size, "%s", named) < size;
	return program[0] && !terra_find_libtorch(program, path, size);
}
