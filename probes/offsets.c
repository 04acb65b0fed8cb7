/* offsets.c - field offsets of one library: cache, else calibration in a child process; see offsets.h.
 *
 * The child is what keeps the caller clean: libtorch starts threads, registers handlers and takes a gigabyte of address
 * space, and a calibration op that throws ends only the child. It sends its result after every stage, so what had been
 * found by then stands.
 */
#include "probes/offsets.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "probes/cache.h"
#include "probes/calibrate.h"

/* Raise when the meaning of a stored result changes. */
#define CACHE_VERSION 4u
#define CACHE_LAYOUT ((uint64_t)CACHE_VERSION << 32 | sizeof(struct terra_offsets))

#define CHILD_TIMEOUT_MS 120000

/* What the child sends: as often as it likes, the last whole one counts. */
struct message {
	int32_t code; /* 0 or -errno */
	char text[512];
	struct terra_offsets offsets;
};

static int report(char *err, size_t err_size, int code, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	if (err && err_size)
		vsnprintf(err, err_size, format, arguments);
	va_end(arguments);
	return code;
}

static void set_unknown(struct terra_offsets *out)
{
	memset(out, 0, sizeof(*out));
	memset(out->scalar_type, TERRA_DTYPE_UNKNOWN, sizeof(out->scalar_type));
	out->undefined_type = UINT16_MAX;
	out->scalar.tag_double = out->scalar.tag_int = out->scalar.tag_unsigned = -1;
	out->scalar.tag_complex = out->scalar.tag_bool = -1;
}

/* Runs the stages in order; `after` is called with what is known after each. */
static int calibrate(void *library, struct terra_offsets *out, void (*after)(const struct terra_offsets *, void *),
		     void *arg, char *err, size_t err_size)
{
	static void (*const stages[])(const struct terra_torch_abi *, struct terra_offsets *) = {
		terra_calibrate_types,
		terra_calibrate_autograd,
		terra_calibrate_scalar,
		terra_calibrate_unsigned_scalar,
		terra_calibrate_node,
		terra_calibrate_operators,
	};
	struct terra_torch_abi abi;
	const char *missing;
	int code;

	set_unknown(out);
	code = terra_torch_abi_resolve(library, &abi, &missing);
	if (code)
		return report(err, err_size, code, "the library does not export %s; PyTorch 2.2 or later is needed",
			      missing);
	code = terra_calibrate_tensor(&abi, out);
	if (code)
		return report(err, err_size, code, "the library cannot make a CPU tensor");
	after(out, arg);
	for (size_t i = 0; i < sizeof(stages) / sizeof(stages[0]); i++) {
		stages[i](&abi, out);
		after(out, arg);
	}
	return 0;
}

static void ignore(const struct terra_offsets *offsets, void *arg)
{
}

int terra_offsets_calibrate(void *handle, struct terra_offsets *out, char *err, size_t err_size)
{
	return calibrate(handle, out, ignore, NULL, err, err_size);
}

static void send_message(int fd, const struct message *message)
{
	const char *at = (const char *)message;

	for (size_t left = sizeof(*message); left > 0;) {
		ssize_t n = write(fd, at, left);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(1);
		at += n;
		left -= (size_t)n;
	}
}

static void send_offsets(const struct terra_offsets *offsets, void *arg)
{
	struct message message = {.code = 0, .offsets = *offsets};

	send_message(*(int *)arg, &message);
}

/* The library may print (about a missing device, or an op that threw); none of it is for the user. */
static void be_quiet(void)
{
	struct rlimit no_core = {0, 0};
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
	}
	setrlimit(RLIMIT_CORE, &no_core);
	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
}

static _Noreturn void run_child(const char *path, int fd)
{
	struct message message = {.code = 0};
	void *library;

	be_quiet();
	library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
	if (library) {
		message.code =
			calibrate(library, &message.offsets, send_offsets, &fd, message.text, sizeof(message.text));
	} else {
		message.code = -ELIBACC;
		snprintf(message.text, sizeof(message.text), "%s", dlerror());
	}
	send_message(fd, &message);
	/* No destructors: a library this size has been seen to hang in them. */
	_exit(0);
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Reads until the child closes its end or time is up. Returns whether a whole message came; the last is in *last. */
static bool receive(int fd, struct message *last)
{
	int64_t deadline = now_ms() + CHILD_TIMEOUT_MS;
	struct message next;
	size_t filled = 0;
	bool any = false;

	for (;;) {
		struct pollfd ready = {.fd = fd, .events = POLLIN};
		int64_t left = deadline - now_ms();
		ssize_t n;

		if (left <= 0)
			return any;
		if (poll(&ready, 1, (int)left) <= 0)
			continue;
		n = read(fd, (char *)&next + filled, sizeof(next) - filled);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return any;
		filled += (size_t)n;
		if (filled == sizeof(next)) {
			*last = next;
			filled = 0;
			any = true;
		}
	}
}

static int calibrate_in_child(const char *path, struct terra_offsets *out, char *err, size_t err_size)
{
	struct message message = {.code = 0};
	int fds[2];
	bool any;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return report(err, err_size, -errno, "cannot make a pipe: %s", strerror(errno));
	pid = fork();
	if (pid == 0) {
		close(fds[0]);
		run_child(path, fds[1]);
	}
	close(fds[1]);
	if (pid < 0) {
		int code = -errno;

		close(fds[0]);
		return report(err, err_size, code, "cannot fork: %s", strerror(-code));
	}
	any = receive(fds[0], &message);
	close(fds[0]);
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	if (!any)
		return report(err, err_size, -EIO, "loading %s ended the process that tried it", path);
	if (message.code)
		return report(err, err_size, message.code, "cannot calibrate with %s: %.300s", path, message.text);
	*out = message.offsets;
	return 0;
}

static bool load_cached(const struct terra_cache_key *key, struct terra_offsets *out)
{
	void *data;
	size_t size;
	bool fits;

	if (terra_cache_read("offsets", key, &data, &size))
		return false;
	fits = size == sizeof(*out);
	if (fits)
		memcpy(out, data, sizeof(*out));
	free(data);
	return fits;
}

int terra_offsets_load(const char *libtorch_path, bool use_cache, struct terra_offsets *out, char *err, size_t err_size)
{
	struct terra_cache_key key;
	struct terra_elf elf;
	bool cached;
	int code = terra_elf_open(libtorch_path, &elf);

	if (code)
		return report(err, err_size, code, "cannot read %s: %s", libtorch_path,
			      code == -ENOEXEC ? "not an x86-64 ELF library" : strerror(-code));
	cached = use_cache && terra_cache_key_make(&elf, CACHE_LAYOUT, &key) == 0;
	terra_elf_close(&elf);
	if (cached && load_cached(&key, out))
		return 0;
	code = calibrate_in_child(libtorch_path, out, err, err_size);
	if (code == 0 && cached)
		(void)terra_cache_write("offsets", &key, out, sizeof(*out));
	return code;
}

size_t terra_offsets_missing(const struct terra_offsets *offsets, char *out, size_t size)
{
#define FIELD(field) {#field, offsets->field.known}
	const struct {
		const char *name;
		bool known;
	} fields[] = {
	    FIELD(storage), FIELD(autograd_meta), FIELD(ndim), FIELD(sizes), FIELD(strides), FIELD(storage_offset), FIELD(numel),
	    FIELD(data_type), FIELD(device_type), FIELD(device_index), FIELD(key_set), FIELD(data_ptr), FIELD(nbytes),
	    FIELD(requires_grad), FIELD(grad_fn), FIELD(node_sequence), FIELD(current_node), FIELD(next_sequence),
	    {"names of operators", offsets->operator_definition.known},
	    {"scalars", offsets->scalar.size != 0},
	    {"undefined tensors", offsets->undefined_type != UINT16_MAX}, {"sizes of several dimensions", offsets->inline_dims != 0},
	};
#undef FIELD
	size_t n = 0, at = 0;

	if (size)
		out[0] = '\0';
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		if (fields[i].known)
			continue;
		if (at < size)
			at += (size_t)snprintf(out + at, size - at, "%s%s", n ? ", " : "", fields[i].name);
		n++;
	}
	return n;
}

bool terra_offsets_remark(const struct terra_offsets *offsets, char *out, size_t size)
{
	char missing[256];

	if (terra_offsets_missing(offsets, missing, sizeof(missing)) == 0)
		return false;
	snprintf(out, size, "not found in this libtorch, so that what needs it is marked unreadable: %s", missing);
	return true;
}
