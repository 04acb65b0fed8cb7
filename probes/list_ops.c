/* list_ops.c - an op table as text or JSON; see list_ops.h. */
#include "probes/list_ops.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "probes/find.h"
#include "probes/op.h"

struct totals {
	unsigned complete;
	unsigned opaque;
};

static const char *const gpr_names[] = {"rdi", "rsi", "rdx", "rcx", "r8", "r9"};

static const char *return_name(const struct terra_op *op)
{
	static const char *const names[] = {
		[TERRA_RET_UNKNOWN] = "unknown",
		[TERRA_RET_VOID] = "void",
		[TERRA_RET_TENSOR] = "tensor",
		[TERRA_RET_TENSOR_REF] = "tensor-reference",
		[TERRA_RET_TENSORS] = "tensors",
		[TERRA_RET_TENSOR_LIST] = "tensor-list",
		[TERRA_RET_VALUE] = "value",
		[TERRA_RET_OTHER_SRET] = "object",
		[TERRA_RET_TENSOR_REFS] = "tensor-references",
	};

	return op->ret < sizeof(names) / sizeof(names[0]) ? names[op->ret] : "unknown";
}

static const char *level_name(const struct terra_op *op)
{
	return op->level == TERRA_LEVEL_CALL ? "call" : "redispatch";
}

/* "rsi", "rsi:rdx", "xmm0:rdx", "stack+16", "?" */
static void place_name(const struct terra_arg *arg, char *name, size_t size)
{
	switch (arg->place) {
	case TERRA_PLACE_GPR:
		if (arg->words == 2)
			snprintf(name, size, "%s:%s", gpr_names[arg->index % 6], gpr_names[(arg->index + 1) % 6]);
		else
			snprintf(name, size, "%s", gpr_names[arg->index % 6]);
		break;
	case TERRA_PLACE_SSE:
		snprintf(name, size, "xmm%u", arg->index);
		break;
	case TERRA_PLACE_GPR_SSE:
		snprintf(name, size, "xmm%u:%s", arg->index, gpr_names[arg->index2 % 6]);
		break;
	case TERRA_PLACE_STACK:
		snprintf(name, size, "stack+%u", arg->offset);
		break;
	default:
		snprintf(name, size, "?");
	}
}

/* "bool[3]" where the kind's own name leaves the length open. */
static void kind_name(const struct terra_arg *arg, char *name, size_t size)
{
	if (arg->kind == TERRA_KIND_BOOL_ARRAY)
		snprintf(name, size, "bool[%u]", arg->count);
	else
		snprintf(name, size, "%s", terra_kind_name(arg->kind));
}

static void print_line(const struct terra_op *op, FILE *out)
{
	char kind[32], place[32], name[128];

	fprintf(out, "%s%s%s %s(", op->name, *op->overload ? "." : "", op->overload, level_name(op));
	for (unsigned i = 0; i < op->n_args; i++) {
		kind_name(&op->args[i], kind, sizeof(kind));
		place_name(&op->args[i], place, sizeof(place));
		terra_op_argument_name(op, i, name, sizeof(name));
		fprintf(out, "%s%s%s %s@%s", i ? ", " : "", kind, op->args[i].is_mutable ? "!" : "", name, place);
	}
	fprintf(out, ") -> %s%s%s\n", return_name(op), op->has_sret == 1 ? "@rdi" : "",
		op->complete ? "" : "  [opaque]");
}

/* Names and schemas of the library are ASCII, but a file is not to be trusted. */
static void print_json_string(const char *text, FILE *out)
{
	fputc('"', out);
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c == '"' || c == '\\')
			fprintf(out, "\\%c", c);
		else if (c < 0x20 || c >= 0x7f)
			fprintf(out, "\\u%04x", c);
		else
			fputc(c, out);
	}
	fputc('"', out);
}

static void print_json_argument(const struct terra_op *op, unsigned i, FILE *out)
{
	const struct terra_arg *arg = &op->args[i];
	char kind[32], place[32], name[128];

	kind_name(arg, kind, sizeof(kind));
	place_name(arg, place, sizeof(place));
	fprintf(out, "%s{\"name\":", i ? "," : "");
	print_json_string(terra_op_argument_name(op, i, name, sizeof(name)), out);
	fprintf(out, ",\"kind\":\"%s\",\"place\":\"%s\",\"by_reference\":%s,\"mutable\":%s}", kind, place,
		arg->by_ref ? "true" : "false", arg->is_mutable ? "true" : "false");
}

static void print_json_op(const struct terra_op *op, FILE *out)
{
	fputs("{\"name\":", out);
	print_json_string(op->name, out);
	fputs(",\"overload\":", out);
	print_json_string(op->overload, out);
	fprintf(out, ",\"level\":\"%s\",\"address\":%" PRIu64 ",\"file_offset\":%" PRIu64 ",\"size\":%" PRIu64,
		level_name(op), op->address, op->file_offset, op->size);
	fprintf(out, ",\"returns\":\"%s\",\"sret\":%s,\"complete\":%s,\"schema\":", return_name(op),
		op->has_sret == 0xff ? "null"
		: op->has_sret	     ? "true"
				     : "false",
		op->complete ? "true" : "false");
	if (op->schema)
		print_json_string(op->schema, out);
	else
		fputs("null", out);
	fputs(",\"symbol\":", out);
	print_json_string(op->mangled, out);
	fputs(",\"arguments\":[", out);
	for (unsigned i = 0; i < op->n_args; i++)
		print_json_argument(op, i, out);
	fputs("]}", out);
}

static struct totals count(const struct terra_op_table *table)
{
	struct totals totals = {0};

	for (uint32_t i = 0; i < table->n_ops; i++) {
		totals.complete += table->ops[i].complete;
		totals.opaque += !table->ops[i].complete;
	}
	return totals;
}

static void print_text(const struct terra_op_table *table, FILE *out)
{
	struct totals totals = count(table);

	for (uint32_t i = 0; i < table->n_ops; i++)
		print_line(&table->ops[i], out);
	fprintf(out, "%" PRIu32 " op entry points in %s: %u complete, %u opaque\n", table->n_ops, table->library,
		totals.complete, totals.opaque);
}

static void print_json(const struct terra_op_table *table, FILE *out)
{
	struct totals totals = count(table);

	fputs("{\"library\":", out);
	print_json_string(table->library, out);
	fputs(",\"build_id\":\"", out);
	for (unsigned i = 0; i < table->build_id_size; i++)
		fprintf(out, "%02x", table->build_id[i]);
	fprintf(out, "\",\"complete\":%u,\"opaque\":%u,\"ops\":[", totals.complete, totals.opaque);
	for (uint32_t i = 0; i < table->n_ops; i++) {
		fputs(i ? ",\n" : "\n", out);
		print_json_op(&table->ops[i], out);
	}
	fputs("\n]}\n", out);
}

static int find_library(char *path, size_t size)
{
	int err = terra_find_libtorch(NULL, path, size);

	if (err == -ENOENT && !*path)
		fprintf(stderr, "no libtorch_cpu.so found for the python3 on PATH: activate the program's environment, "
				"or give --library or TERRA_LIBTORCH\n");
	else if (err)
		fprintf(stderr, "cannot read %s, which TERRA_LIBTORCH names: %s\n", path, strerror(-err));
	return err;
}

int terra_list_ops(const char *library, bool json, FILE *out)
{
	char path[PATH_MAX], message[PATH_MAX + 256];
	struct terra_op_table *table;
	int err;

	if (!library) {
		err = find_library(path, sizeof(path));
		if (err)
			return err;
		library = path;
	}
	err = terra_op_table_load(library, true, &table, message, sizeof(message));
	if (err) {
		fprintf(stderr, "%s\n", message);
		return err;
	}
	if (json)
		print_json(table, out);
	else
		print_text(table, out);
	terra_op_table_free(table);
	/* A closed pipe or a full disk shows here. */
	return fflush(out) != 0 || ferror(out) ? -EIO : 0;
}
