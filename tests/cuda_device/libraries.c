/* cuBLAS, cuBLASLt and cuDNN of the device for tests, as far as callers read what they return. The headers of these
   libraries are not needed: handles are addresses, and what a search for an algorithm finds is number 0 of 1. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void *last_stream;
static int make(void **handle) { return *handle = calloc(1, 1024), 0; }

int cublasCreate_v2(void **handle) { return make(handle); }
int cublasGetMathMode(void *handle, int *mode) { return *mode = 0, 0; }
const char *cublasGetStatusName(int status) { return "CUBLAS"; }
const char *cublasGetStatusString(int status) { return "CUBLAS"; }
int cublasLtCreate(void **handle) { return make(handle); }
int cublasLtMatmulDescCreate(void **handle) { return make(handle); }
int cublasLtMatmulPreferenceCreate(void **handle) { return make(handle); }
int cublasLtMatrixLayoutCreate(void **handle) { return make(handle); }
int cublasLtMatrixTransformDescCreate(void **handle) { return make(handle); }
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference, int asked, void *results, int *found) {
    memset(results, 0, 96);
    return *found = 1, 0;
}

size_t cudnnGetVersion(void) { return 92000; }
const char *cudnnGetErrorString(int status) { return "CUDNN"; }
int cudnnCreate(void **handle) { return make(handle); }
int cudnnSetStream(void *handle, void *stream) { return last_stream = stream, 0; }
int cudnnGetStream(void *handle, void **stream) { return *stream = last_stream, 0; }
int cudnnCreateActivationDescriptor(void **handle) { return make(handle); }
int cudnnCreateConvolutionDescriptor(void **handle) { return make(handle); }
int cudnnCreateDropoutDescriptor(void **handle) { return make(handle); }
int cudnnCreateFilterDescriptor(void **handle) { return make(handle); }
int cudnnCreateReduceTensorDescriptor(void **handle) { return make(handle); }
int cudnnCreateTensorDescriptor(void **handle) { return make(handle); }
int cudnnFindConvolutionForwardAlgorithmEx(void *handle, void *x, void *a, void *w, void *b, void *convolution, void *y, void *c, int asked, int *found, void *results) {
    memset(results, 0, 48);
    return *found = 1, 0;
}
int cudnnGetConvolutionForwardAlgorithm_v7(void *handle, void *x, void *w, void *convolution, void *y, int asked, int *found, void *results) {
    memset(results, 0, 48);
    return *found = 1, 0;
}
int cudnnGetConvolutionForwardWorkspaceSize(void *handle, void *x, void *w, void *convolution, void *y, int algorithm, size_t *size) { return *size = 0, 0; }
int cudnnGetReductionWorkspaceSize(void *handle, void *reduction, void *x, void *y, size_t *size) { return *size = 0, 0; }
int cudnnGetReductionIndicesSize(void *handle, void *reduction, void *x, void *y, size_t *size) { return *size = 0, 0; }
int cudnnBackendCreateDescriptor(int type, void **descriptor) { return make(descriptor); }
int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t asked, int64_t *found, void *values) {
    enum { DESCRIPTOR = 15, INT64 = 3, DOUBLE = 4, HANDLE = 0, DATA_TYPE = 1, VOID_POINTER = 6 };
    if (found) *found = 1;
    int wide = type == INT64 || type == DOUBLE || type == HANDLE || type == VOID_POINTER;
    if (values && asked > 0 && type != DESCRIPTOR) memset(values, 0, wide ? 8 : 4);
    return 0;
}
