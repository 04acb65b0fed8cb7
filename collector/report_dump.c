/* report_dump.c - the events of a trace one by one: a line of text each, or a line of JSON. */
#include "collector/report.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "collector/report_values.h"
#include "collector/trace_format.h"

/* Present 0 of a kind without "optional" is a value that could not be read (collector/consume.h). */
static bool is_optional(unsigned int kind)
{
	const char *name = terra_kind_name(kind);

	return name[strlen(name) - 1] == '?';
}

/* Text. */

const char *report_dtype_name(int64_t dtype, char buffer[REPORT_DTYPE_SIZE])
{
	/* The numbers of c10::ScalarType are part of PyTorch's serialised models: known ones never change. */
	static const char *const names[] = {"uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
					    "complex32", "complex64", "complex128", "bool"};

	if (dtype >= 0 && (size_t)dtype < sizeof(names) / sizeof(names[0]))
		return names[dtype];
	if (dtype == 15)
		return "bfloat16";
	snprintf(buffer, REPORT_DTYPE_SIZE, "dtype%" PRId64, dtype);
	return buffer;
}

void report_print_dtype(int64_t dtype, FILE *out)
{
	char buffer[REPORT_DTYPE_SIZE];

	fputs(report_dtype_name(dtype, buffer), out);
}

static void print_dims(const int64_t *dims, int n, FILE *out)
{
	fputc('[', out);
	for (int i = 0; i < n; i++)
		fprintf(out, "%s%" PRId64, i ? "," : "", dims[i]);
	fputc(']', out);
}

void report_print_device(int type, int index, FILE *out)
{
	if (type == 0)
		fputs("cpu", out);
	else if (type == 1)
		fputs("cuda", out);
	else
		fprintf(out, "device%d", type);
	if (index >= 0)
		fprintf(out, ":%d", index);
}

static void print_tensor(const struct terra_tensor *t, FILE *out)
{
	int dims = t->ndim < TERRA_MAX_DIM ? t->ndim : TERRA_MAX_DIM;

	if (!t->defined) {
		fputs("undefined", out);
		return;
	}
	report_print_dtype(t->dtype, out);
	print_dims(t->size, dims, out);
	if (t->ndim > TERRA_MAX_DIM)
		fprintf(out, "(%d dims)", t->ndim);
	fputs(" strides=", out);
	print_dims(t->stride, dims, out);
	if (t->storage_offset)
		fprintf(out, " offset=%" PRId64, t->storage_offset);
	if (t->device_type != 0) {
		fputc(' ', out);
		report_print_device(t->device_type, t->device_index, out);
	}
	if (t->requires_grad == 1)
		fputs(" grad", out);
	fprintf(out, " @%" PRIx64 " storage=%" PRIx64 "+%" PRIu64, t->data, t->storage, t->storage_bytes);
}

static void print_scalar(const struct terra_value *value, FILE *out)
{
	switch (value->scalar_tag) {
	case 'f':
		fprintf(out, "%.17g", value->u.d);
		break;
	case 'z':
		fprintf(out, "(%.17g,%.17g)", value->u.z[0], value->u.z[1]);
		break;
	case 'i':
		fprintf(out, "%" PRId64, value->u.i);
		break;
	case 'b':
		fputs(value->u.i ? "True" : "False", out);
		break;
	default:
		fputs(value->scalar_tag == 's' ? "symbolic" : "?", out);
	}
}

static void print_element(const struct terra_value *value, uint32_t i, FILE *out)
{
	switch (trace_form_of(value->kind)) {
	case TRACE_FORM_TENSORS:
		print_tensor(&value->u.tensors[i], out);
		break;
	case TRACE_FORM_DOUBLES:
		fprintf(out, "%.17g", value->u.doubles[i]);
		break;
	case TRACE_FORM_SCALARS:
		print_scalar(&value->u.scalars[i], out);
		break;
	default:
		fprintf(out, "%" PRId64, value->u.ints[i]);
	}
}

static void print_list(const struct terra_value *value, FILE *out)
{
	fputc('[', out);
	for (uint32_t i = 0; i < value->recorded; i++) {
		if (i)
			fputs(", ", out);
		print_element(value, i, out);
	}
	if (value->recorded < value->count)
		fprintf(out, "%s... %" PRIu32 " in all", value->recorded ? ", " : "", value->count);
	fputc(']', out);
}

static void print_int(const struct terra_value *value, FILE *out)
{
	switch (value->kind) {
	case TERRA_KIND_BOOL:
	case TERRA_KIND_OPT_BOOL:
		fputs(value->u.i ? "True" : "False", out);
		break;
	case TERRA_KIND_DTYPE:
	case TERRA_KIND_OPT_DTYPE:
		report_print_dtype(value->u.i, out);
		break;
	case TERRA_KIND_DEVICE:
	case TERRA_KIND_OPT_DEVICE:
		report_print_device((int)(value->u.i >> 8), (int8_t)(value->u.i & 0xff), out);
		break;
	case TERRA_KIND_INT:
	case TERRA_KIND_OPT_INT:
	case TERRA_KIND_SYMINT:
	case TERRA_KIND_OPT_SYMINT:
		fprintf(out, "%" PRId64, value->u.i);
		break;
	default:
		fprintf(out, "%s(%" PRId64 ")", terra_kind_name(value->kind), value->u.i);
	}
}

void report_print_value(const struct terra_value *value, FILE *out)
{
	if (!value->present) {
		fputs(is_optional(value->kind) ? "None" : "?", out);
		return;
	}
	switch (trace_form_of(value->kind)) {
	case TRACE_FORM_TENSOR:
		print_tensor(value->u.tensor, out);
		break;
	case TRACE_FORM_SCALAR:
		print_scalar(value, out);
		break;
	case TRACE_FORM_DOUBLE:
		fprintf(out, "%.17g", value->u.d);
		break;
	case TRACE_FORM_STRING:
		fputc('"', out);
		report_print_plain(value->u.string, out);
		fputs(value->recorded < value->count ? "\"..." : "\"", out);
		break;
	case TRACE_FORM_INT:
		print_int(value, out);
		break;
	default:
		print_list(value, out);
	}
}

static void print_values(const struct terra_event *event, FILE *out)
{
	fputs(" (", out);
	for (uint32_t i = 0; i < event->n_values; i++) {
		if (i)
			fputs(", ", out);
		report_print_value(&event->values[i], out);
	}
	fputc(')', out);
	for (uint32_t i = 0; i < event->n_frames; i++) {
		fputs(i ? " < " : " at ", out);
		report_print_plain(event->frames[i].file ? event->frames[i].file : "?", out);
		fprintf(out, ":%" PRId32 " ", event->frames[i].line);
		report_print_plain(event->frames[i].function ? event->frames[i].function : "?", out);
	}
}

static void print_op(const struct terra_event *event, FILE *out)
{
	bool enter = event->type == TERRA_EVENT_OP_ENTER;

	fputs(enter ? "> " : "< ", out);
	report_print_plain(event->op, out);
	if (event->overload[0]) {
		fputc('.', out);
		report_print_plain(event->overload, out);
	}
	fputs(event->level == TERRA_LEVEL_CALL ? " call" : " redispatch", out);
	if (event->keyset)
		fprintf(out, " keys=%" PRIx64, event->keyset);
	if (enter && event->parent_seq != UINT64_MAX)
		fprintf(out, " in=%" PRIu64, event->parent_seq);
	if (!enter && event->enter_seq != UINT64_MAX)
		fprintf(out, " of=%" PRIu64, event->enter_seq);
	if (event->raised)
		fputs(" raised", out);
	if (event->autograd && event->node != UINT64_MAX)
		fprintf(out, " node=%" PRIu64, event->node);
	if (enter && event->autograd && event->forward_seq != UINT64_MAX)
		fprintf(out, " forward=%" PRIu64, event->forward_seq);
	if (event->module) {
		fputs(" module=", out);
		report_print_plain(event->module, out);
	}
	print_values(event, out);
}

static void print_function(const struct terra_event *event, FILE *out)
{
	fputs(event->type == TERRA_EVENT_HOST_READ ? "= read by " : "= call by ", out);
	report_print_plain(event->text, out);
	if (event->op) {
		fputc(' ', out);
		report_print_plain(event->op, out);
	}
	if (event->overload && event->overload[0]) {
		fputc('.', out);
		report_print_plain(event->overload, out);
	}
	if (event->parent_seq != UINT64_MAX)
		fprintf(out, " in=%" PRIu64, event->parent_seq);
	print_values(event, out);
}

static void print_event(const struct terra_event *event, uint64_t start_ns, FILE *out)
{
	fprintf(out, "%" PRIu64 " %+.6f t%" PRIu32 " ", event->seq, (double)(int64_t)(event->time_ns - start_ns) / 1e9,
		event->thread);
	if (event->type == TERRA_EVENT_LOST) {
		fprintf(out, "! %" PRIu64 " events lost", event->lost);
	} else if (event->type == TERRA_EVENT_NOTE) {
		fputs("# ", out);
		report_print_plain(event->text, out);
	} else if (event->type == TERRA_EVENT_GPU) {
		report_gpu_print_event(event->gpu, out);
	} else if (event->type == TERRA_EVENT_HOST_READ || event->type == TERRA_EVENT_CALL) {
		print_function(event, out);
	} else {
		print_op(event, out);
	}
	fputc('\n', out);
}

/* JSON. */

static void member_seq(struct json *json, const char *key, uint64_t seq)
{
	json_key(json, key);
	if (seq == UINT64_MAX)
		json_null(json);
	else
		json_u64(json, seq);
}

static void json_dims(struct json *json, const char *key, const int64_t *dims, int n)
{
	json_key(json, key);
	json_open(json, '[');
	for (int i = 0; i < n; i++)
		json_i64(json, dims[i]);
	json_close(json, ']');
}

static void json_requires_grad(struct json *json, uint8_t requires_grad)
{
	json_key(json, "requires_grad");
	if (requires_grad > 1)
		json_null(json);
	else
		json_bool(json, requires_grad);
}

static void json_tensor(struct json *json, const struct terra_tensor *t)
{
	int dims = t->ndim < TERRA_MAX_DIM ? t->ndim : TERRA_MAX_DIM;

	if (!t->defined) {
		json_null(json);
		return;
	}
	json_open(json, '{');
	json_member_i64(json, "dtype", t->dtype);
	json_member_u64(json, "ndim", t->ndim);
	json_dims(json, "size", t->size, dims);
	json_dims(json, "stride", t->stride, dims);
	json_member_i64(json, "numel", t->numel);
	json_member_i64(json, "storage_offset", t->storage_offset);
	json_member_i64(json, "device_type", t->device_type);
	json_member_i64(json, "device_index", t->device_index);
	json_requires_grad(json, t->requires_grad);
	json_member_u64(json, "impl", t->impl);
	json_member_u64(json, "storage", t->storage);
	json_member_u64(json, "data", t->data);
	json_member_u64(json, "storage_data", t->storage_data);
	json_member_u64(json, "storage_bytes", t->storage_bytes);
	json_close(json, '}');
}

static void json_scalar(struct json *json, const struct terra_value *value)
{
	switch (value->scalar_tag) {
	case 'f':
		json_double(json, value->u.d);
		break;
	case 'z':
		json_open(json, '[');
		json_double(json, value->u.z[0]);
		json_double(json, value->u.z[1]);
		json_close(json, ']');
		break;
	case 'i':
		json_i64(json, value->u.i);
		break;
	case 'b':
		json_bool(json, value->u.i != 0);
		break;
	default:
		json_null(json);
	}
}

static void json_tagged_scalar(struct json *json, const struct terra_value *value)
{
	const char tag[2] = {(char)value->scalar_tag, 0};

	json_open(json, '{');
	json_key(json, "tag");
	if (value->present)
		json_string(json, tag);
	else
		json_null(json);
	json_key(json, "value");
	if (value->present)
		json_scalar(json, value);
	else
		json_null(json);
	json_close(json, '}');
}

static void json_list(struct json *json, const struct terra_value *value)
{
	enum trace_form form = trace_form_of(value->kind);

	json_open(json, '[');
	for (uint32_t i = 0; i < value->recorded; i++) {
		if (form == TRACE_FORM_TENSORS)
			json_tensor(json, &value->u.tensors[i]);
		else if (form == TRACE_FORM_DOUBLES)
			json_double(json, value->u.doubles[i]);
		else if (form == TRACE_FORM_SCALARS)
			json_tagged_scalar(json, &value->u.scalars[i]);
		else if (value->kind == TERRA_KIND_BOOL_ARRAY)
			json_bool(json, value->u.ints[i] != 0);
		else
			json_i64(json, value->u.ints[i]);
	}
	json_close(json, ']');
}

static void json_int(struct json *json, const struct terra_value *value)
{
	switch (value->kind) {
	case TERRA_KIND_BOOL:
	case TERRA_KIND_OPT_BOOL:
		json_bool(json, value->u.i != 0);
		break;
	case TERRA_KIND_DEVICE:
	case TERRA_KIND_OPT_DEVICE:
		json_open(json, '{');
		json_member_i64(json, "type", value->u.i >> 8);
		json_member_i64(json, "index", (int8_t)(value->u.i & 0xff));
		json_close(json, '}');
		break;
	default:
		json_i64(json, value->u.i);
	}
}

static void json_present(struct json *json, const struct terra_value *value)
{
	switch (trace_form_of(value->kind)) {
	case TRACE_FORM_TENSOR:
		json_tensor(json, value->u.tensor);
		break;
	case TRACE_FORM_SCALAR:
		json_scalar(json, value);
		break;
	case TRACE_FORM_DOUBLE:
		json_double(json, value->u.d);
		break;
	case TRACE_FORM_STRING:
		json_bytes(json, value->u.string, value->recorded);
		break;
	case TRACE_FORM_INT:
		json_int(json, value);
		break;
	default:
		json_list(json, value);
	}
}

static bool has_count(enum trace_form form)
{
	return form == TRACE_FORM_TENSORS || form == TRACE_FORM_INTS || form == TRACE_FORM_DOUBLES ||
	       form == TRACE_FORM_SCALARS || form == TRACE_FORM_STRING;
}

void report_json_value(struct json *json, const struct terra_value *value)
{
	const char tag[2] = {(char)value->scalar_tag, 0};
	enum trace_form form = trace_form_of(value->kind);

	json_open(json, '{');
	json_member_string(json, "kind", terra_kind_name(value->kind));
	if (value->present && form == TRACE_FORM_SCALAR)
		json_member_string(json, "tag", tag);
	if (value->present && has_count(form)) {
		json_member_u64(json, "count", value->count);
		json_member_u64(json, "recorded", value->recorded);
	}
	if (!value->present && !is_optional(value->kind)) {
		json_key(json, "unreadable");
		json_bool(json, true);
	}
	json_key(json, "value");
	if (value->present)
		json_present(json, value);
	else
		json_null(json);
	json_close(json, '}');
}

void report_json_stack(struct json *json, const struct terra_event *event)
{
	json_key(json, "stack");
	json_open(json, '[');
	for (uint32_t i = 0; i < event->n_frames; i++) {
		json_open(json, '{');
		json_member_string(json, "file", event->frames[i].file);
		json_member_i64(json, "line", event->frames[i].line);
		json_member_string(json, "function", event->frames[i].function);
		json_close(json, '}');
	}
	json_close(json, ']');
}

static void json_op(struct json *json, const struct terra_event *event)
{
	bool enter = event->type == TERRA_EVENT_OP_ENTER;

	json_member_string(json, "op", event->op);
	json_member_string(json, "overload", event->overload);
	json_member_u64(json, "op_index", event->op_index);
	json_key(json, "level");
	if (event->level <= TERRA_LEVEL_REDISPATCH)
		json_string(json, event->level == TERRA_LEVEL_CALL ? "call" : "redispatch");
	else
		json_u64(json, event->level);
	json_key(json, "keyset");
	json_hex(json, event->keyset);
	if (enter) {
		member_seq(json, "parent", event->parent_seq);
	} else {
		member_seq(json, "enter", event->enter_seq);
		json_key(json, "raised");
		json_bool(json, event->raised);
	}
	if (event->autograd && event->node != UINT64_MAX)
		json_member_u64(json, "node", event->node);
	if (enter && event->autograd)
		member_seq(json, "forward", event->forward_seq);
	if (event->module)
		json_member_string(json, "module", event->module);
	json_key(json, enter ? "args" : "results");
	json_open(json, '[');
	for (uint32_t i = 0; i < event->n_values; i++)
		report_json_value(json, &event->values[i]);
	json_close(json, ']');
	report_json_stack(json, event);
}

static void json_function(struct json *json, const struct terra_event *event)
{
	json_member_string(json, "how", event->text);
	if (event->op)
		json_member_string(json, "op", event->op);
	if (event->overload)
		json_member_string(json, "overload", event->overload);
	member_seq(json, "parent", event->parent_seq);
	json_key(json, "args");
	json_open(json, '[');
	for (uint32_t i = 0; i < event->n_values; i++)
		report_json_value(json, &event->values[i]);
	json_close(json, ']');
	report_json_stack(json, event);
}

static void json_event(struct json *json, const struct terra_event *event)
{
	static const char *const types[] = {
		[TERRA_EVENT_OP_ENTER] = "enter",
		[TERRA_EVENT_OP_EXIT] = "exit",
		[TERRA_EVENT_LOST] = "lost",
		[TERRA_EVENT_NOTE] = "note",
		[TERRA_EVENT_GPU] = "gpu",
		[TERRA_EVENT_HOST_READ] = "host_read",
		[TERRA_EVENT_CALL] = "call",
	};

	json_open(json, '{');
	json_member_string(json, "type", types[event->type]);
	json_member_u64(json, "seq", event->seq);
	json_member_u64(json, "thread", event->thread);
	json_member_u64(json, "time_ns", event->time_ns);
	if (event->type == TERRA_EVENT_LOST)
		json_member_u64(json, "lost", event->lost);
	else if (event->type == TERRA_EVENT_NOTE)
		json_member_string(json, "text", event->text);
	else if (event->type == TERRA_EVENT_GPU)
		report_gpu_json_event(event->gpu, json);
	else if (event->type == TERRA_EVENT_HOST_READ || event->type == TERRA_EVENT_CALL)
		json_function(json, event);
	else
		json_op(json, event);
	json_close(json, '}');
}

static void end_line(struct json *json)
{
	fputc('\n', json->out);
	json->comma = false;
}

static void json_begin_dump(struct json *json, const struct terra_trace_info *info)
{
	json_open(json, '{');
	json_member_string(json, "type", "trace");
	json_member_u64(json, "version", info->version);
	json_member_string(json, "backend", info->backend);
	json_member_string(json, "command", info->command);
	json_member_string(json, "library", info->library);
	json_member_string(json, "build_id", info->build_id);
	json_member_string(json, "cpu", info->cpu);
	json_member_u64(json, "pid", info->pid);
	json_member_u64(json, "omp_threads", info->threads);
	json_member_u64(json, "start_ns", info->start_ns);
	json_close(json, '}');
	end_line(json);
}

static void json_end_dump(struct json *json, const struct terra_trace_reader *reader)
{
	json_open(json, '{');
	json_member_string(json, "type", "end");
	json_key(json, "ended_cleanly");
	json_bool(json, terra_trace_ended_cleanly(reader));
	json_member_u64(json, "lost", terra_trace_lost(reader));
	json_member_u64(json, "missing", terra_trace_missing(reader));
	json_close(json, '}');
	end_line(json);
}

static void dump_damage(struct json *json, bool as_json, const char *message)
{
	if (!as_json) {
		fprintf(json->out, "! %s\n", message);
		return;
	}
	json_open(json, '{');
	json_member_string(json, "type", "damage");
	json_member_string(json, "message", message);
	json_close(json, '}');
	end_line(json);
}

static void dump_event(struct json *json, bool as_json, const struct terra_event *event, uint64_t start_ns)
{
	if (!as_json) {
		print_event(event, start_ns, json->out);
		return;
	}
	json_event(json, event);
	end_line(json);
}

int terra_trace_dump(struct terra_trace_reader *reader, bool as_json, FILE *out, bool *damaged)
{
	const struct terra_trace_info *info = terra_trace_info(reader);
	struct json json = {.out = out};
	struct terra_event event;
	int ret;

	*damaged = false;
	if (as_json)
		json_begin_dump(&json, info);
	while ((ret = terra_trace_next(reader, &event)) != 0 && !ferror(out)) {
		if (ret > 0) {
			dump_event(&json, as_json, &event, info->start_ns);
			continue;
		}
		*damaged = true;
		dump_damage(&json, as_json, terra_trace_error(reader));
	}
	if (as_json)
		json_end_dump(&json, reader);
	else if (!terra_trace_ended_cleanly(reader))
		fprintf(out, "! %s\n", terra_trace_error(reader));
	*damaged |= !terra_trace_ended_cleanly(reader);
	return ferror(out) ? -EIO : 0;
}
