/* test_plan.c - plan files: what is written is read, damage is refused, code is loaded only where it belongs. */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graphopt/plan_internal.h"
#include "graphopt/plan_ops.h"
#include "tests/unit/plan_sample.h"

#define CODE "not code, but bytes with \0 and \xff in them"

static char folder[] = "/tmp/terra-plan-XXXXXX";
static char path[64];
static char err[256];

static int make_folder(void **state)
{
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/a.plan", folder);
	return 0;
}

static int remove_folder(void **state)
{
	unlink(path);
	return rmdir(folder);
}

static void assert_same_plan(const struct terra_plan *a, const struct terra_plan *b)
{
	uint32_t i;

	assert_string_equal(a->build_id, b->build_id);
	assert_string_equal(a->cpu, b->cpu);
	assert_string_equal(a->cpu_vendor, b->cpu_vendor);
	assert_string_equal(a->source, b->source);
	assert_int_equal(a->threads, b->threads);
	assert_int_equal(a->n_passive, b->n_passive);
	assert_int_equal(a->n_lists, b->n_lists);
	assert_int_equal(a->n_imports, b->n_imports);
	assert_int_equal(a->n_regions, b->n_regions);
	assert_int_equal(a->n_replaces, b->n_replaces);
	for (i = 0; i < a->n_passive; i++)
		assert_string_equal(a->passive[i], b->passive[i]);
	for (i = 0; i < a->n_lists; i++)
		assert_string_equal(a->lists[i], b->lists[i]);
	for (i = 0; i < a->n_imports; i++)
		assert_string_equal(a->imports[i], b->imports[i]);
	for (i = 0; i < a->n_regions; i++) {
		assert_int_equal(plan_region_compare(&a->regions[i], &b->regions[i]), 0);
		assert_string_equal(a->regions[i].name, b->regions[i].name);
		assert_string_equal(a->regions[i].kernel, b->regions[i].kernel);
		assert_int_equal(a->regions[i].id, b->regions[i].id);
		assert_int_equal(a->regions[i].fallback, b->regions[i].fallback);
		assert_true(a->regions[i].gain == b->regions[i].gain);
		assert_true(a->regions[i].eager_ns == b->regions[i].eager_ns);
		assert_true(a->regions[i].fused_ns == b->regions[i].fused_ns);
		assert_int_equal(a->regions[i].numel, b->regions[i].numel);
	}
	for (i = 0; i < a->n_replaces; i++) {
		assert_string_equal(a->replaces[i].op, b->replaces[i].op);
		assert_string_equal(a->replaces[i].form, b->replaces[i].form);
		assert_string_equal(a->replaces[i].kernel, b->replaces[i].kernel);
		assert_int_equal(!a->replaces[i].shape, !b->replaces[i].shape);
		if (a->replaces[i].shape)
			assert_string_equal(a->replaces[i].shape, b->replaces[i].shape);
	}
	assert_int_equal(a->code_size, b->code_size);
	assert_memory_equal(a->code, b->code, a->code_size);
}

static void test_round_trip(void **state)
{
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE)), *back;
	struct stat st;

	assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(terra_plan_read(path, false, &back, err, sizeof(err)), 0);
	assert_same_plan(plan, back);
	assert_int_equal(back->regions[0].n_inputs, 4);
	assert_int_equal(back->regions[0].n_scalars, 8);
	assert_int_equal(back->regions[1].n_inputs, 2);
	assert_null(back->regions[0].fn);
	terra_plan_free(plan);
	terra_plan_free(back);
}

/* A program's locale with decimal commas changes neither what is written nor what is read. */
static void test_locale(void **state)
{
	static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE"};
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE)), *back;
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (setlocale(LC_ALL, names[i]))
			break;
	if (i == sizeof(names) / sizeof(names[0]))
		print_message("no locale with decimal commas here: tested in the C locale alone\n");
	assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), 0);
	assert_int_equal(terra_plan_read(path, false, &back, err, sizeof(err)), 0);
	setlocale(LC_ALL, "C");
	assert_true(back->regions[0].gain == 2.375);
	terra_plan_free(plan);
	terra_plan_free(back);
}

static void test_every_truncation(void **state)
{
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE)), *back;
	uint8_t *bytes, *cut;
	size_t size, n;

	assert_int_equal(plan_encode(plan, &bytes, &size, err, sizeof(err)), 0);
	for (n = 0; n < size; n++) {
		cut = malloc(n + 1); /* its own block, so that a sanitizer sees a read past the cut */
		memcpy(cut, bytes, n);
		err[0] = '\0';
		assert_int_not_equal(plan_decode(cut, n, &back, err, sizeof(err)), 0);
		assert_null(back);
		assert_true(err[0]);
		free(cut);
	}
	free(bytes);
	terra_plan_free(plan);
}

static void test_every_bit_flip(void **state)
{
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE)), *back;
	uint8_t *bytes;
	size_t size, i;
	int bit;

	assert_int_equal(plan_encode(plan, &bytes, &size, err, sizeof(err)), 0);
	for (i = 0; i < size; i++)
		for (bit = 0; bit < 8; bit++) {
			bytes[i] ^= (uint8_t)(1 << bit);
			if (!plan_decode(bytes, size, &back, err, sizeof(err)))
				fail_msg("accepted with bit %d of byte %zu flipped", bit, i);
			bytes[i] ^= (uint8_t)(1 << bit);
		}
	assert_int_equal(plan_decode(bytes, size, &back, err, sizeof(err)), 0);
	terra_plan_free(back);
	free(bytes);
	terra_plan_free(plan);
}

static void test_permissions(void **state)
{
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE)), *back;

	assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), 0);
	chmod(path, 0620);
	assert_int_equal(terra_plan_read(path, false, &back, err, sizeof(err)), -EPERM);
	assert_non_null(strstr(err, "chmod"));
	chmod(path, 0602);
	assert_int_equal(terra_plan_read(path, false, &back, err, sizeof(err)), -EPERM);
	chmod(path, 0644);
	assert_int_equal(terra_plan_read(path, false, &back, err, sizeof(err)), 0);
	terra_plan_free(back);
	if (!geteuid()) { /* only root can make a file of someone else's */
		assert_int_equal(chown(path, 65534, 65534), 0);
		assert_int_equal(terra_plan_read(path, false, &back, err, sizeof(err)), -EPERM);
		assert_non_null(strstr(err, "65534"));
		assert_int_equal(terra_plan_read(path, true, &back, err, sizeof(err)), 0);
		terra_plan_free(back);
	} else {
		print_message("not root: a foreign owner was not tested\n");
	}
	terra_plan_free(plan);
}

static void test_not_plans(void **state)
{
	struct terra_plan *back;
	char fifo[80];

	assert_int_equal(terra_plan_read("/nonexistent/a.plan", false, &back, err, sizeof(err)), -ENOENT);
	assert_int_equal(terra_plan_read(folder, false, &back, err, sizeof(err)), -EINVAL);
	assert_int_equal(terra_plan_read("/proc/self/exe", true, &back, err, sizeof(err)), -EINVAL);
	assert_non_null(strstr(err, "not a plan"));
	snprintf(fifo, sizeof(fifo), "%s/fifo", folder);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	assert_int_equal(terra_plan_read(fifo, false, &back, err, sizeof(err)), -EINVAL);
	unlink(fifo);
}

static void test_other_version(void **state)
{
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE)), *back;
	uint8_t *bytes;
	size_t size;

	assert_int_equal(plan_encode(plan, &bytes, &size, err, sizeof(err)), 0);
	bytes[8] = TERRA_PLAN_VERSION + 1;
	assert_int_equal(plan_decode(bytes, size, &back, err, sizeof(err)), -EPROTONOSUPPORT);
	assert_non_null(strstr(err, "version 2"));
	free(bytes);
	terra_plan_free(plan);
}

/* A write that can't finish leaves the old file as it was and no temporary one. */
static void test_failed_write(void **state)
{
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE));
	char inside[96];

	assert_int_equal(terra_plan_write(plan, "/nonexistent/a.plan", err, sizeof(err)), -ENOENT);
	snprintf(inside, sizeof(inside), "%s/folder", folder);
	assert_int_equal(mkdir(inside, 0700), 0);
	assert_int_equal(terra_plan_write(plan, inside, err, sizeof(err)), -EISDIR);
	assert_int_equal(rmdir(inside), 0); /* and remove_folder fails if a temporary file is left */
	terra_plan_free(plan);
}

struct bad_region {
	const char *lines[4];
	const char *reason;
};

static const struct bad_region bad_regions[] = {
    {{"aten::mul.Tensor i0 v0"}, "has not run"},
    {{"aten::mul.Tensor i0 s", "aten::exp v1"}, "has not run"},
    {{"aten::mul.Tensor i1 s"}, "skips"},
    {{"aten::mul.Tensor i0 i2"}, "skips"},
    {{"aten::mul.Tensor i0 b0"}, "two letters"},
    {{"aten::mul.Tensor i0 r0"}, "two letters"},
    {{"aten::mul.Tensor i0 l0"}, "malformed"},
    {{"aten::mul.Tensor i0 f0"}, "malformed"},
    {{"aten::mul.Tensor i0 r"}, "malformed"},
    {{"aten::add.Tensor i0 b1 #1", "aten::softmax v0 l"}, "broadcasts"},
    {{"aten::mul.Tensor i0 i00"}, "malformed"},
    {{"aten::mul.Tensor i0 i-1"}, "malformed"},
    {{"aten::mul.Tensor i0 i99999999999"}, "malformed"},
    {{"aten::mul.Tensor i0 x"}, "malformed"},
    {{"aten::mul.Tensor i0 s0"}, "malformed"},
    {{"aten::mul.Tensor i0 --"}, "malformed"},
    {{"aten::mul.Tensor i0 #"}, "malformed"},
    {{"aten::mul.Tensor i0 #1e"}, "malformed"},
    {{"aten::mul.Tensor i0 #0x10"}, "malformed"},
    {{"aten::mul.Tensor i0 #\"a"}, "malformed"},
    {{"aten::mul.Tensor i0 #\"\\n\""}, "malformed"},
    {{"aten::mul"}, "arguments"},
    {{"mul i0"}, "op name"},
    {{"aten:mul i0"}, "op name"},
    {{"aten::mul. i0"}, "op name"},
    {{"aten::mul.a.b i0"}, "op name"},
    {{"aten::mul_.Tensor b0 s"}, "in place"},
    {{"aten::mul_.Tensor s s"}, "in place"},
    {{"aten::mul_.Tensor i0 s", "aten::exp i0"}, "old name"},
    {{"aten::exp i0", "aten::mul_.Tensor v0 s", "aten::exp v0"}, "old name"},
    {{"aten::exp_ i0", "aten::exp_ i0"}, "old name"},
};

static void test_bad_regions(void **state)
{
	struct terra_plan_region *region;
	struct terra_plan *plan;
	size_t i, j;

	for (i = 0; i < sizeof(bad_regions) / sizeof(bad_regions[0]); i++) {
		plan = sample_plan(CODE, sizeof(CODE));
		region = sample_region(plan, "bad", "terra_bad");
		for (j = 0; j < 4 && bad_regions[i].lines[j]; j++)
			sample_op(region, bad_regions[i].lines[j]);
		assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), -EINVAL);
		if (!strstr(err, bad_regions[i].reason))
			fail_msg("case %zu: \"%s\" does not say \"%s\"", i, err, bad_regions[i].reason);
		terra_plan_free(plan);
	}
}

static void test_limits(void **state)
{
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE));
	struct terra_plan_region *region = sample_region(plan, "large", "terra_large");
	char line[64];
	int i;

	for (i = 0; i < TERRA_PLAN_MAX_INPUTS; i++) {
		snprintf(line, sizeof(line), "aten::exp i%d", i);
		sample_op(region, line);
	}
	assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), 0);
	sample_op(region, "aten::exp i32");
	assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), -EINVAL);
	region->n_ops--;
	free(region->ops[region->n_ops].op);
	free(region->ops[region->n_ops].arg[0]);
	while (region->n_ops < TERRA_PLAN_MAX_OPS)
		sample_op(region, "aten::mul.Tensor i0 s");
	assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), 0);
	sample_op(region, "aten::exp i0");
	assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), -EINVAL);
	terra_plan_free(plan);
}

static void test_shapes_of_products(void **state)
{
	static const char *const good[] = {"512x50257x512,n512,t512,2,512x512b", "2x3x4,t2,n3,1,2x3",
					   "16777216x2x2,n2,n2,1024,1x1"};
	static const char *const bad[] = {
	    "", "512", "512x50257x512,n512,t512", "512x50257x512,n512,t512,0,64x64", "512x50257x512,n512,t512,1025,64x64",
	    "512x50257x512,n511,t512,2,64x64", "512x50257x512,n512,n512,2,64x64", "1x3x4,n4,n3,1,1x1", "2x3x4,x4,n3,1,1x1",
	    "2x3x4,n4,n3,1,1x1 ", "2x3x4,n4,n3,01,1x1", "-2x3x4,n4,n3,1,1x1", "2x3x4n4,n3,1,1x1", "16777217x2x2,n2,n2,1,1x1",
	    "99999999999999999999x2x2,n2,n2,1,1x1", "2x3x4,n4,n3,1", "2x3x4,n4,n3,1,", "2x3x4,n4,n3,1,1", "2x3x4,n4,n3,1,0x1",
	    "2x3x4,n4,n3,1,3x1", "2x3x4,n4,n3,1,1x4", "2x3x4,n4,n3,1,1x1c", "2x3x4,n4,n3,1,1x1bb", "2x3x4,n4,n3,1,1xb",
	    "600x600x4,n4,n600,1,513x1b", "600x600x4,n4,n600,1,1x513b"};
	struct terra_sgemm_shape shape;
	char text[128];

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_true(terra_plan_sgemm_shape(good[i], &shape));
		terra_plan_sgemm_text(&shape, text, sizeof(text));
		assert_string_equal(text, good[i]);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (terra_plan_sgemm_shape(bad[i], &shape))
			fail_msg("taken for a shape: \"%s\"", bad[i]);
	assert_true(terra_plan_sgemm_shape("513x50257x512,n512,t512,2,512x512", &shape));
	assert_int_equal(terra_plan_sgemm_tiles(&shape), 2 * 99);
}

/* A shape belongs to the one form that has shapes. */
static void test_shapes_where_they_belong(void **state)
{
	static const char code[] = "code";
	struct terra_plan *plan = sample_plan(code, sizeof(code));
	char *shape = plan->replaces[1].shape;

	assert_int_equal(plan_check(plan, err, sizeof(err)), 0);
	plan->replaces[1].shape = NULL;
	assert_int_equal(plan_check(plan, err, sizeof(err)), -EINVAL);
	plan->replaces[0].shape = shape;
	plan->replaces[1].shape = shape;
	assert_int_equal(plan_check(plan, err, sizeof(err)), -EINVAL);
	plan->replaces[0].shape = NULL;
	shape[0] = 'x';
	assert_int_equal(plan_check(plan, err, sizeof(err)), -EINVAL);
	terra_plan_free(plan);
}

static void test_duplicates(void **state)
{
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE));

	sample_op(sample_region(plan, "again", "terra_again"), "aten::sqrt i0");
	assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), -EINVAL);
	assert_non_null(strstr(err, "the same"));
	sample_op(&plan->regions[3], "aten::exp v0");
	assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), 0);
	plan->regions[3].id = 1;
	assert_int_equal(terra_plan_write(plan, path, err, sizeof(err)), -EINVAL);
	assert_non_null(strstr(err, "number 1"));
	terra_plan_free(plan);
}

static void test_in_place_names(void **state)
{
	assert_true(terra_plan_op_in_place("aten::mul_.Tensor"));
	assert_true(terra_plan_op_in_place("aten::relu_"));
	assert_true(terra_plan_op_in_place("aten::__iand__.Scalar"));
	assert_true(terra_plan_op_in_place("aten::_foreach_add_.Scalar"));
	assert_false(terra_plan_op_in_place("aten::mul.Tensor_"));
	assert_false(terra_plan_op_in_place("aten::__and__.Scalar"));
	assert_false(terra_plan_op_in_place("aten::mul.Tensor"));
}

/* ---- linking ---- */

static const char kernel_source[] = "#include \"graphopt/plan.h\"\n"
				    "#define K(name) void name(const struct terra_kernel_args *a, long b, long e) {"
				    " for (; b < e; b++) ((float *)a->result[0])[b] = (float)(a->scalar[0] + "
				    "((unsigned long (*)(const char *))a->import[0])(\"abc\")); }\n"
				    "K(terra_k0)\nK(terra_k1)\nK(terra_k2)\n"
				    "void terra_r0(void) {}\n";

static void *compile(size_t *size)
{
	char source[80], object[80], command[512];
	FILE *file;
	void *code;

	snprintf(source, sizeof(source), "%s/k.c", folder);
	snprintf(object, sizeof(object), "%s/k.so", folder);
	file = fopen(source, "w");
	assert_non_null(file);
	fputs(kernel_source, file);
	fclose(file);
	snprintf(command, sizeof(command), "${CC:-cc} -O1 -w -shared -fPIC -I%s -o %s %s", TERRA_SOURCE_DIR, object,
		 source);
	assert_int_equal(system(command), 0);
	file = fopen(object, "r");
	assert_non_null(file);
	fseek(file, 0, SEEK_END);
	*size = (size_t)ftell(file);
	rewind(file);
	code = malloc(*size);
	assert_int_equal(fread(code, 1, *size, file), *size);
	fclose(file);
	unlink(source);
	unlink(object);
	return code;
}

static void assert_kernel_runs(const struct terra_plan *plan)
{
	float out[2] = {0};
	void *result[1] = {out};
	double scalar[1] = {40};
	struct terra_kernel_args args = {.result = result, .scalar = scalar, .import = plan->import_table};

	plan->regions[0].fn(&args, 0, 2);
	assert_true(out[0] == 43 && out[1] == 43);
}

static void test_link(void **state)
{
	void *libc = dlopen("libc.so.6", RTLD_NOW);
	struct terra_plan *plans[3];
	size_t size, i;
	void *code = compile(&size);
	int fds = dup(0);

	close(fds);
	for (i = 0; i < 3; i++) { /* three at once: each is loaded for itself */
		plans[i] = sample_plan(code, size);
		if (terra_plan_link(plans[i], libc, err, sizeof(err)))
			fail_msg("%s", err);
		assert_kernel_runs(plans[i]);
	}
	assert_ptr_not_equal(plans[0]->regions[0].fn, plans[1]->regions[0].fn);
	assert_ptr_not_equal(plans[1]->regions[0].fn, plans[2]->regions[0].fn);
	assert_non_null(plans[0]->replaces[0].fn);
	assert_int_equal(terra_plan_link(plans[0], libc, err, sizeof(err)), 0);
	assert_kernel_runs(plans[0]);
	for (i = 0; i < 3; i++)
		terra_plan_free(plans[i]);
	i = (size_t)dup(0);
	close((int)i);
	assert_int_equal(i, fds); /* no descriptor is kept */
	free(code);
	dlclose(libc);
}

static void assert_link_fails(struct terra_plan *plan, void *libtorch, const char *reason)
{
	assert_int_not_equal(terra_plan_link(plan, libtorch, err, sizeof(err)), 0);
	if (!strstr(err, reason))
		fail_msg("\"%s\" does not say \"%s\"", err, reason);
	assert_null(plan->handle);
	assert_null(plan->import_table);
	assert_null(plan->regions[0].fn);
}

static void test_link_refuses(void **state)
{
	void *libc = dlopen("libc.so.6", RTLD_NOW);
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE));
	size_t size;
	void *code = compile(&size);

	assert_link_fails(plan, libc, "not a shared object");
	free(plan->code);
	plan->code = code;
	plan->code_size = size / 2;
	assert_link_fails(plan, libc, "not a shared object");
	plan->code_size = size;
	strcpy(plan->regions[1].kernel, "system"); /* exists, but in a library that the object depends on */
	assert_link_fails(plan, libc, "system");
	strcpy(plan->regions[1].kernel, "terra_kX");
	assert_link_fails(plan, libc, "terra_kX");
	strcpy(plan->regions[1].kernel, "terra_k1");
	strcpy(plan->imports[0], "strlem");
	assert_link_fails(plan, libc, "strlem");
	strcpy(plan->imports[0], "strlen");
	free(plan->cpu);
	plan->cpu = sample_text("avx2 capability=AVX2");
	assert_link_fails(plan, libc, "capability");
	terra_plan_free(plan);
	dlclose(libc);
}

/* ---- the environment ---- */

static void set_cpu(struct terra_plan *plan, const char *cpu)
{
	free(plan->cpu);
	plan->cpu = sample_text(cpu);
}

static long cpuinfo_number(const char *name)
{
	FILE *file = fopen("/proc/cpuinfo", "r");
	char line[512];
	long number = -1;

	assert_non_null(file);
	while (number < 0 && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == '\t')
			number = strtol(strchr(line, ':') + 1, NULL, 10);
	fclose(file);
	return number;
}

/* A plan whose kernels have the vendor's functions built in is for one model, and not for a library with other settings. */
static void assert_model_as_here(struct terra_plan *plan, const char *build_id)
{
	char here[64];

	snprintf(here, sizeof(here), "avx capability=AVX2 model=%ld.%ld.%ld", cpuinfo_number("cpu family"),
		 cpuinfo_number("model\t"), cpuinfo_number("stepping"));
	set_cpu(plan, here);
	assert_null(terra_plan_mismatch(plan, build_id));
	setenv("MKL_CBWR", "COMPATIBLE", 1);
	assert_non_null(strstr(terra_plan_mismatch(plan, build_id), "settings"));
	set_cpu(plan, "avx");
	assert_null(terra_plan_mismatch(plan, build_id));
	unsetenv("MKL_CBWR");
	set_cpu(plan, "model=1.2.3");
	assert_non_null(strstr(terra_plan_mismatch(plan, build_id), "another model"));
	set_cpu(plan, "model=");
	assert_non_null(strstr(terra_plan_mismatch(plan, build_id), "another model"));
}

static const char *vendor_here(void)
{
	static char vendor[64];
	char line[256];
	FILE *file = fopen("/proc/cpuinfo", "r");

	assert_non_null(file);
	while (fgets(line, sizeof(line), file) && sscanf(line, "vendor_id : %63s", vendor) != 1)
		continue;
	fclose(file);
	return vendor;
}

/* Every feature that the kernel lists for this CPU is found, and every one it does not list is missed. */
static void assert_features_as_listed(struct terra_plan *plan)
{
	static const char *const names[] = {"sse4_1",	"sse4_2",   "popcnt",	"fma",	   "avx",
					    "f16c",	"avx2",	    "bmi1",	"bmi2",	   "avx512f",
					    "avx512dq", "avx512cd", "avx512bw", "avx512vl"};
	char line[8192], word[32];
	FILE *file = fopen("/proc/cpuinfo", "r");
	size_t i;

	assert_non_null(file);
	while (fgets(line, sizeof(line), file) && strncmp(line, "flags", 5))
		continue;
	fclose(file);
	line[strcspn(line, "\n")] = ' ';
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(word, sizeof(word), " %s ", names[i]);
		set_cpu(plan, names[i]);
		assert_int_equal(!terra_plan_mismatch(plan, plan->build_id), !!strstr(line, word));
	}
}

static void test_mismatch(void **state)
{
	struct terra_plan *plan = sample_plan(CODE, sizeof(CODE));
	const char *build_id = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

	assert_non_null(strstr(terra_plan_mismatch(plan, "c0ffee"), "another build"));
	assert_non_null(strstr(terra_plan_mismatch(plan, NULL), "another build"));
	strcpy(plan->cpu_vendor, "OtherVendor");
	assert_non_null(strstr(terra_plan_mismatch(plan, build_id), "vendor"));
	free(plan->cpu_vendor);
	plan->cpu_vendor = sample_text(vendor_here());
	assert_null(terra_plan_mismatch(plan, build_id));
	set_cpu(plan, "  capability=NONE  ");
	assert_null(terra_plan_mismatch(plan, build_id));
	assert_model_as_here(plan, build_id);
	set_cpu(plan, "no_such_feature");
	assert_non_null(strstr(terra_plan_mismatch(plan, build_id), "does not know"));
	assert_features_as_listed(plan);
	terra_plan_free(plan);
}

static void test_install_path(void **state)
{
	char a[256], b[256], link[96];

	setenv("XDG_CACHE_HOME", "/cache", 1);
	assert_int_equal(terra_plan_install_path("/proc/self/exe", "c0ffee", a, sizeof(a)), 0);
	assert_int_equal(strncmp(a, "/cache/terra/plans/", 19), 0);
	assert_int_equal(strlen(a), 19 + 16 + 5);
	snprintf(link, sizeof(link), "%s/link", folder);
	assert_int_equal(symlink("/proc/self/exe", link), 0);
	assert_int_equal(terra_plan_install_path(link, "c0ffee", b, sizeof(b)), 0);
	assert_string_equal(a, b);
	unlink(link);
	assert_int_equal(terra_plan_install_path("/proc/self/exe", "c0ffef", b, sizeof(b)), 0);
	assert_string_not_equal(a, b);
	assert_int_equal(terra_plan_install_path("/etc/passwd", "c0ffee", b, sizeof(b)), 0);
	assert_string_not_equal(a, b);
	assert_int_equal(terra_plan_install_path("/etc/passwd", "c0ffee", b, 20), -ENAMETOOLONG);
	assert_int_equal(terra_plan_install_path("/nonexistent", "c0ffee", b, sizeof(b)), -ENOENT);
	unsetenv("XDG_CACHE_HOME");
	setenv("HOME", "/home/someone", 1);
	assert_int_equal(terra_plan_install_path("/etc/passwd", "c0ffee", b, sizeof(b)), 0);
	assert_int_equal(strncmp(b, "/home/someone/.cache/terra/plans/", 33), 0);
	unsetenv("HOME");
	assert_int_equal(terra_plan_install_path("/etc/passwd", "c0ffee", b, sizeof(b)), -ENOENT);
}

static void test_crc(void **state)
{
	assert_int_equal(plan_crc32c("123456789", 9), 0xe3069283); /* the check value of CRC-32C */
	assert_int_equal(plan_crc32c("", 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_crc),
	    cmocka_unit_test(test_round_trip),
	    cmocka_unit_test(test_locale),
	    cmocka_unit_test(test_every_truncation),
	    cmocka_unit_test(test_every_bit_flip),
	    cmocka_unit_test(test_permissions),
	    cmocka_unit_test(test_not_plans),
	    cmocka_unit_test(test_other_version),
	    cmocka_unit_test(test_failed_write),
	    cmocka_unit_test(test_bad_regions),
	    cmocka_unit_test(test_limits),
	    cmocka_unit_test(test_shapes_of_products),
	    cmocka_unit_test(test_shapes_where_they_belong),
	    cmocka_unit_test(test_duplicates),
	    cmocka_unit_test(test_in_place_names),
	    cmocka_unit_test(test_link),
	    cmocka_unit_test(test_link_refuses),
	    cmocka_unit_test(test_mismatch),
	    cmocka_unit_test(test_install_path),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
