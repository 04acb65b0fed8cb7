/* alloc.h - puts the arena behind c10::alloc_cpu and c10::free_cpu, through which PyTorch's CPU tensors get memory.
 *
 * The library defines both under their C++ names; being preloaded, its definitions win over libc10's. Every library
 * reaches them through its own slots, so a block made by one definition is always freed by ours.
 *
 * What the arena doesn't serve (small or absurd sizes, no memory left, PyTorch's fill and NUMA flags set, alloc
 * disabled) goes to the original, so its errors, fills and warnings are the program's own.
 */
#ifndef TERRA_REPLAY_ALLOC_H
#define TERRA_REPLAY_ALLOC_H

#include <stdbool.h>

/* Called once, in the first alloc_cpu of the process, before it allocates: the sign that libtorch is mapped. The
 * thread that called holds no lock of ours; other threads' calls wait until it returns, its own pass. May call
 * alloc_set_enabled. Set it from a constructor. */
extern void (*alloc_first_call)(void);

/* Whether new blocks come from the arena; on unless TERRA_MODE is "off". Blocks handed out before stay valid. */
void alloc_set_enabled(bool enabled);
bool alloc_enabled(void);

#endif
