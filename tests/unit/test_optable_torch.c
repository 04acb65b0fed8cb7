/* test_optable_torch.c - the op table of a real libtorch, against its own headers and by calling ops through it.
 *
 * The calls are the proof of the places: each argument is put where the table says, and the result must be right.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "probes/offsets.h"
#include "probes/op.h"
#include "real_torch.h"

static struct terra_op_table *table;

static int load_table(void **state)
{
	char err[512];

	if (!real_torch() || terra_op_table_load(real_torch(), false, &table, err, sizeof(err)) == 0)
		return 0;
	print_error("%s\n", err);
	return -1;
}

static int free_table(void **state)
{
	terra_op_table_free(table);
	return 0;
}

static const struct terra_op *find(const char *name, const char *overload)
{
	return terra_op_table_find(table, name, overload, TERRA_LEVEL_CALL);
}

static void test_size(void **state)
{
	unsigned complete = 0, with_schema = 0;

	REQUIRE_TORCH();
	assert_true(table->n_ops > 5000);
	for (uint32_t i = 0; i < table->n_ops; i++) {
		complete += table->ops[i].complete;
		with_schema += table->ops[i].schema != NULL;
	}
	/* The rest are named tensors (Dimname) and the odd name that occurs as the end of two schemas. */
	assert_true(complete >= table->n_ops * 95 / 100);
	assert_true(with_schema >= table->n_ops * 999 / 1000);
}

static void check_args(const struct terra_op *op, uint8_t ret, const uint8_t *kinds)
{
	assert_non_null(op);
	assert_int_equal(op->ret, ret);
	assert_int_equal(op->complete, 1);
	for (unsigned i = 0; i < op->n_args; i++)
		assert_int_equal(op->args[i].kind, kinds[i]);
	assert_int_equal(kinds[op->n_args], TERRA_KIND_COUNT);
}

#define KINDS(...) ((const uint8_t[]){__VA_ARGS__, TERRA_KIND_COUNT})

static void test_known_ops(void **state)
{
	REQUIRE_TORCH();
	check_args(find("aten::mul", "Tensor"), TERRA_RET_TENSOR, KINDS(TERRA_KIND_TENSOR, TERRA_KIND_TENSOR));
	check_args(find("aten::addcdiv_", ""), TERRA_RET_TENSOR_REF,
		   KINDS(TERRA_KIND_TENSOR, TERRA_KIND_TENSOR, TERRA_KIND_TENSOR, TERRA_KIND_SCALAR));
	assert_int_equal(find("aten::addcdiv_", "")->args[0].is_mutable, 1);
	check_args(find("aten::convolution_backward", ""), TERRA_RET_TENSORS,
		   KINDS(TERRA_KIND_TENSOR, TERRA_KIND_TENSOR, TERRA_KIND_TENSOR, TERRA_KIND_OPT_SYMINT_LIST,
			 TERRA_KIND_SYMINT_LIST, TERRA_KIND_SYMINT_LIST, TERRA_KIND_SYMINT_LIST, TERRA_KIND_BOOL,
			 TERRA_KIND_SYMINT_LIST, TERRA_KIND_SYMINT, TERRA_KIND_BOOL_ARRAY));
	assert_int_equal(find("aten::convolution_backward", "")->n_returns, 3);
	assert_int_equal(find("aten::convolution_backward", "")->args[10].count, 3);
	check_args(find("aten::empty_strided", ""), TERRA_RET_TENSOR,
		   KINDS(TERRA_KIND_SYMINT_LIST, TERRA_KIND_SYMINT_LIST, TERRA_KIND_OPT_DTYPE, TERRA_KIND_OPT_LAYOUT,
			 TERRA_KIND_OPT_DEVICE, TERRA_KIND_OPT_BOOL));
	check_args(find("aten::nll_loss_backward", ""), TERRA_RET_TENSOR,
		   KINDS(TERRA_KIND_TENSOR, TERRA_KIND_TENSOR, TERRA_KIND_TENSOR, TERRA_KIND_OPT_TENSOR, TERRA_KIND_INT,
			 TERRA_KIND_SYMINT, TERRA_KIND_TENSOR));
	check_args(
		find("aten::_foreach_addcdiv_", "ScalarList"), TERRA_RET_VOID,
		KINDS(TERRA_KIND_TENSOR_LIST, TERRA_KIND_TENSOR_LIST, TERRA_KIND_TENSOR_LIST, TERRA_KIND_SCALAR_LIST));
}

static void check_composite(const char *name, const char *overload, unsigned composite)
{
	const struct terra_op *op = find(name, overload), *inner;

	assert_non_null(op);
	if (op->composite != composite)
		print_error("%s.%s\n", name, overload);
	assert_int_equal(op->composite, composite);
	inner = terra_op_table_find(table, name, overload, TERRA_LEVEL_REDISPATCH);
	assert_int_equal(inner->composite, 0);
	assert_int_equal(terra_op_chosen(op, TERRA_LEVELS_OPS), !composite);
	assert_false(terra_op_chosen(inner, TERRA_LEVELS_OPS));
}

/* Of ops whose overloads differ in it, both kinds: the types decide, not the name. */
static void test_composite(void **state)
{
	static const char *const composite[][2] = {
		{ "linear", "" },     { "dropout", "" }, { "reshape", "" },	 { "to", "dtype" },	     { "to", "dtype_layout" },
		{ "matmul", "" },     { "dropout_", "" }, { "matmul", "out" },	 { "layer_norm", "" },	     { "chunk", "" },
		{ "flatten", "using_ints" }, { "conv2d", "" }, { "where", "Scalar" }, { "split", "sizes" }, { "max", "other" },
	};
	static const char *const not_composite[][2] = {
		{ "mul", "Tensor" },	  { "add_", "Tensor" },	     { "_to_copy", "" }, { "empty_strided", "" },
		{ "convolution", "" },	  { "native_dropout", "" }, { "copy_", "" },	 { "where", "self" },
		{ "split", "Tensor" }, { "max", "dim" },		     { "mm", "out" },	 { "_softmax", "" },
	};
	unsigned n = 0;

	REQUIRE_TORCH();
	for (size_t i = 0; i < sizeof(composite) / sizeof(*composite); i++)
		check_composite(composite[i][0], composite[i][1], 1);
	for (size_t i = 0; i < sizeof(not_composite) / sizeof(*not_composite); i++)
		check_composite(not_composite[i][0], not_composite[i][1], 0);
	for (uint32_t i = 0; i < table->n_ops; i++)
		n += table->ops[i].composite;
	assert_in_range(n, 500, 1200);
	print_message("%u composite\n", n);
}

/* ---- against the headers that are installed with the library ---- */

/* The text between quotes behind `key` in a declaration such as: const char* name = "aten::mul"; */
static bool quoted(const char *block, const char *key, char *out, size_t size)
{
	const char *at = strstr(block, key);
	size_t n = 0;

	if (!at)
		return false;
	for (at += strlen(key); *at && !(*at == '"' && at[1] == ';') && n + 1 < size; at++)
		if (*at != '\\' || at[1] == '\\')
			out[n++] = *at;
	out[n] = '\0';
	return true;
}

static const struct terra_op *find_class(const char *class_name)
{
	char start[300];
	int n = snprintf(start, sizeof(start), "_ZN2at4_ops%zu%s4callE", strlen(class_name), class_name);

	for (uint32_t i = 0; i < table->n_ops; i++)
		if (strncmp(table->ops[i].mangled, start, (size_t)n) == 0)
			return &table->ops[i];
	return NULL;
}

static bool starts_with(const char *text, const char *start)
{
	return strncmp(text, start, strlen(start)) == 0;
}

/* The result's C++ type as declared, to what the table should say. */
static bool return_agrees(const char *type, const struct terra_op *op)
{
	/* The tuple's elements, not the parameters behind them. */
	bool refs = strncmp(type + strcspn(type, ",>("), ",at::Tensor &", 13) == 0;

	if (starts_with(type, "at::Tensor &") || starts_with(type, "const at::Tensor &"))
		return op->ret == TERRA_RET_TENSOR_REF && op->has_sret == 0;
	if (starts_with(type, "at::Tensor "))
		return op->ret == TERRA_RET_TENSOR && op->has_sret == 1;
	if (starts_with(type, "void "))
		return op->ret == TERRA_RET_VOID && op->has_sret == 0;
	if (starts_with(type, "::std::vector<at::Tensor>"))
		return op->ret == TERRA_RET_TENSOR_LIST && op->has_sret == 1;
	if (starts_with(type, "::std::tuple<"))
		return op->has_sret == 1 && (op->ret == TERRA_RET_OTHER_SRET ||
					     op->ret == (refs ? TERRA_RET_TENSOR_REFS : TERRA_RET_TENSORS));
	if (starts_with(type, "bool ") || starts_with(type, "int64_t ") || starts_with(type, "double ") ||
	    starts_with(type, "at::ScalarType ") || starts_with(type, "at::QScheme "))
		return op->ret == TERRA_RET_VALUE && op->has_sret == 0;
	return op->ret == TERRA_RET_OTHER_SRET && op->has_sret == 1;
}

struct comparison {
	unsigned ops;
	unsigned without_schema;
	unsigned wrong;
};

static void compare_block(char *block, struct comparison *counts)
{
	char class_name[256], name[256], overload[256], qualified[256];
	const char *type = strstr(block, "using schema = ");
	const struct terra_op *op;

	if (sscanf(block, "%255s", class_name) != 1 || !type || !quoted(block, "* name = \"", name, sizeof(name)) ||
	    !quoted(block, "overload_name = \"", overload, sizeof(overload)))
		return;
	op = find_class(class_name);
	snprintf(qualified, sizeof(qualified), "%s", name);
	counts->ops++;
	if (op && !op->schema) {
		counts->without_schema++;
		return;
	}
	if (op && strcmp(op->name, qualified) == 0 && strcmp(op->overload, overload) == 0 &&
	    return_agrees(type + strlen("using schema = "), op))
		return;
	counts->wrong++;
	print_error("%s: %s.%s in the header, %s.%s (return %d) in the table\n", class_name, name, overload,
		    op ? op->name : "nothing", op ? op->overload : "", op ? op->ret : -1);
}

static void compare_header(const char *path, struct comparison *counts)
{
	static const char separator[] = "struct TORCH_API ";
	static char text[1 << 20];
	FILE *file = fopen(path, "r");
	size_t size;

	assert_non_null(file);
	size = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[size] = '\0';
	for (char *block = strstr(text, separator); block;) {
		char *next;

		block += strlen(separator);
		next = strstr(block, separator);
		if (next)
			*next = '\0';
		compare_block(block, counts);
		block = next;
	}
}

static void test_agrees_with_headers(void **state)
{
	struct comparison counts = {0};
	char folder[PATH_MAX], path[PATH_MAX + 300];
	struct dirent *entry;
	char *lib;
	DIR *dir;

	REQUIRE_TORCH();
	snprintf(folder, sizeof(folder), "%s", real_torch());
	lib = strstr(folder, "/lib/libtorch_cpu.so");
	if (lib)
		strcpy(lib, "/include/ATen/ops");
	dir = opendir(folder);
	if (!dir) {
		print_message("skipped: no headers in %s\n", folder);
		skip();
	}
	while ((entry = readdir(dir))) {
		size_t size = strlen(entry->d_name);

		if (size < 6 || strcmp(entry->d_name + size - 6, "_ops.h") != 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
		compare_header(path, &counts);
	}
	closedir(dir);
	assert_int_equal(counts.wrong, 0);
	assert_true(counts.ops > 2500);
	assert_true(counts.without_schema <= counts.ops / 1000);
}

/* ---- by calling ops ---- */

#define MAX_STACK 32

struct call {
	uint64_t gpr[6];
	uint64_t sse[8];
	uint64_t n_stack;
	uint64_t stack[MAX_STACK];
	uint64_t rax;
};

/* Calls `function` with the registers and stack of *call. */
void test_call(void *function, struct call *call);
__asm__(".text\n"
	".type test_call, @function\n"
	"test_call:\n"
	"	push %rbp\n"
	"	mov %rsp, %rbp\n"
	"	push %rbx\n"
	"	push %r12\n"
	"	mov %rsi, %rbx\n"
	"	mov %rdi, %r12\n"
	"	sub $256, %rsp\n" /* MAX_STACK words; rsp stays a multiple of 16 */
	"	xor %ecx, %ecx\n"
	"1:	cmp 112(%rbx), %rcx\n"
	"	jae 2f\n"
	"	mov 120(%rbx,%rcx,8), %rax\n"
	"	mov %rax, (%rsp,%rcx,8)\n"
	"	inc %rcx\n"
	"	jmp 1b\n"
	"2:	movq 48(%rbx), %xmm0\n"
	"	movq 56(%rbx), %xmm1\n"
	"	movq 64(%rbx), %xmm2\n"
	"	movq 72(%rbx), %xmm3\n"
	"	movq 80(%rbx), %xmm4\n"
	"	movq 88(%rbx), %xmm5\n"
	"	movq 96(%rbx), %xmm6\n"
	"	movq 104(%rbx), %xmm7\n"
	"	mov (%rbx), %rdi\n"
	"	mov 8(%rbx), %rsi\n"
	"	mov 16(%rbx), %rdx\n"
	"	mov 24(%rbx), %rcx\n"
	"	mov 32(%rbx), %r8\n"
	"	mov 40(%rbx), %r9\n"
	"	call *%r12\n"
	"	mov %rax, 376(%rbx)\n"
	"	add $256, %rsp\n"
	"	pop %r12\n"
	"	pop %rbx\n"
	"	pop %rbp\n"
	"	ret\n"
	".size test_call, . - test_call\n");
_Static_assert(offsetof(struct call, n_stack) == 112 && offsetof(struct call, stack) == 120 &&
		       offsetof(struct call, rax) == 376,
	       "test_call's offsets");

/* Everything that the table does not place holds this, so that a wrong place can't be right by chance. */
#define RUBBISH 0xdeadbeefdeadbeefu

struct torch {
	void *library;
	int32_t (*from_blob)(void *, int64_t, const int64_t *, const int64_t *, int64_t, int32_t, int32_t, int32_t,
			     void **);
	int32_t (*get_data_ptr)(void *, void **);
	int32_t (*get_dim)(void *, int64_t *);
	int32_t (*get_strides)(void *, int64_t **);
	int32_t (*get_dtype)(void *, int32_t *);
	int32_t float32, float64;
};

static struct torch torch;
static struct terra_offsets offsets;

static int32_t number(const char *name)
{
	int32_t (*get)(void) = dlsym(torch.library, name);

	return get ? get() : -1;
}

static int load_torch(const char *path)
{
	char err[512];

	CHECK(terra_offsets_load(path, false, &offsets, err, sizeof(err)) == 0);
	torch.library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
	CHECK(torch.library);
	torch.from_blob = dlsym(torch.library, "aoti_torch_create_tensor_from_blob");
	torch.get_data_ptr = dlsym(torch.library, "aoti_torch_get_data_ptr");
	torch.get_dim = dlsym(torch.library, "aoti_torch_get_dim");
	torch.get_strides = dlsym(torch.library, "aoti_torch_get_strides");
	torch.get_dtype = dlsym(torch.library, "aoti_torch_get_dtype");
	CHECK(torch.from_blob && torch.get_data_ptr && torch.get_dim && torch.get_strides && torch.get_dtype);
	torch.float32 = number("aoti_torch_dtype_float32");
	torch.float64 = number("aoti_torch_dtype_float64");
	return 0;
}

/* A contiguous float tensor over `data`. */
static void *tensor(float *data, int64_t ndim, const int64_t *sizes)
{
	int64_t strides[8];
	void *handle = NULL;

	for (int64_t i = ndim - 1; i >= 0; i--)
		strides[i] = i == ndim - 1 ? 1 : strides[i + 1] * sizes[i + 1];
	torch.from_blob(data, ndim, sizes, strides, 0, torch.float32, 0, -1, &handle);
	return handle;
}

static float *data_of(void *handle)
{
	void *data = NULL;

	torch.get_data_ptr(handle, &data);
	return data;
}

static void start(struct call *call)
{
	uint64_t *words = (uint64_t *)call;

	for (size_t i = 0; i < sizeof(*call) / sizeof(*words); i++)
		words[i] = RUBBISH;
	call->n_stack = MAX_STACK;
}

/* Puts the words of argument `i` where the table says. */
static void put(const struct terra_op *op, struct call *call, unsigned i, uint64_t first, uint64_t second,
		uint64_t third)
{
	const struct terra_arg *arg = &op->args[i];
	uint64_t words[3] = {first, second, third};

	if (arg->place == TERRA_PLACE_GPR) {
		memcpy(&call->gpr[arg->index], words, arg->words * 8u);
	} else if (arg->place == TERRA_PLACE_SSE) {
		call->sse[arg->index] = first;
	} else if (arg->place == TERRA_PLACE_GPR_SSE) {
		call->sse[arg->index] = first;
		call->gpr[arg->index2] = second;
	} else if (arg->place == TERRA_PLACE_STACK) {
		memcpy(&call->stack[arg->offset / 8], words, arg->words * 8u);
	}
}

static void put_pointer(const struct terra_op *op, struct call *call, unsigned i, const void *pointer)
{
	put(op, call, i, (uintptr_t)pointer, 0, 0);
}

static void put_list(const struct terra_op *op, struct call *call, unsigned i, const void *data, uint64_t n)
{
	/* The third word is the engaged flag of an optional list; its upper bytes mean nothing. */
	put(op, call, i, (uintptr_t)data, n, (RUBBISH & ~0xffull) | 1);
}

static void put_double(const struct terra_op *op, struct call *call, unsigned i, double value)
{
	uint64_t bits;

	memcpy(&bits, &value, sizeof(bits));
	put(op, call, i, bits, (RUBBISH & ~0xffull) | 1, 0);
}

static void run(const struct terra_op *op, struct call *call, void *results)
{
	if (op->has_sret)
		call->gpr[0] = (uintptr_t)results;
	test_call(dlsym(torch.library, op->mangled), call);
}

static bool near(float a, double b)
{
	return fabs((double)a - b) < 1e-5;
}

static int call_mul(void)
{
	const struct terra_op *op = find("aten::mul", "Tensor");
	float a[] = {2, 3}, b[] = {5, 7};
	void *x = tensor(a, 1, (int64_t[]){2}), *y = tensor(b, 1, (int64_t[]){2}), *result = NULL;
	struct call call;

	start(&call);
	put_pointer(op, &call, 0, x);
	put_pointer(op, &call, 1, y);
	run(op, &call, &result);
	CHECK(data_of(&result)[0] == 10 && data_of(&result)[1] == 21);
	CHECK(call.rax == (uintptr_t)&result);
	return 0;
}

/* In place: the result is the argument's address in rax. */
static int call_mul_(void)
{
	const struct terra_op *op = find("aten::mul_", "Tensor");
	float a[] = {2, 3}, b[] = {5, 7};
	void *x = tensor(a, 1, (int64_t[]){2}), *y = tensor(b, 1, (int64_t[]){2});
	struct call call;

	start(&call);
	put_pointer(op, &call, 0, x);
	put_pointer(op, &call, 1, y);
	run(op, &call, NULL);
	CHECK(a[0] == 10 && a[1] == 21);
	CHECK(call.rax == (uintptr_t)x);
	return 0;
}

/* A string: {length, pointer}. */
static int call_gelu(void)
{
	const struct terra_op *op = find("aten::gelu", "");
	float a[] = {1};
	void *x = tensor(a, 1, (int64_t[]){1}), *exact = NULL, *approximate = NULL;
	struct call call;

	start(&call);
	put_pointer(op, &call, 0, x);
	put(op, &call, 1, 4, (uintptr_t) "none", 0);
	run(op, &call, &exact);
	start(&call);
	put_pointer(op, &call, 0, x);
	put(op, &call, 1, 4, (uintptr_t) "tanh", 0);
	run(op, &call, &approximate);
	CHECK(fabsf(data_of(&exact)[0] - 0.8413447f) < 1e-6f);
	CHECK(fabsf(data_of(&approximate)[0] - 0.8411920f) < 1e-6f);
	return 0;
}

/* Two-byte optionals in a register and on the stack, and optional<Device>. */
static int call_empty_strided(void)
{
	const struct terra_op *op = find("aten::empty_strided", "");
	int64_t sizes[] = {2, 3}, strides[] = {7, 2}, ndim = 0, *got = NULL;
	void *result = NULL;
	struct call call;
	int32_t dtype = -1;

	start(&call);
	put_list(op, &call, 0, sizes, 2);
	put_list(op, &call, 1, strides, 2);
	put(op, &call, 2, (RUBBISH & ~0xffffull) | 0x100 | (uint64_t)torch.float64, 0, 0);
	put(op, &call, 3, (RUBBISH & ~0xffffull), 0, 0);
	put(op, &call, 4, (RUBBISH & ~0xffffffull) | 0x01ff00, 0, 0);
	put(op, &call, 5, (RUBBISH & ~0xffffull) | 0x100, 0, 0);
	run(op, &call, &result);
	torch.get_dim(&result, &ndim);
	torch.get_strides(&result, &got);
	torch.get_dtype(&result, &dtype);
	CHECK(ndim == 2 && got[0] == 7 && got[1] == 2 && dtype == torch.float64);
	return 0;
}

/* An optional list by value on the stack, with arguments in registers behind it. */
static int call_sum(void)
{
	const struct terra_op *op = find("aten::sum", "dim_IntList");
	float a[] = {1, 2, 3, 10, 20, 30};
	void *x = tensor(a, 2, (int64_t[]){2, 3}), *result = NULL;
	int64_t dim = 1, ndim = 0;
	struct call call;

	start(&call);
	put_pointer(op, &call, 0, x);
	put_list(op, &call, 1, &dim, 1);
	put(op, &call, 2, (RUBBISH & ~0xffull) | 1, 0, 0);
	put(op, &call, 3, (RUBBISH & ~0xffffull), 0, 0);
	run(op, &call, &result);
	torch.get_dim(&result, &ndim);
	CHECK(ndim == 2 && data_of(&result)[0] == 6 && data_of(&result)[1] == 60);
	return 0;
}

/* Two optional<double>: the first in xmm0 and a general register, the second on the stack, where the sampling distance
 * they give is used instead of the ratio of the sizes. */
static int call_upsample(void)
{
	const struct terra_op *op = find("aten::upsample_bilinear2d", "");
	float a[] = {0, 1, 2, 3}, *pixels;
	int64_t size[] = {4, 4};
	void *x = tensor(a, 4, (int64_t[]){1, 1, 2, 2}), *result = NULL;
	struct call call;

	/* Row i samples at (i + 0.5) / 4 - 0.5 = -0.375, -0.125, 0.125, 0.375, column j at (j + 0.5) / 1 - 0.5. */
	start(&call);
	put_pointer(op, &call, 0, x);
	put_list(op, &call, 1, size, 2);
	put(op, &call, 2, RUBBISH & ~0xffull, 0, 0);
	put_double(op, &call, 3, 4);
	put_double(op, &call, 4, 1);
	run(op, &call, &result);
	pixels = data_of(&result);
	CHECK(near(pixels[0 * 4 + 1], 1) && near(pixels[1 * 4 + 0], 0));
	CHECK(near(pixels[2 * 4 + 1], 1.25) && near(pixels[3 * 4 + 1], 1.75));
	/* Without the second: columns at (j + 0.5) / 2 - 0.5, from the sizes. */
	start(&call);
	put_pointer(op, &call, 0, x);
	put_list(op, &call, 1, size, 2);
	put(op, &call, 2, RUBBISH & ~0xffull, 0, 0);
	put_double(op, &call, 3, 1);
	put(op, &call, 4, RUBBISH, RUBBISH & ~0xffull, 0);
	run(op, &call, &result);
	pixels = data_of(&result);
	CHECK(near(pixels[0 * 4 + 1], 0.25) && near(pixels[0 * 4 + 2], 0.75) && near(pixels[1 * 4 + 0], 2));
	return 0;
}

/* Eleven arguments over registers and stack, SymInts behind pointers, bool[3], and a tuple in reverse. */
static int call_convolution_backward(void)
{
	const struct terra_op *op = find("aten::convolution_backward", "");
	float grad[] = {2}, input[] = {3}, weight[] = {5};
	int64_t ones[] = {1, 1, 1, 1}, zeros[] = {0, 0}, groups = 1;
	void *handles[3] = {tensor(grad, 4, ones), tensor(input, 4, ones), tensor(weight, 4, ones)},
	     *results[3] = {NULL};
	struct call call;

	start(&call);
	for (unsigned i = 0; i < 3; i++)
		put_pointer(op, &call, i, handles[i]);
	put_list(op, &call, 3, ones, 1);
	put_list(op, &call, 4, ones, 2);
	put_list(op, &call, 5, zeros, 2);
	put_list(op, &call, 6, ones, 2);
	put(op, &call, 7, RUBBISH & ~0xffull, 0, 0);
	put_list(op, &call, 8, zeros, 2);
	put_pointer(op, &call, 9, &groups);
	put(op, &call, 10, (RUBBISH & ~0xffffffull) | 0x010101, 0, 0);
	run(op, &call, results);
	CHECK(data_of(&results[2])[0] == 10 && data_of(&results[1])[0] == 6 && data_of(&results[0])[0] == 2);
	return 0;
}

/* A double in a vector register between pointers, and an empty optional<Generator> behind a pointer. */
static int call_bernoulli(void)
{
	const struct terra_op *op = find("aten::bernoulli", "p");
	float a[8] = {0};
	void *x = tensor(a, 1, (int64_t[]){8}), *result = NULL;
	uint64_t generator[2] = {0, 0};
	struct call call;

	for (int p = 0; p <= 1; p++) {
		start(&call);
		put_pointer(op, &call, 0, x);
		put_double(op, &call, 1, p);
		put_pointer(op, &call, 2, generator);
		run(op, &call, &result);
		for (int i = 0; i < 8; i++)
			CHECK(data_of(&result)[i] == (float)p);
	}
	return 0;
}

static void make_scalar(double value, uint8_t *scalar)
{
	int32_t tag = offsets.scalar.tag_double;

	memset(scalar, 0, offsets.scalar.size);
	memcpy(scalar + offsets.scalar.tag_offset, &tag, sizeof(tag));
	memcpy(scalar + offsets.scalar.value_offset, &value, sizeof(value));
}

static int call_addcdiv_(void)
{
	const struct terra_op *op = find("aten::addcdiv_", "");
	float a[] = {1}, b[] = {6}, c[] = {3};
	void *x = tensor(a, 1, (int64_t[]){1});
	_Alignas(16) uint8_t scalar[64];
	struct call call;

	make_scalar(10, scalar);
	start(&call);
	put_pointer(op, &call, 0, x);
	put_pointer(op, &call, 1, tensor(b, 1, (int64_t[]){1}));
	put_pointer(op, &call, 2, tensor(c, 1, (int64_t[]){1}));
	put_pointer(op, &call, 3, scalar);
	run(op, &call, NULL);
	CHECK(near(a[0], 21));
	CHECK(call.rax == (uintptr_t)x);
	return 0;
}

/* An optional<Scalar> keeps its flag right behind the Scalar. */
static int call_clamp(void)
{
	const struct terra_op *op = find("aten::clamp", "");
	float a[] = {-5, 0, 5};
	void *x = tensor(a, 1, (int64_t[]){3}), *result = NULL;
	_Alignas(16) uint8_t low[80] = {0}, high[80] = {0};
	struct call call;

	make_scalar(-2, low);
	low[offsets.scalar.size] = 1;
	make_scalar(3, high);
	start(&call);
	put_pointer(op, &call, 0, x);
	put_pointer(op, &call, 1, low);
	put_pointer(op, &call, 2, high);
	run(op, &call, &result);
	CHECK(data_of(&result)[0] == -2 && data_of(&result)[2] == 5);
	return 0;
}

/* Out variant with two outputs: a tuple of references through sret, last first. */
static int call_max_out(void)
{
	const struct terra_op *op = find("aten::max", "dim_max");
	float a[] = {1, 9, 4}, values[] = {0};
	int64_t index[] = {0}, one = 1;
	void *max = tensor(values, 1, &one), *max_values = NULL, *results[2] = {NULL};
	struct call call;

	torch.from_blob(index, 1, &one, &one, 0, number("aoti_torch_dtype_int64"), 0, -1, &max_values);
	start(&call);
	put_pointer(op, &call, 0, tensor(a, 1, (int64_t[]){3}));
	put(op, &call, 1, 0, 0, 0);
	put(op, &call, 2, (RUBBISH & ~0xffull) | 1, 0, 0);
	put_pointer(op, &call, 3, max);
	put_pointer(op, &call, 4, max_values);
	run(op, &call, results);
	CHECK(values[0] == 9 && index[0] == 1);
	CHECK(results[1] == max && results[0] == max_values);
	return 0;
}

/* optional<int64_t>: value and flag in two registers. */
static int call_argmax(void)
{
	const struct terra_op *op = find("aten::argmax", "");
	float a[] = {1, 9, 4, 8, 7, 6};
	void *x = tensor(a, 2, (int64_t[]){2, 3}), *result = NULL;
	int64_t ndim = 0;
	struct call call;

	start(&call);
	put_pointer(op, &call, 0, x);
	put(op, &call, 1, 1, (RUBBISH & ~0xffull) | 1, 0);
	put(op, &call, 2, RUBBISH & ~0xffull, 0, 0);
	run(op, &call, &result);
	torch.get_dim(&result, &ndim);
	CHECK(ndim == 1 && ((int64_t *)data_of(&result))[0] == 1 && ((int64_t *)data_of(&result))[1] == 0);
	start(&call);
	put_pointer(op, &call, 0, x);
	put(op, &call, 1, 1, RUBBISH & ~0xffull, 0);
	put(op, &call, 2, RUBBISH & ~0xffull, 0, 0);
	run(op, &call, &result);
	torch.get_dim(&result, &ndim);
	CHECK(ndim == 0 && ((int64_t *)data_of(&result))[0] == 1);
	return 0;
}

/* SymInt and optional<SymInt> behind pointers. */
static int call_slice(void)
{
	const struct terra_op *op = find("aten::slice", "Tensor");
	float a[] = {0, 1, 2, 3, 4, 5, 6, 7};
	void *x = tensor(a, 1, (int64_t[]){8}), *result = NULL;
	int64_t from[] = {3, 1}, to[] = {5, 0}, step = 2, *strides = NULL;
	struct call call;

	start(&call);
	put_pointer(op, &call, 0, x);
	put(op, &call, 1, 0, 0, 0);
	put_pointer(op, &call, 2, from);
	put_pointer(op, &call, 3, to);
	put_pointer(op, &call, 4, &step);
	run(op, &call, &result);
	torch.get_strides(&result, &strides);
	CHECK(data_of(&result) == a + 3 && strides[0] == 2);
	return 0;
}

/* A Storage by value travels as a pointer to the caller's copy. */
static int call_set_storage(void)
{
	const struct terra_op *op = find("aten::set_", "source_Storage");
	float a[] = {1, 2, 3}, b[] = {7, 8};
	void *x = tensor(a, 1, (int64_t[]){3}), *y = tensor(b, 1, (int64_t[]){2});
	void *storage;
	struct call call;

	memcpy(&storage, *(char **)y + offsets.storage.offset, sizeof(storage));
	start(&call);
	put_pointer(op, &call, 0, x);
	put_pointer(op, &call, 1, &storage);
	run(op, &call, NULL);
	CHECK(data_of(x) == b);
	CHECK(call.rax == (uintptr_t)x);
	return 0;
}

static int call_all(const char *path)
{
	static int (*const calls[])(void) = {
		call_mul,
		call_mul_,
		call_gelu,
		call_empty_strided,
		call_sum,
		call_upsample,
		call_convolution_backward,
		call_bernoulli,
		call_addcdiv_,
		call_clamp,
		call_max_out,
		call_argmax,
		call_slice,
		call_set_storage,
	};

	if (load_torch(path))
		return 1;
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		if (calls[i]())
			return 2;
	return 0;
}

static void test_calls(void **state)
{
	REQUIRE_TORCH();
	assert_int_equal(in_child(call_all, real_torch()), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_size),
		cmocka_unit_test(test_known_ops),
		cmocka_unit_test(test_composite),
		cmocka_unit_test(test_agrees_with_headers),
		cmocka_unit_test(test_calls),
	};

	return cmocka_run_group_tests(tests, load_table, free_table);
}
