#include "collector/bpf/namespace.h"

#include <errno.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* The kernel numbers devices in another way than stat(2). */
int namespace_of_pids(uint64_t *device, uint64_t *inode)
{
	struct stat namespace;

	if (stat("/proc/self/ns/pid", &namespace))
		return -errno;
	*device = (uint64_t)major(namespace.st_dev) << 20 | minor(namespace.st_dev);
	*inode = namespace.st_ino;
	return 0;
}
