/* test_optable.c - op tables of libraries made up here: names, returns, the cache, and damaged files. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "elf_sample.h"
#include "probes/elf_file.h"
#include "probes/list_ops.h"
#include "probes/optable.h"
#include "probes/schema.h"

#define MUL "_ZN2at4_ops10mul_Tensor4callERKNS_6TensorES4_"
#define MUL_REDISPATCH "_ZN2at4_ops10mul_Tensor10redispatchEN3c1014DispatchKeySetERKNS_6TensorES6_"
#define MUL_ "_ZN2at4_ops11mul__Tensor4callERNS_6TensorERKS2_"
#define REAL "_ZN2at4_ops4real4callERKNS_6TensorE"
#define RESIZE_ "_ZN2at4_ops7resize_4callERKNS_6TensorEN3c108ArrayRefINS5_6SymIntEEESt8optionalINS5_12MemoryFormatEE"
#define FOREACH_ADD_ "_ZN2at4_ops20_foreach_add__Scalar4callEN3c108ArrayRefINS_6TensorEEERKNS2_6ScalarE"
#define MAX_OUT "_ZN2at4_ops11max_dim_max4callERKNS_6TensorElbRS2_S5_"

static char folder[] = "/tmp/terra-optable-XXXXXX";
static char library[64];

static struct terra_op_table *table_of(struct elf_sample *sample)
{
	struct terra_op_table *table = NULL;

	sample_finish(sample);
	assert_int_equal(terra_op_table_from_memory(sample->data, sample->size, &table), 0);
	return table;
}

static const struct terra_op *only_op(struct terra_op_table *table)
{
	assert_int_equal(table->n_ops, 1);
	return &table->ops[0];
}

static void test_names_and_order(void **state)
{
	static struct elf_sample sample;
	struct terra_op_table *table;
	const struct terra_op *op;
	char name[16];

	sample_init(&sample, 1);
	sample_symbol(&sample, MUL_REDISPATCH, 0x20);
	sample_symbol(&sample, MUL_, 0x30);
	sample_symbol(&sample, "_ZN2at3mulERKNS_6TensorES2_", 0x40);
	sample_symbol(&sample, MUL, 0x10);
	sample_string(&sample, "mul_.Tensor(Tensor(a!) self, Tensor other) -> Tensor(a!)");
	sample_string(&sample, "mul.Tensor(Tensor self, Tensor other) -> Tensor");
	sample_string(&sample, "an arrow (in prose) -> means nothing");
	table = table_of(&sample);
	assert_int_equal(table->n_ops, 3);
	assert_int_equal(table->build_id_size, 20);
	assert_int_equal(table->build_id[0], 1);

	op = terra_op_table_find(table, "aten::mul", "Tensor", TERRA_LEVEL_CALL);
	assert_ptr_equal(op, &table->ops[0]);
	assert_ptr_equal(terra_op_table_find(table, "mul", "Tensor", TERRA_LEVEL_CALL), op);
	assert_ptr_equal(terra_op_table_find(table, "mul", "Tensor", TERRA_LEVEL_REDISPATCH), &table->ops[1]);
	assert_null(terra_op_table_find(table, "mul", "", TERRA_LEVEL_CALL));
	assert_null(terra_op_table_find(table, "prim::mul", "Tensor", TERRA_LEVEL_CALL));
	assert_int_equal(op->address, SAMPLE_BASE + 0x10);
	assert_int_equal(op->file_offset, 0x10);
	assert_int_equal(op->size, 16);
	assert_int_equal(op->ret, TERRA_RET_TENSOR);
	assert_int_equal(op->has_sret, 1);
	assert_int_equal(op->args[0].index, 1);
	assert_string_equal(op->mangled, MUL);
	assert_string_equal(op->schema, "mul.Tensor(Tensor self, Tensor other) -> Tensor");
	assert_string_equal(terra_op_argument_name(op, 1, name, sizeof(name)), "other");
	assert_string_equal(terra_op_argument_name(op, 2, name, sizeof(name)), "");
	assert_string_equal(terra_op_argument_name(op + 1, 0, name, sizeof(name)), "keyset");
	assert_string_equal(terra_op_argument_name(op + 1, 1, name, 3), "se");

	op = terra_op_table_find(table, "aten::mul_", "Tensor", TERRA_LEVEL_CALL);
	assert_non_null(op);
	assert_int_equal(op->ret, TERRA_RET_TENSOR_REF);
	assert_int_equal(op->has_sret, 0);
	assert_int_equal(op->args[0].index, 0);
	terra_op_table_free(table);
}

/* The class a_b can be a.b or the default overload of a_b: the text says, and the arguments must agree. */
static void test_overload_split(void **state)
{
	static struct elf_sample sample;
	struct terra_op_table *table;

	sample_init(&sample, 1);
	sample_symbol(&sample, MUL, 0x10);
	sample_string(&sample, "mul_Tensor(Tensor self, int other) -> bool");
	sample_string(&sample, "mul_Tensor(Tensor self) -> bool");
	sample_string(&sample, "mul.Tensor(Tensor self, Tensor other) -> Tensor");
	table = table_of(&sample);
	assert_string_equal(only_op(table)->name, "aten::mul");
	assert_string_equal(only_op(table)->overload, "Tensor");
	terra_op_table_free(table);

	sample_init(&sample, 1);
	sample_symbol(&sample, MUL, 0x10);
	sample_string(&sample, "mul_Tensor(Tensor self, Tensor other) -> Tensor");
	table = table_of(&sample);
	assert_string_equal(only_op(table)->name, "aten::mul_Tensor");
	assert_string_equal(only_op(table)->overload, "");
	terra_op_table_free(table);
}

static void assert_unknown(struct terra_op_table *table)
{
	const struct terra_op *op = only_op(table);

	assert_null(op->schema);
	assert_string_equal(op->overload, "");
	assert_int_equal(op->ret, TERRA_RET_UNKNOWN);
	assert_int_equal(op->has_sret, 0xff);
	assert_int_equal(op->complete, 0);
	assert_int_equal(op->args[0].place, TERRA_PLACE_UNKNOWN);
	terra_op_table_free(table);
}

/* Nothing is guessed: without a schema, or with two that disagree, the places are unknown. */
static void test_no_schema(void **state)
{
	static struct elf_sample sample;
	struct terra_op_table *table;

	sample_init(&sample, 1);
	sample_symbol(&sample, MUL, 0x10);
	table = table_of(&sample);
	assert_string_equal(only_op(table)->name, "mul_Tensor");
	assert_unknown(table);

	sample_init(&sample, 1);
	sample_symbol(&sample, MUL, 0x10);
	sample_string(&sample, "mul.Tensor(Tensor self, Tensor other) -> Tensor");
	sample_string(&sample, "mul.Tensor(Tensor self, Tensor other) -> bool");
	assert_unknown(table_of(&sample));

	sample_init(&sample, 1);
	sample_symbol(&sample, REAL, 0x10);
	sample_string(&sample, "view_as_real(Tensor(a) self) -> Tensor(a)");
	sample_string(&sample, "is_real(Tensor self) -> bool");
	assert_unknown(table_of(&sample));

	sample_init(&sample, 1);
	sample_symbol(&sample, REAL, 0x10);
	sample_string(&sample, "real(Tensor self) -> Novel");
	table = table_of(&sample);
	assert_string_equal(only_op(table)->name, "aten::real");
	assert_int_equal(only_op(table)->has_sret, 0xff);
	assert_int_equal(only_op(table)->complete, 0);
	terra_op_table_free(table);
}

static void test_merged_string(void **state)
{
	static struct elf_sample sample;
	struct terra_op_table *table;

	sample_init(&sample, 1);
	sample_symbol(&sample, REAL, 0x10);
	sample_string(&sample, "view_as_real(Tensor(a) self) -> Tensor(a)");
	table = table_of(&sample);
	assert_string_equal(only_op(table)->schema, "real(Tensor(a) self) -> Tensor(a)");
	assert_int_equal(only_op(table)->ret, TERRA_RET_TENSOR);
	terra_op_table_free(table);
}

static void test_dispatcher_before_torchscript(void **state)
{
	static struct elf_sample sample;
	struct terra_op_table *table;

	sample_init(&sample, 1);
	sample_symbol(&sample, MUL, 0x10);
	sample_string(&sample, "aten::mul.Tensor(Tensor self, Tensor other) -> (Tensor)");
	sample_string(&sample, "mul.Tensor(Tensor self, Tensor other) -> Tensor");
	sample_string(&sample, "aten::mul.Tensor(Tensor a, Tensor b) -> bool");
	table = table_of(&sample);
	assert_string_equal(only_op(table)->schema, "mul.Tensor(Tensor self, Tensor other) -> Tensor");
	terra_op_table_free(table);
}

/* Only a function of the op's name with exactly its types makes it composite; never the redispatch. */
static void test_composite(void **state)
{
	static const struct {
		const char *op, *schema, *function;
		unsigned composite;
		const char *other; /* function */
	} cases[] = {
		{ "_ZN2at4_ops4call4callERKNS_6TensorES4_", "call(Tensor self, Tensor other) -> Tensor",
		  "_ZN2at25compositeimplicitautograd4callERKNS_6TensorES3_", 1, NULL },
		/* another type, one more, one fewer, another name, another namespace */
		{ "_ZN2at4_ops4call4callERKNS_6TensorES4_", "call(Tensor self, Tensor other) -> Tensor",
		  "_ZN2at25compositeimplicitautograd4callERKNS_6TensorERS1_", 0, NULL },
		{ "_ZN2at4_ops4call4callERKNS_6TensorES4_", "call(Tensor self, Tensor other) -> Tensor",
		  "_ZN2at25compositeimplicitautograd4callERKNS_6TensorES3_b", 0, NULL },
		{ "_ZN2at4_ops4call4callERKNS_6TensorES4_", "call(Tensor self, Tensor other) -> Tensor",
		  "_ZN2at25compositeimplicitautograd4callERKNS_6TensorE", 0, NULL },
		{ "_ZN2at4_ops4call4callERKNS_6TensorES4_", "call(Tensor self, Tensor other) -> Tensor",
		  "_ZN2at25compositeimplicitautograd5call_ERKNS_6TensorES3_", 0, NULL },
		{ "_ZN2at4_ops4call4callERKNS_6TensorES4_", "call(Tensor self, Tensor other) -> Tensor",
		  "_ZN2at3cpu4callERKNS_6TensorES3_", 0, NULL },
		/* symbolic sizes, and the output last */
		{ "_ZN2at4_ops4view4callERKNS_6TensorEN3c106SymIntE", "view(Tensor self, SymInt n) -> Tensor",
		  "_ZN2at25compositeimplicitautograd11view_symintERKNS_6TensorEN3c106SymIntE", 1, NULL },
		{ "_ZN2at4_ops4view4callERKNS_6TensorEN3c106SymIntE", "view(Tensor self, SymInt n) -> Tensor",
		  "_ZN2at25compositeimplicitautograd4viewERKNS_6TensorEl", 0, NULL },
		{ "_ZN2at4_ops8view_out4callERKNS_6TensorERS2_", "view.out(Tensor self, *, Tensor(a!) out) -> Tensor(a!)",
		  "_ZN2at25compositeimplicitautograd9view_outfERKNS_6TensorERS1_", 1, NULL },
		{ "_ZN2at4_ops8view_out4callERKNS_6TensorERS2_", "view.out(Tensor self, *, Tensor(a!) out) -> Tensor(a!)",
		  "_ZN2at25compositeimplicitautograd8view_outERNS_6TensorERKS1_", 0, NULL },
		/* the CPU's own kernel, and one for other types */
		{ "_ZN2at4_ops4call4callERKNS_6TensorES4_", "call(Tensor self, Tensor other) -> Tensor",
		  "_ZN2at25compositeimplicitautograd4callERKNS_6TensorES3_", 0, "_ZN2at3cpu4callERKNS_6TensorES3_" },
		{ "_ZN2at4_ops4call4callERKNS_6TensorES4_", "call(Tensor self, Tensor other) -> Tensor",
		  "_ZN2at25compositeimplicitautograd4callERKNS_6TensorES3_", 1, "_ZN2at3cpu4callERKNS_6TensorE" },
		/* what does not parse is not compared */
		{ "_ZN2at4_ops4call4callEDn", "call(Tensor self) -> Tensor",
		  "_ZN2at25compositeimplicitautograd4callEDn", 0, NULL },
	};
	static struct elf_sample sample;

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct terra_op_table *table;

		sample_init(&sample, 1);
		sample_symbol(&sample, cases[i].op, 0x10);
		sample_symbol(&sample, cases[i].function, 0x20);
		if (cases[i].other)
			sample_symbol(&sample, cases[i].other, 0x30);
		sample_string(&sample, cases[i].schema);
		table = table_of(&sample);
		assert_int_equal(only_op(table)->composite, cases[i].composite);
		terra_op_table_free(table);
	}
}

static void test_mutable_behind_const(void **state)
{
	static struct elf_sample sample;
	struct terra_op_table *table;
	const struct terra_op *op;

	sample_init(&sample, 1);
	sample_symbol(&sample, RESIZE_, 0x10);
	sample_symbol(&sample, FOREACH_ADD_, 0x20);
	sample_symbol(&sample, MAX_OUT, 0x30);
	sample_string(&sample,
		      "resize_(Tensor(a!) self, SymInt[] size, *, MemoryFormat? memory_format=None) -> Tensor(a!)");
	sample_string(&sample, "_foreach_add_.Scalar(Tensor(a!)[] self, Scalar scalar) -> ()");
	sample_string(&sample,
		      "max.dim_max(Tensor self, int dim, bool keepdim=False, *, Tensor(a!) max, Tensor(b!) max_values) "
		      "-> (Tensor(a!) values, Tensor(b!) indices)");
	table = table_of(&sample);
	op = terra_op_table_find(table, "aten::resize_", "", TERRA_LEVEL_CALL);
	assert_int_equal(op->args[0].is_mutable, 1);
	assert_int_equal(op->args[1].is_mutable, 0);
	assert_int_equal(op->ret, TERRA_RET_TENSOR_REF);
	op = terra_op_table_find(table, "aten::_foreach_add_", "Scalar", TERRA_LEVEL_CALL);
	assert_int_equal(op->args[0].is_mutable, 1);
	assert_int_equal(op->args[1].is_mutable, 0);
	assert_int_equal(op->ret, TERRA_RET_VOID);
	op = terra_op_table_find(table, "aten::max", "dim_max", TERRA_LEVEL_CALL);
	assert_int_equal(op->ret, TERRA_RET_TENSOR_REFS);
	assert_int_equal(op->n_returns, 2);
	assert_int_equal(op->has_sret, 1);
	assert_int_equal(op->args[4].is_mutable, 1);
	terra_op_table_free(table);
}

static void test_returns(void **state)
{
	static const struct {
		const char *text;
		uint8_t ret, n, sret;
	} cases[] = {
		{"()", TERRA_RET_VOID, 0, 0},
		{"Tensor", TERRA_RET_TENSOR, 0, 1},
		{"Tensor(a)", TERRA_RET_TENSOR, 0, 1},
		{"Tensor(a!)", TERRA_RET_TENSOR_REF, 0, 0},
		{"(Tensor)", TERRA_RET_TENSOR, 0, 1},
		{"(Tensor values, Tensor indices)", TERRA_RET_TENSORS, 2, 1},
		{"(Tensor, Tensor, Tensor)", TERRA_RET_TENSORS, 3, 1},
		{"(Tensor(a!), Tensor(b!))", TERRA_RET_TENSOR_REFS, 2, 1},
		{"Tensor[]", TERRA_RET_TENSOR_LIST, 0, 1},
		{"Tensor(a)[]", TERRA_RET_TENSOR_LIST, 0, 1},
		{"(Tensor, Tensor[])", TERRA_RET_OTHER_SRET, 0, 1},
		{"(Tensor(a!), Tensor)", TERRA_RET_OTHER_SRET, 0, 1},
		{"(float, int)", TERRA_RET_OTHER_SRET, 0, 1},
		{"Scalar", TERRA_RET_OTHER_SRET, 0, 1},
		{"SymInt", TERRA_RET_OTHER_SRET, 0, 1},
		{"bool", TERRA_RET_VALUE, 0, 0},
		{"int", TERRA_RET_VALUE, 0, 0},
		{"ScalarType", TERRA_RET_VALUE, 0, 0},
		{"Novel", TERRA_RET_UNKNOWN, 0, 0xff},
		{"(Tensor", TERRA_RET_UNKNOWN, 0, 0xff},
	};
	static struct elf_sample sample;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct terra_op_table *table;
		char schema[128];

		sample_init(&sample, 1);
		sample_symbol(&sample, REAL, 0x10);
		snprintf(schema, sizeof(schema), "real(Tensor self) -> %s", cases[i].text);
		sample_string(&sample, schema);
		table = table_of(&sample);
		assert_int_equal(only_op(table)->ret, cases[i].ret);
		assert_int_equal(only_op(table)->n_returns, cases[i].n);
		assert_int_equal(only_op(table)->has_sret, cases[i].sret);
		terra_op_table_free(table);
	}
}

static void test_unusable_symbols(void **state)
{
	static struct elf_sample sample;
	struct terra_op_table *table = NULL;

	sample_init(&sample, 1);
	sample_symbol(&sample, MUL, 0x10);
	sample_symbol(&sample, MUL_, 0x20);
	sample_symbol(&sample, REAL, 0x30);
	sample_symbol(&sample, RESIZE_, 0x40);
	sample.symbols[1].st_shndx = SHN_UNDEF;
	sample.symbols[2].st_value = SAMPLE_BASE + SAMPLE_MAX;
	sample.symbols[3].st_name = 0x7fffffff;
	sample.symbols[4].st_info = ELF64_ST_INFO(STB_GLOBAL, STT_OBJECT);
	sample_finish(&sample);
	assert_int_equal(terra_op_table_from_memory(sample.data, sample.size, &table), -ENOENT);
	assert_null(table);
}

static void many_ops(struct elf_sample *sample, uint8_t id)
{
	sample_init(sample, id);
	sample_symbol(sample, MUL, 0x10);
	sample_symbol(sample, MUL_REDISPATCH, 0x20);
	sample_symbol(sample, RESIZE_, 0x30);
	sample_symbol(sample, MAX_OUT, 0x40);
	sample_string(sample, "mul.Tensor(Tensor self, Tensor other) -> Tensor");
	sample_string(sample,
		      "resize_(Tensor(a!) self, SymInt[] size, *, MemoryFormat? memory_format=None) -> Tensor(a!)");
	sample_finish(sample);
}

/* A file cut anywhere is refused or read; the copy has exactly the cut size, so that sanitizers see reads past it. */
static void test_truncated(void **state)
{
	static struct elf_sample sample;

	many_ops(&sample, 1);
	for (size_t size = 0; size < sample.size; size++) {
		struct terra_op_table *table = NULL;
		void *copy = malloc(size ? size : 1);

		memcpy(copy, sample.data, size);
		assert_int_not_equal(terra_op_table_from_memory(copy, size, &table), 0);
		free(copy);
	}
}

static void test_damaged(void **state)
{
	static struct elf_sample sample;
	uint64_t random = 88172645463325252u;
	unsigned good = 0;

	many_ops(&sample, 1);
	for (int round = 0; round < 20000; round++) {
		struct terra_op_table *table = NULL;
		uint8_t *copy = malloc(sample.size);

		memcpy(copy, sample.data, sample.size);
		for (int i = 0; i <= round % 4; i++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			copy[random % sample.size] = (uint8_t)(random >> 32);
		}
		if (terra_op_table_from_memory(copy, sample.size, &table) == 0) {
			good++;
			terra_op_table_free(table);
		}
		free(copy);
	}
	/* Most damage is to names or places that do not matter: if all were refused, little had been tried. */
	assert_in_range(good, 1000, 20000);
}

/* A header says of each of thousands of sections that it is the whole file. What is read of them is no more than the file. */
static void test_sections_that_overlap(void **state)
{
	enum { SECTIONS = 5000 };
	static struct elf_sample sample;
	static _Alignas(16) uint8_t file[SAMPLE_MAX + SECTIONS * sizeof(Elf64_Shdr)];
	Elf64_Ehdr *header = (Elf64_Ehdr *)file;
	struct terra_schema_index index;
	struct terra_elf elf;
	Elf64_Shdr *sections;

	many_ops(&sample, 1);
	memcpy(file, sample.data, sample.size);
	sections = (Elf64_Shdr *)(file + header->e_shoff);
	for (int i = SAMPLE_SECTIONS; i < SECTIONS; i++) {
		sections[i] = sections[SAMPLE_RODATA];
		sections[i].sh_offset = 0;
		sections[i].sh_size = sample.size;
	}
	header->e_shnum = SECTIONS;
	assert_int_equal(terra_elf_from_memory(file, header->e_shoff + SECTIONS * sizeof(Elf64_Shdr), &elf), 0);
	assert_int_equal(terra_schema_index_build(&elf, &index), 0);
	assert_true(index.n_schemas >= 2);
	assert_true(index.n_schemas * sizeof("mul.Tensor(Tensor self, Tensor other) -> Tensor") < elf.size);
	terra_schema_index_free(&index);
}

/* Every op agrees with every schema: the work ends, and an op without a schema is what is left. */
static void test_work_ends(void **state)
{
	static struct elf_sample sample;
	struct terra_schema_index index;
	struct terra_signature signature;
	struct terra_schema schema;
	struct terra_elf elf;
	int asked = 0;

	sample_init(&sample, 1);
	sample_symbol(&sample, REAL, 0x10);
	for (int i = 0; i < 500; i++)
		sample_string(&sample, "real(Tensor self) -> Tensor");
	sample_finish(&sample);
	assert_int_equal(terra_elf_from_memory(sample.data, sample.size, &elf), 0);
	assert_int_equal(terra_schema_index_build(&elf, &index), 0);
	assert_int_equal(terra_mangle_parse(REAL, &signature), 0);
	while (terra_schema_find(&index, &signature, &schema) && asked < 2000)
		asked++;
	assert_in_range(asked, 10, 1000);
	terra_schema_index_free(&index);
}

/* Symbols of one name are one op, however many there are. */
static void test_repeated_symbols(void **state)
{
	static struct elf_sample sample;
	struct terra_op_table *table;

	sample_init(&sample, 1);
	for (int i = 0; i < 10; i++)
		sample_symbol(&sample, MUL, 0x10);
	sample_symbol(&sample, MUL_REDISPATCH, 0x10);
	sample_string(&sample, "mul.Tensor(Tensor self, Tensor other) -> Tensor");
	table = table_of(&sample);
	assert_int_equal(table->n_ops, 2);
	terra_op_table_free(table);
}

static void write_library(const struct elf_sample *sample)
{
	FILE *file = fopen(library, "w");

	assert_non_null(file);
	assert_int_equal(fwrite(sample->data, 1, sample->size, file), sample->size);
	assert_int_equal(fclose(file), 0);
}

static void cache_path(uint8_t id, char *path, size_t size)
{
	int used = snprintf(path, size, "%s/cache/terra/ops-", folder);

	for (int i = 0; i < 20; i++)
		used += snprintf(path + used, size - (size_t)used, "%02x", id);
	snprintf(path + used, size - (size_t)used, ".bin");
}

static void assert_loads(bool use_cache, uint64_t file_offset)
{
	struct terra_op_table *table = NULL;
	const struct terra_op *op;
	char err[256] = "";

	assert_int_equal(terra_op_table_load(library, use_cache, &table, err, sizeof(err)), 0);
	assert_int_equal(table->n_ops, 4);
	assert_string_equal(table->library, library);
	op = terra_op_table_find(table, "aten::mul", "Tensor", TERRA_LEVEL_CALL);
	assert_non_null(op);
	assert_int_equal(op->file_offset, file_offset);
	assert_string_equal(op->mangled, MUL);
	assert_string_equal(op->schema, "mul.Tensor(Tensor self, Tensor other) -> Tensor");
	terra_op_table_free(table);
}

static ino_t inode_of(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 ? st.st_ino : 0;
}

static void test_cache(void **state)
{
	static struct elf_sample sample;
	char path[256];
	ino_t first;

	many_ops(&sample, 2);
	write_library(&sample);
	cache_path(2, path, sizeof(path));
	assert_loads(false, 0x10);
	assert_int_equal(inode_of(path), 0);
	assert_loads(true, 0x10);
	first = inode_of(path);
	assert_int_not_equal(first, 0);
	assert_loads(true, 0x10);
	assert_int_equal(inode_of(path), first);
}

/* patchelf moves symbols and keeps the build-id. */
static void test_cache_of_changed_library(void **state)
{
	static struct elf_sample sample;

	many_ops(&sample, 3);
	write_library(&sample);
	assert_loads(true, 0x10);
	sample.symbols[1].st_value = SAMPLE_BASE + 0x50;
	sample_finish(&sample);
	write_library(&sample);
	assert_loads(true, 0x50);
}

static void flip(const char *path, off_t at)
{
	int fd = open(path, O_RDWR);
	uint8_t byte;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

static void test_cache_damaged(void **state)
{
	static struct elf_sample sample;
	char path[256];
	struct stat st;

	many_ops(&sample, 4);
	write_library(&sample);
	cache_path(4, path, sizeof(path));
	assert_loads(true, 0x10);
	assert_int_equal(stat(path, &st), 0);
	for (off_t at = 0; at < st.st_size; at += 7) {
		ino_t before;

		flip(path, at);
		before = inode_of(path);
		assert_loads(true, 0x10);
		/* Not merely a right answer: the damage was noticed and the file replaced. */
		assert_int_not_equal(inode_of(path), before);
	}
	for (off_t size = 0; size < st.st_size; size += 101) {
		assert_int_equal(truncate(path, size), 0);
		assert_loads(true, 0x10);
	}
}

static void test_cache_others_could_write(void **state)
{
	static struct elf_sample sample;
	char path[256];
	ino_t before;

	many_ops(&sample, 5);
	write_library(&sample);
	cache_path(5, path, sizeof(path));
	assert_loads(true, 0x10);
	assert_int_equal(chmod(path, 0666), 0);
	before = inode_of(path);
	assert_loads(true, 0x10);
	assert_int_not_equal(inode_of(path), before);
}

static void test_cache_not_writable(void **state)
{
	static struct elf_sample sample;

	many_ops(&sample, 6);
	write_library(&sample);
	setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
	assert_loads(true, 0x10);
	unsetenv("XDG_CACHE_HOME");
	setenv("HOME", "relative", 1);
	assert_loads(true, 0x10);
}

static void test_errors_say_what_to_do(void **state)
{
	struct terra_op_table *table = NULL;
	char err[256];

	assert_int_equal(terra_op_table_load("/nowhere/libtorch_cpu.so", true, &table, err, sizeof(err)), -ENOENT);
	assert_non_null(strstr(err, "cannot read /nowhere/libtorch_cpu.so"));
	assert_int_equal(terra_op_table_load("/", true, &table, err, sizeof(err)), -ENOEXEC);
	assert_int_equal(terra_op_table_load("/proc/self/exe", false, &table, err, sizeof(err)), -ENOENT);
	assert_non_null(strstr(err, "no op entry points"));
	assert_int_equal(terra_op_table_load("/nowhere", true, &table, NULL, 0), -ENOENT);
	assert_int_equal(terra_op_table_load("/nowhere", true, &table, err, 5), -ENOENT);
	assert_string_equal(err, "cann");
	assert_null(table);
}

static void test_list_text_and_json(void **state)
{
	static struct elf_sample sample;
	char *text = NULL;
	size_t size;
	FILE *out;

	many_ops(&sample, 7);
	write_library(&sample);
	out = open_memstream(&text, &size);
	assert_int_equal(terra_list_ops(library, false, out), 0);
	fclose(out);
	assert_non_null(strstr(text, "aten::mul.Tensor call(Tensor self@rsi, Tensor other@rdx) -> tensor@rdi\n"));
	assert_non_null(strstr(text, "aten::resize_ call(Tensor! self@rdi, SymInt[] size@rsi:rdx, "
				     "MemoryFormat? memory_format@rcx) -> tensor-reference\n"));
	assert_non_null(strstr(text, "4 op entry points"));
	assert_non_null(strstr(text, "3 complete, 1 opaque\n"));
	free(text);
	out = open_memstream(&text, &size);
	assert_int_equal(terra_list_ops(library, true, out), 0);
	fclose(out);
	assert_non_null(strstr(text, "\"complete\":3,\"opaque\":1"));
	assert_non_null(strstr(
		text,
		"{\"name\":\"self\",\"kind\":\"Tensor\",\"place\":\"rsi\",\"by_reference\":true,\"mutable\":false}"));
	free(text);
}

static int make_folder(void **state)
{
	char cache[64];

	if (!mkdtemp(folder))
		return -1;
	snprintf(library, sizeof(library), "%s/lib.so", folder);
	snprintf(cache, sizeof(cache), "%s/cache", folder);
	return setenv("XDG_CACHE_HOME", cache, 1);
}

static int remove_folder(void **state)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -r %s", folder);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names_and_order),
		cmocka_unit_test(test_overload_split),
		cmocka_unit_test(test_no_schema),
		cmocka_unit_test(test_merged_string),
		cmocka_unit_test(test_dispatcher_before_torchscript),
		cmocka_unit_test(test_composite),
		cmocka_unit_test(test_mutable_behind_const),
		cmocka_unit_test(test_returns),
		cmocka_unit_test(test_unusable_symbols),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_damaged),
		cmocka_unit_test(test_sections_that_overlap),
		cmocka_unit_test(test_work_ends),
		cmocka_unit_test(test_repeated_symbols),
		cmocka_unit_test(test_cache),
		cmocka_unit_test(test_cache_of_changed_library),
		cmocka_unit_test(test_cache_damaged),
		cmocka_unit_test(test_cache_others_could_write),
		cmocka_unit_test(test_list_text_and_json),
		cmocka_unit_test(test_errors_say_what_to_do),
		cmocka_unit_test(test_cache_not_writable),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
