/* The calling thread's own Python stack, and safe reads of any process' memory. */
#include "collector/pystack.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "collector/pystack_priv.h"

/* The own thread's frames cannot go away while it runs this, and the layout was proven with safe reads. */
static inline int copy(void *destination, const void *source, size_t size)
{
	memcpy(destination, source, size);
	return 0;
}

#define PYSTACK_READ(context, destination, size, address)                                                              \
	copy((destination), (const void *)(uintptr_t)(address), (size))
#include "collector/pystack_walk.h"

uint32_t pystack_self(const struct pystack_layout *layout, struct pystack_entry *entries, uint32_t max, bool *truncated)
{
	void *(*get_state)(void) = (void *(*)(void))(uintptr_t)layout->get_state;
	uint64_t state = layout->get_state ? (uint64_t)(uintptr_t)get_state() : 0;
	struct pystack_scratch scratch;
	uint32_t n = 0;
	uint64_t frame;
	int got = 0;

	*truncated = false;
	if (!state)
		return 0;
	frame = pystack_first_frame(layout, NULL, state);
	while (frame && n < max) {
		got = pystack_step(layout, NULL, &scratch, &frame, &entries[n]);
		if (got < 0)
			break;
		n += (uint32_t)got;
	}
	*truncated = frame || got < 0;
	return n;
}

void pystack_process_open(pid_t pid, struct pystack_process *process)
{
	process->pid = pid;
	process->memory = -1;
}

void pystack_process_close(struct pystack_process *process)
{
	if (process->memory >= 0)
		close(process->memory);
	process->memory = -1;
}

static int read_memory_file(struct pystack_process *process, uint64_t address, void *out, size_t size)
{
	char path[64];
	ssize_t got;

	if (process->memory < 0) {
		snprintf(path, sizeof(path), "/proc/%d/mem", process->pid);
		process->memory = open(path, O_RDONLY | O_CLOEXEC);
		if (process->memory < 0)
			return -errno;
	}
	got = pread(process->memory, out, size, (off_t)address);
	if (got < 0)
		return -errno;
	return (size_t)got == size ? 0 : -EFAULT;
}

int pystack_read(struct pystack_process *process, uint64_t address, void *out, size_t size)
{
	struct iovec local = { out, size }, remote = { (void *)(uintptr_t)address, size };
	ssize_t got;

	if (process->memory >= 0)
		return read_memory_file(process, address, out, size);
	got = process_vm_readv(process->pid, &local, 1, &remote, 1, 0);
	if (got < 0 && (errno == EPERM || errno == ENOSYS))
		return read_memory_file(process, address, out, size);
	if (got < 0)
		return -errno;
	return (size_t)got == size ? 0 : -EFAULT;
}

int pystack_read_all(struct pystack_process *process, const struct iovec *local, const struct iovec *remote, size_t n)
{
	uint8_t *out = local->iov_base;
	ssize_t got = -1;
	int error = 0;

	if (process->memory < 0)
		got = process_vm_readv(process->pid, local, 1, remote, n, 0);
	if (got >= 0)
		return (size_t)got == local->iov_len ? 0 : -EFAULT;
	for (size_t i = 0; i < n && !error; i++) {
		error = pystack_read(process, (uint64_t)(uintptr_t)remote[i].iov_base, out, remote[i].iov_len);
		out += remote[i].iov_len;
	}
	return error;
}

/* Encodes one code point. PEP 383: a lone surrogate U+DC80..U+DCFF is a byte that could not be decoded. */
static size_t encode(uint32_t c, char *out)
{
	if (c < 0x80 || (c >= 0xdc80 && c <= 0xdcff)) {
		out[0] = (char)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (char)(0xc0 | c >> 6);
		out[1] = (char)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		out[0] = (char)(0xe0 | c >> 12);
		out[1] = (char)(0x80 | (c >> 6 & 0x3f));
		out[2] = (char)(0x80 | (c & 0x3f));
		return 3;
	}
	out[0] = (char)(0xf0 | (c >> 18 & 7));
	out[1] = (char)(0x80 | (c >> 12 & 0x3f));
	out[2] = (char)(0x80 | (c >> 6 & 0x3f));
	out[3] = (char)(0x80 | (c & 0x3f));
	return 4;
}

static uint32_t code_point(const void *characters, uint32_t kind, size_t i)
{
	if (kind == 1)
		return ((const uint8_t *)characters)[i];
	return kind == 2 ? ((const uint16_t *)characters)[i] : ((const uint32_t *)characters)[i];
}

static char *encode_string(const void *characters, uint32_t kind, size_t length)
{
	char *text = malloc(4 * length + 1);
	size_t n = 0;

	if (!text)
		return NULL;
	for (size_t i = 0; i < length; i++)
		n += encode(code_point(characters, kind, i), text + n);
	text[n] = 0;
	return text;
}

#define STRING_MAX 65536 /* characters; longer than any path or qualified name */

int pystack_read_string(struct pystack_process *process, const struct pystack_layout *layout, uint64_t object,
			char **out)
{
	uint32_t state, kind, compact, ascii;
	uint8_t head[72];
	uint64_t type, length;
	void *characters;
	int error;

	if (layout->unicode_length + 8u > sizeof(head) || layout->unicode_state + 4u > sizeof(head) ||
	    pystack_read(process, object, head, layout->unicode_state + 4u))
		return -EINVAL;
	memcpy(&type, head + 8, sizeof(type));
	memcpy(&length, head + layout->unicode_length, sizeof(length));
	memcpy(&state, head + layout->unicode_state, sizeof(state));
	if (type != layout->unicode_type || layout->unicode_length + 8u > layout->unicode_state)
		return -EINVAL;
	kind = state >> 2 & 7;
	compact = state >> 5 & 1;
	ascii = state >> 6 & 1;
	if (!compact || (kind != 1 && kind != 2 && kind != 4) || length > STRING_MAX)
		return -EINVAL;
	characters = malloc(length * kind + 1);
	if (!characters)
		return -ENOMEM;
	error = pystack_read(process, object + (ascii ? layout->unicode_ascii : layout->unicode_compact), characters,
			     length * kind);
	if (!error) {
		*out = encode_string(characters, kind, length);
		error = *out ? 0 : -ENOMEM;
	}
	free(characters);
	return error;
}
