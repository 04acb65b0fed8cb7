/* export_observer.c - values as PyTorch's ExecutionTraceObserver writes them. */
#include "collector/export_observer.h"

#include <errno.h>
#include <string.h>

#include "collector/report_json.h"
#include "collector/trace_format.h"

static const struct {
	const char *name; /* as the observer has it: the C++ type's */
	uint32_t bytes;
} dtypes[] = {
	{"unsigned char", 1},
	{"signed char", 1},
	{"short", 2},
	{"int", 4},
	{"long int", 8},
	{"c10::Half", 2},
	{"float", 4},
	{"double", 8},
	{"c10::complex<c10::Half>", 4},
	{"c10::complex<float>", 8},
	{"c10::complex<double>", 16},
	{"bool", 1},
	{"c10::qint8", 1},
	{"c10::quint8", 1},
	{"c10::qint32", 4},
	{"c10::BFloat16", 2},
};

static bool has_dtype(const struct terra_tensor *t)
{
	return t->dtype >= 0 && (size_t)t->dtype < sizeof(dtypes) / sizeof(dtypes[0]);
}

static uint32_t element_bytes(const struct terra_tensor *t)
{
	return has_dtype(t) ? dtypes[t->dtype].bytes : 0;
}

static void json_device(struct json *json, int type, int index)
{
	static const char *const names[] = {"cpu", "cuda"};
	char text[40];
	int n;

	if (type >= 0 && (size_t)type < sizeof(names) / sizeof(names[0]))
		n = snprintf(text, sizeof(text), "%s", names[type]);
	else
		n = snprintf(text, sizeof(text), "device%d", type);
	if (index >= 0)
		snprintf(text + n, sizeof(text) - (size_t)n, ":%d", index);
	json_string(json, text);
}

static int tensor_values(struct terra_dataflow *flow, struct json *json, const struct terra_tensor *t)
{
	struct terra_dataflow_ids ids;

	if (!t->defined) {
		json_string(json, "<None>");
		return 0;
	}
	if (terra_dataflow_look(flow, t, &ids) != 0)
		return -ENOMEM;
	json_open(json, '[');
	json_u64(json, ids.tensor);
	json_u64(json, ids.storage);
	json_i64(json, t->storage_offset);
	json_i64(json, t->numel);
	json_u64(json, element_bytes(t));
	json_device(json, t->device_type, t->device_index);
	json_close(json, ']');
	return 0;
}

static void scalar_value(struct json *json, const struct terra_value *value)
{
	if (value->scalar_tag == 'f')
		json_double(json, value->u.d);
	else if (value->scalar_tag == 'i')
		json_i64(json, value->u.i);
	else if (value->scalar_tag == 'b')
		json_bool(json, value->u.i != 0);
	else if (value->scalar_tag == 'z') {
		json_open(json, '[');
		json_double(json, value->u.z[0]);
		json_double(json, value->u.z[1]);
		json_close(json, ']');
	} else {
		json_string(json, "<unreadable>");
	}
}

static int element_value(struct terra_dataflow *flow, struct json *json, const struct terra_value *value, uint32_t i)
{
	switch (trace_form_of(value->kind)) {
	case TRACE_FORM_TENSORS:
		return tensor_values(flow, json, &value->u.tensors[i]);
	case TRACE_FORM_DOUBLES:
		json_double(json, value->u.doubles[i]);
		return 0;
	case TRACE_FORM_SCALARS:
		scalar_value(json, &value->u.scalars[i]);
		return 0;
	default:
		if (value->kind == TERRA_KIND_BOOL_ARRAY)
			json_bool(json, value->u.ints[i] != 0);
		else
			json_i64(json, value->u.ints[i]);
		return 0;
	}
}

static int list_values(struct terra_dataflow *flow, struct json *json, const struct terra_value *value)
{
	int err = 0;

	json_open(json, '[');
	for (uint32_t i = 0; i < value->recorded && !err; i++)
		err = element_value(flow, json, value, i);
	json_close(json, ']');
	return err;
}

static void int_value(struct json *json, const struct terra_value *value)
{
	if (value->kind == TERRA_KIND_BOOL || value->kind == TERRA_KIND_OPT_BOOL)
		json_bool(json, value->u.i != 0);
	else if (value->kind == TERRA_KIND_DEVICE || value->kind == TERRA_KIND_OPT_DEVICE)
		json_device(json, (int)(value->u.i >> 8), (int8_t)(value->u.i & 0xff));
	else
		json_i64(json, value->u.i);
}

/* An absent optional is "<None>"; what could not be read says so. */
static const char *no_value(const struct terra_value *value)
{
	const char *kind = terra_kind_name(value->kind);

	return kind[strlen(kind) - 1] == '?' ? "<None>" : "<unreadable>";
}

static int json_value(struct terra_dataflow *flow, struct json *json, const struct terra_value *value)
{
	if (!value->present) {
		json_string(json, no_value(value));
		return 0;
	}
	switch (trace_form_of(value->kind)) {
	case TRACE_FORM_TENSOR:
		return tensor_values(flow, json, value->u.tensor);
	case TRACE_FORM_SCALAR:
		scalar_value(json, value);
		return 0;
	case TRACE_FORM_DOUBLE:
		json_double(json, value->u.d);
		return 0;
	case TRACE_FORM_STRING:
		json_bytes(json, value->u.string, value->recorded);
		return 0;
	case TRACE_FORM_INT:
		int_value(json, value);
		return 0;
	default:
		return list_values(flow, json, value);
	}
}

static void tensor_shape(struct json *json, const struct terra_tensor *t)
{
	int dims = !t->defined ? 0 : t->ndim < TERRA_MAX_DIM ? t->ndim : TERRA_MAX_DIM;

	json_open(json, '[');
	for (int i = 0; i < dims; i++)
		json_i64(json, t->size[i]);
	json_close(json, ']');
}

static bool is_list(const struct terra_value *value)
{
	enum trace_form form = trace_form_of(value->kind);

	return value->present && (form == TRACE_FORM_TENSORS || form == TRACE_FORM_INTS || form == TRACE_FORM_DOUBLES ||
				  form == TRACE_FORM_SCALARS);
}

static void json_shape(struct json *json, const struct terra_value *value)
{
	static const struct terra_tensor none;
	uint32_t n;
	const struct terra_tensor *tensors = terra_value_tensors(value, &n);

	if (!is_list(value)) {
		tensor_shape(json, tensors ? tensors : &none);
		return;
	}
	json_open(json, '[');
	for (uint32_t i = 0; i < value->recorded; i++)
		tensor_shape(json, tensors ? &tensors[i] : &none);
	json_close(json, ']');
}

static void print_tensor_type(const struct terra_tensor *t, FILE *out)
{
	if (!t->defined)
		fputs("None", out);
	else if (has_dtype(t))
		fprintf(out, "Tensor(%s)", dtypes[t->dtype].name);
	else
		fprintf(out, "Tensor(dtype%d)", t->dtype);
}

static const char *scalar_type(const struct terra_value *value)
{
	switch (value->scalar_tag) {
	case 'f':
		return "Double";
	case 'i':
		return "Int";
	case 'b':
		return "Bool";
	case 'z':
		return "ComplexDouble";
	default:
		return "Scalar";
	}
}

static void print_element_type(const struct terra_value *value, uint32_t i, FILE *out)
{
	enum trace_form form = trace_form_of(value->kind);

	if (form == TRACE_FORM_TENSORS)
		print_tensor_type(&value->u.tensors[i], out);
	else if (form == TRACE_FORM_SCALARS)
		fputs(scalar_type(&value->u.scalars[i]), out);
	else
		fputs(form == TRACE_FORM_DOUBLES	     ? "Double"
		      : value->kind == TERRA_KIND_BOOL_ARRAY ? "Bool"
							     : "Int",
		      out);
}

static const char *int_type(const struct terra_value *value)
{
	switch (value->kind) {
	case TERRA_KIND_BOOL:
	case TERRA_KIND_OPT_BOOL:
		return "Bool";
	case TERRA_KIND_DEVICE:
	case TERRA_KIND_OPT_DEVICE:
		return "Device";
	case TERRA_KIND_GENERATOR:
		return "Generator";
	case TERRA_KIND_STORAGE:
		return "Storage";
	default:
		return "Int";
	}
}

static void print_type(const struct terra_value *value, FILE *out)
{
	enum trace_form form = trace_form_of(value->kind);

	if (!value->present) {
		fputs(no_value(value)[1] == 'N' ? "None" : "Unreadable", out);
	} else if (is_list(value)) {
		fputs("GenericList[", out);
		for (uint32_t i = 0; i < value->recorded; i++) {
			fputs(i ? "," : "", out);
			print_element_type(value, i, out);
		}
		fputc(']', out);
	} else if (form == TRACE_FORM_TENSOR) {
		print_tensor_type(value->u.tensor, out);
	} else {
		fputs(form == TRACE_FORM_SCALAR	  ? scalar_type(value)
		      : form == TRACE_FORM_DOUBLE ? "Double"
		      : form == TRACE_FORM_STRING ? "String"
						  : int_type(value),
		      out);
	}
}

/* The three lists. */

const char *observer_values(struct export_text *text, struct terra_dataflow *flow, const struct terra_event *event)
{
	struct json json = {.out = export_text_begin(text)};
	int err = 0;

	json_open(&json, '[');
	for (uint32_t i = 0; i < event->n_values && !err; i++)
		err = json_value(flow, &json, &event->values[i]);
	json_close(&json, ']');
	return err ? NULL : export_text_end(text);
}

const char *observer_shapes(struct export_text *text, const struct terra_event *event)
{
	struct json json = {.out = export_text_begin(text)};

	json_open(&json, '[');
	for (uint32_t i = 0; i < event->n_values; i++)
		json_shape(&json, &event->values[i]);
	json_close(&json, ']');
	return export_text_end(text);
}

const char *observer_types(struct export_text *text, const struct terra_event *event)
{
	FILE *out = export_text_begin(text);

	fputc('[', out);
	for (uint32_t i = 0; i < event->n_values; i++) {
		fputs(i ? ",\"" : "\"", out);
		print_type(&event->values[i], out);
		fputc('"', out);
	}
	fputc(']', out);
	return export_text_end(text);
}

uint64_t observer_bytes(const struct terra_event *event)
{
	uint64_t bytes = 0;
	uint32_t n;

	for (uint32_t i = 0; i < event->n_values; i++) {
		const struct terra_tensor *tensors = terra_value_tensors(&event->values[i], &n);

		for (uint32_t k = 0; k < n; k++)
			if (tensors[k].defined)
				bytes += (uint64_t)tensors[k].numel * element_bytes(&tensors[k]);
	}
	return bytes;
}
