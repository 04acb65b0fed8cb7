/* kernel_source.h - the hand-written part of generated kernels, as C text.
 *
 * kernel_prelude comes before all regions: the structs of the kernel ABI, vector arithmetic, loads and stores, and the
 * helper that expands broadcast inputs. kernel_mt19937_bernoulli and kernel_sgemm_tiles are the replacements of those
 * forms (plan.h); the second needs SGEMM_TILE and SGEMM_IMPORT defined.
 */
#ifndef TERRA_GRAPHOPT_KERNEL_SOURCE_H
#define TERRA_GRAPHOPT_KERNEL_SOURCE_H

extern const char kernel_prelude[];
extern const char kernel_mt19937_bernoulli[];
extern const char kernel_sgemm_tiles[];

/* High accuracy; denormals as numbers, not as zeros; errors ignored: what the framework passes to vector functions. */
#define KERNEL_VML_MODE 0x140102
#define KERNEL_VECTOR 8          /* floats in a vec of the prelude */
#define KERNEL_CPU "avx2 fma"    /* features that the prelude needs */

#endif
