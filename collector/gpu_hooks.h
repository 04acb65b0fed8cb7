/* gpu_hooks.h - what the two libraries in a traced program tell each other: the recorder (preload/) exports the variable
 * `terra_record_gpu`, the library that CUDA injects (cupti/) fills it once it records. Either may be there without the other.
 */
#ifndef TERRA_COLLECTOR_GPU_HOOKS_H
#define TERRA_COLLECTOR_GPU_HOOKS_H

#include <stdint.h>

struct terra_gpu_hooks {
	/* What this thread asks CUDA for from here on belongs to the op whose OP_ENTER has this time, until the pop. NULL: nobody
	 * wants to know. Read and written atomically; never taken back. */
	void (*push)(uint64_t enter_ns);
	void (*pop)(void);
	void (*leave)(void); /* the process ends without its exit handlers */
};

extern struct terra_gpu_hooks terra_record_gpu; /* the recorder has it */

#endif
