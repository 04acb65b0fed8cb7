/* follow.h - which processes the traced ones start, told as it happens. */
#ifndef TERRA_COLLECTOR_BPF_FOLLOW_H
#define TERRA_COLLECTOR_BPF_FOLLOW_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "collector/bpf/follow_shared.h"

struct terra_follow;

/* 0 or -errno with a message. */
int terra_follow_open(struct terra_follow **out, char *err, size_t err_size);
void terra_follow_close(struct terra_follow *follow);

/* What `pid` starts, and what that starts, is told from now on. */
int terra_follow_add(struct terra_follow *follow, pid_t pid);
/* The process has ended. */
void terra_follow_remove(struct terra_follow *follow, pid_t pid);

/* Becomes readable when there is something to poll for. */
int terra_follow_fd(const struct terra_follow *follow);
/* Gives what happened to `tell`, in order, without waiting. An error of `tell` ends that, and is returned. */
typedef int (*terra_follow_tell)(void *context, const struct follow_event *event);
int terra_follow_poll(struct terra_follow *follow, terra_follow_tell tell, void *context);

/* Processes that were not told of, for want of room. */
uint64_t terra_follow_lost(const struct terra_follow *follow);

#endif
