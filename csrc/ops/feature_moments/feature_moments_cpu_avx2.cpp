// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx2 -mfma.
#include <immintrin.h>

#include "ops/feature_moments/feature_moments.h"

namespace gansparse::feature_moments {
namespace {

constexpr int kLanes = 4;
constexpr int kRows = 4;
constexpr int kVectors = 3;  // 4 x 3 sums, 3 operands, 1 broadcast: all 16 registers
constexpr int kColumns = kVectors * kLanes;

void add_tile(const double* a, const double* b, int64_t depth, double* out, int64_t stride) {
  __m256d sum[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm256_setzero_pd();
  }
  for (int64_t n = 0; n < depth; ++n, a += kColumns, b += kColumns) {
    __m256d x[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) x[v] = _mm256_load_pd(b + v * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256d y = _mm256_set1_pd(a[r]);
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm256_fmadd_pd(y, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      double* to = out + r * stride + v * kLanes;
      _mm256_storeu_pd(to, _mm256_add_pd(_mm256_loadu_pd(to), sum[r][v]));
    }
  }
}

}  // namespace

TileKernel tile_kernel_avx2() { return {kRows, kColumns, &add_tile}; }

}  // namespace gansparse::feature_moments
