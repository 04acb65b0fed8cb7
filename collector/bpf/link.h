/* link.h - many uprobes with one system call (uprobe_multi, Linux 6.6), which libbpf wraps only from 1.3 on. */
#ifndef TERRA_COLLECTOR_BPF_LINK_H
#define TERRA_COLLECTOR_BPF_LINK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define LINK_ATTACH_TYPE 48 /* BPF_TRACE_UPROBE_MULTI; the program's expected attach type too */

/* Attaches program `program` at `n` file offsets of `path`; cookies[i] is what the program finds at probe i.
 * Returns the link's descriptor (closing it detaches) or -errno. */
int link_create(int program, const char *path, const uint64_t *offsets, const uint64_t *cookies, uint32_t n, pid_t pid);

#endif
