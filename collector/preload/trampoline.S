/* trampoline.S - where all stubs lead: records the enter, calls the original, records the exit, returns.
 *
 * The original cannot be jumped to when its exit is to be seen, and its return address may not be replaced (an exception
 * that passes through would end the program). So it is called from a frame of our own, below a copy of its stack
 * arguments. The frame has a frame pointer and call frame information: exceptions unwind through it, and the op that
 * they leave is found out later by its stack pointer.
 *
 * In: r11d = index of the op. Every register that may hold an argument is kept: rdi rsi rdx rcx r8 r9, rax (count of
 * vector registers), r10 (static chain), xmm0-7 in full.
 */
#define REGS 224        /* bytes of struct record_registers in record.c */
#define REG_XMM 0
#define REG_GPR 128
#define REG_RAX 176
#define REG_R10 184
#define REG_RDX 192     /* second result */
#define REG_SP 200
#define REG_INDEX 208

	.text
	.globl record_trampoline
	.hidden record_trampoline
	.type record_trampoline, @function
	.p2align 4
record_trampoline:
	.cfi_startproc
	endbr64
	pushq	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	movq	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	subq	$REGS, %rsp
	movaps	%xmm0, REG_XMM+0(%rsp)
	movaps	%xmm1, REG_XMM+16(%rsp)
	movaps	%xmm2, REG_XMM+32(%rsp)
	movaps	%xmm3, REG_XMM+48(%rsp)
	movaps	%xmm4, REG_XMM+64(%rsp)
	movaps	%xmm5, REG_XMM+80(%rsp)
	movaps	%xmm6, REG_XMM+96(%rsp)
	movaps	%xmm7, REG_XMM+112(%rsp)
	movq	%rdi, REG_GPR+0(%rsp)
	movq	%rsi, REG_GPR+8(%rsp)
	movq	%rdx, REG_GPR+16(%rsp)
	movq	%rcx, REG_GPR+24(%rsp)
	movq	%r8, REG_GPR+32(%rsp)
	movq	%r9, REG_GPR+40(%rsp)
	movq	%rax, REG_RAX(%rsp)
	movq	%r10, REG_R10(%rsp)
	leaq	8(%rbp), %rax
	movq	%rax, REG_SP(%rsp)
	movl	%r11d, %r11d
	movq	%r11, REG_INDEX(%rsp)

	/* struct record_way {void *original; int64_t stack_bytes} record_enter(struct record_registers *) */
	movq	%rsp, %rdi
	call	record_enter
	movq	%rax, %r11
	testq	%rdx, %rdx
	js	.Ljump
	jz	.Lcall
	/* Copy the caller's stack arguments (rdx bytes, a multiple of 16) to where the original looks for its own. */
	subq	%rdx, %rsp
	movq	%rdx, %rcx
	shrq	$3, %rcx
	leaq	16(%rbp), %rsi
	movq	%rsp, %rdi
	rep movsq
.Lcall:
	movaps	-REGS+REG_XMM+0(%rbp), %xmm0
	movaps	-REGS+REG_XMM+16(%rbp), %xmm1
	movaps	-REGS+REG_XMM+32(%rbp), %xmm2
	movaps	-REGS+REG_XMM+48(%rbp), %xmm3
	movaps	-REGS+REG_XMM+64(%rbp), %xmm4
	movaps	-REGS+REG_XMM+80(%rbp), %xmm5
	movaps	-REGS+REG_XMM+96(%rbp), %xmm6
	movaps	-REGS+REG_XMM+112(%rbp), %xmm7
	movq	-REGS+REG_GPR+0(%rbp), %rdi
	movq	-REGS+REG_GPR+8(%rbp), %rsi
	movq	-REGS+REG_GPR+16(%rbp), %rdx
	movq	-REGS+REG_GPR+24(%rbp), %rcx
	movq	-REGS+REG_GPR+32(%rbp), %r8
	movq	-REGS+REG_GPR+40(%rbp), %r9
	movq	-REGS+REG_R10(%rbp), %r10
	movq	-REGS+REG_RAX(%rbp), %rax
	call	*%r11
	leaq	-REGS(%rbp), %rsp
	movaps	%xmm0, REG_XMM+0(%rsp)
	movaps	%xmm1, REG_XMM+16(%rsp)
	movq	%rax, REG_RAX(%rsp)
	movq	%rdx, REG_RDX(%rsp)
	movq	%rsp, %rdi
	call	record_exit
	movaps	REG_XMM+0(%rsp), %xmm0
	movaps	REG_XMM+16(%rsp), %xmm1
	movq	REG_RAX(%rsp), %rax
	movq	REG_RDX(%rsp), %rdx
	.cfi_remember_state
	leave
	.cfi_def_cfa %rsp, 8
	ret

.Ljump:
	.cfi_restore_state
	movaps	REG_XMM+0(%rsp), %xmm0
	movaps	REG_XMM+16(%rsp), %xmm1
	movaps	REG_XMM+32(%rsp), %xmm2
	movaps	REG_XMM+48(%rsp), %xmm3
	movaps	REG_XMM+64(%rsp), %xmm4
	movaps	REG_XMM+80(%rsp), %xmm5
	movaps	REG_XMM+96(%rsp), %xmm6
	movaps	REG_XMM+112(%rsp), %xmm7
	movq	REG_GPR+0(%rsp), %rdi
	movq	REG_GPR+8(%rsp), %rsi
	movq	REG_GPR+16(%rsp), %rdx
	movq	REG_GPR+24(%rsp), %rcx
	movq	REG_GPR+32(%rsp), %r8
	movq	REG_GPR+40(%rsp), %r9
	movq	REG_R10(%rsp), %r10
	movq	REG_RAX(%rsp), %rax
	leave
	.cfi_def_cfa %rsp, 8
	jmp	*%r11
	.cfi_endproc
	.size record_trampoline, . - record_trampoline

	.section .note.GNU-stack, "", @progbits
