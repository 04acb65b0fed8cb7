/* report_modules.h - time by torch.nn.Module: of the ops of its calls, and of those of backward passes that belong to them. */
#ifndef TERRA_COLLECTOR_REPORT_MODULES_H
#define TERRA_COLLECTOR_REPORT_MODULES_H

#include <stdint.h>

#include "collector/trace.h"

/* Outermost ops. Those of a backward pass count for the module in whose call autograd's Node was made. */
struct summary_module {
	const char *module;
	uint64_t ops;
	uint64_t total_ns;
	uint64_t backward_ops;
	uint64_t backward_ns;
};

#define REPORT_NO_MODULE UINT64_MAX

struct report_modules;

struct report_modules *report_modules_new(void);
void report_modules_free(struct report_modules *modules);

/* Takes an OP_ENTER, in the order of the trace. *place is where its time goes: REPORT_NO_MODULE for inner ops, and where no
 * module is known. Returns 0 or -ENOMEM. */
int report_modules_enter(struct report_modules *modules, const struct terra_event *event, uint64_t *place);
void report_modules_leave(struct report_modules *modules, uint64_t place, uint64_t ns);

/* Most time first, both kinds together. Valid until report_modules_free; nothing may be added any more. */
const struct summary_module *report_modules_finish(struct report_modules *modules, uint32_t *n);

#endif
