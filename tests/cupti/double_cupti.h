/* double_cupti.h - stands for CUPTI where there is no GPU: recorded, not executed. What a program asks this double for comes
 * back as the records that CUPTI would make of it. Switches in the environment:
 *   DOUBLE_NO_CLOCK=1      no callback for time stamps
 *   DOUBLE_LONG_KERNELS=1  kernel records are 8 bytes longer than any that the headers know
 *   DOUBLE_KEEPS=1         buffers are not given back
 *   DOUBLE_DROPS=N         so many records were dropped
 */
#ifndef TERRA_TESTS_DOUBLE_CUPTI_H
#define TERRA_TESTS_DOUBLE_CUPTI_H

#include <stdint.h>

/* Found by dlsym. A call of the runtime by this thread and what it launched; the correlation number. */
uint32_t double_launch(const char *kernel);
uint32_t double_copy(uint8_t copy_kind, uint64_t bytes);
uint32_t double_set(uint64_t bytes);
/* How often a kind was enabled; how often before the first launch. */
int double_enabled(int kind, int before_launch);
/* What the flush period does. */
void double_deliver(void);

#endif
