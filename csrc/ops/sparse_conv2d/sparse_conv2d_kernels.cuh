// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel of sparse_conv2d. Contract, layouts and plan: sparse_conv2d_tiles.h.
//
// Version 1: mma and mma.sp of sm_80, weights from global memory to registers, input through
// shared memory. A block has two or four tiles of V matrix rows by twice 64 pixels, a warp each.
#pragma once

#include "common/async_copy.cuh"
#include "common/moments.cuh"
#include "common/reduce.cuh"
#include "common/tensor_core.cuh"
#include "common/vec.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_tiles.h"

namespace gansparse::sparse_conv2d {

// kTiles: tiles of 16 rows that a warp has; V = 16 kTiles.
template <int kTiles_, bool kSparse_>
struct TileConfig {
  static constexpr int kTiles = kTiles_;
  static constexpr bool kSparse = kSparse_;
  static constexpr int kRows = 16 * kTiles;          // V
  static constexpr int kMatrices = kSparse ? 1 : 2;  // F
  static constexpr int kGroups = 8;                  // of 8 pixels, a warp's
  static constexpr int kWarpPixels = 8 * kGroups;
  static constexpr int kStagingPitch = kRows + 4;  // floats

  static_assert(!kSparse || kTiles % 2 == 0, "metadata comes for pairs of 16 rows");
  static_assert(2 * kWarpPixels == kTilePixels, "two warps have a row tile's pixels");
};

struct TileArguments {
  TileProblem p;
  TilePlan t;
};

// ---- Input --------------------------------------------------------------------------------------

// Row or column i of the padded input as one of the input, or −1: zero. Past the padding there are
// only pixels that no stored output needs.
template <class Int>
__device__ __forceinline__ Int padded(Int i, Int size, Padding padding) {
  if (i >= 0 && i < size) return i;
  if (padding == Padding::kZeros) return -1;
  if (padding == Padding::kReplicate) return i < 0 ? 0 : size - 1;
  const Int mirrored = i < 0 ? -i : 2 * (size - 1) - i;
  return mirrored >= 0 && mirrored < size ? mirrored : -1;
}

// Rows or columns of the output grid that a phase has in an output of this size.
__device__ __forceinline__ int grid_size(int64_t out, int upscale, int phase) {
  return (static_cast<int>(out) - phase + upscale - 1) / upscale;
}

// The pixel that lies at a position of the block's buffers, or −1: zero. Columns lie by parity, so
// that neighbouring outputs find neighbouring positions whatever the stride.
__device__ __forceinline__ int64_t source_of(const TileArguments& a, int tile_n, int tile_y,
                                             int tile_x, int position) {
  const Geometry& g = a.p.g;
  const int in_picture = position % (a.t.halo_rows * a.t.pitch);
  const int place = in_picture % a.t.pitch;
  const int64_t n = (int64_t{tile_n} << a.t.log_n) + position / (a.t.halo_rows * a.t.pitch);
  const int64_t y = (int64_t{tile_y} << a.t.log_y) * g.stride + in_picture / a.t.pitch - g.pad_h;
  const int64_t x = (int64_t{tile_x} << a.t.log_x) * g.stride + place % a.t.half * g.stride +
                    place / a.t.half - g.pad_w;
  const int64_t row = padded(y, a.p.height, g.padding);
  const int64_t column = padded(x, a.p.width, g.padding);
  if (n >= a.p.batch || row < 0 || column < 0) return -1;
  return (n * a.p.height + row) * a.p.width + column;
}

// Asks for 32 channels of all positions, from `channel` on.
template <class T>
__device__ __forceinline__ void request_channels(const TileArguments& a, const int32_t* source,
                                                 int channel, unsigned char* buffer) {
  const T* input = static_cast<const T*>(a.p.input);
  const int threads = static_cast<int>(blockDim.x);
  for (int piece = static_cast<int>(threadIdx.x); piece < 4 * a.t.positions; piece += threads) {
    const int position = piece / 4;
    const int c = channel + piece % 4 * 8;
    const int pixel = source[position];
    const bool there = pixel >= 0 && c < static_cast<int>(a.p.g.in_channels);
    copy_async(buffer + position * kPositionBytes + piece % 4 * 16,
               there ? input + (int64_t{pixel} * static_cast<int>(a.p.g.in_channels) + c) : input,
               there);
  }
}

__device__ __forceinline__ void wait_copies_but(int pending) {
  if (pending <= 0) {
    wait_copies<0>();
  } else if (pending == 1) {
    wait_copies<1>();
  } else {
    wait_copies<2>();
  }
}

// ---- Weights ------------------------------------------------------------------------------------

// What a lane holds of a step.
template <class C>
struct StepWeights {
  uint32_t a[C::kTiles][C::kMatrices][4];
  uint32_t metadata[C::kTiles / 2 + 1];
  int place;  // of the block that the lane brings to load_matrices

  __device__ __forceinline__ void load_step(const TileProblem& p, int64_t step) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t* from = static_cast<const uint32_t*>(p.values) +
                           step * (C::kTiles * C::kMatrices * 32 * 4) + lane * 4;
#pragma unroll
    for (int i = 0; i < C::kTiles; ++i) {
#pragma unroll
      for (int f = 0; f < C::kMatrices; ++f) {
        const auto four = load<4>(from + (i * C::kMatrices + f) * (32 * 4));
#pragma unroll
        for (int r = 0; r < 4; ++r) a[i][f][r] = four.item[r];
      }
    }
    if constexpr (C::kSparse) {
#pragma unroll
      for (int i = 0; i < C::kTiles / 2; ++i) {
        metadata[i] = p.metadata[(step * (C::kTiles / 2) + i) * 32 + lane];
      }
    }
    place = p.places[step * 4 + lane / 8];
  }
};

// sums += step's rows x 8 pixels.
template <class T, class C>
__device__ __forceinline__ void multiply_step(const StepWeights<C>& w, const uint32_t (&b)[4],
                                              float (&sums)[C::kTiles][C::kGroups][4], int group) {
#pragma unroll
  for (int i = 0; i < C::kTiles; ++i) {
    if constexpr (C::kSparse) {
      if (i % 2 == 0) {
        multiply_sparse<T, 0>(sums[i][group], w.a[i][0], b, w.metadata[i / 2]);
      } else {
        multiply_sparse<T, 1>(sums[i][group], w.a[i][0], b, w.metadata[i / 2]);
      }
    } else {
      multiply<T>(sums[i][group], w.a[i][0], b);
      multiply<T>(sums[i][group], w.a[i][1], b + 2);
    }
  }
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

// ---- Kernel -------------------------------------------------------------------------------------

template <class T, class C>
__global__ void __launch_bounds__(most_threads(C::kRows, C::kSparse))
    sparse_conv2d_tiles_kernel(const GANSPARSE_GRID_CONSTANT TileArguments a) {
  const TileProblem& p = a.p;
  const TilePlan& t = a.t;
  const Geometry& g = p.g;
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int buffer_bytes = t.positions * kPositionBytes;
  auto* buffers = static_cast<unsigned char*>(dynamic_shared());
  const int64_t tables_at = t.shared_bytes - int64_t{4} * (t.positions + g.taps_h * g.taps_w);
  auto* source = reinterpret_cast<int32_t*>(buffers + tables_at);  // [positions]
  int32_t* tap_bytes = source + t.positions;                       // [taps]

  // ---- Which pixels and rows: neighbouring blocks share their pixels ----
  const int block = static_cast<int>(blockIdx.x);
  const int row_tile = block % t.row_blocks * t.row_warps + warp / 2;
  const int tile = block / t.row_blocks;
  const int tile_x = tile % t.tiles_x;
  const int tile_y = tile / t.tiles_x % t.tiles_y;
  const int tile_n = tile / t.tiles_x / t.tiles_y;
  const int first_pixel = warp % 2 * C::kWarpPixels;
  const bool has_rows = row_tile < t.row_tiles;  // of the last block maybe only some

  // ---- Tables: where each position's pixel is, and how far a tap is from tap (0, 0) ----
  for (int i = thread; i < t.positions; i += threads) {
    source[i] = static_cast<int32_t>(source_of(a, tile_n, tile_y, tile_x, i));
  }
  const int taps = static_cast<int>(g.taps_h * g.taps_w);
  for (int i = thread; i < taps; i += threads) {
    const int s = i % static_cast<int>(g.taps_w);
    const int stride = static_cast<int>(g.stride);
    const int position =
        i / static_cast<int>(g.taps_w) * t.pitch + s % stride * t.half + s / stride;
    tap_bytes[i] = position * kPositionBytes;
  }
  __syncthreads();  // the tables are whole

  // Lane 8 q + r brings pixel r of a group for block q of a step: where tap (0, 0) finds it.
  int pixel_bytes[C::kGroups];
#pragma unroll
  for (int group = 0; group < C::kGroups; ++group) {
    const int pixel = first_pixel + group * 8 + lane % 8;
    const int x = pixel & ((1 << t.log_x) - 1);
    const int y = pixel >> t.log_x & ((1 << t.log_y) - 1);
    const int n = pixel >> (t.log_x + t.log_y);
    const int row = n * t.halo_rows + y * static_cast<int>(g.stride);
    pixel_bytes[group] = (row * t.pitch + x) * kPositionBytes;
  }

  // ---- Begin: all buffers but one are on their way ----
  for (int i = 0; i < t.buffers - 1; ++i) {
    if (i < t.chunks) {
      request_channels<T>(a, source, i * kStepChannels, buffers + i * buffer_bytes);
    }
    commit_copies();  // empty groups, too: they are counted
  }
  const int32_t* starts = p.starts + static_cast<int64_t>(has_rows ? row_tile : 0) * t.chunks;
  const auto within = [&](int32_t step) {
    return step < 0 ? 0 : step > p.steps ? static_cast<int32_t>(p.steps) : step;
  };
  int32_t step = within(starts[0]);
  int32_t end_of_chunk = within(starts[1]);
  const int32_t end = has_rows ? within(starts[t.chunks]) : step;
  StepWeights<C> next{};
  if (step < end) next.load_step(p, step);
  float sums[C::kTiles][C::kGroups][4] = {};

  // ---- Channels, 32 at a time; for each, the blocks that are kept ----
  int reading = 0;  // buffer
  int filling = t.buffers - 1;
  for (int chunk = 0; chunk < t.chunks; ++chunk) {
    const int32_t following = chunk + 2 <= t.chunks ? within(starts[chunk + 2]) : 0;
    wait_copies_but(t.buffers - 2);
    __syncthreads();  // this chunk's input is there for all, and all have read the last one's
    if (chunk + t.buffers - 1 < t.chunks) {
      request_channels<T>(a, source, (chunk + t.buffers - 1) * kStepChannels,
                          buffers + filling * buffer_bytes);
    }
    commit_copies();

    const unsigned char* buffer = buffers + reading * buffer_bytes;
    for (; step < min(end_of_chunk, end); ++step) {
      const StepWeights<C> weights = next;
      if (step + 1 < end) next.load_step(p, step + 1);
      const int place = weights.place < 0 ? 0 : min(weights.place, 4 * taps - 1);
      const unsigned char* from = buffer + tap_bytes[place / 4] + place % 4 * 16;
#pragma unroll
      for (int group = 0; group < C::kGroups; ++group) {
        uint32_t b[4];
        load_matrices(b, from + pixel_bytes[group]);
        multiply_step<T, C>(weights, b, sums, group);
      }
    }
    end_of_chunk = following;
    reading = reading + 1 == t.buffers ? 0 : reading + 1;
    filling = filling + 1 == t.buffers ? 0 : filling + 1;
  }
  const int upscale = static_cast<int>(g.upscale);
  const int phases = upscale * upscale;
  const int phase = row_tile % phases;
  const int64_t first_channel = static_cast<int64_t>(row_tile / phases) * C::kRows;
#pragma unroll
  for (int i = 0; i < C::kTiles; ++i) {
    add_bias<C::kGroups>(p, sums[i], first_channel + i * 16 + lane / 4);
  }
  wait_copies<0>();
  __syncthreads();  // all have read the buffers before they take sums

  // ---- Moments: of a warp's pixels for its rows; then a thread joins a row's two halves ----
  if (p.moments != nullptr) {
    const int rows = grid_size(p.out_height, upscale, phase / upscale) - (tile_y << t.log_y);
    const int columns = grid_size(p.out_width, upscale, phase % upscale) - (tile_x << t.log_x);
    uint32_t there = 0;  // bit 2 · group + i
#pragma unroll
    for (int i = 0; i < 2 * C::kGroups; ++i) {
      const int pixel = first_pixel + i / 2 * 8 + lane % 4 * 2 + i % 2;
      const bool inside = pixel >> t.log_x < rows && (pixel & ((1 << t.log_x) - 1)) < columns;
      there |= (inside ? 1u : 0u) << i;
    }
    const int count = quad_sum(__popc(there));
    float* halves = reinterpret_cast<float*>(buffers);  // [row_warps][2][3][V]
#pragma unroll
    for (int i = 0; i < C::kTiles; ++i) {
      leave_moments<T, C::kGroups>(
          sums[i], count, [there](int group, int k) { return (there >> (2 * group + k) & 1) != 0; },
          halves + warp * 3 * C::kRows, C::kRows, i * 16 + lane / 4);
    }
    __syncthreads();  // both halves' moments are there
    const int joins = block % t.row_blocks * t.row_warps + thread / C::kRows;  // row tile
    const int64_t channel = static_cast<int64_t>(joins / phases) * C::kRows + thread % C::kRows;
    if (thread < t.row_warps * C::kRows && joins < t.row_tiles && channel < g.out_channels) {
      const int64_t part = tile % (t.tiles_y * t.tiles_x) * int64_t{phases} + joins % phases;
      store_moments(
          p.moments + (tile_n * p.parts + part) * 3 * g.out_channels, g.out_channels, channel,
          joined(halves + thread / C::kRows * (6 * C::kRows), 2, C::kRows, thread % C::kRows));
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
      const int64_t x = ((int64_t{tile_x} << t.log_x) + in_row) * upscale + phase % upscale;
      const int64_t y = ((int64_t{tile_y} << t.log_y) + in_column) * upscale + phase / upscale;
      const int64_t n = (int64_t{tile_n} << t.log_n) + (pixel >> (t.log_x + t.log_y));
      if (n >= p.batch || y >= p.out_height || x >= p.out_width) continue;
      const int64_t at = ((n * p.out_height + y) * p.out_width + x) * g.out_channels;
      for (int row = lane % 4 * 8; row < C::kRows; row += 32) {
        const int64_t o = first_channel + row;
        if (o < g.out_channels) {
          finish<T>(p, staging + staged * C::kStagingPitch + row, o, at + o);
        }
      }
    }
    __syncwarp();  // all lanes have read before the next pixels come
  }
}

}  // namespace gansparse::sparse_conv2d
