// cuDNN: with device properties from text in place of a device, a convolution's graph is built, heuristics answer, and an
// execution plan is made and comes back from its text. Nothing runs on a GPU here, which the names of the cases say.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <cudnn.h>

#define NOT_EXECUTED(function) { #function " (recorded, not executed)", function, NULL, NULL, NULL }

enum { BATCH = 8, CHANNELS = 64, EDGE = 56, FILTER = 3, CONFIGS = 64, PLAN_TEXT = 1 << 20 };

typedef cudnnBackendDescriptor_t descriptor;

// The properties of an H100, with its compute capability as 100 * major + 10 * minor to be filled in.
static const char device_format[] =
	"{\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,"
	"\"multiProcessorCount\":132,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
	"\"maxSharedMemoryPerBlockOptin\":232448,\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,"
	"\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,\"isTccDriver\":0,"
	"\"supportCoopLaunch\":1,\"smClockRateKHz\":1980000,\"memClockRateKHz\":2619000,\"l2CacheSize\":52428800,"
	"\"deviceName\":\"NVIDIA H100\",\"totalGlobalMem\":85899345920,\"cudaDeviceId\":0,\"driverVer\":13000,"
	"\"deviceVer\":%d}";

static descriptor create(cudnnBackendDescriptorType_t type)
{
	descriptor made;

	assert_int_equal(cudnnBackendCreateDescriptor(type, &made), CUDNN_STATUS_SUCCESS);
	return made;
}

static void set(descriptor target, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
		const void *value)
{
	assert_int_equal(cudnnBackendSetAttribute(target, name, type, count, value), CUDNN_STATUS_SUCCESS);
}

static void set_descriptor(descriptor target, cudnnBackendAttributeName_t name, descriptor value)
{
	set(target, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finalize(descriptor target)
{
	assert_int_equal(cudnnBackendFinalize(target), CUDNN_STATUS_SUCCESS);
}

static cudnnStatus_t finalize_device(descriptor device, int version)
{
	char text[1024];
	int length = snprintf(text, sizeof(text), device_format, version);

	set(device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, length, text);
	return cudnnBackendFinalize(device);
}

static descriptor make_device(void)
{
	descriptor device = create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);

	assert_int_equal(finalize_device(device, 900), CUDNN_STATUS_SUCCESS);
	return device;
}

// A half-precision tensor whose channels lie innermost.
static descriptor make_tensor(int64_t id, int64_t n, int64_t c, int64_t edge)
{
	const int64_t sizes[] = { n, c, edge, edge }, strides[] = { c * edge * edge, 1, c * edge, c }, alignment = 16;
	const cudnnDataType_t type = CUDNN_DATA_HALF;
	descriptor tensor = create(CUDNN_BACKEND_TENSOR_DESCRIPTOR);

	set(tensor, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
	set(tensor, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, sizes);
	set(tensor, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
	set(tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
	set(tensor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
	finalize(tensor);
	return tensor;
}

static descriptor make_convolution(void)
{
	const int64_t dimensions = 2, ones[] = { 1, 1 };
	const cudnnDataType_t type = CUDNN_DATA_FLOAT;
	const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
	descriptor convolution = create(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);

	set(convolution, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dimensions);
	set(convolution, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
	set(convolution, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
	set(convolution, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, ones);
	set(convolution, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, ones);
	set(convolution, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, ones);
	set(convolution, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, ones);
	finalize(convolution);
	return convolution;
}

// The parts of a graph with one convolution; freed together.
struct graph {
	descriptor x, w, y, convolution, operation, graph, device;
};

static void make_graph(struct graph *g)
{
	const float one = 1, zero = 0;

	g->x = make_tensor('x', BATCH, CHANNELS, EDGE);
	g->w = make_tensor('w', CHANNELS, CHANNELS, FILTER);
	g->y = make_tensor('y', BATCH, CHANNELS, EDGE);
	g->convolution = make_convolution();
	g->operation = create(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
	set_descriptor(g->operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, g->x);
	set_descriptor(g->operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, g->w);
	set_descriptor(g->operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, g->y);
	set_descriptor(g->operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, g->convolution);
	set(g->operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &one);
	set(g->operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &zero);
	finalize(g->operation);
	g->graph = create(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
	set_descriptor(g->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, g->operation);
	finalize(g->graph);
	g->device = make_device();
}

static void free_graph(struct graph *g)
{
	cudnnBackendDestroyDescriptor(g->graph);
	cudnnBackendDestroyDescriptor(g->operation);
	cudnnBackendDestroyDescriptor(g->convolution);
	cudnnBackendDestroyDescriptor(g->y);
	cudnnBackendDestroyDescriptor(g->w);
	cudnnBackendDestroyDescriptor(g->x);
	cudnnBackendDestroyDescriptor(g->device);
}

static descriptor ask_heuristics(const struct graph *g)
{
	const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
	descriptor heuristics = create(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);

	set_descriptor(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, g->graph);
	set(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
	set_descriptor(heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, g->device);
	finalize(heuristics);
	return heuristics;
}

// The first configuration that cuDNN can turn into a plan; NULL when it can none.
static descriptor make_plan(const struct graph *g, descriptor heuristics)
{
	descriptor configs[CONFIGS];
	descriptor plan = NULL;
	int64_t count = 0;

	for (int i = 0; i < CONFIGS; i++)
		configs[i] = create(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
	assert_int_equal(cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
						  CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIGS, &count, configs),
			 CUDNN_STATUS_SUCCESS);
	for (int i = 0; i < count && i < CONFIGS && !plan; i++) {
		plan = create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
		set_descriptor(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configs[i]);
		set_descriptor(plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, g->device);
		if (cudnnBackendFinalize(plan) != CUDNN_STATUS_SUCCESS) {
			cudnnBackendDestroyDescriptor(plan);
			plan = NULL;
		}
	}
	for (int i = 0; i < CONFIGS; i++)
		cudnnBackendDestroyDescriptor(configs[i]);
	return plan;
}

static void cudnn_takes_device_properties_from_text(void **state)
{
	descriptor device = make_device();
	char text[2048] = "";
	int64_t length = 0;

	assert_int_equal(cudnnBackendGetAttribute(device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
						  sizeof(text) - 1, &length, text),
			 CUDNN_STATUS_SUCCESS);
	assert_non_null(strstr(text, "NVIDIA H100"));
	cudnnBackendDestroyDescriptor(device);
}

static void cudnn_refuses_broken_and_foreign_properties(void **state)
{
	static const char broken[] = "{\"deviceVer\":900,";
	descriptor device = create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);

	set(device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, sizeof(broken) - 1, broken);
	assert_int_equal(cudnnBackendFinalize(device), CUDNN_STATUS_BAD_PARAM);
	cudnnBackendDestroyDescriptor(device);

	device = create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
	assert_int_equal(finalize_device(device, 350), CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH);
	cudnnBackendDestroyDescriptor(device);
}

static void cudnn_answers_heuristics_without_a_device(void **state)
{
	descriptor heuristics;
	struct graph g;
	int64_t count = 0;

	make_graph(&g);
	heuristics = ask_heuristics(&g);
	assert_int_equal(cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
						  CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count, NULL),
			 CUDNN_STATUS_SUCCESS);
	assert_true(count > 0);
	cudnnBackendDestroyDescriptor(heuristics);
	free_graph(&g);
}

static void cudnn_plans_come_back_from_their_text(void **state)
{
	descriptor heuristics, plan, copy;
	char *text = malloc(PLAN_TEXT);
	int64_t length = 0;
	struct graph g;

	assert_non_null(text);
	make_graph(&g);
	heuristics = ask_heuristics(&g);
	plan = make_plan(&g, heuristics);
	assert_non_null(plan);
	assert_int_equal(cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
						  PLAN_TEXT, &length, text),
			 CUDNN_STATUS_SUCCESS);
	assert_true(length > 0);
	copy = create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
	set_descriptor(copy, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, g.device);
	set(copy, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, length, text);
	finalize(copy);
	cudnnBackendDestroyDescriptor(copy);
	cudnnBackendDestroyDescriptor(plan);
	cudnnBackendDestroyDescriptor(heuristics);
	free_graph(&g);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		NOT_EXECUTED(cudnn_takes_device_properties_from_text),
		NOT_EXECUTED(cudnn_refuses_broken_and_foreign_properties),
		NOT_EXECUTED(cudnn_answers_heuristics_without_a_device),
		NOT_EXECUTED(cudnn_plans_come_back_from_their_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
