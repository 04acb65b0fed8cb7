/* attention.h - whether ops that no region has must come to hook_enter, too. */
#pragma once

#include <stdint.h>

struct replay_attention { /* while any is not zero; read by trampoline.S as one word */
	_Alignas(8) uint32_t pending; /* ops waiting (queue.c) */
	uint32_t timed;               /* something is being timed (trial.c) */
};
extern volatile struct replay_attention replay_attention; /* trial.c */
