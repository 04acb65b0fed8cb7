/* What the backend needs of the kernel and of whoever starts it. */
#include "collector/bpf/backend.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "collector/bpf/link.h"

static uint64_t effective_capabilities(void)
{
	unsigned long long value = 0;
	FILE *status = fopen("/proc/self/status", "re");
	char line[256];

	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "CapEff: %llx", &value) == 1)
			break;
	if (status)
		fclose(status);
	return value;
}

static const char *missing_right(void)
{
	uint64_t held = effective_capabilities();
	bool bpf = held >> CAP_BPF & 1, perfmon = held >> CAP_PERFMON & 1;

	if (held >> CAP_SYS_ADMIN & 1 || (bpf && perfmon))
		return NULL;
	if (!bpf && !perfmon)
		return "CAP_BPF and CAP_PERFMON";
	return bpf ? "CAP_PERFMON" : "CAP_BPF";
}

/* The smallest program there is: return 0. */
static int load_probe_program(void)
{
	struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = (enum bpf_attach_type)LINK_ATTACH_TYPE);
	int fd = bpf_prog_load(BPF_PROG_TYPE_KPROBE, "terra_probe", "GPL", code, 2, &options);

	return fd < 0 ? -errno : fd;
}

/* A kernel that knows these links finds out that a folder is no regular file; any other rejects the type first. */
static bool kernel_has_links(int program)
{
	uint64_t offset = 0;
	int fd = link_create(program, "/", &offset, NULL, 1, 0);

	if (fd >= 0)
		close(fd);
	return fd == -EBADF;
}

int terra_bpf_supported(char *reason, size_t reason_size)
{
	const char *right = missing_right();
	int program;
	bool has_links;

	if (right) {
		snprintf(reason, reason_size,
			 "needs %s (or root): run it as root, or give it the rights once with `setcap "
			 "cap_bpf,cap_perfmon,cap_sys_ptrace+ep terra-trace`; a container needs --cap-add BPF "
			 "--cap-add PERFMON",
			 right);
		return -EPERM;
	}
	program = load_probe_program();
	if (program == -EPERM || program == -EACCES) {
		snprintf(reason, reason_size, "BPF is locked down here: loading a program says \"%s\"",
			 strerror(-program));
		return -EPERM;
	}
	if (program < 0) {
		snprintf(reason, reason_size, "this kernel has no BPF for uprobes (Linux 6.6 and later have): %s",
			 strerror(-program));
		return -ENOTSUP;
	}
	has_links = kernel_has_links(program);
	close(program);
	if (has_links)
		return 0;
	snprintf(reason, reason_size, "this kernel cannot attach many uprobes at once (Linux 6.6 and later can)");
	return -ENOTSUP;
}
