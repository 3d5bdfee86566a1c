// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel of feature_moments. Contract: feature_moments.h.
//
// Version 2: products by float64 tensor cores; version 1 added them up with multiply-adds.
//
// A block adds one kTile x kTile tile of the lower triangle, going through all rows of the batch
// kDepth at a time. Tiles are numbered along the triangle's rows; block t has tile t:
//
//   0                     each of four warps has a quarter of the tile, 32 x 32 entries, and a
//   1 2                   lane 32 of them: the matrices c of common/tensor_core.cuh, whose A is
//   3 4 5                 the tile's row features by rows of the batch, and B rows of the batch
//   6 7 8 9               by column features
//
// Blocks on the diagonal (0, 2, 5, 9) also add the totals of their kTile features. No two blocks
// write to one place, and every sum has a fixed order: the same input gives the same bits.
//
// The next kDepth rows come into registers during the products of these. cp.async would not do: the
// numbers change type on their way to shared memory, and need not be aligned to more than their
// size.
#pragma once

#include "common/half.h"
#include "common/reduce.cuh"
#include "common/tensor_core.cuh"
#include "ops/feature_moments/feature_moments.h"

namespace gansparse::feature_moments {

struct Config {
  static constexpr int kTile = 64;            // features on each side of a block's tile
  static constexpr int kWarpTile = 32;        // and of a warp's quarter
  static constexpr int kThreads = 2 * kTile;  // one for each feature of rows and columns
  static constexpr int kBlocks = 4;           // of a multiprocessor: 528 tiles of F = 2048 on 132
  static constexpr int kMatrixRows = kWarpTile / 16;
  static constexpr int kMatrixColumns = kWarpTile / 8;
  // Rows of the batch in shared memory at a time: of doubles half as many, for the registers that
  // hold the next ones.
  template <class T>
  static constexpr int kDepth = sizeof(T) < sizeof(double) ? 16 : 8;
  // From a strip's row to the next, in numbers: the 4 x 4 numbers that half a warp reads for a
  // matrix, neighbours in a row, lie in 16 different pairs of banks.
  static constexpr int kStride = kTile + 4;

  static_assert(kThreads / kWarp * kWarpTile * kWarpTile == kTile * kTile, "warps make a tile");
};

// Deviations from the shift: rows of the batch by features of the tile's rows or columns.
template <class T>
using Strip = double[Config::kDepth<T>][Config::kStride];

// Row of the triangle in which tile `t` lies: the largest i with i (i + 1) / 2 <= t.
__device__ __forceinline__ int64_t triangle_row(int64_t t) {
  int64_t i = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) / 2.0);
  while (i * (i + 1) / 2 > t) --i;  // the root is rounded
  while ((i + 1) * (i + 2) / 2 <= t) ++i;
  return i;
}

// The next rows of one feature, where `left` are there. What is not there keeps its value.
template <class T, int kDepth>
__device__ __forceinline__ void fetch(const T* from, int64_t left, int64_t width,
                                      T (&out)[kDepth]) {
  if (left >= kDepth) {
#pragma unroll
    for (int n = 0; n < kDepth; ++n) out[n] = from[n * width];
  } else {
#pragma unroll
    for (int n = 0; n < kDepth; ++n) {
      if (n < left) out[n] = from[n * width];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    feature_moments_kernel(const T* features,    // [N, F]
                           const double* shift,  // [F], or null: zero
                           double* total,        // [F]
                           double* second,       // [F, F], lower triangle
                           int64_t rows,         // N
                           int64_t width) {      // F
  using C = Config;
  constexpr int kDepth = C::kDepth<T>;
  __shared__ Strip<T> strips[2][2];  // two turns; of row features, of column features

  // ---- Which tile, and which feature this thread brings ----
  const int64_t tile = blockIdx.x;
  const int64_t tile_row = triangle_row(tile);
  const int64_t tile_column = tile - tile_row * (tile_row + 1) / 2;
  const int64_t i0 = tile_row * C::kTile;
  const int64_t j0 = tile_column * C::kTile;
  const int thread = static_cast<int>(threadIdx.x);
  const int side = thread / C::kTile;
  const int place = thread % C::kTile;
  const int64_t own = (side == 0 ? i0 : j0) + place;
  const int64_t feature = own < width ? own : width - 1;  // any: its entries are not stored
  const double own_shift = shift != nullptr ? shift[feature] : 0;
  const bool has_total = tile_row == tile_column && side == 0;

  // ---- Add up all rows of the batch ----
  const int warp = thread / kWarp;
  const int row0 = warp / 2 * C::kWarpTile;
  const int column0 = warp % 2 * C::kWarpTile;
  const int g = thread % kWarp / 4;
  const int t = thread % 4;
  double sum[C::kMatrixRows][C::kMatrixColumns][4] = {};
  double sum_of_feature = 0;
  T fetched[kDepth] = {};
  const T* from = features + feature;
  fetch(from, rows, width, fetched);
  int turn = 0;
  for (int64_t left = rows; left > 0; left -= kDepth, turn ^= 1) {
    // ---- From registers to the strips; the next rows are on their way meanwhile ----
    Strip<T>& strip = strips[turn][side];
#pragma unroll
    for (int n = 0; n < kDepth; ++n) strip[n][place] = to_float(fetched[n]) - own_shift;
    for (int64_t n = left; n < kDepth; ++n) strip[n][place] = 0;
    from += kDepth * width;
    fetch(from, left - kDepth, width, fetched);
    // Both strips are whole; and everyone is done with those of the turn before, which come next.
    __syncthreads();
    if (has_total) {
      for (int n = 0; n < kDepth; ++n) sum_of_feature += strip[n][place];
    }

    // ---- Products ----
    const Strip<T>& row_strip = strips[turn][0];
    const Strip<T>& column_strip = strips[turn][1];
#pragma unroll
    for (int n = 0; n < kDepth; n += 4) {
      double a[C::kMatrixRows][2];
#pragma unroll
      for (int i = 0; i < C::kMatrixRows; ++i) {
        a[i][0] = row_strip[n + t][row0 + 16 * i + g];
        a[i][1] = row_strip[n + t][row0 + 16 * i + g + 8];
      }
#pragma unroll
      for (int j = 0; j < C::kMatrixColumns; ++j) {
        const double b = column_strip[n + t][column0 + 8 * j + g];
#pragma unroll
        for (int i = 0; i < C::kMatrixRows; ++i) multiply(sum[i][j], a[i], b);
      }
    }
  }

  // ---- Store: the lower triangle only ----
  if (has_total && own < width) total[own] += sum_of_feature;
#pragma unroll
  for (int i = 0; i < C::kMatrixRows; ++i) {
#pragma unroll
    for (int j = 0; j < C::kMatrixColumns; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int64_t row = i0 + row0 + 16 * i + g + r / 2 * 8;
        const int64_t column = j0 + column0 + 8 * j + 2 * t + r % 2;
        if (row < width && column <= row) second[row * width + column] += sum[i][j][r];
      }
    }
  }
}

}  // namespace gansparse::feature_moments
