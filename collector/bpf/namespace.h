/* namespace.h - our pid namespace, as BPF programs have to name it. */
#ifndef TERRA_COLLECTOR_BPF_NAMESPACE_H
#define TERRA_COLLECTOR_BPF_NAMESPACE_H

#include <stdint.h>

/* 0 or -errno. */
int namespace_of_pids(uint64_t *device, uint64_t *inode);

#endif
