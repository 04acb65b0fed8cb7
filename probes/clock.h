/* clock.h - times of our own work and of what is recorded. */
#ifndef TERRA_PROBES_CLOCK_H
#define TERRA_PROBES_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds from some moment on, CLOCK_MONOTONIC. Safe in signal handlers. */
static inline uint64_t clock_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
