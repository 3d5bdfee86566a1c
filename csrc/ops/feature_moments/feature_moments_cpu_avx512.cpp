// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma.
#include <immintrin.h>

#include "ops/feature_moments/feature_moments.h"

namespace gansparse::feature_moments {
namespace {

constexpr int kLanes = 8;
constexpr int kRows = 8;
constexpr int kVectors =
    3;  // 8 x 3 sums, 3 operands, and broadcasts from memory: 27 of 32 registers
constexpr int kColumns = kVectors * kLanes;

void add_tile(const double* a, const double* b, int64_t depth, double* out, int64_t stride) {
  __m512d sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_setzero_pd();
  }
  for (int64_t n = 0; n < depth; ++n, a += kColumns, b += kColumns) {
    __m512d x[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) x[v] = _mm512_load_pd(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512d y = _mm512_set1_pd(a[r]);
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_fmadd_pd(y, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      double* to = out + r * stride + v * kLanes;
      _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), sum[r][v]));
    }
  }
}

}  // namespace

TileKernel tile_kernel_avx512() { return {kRows, kColumns, &add_tile}; }

}  // namespace gansparse::feature_moments
