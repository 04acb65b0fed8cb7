/* double_cudart.c - stands for CUDA's runtime under an unmodified PyTorch where there is no GPU: recorded, not executed. Memory
 * of the "device" is the host's and copies are made; kernels are only told to the double of CUPTI. Before anything else it
 * does what CUDA's driver does with CUDA_INJECTION64_PATH. What else PyTorch imports is made by test_cupti.py from its import table,
 * and says so when it is called.
 */
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PUBLIC __attribute__((visibility("default")))

/* Not in a header for C. */
cudaError_t __cudaGetKernel(void **kernel, const void *host);
cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream);
unsigned int __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream);
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream);
void **__cudaRegisterFatBinary(void *binary);
void __cudaRegisterFatBinaryEnd(void **handle);
void __cudaUnregisterFatBinary(void **handle);
char __cudaInitModule(void **handle);
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit, void *tid, void *bid,
			    dim3 *block, dim3 *grid, int *warp);
void __cudaRegisterVar(void **handle, char *host, char *address, const char *name, int ext, size_t size, int constant, int global);

static struct {
	unsigned int (*launch)(const char *kernel);
	unsigned int (*copy)(unsigned char copy_kind, unsigned long bytes);
	unsigned int (*set)(unsigned long bytes);
} cupti;

struct function {
	const void *host;
	const char *name;
};

static struct function *functions;
static size_t n_functions, functions_capacity;
static bool sorted;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* What cuInit of the driver does. */
static void inject(void)
{
	const char *path = getenv("CUDA_INJECTION64_PATH"), *double_path = getenv("TERRA_GPU_CUPTI");
	void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL, *found;
	int (*initialize)(void) = library ? (int (*)(void))dlsym(library, "InitializeInjection") : NULL;

	if (initialize)
		initialize();
	found = double_path ? dlopen(double_path, RTLD_NOW | RTLD_NOLOAD) : NULL;
	if (!found)
		return;
	cupti.launch = (unsigned int (*)(const char *))dlsym(found, "double_launch");
	cupti.copy = (unsigned int (*)(unsigned char, unsigned long))dlsym(found, "double_copy");
	cupti.set = (unsigned int (*)(unsigned long))dlsym(found, "double_set");
}

/* Kernels. */

static int compare(const void *a, const void *b)
{
	const struct function *x = a, *y = b;

	return x->host < y->host ? -1 : x->host > y->host;
}

static const char *name_of(const void *host)
{
	struct function key = { .host = host }, *found;

	if (!sorted) {
		qsort(functions, n_functions, sizeof(*functions), compare);
		sorted = true;
	}
	found = bsearch(&key, functions, n_functions, sizeof(key), compare);
	return found ? found->name : "unknown kernel";
}

PUBLIC void **__cudaRegisterFatBinary(void *binary)
{
	static void *handle;

	return &handle;
}

PUBLIC void __cudaRegisterFatBinaryEnd(void **handle)
{
}

PUBLIC void __cudaUnregisterFatBinary(void **handle)
{
}

PUBLIC char __cudaInitModule(void **handle)
{
	return 1;
}

PUBLIC void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit, void *tid, void *bid,
				   dim3 *block, dim3 *grid, int *warp)
{
	if (n_functions == functions_capacity) {
		functions_capacity = functions_capacity ? 2 * functions_capacity : 4096;
		functions = realloc(functions, functions_capacity * sizeof(*functions));
		if (!functions)
			abort();
	}
	functions[n_functions++] = (struct function){ host, name };
	sorted = false;
}

PUBLIC void __cudaRegisterVar(void **handle, char *host, char *address, const char *name, int ext, size_t size, int constant,
			      int global)
{
}

PUBLIC cudaError_t __cudaGetKernel(void **kernel, const void *host)
{
	*kernel = (void *)host;
	return cudaSuccess;
}

static __thread struct {
	dim3 grid, block;
	size_t shared;
	cudaStream_t stream;
} configuration;

PUBLIC unsigned int __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream)
{
	configuration.grid = grid;
	configuration.block = block;
	configuration.shared = shared;
	configuration.stream = stream;
	return 0;
}

PUBLIC cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream)
{
	*grid = configuration.grid;
	*block = configuration.block;
	*shared = configuration.shared;
	*(cudaStream_t *)stream = configuration.stream;
	return cudaSuccess;
}

static cudaError_t launch(const void *kernel)
{
	pthread_once(&once, inject);
	if (cupti.launch)
		cupti.launch(name_of(kernel));
	return cudaSuccess;
}

PUBLIC cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream)
{
	return launch(kernel);
}

PUBLIC cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream)
{
	return launch(kernel);
}

PUBLIC cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **arguments)
{
	return launch(kernel);
}

PUBLIC cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel)
{
	memset(attributes, 0, sizeof(*attributes));
	attributes->maxThreadsPerBlock = 1024;
	attributes->numRegs = 32;
	attributes->binaryVersion = attributes->ptxVersion = 90;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int size, size_t shared)
{
	*blocks = 2;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int size, size_t shared,
									  unsigned int flags)
{
	*blocks = 2;
	return cudaSuccess;
}

/* The device. */

PUBLIC cudaError_t cudaGetDeviceCount(int *n)
{
	pthread_once(&once, inject);
	*n = 1;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaGetDevice(int *device)
{
	*device = 0;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaSetDevice(int device)
{
	return device ? cudaErrorInvalidDevice : cudaSuccess;
}

PUBLIC cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
	memset(properties, 0, sizeof(*properties));
	strcpy(properties->name, "a double of a device");
	properties->totalGlobalMem = 1ul << 30;
	properties->sharedMemPerBlock = properties->sharedMemPerMultiprocessor = 49152;
	properties->sharedMemPerBlockOptin = 232448;
	properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
	properties->warpSize = 32;
	properties->maxThreadsPerBlock = 1024;
	properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
	properties->maxThreadsDim[2] = 64;
	properties->maxGridSize[0] = 0x7fffffff;
	properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
	properties->major = 9;
	properties->multiProcessorCount = 4;
	properties->maxThreadsPerMultiProcessor = 2048;
	properties->maxBlocksPerMultiProcessor = 32;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
	*value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : attribute == cudaDevAttrMultiProcessorCount ? 4 : 0;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
	*least = 0;
	*greatest = -5;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaDriverGetVersion(int *version)
{
	*version = CUDART_VERSION;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaRuntimeGetVersion(int *version)
{
	*version = CUDART_VERSION;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaDeviceSynchronize(void)
{
	return cudaSuccess;
}

static int driver_function(void)
{
	return 801; /* not supported */
}

PUBLIC cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned int version,
						    unsigned long long flags, enum cudaDriverEntryPointQueryResult *status)
{
	*function = (void *)driver_function;
	if (status)
		*status = cudaDriverEntryPointSuccess;
	return cudaSuccess;
}

PUBLIC const char *cudaGetErrorName(cudaError_t error)
{
	return "an error of the double";
}

PUBLIC const char *cudaGetErrorString(cudaError_t error)
{
	return "not supported by the double of CUDA's runtime";
}

PUBLIC cudaError_t cudaGetLastError(void)
{
	return cudaSuccess;
}

PUBLIC cudaError_t cudaPeekAtLastError(void)
{
	return cudaSuccess;
}

/* Memory. */

PUBLIC cudaError_t cudaMalloc(void **memory, size_t size)
{
	pthread_once(&once, inject);
	*memory = aligned_alloc(512, (size + 511) & ~(size_t)511);
	if (*memory)
		memset(*memory, 0, size);
	return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

PUBLIC cudaError_t cudaFree(void *memory)
{
	free(memory);
	return cudaSuccess;
}

PUBLIC cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned int flags)
{
	return cudaMalloc(memory, size);
}

PUBLIC cudaError_t cudaFreeHost(void *memory)
{
	return cudaFree(memory);
}

PUBLIC cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
	*available = *total = 1ul << 30;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream)
{
	static const unsigned char kinds[] = { 9, 1, 2, 8, 0 };

	memcpy(to, from, size);
	if (cupti.copy)
		cupti.copy(kinds[kind], size);
	return cudaSuccess;
}

PUBLIC cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
	return cudaMemcpyAsync(to, from, size, kind, NULL);
}

PUBLIC cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream)
{
	memset(to, value, size);
	if (cupti.set)
		cupti.set(size);
	return cudaSuccess;
}

PUBLIC cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *memory)
{
	memset(attributes, 0, sizeof(*attributes));
	attributes->type = cudaMemoryTypeUnregistered;
	return cudaSuccess;
}

/* Streams and events: everything has happened. */

PUBLIC cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int priority)
{
	*stream = malloc(8);
	return cudaSuccess;
}

PUBLIC cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
	return cudaSuccess;
}

PUBLIC cudaError_t cudaStreamQuery(cudaStream_t stream)
{
	return cudaSuccess;
}

PUBLIC cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags)
{
	return cudaSuccess;
}

PUBLIC cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
	*status = cudaStreamCaptureStatusNone;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
					    cudaGraph_t *graph, const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges,
					    size_t *n)
{
	*status = cudaStreamCaptureStatusNone;
	return cudaSuccess;
}

PUBLIC cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
	return cudaSuccess;
}

PUBLIC cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
	*event = malloc(8);
	return cudaSuccess;
}

PUBLIC cudaError_t cudaEventDestroy(cudaEvent_t event)
{
	free(event);
	return cudaSuccess;
}

PUBLIC cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
	return cudaSuccess;
}

PUBLIC cudaError_t cudaEventQuery(cudaEvent_t event)
{
	return cudaSuccess;
}

PUBLIC cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
	return cudaSuccess;
}
