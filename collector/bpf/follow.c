/* Loading the programs that see processes begin, and reading what they tell. */
#include "collector/bpf/follow.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "collector/bpf/namespace.h"
#include "follow.skel.h"

struct terra_follow {
	struct follow_bpf *skeleton;
	struct ring_buffer *ring;
	terra_follow_tell tell; /* of the terra_follow_poll that runs */
	void *context;
	int error;
};

static int quiet(enum libbpf_print_level level, const char *format, va_list arguments)
{
	return 0;
}

static int on_event(void *context, void *data, size_t size)
{
	struct terra_follow *follow = context;

	follow->error = follow->tell(follow->context, data);
	return follow->error;
}

static int open_all(struct terra_follow *follow)
{
	struct follow_config *config;
	int error;

	follow->skeleton = follow_bpf__open_and_load();
	if (!follow->skeleton)
		return -errno;
	config = &follow->skeleton->bss->config;
	error = namespace_of_pids(&config->namespace_device, &config->namespace_inode);
	if (!error)
		error = follow_bpf__attach(follow->skeleton);
	if (error)
		return error;
	follow->ring = ring_buffer__new(bpf_map__fd(follow->skeleton->maps.events), on_event, follow, NULL);
	return follow->ring ? 0 : -errno;
}

int terra_follow_open(struct terra_follow **out, char *err, size_t err_size)
{
	struct terra_follow *follow = calloc(1, sizeof(*follow));
	int error = follow ? 0 : -ENOMEM;

	*out = NULL;
	libbpf_set_print(quiet);
	if (!error)
		error = open_all(follow);
	if (!error) {
		*out = follow;
		return 0;
	}
	terra_follow_close(follow);
	snprintf(err, err_size, "the kernel does not tell of new processes: %s", strerror(-error));
	return error;
}

void terra_follow_close(struct terra_follow *follow)
{
	if (!follow)
		return;
	ring_buffer__free(follow->ring);
	follow_bpf__destroy(follow->skeleton);
	free(follow);
}

int terra_follow_add(struct terra_follow *follow, pid_t pid)
{
	uint32_t key = (uint32_t)pid;
	uint8_t yes = 1;

	return bpf_map_update_elem(bpf_map__fd(follow->skeleton->maps.followed), &key, &yes, BPF_ANY) ? -errno : 0;
}

void terra_follow_remove(struct terra_follow *follow, pid_t pid)
{
	uint32_t key = (uint32_t)pid;

	bpf_map_delete_elem(bpf_map__fd(follow->skeleton->maps.followed), &key);
}

int terra_follow_fd(const struct terra_follow *follow)
{
	return ring_buffer__epoll_fd(follow->ring);
}

int terra_follow_poll(struct terra_follow *follow, terra_follow_tell tell, void *context)
{
	int n;

	follow->tell = tell;
	follow->context = context;
	follow->error = 0;
	n = ring_buffer__consume(follow->ring);
	if (follow->error)
		return follow->error;
	return n < 0 ? n : 0;
}

uint64_t terra_follow_lost(const struct terra_follow *follow)
{
	return __atomic_load_n(&follow->skeleton->bss->lost, __ATOMIC_SEQ_CST);
}
