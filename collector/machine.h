/* machine.h - what a trace says about the machine it was made on. */
#ifndef TERRA_COLLECTOR_MACHINE_H
#define TERRA_COLLECTOR_MACHINE_H

#include <stddef.h>

/* The processor's model name and those of its features that decide which kernels a library takes:
 * "AMD EPYC 7B13 AVX2 FMA". Empty when the kernel does not tell. */
void terra_machine_cpu(char *buffer, size_t size);

/* The command line of process `pid` (0: this one), arguments separated by blanks, cut to the buffer. */
void terra_machine_command(int pid, char *buffer, size_t size);

#endif
