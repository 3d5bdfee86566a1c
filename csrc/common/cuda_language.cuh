// SPDX-License-Identifier: Apache-2.0
// What a <op>_kernels.cuh is written in: CUDA under nvcc, the host emulator under a C++ compiler.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define GANSPARSE_GRID_CONSTANT __grid_constant__

namespace gansparse {
// The block's dynamic shared memory, 16-aligned.
__device__ __forceinline__ void* dynamic_shared() {
  extern __shared__ uint4 gansparse_dynamic_shared[];
  return gansparse_dynamic_shared;
}
}  // namespace gansparse
#else
#include "emulator/emulator.h"
#define GANSPARSE_GRID_CONSTANT

namespace gansparse {
inline void* dynamic_shared() { return emulator::dynamic_shared_memory(); }
}  // namespace gansparse
#endif
