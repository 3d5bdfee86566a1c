// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel of feature_moments. Contract: feature_moments.h.
//
// A block adds one kTile x kTile tile of the lower triangle, going through all rows of the batch
// kDepth at a time. Tiles are numbered along the triangle's rows; block t has tile t:
//
//   0                     thread (ty, tx) of 16 x 16 has the entries
//   1 2                     [ty + 16 r, tx + 16 c], r, c = 0 … 3,
//   3 4 5                 so that neighbours read neighbouring numbers of a strip
//   6 7 8 9
//
// Blocks on the diagonal (0, 2, 5, 9) also add the totals of their kTile features. No two blocks
// write to one place, and every sum has a fixed order: the same input gives the same bits.
#pragma once

#include "common/cuda_language.cuh"
#include "common/half.h"
#include "ops/feature_moments/feature_moments.h"

namespace gansparse::feature_moments {

struct Config {
  static constexpr int kTile = 64;   // features on each side of a block's tile
  static constexpr int kDepth = 16;  // rows of the batch in shared memory at a time
  static constexpr int kSide = 16;   // threads along each side of the tile
  static constexpr int kThreads = kSide * kSide;
  static constexpr int kEntries = kTile / kSide;  // of a thread, in each direction

  static_assert(kTile % kSide == 0, "every thread has as many entries");
  static_assert(kDepth * kTile % kThreads == 0, "every thread loads as many numbers of a strip");
  static_assert(kTile <= kThreads, "a thread for each total of a diagonal tile");
};

// kDepth rows of kTile features, as deviations from the shift.
using Strip = double[Config::kDepth][Config::kTile];

// Row of the triangle in which tile `t` lies: the largest i with i (i + 1) / 2 <= t.
__device__ __forceinline__ int64_t triangle_row(int64_t t) {
  int64_t i = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) / 2.0);
  while (i * (i + 1) / 2 > t) --i;  // the root is rounded
  while ((i + 1) * (i + 2) / 2 <= t) ++i;
  return i;
}

// Fills a strip from rows [n0, n0 + kDepth) and features [f0, f0 + kTile); zero beyond the batch.
template <class T>
__device__ __forceinline__ void load_strip(const T* features, const double* shift, int64_t rows,
                                           int64_t width, int64_t n0, int64_t f0, Strip& strip) {
#pragma unroll
  for (int s = 0; s < Config::kDepth * Config::kTile / Config::kThreads; ++s) {
    const int place = static_cast<int>(threadIdx.x) + s * Config::kThreads;
    const int n = place / Config::kTile;
    const int f = place % Config::kTile;
    double deviation = 0;
    if (n0 + n < rows && f0 + f < width) {
      deviation = to_float(features[(n0 + n) * width + f0 + f]);
      if (shift != nullptr) deviation -= shift[f0 + f];
    }
    strip[n][f] = deviation;
  }
}

template <class T>
__global__ void __launch_bounds__(Config::kThreads)
    feature_moments_kernel(const T* features,    // [N, F]
                           const double* shift,  // [F], or null: zero
                           double* total,        // [F]
                           double* second,       // [F, F], lower triangle
                           int64_t rows,         // N
                           int64_t width) {      // F
  using C = Config;
  __shared__ Strip row_strip;
  __shared__ Strip column_strip;

  // ---- Which tile ----
  const int64_t tile = blockIdx.x;
  const int64_t tile_row = triangle_row(tile);
  const int64_t tile_column = tile - tile_row * (tile_row + 1) / 2;
  const bool on_diagonal = tile_row == tile_column;
  const int64_t i0 = tile_row * C::kTile;
  const int64_t j0 = tile_column * C::kTile;
  const int thread = static_cast<int>(threadIdx.x);
  const int ty = thread / C::kSide;
  const int tx = thread % C::kSide;

  // ---- Add up all rows of the batch ----
  double sum[C::kEntries][C::kEntries] = {};
  double sum_of_feature = 0;  // i0 + thread, on the diagonal
  for (int64_t n0 = 0; n0 < rows; n0 += C::kDepth) {
    load_strip(features, shift, rows, width, n0, i0, row_strip);
    load_strip(features, shift, rows, width, n0, j0, column_strip);
    __syncthreads();  // both strips are whole before anyone reads them
#pragma unroll
    for (int n = 0; n < C::kDepth; ++n) {
#pragma unroll
      for (int r = 0; r < C::kEntries; ++r) {
#pragma unroll
        for (int c = 0; c < C::kEntries; ++c) {
          sum[r][c] += row_strip[n][ty + C::kSide * r] * column_strip[n][tx + C::kSide * c];
        }
      }
    }
    if (on_diagonal && thread < C::kTile) {
      for (int n = 0; n < C::kDepth; ++n) sum_of_feature += row_strip[n][thread];
    }
    __syncthreads();  // everyone has read the strips before they are filled again
  }

  // ---- Store: the lower triangle only ----
  if (on_diagonal && thread < C::kTile && i0 + thread < width) {
    total[i0 + thread] += sum_of_feature;
  }
#pragma unroll
  for (int r = 0; r < C::kEntries; ++r) {
    const int64_t i = i0 + ty + C::kSide * r;
#pragma unroll
    for (int c = 0; c < C::kEntries; ++c) {
      const int64_t j = j0 + tx + C::kSide * c;
      if (i < width && j <= i) second[i * width + j] += sum[r][c];
    }
  }
}

}  // namespace gansparse::feature_moments
