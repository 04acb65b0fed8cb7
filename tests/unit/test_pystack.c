/* Python stacks: location tables by hand, real stacks of a live interpreter in another process and in this one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dlfcn.h>
#include <fcntl.h>
#include <glob.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "collector/pystack.h"
#include "collector/pystack_priv.h"

#define PYSTACK_READ(context, destination, size, address) pystack_read((context), (address), (destination), (size))
#include "collector/pystack_walk.h"

/* The table of PEP 626: head byte 0x80 | kind << 3 | (code units - 1), then what the kind needs. */
static const uint8_t table[] = {
	0x80 | 10 << 3 | 1, 4,	  9,	      /* bytes 0-3: same line, columns only */
	0x80 | 11 << 3 | 0, 4,	  9,	      /* 4-5: next line */
	0x80 | 3 << 3 | 7,  0x12,	      /* 6-21: short form, same line */
	0x80 | 15 << 3 | 0,		      /* 22-23: no line */
	0x80 | 13 << 3 | 2, 0x50, 0x03,	      /* 24-29: signed delta (0x10 | 3 << 6) / 2 = +104 */
	0x80 | 14 << 3 | 0, 0x05, 1,	2, 3, /* 30-31: long form, delta -2 */
};

static void test_line(void **state)
{
	assert_int_equal(pystack_line(table, sizeof(table), 10, 0), 10);
	assert_int_equal(pystack_line(table, sizeof(table), 10, 3), 10);
	assert_int_equal(pystack_line(table, sizeof(table), 10, 4), 11);
	assert_int_equal(pystack_line(table, sizeof(table), 10, 21), 11);
	assert_int_equal(pystack_line(table, sizeof(table), 10, 22), 0);
	assert_int_equal(pystack_line(table, sizeof(table), 10, 24), 115);
	assert_int_equal(pystack_line(table, sizeof(table), 10, 30), 113);
	assert_int_equal(pystack_line(table, sizeof(table), 10, 32), 0);
	assert_int_equal(pystack_line(table, 0, 10, 0), 0);
}

/* Cut anywhere, a table gives a line or none, and is not read behind its end (the sanitizer build watches). */
static void test_line_cut(void **state)
{
	for (size_t size = 0; size < sizeof(table); size++) {
		uint8_t *copy = malloc(size + !size);

		memcpy(copy, table, size);
		for (uint32_t offset = 0; offset < 40; offset += 2)
			assert_true(pystack_line(copy, size, 10, offset) < 200);
		free(copy);
	}
}

/* A program that sits three calls deep, below a generator and a comprehension's C call, and says when it is there. */
#define INNER "in\xc3\xb1" "er" /* not ASCII */

/* clang-format off */
static const char program[] =
	"import sys\n"
	"def " INNER "(n):\n"
	"    sys.stdin.readline(print('ready', flush=True) or -1)\n"
	"    # one line: it says that it is there, and waits there\n"
	"    return n\n"
	"class Model:\n"
	"    def forward(self, x):\n"
	"        return [y for y in map(" INNER ", x)]\n"
	"def steps():\n"
	"    while True:\n"
	"        yield Model().forward(range(1))\n"
	"def main():\n"
	"    next(\n"
	"        steps())\n"
	"exec(compile('\\n' * 99 + 'main()', 'caf\xc3\xa9/\xe2\x82\xac.py', 'exec'))\n";
/* clang-format on */

/* What PyTorch calls a module by, and a model whose module is being called when it says that it is there; after each line that
 * it reads the model is another. The classes differ in how instances have their attributes. */
/* clang-format off */
static const char modules_program[] =
	"import sys\n"
	"exec(compile('''\n"
	"class Module:\n"
	"    def __init__(self):\n"
	"        super().__setattr__('training', True)\n"
	"        super().__setattr__('_modules', {})\n"
	"    def _wrapped_call_impl(self, *args, **kwargs):\n"
	"        return self.forward(*args, **kwargs)\n"
	"    __call__ = _wrapped_call_impl\n"
	"''', '/x/torch/nn/modules/module.py', 'exec'))\n"
	"class List(Module): pass\n"
	"class Wait(Module):\n"
	"    def forward(self, x):\n"
	"        sys.stdin.readline(print('ready', flush=True) or -1)\n"
	"class Layer(Module):\n"
	"    def forward(self, x):\n"
	"        self.held._modules['wait'](x)\n"
	"class Net(Module):\n"
	"    def forward(self, x):\n"
	"        self._modules['layers']._modules['1'](x)\n"
	"def net(dicts, many):\n"
	"    out = Net(); layers = List(); wait = Wait()\n"
	"    out._modules.update(none=None, layers=layers)\n"
	"    for i in range(many): layers._modules[str(i)] = Layer()\n"
	"    for layer in layers._modules.values():\n"
	"        layer.held = List()\n"
	"        layer.held._modules['wait'] = wait\n"
	"        layer._modules['up'] = out\n"
	"    out.layer, out.wait = layers._modules['1'], wait\n"
	"    layers._modules['1']._modules['\xc3\xa4'] = layers._modules['1'].held\n"
	"    if dicts:\n"
	"        for module in (out, layers, wait, *layers._modules.values()): module.__dict__\n"
	"    return out\n"
	"values = net(False, 2)\n"
	"values(0)\n"			      /* Net.layers.1.\u00e4.wait */
	"dicts = net(True, 60)\n"
	"dicts(0)\n"			      /* likewise */
	"dicts._modules['layers']._modules['0']._modules['first'] = dicts.wait\n"
	"del dicts.layer._modules['\xc3\xa4']\n"
	"dicts(0)\n"			      /* moved */
	"dicts._modules['layers']._modules['0']._modules.clear()\n"
	"dicts(0)\n";			      /* held by nobody that is a module */
/* clang-format on */

static const char *const module_paths[] = { "Net.layers.1.\xc3\xa4.wait", "Net.layers.1.\xc3\xa4.wait",
					    "Net.layers.0.first", "Net.layers.1" };

struct child {
	pid_t pid;
	FILE *in, *out;
};

static bool start_program(const char *python, const char *text, struct child *child)
{
	int to[2], from[2];
	char word[16] = "";

	assert_int_equal(pipe2(to, O_CLOEXEC), 0);
	assert_int_equal(pipe2(from, O_CLOEXEC), 0);
	child->pid = fork();
	if (!child->pid) {
		dup2(to[0], 0);
		dup2(from[1], 1);
		execlp(python, python, "-X", "utf8", "-S", "-E", "-c", text, (char *)NULL);
		_exit(127);
	}
	close(to[0]);
	close(from[1]);
	child->in = fdopen(to[1], "w");
	child->out = fdopen(from[0], "r");
	return fgets(word, sizeof(word), child->out) && !strcmp(word, "ready\n");
}

static bool start_child(const char *python, struct child *child)
{
	return start_program(python, program, child);
}

static void end_child(struct child *child)
{
	int status;

	fclose(child->in);
	fclose(child->out);
	waitpid(child->pid, &status, 0);
}

static uint32_t walk(pid_t pid, const struct pystack_layout *layout, struct pystack_entry *entries)
{
	struct pystack_process process;
	struct pystack_scratch scratch;
	uint32_t n = 0;
	uint64_t frame;

	pystack_process_open(pid, &process);
	frame = pystack_first_frame(layout, &process, pystack_find_thread(layout, &process, (uint64_t)pid));
	while (frame && n < PYSTACK_MAX_FRAMES) {
		int got = pystack_step(layout, &process, &scratch, &frame, &entries[n]);

		assert_true(got >= 0);
		n += (uint32_t)got;
	}
	pystack_process_close(&process);
	return n;
}

static void expect_frame(struct pystack_names *names, const struct pystack_entry *entry, const char *file,
			 const char *function, int line)
{
	struct terra_frame frame;

	assert_int_equal(pystack_names_resolve(names, entry, &frame), 0);
	assert_string_equal(frame.file, file);
	assert_string_equal(frame.function, function);
	assert_int_equal(frame.line, line);
}

/* Frame by frame what the source says. 3.12 and later inline comprehensions into their function. */
static void check_child_stack(pid_t pid, const struct pystack_layout *layout)
{
	struct pystack_names *names = pystack_names_new(pid, layout);
	struct pystack_entry entries[PYSTACK_MAX_FRAMES];
	uint32_t n = walk(pid, layout, entries), i = 0;

	assert_non_null(names);
	assert_int_equal(n, layout->version >> 16 < 0x030c ? 7 : 6);
	expect_frame(names, &entries[i++], "<string>", INNER, 3);
	if (layout->version >> 16 < 0x030c)
		expect_frame(names, &entries[i++], "<string>", "Model.forward.<locals>.<listcomp>", 8);
	expect_frame(names, &entries[i++], "<string>", "Model.forward", 8);
	expect_frame(names, &entries[i++], "<string>", "steps", 11);
	expect_frame(names, &entries[i++], "<string>", "main", 13);
	expect_frame(names, &entries[i++], "caf\xc3\xa9/\xe2\x82\xac.py", "<module>", 100);
	expect_frame(names, &entries[i], "<string>", "<module>", 15);
	/* The same entries again come from the cache. */
	expect_frame(names, &entries[0], "<string>", INNER, 3);
	assert_int_equal(pystack_names_missing(names), 0);
	/* A code object whose memory holds another by now. */
	entries[0].check++;
	expect_frame(names, &entries[0], "?", "?", 0);
	assert_int_equal(pystack_names_missing(names), 1);
	pystack_names_free(names);
}

static const char *module_of(struct pystack_names *names, const struct pystack_entry *entries, uint32_t n)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return pystack_names_module(names, entries, n, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
}

/* There is none for a while after an index was made, when another is needed. */
static void expect_module(struct pystack_names *names, const struct pystack_entry *entries, uint32_t n, const char *path)
{
	const char *found = NULL;

	for (int i = 0; i < 100 && !found; i++) {
		found = module_of(names, entries, n);
		if (!found)
			usleep(20000);
	}
	assert_non_null(found);
	assert_string_equal(found, path);
}

static void check_modules(const char *python)
{
	struct pystack_entry entries[PYSTACK_MAX_FRAMES + 1];
	struct pystack_layout layout;
	struct pystack_names *names;
	char word[16], err[256];
	struct child child;
	uint32_t n;

	assert_true(start_program(python, modules_program, &child));
	assert_int_equal(pystack_layout_load(child.pid, &layout, err, sizeof(err)), 0);
	names = pystack_names_new(child.pid, &layout);
	for (size_t i = 0; i < sizeof(module_paths) / sizeof(module_paths[0]); i++) {
		n = walk(child.pid, &layout, entries);
		expect_module(names, entries, n, module_paths[i]);
		/* Where the stack's outer end is not known, neither is the path. */
		entries[n] = (struct pystack_entry){ 0 };
		assert_null(module_of(names, entries, n + 1));
		assert_true(pystack_names_modules_remark(names, err, sizeof(err)));
		fputs("\n", child.in);
		fflush(child.in);
		if (i + 1 < sizeof(module_paths) / sizeof(module_paths[0]))
			assert_non_null(fgets(word, sizeof(word), child.out));
	}
	pystack_names_free(names);
	end_child(&child);
}

/* A program in which own_stack() of the library says what stack it was called from. */
static void check_own_stack(const char *python)
{
	static const char source[] = "import ctypes\n"
				     "def deep(n):\n"
				     "    if n: return deep(n - 1)\n"
				     "    out = ctypes.create_string_buffer(400)\n"
				     "    ctypes.CDLL('" TERRA_FIXTURE_DIR "/libpystack_self.so').own_stack(out, 400)\n"
				     "    print(out.value.decode())\n"
				     "deep(2)\n";
	char command[2048], line[400] = "";
	FILE *stream;

#ifdef __SANITIZE_ADDRESS__
	return; /* a sanitizer's library can't be loaded into a program without it */
#endif
	snprintf(command, sizeof(command), "%s -S -E -c \"%s\"", python, source);
	stream = popen(command, "r");
	assert_non_null(stream);
	assert_non_null(fgets(line, sizeof(line), stream));
	pclose(stream);
	assert_string_equal(line, "deep:5 deep:3 deep:3 <module>:7 \n");
}

static void check_interpreter(const char *python)
{
	struct pystack_layout layout;
	struct child child;
	char err[256] = "";
	int error;

	assert_true(start_child(python, &child));
	error = pystack_layout_load(child.pid, &layout, err, sizeof(err));
	if (error)
		print_message("%s: %s\n", python, err);
	assert_int_equal(error, 0);
	print_message("%s is Python 3.%u.%u\n", python, layout.version >> 16 & 0xff, layout.version >> 8 & 0xff);
	check_child_stack(child.pid, &layout);
	end_child(&child);
	check_modules(python);
	check_own_stack(python);
}

/* Those of pyenv and those that tools/setup --versions fetches. */
static void find_pythons(const char *name, glob_t *found)
{
	const char *pyenv = getenv("PYENV_ROOT"), *cache = getenv("TERRA_CACHE"), *home = getenv("HOME");
	char pattern[512];

	snprintf(pattern, sizeof(pattern), "%s%s/versions/*/bin/%s", pyenv ? pyenv : home ? home : "",
		 pyenv ? "" : "/.pyenv", name);
	glob(pattern, 0, NULL, found);
	snprintf(pattern, sizeof(pattern), "%s%s/pythons/*/bin/%s", cache ? cache : home ? home : "",
		 cache ? "" : "/.cache/terra", name);
	glob(pattern, GLOB_APPEND, NULL, found);
}

/* Every interpreter of that name: PATH's and all others. */
static void check_python(const char *name)
{
	glob_t found = {0};
	char command[128];
	size_t n;

	snprintf(command, sizeof(command), "%s -c '' 2>/dev/null", name);
	n = system(command) == 0;
	if (n)
		check_interpreter(name);
	find_pythons(name, &found);
	n += found.gl_pathc;
	for (size_t i = 0; i < found.gl_pathc; i++)
		check_interpreter(found.gl_pathv[i]);
	globfree(&found);
	if (!n) {
		print_message("no %s here\n", name);
		skip();
	}
}

static void test_python3(void **state)
{
	check_interpreter("python3");
}

static void test_python311(void **state)
{
	check_python("python3.11");
}

static void test_python312(void **state)
{
	check_python("python3.12");
}

static void test_python313(void **state)
{
	check_python("python3.13");
}

static void test_python314(void **state)
{
	check_python("python3.14");
}

static void test_python315(void **state)
{
	check_python("python3.15");
}

static void test_not_python(void **state)
{
	struct pystack_layout layout;
	char err[256] = "";
	int to[2];
	pid_t pid;

	assert_int_equal(pipe(to), 0);
	pid = fork();
	if (!pid) {
		dup2(to[0], 0);
		close(to[1]);
		execlp("cat", "cat", (char *)NULL);
		_exit(127);
	}
	assert_int_equal(pystack_layout_load(pid, &layout, err, sizeof(err)), -ENOENT);
	assert_string_equal(err, "no Python interpreter with exported symbols is mapped");
	close(to[0]);
	close(to[1]);
	waitpid(pid, NULL, 0);
	assert_int_equal(pystack_layout_load(pid, &layout, err, sizeof(err)), -ENOENT);
	assert_non_null(strstr(err, "cannot read /proc/"));
}

/* In process: libpython is loaded here and calls back into this test from Python code. */
static struct pystack_layout own_layout;
static struct pystack_entry own_entries[PYSTACK_MAX_FRAMES];
static uint32_t own_n;
static bool own_truncated;

__attribute__((visibility("default"))) void record_own_stack(int max);

void record_own_stack(int max)
{
	assert_int_equal(pystack_layout_load(0, &own_layout, NULL, 0), 0);
	own_n = pystack_self(&own_layout, own_entries, (uint32_t)max, &own_truncated);
}

/* The interpreter leaves memory behind at its end, which is not ours to judge. */
__attribute__((weak)) void __lsan_disable(void);
__attribute__((weak)) void __lsan_enable(void);

static void *load_libpython(void)
{
	FILE *stream = popen("python3 -c 'import sysconfig as s; print(s.get_config_var(\"LIBDIR\") + \"/\" + "
			     "s.get_config_var(\"INSTSONAME\"))' 2>/dev/null",
			     "r");
	char path[4096] = "";

	if (!stream || !fgets(path, sizeof(path), stream))
		path[0] = 0;
	if (stream)
		pclose(stream);
	path[strcspn(path, "\n")] = 0;
	return path[0] ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
}

static void run_own(int (*run)(const char *), int max)
{
	char source[512];

	snprintf(source, sizeof(source),
		 "import ctypes\n"
		 "def deep(n):\n"
		 "    if n: return deep(n - 1)\n"
		 "    ctypes.CFUNCTYPE(None, ctypes.c_int)(%lld)(%d)\n"
		 "deep(3)\n",
		 (long long)(intptr_t)record_own_stack, max);
	assert_int_equal(run(source), 0);
}

static void test_own(void **state)
{
	void *library;
	struct pystack_names *names;
	void (*initialize)(int);
	int (*run)(const char *);

	if (__lsan_disable)
		__lsan_disable();
	library = load_libpython();
	if (!library) {
		print_message("python3 has no shared library here\n");
		skip();
	}
	*(void **)&initialize = dlsym(library, "Py_InitializeEx");
	*(void **)&run = dlsym(library, "PyRun_SimpleString");
	assert_non_null(initialize);
	assert_non_null(run);
	initialize(0);
	run_own(run, PYSTACK_MAX_FRAMES);
	assert_int_equal(own_n, 5);
	assert_false(own_truncated);
	names = pystack_names_new(0, &own_layout);
	expect_frame(names, &own_entries[0], "<string>", "deep", 4);
	expect_frame(names, &own_entries[3], "<string>", "deep", 3);
	expect_frame(names, &own_entries[4], "<string>", "<module>", 5);
	pystack_names_free(names);
	run_own(run, 2);
	assert_int_equal(own_n, 2);
	assert_true(own_truncated);
	/* The stack is gone now: nothing to check a layout against, and nothing to walk. */
	assert_int_equal(pystack_self(&own_layout, own_entries, PYSTACK_MAX_FRAMES, &own_truncated), 0);
	assert_int_equal(pystack_layout_load(0, &own_layout, NULL, 0), -EAGAIN);
	if (__lsan_enable)
		__lsan_enable();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_line),	  cmocka_unit_test(test_line_cut),  cmocka_unit_test(test_not_python),
		cmocka_unit_test(test_python3),	  cmocka_unit_test(test_python311), cmocka_unit_test(test_python312),
		cmocka_unit_test(test_python313), cmocka_unit_test(test_python314),
		cmocka_unit_test(test_python315), cmocka_unit_test(test_own),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
