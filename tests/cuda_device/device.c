/* A CUDA device for tests: the CUDA runtime and driver, without a GPU.

   Device memory is host memory, filled with zeros. Kernels do nothing. Streams obey the documented rules of capture: no
   allocation, no release and no waiting while any stream captures ("Prohibited and Unhandled Operations" in the CUDA
   programming guide). A replay compares what captured copies read with what they read before.

   CUDA_TEST_LOG names a file for one line per event. CUDA_TEST_GPUS is the number of GPUs (1), CUDA_TEST_DRIVER the
   version of the driver (13000; 0 for none), CUDA_TEST_MEMORY the bytes of a GPU, CUDA_TEST_FAIL_CAPTURE lets every
   kernel fail in a capture. Functions that are not here return success (cuda_device_fakes.py adds them). */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Block { char *start; size_t size; int host; struct Block *next; } Block;
typedef struct Operation { enum { KERNEL, COPY, FILL } kind; void *to; const void *from; void *before; size_t size; int value; struct Operation *next; } Operation;
typedef struct Graph { Operation *first, **last; long kernels, copies; } Graph;
typedef struct Stream { int capturing, broken; Graph *graph; struct Stream *next; } Stream;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block *blocks;
static Stream *streams, default_stream;
static size_t used;
static __thread int device;
static __thread cudaError_t last_error;

static unsigned long long setting(const char *name, unsigned long long standard) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : standard;
}
static void event(const char *format, ...) {
    static FILE *file;
    const char *path = getenv("CUDA_TEST_LOG");
    if (!path || (!file && !(file = fopen(path, "a")))) return;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
    fflush(file);
}
static cudaError_t result(cudaError_t error) { return error ? last_error = error : error; }

/* The driver. */
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { return *version = setting("CUDA_TEST_DRIVER", 13000), 0; }
int cuDeviceGetCount(int *count) { return *count = setting("CUDA_TEST_GPUS", 1), 0; }

/* Devices and errors. */
cudaError_t cudaDriverGetVersion(int *version) { return cuDriverGetVersion(version); }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    if (setting("CUDA_TEST_DRIVER", 13000) < 13000) return result(cudaErrorInsufficientDriver);
    return result(cuDeviceGetCount(count));
}
cudaError_t cudaGetDevice(int *number) { return *number = device, cudaSuccess; }
cudaError_t cudaSetDevice(int number) {
    int count;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error) return error;
    if (number < 0 || number >= count) return result(cudaErrorInvalidDevice);
    device = number;
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) { cudaError_t error = last_error; last_error = cudaSuccess; return error; }
cudaError_t cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorName(cudaError_t error) { return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError"; }
const char *cudaGetErrorString(cudaError_t error) {
    if (error == cudaErrorMemoryAllocation) return "out of memory";
    if (error == cudaErrorInsufficientDriver) return "CUDA driver version is insufficient for CUDA runtime version";
    if (error == cudaErrorInvalidDevice) return "invalid device ordinal";
    if (error == cudaErrorStreamCaptureUnsupported) return "operation not permitted when stream is capturing";
    return error == cudaErrorStreamCaptureInvalidated ? "operation failed due to a previous error during capture" : "an error";
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int number) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "a device for tests");
    properties->major = 9;
    properties->totalGlobalMem = setting("CUDA_TEST_MEMORY", 80ull << 30);
    properties->warpSize = 32;
    properties->multiProcessorCount = 132;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = 49152;
    properties->sharedMemPerBlockOptin = 232448;
    properties->sharedMemPerMultiprocessor = 233472;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->maxGridSize[0] = INT32_MAX;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int number) {
    int capability_major = cudaDevAttrComputeCapabilityMajor, processors = cudaDevAttrMultiProcessorCount;
    *value = (int)attribute == capability_major ? 9 : (int)attribute == processors ? 132 : 1024;
    if (attribute == cudaDevAttrComputeCapabilityMinor) *value = 0;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = setting("CUDA_TEST_MEMORY", 80ull << 30);
    *available = *total - used;
    return cudaSuccess;
}

/* Memory. */
static Block *block_of(const void *address) {
    for (Block *block = blocks; block; block = block->next)
        if ((const char *)address >= block->start && (const char *)address < block->start + block->size) return block;
    return NULL;
}
static int capturing(const char *function) {
    int found = 0;
    for (Stream *stream = streams; stream; stream = stream->next)
        if (stream->capturing) found = stream->broken = 1;
    if (found) event("refused %s", function);
    return found;
}
static cudaError_t allocate(void **address, size_t size, int host) {
    if (!host && used + size > setting("CUDA_TEST_MEMORY", 80ull << 30)) return result(cudaErrorMemoryAllocation);
    Block *block = malloc(sizeof *block);
    block->size = size ? size : 1;
    block->host = host;
    if (posix_memalign((void **)&block->start, 4096, block->size)) return result(cudaErrorMemoryAllocation);
    memset(*address = block->start, 0, block->size);
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    used += host ? 0 : size;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
static cudaError_t release(void *address) {
    pthread_mutex_lock(&lock);
    for (Block **place = &blocks; *place; place = &(*place)->next)
        if ((*place)->start == address) {
            Block *block = *place;
            *place = block->next;
            used -= block->host ? 0 : block->size;
            memset(block->start, 0xdb, block->size);
            free(block->start);
            free(block);
            break;
        }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **address, size_t size) { return capturing("cudaMalloc") ? result(cudaErrorStreamCaptureUnsupported) : allocate(address, size, 0); }
cudaError_t cudaFree(void *address) { return address && capturing("cudaFree") ? result(cudaErrorStreamCaptureUnsupported) : release(address); }
cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags) { return allocate(address, size, 1); }
cudaError_t cudaMallocHost(void **address, size_t size) { return allocate(address, size, 1); }
cudaError_t cudaFreeHost(void *address) { return release(address); }
cudaError_t cudaMallocFromPoolAsync(void **address, size_t size, cudaMemPool_t pool, cudaStream_t stream) { return allocate(address, size, 0); }
cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) { return release(address); }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
    Block *block = block_of(address);
    memset(attributes, 0, sizeof *attributes);
    attributes->type = !block ? cudaMemoryTypeUnregistered : block->host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->devicePointer = attributes->hostPointer = (void *)address;
    return cudaSuccess;
}

/* Streams: work is done at once, or recorded while the stream captures. */
static Stream *stream_of(cudaStream_t handle) { return (uintptr_t)handle > 2 ? (Stream *)handle : &default_stream; }
static cudaError_t record(Stream *stream, Operation operation) {
    Graph *graph = stream->graph;
    Operation *kept = *graph->last = malloc(sizeof *kept);
    *kept = operation;
    kept->next = NULL;
    graph->last = &kept->next;
    graph->kernels += operation.kind == KERNEL;
    graph->copies += operation.kind == COPY;
    Block *source = operation.kind == COPY ? block_of(operation.from) : NULL;
    if (source && source->host) kept->before = memcpy(malloc(operation.size), operation.from, operation.size);
    return cudaSuccess;
}
static cudaError_t launch(cudaStream_t handle) {
    Stream *stream = stream_of(handle);
    if (!stream->capturing) return cudaSuccess;
    if (!getenv("CUDA_TEST_FAIL_CAPTURE")) return record(stream, (Operation){KERNEL});
    stream->broken = 1;
    return result(cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t handle) {
    Stream *stream = stream_of(handle);
    if (stream->capturing) return record(stream, (Operation){COPY, to, from, NULL, size});
    memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    if (capturing("cudaMemcpy")) return result(cudaErrorStreamCaptureUnsupported);
    memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t handle) {
    Stream *stream = stream_of(handle);
    if (stream->capturing) return record(stream, (Operation){FILL, to, NULL, NULL, size, value});
    memset(to, value, size);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *to, int value, size_t size) { return memset(to, value, size), cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    Stream *made = calloc(1, sizeof *made);
    made->next = streams;
    *stream = (cudaStream_t)(streams = made);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return capturing("cudaStreamSynchronize") ? result(cudaErrorStreamCaptureUnsupported) : cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return capturing("cudaDeviceSynchronize") ? result(cudaErrorStreamCaptureUnsupported) : cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return capturing("cudaEventSynchronize") ? result(cudaErrorStreamCaptureUnsupported) : cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *event) { return *event = (cudaEvent_t)&default_stream, cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) { return function(data), cudaSuccess; }

/* Capture and replay. */
cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode) {
    Stream *stream = stream_of(handle);
    if (stream == &default_stream) return result(cudaErrorStreamCaptureUnsupported);
    stream->capturing = 1;
    stream->broken = 0;
    stream->graph = calloc(1, sizeof(Graph));
    stream->graph->last = &stream->graph->first;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
    Stream *stream = stream_of(handle);
    stream->capturing = 0;
    event("captured kernels=%ld copies=%ld broken=%d", stream->graph->kernels, stream->graph->copies, stream->broken);
    *graph = stream->broken ? NULL : (cudaGraph_t)stream->graph;
    return stream->broken ? result(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *status) {
    *status = stream_of(handle)->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) { return *executable = (cudaGraphExec_t)graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return event("destroyed"), cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    long changed = 0;
    for (Operation *operation = ((Graph *)executable)->first; operation; operation = operation->next) {
        if (operation->kind == KERNEL || !block_of(operation->to)) continue;
        if (operation->kind == FILL) memset(operation->to, operation->value, operation->size);
        else if (!block_of(operation->from)) changed++; /* released since, or never the device's to read */
        else {
            changed += operation->before && memcmp(operation->before, operation->from, operation->size) != 0;
            memcpy(operation->to, operation->from, operation->size);
        }
    }
    event("replayed changed=%ld", changed);
    return cudaSuccess;
}

/* Kernels, as code compiled by nvcc registers and launches them. Those of LayerNormalization are looked at: their
   arguments are output, mean, variance, input, n1, n2, epsilon, scale, bias, broadcast_param, ... */
static struct { const void *function; } kernels[4096];
static int kernel_count;
static __thread struct { dim3 grid, block; size_t shared; struct CUstream_st *stream; } calls[8];
static __thread int call_count;
void **__cudaRegisterFatBinary(void *binary) { static void *handle; return &handle; }
void __cudaRegisterFunction(void **binary, const char *function, char *device_function, const char *name, int threads, void *a, void *b, void *c, void *d, int *e) {
    if (kernel_count < 4096 && strstr(name, "cuApplyLayerNorm")) kernels[kernel_count++].function = function;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    calls[call_count].grid = grid;
    calls[call_count].block = block;
    calls[call_count].shared = shared;
    calls[call_count++].stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = calls[--call_count].grid;
    *block = calls[call_count].block;
    *shared = calls[call_count].shared;
    *(void **)stream = calls[call_count].stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) { return *kernel = (cudaKernel_t)function, cudaSuccess; }
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
    for (int i = 0; i < kernel_count; i++)
        if (kernels[i].function == function) event("layernorm broadcast=%d", *(int *)arguments[9]);
    return launch(stream);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream); }
cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return launch(stream); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) { return launch(config->stream); }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int size, size_t shared, unsigned flags) { return *blocks = 2, cudaSuccess; }
static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *status) {
    *function = nothing;
    if (status) *status = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
