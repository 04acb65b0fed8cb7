/* plan_cpu.c - whether this CPU and this library are what a plan was made for. */
#include <cpuid.h>
#include <stdio.h>
#include <string.h>

#include "graphopt/plan_internal.h"

enum cpuid_register { EAX, EBX, ECX, EDX };

#define XCR0_AVX 0x6u	  /* the system saves xmm and ymm */
#define XCR0_AVX512 0xe6u /* and opmask, upper zmm, zmm16-31 */

struct cpu_feature {
	const char *name; /* as /proc/cpuinfo spells it */
	const char *lacking;
	uint32_t leaf;
	enum cpuid_register reg;
	uint8_t bit;
	uint32_t xcr0;
};

#define FEATURE(name, leaf, reg, bit, xcr0)                                                                            \
	{                                                                                                              \
		name, "this CPU or system lacks " name ", which the plan's kernels use: make the plan again here",     \
		    leaf, reg, bit, xcr0                                                                               \
	}

static const struct cpu_feature cpu_features[] = {
    FEATURE("sse4_1", 1, ECX, 19, 0),
    FEATURE("sse4_2", 1, ECX, 20, 0),
    FEATURE("popcnt", 1, ECX, 23, 0),
    FEATURE("fma", 1, ECX, 12, XCR0_AVX),
    FEATURE("avx", 1, ECX, 28, XCR0_AVX),
    FEATURE("f16c", 1, ECX, 29, XCR0_AVX),
    FEATURE("avx2", 7, EBX, 5, XCR0_AVX),
    FEATURE("bmi1", 7, EBX, 3, 0),
    FEATURE("bmi2", 7, EBX, 8, 0),
    FEATURE("avx512f", 7, EBX, 16, XCR0_AVX512),
    FEATURE("avx512dq", 7, EBX, 17, XCR0_AVX512),
    FEATURE("avx512cd", 7, EBX, 28, XCR0_AVX512),
    FEATURE("avx512bw", 7, EBX, 30, XCR0_AVX512),
    FEATURE("avx512vl", 7, EBX, 31, XCR0_AVX512),
};

static uint32_t xcr0(void)
{
	uint32_t eax, ebx, ecx, edx;

	if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
	return eax;
}

static bool has_feature(const struct cpu_feature *feature)
{
	uint32_t reg[4];

	if (!__get_cpuid_count(feature->leaf, 0, &reg[EAX], &reg[EBX], &reg[ECX], &reg[EDX]))
		return false;
	if (!(reg[feature->reg] >> feature->bit & 1))
		return false;
	return (xcr0() & feature->xcr0) == feature->xcr0;
}

void plan_cpu_vendor(char out[13])
{
	uint32_t eax, ebx, ecx, edx;

	memset(out, 0, 13);
	if (!__get_cpuid(0, &eax, &ebx, &ecx, &edx))
		return;
	memcpy(out, &ebx, 4);
	memcpy(out + 4, &edx, 4);
	memcpy(out + 8, &ecx, 4);
}

void plan_cpu_model(char out[PLAN_CPU_MODEL_SIZE])
{
	uint32_t eax = 0, ebx, ecx, edx, family, model;

	__get_cpuid(1, &eax, &ebx, &ecx, &edx);
	family = eax >> 8 & 0xf;
	model = eax >> 4 & 0xf;
	if (family == 6 || family == 15)
		model |= eax >> 12 & 0xf0;
	if (family == 15)
		family += eax >> 20 & 0xff;
	snprintf(out, PLAN_CPU_MODEL_SIZE, "%u.%u.%u", family, model, eax & 0xf);
}

bool terra_plan_vendor_settings(void)
{
	extern char **environ;
	char **e;

	for (e = environ; e && *e; e++)
		if (!strncmp(*e, "MKL_", 4) || !strncmp(*e, "OPENBLAS_", 9))
			return true;
	return false;
}

static const char *check_model(const char *name, size_t length)
{
	char here[PLAN_CPU_MODEL_SIZE];

	plan_cpu_model(here);
	if (strlen(here) != length || memcmp(here, name, length))
		return "the plan's kernels rely on how another model of CPU estimates: make the plan again here";
	if (terra_plan_vendor_settings())
		return "MKL_ or OPENBLAS_ settings in the environment may change results that the plan's kernels have built "
		       "in: unset them";
	return NULL;
}

static const char *check_feature(const char *name, size_t length)
{
	size_t i;

	for (i = 0; i < sizeof(cpu_features) / sizeof(cpu_features[0]); i++)
		if (strlen(cpu_features[i].name) == length && !memcmp(cpu_features[i].name, name, length))
			return has_feature(&cpu_features[i]) ? NULL : cpu_features[i].lacking;
	return "the plan's kernels use a CPU feature that this version does not know: make the plan again here";
}

#define MODEL "model="

/* Other `name=value` words are the framework's, not the CPU's; see terra_plan_link. */
const char *plan_cpu_mismatch(const char *features, const char *vendor)
{
	const char *p = features, *reason = NULL;
	char here[13];
	size_t n;

	plan_cpu_vendor(here);
	if (strcmp(here, vendor))
		return "the plan was made on another vendor's CPU, whose library functions give other bits: make it "
		       "again here";
	while (!reason && *(p += strspn(p, " "))) {
		n = strcspn(p, " ");
		if (n >= strlen(MODEL) && !memcmp(p, MODEL, strlen(MODEL)))
			reason = check_model(p + strlen(MODEL), n - strlen(MODEL));
		else if (!memchr(p, '=', n))
			reason = check_feature(p, n);
		p += n;
	}
	return reason;
}

void plan_cpu_capability(const char *features, char *out, size_t size)
{
	const char *p = features;
	size_t n;

	out[0] = '\0';
	while (*(p += strspn(p, " "))) {
		n = strcspn(p, " ");
		if (n > 11 && !strncmp(p, "capability=", 11))
			snprintf(out, size, "%.*s", (int)(n - 11), p + 11);
		p += n;
	}
}

const char *terra_plan_mismatch(const struct terra_plan *plan, const char *build_id_hex)
{
	if (!build_id_hex || strcmp(plan->build_id, build_id_hex))
		return "the plan was made for another build of libtorch_cpu.so: make it again with terra-opt";
	return plan_cpu_mismatch(plan->cpu ? plan->cpu : "", plan->cpu_vendor ? plan->cpu_vendor : "");
}
