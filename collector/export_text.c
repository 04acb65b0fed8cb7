/* export_text.c - what a timeline shows of an op. */
#include "collector/export_text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "collector/report.h"
#include "collector/report_values.h"
#include "collector/trace_format.h"

#define ELEMENTS_SHOWN 8

int export_text_init(struct export_text *text)
{
	*text = (struct export_text){0};
	text->out = open_memstream(&text->data, &text->size);
	return text->out ? 0 : -ENOMEM;
}

void export_text_free(struct export_text *text)
{
	if (text->out)
		fclose(text->out);
	free(text->data);
	*text = (struct export_text){0};
}

FILE *export_text_begin(struct export_text *text)
{
	rewind(text->out);
	return text->out;
}

const char *export_text_end(struct export_text *text)
{
	fputc('\0', text->out); /* the stream still holds what was longer before */
	return fflush(text->out) == 0 && !ferror(text->out) ? text->data : NULL;
}

/* Values, shorter than in a dump. */

static void print_tensor(const struct terra_tensor *t, FILE *out)
{
	int dims = t->ndim < TERRA_MAX_DIM ? t->ndim : TERRA_MAX_DIM;

	if (!t->defined) {
		fputs("undefined", out);
		return;
	}
	report_print_dtype(t->dtype, out);
	fputc('[', out);
	for (int i = 0; i < dims; i++)
		fprintf(out, "%s%" PRId64, i ? "," : "", t->size[i]);
	fputs(t->ndim > TERRA_MAX_DIM ? ",...]" : "]", out);
	if (t->device_type != 0) {
		fputc(' ', out);
		report_print_device(t->device_type, t->device_index, out);
	}
}

static void print_tensors(const struct terra_value *value, FILE *out)
{
	uint32_t shown = value->recorded < ELEMENTS_SHOWN ? value->recorded : ELEMENTS_SHOWN;

	fputc('[', out);
	for (uint32_t i = 0; i < shown; i++) {
		fputs(i ? ", " : "", out);
		print_tensor(&value->u.tensors[i], out);
	}
	if (shown < value->count)
		fprintf(out, "%s... %" PRIu32 " in all", shown ? ", " : "", value->count);
	fputc(']', out);
}

static void print_value(const struct terra_value *value, FILE *out)
{
	enum trace_form form = value->present ? trace_form_of(value->kind) : TRACE_FORM_UNKNOWN;

	if (form == TRACE_FORM_TENSOR)
		print_tensor(value->u.tensor, out);
	else if (form == TRACE_FORM_TENSORS)
		print_tensors(value, out);
	else
		report_print_value(value, out);
}

static int value_pairs(struct export_text *text, const struct terra_event *event, export_pair pair, void *context)
{
	const char *word = event->type == TERRA_EVENT_OP_EXIT ? "result" : "arg";
	const char *s;
	char name[24];

	for (uint32_t i = 0; i < event->n_values; i++) {
		print_value(&event->values[i], export_text_begin(text));
		s = export_text_end(text);
		if (!s)
			return -ENOMEM;
		snprintf(name, sizeof(name), "%s%" PRIu32, word, i);
		pair(context, name, s);
	}
	return 0;
}

static int frame_pair(struct export_text *text, const char *name, const struct terra_frame *frame, export_pair pair,
		      void *context)
{
	const char *s;

	if (!frame)
		return 0;
	report_print_frame(frame, export_text_begin(text));
	s = export_text_end(text);
	if (!s)
		return -ENOMEM;
	pair(context, name, s);
	return 0;
}

static void number_pair(const char *name, const char *format, uint64_t v, export_pair pair, void *context)
{
	char number[24];

	snprintf(number, sizeof(number), format, v);
	pair(context, name, number);
}

/* Fields that only some events have. */
static void optional_pairs(const struct terra_event *event, export_pair pair, void *context)
{
	const bool enter = event->type == TERRA_EVENT_OP_ENTER;

	if (event->keyset && enter)
		number_pair("keys", "0x%" PRIx64, event->keyset, pair, context);
	if (event->autograd && event->node == UINT64_MAX)
		pair(context, enter ? "backward_node" : "node", "accumulates a grad");
	else if (event->autograd)
		number_pair(enter ? "backward_node" : "node", "%" PRIu64, event->node, pair, context);
	if (event->autograd && enter && event->forward_seq != UINT64_MAX)
		number_pair("forward", "%" PRIu64, event->forward_seq, pair, context);
	if (event->module)
		pair(context, "module", event->module);
}

int export_pairs(struct export_text *text, const struct terra_event *event, export_pair pair, void *context)
{
	int err;

	if (event->type != TERRA_EVENT_OP_EXIT)
		number_pair("seq", "%" PRIu64, event->seq, pair, context);
	optional_pairs(event, pair, context);
	err = value_pairs(text, event, pair, context);
	if (!err && event->n_frames)
		err = frame_pair(text, "at", &event->frames[0], pair, context);
	if (!err && event->n_frames)
		err = frame_pair(text, "from", report_caller_of(event), pair, context);
	return err;
}

const char *export_beside_name(struct export_text *text, const struct terra_event *event)
{
	FILE *out = export_text_begin(text);

	fprintf(out, "%s %s", event->type == TERRA_EVENT_HOST_READ ? "read by" : "call by", event->text);
	if (event->op)
		fprintf(out, " %s", event->op);
	if (event->op && event->overload && event->overload[0])
		fprintf(out, ".%s", event->overload);
	return export_text_end(text);
}

const char *export_op_name(struct export_text *text, const struct terra_event *event)
{
	FILE *out = export_text_begin(text);

	fputs(event->op, out);
	if (event->overload[0])
		fprintf(out, ".%s", event->overload);
	return export_text_end(text);
}

const char *export_level_name(uint8_t level)
{
	return level == TERRA_LEVEL_CALL ? "call" : level == TERRA_LEVEL_REDISPATCH ? "redispatch" : "other level";
}

const char *export_mark_name(const struct export_mark *mark)
{
	switch (mark->type) {
	case TERRA_EVENT_LOST:
		return "events lost";
	case TERRA_EVENT_NOTE:
		return "note";
	default:
		return "damage";
	}
}

const char *export_end_text(enum export_end end)
{
	switch (end) {
	case EXPORT_RAISED:
		return "left by an exception";
	case EXPORT_NO_EXIT:
		return "its exit is not in the trace";
	case EXPORT_OPEN:
		return "not over when the trace ends";
	default:
		return NULL;
	}
}
