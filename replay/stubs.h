/* stubs.h - numbers that trampoline.S and hooks.c share. */
#ifndef TERRA_REPLAY_STUBS_H
#define TERRA_REPLAY_STUBS_H

#define REPLAY_PLAIN_STUBS 6144
#define REPLAY_REGION_STUBS 512
#define REPLAY_STUB_SIZE 16
#define REPLAY_REGS_SIZE 192 /* struct hook_regs */

#endif
