/* trampoline.S - where patched GOT slots lead.
 *
 * One stub per hooked op: number in r11, then one of two ways on. Ops that no region has ("plain") take about 2 ns while
 * nothing waits: one test and one indirect jump, no register but r10 and r11 touched. Otherwise all argument registers are
 * saved for hook_enter, which either answers the call itself (1: return what it left in `ret`) or lets it run (0: jump to
 * the original with everything as it was, so that stack arguments and exceptions are the caller's own business).
 */
#include "replay/stubs.h"

	.text
	.globl	replay_plain_stubs
	.hidden	replay_plain_stubs
	.p2align 4
replay_plain_stubs:
	.set	n, 0
	.rept	REPLAY_PLAIN_STUBS
	.p2align 4
	movl	$n, %r11d
	jmp	plain
	.set	n, n + 1
	.endr

	.globl	replay_region_stubs
	.hidden	replay_region_stubs
	.p2align 4
replay_region_stubs:
	.set	n, 0
	.rept	REPLAY_REGION_STUBS
	.p2align 4
	movl	$(REPLAY_PLAIN_STUBS + n), %r11d
	jmp	region
	.set	n, n + 1
	.endr

	.p2align 4
plain:
	incq	replay_ops_seen(%rip)
	cmpq	$0, replay_attention(%rip)
	jne	full
	leaq	replay_originals(%rip), %r10
	jmp	*(%r10,%r11,8)

	.p2align 4
	.type	region, @function
region:
	incq	replay_ops_seen(%rip)
full:
	.cfi_startproc
	pushq	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	movq	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	pushq	%r11
	subq	$(24 + REPLAY_REGS_SIZE), %rsp
	andq	$-16, %rsp
	movq	%rdi, 0(%rsp)
	movq	%rsi, 8(%rsp)
	movq	%rdx, 16(%rsp)
	movq	%rcx, 24(%rsp)
	movq	%r8, 32(%rsp)
	movq	%r9, 40(%rsp)
	movups	%xmm0, 48(%rsp)
	movups	%xmm1, 64(%rsp)
	movups	%xmm2, 80(%rsp)
	movups	%xmm3, 96(%rsp)
	movups	%xmm4, 112(%rsp)
	movups	%xmm5, 128(%rsp)
	movups	%xmm6, 144(%rsp)
	movups	%xmm7, 160(%rsp)
	leaq	16(%rbp), %rax
	movq	%rax, 184(%rsp)
	movl	%r11d, %edi
	movq	%rsp, %rsi
	call	hook_enter
	testl	%eax, %eax
	jne	1f
	movq	0(%rsp), %rdi
	movq	8(%rsp), %rsi
	movq	16(%rsp), %rdx
	movq	24(%rsp), %rcx
	movq	32(%rsp), %r8
	movq	40(%rsp), %r9
	movups	48(%rsp), %xmm0
	movups	64(%rsp), %xmm1
	movups	80(%rsp), %xmm2
	movups	96(%rsp), %xmm3
	movups	112(%rsp), %xmm4
	movups	128(%rsp), %xmm5
	movups	144(%rsp), %xmm6
	movups	160(%rsp), %xmm7
	movq	-8(%rbp), %r11
	leave
	.cfi_remember_state
	.cfi_def_cfa %rsp, 8
	leaq	replay_originals(%rip), %r10
	jmp	*(%r10,%r11,8)
	.cfi_restore_state
1:	movq	176(%rsp), %rax
	leave
	.cfi_def_cfa %rsp, 8
	ret
	.cfi_endproc
	.size	region, . - region

	.section .note.GNU-stack, "", @progbits
