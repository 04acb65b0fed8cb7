/* export_text.h - what a timeline shows of an op, as pairs of name and text; private to the exports. */
#ifndef TERRA_COLLECTOR_EXPORT_TEXT_H
#define TERRA_COLLECTOR_EXPORT_TEXT_H

#include <stdio.h>

#include "collector/export_walk.h"

/* Text that is written to a stream and read in memory. */
struct export_text {
	FILE *out;
	char *data;
	size_t size;
};

int export_text_init(struct export_text *text); /* 0 or -ENOMEM */
void export_text_free(struct export_text *text);
/* An empty stream again. */
FILE *export_text_begin(struct export_text *text);
/* What was written since, valid until the next begin; NULL when memory ran out. */
const char *export_text_end(struct export_text *text);

typedef void (*export_pair)(void *context, const char *name, const char *text);

/* Of an OP_ENTER, and as far as they have it of a HOST_READ and CALL: seq, keyset, what autograd knows, arguments ("arg0":
 * "float32[64,512]"), the innermost frame and the nearest one of the program. Of an OP_EXIT: the Node that the op made, and
 * results. Returns 0 or -ENOMEM. */
int export_pairs(struct export_text *text, const struct terra_event *event, export_pair pair, void *context);

/* "read by numpy", "call by torch.ops aten::mul.Tensor": a HOST_READ or CALL. */
const char *export_beside_name(struct export_text *text, const struct terra_event *event);
/* "aten::mul.Tensor" */
const char *export_op_name(struct export_text *text, const struct terra_event *event);
const char *export_level_name(uint8_t level);
const char *export_mark_name(const struct export_mark *mark);
/* How an op ended, for people; NULL when it returned. */
const char *export_end_text(enum export_end end);

#endif
