/* Python stacks on memory images: interpreters that need not be installed, and those that are to be refused.
 *
 * The words that an interpreter publishes of itself were recorded from builds of CPython 3.13.18, 3.14.10 and 3.15.2.
 * The thread, frames, code objects and strings are made here from the offsets in these versions' headers, so nothing of
 * them was executed: test_pystack.c runs the interpreters themselves where they are installed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "collector/pystack.h"
#include "collector/pystack_priv.h"

#define PYSTACK_READ(context, destination, size, address) pystack_read((context), (address), (destination), (size))
#include "collector/pystack_walk.h"

/* clang-format off */
static const uint64_t words_3_13[] = {
	0x30d12f0, 0, 283408, 608, 632, 194984, 7272, 7264, 7344, 7400, 7656, 7640, 7648, 16, 7752, 0, 7768, 7760, 312, 0, 8,
	16, 72, 152, 160, 232, 32, 80, 8, 0, 56, 72, 70, 208, 112, 120, 128, 136, 68, 52, 96, 104, 200, 16, 8, 416, 24, 88,
	168, 32, 24, 16, 40, 24, 16, 48, 32, 40, 24, 16, 32, 16, 24, 40, 16, 32, 64, 32, 16, 40, 240, 200};
static const uint64_t words_3_14[] = {
	0x30e0af0, 0, 316616, 784, 808, 225864, 7280, 7272, 7344, 7360, 7408, 7688, 7672, 7680, 16, 7784, 0, 7800, 7792, 7992,
	0, 832, 0, 8, 16, 72, 152, 160, 232, 32, 88, 8, 0, 56, 80, 74, 64, 0, 216, 112, 120, 128, 136, 68, 52, 96, 104, 208,
	0, 16, 8, 416, 24, 88, 168, 40, 32, 16, 40, 24, 16, 200, 24, 40, 32, 48, 32, 40, 24, 16, 32, 16, 24, 40, 16, 32, 64,
	32, 16, 40, 264, 192, 160, 24, 72, 67, 0, 8, 24, 304, 8076, 0, 4, 512};
static const uint64_t words_3_15[] = {
	0x30f02f0, 0, 346568, 912, 936, 226240, 7272, 7264, 7336, 7352, 7400, 7592, 7576, 7584, 16, 7736, 0, 7752, 7744, 7944,
	0, 888, 0, 8, 16, 72, 80, 88, 96, 176, 184, 256, 32, 36, 40, 136, 288, 0, 88, 8, 0, 56, 80, 74, 64, 0, 216, 112, 120,
	128, 136, 68, 52, 96, 104, 208, 0, 16, 8, 424, 24, 88, 168, 32, 288, 944, 888, 40, 32, 16, 40, 24, 16, 200, 24, 40, 32,
	48, 32, 40, 24, 16, 32, 16, 24, 40, 16, 32, 64, 32, 16, 40, 56, 176, 112};

/* What the headers say; where 3.11 and 3.12 publish nothing, there are no words. */
static const struct image {
	const char *name;
	const uint64_t *words;
	size_t n_words;
	uint32_t version;
	unsigned main, threads; /* _PyRuntime.interpreters.main, PyInterpreterState.threads.head */
	unsigned next, current, cframe, native; /* PyThreadState; cframe: place in _PyCFrame plus 1, 0: there is none */
	unsigned code, previous, instr, owner; /* _PyInterpreterFrame */
	unsigned first_line, filename, name_, qualname, linetable, bytecode; /* PyCodeObject */
	unsigned ascii; /* where an ASCII string's characters begin */
	unsigned tag; /* in a frame's pointer to its code */
	unsigned frame_size;
} images[] = {
	{"3.11", NULL, 0, 0x030b02f0, 48, 16, 8, 56, 9, 160, 32, 48, 56, 69, 72, 112, 120, 128, 136, 184, 48, 0, 80},
	{"3.12", NULL, 0, 0x030c01f0, 48, 72, 8, 56, 1, 144, 0, 8, 56, 70, 68, 112, 120, 128, 136, 192, 40, 0, 80},
	{"3.13", words_3_13, sizeof(words_3_13), 0x030d12f0, 640, 7344,
	 8, 72, 0, 160, 0, 8, 56, 70, 68, 112, 120, 128, 136, 200, 40, 0, 80},
	{"3.14", words_3_14, sizeof(words_3_14), 0x030e0af0, 816, 7344,
	 8, 72, 0, 160, 0, 8, 56, 74, 68, 112, 120, 128, 136, 208, 40, 1, 88},
	{"3.15", words_3_15, sizeof(words_3_15), 0x030f02f0, 944, 7336,
	 8, 72, 0, 184, 0, 8, 56, 74, 68, 112, 120, 128, 136, 208, 40, 1, 88},
};
/* clang-format on */

/* What is changed in an image before it is looked at. */
enum flaw {
	SOUND,
	FREE_THREADED,
	NO_COOKIE,
	OTHER_MINOR,  /* a version that no table has */
	OTHER_WORDS,  /* the words are another version's than the interpreter is */
	OUT_OF_RANGE, /* a place behind what a walk reads */
	SHRUNK,	      /* a structure that ends before what is said to lie in it */
	WRONG_TYPE,   /* the outermost frame has no code object */
	ENDLESS,      /* a frame that is its own caller */
};

/* ---- in the child: the image ---- */

static unsigned char *library_symbol(void *library, const char *name)
{
	unsigned char *symbol = dlsym(library, name);

	if (!symbol)
		_exit(3);
	return symbol;
}

static void put(unsigned char *object, size_t offset, const void *pointer)
{
	memcpy(object + offset, &pointer, sizeof(pointer));
}

static void put_number(unsigned char *object, size_t offset, uint64_t number)
{
	memcpy(object + offset, &number, sizeof(number));
}

static unsigned char *new_object(void)
{
	unsigned char *object = calloc(1, 16384);

	if (!object)
		_exit(4);
	return object;
}

static unsigned char *new_string(const struct image *image, void *library, const char *text)
{
	unsigned char *object = new_object();

	put(object, 8, library_symbol(library, "PyUnicode_Type"));
	put_number(object, 16, strlen(text));
	put_number(object, 32, 1 << 2 | 1 << 5 | 1 << 6); /* one byte a character, compact, ASCII */
	strcpy((char *)object + image->ascii, text);
	return object;
}

static unsigned char *new_code(const struct image *image, void *library, const char *function)
{
	static const uint8_t table[] = {0x80 | 11 << 3 | 1, 0, 0}; /* two units, in the line behind the first */
	unsigned char *code = new_object(), *bytes = new_object();
	const uint32_t first_line = 40;

	put(bytes, 8, library_symbol(library, "PyBytes_Type"));
	put_number(bytes, 16, sizeof(table));
	memcpy(bytes + 32, table, sizeof(table));
	put(code, 8, library_symbol(library, "PyCode_Type"));
	memcpy(code + image->first_line, &first_line, sizeof(first_line));
	put(code, image->filename, new_string(image, library, "/image.py"));
	put(code, image->name_, new_string(image, library, function));
	put(code, image->qualname, new_string(image, library, function));
	put(code, image->linetable, bytes);
	return code;
}

static unsigned char *new_frame(const struct image *image, unsigned char *code, const void *caller, unsigned char owner)
{
	unsigned char *frame = new_object();

	put_number(frame, image->code, code ? (uint64_t)(uintptr_t)code | image->tag : image->tag);
	put(frame, image->previous, caller);
	put(frame, image->instr, code ? code + image->bytecode + 2 : NULL);
	frame[image->owner] = owner;
	return frame;
}

/* `inner`, a frame of the interpreter itself, `outer`. */
static unsigned char *new_stack(const struct image *image, void *library, enum flaw flaw)
{
	unsigned char *code = new_code(image, library, "outer"), *outer = new_frame(image, code, NULL, 0), *native;

	if (flaw == WRONG_TYPE)
		put(code, 8, library_symbol(library, "PyBytes_Type"));
	if (flaw == ENDLESS)
		put(outer, image->previous, outer);
	native = new_frame(image, NULL, outer, 3);
	return new_frame(image, new_code(image, library, "inner"), native, 0);
}

static void replace_words(const struct image *image, unsigned char *runtime, uint64_t old, uint64_t new)
{
	for (size_t i = 2; i < image->n_words / 8; i++)
		if (image->words[i] == old)
			put_number(runtime, 8 + 8 * i, new);
}

static void fill_published(const struct image *image, unsigned char *runtime, enum flaw flaw)
{
	if (!image->words)
		return;
	if (flaw != NO_COOKIE)
		memcpy(runtime, "xdebugpy", 8);
	memcpy(runtime + 8, image->words, image->n_words);
	if (flaw == FREE_THREADED)
		put_number(runtime, 16, 1);
	if (flaw == OTHER_MINOR)
		put_number(runtime, 8, 0x037f00f0);
	if (flaw == OTHER_WORDS)
		put_number(runtime, 8, image->version ^ 0x00030000);
	if (flaw == OUT_OF_RANGE)
		replace_words(image, runtime, image->frame_size, 1000);
	if (flaw == OUT_OF_RANGE)
		replace_words(image, runtime, image->instr, 248);
	if (flaw == SHRUNK)
		replace_words(image, runtime, image->frame_size, image->instr - 8);
}

static void fill_image(const struct image *image, enum flaw flaw)
{
	void *library = dlopen(TERRA_FIXTURE_DIR "/libpython_image.so", RTLD_NOW);
	unsigned char *runtime, *interpreter = new_object(), *thread = new_object(), *other = new_object(),
		      *holder = new_object(), *frame;

	if (!library)
		_exit(2);
	runtime = library_symbol(library, "_PyRuntime");
	fill_published(image, runtime, flaw);
	put_number(library_symbol(library, "Py_Version"), 0, flaw == OTHER_MINOR ? 0x037f00f0 : image->version);
	frame = new_stack(image, library, flaw);
	if (image->cframe)
		put(holder, image->cframe - 1, frame);
	put(thread, image->current, image->cframe ? holder : frame);
	put_number(thread, image->native, (uint64_t)getpid());
	put(other, image->next, thread); /* a thread that is gone, first in the list */
	put_number(other, image->native, 1);
	put(interpreter, image->threads, other);
	put(runtime, image->main, interpreter);
}

/* ---- in the test ---- */

static pid_t start_image(const struct image *image, enum flaw flaw)
{
	char byte = 0;
	int ready[2];
	pid_t pid;

	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* where the test fails */
		fill_image(image, flaw);
		if (write(ready[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	return pid;
}

static void end_image(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void expect_function(struct pystack_names *names, const struct pystack_entry *entry, const char *function)
{
	struct terra_frame frame;

	assert_int_equal(pystack_names_resolve(names, entry, &frame), 0);
	assert_string_equal(frame.file, "/image.py");
	assert_string_equal(frame.function, function);
	assert_int_equal(frame.line, 41);
}

static void expect_stack(pid_t pid, const struct pystack_layout *layout)
{
	struct pystack_names *names = pystack_names_new(pid, layout);
	struct pystack_entry entries[4];
	struct pystack_process process;
	struct pystack_scratch scratch;
	uint64_t frame;
	int n = 0;

	pystack_process_open(pid, &process);
	frame = pystack_first_frame(layout, &process, pystack_find_thread(layout, &process, (uint64_t)pid));
	while (frame && n < 3) {
		int got = pystack_step(layout, &process, &scratch, &frame, &entries[n]);

		assert_true(got >= 0);
		n += got;
	}
	assert_int_equal(n, 2);
	expect_function(names, &entries[0], "inner");
	expect_function(names, &entries[1], "outer");
	pystack_names_free(names);
	pystack_process_close(&process);
}

static int load_image(const struct image *image, enum flaw flaw, struct pystack_layout *layout, char *err, size_t size)
{
	pid_t pid = start_image(image, flaw);
	int error = pystack_layout_load(pid, layout, err, size);

	if (!error)
		expect_stack(pid, layout);
	end_image(pid);
	return error;
}

#define N_IMAGES (sizeof(images) / sizeof(*images))

static void test_sound_images(void **state)
{
	struct pystack_layout layout;
	char err[256] = "";

	for (size_t i = 0; i < N_IMAGES; i++) {
		int error = load_image(&images[i], SOUND, &layout, err, sizeof(err));

		if (error)
			print_error("%s: %s\n", images[i].name, err);
		assert_int_equal(error, 0);
		assert_int_equal(layout.version, images[i].version);
	}
}

static void expect_refused(const struct image *image, enum flaw flaw, int error, const char *reason)
{
	struct pystack_layout layout;
	char err[256] = "";

	assert_int_equal(load_image(image, flaw, &layout, err, sizeof(err)), error);
	if (!strstr(err, reason))
		print_error("%s: %s, not %s\n", image->name, err, reason);
	assert_non_null(strstr(err, reason));
}

static void test_refused(void **state)
{
	for (size_t i = 0; i < N_IMAGES; i++) {
		expect_refused(&images[i], WRONG_TYPE, -EAGAIN, "no stack that makes sense");
		expect_refused(&images[i], ENDLESS, -EAGAIN, "no stack that makes sense");
		expect_refused(&images[i], OTHER_MINOR, -ENOTSUP, "Python 3.127 publishes");
		if (!images[i].words)
			continue;
		expect_refused(&images[i], FREE_THREADED, -ENOTSUP, "free-threaded Python is not supported");
		expect_refused(&images[i], NO_COOKIE, -ENOTSUP, "publishes no offsets");
		expect_refused(&images[i], OTHER_WORDS, -ENOTSUP, "publishes are not known");
		expect_refused(&images[i], OUT_OF_RANGE, -ENOTSUP, "out of range");
		expect_refused(&images[i], SHRUNK, -ENOTSUP, "out of range");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sound_images),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
