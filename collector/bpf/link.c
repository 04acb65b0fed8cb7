/* uprobe_multi links through the bare system call. */
#include "collector/bpf/link.h"

#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The part of union bpf_attr that BPF_LINK_CREATE reads for this attach type (linux/bpf.h since 6.6; the headers that
 * this is built with may be older than the kernel it runs on). */
struct link_attributes {
	uint32_t prog_fd;
	uint32_t target_fd;
	uint32_t attach_type;
	uint32_t flags;
	uint64_t path;
	uint64_t offsets;
	uint64_t ref_ctr_offsets;
	uint64_t cookies;
	uint32_t cnt;
	uint32_t multi_flags;
	uint32_t pid;
	uint32_t padding;
};

int link_create(int program, const char *path, const uint64_t *offsets, const uint64_t *cookies, uint32_t n, pid_t pid)
{
	struct link_attributes attributes;
	long fd;

	memset(&attributes, 0, sizeof(attributes));
	attributes.prog_fd = (uint32_t)program;
	attributes.attach_type = LINK_ATTACH_TYPE;
	attributes.path = (uintptr_t)path;
	attributes.offsets = (uintptr_t)offsets;
	attributes.cookies = (uintptr_t)cookies;
	attributes.cnt = n;
	attributes.pid = (uint32_t)pid;
	fd = syscall(SYS_bpf, BPF_LINK_CREATE, &attributes, sizeof(attributes));
	return fd < 0 ? -errno : (int)fd;
}
