// SPDX-License-Identifier: Apache-2.0
// GANSPARSE_HD marks the scalar mathematics that CPU and CUDA kernels share: one formula, compiled
// by every compiler. Do not call such a function from an AVX translation unit: the linker keeps one
// copy of an inline function, and it may be the copy that older processors cannot run.
#pragma once

#ifdef __CUDACC__
#define GANSPARSE_HD __host__ __device__ inline
#else
#define GANSPARSE_HD inline
#endif
