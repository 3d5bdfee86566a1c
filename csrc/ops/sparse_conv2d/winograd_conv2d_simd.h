// SPDX-License-Identifier: Apache-2.0
// winograd_conv2d over vectors; what `Simd` is: sparse_conv2d_simd.h. Included after it by each
// file of an instruction set.
#pragma once

#include <cstdint>

#include "ops/sparse_conv2d/sparse_conv2d_simd.h"
#include "ops/sparse_conv2d/winograd_conv2d.h"

namespace gansparse::sparse_conv2d {
namespace {

constexpr int kSide = 6;  // of a patch's input
constexpr int64_t kLineFloats = 16;

// From one of the 36 positions to the next; the line keeps them out of one set of the cache.
inline int64_t position_step(int64_t rows, int64_t tiles) {
  return rows * tiles * kLanes + kLineFloats;
}

// ---- 1. To the points: Bᵀ d B

// The six numbers that Bᵀ makes of six.
template <class Simd>
void into_points(const typename Simd::Reg* d, typename Simd::Reg* to) {
  const auto times = [](float x, auto y, auto add) { return Simd::mul_add(Simd::set(x), y, add); };
  const auto even = times(-kB * kB, d[2], d[4]), odd = times(-kB * kB, d[1], d[3]);
  to[1] = times(kA, odd, even);
  to[2] = times(-kA, odd, even);
  const auto even_b = times(-kA * kA, d[2], d[4]), odd_b = times(-kA * kA, d[1], d[3]);
  to[3] = times(kB, odd_b, even_b);
  to[4] = times(-kB, odd_b, even_b);
  constexpr float kSum = kA * kA + kB * kB, kProduct = kA * kA * kB * kB;
  to[0] = times(kProduct, d[0], times(-kSum, d[2], d[4]));
  to[5] = times(kProduct, d[1], times(-kSum, d[3], d[5]));
}

// One channel of 16 patches, [6][6][16], to 36 vectors `step` floats apart.
template <class Simd>
void transform_input(const float* patches, int64_t step, float* to) {
  using Reg = typename Simd::Reg;
  for (int part = 0; part < kLanes; part += Simd::kWidth) {
    Reg half[kSide][kSide], row[kSide];  // half: [column of d][row of Bᵀ d]
    for (int x = 0; x < kSide; ++x) {
#pragma GCC unroll 6
      for (int y = 0; y < kSide; ++y) {
        row[y] = Simd::load(patches + (y * kSide + x) * kLanes + part);
      }
      into_points<Simd>(row, half[x]);
    }
    for (int y = 0; y < kSide; ++y) {
      Reg made[kSide];
#pragma GCC unroll 6
      for (int x = 0; x < kSide; ++x) row[x] = half[x][y];
      into_points<Simd>(row, made);
#pragma GCC unroll 6
      for (int x = 0; x < kSide; ++x) Simd::store(to + (y * kSide + x) * step + part, made[x]);
    }
  }
}

// ---- 2. The 36 products -------------------------------------------------------------------------

// Eight rows of one of them: [8][kTiles][16] = Σ_c values[c][8] · inputs[c][kTiles][16].
template <class Simd, int kTiles>
[[gnu::noinline]] void multiply_dense(const float* values, const float* inputs, int64_t channels,
                                      float* to) {
  using Reg = typename Simd::Reg;
  constexpr int kWide = kTiles * kLanes, kRegs = kWide / Simd::kWidth;
  constexpr int kEight = static_cast<int>(kWinogradRows);
  constexpr int kRows = Simd::kSums / kRegs < kEight ? Simd::kSums / kRegs : kEight;
  for (int row = 0; row < kEight; row += kRows) {
    const float* weight = values + row;
    const float* input = inputs;
    Reg sum[kRows * kRegs];
#pragma GCC unroll 16
    for (int i = 0; i < kRows * kRegs; ++i) sum[i] = Simd::zero();
    for (int64_t c = 0; c < channels; ++c, weight += kEight, input += kWide) {
      Reg loaded[kRegs];
#pragma GCC unroll 16
      for (int i = 0; i < kRegs; ++i) loaded[i] = Simd::load(input + i * Simd::kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kRows * kRegs; ++i) {
        sum[i] = Simd::mul_add(Simd::set(weight[i / kRegs]), loaded[i % kRegs], sum[i]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows * kRegs; ++i) {
      Simd::store(to + row * kWide + i * Simd::kWidth, sum[i]);
    }
  }
}

// ---- 3. And back: Aᵀ m A

// The four numbers that Aᵀ makes of six.
template <class Simd>
void from_points(const typename Simd::Reg* m, typename Simd::Reg* to) {
  const auto times = [](float x, auto y, auto add) { return Simd::mul_add(Simd::set(x), y, add); };
  const auto sum_a = Simd::add(m[1], m[2]), gap_a = times(-1, m[2], m[1]);
  const auto sum_b = Simd::add(m[3], m[4]), gap_b = times(-1, m[4], m[3]);
  to[0] = Simd::add(Simd::add(m[0], sum_a), sum_b);
  to[1] = times(kB, gap_b, times(kA, gap_a, Simd::zero()));
  to[2] = times(kB * kB, sum_b, times(kA * kA, sum_a, Simd::zero()));
  to[3] = times(kB * kB * kB, gap_b, times(kA * kA * kA, gap_a, m[5]));
}

// 36 vectors `step` floats apart to one row's sums, [4][4][16].
template <class Simd>
void transform_output(const float* from, int64_t step, float* sums) {
  using Reg = typename Simd::Reg;
  for (int part = 0; part < kLanes; part += Simd::kWidth) {
    Reg half[kSide][4], column[kSide], made[4];
    for (int x = 0; x < kSide; ++x) {
#pragma GCC unroll 6
      for (int y = 0; y < kSide; ++y) column[y] = Simd::load(from + (y * kSide + x) * step + part);
      from_points<Simd>(column, half[x]);
    }
    for (int y = 0; y < 4; ++y) {
#pragma GCC unroll 6
      for (int x = 0; x < kSide; ++x) column[x] = half[x][y];
      from_points<Simd>(column, made);
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) Simd::store(sums + (y * 4 + x) * kLanes + part, made[x]);
    }
  }
}

// ---- Two tiles, or the last one, of a chunk -----------------------------------------------------

template <class Simd, int kTiles>
void run_winograd_unit(const Problem& p, const Plan& plan, const WinogradSpace& space,
                       int64_t chunk, int64_t first, bool loaded) {
  const int64_t channels = p.g.in_channels, input_step = position_step(channels, kTiles);
  for (int64_t t = 0; t < kTiles && !loaded; ++t) {
    const Tile tile = tile_at(p, plan, first + t);
    const Reader<Simd> reader(p, plan, tile);
    for (int64_t c = 0; c < channels; c += kWinogradChannels) {
      const int64_t end = least(c + kWinogradChannels, channels);
      load_block<Simd>(p, plan, tile, reader, c, end, space.staged, space.scratch);
      for (int64_t i = c; i < end; ++i) {
        const float* const patches = space.scratch + (i - c) * plan.channel_floats;
        transform_input<Simd>(patches, input_step, space.inputs + (i * kTiles + t) * kLanes);
      }
    }
  }
  const int64_t begin = chunk * kChunkRows, rows = least(kChunkRows, plan.matrix_rows - begin);
  const int64_t output_step = position_step(rows, kTiles);
  for (int64_t position = 0; position < kPositions; ++position) {
    const float* const inputs = space.inputs + position * input_step;
    for (int64_t row = 0; row < rows; row += kWinogradRows) {
      const float* const values = p.values + (position * plan.matrix_rows + begin + row) * channels;
      float* const to = space.outputs + position * output_step + row * kTiles * kLanes;
      multiply_dense<Simd, kTiles>(values, inputs, channels, to);
    }
  }
  for (int64_t t = 0; t < kTiles; ++t) {
    for (int64_t row = 0; row < rows; ++row) {
      const float* const from = space.outputs + (row * kTiles + t) * kLanes;
      transform_output<Simd>(from, output_step, space.sums + row * 16 * kLanes);
    }
    finish_chunk<Simd, 4>(p, plan, tile_at(p, plan, first + t), chunk, space.sums);
  }
}

template <class Simd>
void run_winograd_units(const Problem& p, const Plan& plan, const WinogradSpace& space,
                        int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t chunk = unit % plan.chunks, first = unit / plan.chunks * space.together;
    const bool loaded = unit > begin && chunk > 0;
    if (space.together == 2 && first + 1 < plan.tiles) {
      run_winograd_unit<Simd, 2>(p, plan, space, chunk, first, loaded);
    } else {
      run_winograd_unit<Simd, 1>(p, plan, space, chunk, first, loaded);
    }
  }
}

}  // namespace
}  // namespace gansparse::sparse_conv2d
