// SPDX-License-Identifier: Apache-2.0
// feature_moments: adds a batch of feature vectors to running first and second moments, in float64.
//
// With x[n] the features of sample n and d[n] = x[n] − shift:
//   total[f]     += Σ_n d[n, f]
//   second[f, g] += Σ_n d[n, f] · d[n, g]        for g ≤ f
//
// | argument | shape  | dtype                                | role        |
// |----------|--------|--------------------------------------|-------------|
// | features | [N, F] | float16, bfloat16, float32, float64  | read        |
// | total    | [F]    | float64                              | read, write |
// | second   | [F, F] | float64                              | read, write |
// | shift    | [F]    | float64, or None: zero               | read        |
//
// All row-major without gaps; no two may overlap. Above the diagonal `second` is neither read nor
// written. Features are widened, which is exact, before the shift is taken off: without a shift the
// products of 32-bit features are exact, and only their sums are rounded. A shift near the mean
// keeps the digits that a covariance from raw moments would lose when the mean is far above the
// spread. On the CPU results do not depend on the number of threads.
//
// Cost: F² · N flops and, for every 256 rows, F² / 2 numbers of 8 bytes read and written. Bound by
// arithmetic from about 100 rows up: add rows in blocks of 256 or more.
#pragma once

#include <cstdint>

namespace gansparse::feature_moments {

enum class FeatureType { kFloat16, kBFloat16, kFloat32, kFloat64 };

struct Problem {
  FeatureType type;
  const void* features;  // [N, F]
  const double* shift;   // [F], or null: zero
  double* total;         // [F]
  double* second;        // [F, F], lower triangle
  int64_t rows;          // N
  int64_t width;         // F
};

// ---- CPU kernels --------------------------------------------------------------------------------

// How one instruction set adds a small tile of products. The features of a chunk of rows are packed
// in panels of kColumns neighbouring features:
//   panel[n · kColumns + c]
// and a tile is kRows features of one panel by all kColumns of another, so one packing serves both.
struct TileKernel {
  int rows;     // divides columns
  int columns;  // of a panel
  // out[r · stride + c] += Σ_n a[n · columns + r] · b[n · columns + c]
  void (*add)(const double* a, const double* b, int64_t depth, double* out, int64_t stride);
};

TileKernel tile_kernel_avx2();
TileKernel tile_kernel_avx512();

// ---- Whole ops ----------------------------------------------------------------------------------

void add_cpu(const Problem& problem);
void add_cuda(const Problem& problem, int device, uintptr_t stream);

}  // namespace gansparse::feature_moments
