/* clock.h - times of this library's own work. */
#pragma once

#include <stdint.h>
#include <time.h>

/* Nanoseconds from some moment on. Safe in signal handlers. */
static inline uint64_t clock_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
