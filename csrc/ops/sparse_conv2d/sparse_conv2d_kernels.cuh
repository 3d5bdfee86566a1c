// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel of sparse_conv2d. Contract, layouts and plan: sparse_conv2d_tiles.h.
//
// Version 1: mma and mma.sp of sm_80, weights from global memory to registers, input through
// shared memory. A block has two or four tiles of V matrix rows by twice 64 pixels, a warp each.
#pragma once

#include "common/async_copy.cuh"
#include "common/tensor_core.cuh"
#include "common/vec.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_tile_end.cuh"

namespace gansparse::sparse_conv2d {

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

// Asks for kParts · 8 channels of all positions, from `channel` on.
template <class T, int kParts = kStepChannels / 8>
__device__ __forceinline__ void request_channels(const TileArguments& a, const int32_t* source,
                                                 int channel, unsigned char* buffer) {
  const T* input = static_cast<const T*>(a.p.input);
  const int threads = static_cast<int>(blockDim.x);
  for (int piece = static_cast<int>(threadIdx.x); piece < kParts * a.t.positions;
       piece += threads) {
    const int position = piece / kParts;
    const int c = channel + piece % kParts * 8;
    const int pixel = source[position];
    const bool there = pixel >= 0 && c < static_cast<int>(a.p.g.in_channels);
    copy_async(buffer + (position * (kParts + 1) + piece % kParts) * 16,
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

// Where the lists of a row tile begin; what is out of range is brought into it.
struct ListStarts {
  const int32_t* starts;
  int32_t steps;

  __device__ __forceinline__ ListStarts(const TileProblem& p, const TilePlan& t, int row_tile)
      : starts(p.starts + int64_t{row_tile} * t.chunks), steps(static_cast<int32_t>(p.steps)) {}

  __device__ __forceinline__ int32_t operator[](int list) const {
    return max(0, min(starts[list], steps));
  }
};

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
  const ListStarts starts(p, t, has_rows ? row_tile : 0);
  int32_t step = starts[0];
  int32_t end_of_chunk = starts[1];
  const int32_t end = has_rows ? starts[t.chunks] : step;
  StepWeights<C> next{};
  if (step < end) next.load_step(p, step);
  float sums[C::kTiles][C::kGroups][4] = {};

  // ---- Channels, 32 at a time; for each, the blocks that are kept ----
  int reading = 0;  // buffer
  int filling = t.buffers - 1;
  for (int chunk = 0; chunk < t.chunks; ++chunk) {
    const int32_t following = chunk + 2 <= t.chunks ? starts[chunk + 2] : 0;
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
  wait_copies<0>();
  finish_tile<T, C>(a, {tile_n, tile_y, tile_x, tile, block}, buffers, sums);
}

}  // namespace gansparse::sparse_conv2d
