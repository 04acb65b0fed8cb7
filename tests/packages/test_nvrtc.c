// NVRTC: CUDA C becomes a cubin for a chosen architecture, without a driver. Nothing runs on a GPU here, which the names
// of the cases say.
#include <elf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <nvrtc.h>

#define NOT_EXECUTED(function) { #function " (recorded, not executed)", function, NULL, NULL, NULL }

static const char source[] =
	"extern \"C\" __global__ void scale(float *out, const float *in, float factor, int n)\n"
	"{\n"
	"	int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
	"	if (i < n)\n"
	"		out[i] = in[i] * factor;\n"
	"}\n";

static nvrtcResult compile(nvrtcProgram *program, const char *text, const char *architecture)
{
	const char *const options[] = { architecture, "--fmad=false" };

	assert_int_equal(nvrtcCreateProgram(program, text, "scale.cu", 0, NULL, NULL), NVRTC_SUCCESS);
	return nvrtcCompileProgram(*program, 2, options);
}

static bool holds(const char *bytes, size_t size, const char *text)
{
	return memmem(bytes, size, text, strlen(text)) != NULL;
}

static void check_cubin(const char *architecture)
{
	nvrtcProgram program;
	Elf64_Ehdr header;
	size_t size;
	char *cubin;

	assert_int_equal(compile(&program, source, architecture), NVRTC_SUCCESS);
	assert_int_equal(nvrtcGetCUBINSize(program, &size), NVRTC_SUCCESS);
	assert_true(size > sizeof(header));
	cubin = malloc(size);
	assert_non_null(cubin);
	assert_int_equal(nvrtcGetCUBIN(program, cubin), NVRTC_SUCCESS);
	memcpy(&header, cubin, sizeof(header));
	assert_memory_equal(header.e_ident, ELFMAG, SELFMAG);
	assert_int_equal(header.e_machine, EM_CUDA);
	assert_true(holds(cubin, size, ".text.scale"));
	free(cubin);
	assert_int_equal(nvrtcDestroyProgram(&program), NVRTC_SUCCESS);
}

static void nvrtc_compiles_for_sm_80(void **state)
{
	check_cubin("--gpu-architecture=sm_80");
}

static void nvrtc_compiles_for_sm_90(void **state)
{
	check_cubin("--gpu-architecture=sm_90");
}

static void nvrtc_reports_errors_with_a_log(void **state)
{
	nvrtcProgram program;
	size_t size;
	char *log;

	assert_int_equal(compile(&program, "__global__ void f() { undeclared = 1; }", "--gpu-architecture=sm_80"),
			 NVRTC_ERROR_COMPILATION);
	assert_int_equal(nvrtcGetProgramLogSize(program, &size), NVRTC_SUCCESS);
	log = malloc(size);
	assert_non_null(log);
	assert_int_equal(nvrtcGetProgramLog(program, log), NVRTC_SUCCESS);
	assert_non_null(strstr(log, "undeclared"));
	free(log);
	assert_int_equal(nvrtcDestroyProgram(&program), NVRTC_SUCCESS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		NOT_EXECUTED(nvrtc_compiles_for_sm_80),
		NOT_EXECUTED(nvrtc_compiles_for_sm_90),
		NOT_EXECUTED(nvrtc_reports_errors_with_a_log),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
