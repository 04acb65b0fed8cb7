/* What a trace's header says about the program and the machine. */
#include "collector/target.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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
		error = terra_target_path(pid, mapped, path, size);
	}
	fclose(maps);
	return error;
}

static bool same_place(const char *a, const char *b)
{
	struct stat one, other;

	return !stat(a, &one) && !stat(b, &other) && one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

int terra_target_path(pid_t pid, const char *path, char *out, size_t size)
{
	char root[64], namespace[64];
	bool ours;

	snprintf(root, sizeof(root), "/proc/%d/root", pid);
	snprintf(namespace, sizeof(namespace), "/proc/%d/ns/mnt", pid);
	/* A process in another mount namespace may have the same root folder, with other file systems below it. */
	ours = same_place(root, "/") && same_place(namespace, "/proc/self/ns/mnt");
	return (size_t)snprintf(out, size, "%s%s", ours ? "" : root, path) < size ? 0 : -ENAMETOOLONG;
}

void terra_target_program(pid_t pid, char *out, size_t size)
{
	char name[64];
	FILE *file;
	size_t n;

	out[0] = 0;
	snprintf(name, sizeof(name), "/proc/%d/cmdline", pid);
	file = fopen(name, "re");
	if (!file)
		return;
	n = fread(out, 1, size - 1, file);
	out[n] = 0;
	fclose(file);
}

static void children_of_thread(pid_t pid, const char *tid, void (*tell)(void *context, pid_t parent, pid_t child),
			       void *context)
{
	char name[320];
	FILE *file;
	pid_t child;

	snprintf(name, sizeof(name), "/proc/%d/task/%s/children", pid, tid);
	file = fopen(name, "re");
	while (file && fscanf(file, "%d", &child) == 1)
		tell(context, pid, child);
	if (file)
		fclose(file);
}

void terra_target_children(pid_t pid, void (*tell)(void *context, pid_t parent, pid_t child), void *context)
{
	char name[64];
	struct dirent *entry;
	DIR *threads;

	snprintf(name, sizeof(name), "/proc/%d/task", pid);
	threads = opendir(name);
	while (threads && (entry = readdir(threads)))
		if (entry->d_name[0] != '.')
			children_of_thread(pid, entry->d_name, tell, context);
	if (threads)
		closedir(threads);
}

static bool in_first_namespace(void)
{
	char name[64];
	ssize_t n = readlink("/proc/self/ns/pid", name, sizeof(name) - 1);

	if (n < 0)
		return false;
	name[n] = 0;
	return !strcmp(name, "pid:[4026531836]"); /* PROC_PID_INIT_INO */
}

/* The value of a line "key:<tab>value" in /proc/PID/status; 0 when there is none. */
static long status_value(pid_t pid, const char *format)
{
	char name[64], line[256];
	long value = 0;
	FILE *file;

	snprintf(name, sizeof(name), "/proc/%d/status", pid);
	file = fopen(name, "re");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, format, &value) == 1)
			break;
	if (file)
		fclose(file);
	return value;
}

/* By a flag (PF_KTHREAD): a program that is ending has no memory either. */
static bool is_kernels(pid_t pid)
{
	char name[64], line[512], *end;
	unsigned int flags = 0;
	FILE *file;

	snprintf(name, sizeof(name), "/proc/%d/stat", pid);
	file = fopen(name, "re");
	/* The name before may hold blanks and brackets. */
	if (file && fgets(line, sizeof(line), file) && (end = strrchr(line, ')')))
		sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags);
	if (file)
		fclose(file);
	return flags & 0x00200000;
}

/* Whether its mappings can be read: what the kernel allows a debugger. */
static int look_inside(pid_t pid, char *err, size_t err_size)
{
	char name[64], byte;
	size_t n = 0;
	FILE *maps;

	snprintf(name, sizeof(name), "/proc/%d/maps", pid);
	maps = fopen(name, "re");
	if (!maps) {
		n = errno;
		snprintf(err, err_size,
			 "process %d may not be looked into (%s): it is another user's or protected, which needs "
			 "CAP_SYS_PTRACE: run terra-trace as root or as that user, or give it the right once with "
			 "`setcap cap_bpf,cap_perfmon,cap_sys_ptrace+ep terra-trace`; a container needs --cap-add SYS_PTRACE",
			 pid, strerror((int)n));
		return -(int)n;
	}
	n = fread(&byte, 1, 1, maps);
	fclose(maps);
	if (n)
		return 0;
	snprintf(err, err_size, "process %d %s", pid, is_kernels(pid) ? "is one of the kernel's own" : "has ended");
	return -ESRCH;
}

int terra_target_check(pid_t pid, char *err, size_t err_size)
{
	long process;

	if (kill(pid, 0) && errno == ESRCH) {
		snprintf(err, err_size, "there is no process %d%s", pid,
			 in_first_namespace() ? "" :
						" here: a container sees its own processes only, unless it is started "
						"with the host's (--pid=host)");
		return -ESRCH;
	}
	process = status_value(pid, "Tgid:\t%ld");
	if (process && process != pid) {
		snprintf(err, err_size, "%d is a thread of process %ld: attach to that", pid, process);
		return -EINVAL;
	}
	if (pid == getpid()) {
		snprintf(err, err_size, "process %d is terra-trace itself", pid);
		return -EINVAL;
	}
	return look_inside(pid, err, err_size);
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

/* What a launcher is told to run: torchrun --nproc-per-node 2 train.py. NULL: nothing that says so. */
static const char *find_script(char *const *words)
{
	for (; *words; words++) {
		const char *dot = strrchr(base_name(*words), '.');

		if (dot && dot != base_name(*words) && !strcmp(dot, ".py"))
			return *words;
	}
	return NULL;
}

char *terra_target_name(char *const *argv)
{
	const char *script = argv[0] ? find_script(argv + 1) : NULL;

	if (!is_python(argv[0]))
		return stem(script ? script : argv[0], false);
	for (int i = 1; argv[i]; i++) {
		const char *word = argv[i];

		if (word[0] != '-')
			return stem(word, false);
		if (!strcmp(word, "-m") && argv[i + 1]) {
			script = find_script(argv + i + 2);
			return script ? stem(script, false) : stem(argv[i + 1], true);
		}
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
