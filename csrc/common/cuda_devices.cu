// SPDX-License-Identifier: Apache-2.0
#include "common/cuda_devices.h"

#include <cuda_runtime.h>

namespace gansparse {

CudaDevices find_cuda_devices() {
  CudaDevices found;
  int count = 0;
  if (cudaDriverGetVersion(&found.driver) != cudaSuccess) found.driver = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  for (int i = 0; status == cudaSuccess && i < count; ++i) {
    cudaDeviceProp p{};
    status = cudaGetDeviceProperties(&p, i);
    if (status == cudaSuccess) {
      found.devices.push_back({p.name, p.major, p.minor, static_cast<int64_t>(p.totalGlobalMem)});
    }
  }
  if (status != cudaSuccess) {
    cudaGetLastError();  // so that the next launch's check does not report this
    found.problem = found.driver == 0 ? "no CUDA driver" : cudaGetErrorString(status);
  } else if (count == 0) {
    found.problem = "no CUDA device";
  }
  return found;
}

}  // namespace gansparse
