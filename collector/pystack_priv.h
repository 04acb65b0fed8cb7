/* pystack_priv.h - reading the memory of a process that may be ourselves, without a fault when it is not there. */
#ifndef TERRA_COLLECTOR_PYSTACK_PRIV_H
#define TERRA_COLLECTOR_PYSTACK_PRIV_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct pystack_process {
	pid_t pid;
	int memory; /* /proc/pid/mem where process_vm_readv is not allowed, else -1 */
};

void pystack_process_open(pid_t pid, struct pystack_process *process);
void pystack_process_close(struct pystack_process *process);

/* Reads all of `size` bytes. 0 or -errno. */
int pystack_read(struct pystack_process *process, uint64_t address, void *out, size_t size);

/* The same for `n` places, one behind the other into `local`, in one call where the kernel lets us. */
struct iovec;
int pystack_read_all(struct pystack_process *process, const struct iovec *local, const struct iovec *remote, size_t n);

/* A compact str as UTF-8 (lone surrogates that stand for undecodable bytes give these bytes back). malloc'ed; -EINVAL
 * when the object is no such string. */
struct pystack_layout;
int pystack_read_string(struct pystack_process *process, const struct pystack_layout *layout, uint64_t object,
			char **out);

#endif
