/* report_values.h - values of a trace as text and as JSON, for all that print them. */
#ifndef TERRA_COLLECTOR_REPORT_VALUES_H
#define TERRA_COLLECTOR_REPORT_VALUES_H

#include <stdio.h>

#include "collector/report_json.h"
#include "collector/trace.h"

/* Text, as terra-report --dump has it. */
void report_print_value(const struct terra_value *value, FILE *out);
void report_print_dtype(int64_t dtype, FILE *out);
void report_print_device(int type, int index, FILE *out);

/* The nearest frame outside of installed packages; NULL when that is the innermost one, or there is none. */
const struct terra_frame *report_caller_of(const struct terra_event *event);

/* JSON, as docs/export-json.md has it. The stack is a member of an object, "stack". */
void report_json_value(struct json *json, const struct terra_value *value);
void report_json_stack(struct json *json, const struct terra_event *event);

#endif
