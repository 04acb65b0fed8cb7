/* target_tls.h - the number by which a process knows a library's thread-local storage (probes/tls.h needs it). */
#ifndef TERRA_COLLECTOR_TARGET_TLS_H
#define TERRA_COLLECTOR_TARGET_TLS_H

#include <stdint.h>
#include <sys/types.h>

/* Of `library` as process `pid` has mapped it. 0 and a number that is not 0; -EAGAIN: the library is not mapped, or the
 * dynamic linker has not been there yet; -ENOTSUP: the library keeps its number nowhere that we know; -errno: its memory
 * or file cannot be read. */
int terra_target_tls_module(pid_t pid, const char *library, uint64_t *module);

#endif
