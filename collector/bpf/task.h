/* task.h - where the running kernel keeps what the BPF programs read of a task. */
#ifndef TERRA_COLLECTOR_BPF_TASK_H
#define TERRA_COLLECTOR_BPF_TASK_H

#include <stdint.h>

/* Bytes from the start of struct task_struct to the task's fsbase. 0, or -errno when the kernel does not tell. */
int task_fsbase_offset(uint32_t *offset);

#endif
