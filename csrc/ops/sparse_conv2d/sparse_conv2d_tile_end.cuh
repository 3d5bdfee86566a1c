// SPDX-License-Identifier: Apache-2.0
// The end of the layer in the kernels of sparse_conv2d for tensor cores: bias, activation,
// residual, moments, and the store in channels_last.
#pragma once

#include "common/moments.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_tiles.h"

namespace gansparse::sparse_conv2d {

// kTiles: tiles of 16 rows that a warp has; V = 16 kTiles.
template <int kTiles_, bool kSparse_, int kGroups_ = 8>
struct TileConfig {
  static constexpr int kTiles = kTiles_;
  static constexpr bool kSparse = kSparse_;
  static constexpr int kRows = 16 * kTiles;          // V
  static constexpr int kMatrices = kSparse ? 1 : 2;  // F
  static constexpr int kGroups = kGroups_;           // of 8 pixels, a warp's
  static constexpr int kWarpPixels = 8 * kGroups;
  static constexpr int kHalves = kTilePixels / kWarpPixels;  // warps that have a row tile's pixels
  static constexpr int kStagingPitch = kRows + 4;            // floats

  static_assert(!kSparse || kTiles % 2 == 0, "metadata comes for pairs of 16 rows");
  static_assert(kHalves * kWarpPixels == kTilePixels, "warps have a row tile's pixels");
};

struct TileArguments {
  TileProblem p;
  TilePlan t;
};

// Rows or columns of the output grid that a phase has in an output of this size.
__device__ __forceinline__ int grid_size(int64_t out, int upscale, int phase) {
  return (static_cast<int>(out) - phase + upscale - 1) / upscale;
}

// ---- End of the layer, in registers -------------------------------------------------------------
//
// Of 16 matrix rows a lane has two, lane / 4 (whose output channel is `o`) and 8 more, and of each
// group of 8 pixels two neighbours: sums[group][2 · (which row) + (which pixel)].

template <int kGroups>
__device__ __forceinline__ void add_bias(const TileProblem& p, float (*sums)[4], int64_t o) {
  if (p.bias == nullptr) return;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float bias = o + 8 * row < p.g.out_channels ? p.bias[o + 8 * row] : 0.0f;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      sums[group][2 * row] += bias;
      sums[group][2 * row + 1] += bias;
    }
  }
}

// The sum of four neighbouring lanes, which have the same rows.
template <class Number>
__device__ __forceinline__ Number quad_sum(Number value) {
  value += __shfl_xor_sync(kFullWarp, value, 1);
  return value + __shfl_xor_sync(kFullWarp, value, 2);
}

// Moments of the warp's pixels, of which the output has `count`; there(group, i) tells whether it
// has the lane's pixel i of a group. The sums become what is stored, rounded to T. The first row's
// moments go to [3, channels] at `channel`, and likewise the other's.
template <class T, int kGroups, class There>
__device__ __forceinline__ void leave_moments(float (*sums)[4], int count, const There& there,
                                              float* to, int64_t channels, int64_t channel) {
  const bool full = count == 8 * kGroups;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const auto fill = [&](float value) {  // pixels that are not there: nobody stores them
#pragma unroll
      for (int i = 0; i < 2 * kGroups; ++i) {
        float& z = sums[i / 2][2 * row + i % 2];
        z = there(i / 2, i % 2) ? z : value;
      }
    };
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      round_both<T>(&sums[group][2 * row], &sums[group][2 * row + 1]);
    }
    if (!full) fill(0.0f);
    float sum[2] = {};
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i) sum[i % 2] += sums[i / 2][2 * row + i % 2];
    const float total = quad_sum(sum[0] + sum[1]);
    const float mean = count > 0 ? total / static_cast<float>(count) : 0.0f;
    if (!full) fill(mean);
    float distances[2] = {};
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i) {
      const float apart = sums[i / 2][2 * row + i % 2] - mean;
      distances[i % 2] += apart * apart;
    }
    const float all = quad_sum(distances[0] + distances[1]);
    if (threadIdx.x % 4 == 0 && channel + 8 * row < channels) {
      store_moments(to, channels, channel + 8 * row, {static_cast<float>(count), mean, all});
    }
  }
}

// ---- End of the layer, in channels_last ---------------------------------------------------------

// `there` of eight channels, from `o` on.
__device__ __forceinline__ void activate(const TileProblem& p, float (&z)[8], int64_t o,
                                         int there) {
  if (p.activation == TileActivation::kRelu) {
#pragma unroll
    for (int e = 0; e < 8; ++e) z[e] = z[e] < 0 ? 0.0f : z[e];  // NaN passes
  } else if (p.activation == TileActivation::kLeaky) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float slope = p.slopes && e < there ? p.slopes[(o + e) * p.slope_step] : p.slope;
      z[e] = z[e] >= 0 ? z[e] : z[e] * slope;
    }
  } else if (p.activation == TileActivation::kTanh) {
#pragma unroll
    for (int e = 0; e < 8; ++e) z[e] = tanhf(z[e]);
  }
}

// Eight neighbouring channels of one output pixel, of which those below O are there; `at` is the
// first one's place.
template <class T>
__device__ __forceinline__ void finish(const TileProblem& p, const float* sums, int64_t o,
                                       int64_t at) {
  const T* residual = static_cast<const T*>(p.residual);
  T* output = static_cast<T*>(p.output);
  const bool whole = p.g.out_channels % 8 == 0;  // then all eight are there, and aligned
  const int there = whole ? 8 : static_cast<int>(p.g.out_channels - o);
  const auto low = load<4>(sums);
  const auto high = load<4>(sums + 4);
  float z[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) z[e] = (e < 4 ? low : high).item[e % 4];
  if (residual && whole) {
    const auto added = load<8>(residual + at);
#pragma unroll
    for (int e = 0; e < 8; ++e) z[e] += to_float(added.item[e]);
  } else if (residual) {
    for (int e = 0; e < 8; ++e) z[e] += e < there ? to_float(residual[at + e]) : 0.0f;
  }
  activate(p, z, o, there);
  T rounded[8];
  Vec<uint32_t, 4> words;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    round_to(z[e], &rounded[e]);
    if (e % 2 == 1) {
      words.item[e / 2] = rounded[e - 1].bits | static_cast<uint32_t>(rounded[e].bits) << 16;
    }
  }
  if (whole) {
    store_global(reinterpret_cast<uint32_t*>(output + at), words);
  } else {
    for (int e = 0; e < 8; ++e) {
      if (e < there) output[at + e] = rounded[e];
    }
  }
}

// ---- End of a block's tile --------------------------------------------------------------------

// Where a block's pixels are: of which pictures, rows and columns; and which block it is.
struct TilePlace {
  int n, y, x;
  int tile;   // of pixels
  int block;  // tile · row_blocks + (which rows)
};

// Bias, moments, and the store of the warps' sums, whose order wants the buffers.
template <class T, class C>
__device__ __forceinline__ void finish_tile(const TileArguments& a, const TilePlace& at,
                                            unsigned char* buffers,
                                            float (&sums)[C::kTiles][C::kGroups][4]) {
  const TileProblem& p = a.p;
  const TilePlan& t = a.t;
  const Geometry& g = p.g;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int row_tile = at.block % t.row_blocks * t.row_warps + warp / C::kHalves;
  const int first_pixel = warp % C::kHalves * C::kWarpPixels;
  const bool has_rows = row_tile < t.row_tiles;  // of the last block maybe only some
  const int upscale = static_cast<int>(g.upscale);
  const int phases = upscale * upscale;
  const int phase = row_tile % phases;
  const int64_t first_channel = static_cast<int64_t>(row_tile / phases) * C::kRows;
#pragma unroll
  for (int i = 0; i < C::kTiles; ++i) {
    add_bias<C::kGroups>(p, sums[i], first_channel + i * 16 + lane / 4);
  }
  __syncthreads();  // all have read the buffers before they take sums

  // ---- Moments: of a warp's pixels for its rows; then a thread joins a row's two halves ----
  if (p.moments != nullptr) {
    const int rows = grid_size(p.out_height, upscale, phase / upscale) - (at.y << t.log_y);
    const int columns = grid_size(p.out_width, upscale, phase % upscale) - (at.x << t.log_x);
    uint32_t there = 0;  // bit 2 · group + i
#pragma unroll
    for (int i = 0; i < 2 * C::kGroups; ++i) {
      const int pixel = first_pixel + i / 2 * 8 + lane % 4 * 2 + i % 2;
      const bool inside = pixel >> t.log_x < rows && (pixel & ((1 << t.log_x) - 1)) < columns;
      there |= (inside ? 1u : 0u) << i;
    }
    const int count = quad_sum(__popc(there));
    float* halves = reinterpret_cast<float*>(buffers);  // [row_warps][kHalves][3][V]
#pragma unroll
    for (int i = 0; i < C::kTiles; ++i) {
      leave_moments<T, C::kGroups>(
          sums[i], count, [there](int group, int k) { return (there >> (2 * group + k) & 1) != 0; },
          halves + warp * 3 * C::kRows, C::kRows, i * 16 + lane / 4);
    }
    __syncthreads();  // both halves' moments are there
    const int joins = at.block % t.row_blocks * t.row_warps + thread / C::kRows;  // row tile
    const int64_t channel = static_cast<int64_t>(joins / phases) * C::kRows + thread % C::kRows;
    if (thread < t.row_warps * C::kRows && joins < t.row_tiles && channel < g.out_channels) {
      const int64_t part = at.tile % (t.tiles_y * t.tiles_x) * int64_t{phases} + joins % phases;
      store_moments(p.moments + (at.n * p.parts + part) * 3 * g.out_channels, g.out_channels,
                    channel,
                    joined(halves + thread / C::kRows * (3 * C::kHalves * C::kRows), C::kHalves,
                           C::kRows, thread % C::kRows));
    }
    __syncthreads();  // the halves are read before sums take their place
  }

  // ---- Store: from [row][pixel] in registers to [pixel][channel], 32 pixels at a time ----
  float* staging = reinterpret_cast<float*>(buffers) + warp * (kStagedPixels * C::kStagingPitch);
#pragma unroll
  for (int from = 0; from < C::kWarpPixels; from += kStagedPixels) {
#pragma unroll
    for (int group = 0; group < kStagedPixels / 8; ++group) {
#pragma unroll
      for (int i = 0; i < C::kTiles; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = i * 16 + lane / 4 + e / 2 * 8;
          staging[(group * 8 + lane % 4 * 2 + e % 2) * C::kStagingPitch + row] =
              sums[i][from / 8 + group][e];
        }
      }
    }
    __syncwarp();  // all lanes' sums are there
#pragma unroll 1
    for (int staged = lane / 4; has_rows && staged < kStagedPixels; staged += 8) {
      const int pixel = first_pixel + from + staged;
      const int in_row = pixel & ((1 << t.log_x) - 1);
      const int in_column = pixel >> t.log_x & ((1 << t.log_y) - 1);
      const int64_t x = ((int64_t{at.x} << t.log_x) + in_row) * upscale + phase % upscale;
      const int64_t y = ((int64_t{at.y} << t.log_y) + in_column) * upscale + phase / upscale;
      const int64_t n = (int64_t{at.n} << t.log_n) + (pixel >> (t.log_x + t.log_y));
      if (n >= p.batch || y >= p.out_height || x >= p.out_width) continue;
      const int64_t to = ((n * p.out_height + y) * p.out_width + x) * g.out_channels;
      for (int row = lane % 4 * 8; row < C::kRows; row += 32) {
        const int64_t o = first_channel + row;
        if (o < g.out_channels) {
          finish<T>(p, staging + staged * C::kStagingPitch + row, o, to + o);
        }
      }
    }
    __syncwarp();  // all lanes have read before the next pixels come
  }
}

}  // namespace gansparse::sparse_conv2d
