/* pystack_walk.h - from a CPython thread state to its frames, by reading structs: one walk for BPF and user space.
 *
 * A walk gives (code object, instruction offset) pairs; names and lines come later from the code object (pystack.h),
 * outside of the traced thread. The includer defines PYSTACK_READ(context, destination, size, address), which is 0 when
 * all bytes were read: a probe read in BPF, process_vm_readv for another process, memcpy for the own thread.
 *
 * Only constant-size reads into a scratch structure, and offsets are masked to its size, so that the BPF verifier can
 * follow; the masks change nothing for a layout that pystack_layout_load() accepted.
 */
#ifndef TERRA_COLLECTOR_PYSTACK_WALK_H
#define TERRA_COLLECTOR_PYSTACK_WALK_H

#include "collector/pystack_layout.h"

#ifndef PYSTACK_READ
#error "define PYSTACK_READ first"
#endif

static inline uint64_t pystack_frame_word(const struct pystack_scratch *scratch, uint8_t offset)
{
	return *(const uint64_t *)(scratch->frame + (offset & 0x78));
}

static inline uint64_t pystack_code_word(const struct pystack_scratch *scratch, uint8_t offset)
{
	return *(const uint64_t *)(scratch->code + (offset & 0xf8));
}

static inline uint32_t pystack_mix(uint32_t hash, uint64_t word)
{
	hash = (hash ^ (uint32_t)word ^ (uint32_t)(word >> 32)) * 0x9e3779b1u;
	return hash ^ (hash >> 15);
}

static inline uint32_t pystack_check(const struct pystack_layout *layout, const struct pystack_scratch *scratch)
{
	uint32_t hash = *(const uint32_t *)(scratch->code + (layout->code_first_line & 0xfc));

	hash = pystack_mix(hash, pystack_code_word(scratch, layout->code_filename));
	hash = pystack_mix(hash, pystack_code_word(scratch, layout->code_name));
	hash = pystack_mix(hash, pystack_code_word(scratch, layout->code_qualname));
	return pystack_mix(hash, pystack_code_word(scratch, layout->code_linetable));
}

/* The thread state whose native thread id is `tid`; 0 when there is none (a thread without Python, or a list that
 * changed under us). Says nothing about who holds the GIL: operators usually run without it. */
static inline uint64_t pystack_find_thread(const struct pystack_layout *layout, void *context, uint64_t tid)
{
	uint64_t state, id;

	if (PYSTACK_READ(context, &state, sizeof(state), layout->threads_head))
		return 0;
	for (int i = 0; i < PYSTACK_MAX_THREADS && state; i++) {
		if (PYSTACK_READ(context, &id, sizeof(id), state + layout->state_native_id))
			return 0;
		if (id == tid)
			return state;
		if (PYSTACK_READ(context, &state, sizeof(state), state + layout->state_next))
			return 0;
	}
	return 0;
}

/* The innermost frame of a thread state; 0 when it runs no Python code. */
static inline uint64_t pystack_first_frame(const struct pystack_layout *layout, void *context, uint64_t state)
{
	uint64_t frame;

	if (PYSTACK_READ(context, &frame, sizeof(frame), state + layout->state_frame))
		return 0;
	if (layout->has_cframe && frame && PYSTACK_READ(context, &frame, sizeof(frame), frame + layout->cframe_frame))
		return 0;
	return frame;
}

/* Whether the function is (self, *args, **kwargs), as what calls a torch.nn.Module is. Names cannot be compared here; this
 * is what makes the first local of few other frames recorded. */
static inline int pystack_takes_any(const struct pystack_layout *layout, const struct pystack_scratch *scratch)
{
	uint32_t flags = *(const uint32_t *)(scratch->code + (layout->code_flags & 0xfc));
	uint32_t arguments = *(const uint32_t *)(scratch->code + (layout->code_argcount & 0xfc));

	return layout->frame_locals && arguments == 1 && (flags & PYSTACK_TAKES_ANY) == PYSTACK_TAKES_ANY;
}

/* Reads *frame into *entry and moves *frame to its caller (0: that was the last one). 1: entry was filled; 0: this
 * frame is the interpreter's own; -1: unreadable, or not a frame, so the walk ends here. */
static inline int pystack_step(const struct pystack_layout *layout, void *context, struct pystack_scratch *scratch,
			       uint64_t *frame, struct pystack_entry *entry)
{
	uint64_t code, instr, here = *frame;

	if (PYSTACK_READ(context, scratch->frame, PYSTACK_FRAME_BYTES, *frame))
		return -1;
	*frame = pystack_frame_word(scratch, layout->frame_previous);
	if (*(scratch->frame + (layout->frame_owner & 0x7f)) >= layout->owner_native)
		return 0;
	code = pystack_frame_word(scratch, layout->frame_code) & ~PYSTACK_TAG_BITS;
	if (PYSTACK_READ(context, scratch->code, PYSTACK_CODE_BYTES, code))
		return -1;
	if (pystack_code_word(scratch, 8) != layout->code_type)
		return -1;
	instr = pystack_frame_word(scratch, layout->frame_instr);
	code += layout->code_bytecode;
	entry->offset = instr >= code ? (uint32_t)(instr - code) : PYSTACK_NOT_BEGUN;
	entry->code = code - layout->code_bytecode;
	entry->check = pystack_check(layout, scratch);
	entry->self = 0;
	if (pystack_takes_any(layout, scratch) &&
	    !PYSTACK_READ(context, &instr, sizeof(instr), here + layout->frame_locals))
		entry->self = instr & ~PYSTACK_TAG_BITS;
	return 1;
}

#endif
