// SPDX-License-Identifier: Apache-2.0
// As much of the CUDA runtime as common/launch.cuh calls; like the real one it remembers an error
// until it is asked for the last one.
#pragma once

using cudaError_t = int;
using cudaStream_t = struct FakeStream*;
constexpr cudaError_t cudaSuccess = 0;

namespace fake {

inline int device = 0;
inline cudaError_t last = cudaSuccess;
inline cudaError_t next_failure = cudaSuccess;  // of the next cudaSetDevice

inline cudaError_t fails(cudaError_t error) { return last = error; }

}  // namespace fake

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = fake::last;
  fake::last = cudaSuccess;
  return error;
}

inline const char* cudaGetErrorString(cudaError_t) { return "as asked for"; }

inline cudaError_t cudaGetDevice(int* device) {
  *device = fake::device;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  if (fake::next_failure != cudaSuccess) {
    const cudaError_t error = fake::next_failure;
    fake::next_failure = cudaSuccess;
    return fake::fails(error);
  }
  fake::device = device;
  return cudaSuccess;
}
