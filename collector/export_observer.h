/* export_observer.h - values as PyTorch's ExecutionTraceObserver writes them, which tools for execution traces read: three JSON
 * lists with an element per value. Private to the exports.
 */
#ifndef TERRA_COLLECTOR_EXPORT_OBSERVER_H
#define TERRA_COLLECTOR_EXPORT_OBSERVER_H

#include "collector/dataflow.h"
#include "collector/export_text.h"

/* Of the arguments or results of an event; valid until the text is used again, NULL when memory ran out.
 * A tensor's value is [tensor id, storage id, offset in elements, elements, bytes of one, device]; "<None>" is an absent
 * optional or an undefined tensor, "<unreadable>" what the recorder could not read. */
const char *observer_values(struct export_text *text, struct terra_dataflow *flow, const struct terra_event *event);
/* A tensor's sizes; [] for what is none. */
const char *observer_shapes(struct export_text *text, const struct terra_event *event);
/* "Tensor(float)", "GenericList[Int,Int]", "None", ... */
const char *observer_types(struct export_text *text, const struct terra_event *event);

/* Bytes of all its tensors' elements. */
uint64_t observer_bytes(const struct terra_event *event);

#endif
