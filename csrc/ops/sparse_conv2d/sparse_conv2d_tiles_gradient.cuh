// SPDX-License-Identifier: Apache-2.0
// The gradient of the packed weights of `block` tiles. Contract and plan: sparse_conv2d_tiles.h.
//
// Version 1: mma of sm_80 over pixels; both operands come transposed out of channels_last memory.
#pragma once

#include "ops/sparse_conv2d/sparse_conv2d_kernels.cuh"

namespace gansparse::sparse_conv2d {

struct TileGradientArguments {
  TileArguments a;  // p, and the pixels' plan
  TileGradientPlan d;
  const void* grad;  // [N, OH, OW, O]
  float* sums;       // [splits, K, V / 16, 2, 32, 8]
  int splits;        // blocks: [parts][splits][groups]
};

// Asks for a tile's input of the group's channels, and its gradients of the group's rows.
template <class T, int kTiles>
__device__ __forceinline__ void request_tile(const TileGradientArguments& k, int number,
                                             int row_group, int chunk_group, const int32_t* source,
                                             unsigned char* buffer) {
  const TileProblem& p = k.a.p;
  const TilePlan& t = k.a.t;
  const int thread = static_cast<int>(threadIdx.x);
  const T* input = static_cast<const T*>(p.input);
  const int channels = static_cast<int>(p.g.in_channels);
  const int log_pieces = k.d.log_chunks + 2;  // of 16 bytes, a position's
#pragma unroll 1
  for (int i = thread; i < t.positions << log_pieces; i += kTileGradientThreads) {
    const int position = i >> log_pieces;
    const int piece = i & ((1 << log_pieces) - 1);
    const int c = (chunk_group << k.d.log_chunks) * kStepChannels + piece * 8;
    const int pixel = source[position];
    const bool there = pixel >= 0 && c < channels;
    copy_async(buffer + (piece / 4 * t.positions + position) * kPositionBytes + piece % 4 * 16,
               there ? input + (int64_t{pixel} * channels + c) : input, there);
  }
  const T* grad = static_cast<const T*>(k.grad);
  const int log_up = static_cast<int>(p.g.upscale) - 1;  // of 1 or 2
  const int tile_x = number % t.tiles_x;
  const int tile_y = number / t.tiles_x % t.tiles_y;
  const int tile_n = number / t.tiles_x / t.tiles_y;
  constexpr int kRowPieces = 2 * kTiles;
  const int log_grads = k.d.log_rows + kTiles;  // kRowPieces is 2 or 4
#pragma unroll 1
  for (int i = thread; i < kTilePixels << log_grads; i += kTileGradientThreads) {
    const int pixel = i >> log_grads;
    const int piece = i & ((1 << log_grads) - 1);
    const int row_tile = (row_group << k.d.log_rows) + piece / kRowPieces;
    const int64_t o = int64_t{row_tile >> 2 * log_up} * (16 * kTiles) + piece % kRowPieces * 8;
    const int in_row = pixel & ((1 << t.log_x) - 1);
    const int in_column = pixel >> t.log_x & ((1 << t.log_y) - 1);
    const int64_t x = ((int64_t{tile_x} << t.log_x) + in_row) << log_up | (row_tile & log_up);
    const int64_t y =
        ((int64_t{tile_y} << t.log_y) + in_column) << log_up | (row_tile >> 1 & log_up);
    const int64_t n = (int64_t{tile_n} << t.log_n) + (pixel >> (t.log_x + t.log_y));
    const bool there = n < p.batch && y < p.out_height && x < p.out_width && o < p.g.out_channels;
    const int64_t at = ((n * p.out_height + y) * p.out_width + x) * p.g.out_channels + o;
    copy_async(buffer + k.d.input_bytes + pixel * k.d.grad_pitch + piece * 16,
               there ? grad + at : grad, there);
  }
  commit_copies();
}

// kTiles: V = 16 kTiles.
template <class T, int kTiles>
__global__ void __launch_bounds__(kTileGradientThreads, 1)
    sparse_conv2d_tiles_gradient_kernel(const GANSPARSE_GRID_CONSTANT TileGradientArguments k) {
  const TileProblem& p = k.a.p;
  const TilePlan& t = k.a.t;
  const TileGradientPlan& d = k.d;
  constexpr int kSteps = 4 / kTiles;
  static_assert(kSteps == gradient_steps(16 * kTiles), "the plan's");
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  auto* buffers = static_cast<unsigned char*>(dynamic_shared());
  auto* places = reinterpret_cast<int32_t*>(buffers + d.buffers * d.buffer_bytes);  // [warps][16]
  int32_t* sources = places + 16 * kTileGradientWarps;  // [2][positions]

  // ---- Which rows, lists and pixels: neighbouring blocks share their pixels ----
  const int groups = d.row_groups * d.chunk_groups;
  const int group = static_cast<int>(blockIdx.x) % groups;
  const int split = static_cast<int>(blockIdx.x) / groups % k.splits;
  const int part = static_cast<int>(blockIdx.x) / groups / k.splits;
  const int row_group = group % d.row_groups;
  const int chunk_group = group / d.row_groups;
  const int first_chunk = chunk_group << d.log_chunks;
  const int end_chunk = min(first_chunk + (1 << d.log_chunks), t.chunks);
  const int share = kTileGradientWarps >> d.log_rows;  // warps of a row tile
  const auto start = [&](int row_tile, int chunk) {
    const int32_t step = p.starts[static_cast<int64_t>(row_tile) * t.chunks + chunk];
    return step < 0 ? 0 : step > p.steps ? static_cast<int32_t>(p.steps) : step;
  };
  bool needed = false;  // has any row tile so many steps?
  for (int i = 0; i < 1 << d.log_rows; ++i) {
    const int row_tile = (row_group << d.log_rows) + i;
    if (row_tile >= t.row_tiles) break;
    const int steps = start(row_tile, end_chunk) - start(row_tile, first_chunk);
    needed = needed || steps > part * share * kSteps;
  }
  if (!needed) return;  // all threads of the block, or none

  // ---- The warp's steps, and where tap and channels of each of their blocks lie ----
  const int row_in_group = warp % (1 << d.log_rows);
  const int row_tile = (row_group << d.log_rows) + row_in_group;
  const bool has_rows = row_tile < t.row_tiles;
  const int first_step =
      has_rows ? start(row_tile, first_chunk) + (part * share + (warp >> d.log_rows)) * kSteps : 0;
  const int count = has_rows ? min(kSteps, start(row_tile, end_chunk) - first_step) : 0;
  const int taps = static_cast<int>(p.g.taps_h * p.g.taps_w);
  int32_t* mine = places + 16 * warp;
  if (lane < 4 * count) {
    const int step = first_step + lane / 4;
    int chunk = first_chunk;
    while (chunk + 1 < end_chunk && start(row_tile, chunk + 1) <= step) ++chunk;
    const int told = p.places[int64_t{step} * 4 + lane % 4];
    const int place = max(0, min(told, 4 * taps - 1));
    const int r = place / 4 / static_cast<int>(p.g.taps_w);
    const int s = place / 4 % static_cast<int>(p.g.taps_w);
    const int stride = static_cast<int>(p.g.stride);
    const int position = r * t.pitch + s % stride * t.half + s / stride;
    mine[lane] = ((chunk - first_chunk) * t.positions + position) * kPositionBytes + place % 4 * 16;
  }

  // ---- Tiles of pixels, every `splits`th ----
  const int tiles = t.tiles_n * t.tiles_y * t.tiles_x;
  const auto find_sources = [&](int number, int32_t* source) {
#pragma unroll 1
    for (int i = thread; i < t.positions; i += kTileGradientThreads) {
      source[i] =
          static_cast<int32_t>(source_of(k.a, number / t.tiles_x / t.tiles_y,
                                         number / t.tiles_x % t.tiles_y, number % t.tiles_x, i));
    }
  };
  float sums[4 * kSteps][kTiles][4] = {};
  find_sources(split, sources);
  __syncthreads();  // the first table is whole
  request_tile<T, kTiles>(k, split, row_group, chunk_group, sources, buffers);
  if (split + k.splits < tiles) find_sources(split + k.splits, sources + t.positions);
  int reading = 0;  // table; and buffer, if there are two
#pragma unroll 1
  for (int number = split; number < tiles; number += k.splits, reading = 1 - reading) {
    const int next = number + k.splits;
    const int begin = d.buffers == 2 ? reading * d.buffer_bytes : 0;  // of this tile's
    wait_copies<0>();
    __syncthreads();  // this tile and the next one's table are there; all have read the last tile
    const auto request_next = [&] {
      request_tile<T, kTiles>(k, next, row_group, chunk_group,
                              sources + (1 - reading) * t.positions,
                              buffers + (d.buffers == 2 ? (1 - reading) * d.buffer_bytes : 0));
    };
    if (d.buffers == 2 && next < tiles) request_next();
    if (next + k.splits < tiles) find_sources(next + k.splits, sources + reading * t.positions);

#pragma unroll 1
    for (int from = 0; count > 0 && from < kTilePixels; from += 16) {
      // Gradients of 16 pixels, transposed: lane 8 m + j brings pixel j of matrix m.
      const int grads = begin + d.input_bytes + (from + lane / 16 * 8 + lane % 8) * d.grad_pitch +
                        row_in_group * kTiles * 32 + lane / 8 % 2 * 16;
      uint32_t rows[kTiles][4];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) load_matrices_transposed(rows[i], buffers + grads + i * 32);
      // Input of two blocks: a lane brings a pixel of one, where tap (0, 0) finds it.
      const int pixel = from + lane % 16;
      const int x = pixel & ((1 << t.log_x) - 1);
      const int y = pixel >> t.log_x & ((1 << t.log_y) - 1);
      const int n = pixel >> (t.log_x + t.log_y);
      const int row = n * t.halo_rows + y * static_cast<int>(p.g.stride);
      const int inputs = begin + (row * t.pitch + x) * kPositionBytes;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        if (s >= count) break;
        const auto four = load<4>(mine + 4 * s);
#pragma unroll
        for (int q = 0; q < 4; q += 2) {
          uint32_t columns[4];
          const int place = lane < 16 ? four.item[q] : four.item[q + 1];
          load_matrices_transposed(columns, buffers + inputs + place);
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
            multiply<T>(sums[4 * s + q][i], rows[i], columns);
            multiply<T>(sums[4 * s + q + 1][i], rows[i], columns + 2);
          }
        }
      }
    }
    if (d.buffers == 1 && next < tiles) {
      __syncthreads();  // all have read the only buffer
      request_next();
    }
  }

  // ---- A lane's four sums of a block are neighbours in the packing, too ----
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    if (s >= count) break;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int64_t step = split * p.steps + first_step + s;
        Vec<float, 4> four;
#pragma unroll
        for (int e = 0; e < 4; ++e) four.item[e] = sums[4 * s + q][i][e];
        store<4>(k.sums + (((step * kTiles + i) * 2 + q / 2) * 32 + lane) * 8 + q % 2 * 4, four);
      }
    }
  }
}

// dvalues [size] from partial sums [splits, size], in order; where values are 0, so are they.
template <class T>
__global__ void __launch_bounds__(kTileGradientThreads)
    sparse_conv2d_tiles_add_kernel(const float* sums, int splits, int64_t size, const T* values,
                                   T* dvalues) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kTileGradientThreads + threadIdx.x) * 4;
  if (at >= size) return;
  Vec<float, 4> sum = load<4>(sums + at);
  for (int s = 1; s < splits; ++s) {
    const auto more = load<4>(sums + s * size + at);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum.item[e] += more.item[e];
  }
  const auto value = load<4>(values + at);
  Vec<T, 4> rounded;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const bool kept = to_float(value.item[e]) != 0;
    round_to(kept ? sum.item[e] : 0.0f, &rounded.item[e]);
  }
  store<4>(dvalues + at, rounded);
}

}  // namespace gansparse::sparse_conv2d
