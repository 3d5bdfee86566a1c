// SPDX-License-Identifier: Apache-2.0
// What a <op>_kernels.cuh is written in: CUDA under nvcc, the host emulator under a C++ compiler.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define GANSPARSE_GRID_CONSTANT __grid_constant__
#else
#include "emulator/emulator.h"
#define GANSPARSE_GRID_CONSTANT
#endif
