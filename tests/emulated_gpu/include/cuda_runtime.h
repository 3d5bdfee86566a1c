// SPDX-License-Identifier: Apache-2.0
// As much of the CUDA runtime as the host side of our ops calls. What has state is in runtime.cpp,
// which torch calls, too; beside the emulator's types there is no room for CUDA's own header.
#pragma once

#include <cstddef>
#include <cstdint>

#define CUDART_VERSION 13000

using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;
constexpr int cudaSharedmemCarveoutMaxShared = 100;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributePreferredSharedMemoryCarveout
};
struct cudaFuncAttributes {};
struct cudaDeviceProp {
  const char* name;
  int major, minor;
  size_t totalGlobalMem;
};

extern "C" {
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetLastError();
cudaError_t cudaMemGetInfo(size_t* left, size_t* all);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaSetDevice(int device);
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  size_t left = 0;
  *p = {"Emulated GPU", 9, 0, 0};
  return cudaMemGetInfo(&left, &p->totalGlobalMem);
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
