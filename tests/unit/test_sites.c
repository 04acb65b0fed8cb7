/* Where to probe ops: hand-assembled functions in a made-up library, and those of a real one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "collector/bpf/code.h"
#include "collector/bpf/sites.h"
#include "collector/bpf/sites_private.h"
#include "real_torch.h"
#include "tests/unit/elf_sample.h"

/* One function each; the first byte pattern is unique, so that the place in the file can be found. */
static const uint8_t one_ret[] = {0x55, 0x48, 0x89, 0xe5, 0x5d, 0xc3, 0x0f, 0x1f, 0x40, 0x00}; /* push..pop; ret; nop */
static const uint8_t two_rets[] = {0x53, 0x85, 0xff, 0x74, 0x02, 0x5b, 0xc3, 0x5b, 0xc3};      /* je over; pop; ret */
static const uint8_t tail_register[] = {0x54, 0x41, 0x5f, 0xff, 0xe0};			       /* pop r15; jmp *rax */
static const uint8_t tail_direct[] = {0x56, 0x5e, 0xe9, 0x00, 0x10, 0x00, 0x00};	       /* pop; jmp far */
static const uint8_t both_ways[] = {0x57, 0x85, 0xff, 0x74, 0x02, 0x5f, 0xc3, 0x5f, 0xff, 0xe0};
static const uint8_t switch_jump[] = {0x50, 0x48, 0x89, 0xf8, 0xff, 0xe0, 0x58, 0xc3}; /* mov; jmp *rax; pop; ret */
static const uint8_t hidden_c3[] = {0x51, 0xb8, 0xc3, 0xc3, 0xc3, 0xc3, 0x59, 0xc3};   /* mov $0xc3c3c3c3, eax */
static const uint8_t not_code[] = {0x52, 0x06, 0x06, 0x06};			       /* no 64-bit instruction */

static const uint8_t through_free[] = {
	0x55,			  /* push rbp */
	0x48, 0x89, 0xe5,		  /* mov rsp,rbp */
	0x53,			  /* push rbx */
	0x48, 0x83, 0xec, 0x28,	  /* sub $0x28,rsp */
	0x48, 0x89, 0x7d, 0xd8,	  /* mov rdi,-0x28(rbp) */
	0xff, 0xd0,			  /* call *rax */
	0x48, 0x8d, 0x45, 0xe0,	  /* lea -0x20(rbp),rax */
	0x48, 0x39, 0xc7,		  /* cmp rax,rdi */
	0x74, 0x05,			  /* je 1d */
	0xe8, 0xb7, 0x01, 0x00, 0x00, /* call 1d4 */
	0x48, 0x8b, 0x45, 0xd8,	  /* mov -0x28(rbp),rax */
	0x48, 0x8d, 0x65, 0xf8,	  /* lea -0x8(rbp),rsp */
	0x5b,			  /* pop rbx */
	0x5d,			  /* pop rbp */
	0xc3,			  /* ret */
};
static const uint8_t in_register[] = {
	0x53,			  /* push rbx */
	0x48, 0x83, 0xec, 0x10,	  /* sub $0x10,rsp */
	0x48, 0x89, 0xfb,		  /* mov rdi,rbx */
	0xff, 0xd0,			  /* call *rax */
	0x85, 0xc0,			  /* test eax,eax */
	0x74, 0x05,			  /* je 3b */
	0xe8, 0x99, 0x01, 0x00, 0x00, /* call 1d4 */
	0x48, 0x83, 0xc4, 0x10,	  /* add $0x10,rsp */
	0x48, 0x89, 0xd8,		  /* mov rbx,rax */
	0x5b,			  /* pop rbx */
	0xc3,			  /* ret */
};
static const uint8_t other_call[] = {
	0x53,			  /* push rbx */
	0x48, 0x89, 0xfb,		  /* mov rdi,rbx */
	0xff, 0xd0,			  /* call *rax */
	0x85, 0xc0,			  /* test eax,eax */
	0x74, 0x05,			  /* je 53 */
	0xe8, 0x87, 0x01, 0x00, 0x00, /* call 1da */
	0x48, 0x89, 0xd8,		  /* mov rbx,rax */
	0x5b,			  /* pop rbx */
	0xc3,			  /* ret */
};
static const uint8_t late_store[] = {
	0x53,				      /* push rbx */
	0x48, 0x89, 0xfb,			      /* mov rdi,rbx */
	0xff, 0xd0,				      /* call *rax */
	0x85, 0xc0,				      /* test eax,eax */
	0x74, 0x01,				      /* je 63 */
	0x90,				      /* nop */
	0x48, 0xc7, 0x03, 0x00, 0x00, 0x00, 0x00, /* movq $0x0,(rbx) */
	0x48, 0x89, 0xd8,			      /* mov rbx,rax */
	0x5b,				      /* pop rbx */
	0xc3,				      /* ret */
};
static const uint8_t two_ways[] = {
	0x53,	      /* push rbx */
	0x48, 0x89, 0xfb, /* mov rdi,rbx */
	0x85, 0xff,	      /* test edi,edi */
	0x74, 0x04,	      /* je 7b */
	0xff, 0xd0,	      /* call *rax */
	0xeb, 0x06,	      /* jmp 81 */
	0xff, 0xd1,	      /* call *rcx */
	0xeb, 0x02,	      /* jmp 81 */
	0x66, 0x90,	      /* xchg ax,ax */
	0x48, 0x89, 0xd8, /* mov rbx,rax */
	0x5b,	      /* pop rbx */
	0xc3,	      /* ret */
};
static const uint8_t twice[] = {
	0x53,	      /* push rbx */
	0x48, 0x89, 0xfb, /* mov rdi,rbx */
	0x85, 0xff,	      /* test edi,edi */
	0x74, 0x08,	      /* je 96 */
	0xff, 0xd0,	      /* call *rax */
	0x39, 0xc1,	      /* cmp eax,ecx */
	0x74, 0x08,	      /* je 9c */
	0xeb, 0x09,	      /* jmp 9f */
	0xff, 0xd1,	      /* call *rcx */
	0xeb, 0x05,	      /* jmp 9f */
	0x66, 0x90,	      /* xchg ax,ax */
	0x83, 0xc0, 0x00, /* add $0x0,eax */
	0x48, 0x89, 0xd8, /* mov rbx,rax */
	0x5b,	      /* pop rbx */
	0xc3,	      /* ret */
};
static const uint8_t only_one_way[] = {
	0x53,	      /* push rbx */
	0x48, 0x89, 0xfb, /* mov rdi,rbx */
	0x85, 0xff,	      /* test edi,edi */
	0x74, 0x04,	      /* je b0 */
	0xff, 0xd0,	      /* call *rax */
	0xeb, 0x02,	      /* jmp b2 */
	0xff, 0xd1,	      /* call *rcx */
	0x48, 0x89, 0xd8, /* mov rbx,rax */
	0x5b,	      /* pop rbx */
	0xc3,	      /* ret */
};
static const uint8_t loop[] = {
	0x53,	      /* push rbx */
	0x48, 0x89, 0xfb, /* mov rdi,rbx */
	0xff, 0xd0,	      /* call *rax */
	0xff, 0xc9,	      /* dec ecx */
	0x75, 0xfc,	      /* jne bd */
	0x48, 0x89, 0xd8, /* mov rbx,rax */
	0x5b,	      /* pop rbx */
	0xc3,	      /* ret */
};
static const uint8_t hidden[] = {
	0x53,	      /* push rbx */
	0x48, 0x89, 0xfb, /* mov rdi,rbx */
	0x85, 0xff,	      /* test edi,edi */
	0x74, 0x05,	      /* je d3 */
	0x48, 0x89, 0xda, /* mov rbx,rdx */
	0xff, 0xe2,	      /* jmp *rdx */
	0xff, 0xd0,	      /* call *rax */
	0xeb, 0x00,	      /* jmp d7 */
	0x48, 0x89, 0xd8, /* mov rbx,rax */
	0x5b,	      /* pop rbx */
	0xc3,	      /* ret */
};
static const uint8_t differs[] = {
	0x53,	      /* push rbx */
	0x48, 0x89, 0xfb, /* mov rdi,rbx */
	0xff, 0xd0,	      /* call *rax */
	0x85, 0xc0,	      /* test eax,eax */
	0x74, 0x05,	      /* je eb */
	0x48, 0x89, 0xd8, /* mov rbx,rax */
	0x5b,	      /* pop rbx */
	0xc3,	      /* ret */
	0x48, 0x89, 0xf0, /* mov rsi,rax */
	0x5b,	      /* pop rbx */
	0xc3,	      /* ret */
};
static const uint8_t agrees[] = {
	0x53,	      /* push rbx */
	0x48, 0x89, 0xfb, /* mov rdi,rbx */
	0xff, 0xd0,	      /* call *rax */
	0x85, 0xc0,	      /* test eax,eax */
	0x74, 0x05,	      /* je ff */
	0x48, 0x89, 0xd8, /* mov rbx,rax */
	0x5b,	      /* pop rbx */
	0xc3,	      /* ret */
	0x48, 0x89, 0xd8, /* mov rbx,rax */
	0x5b,	      /* pop rbx */
	0xc3,	      /* ret */
};
static const uint8_t overwritten[] = {
	0x53,					    /* push rbx */
	0x57,					    /* push rdi */
	0xff, 0xd0,					    /* call *rax */
	0xeb, 0x00,					    /* jmp 10a */
	0x48, 0xc7, 0x04, 0x24, 0x00, 0x00, 0x00, 0x00, /* movq $0x0,(rsp) */
	0x48, 0x8b, 0x04, 0x24,			    /* mov (rsp),rax */
	0x5b,					    /* pop rbx */
	0x5b,					    /* pop rbx */
	0xc3,					    /* ret */
};
static const uint8_t lost[] = {
	0x53,		    /* push rbx */
	0x57,		    /* push rdi */
	0xff, 0xd0,		    /* call *rax */
	0xeb, 0x00,		    /* jmp 11f */
	0x48, 0x89, 0xd0,	    /* mov rdx,rax */
	0x48, 0xc1, 0xe0, 0x03, /* shl $0x3,rax */
	0x5b,		    /* pop rbx */
	0x5b,		    /* pop rbx */
	0xc3,		    /* ret */
};
static const uint8_t spilled[] = {
	0x41, 0x55,				/* push r13 */
	0x49, 0x89, 0xfd,			/* mov rdi,r13 */
	0x53,				/* push rbx */
	0x48, 0x89, 0xf3,			/* mov rsi,rbx */
	0x48, 0x83, 0xec, 0x18,		/* sub $0x18,rsp */
	0xf2, 0x0f, 0x11, 0x44, 0x24, 0x08, /* movsd xmm0,0x8(rsp) */
	0x0f, 0xb6, 0x03,			/* movzbl (rbx),eax */
	0x84, 0xc0,				/* test al,al */
	0x75, 0x02,				/* jne 145 */
	0xff, 0xd0,				/* call *rax */
	0x90,				/* nop */
	0x48, 0x83, 0xc4, 0x18,		/* add $0x18,rsp */
	0x5b,				/* pop rbx */
	0x41, 0x5d,				/* pop r13 */
	0xc3,				/* ret */
};
static const uint8_t moved[] = {
	0x41, 0x55,				/* push r13 */
	0x49, 0x89, 0xfd,			/* mov rdi,r13 */
	0x53,				/* push rbx */
	0x48, 0x89, 0xf3,			/* mov rsi,rbx */
	0x48, 0x83, 0xec, 0x18,		/* sub $0x18,rsp */
	0xf2, 0x0f, 0x11, 0x44, 0x24, 0x08, /* movsd xmm0,0x8(rsp) */
	0x31, 0xff,				/* xor edi,edi */
	0xbe, 0x01, 0x00, 0x00, 0x00,	/* mov $0x1,esi */
	0x51,				/* push rcx */
	0xff, 0xd0,				/* call *rax */
	0x59,				/* pop rcx */
	0x48, 0x83, 0xc4, 0x18,		/* add $0x18,rsp */
	0x5b,				/* pop rbx */
	0x41, 0x5d,				/* pop r13 */
	0xc3,				/* ret */
};
static const uint8_t gone[] = {
	0x41, 0x55,						  /* push r13 */
	0x53,						  /* push rbx */
	0x48, 0x83, 0xec, 0x18,				  /* sub $0x18,rsp */
	0xf2, 0x0f, 0x11, 0x44, 0x24, 0x08,			  /* movsd xmm0,0x8(rsp) */
	0x48, 0xc7, 0x44, 0x24, 0x08, 0x00, 0x00, 0x00, 0x00, /* movq $0x0,0x8(rsp) */
	0x0f, 0x57, 0xc0,					  /* xorps xmm0,xmm0 */
	0x51,						  /* push rcx */
	0xff, 0xd0,						  /* call *rax */
	0x59,						  /* pop rcx */
	0x48, 0x83, 0xc4, 0x18,				  /* add $0x18,rsp */
	0x5b,						  /* pop rbx */
	0x41, 0x5d,						  /* pop r13 */
	0xc3,						  /* ret */
};
static const uint8_t unspilled[] = {
	0x48, 0x83, 0xec, 0x08, /* sub $0x8,rsp */
	0xff, 0xd0,		    /* call *rax */
	0x48, 0x83, 0xc4, 0x08, /* add $0x8,rsp */
	0xc3,		    /* ret */
};
static const uint8_t no_push[] = {
	0x48, 0x89, 0xfa,	    /* mov rdi,rdx */
	0x48, 0x83, 0xec, 0x18, /* sub $0x18,rsp */
	0x53,		    /* push rbx */
	0xff, 0xd0,		    /* call *rax */
	0x5b,		    /* pop rbx */
	0x48, 0x83, 0xc4, 0x18, /* add $0x18,rsp */
	0xc3,		    /* ret */
};
static const uint8_t again[] = {
	0x48, 0x83, 0xec, 0x18,		/* sub $0x18,rsp */
	0xf2, 0x0f, 0x11, 0x44, 0x24, 0x08, /* movsd xmm0,0x8(rsp) */
	0x48, 0x89, 0xfa,			/* mov rdi,rdx */
	0x53,				/* push rbx */
	0x5b,				/* pop rbx */
	0xff, 0xc9,				/* dec ecx */
	0x75, 0xf7,				/* jne 1be */
	0xff, 0xd0,				/* call *rax */
	0x48, 0x83, 0xc4, 0x18,		/* add $0x18,rsp */
	0xc3,				/* ret */
};
static const uint8_t at_once[] = {
	0x53,	      /* push rbx */
	0x48, 0x89, 0xf8, /* mov rdi,rax */
	0x5b,	      /* pop rbx */
	0xc3,	      /* ret */
};
static const uint8_t after_store[] = {
	0x53,					  /* push rbx */
	0x48, 0x89, 0xfb,			  /* mov rdi,rbx */
	0xff, 0xd0,				  /* call *rax */
	0x85, 0xc0,				  /* test eax,eax */
	0x74, 0x01,				  /* je b */
	0x90,					  /* nop */
	0x48, 0xc7, 0x03, 0x00, 0x00, 0x00, 0x00, /* movq $0x0,(rbx) */
	0xeb, 0x00,				  /* jmp 14 */
	0x48, 0x89, 0xd8,			  /* mov rbx,rax */
	0x5b,					  /* pop rbx */
	0xc3,					  /* ret */
};
static const uint8_t forgotten[] = {
	0x41, 0x55,			    /* push r13 */
	0x48, 0x83, 0xec, 0x18,		    /* sub $0x18,rsp */
	0x31, 0xff,			    /* xor edi,edi */
	0xf2, 0x0f, 0x11, 0x44, 0x24, 0x08, /* movsd xmm0,0x8(rsp) */
	0x51,				    /* push rcx */
	0xff, 0xd0,			    /* call *rax */
	0x59,				    /* pop rcx */
	0x48, 0x83, 0xc4, 0x18,		    /* add $0x18,rsp */
	0x41, 0x5d,			    /* pop r13 */
	0xc3,				    /* ret */
};
static const uint8_t counts[] = {
	0x53,		  /* push rbx */
	0x48, 0x89, 0xfb, /* mov rdi,rbx */
	0xff, 0xd0,	  /* call *rax */
	0xeb, 0x00,	  /* jmp 8 */
	0xe2, 0x00,	  /* loop a */
	0x48, 0x89, 0xd8, /* mov rbx,rax */
	0x5b,		  /* pop rbx */
	0xc3,		  /* ret */
};
static const uint8_t free_stub[] = {0xff, 0x25, 0x00, 0x00, 0x00, 0x00}; /* jmp *0(rip) */
static const uint8_t other[] = {0xff, 0x25, 0x00, 0x00, 0x00, 0x00};	/* the same; also the slot of free() */

#define FUNCTION(name) .code = (name), .size = sizeof(name)
#define TENSOR .ret = TERRA_RET_TENSOR, .gprs = 1
#define ARGUMENTS .ret = TERRA_RET_VOID, .gprs = 2, .doubles = 1
#define AT_REGISTER(number, by)                                                                                        \
	{                                                                                                              \
		.kind = TERRA_SOURCE_REGISTER, .base = (number), .offset = (by)                                        \
	}
#define AT_MEMORY(number, by)                                                                                          \
	{                                                                                                              \
		.kind = TERRA_SOURCE_MEMORY, .base = (number), .offset = (by)                                          \
	}

struct expected {
	unsigned int offset, plain;
	struct terra_source sp, result;
};

static const struct {
	const uint8_t *code;
	size_t size;
	uint8_t ret, gprs, doubles, tail_jump;
	unsigned int n_exits;
	struct expected exits[2], entry; /* an entry that is left out is at the first instruction */
	struct terra_source rdi, rsi, xmm0;
} functions[] = {
	/* What was found by its `ret`s before, and of which nothing is returned. */
	{FUNCTION(one_ret), .n_exits = 1, .exits = {{5, .plain = 1}}},
	{FUNCTION(two_rets), .n_exits = 1, .exits = {{3, .sp = AT_REGISTER(TERRA_RSP, 8)}}},
	{FUNCTION(tail_register), .tail_jump = 1},
	{FUNCTION(tail_direct), .tail_jump = 1},
	{FUNCTION(both_ways), .tail_jump = 1, .n_exits = 1, .exits = {{6, .plain = 1}}},
	{FUNCTION(switch_jump), .n_exits = 1, .exits = {{7, .plain = 1}}},
	{FUNCTION(hidden_c3), .n_exits = 1, .exits = {{7, .plain = 1}}},
	{FUNCTION(not_code), .tail_jump = 1},
	/* Tensors through rdi. */
	{FUNCTION(through_free), TENSOR, .n_exits = 1,
	 .exits = {{0x16, .sp = AT_REGISTER(TERRA_RBP, 8), .result = AT_MEMORY(TERRA_RBP, -0x28)}}},
	{FUNCTION(in_register), TENSOR, .n_exits = 1,
	 .exits = {{0xc, .sp = AT_REGISTER(TERRA_RSP, 24), .result = AT_REGISTER(TERRA_RBX, 0)}}},
	{FUNCTION(other_call), TENSOR, .n_exits = 1, .exits = {{0x13, .plain = 1}}},
	{FUNCTION(late_store), TENSOR, .n_exits = 1, .exits = {{0x16, .plain = 1}}},
	{FUNCTION(after_store), TENSOR, .n_exits = 1,
	 .exits = {{0x12, .sp = AT_REGISTER(TERRA_RSP, 8), .result = AT_REGISTER(TERRA_RBX, 0)}}},
	{FUNCTION(counts), TENSOR, .n_exits = 1, .exits = {{0xe, .plain = 1}}},
	{FUNCTION(two_ways), TENSOR, .n_exits = 2,
	 .exits = {{0xa, .sp = AT_REGISTER(TERRA_RSP, 8), .result = AT_REGISTER(TERRA_RBX, 0)},
	       {0xe, .sp = AT_REGISTER(TERRA_RSP, 8), .result = AT_REGISTER(TERRA_RBX, 0)}}},
	{FUNCTION(twice), TENSOR, .n_exits = 2,
	 .exits = {{0xc, .sp = AT_REGISTER(TERRA_RSP, 8), .result = AT_REGISTER(TERRA_RBX, 0)},
	       {0x12, .sp = AT_REGISTER(TERRA_RSP, 8), .result = AT_REGISTER(TERRA_RBX, 0)}}},
	{FUNCTION(only_one_way), TENSOR, .n_exits = 1, .exits = {{0x12, .plain = 1}}},
	{FUNCTION(loop), TENSOR, .n_exits = 1, .exits = {{0xe, .plain = 1}}},
	{FUNCTION(hidden), TENSOR, .n_exits = 1, .exits = {{0x15, .plain = 1}}},
	{FUNCTION(differs), TENSOR, .n_exits = 2, .exits = {{0xe, .plain = 1}, {0x13, .plain = 1}}},
	{FUNCTION(agrees), TENSOR, .n_exits = 1,
	 .exits = {{0x8, .sp = AT_REGISTER(TERRA_RSP, 8), .result = AT_REGISTER(TERRA_RBX, 0)}}},
	{FUNCTION(agrees), .ret = TERRA_RET_VALUE, .n_exits = 2, .exits = {{0xe, .plain = 1}, {0x13, .plain = 1}}},
	{FUNCTION(overwritten), TENSOR, .n_exits = 1, .exits = {{0x14, .plain = 1}}},
	{FUNCTION(lost), TENSOR, .n_exits = 1, .exits = {{0xf, .plain = 1}}},
	{FUNCTION(at_once), TENSOR, .n_exits = 1, .exits = {{0x5, .plain = 1}}},
	/* Arguments: two words in rdi and rsi, a double in xmm0. */
	{FUNCTION(spilled), ARGUMENTS, .n_exits = 1, .exits = {{0x1c, .sp = AT_REGISTER(TERRA_RSP, 0x28)}},
	 .entry = {0x18, .sp = AT_REGISTER(TERRA_RSP, 0x28)}, .rdi = AT_REGISTER(TERRA_RDI, 0),
	 .rsi = AT_REGISTER(TERRA_RBX, 0), .xmm0 = AT_MEMORY(TERRA_RSP, 8)},
	{FUNCTION(moved), ARGUMENTS, .n_exits = 1, .exits = {{0x25, .plain = 1}},
	 .entry = {0x1a, .sp = AT_REGISTER(TERRA_RSP, 0x28)}, .rdi = AT_REGISTER(TERRA_R13, 0),
	 .rsi = AT_REGISTER(TERRA_RBX, 0), .xmm0 = AT_MEMORY(TERRA_RSP, 8)},
	/* Overwritten before the first emulated instruction: at the one before that. */
	{FUNCTION(gone), ARGUMENTS, .n_exits = 1, .exits = {{0x24, .plain = 1}},
	 .entry = {0xd, .sp = AT_REGISTER(TERRA_RSP, 0x28)}, .rdi = AT_REGISTER(TERRA_RDI, 0),
	 .rsi = AT_REGISTER(TERRA_RSI, 0), .xmm0 = AT_MEMORY(TERRA_RSP, 8)},
	/* The double is there, and what was in rdi nowhere any more. */
	{FUNCTION(forgotten), ARGUMENTS, .n_exits = 1, .exits = {{0x18, .plain = 1}}, .entry = {0, .plain = 1}},
	{FUNCTION(unspilled), ARGUMENTS, .n_exits = 1, .exits = {{0xa, .plain = 1}}, .entry = {0, .plain = 1}},
	/* What would be probed is run several times. */
	{FUNCTION(again), ARGUMENTS, .n_exits = 1, .exits = {{0x19, .plain = 1}}, .entry = {0, .plain = 1}},
	/* The first instruction is not emulated, and a later one is. */
	{FUNCTION(no_push), TENSOR, .n_exits = 1, .exits = {{0xf, .plain = 1}},
	 .entry = {0x7, .sp = AT_REGISTER(TERRA_RSP, 0x18)}, .rdi = AT_REGISTER(TERRA_RDX, 0)},
};

/* In this order: the calls among them are relative. */
static const struct {
	const uint8_t *code;
	size_t size;
} blob[] = {
	{one_ret, sizeof(one_ret)},
	{two_rets, sizeof(two_rets)},
	{tail_register, sizeof(tail_register)},
	{tail_direct, sizeof(tail_direct)},
	{both_ways, sizeof(both_ways)},
	{switch_jump, sizeof(switch_jump)},
	{hidden_c3, sizeof(hidden_c3)},
	{not_code, sizeof(not_code)},
	{after_store, sizeof(after_store)},
	{forgotten, sizeof(forgotten)},
	{counts, sizeof(counts)},
	{through_free, sizeof(through_free)},
	{in_register, sizeof(in_register)},
	{other_call, sizeof(other_call)},
	{late_store, sizeof(late_store)},
	{two_ways, sizeof(two_ways)},
	{twice, sizeof(twice)},
	{only_one_way, sizeof(only_one_way)},
	{loop, sizeof(loop)},
	{hidden, sizeof(hidden)},
	{differs, sizeof(differs)},
	{agrees, sizeof(agrees)},
	{overwritten, sizeof(overwritten)},
	{lost, sizeof(lost)},
	{spilled, sizeof(spilled)},
	{moved, sizeof(moved)},
	{gone, sizeof(gone)},
	{unspilled, sizeof(unspilled)},
	{no_push, sizeof(no_push)},
	{again, sizeof(again)},
	{at_once, sizeof(at_once)},
	{free_stub, sizeof(free_stub)},
	{other, sizeof(other)},
};

#define N_FUNCTIONS (sizeof(functions) / sizeof(*functions))

struct library {
	char path[64];
	struct terra_op ops[N_FUNCTIONS];
	struct terra_op_table table;
};

static void add_arguments(struct terra_op *op, uint8_t gprs, uint8_t doubles)
{
	for (uint8_t i = 0; i < gprs; i++)
		op->args[op->n_args++] =
		    (struct terra_arg){.kind = TERRA_KIND_INT, .place = TERRA_PLACE_GPR, .index = i, .words = 1};
	for (uint8_t i = 0; i < doubles; i++)
		op->args[op->n_args++] =
		    (struct terra_arg){.kind = TERRA_KIND_DOUBLE, .place = TERRA_PLACE_SSE, .index = i, .words = 1};
}

static void make_ops(struct library *library, const struct elf_sample *sample)
{
	library->table = (struct terra_op_table){.library = library->path, .n_ops = N_FUNCTIONS, .ops = library->ops};
	for (size_t i = 0; i < N_FUNCTIONS; i++) {
		const uint8_t *at = memmem(sample->data, sample->size, functions[i].code, functions[i].size);

		assert_non_null(at);
		library->ops[i] = (struct terra_op){
		    .file_offset = (uint64_t)(at - sample->data), .size = functions[i].size, .ret = functions[i].ret};
		library->ops[i].address = SAMPLE_BASE + library->ops[i].file_offset;
		add_arguments(&library->ops[i], functions[i].gprs, functions[i].doubles);
	}
}

static int set_up(void **state)
{
	struct library *library = calloc(1, sizeof(*library));
	struct elf_sample *sample = malloc(sizeof(*sample));
	char folder[] = "/tmp/terra-test-XXXXXX";
	int fd;

	assert_non_null(mkdtemp(folder));
	setenv("XDG_CACHE_HOME", folder, 1);
	sample_init(sample, 7);
	sample_symbol(sample, "something", 0);
	for (size_t i = 0; i < sizeof(blob) / sizeof(*blob); i++) {
		if (blob[i].code == other)
			sample_relocation(sample, "free", sample->rodata_size);
		memcpy(sample->rodata + sample->rodata_size, blob[i].code, blob[i].size);
		sample->rodata_size += blob[i].size;
	}
	sample_finish(sample);
	snprintf(library->path, sizeof(library->path), "%s/library.so", folder);
	fd = open(library->path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(write(fd, sample->data, sample->size) == (ssize_t)sample->size);
	close(fd);
	make_ops(library, sample);
	free(sample);
	*state = library;
	return 0;
}

static int tear_down(void **state)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -r '%s'", getenv("XDG_CACHE_HOME"));
	assert_int_equal(system(command), 0);
	free(*state);
	return 0;
}

static void expect_source(struct terra_source source, struct terra_source expected)
{
	assert_int_equal(source.kind, expected.kind);
	assert_int_equal(source.base, expected.base);
	assert_int_equal(source.offset, expected.offset);
}

static void expect_probe(const struct library *library, uint32_t op, const struct terra_probe *probe,
			 const struct expected *expected)
{
	assert_int_equal(probe->site.op, op);
	assert_int_equal(probe->file_offset - library->ops[op].file_offset, expected->offset);
	assert_int_equal(probe->site.plain, expected->plain);
	expect_source(probe->site.sp, expected->sp);
	expect_source(probe->site.result, expected->result);
}

static void expect_entry(const struct library *library, uint32_t op, const struct terra_probe *entry)
{
	static const struct expected first = {.plain = 1};

	expect_probe(library, op, entry, functions[op].entry.offset ? &functions[op].entry : &first);
	expect_source(entry->site.gpr[0], functions[op].rdi);
	expect_source(entry->site.gpr[1], functions[op].rsi);
	expect_source(entry->site.xmm[0], functions[op].xmm0);
	assert_int_equal(terra_entry_misses_doubles(&library->ops[op], &entry->site),
			 functions[op].doubles && !functions[op].xmm0.kind);
}

static void expect(const struct library *library, const struct terra_sites *sites)
{
	size_t at = 0;

	for (uint32_t i = 0; i < library->table.n_ops; i++) {
		assert_int_equal(sites->tail_jumps[i], functions[i].tail_jump);
		expect_entry(library, i, &sites->entries[i]);
		for (unsigned int k = 0; k < functions[i].n_exits; k++, at++) {
			assert_true(at < sites->n_exits);
			expect_probe(library, i, &sites->exits[at], &functions[i].exits[k]);
		}
	}
	assert_int_equal(sites->n_exits, at);
}

/* As the kernel's arch/x86/kernel/uprobes.c has it. */
static void test_emulated(void **state)
{
	static const struct {
		uint8_t bytes[8], size;
		bool emulated;
	} cases[] = {
	    {{0x55}, 1, true},
	    {{0x41, 0x57}, 2, true},
	    {{0x90}, 1, true},
	    {{0x74, 5}, 2, true},
	    {{0xeb, 5}, 2, true},
	    {{0xe9, 5}, 5, true},
	    {{0xe8, 5}, 5, true},
	    {{0x0f, 0x84, 5}, 6, true},
	    {{0xc3}, 1, false},
	    {{0x5d}, 1, false},
	    {{0x41, 0x5f}, 2, false},
	    {{0x48, 0x55}, 2, false},
	    {{0x66, 0x90}, 2, false},
	    {{0x66, 0xe8, 5}, 4, false},
	    {{0xf3, 0x90}, 2, false},
	    {{0x48, 0x89, 0xe5}, 3, false},
	    {{0x0f, 0xaf, 0xc7}, 3, false},
	    {{0xff, 0xd0}, 2, false},
	    {{0x6a, 0}, 2, false},
	    {{0xe3, 5}, 2, false},
	    {{0x0f, 0x1f, 0x44, 0, 0}, 5, false},
	    {{0x0f, 0x90, 0x44, 0x24, 0, 0}, 6, false},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		assert_int_equal(code_is_emulated(cases[i].bytes, cases[i].size), cases[i].emulated);
}

static void test_found(void **state)
{
	struct library *library = *state;
	struct terra_sites *sites;
	char err[256];

	assert_int_equal(terra_sites_find(&library->table, false, &sites, err, sizeof(err)), 0);
	expect(library, sites);
	terra_sites_free(sites);
}

/* The second time they come from the cache, also when that must be refused because the table is another one. */
static void test_cached(void **state)
{
	struct library *library = *state;
	struct terra_sites *sites;
	char err[256];

	for (int i = 0; i < 2; i++) {
		assert_int_equal(terra_sites_find(&library->table, true, &sites, err, sizeof(err)), 0);
		expect(library, sites);
		terra_sites_free(sites);
	}
	library->table.n_ops = 1;
	assert_int_equal(terra_sites_find(&library->table, true, &sites, err, sizeof(err)), 0);
	expect(library, sites);
	terra_sites_free(sites);
	library->table.n_ops = N_FUNCTIONS;
}

static void swap_first(struct library *library)
{
	struct terra_op first = library->ops[0];

	library->ops[0] = library->ops[1];
	library->ops[1] = first;
}

/* What was cached for another order of ops is not taken for this one. */
static void test_cached_for_another_table(void **state)
{
	struct library *library = *state;
	struct terra_sites *sites;
	char err[256];

	assert_int_equal(terra_sites_find(&library->table, true, &sites, err, sizeof(err)), 0);
	terra_sites_free(sites);
	swap_first(library);
	assert_int_equal(terra_sites_find(&library->table, true, &sites, err, sizeof(err)), 0);
	assert_int_equal(sites->entries[0].file_offset, library->ops[0].file_offset);
	assert_int_equal(sites->exits[0].file_offset, library->ops[0].file_offset + functions[1].exits[0].offset);
	terra_sites_free(sites);
	swap_first(library);
}

/* ---- exceptions ---- */

#define UNWIND_BASE 0x1000u
#define AT_HEADER 0u
#define AT_COMMON 64u
#define AT_DESCRIPTION 128u
#define AT_CALL_SITES 192u
#define AT_FUNCTION 256u

/* A function of 64 bytes with two call sites, the second of which has a landing pad 16 bytes into it. */
struct unwind_sample {
	uint8_t bytes[320];
	Elf64_Phdr segments[2];
	struct terra_elf elf;
};

static void put(struct unwind_sample *sample, size_t *at, const void *bytes, size_t size)
{
	memcpy(sample->bytes + *at, bytes, size);
	*at += size;
}

static void put_word(struct unwind_sample *sample, size_t *at, uint32_t word)
{
	put(sample, at, &word, 4);
}

static void make_unwind(struct unwind_sample *sample, uint8_t action)
{
	size_t at = AT_HEADER;

	memset(sample, 0, sizeof(*sample));
	put(sample, &at, "\x01\x1b\x03\x3b", 4);
	put_word(sample, &at, AT_COMMON - 4);
	put_word(sample, &at, 1);
	put_word(sample, &at, AT_FUNCTION);
	put_word(sample, &at, AT_DESCRIPTION);
	at = AT_COMMON;
	put_word(sample, &at, 28);
	put_word(sample, &at, 0);
	put(sample, &at, "\x01zPLR\0\x01\x78\x10\x07\x9b\0\0\0\0\x1b\x1b", 17);
	at = AT_DESCRIPTION;
	put_word(sample, &at, 28);
	put_word(sample, &at, AT_DESCRIPTION + 4 - AT_COMMON);
	put_word(sample, &at, AT_FUNCTION - (uint32_t)at);
	put_word(sample, &at, 64);
	put(sample, &at, "\x04", 1);
	put_word(sample, &at, AT_CALL_SITES - (uint32_t)at);
	at = AT_CALL_SITES;
	put(sample, &at, "\xff\xff\x01\x08\x00\x08\x00\x00\x08\x08\x10", 11);
	put(sample, &at, &action, 1);
	sample->segments[0] =
		(Elf64_Phdr){.p_type = PT_LOAD, .p_vaddr = UNWIND_BASE, .p_filesz = sizeof(sample->bytes)};
	sample->segments[1] = (Elf64_Phdr){.p_type = PT_GNU_EH_FRAME, .p_vaddr = UNWIND_BASE + AT_HEADER};
	sample->elf = (struct terra_elf){.data = sample->bytes,
					 .size = sizeof(sample->bytes),
					 .segments = sample->segments,
					 .n_segments = 2};
}

static struct unwind_function look_up(const struct unwind_sample *sample, uint64_t offset)
{
	struct unwind_function function;
	struct unwind unwind;

	unwind_open(&unwind, &sample->elf);
	unwind_function(&unwind, UNWIND_BASE + offset, &function);
	return function;
}

static void test_exceptions(void **state)
{
	static struct unwind_sample sample;
	struct unwind_function function;

	make_unwind(&sample, 0);
	function = look_up(&sample, AT_FUNCTION);
	assert_false(function.may_catch);
	assert_int_equal(function.n_pads, 1);
	assert_int_equal(function.pads[0], UNWIND_BASE + AT_FUNCTION + 16);
	function = look_up(&sample, AT_FUNCTION - 1); /* without a description */
	assert_false(function.may_catch);
	assert_int_equal(function.n_pads, 0);
	assert_int_equal(look_up(&sample, AT_FUNCTION + 64).n_pads, 0);
	make_unwind(&sample, 1);
	assert_true(look_up(&sample, AT_FUNCTION).may_catch);
	sample.elf.n_segments = 1; /* no exception passes such a library */
	assert_false(look_up(&sample, AT_FUNCTION).may_catch);
}

/* Behind a handler control may come to any place. */
static void test_functions_that_catch(void **state)
{
	struct library *library = *state;
	struct terra_probe exits[SITES_MAX_EXITS], entry;
	struct terra_op *op = library->ops;
	struct terra_elf elf;
	struct code code;

	while (op->size != sizeof(in_register) || op->ret != TERRA_RET_TENSOR)
		op++;
	assert_int_equal(terra_elf_open(library->path, &elf), 0);
	assert_int_equal(code_open(&code, &elf), 0);
	assert_int_equal(code_read(&code, op), 0);
	entry = sites_find_entry(&code, op, 0);
	for (int may_catch = 0; may_catch < 2; may_catch++) {
		code.exceptions.may_catch = may_catch;
		assert_int_equal(sites_find_exits(&code, op, &entry, exits), 1);
		assert_int_equal(exits[0].site.plain, may_catch);
	}
	code_close(&code);
	terra_elf_close(&elf);
}

/* In doubt it may catch; nothing is read that is not there. */
static void test_exceptions_not_understood(void **state)
{
	static const struct {
		unsigned int at;
		uint8_t byte;
	} changes[] = {
		{AT_HEADER, 2},	       {AT_HEADER + 3, 0x1b},	{AT_HEADER + 10, 0xff},	 {AT_COMMON + 4, 1},
		{AT_COMMON + 8, 9},    {AT_COMMON + 9, 'y'},	{AT_COMMON + 11, 'Q'},	 {AT_DESCRIPTION + 6, 0x40},
		{AT_CALL_SITES, 0x1b}, {AT_CALL_SITES + 2, 5}, {AT_CALL_SITES + 3, 0x7f}, {AT_COMMON + 23, 0x3b},
	};
	static struct unwind_sample sample;

	for (size_t i = 0; i < sizeof(changes) / sizeof(*changes); i++) {
		make_unwind(&sample, 0);
		sample.bytes[changes[i].at] = changes[i].byte;
		if (!look_up(&sample, AT_FUNCTION).may_catch)
			fail_msg("change %zu", i);
	}
	for (size_t size = 0; size < AT_CALL_SITES + 12; size++) {
		make_unwind(&sample, 0);
		sample.elf.size = size;
		if (!look_up(&sample, AT_FUNCTION).may_catch)
			fail_msg("%zu bytes", size);
	}
}

static void test_outside_of_file(void **state)
{
	struct library *library = *state;
	struct terra_op saved = library->ops[0];
	struct terra_sites *sites;
	char err[256] = "";

	library->ops[0].file_offset = 1u << 20;
	assert_int_equal(terra_sites_find(&library->table, false, &sites, err, sizeof(err)), -ENOEXEC);
	assert_non_null(strstr(err, library->path));
	assert_null(sites);
	library->ops[0].file_offset = UINT64_MAX - 4;
	assert_int_equal(terra_sites_find(&library->table, false, &sites, err, sizeof(err)), -ENOEXEC);
	library->ops[0] = saved;
	library->table.library = (char *)"/no/such/library.so";
	assert_int_equal(terra_sites_find(&library->table, false, &sites, err, sizeof(err)), -ENOENT);
	assert_non_null(strstr(err, "/no/such/library.so"));
	library->table.library = library->path;
}

/* Ops that all are the whole file, as a hostile one says: each would be gone through once more. */
static void test_more_code_than_the_file_has(void **state)
{
	struct library *library = *state;
	struct terra_op saved[2] = {library->ops[0], library->ops[1]};
	struct terra_sites *sites;
	char err[256] = "";
	struct stat st;

	assert_int_equal(stat(library->path, &st), 0);
	for (int i = 0; i < 2; i++) {
		library->ops[i].file_offset = 0;
		library->ops[i].size = (uint64_t)st.st_size * 3 / 4;
	}
	assert_int_equal(terra_sites_find(&library->table, false, &sites, err, sizeof(err)), -ENOEXEC);
	assert_null(sites);
	library->ops[0] = saved[0];
	library->ops[1] = saved[1];
	assert_int_equal(terra_sites_find(&library->table, false, &sites, err, sizeof(err)), 0);
	terra_sites_free(sites);
}

static void check_levels(const struct terra_op_table *real, const struct terra_sites *sites)
{
	uint32_t ops = 0, cheap = 0, doubles = 0;

	for (size_t i = 0; i < sites->n_exits; i++) {
		const struct terra_op *op = &real->ops[sites->exits[i].site.op];

		if (op->level != TERRA_LEVEL_CALL)
			continue;
		ops++;
		cheap += !sites->exits[i].site.plain;
		if (sites->exits[i].site.plain && op->ret != TERRA_RET_VALUE)
			fail_msg("%s.%s ends at its `ret`", op->name, op->overload);
	}
	for (uint32_t i = 0; i < real->n_ops; i++) {
		assert_false(terra_entry_misses_doubles(&real->ops[i], &sites->entries[i].site));
		doubles += !sites->entries[i].site.plain;
	}
	print_message("%u of %u exits on cheap instructions, %u entries behind spills\n", cheap, ops, doubles);
	assert_true(ops > 3000);
	assert_true(doubles > 400);
}

/* All ops of a real library end on cheap instructions, but those whose results exist nowhere before the `ret`; and all their
 * doubles are found. */
static void test_real(void **state)
{
	struct terra_op_table *real;
	struct terra_sites *sites;
	char err[512];

	REQUIRE_TORCH();
	assert_int_equal(terra_op_table_load(real_torch(), false, &real, err, sizeof(err)), 0);
	assert_int_equal(terra_sites_find(real, false, &sites, err, sizeof(err)), 0);
	check_levels(real, sites);
	terra_sites_free(sites);
	terra_op_table_free(real);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_emulated),
		cmocka_unit_test(test_found),
		cmocka_unit_test(test_cached),
		cmocka_unit_test(test_cached_for_another_table),
		cmocka_unit_test(test_exceptions),
		cmocka_unit_test(test_functions_that_catch),
		cmocka_unit_test(test_exceptions_not_understood),
		cmocka_unit_test(test_outside_of_file),
		cmocka_unit_test(test_more_code_than_the_file_has),
		cmocka_unit_test(test_real),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
