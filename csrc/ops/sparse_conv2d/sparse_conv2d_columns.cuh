// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel of sparse_conv2d for columns of 16 output channels. Contract, layout and plan:
// sparse_conv2d_columns.h.
//
// Version 1: mma of sm_80. A warp has 16 matrix rows and all 128 pixels of the block.
#pragma once

#include "ops/sparse_conv2d/sparse_conv2d_columns.h"
#include "ops/sparse_conv2d/sparse_conv2d_kernels.cuh"

namespace gansparse::sparse_conv2d {

using ColumnConfig = TileConfig<1, false, 16>;

struct ColumnArguments {
  TileArguments a;
  ColumnPlan d;
};

// What a lane holds of a step: its part of the 16 x 16 matrix, and where column lane % 16 is.
struct StepColumns {
  uint32_t a[4];
  int place;

  __device__ __forceinline__ void load_step(const TileProblem& p, int64_t step) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const auto four = load<4>(static_cast<const uint32_t*>(p.values) + (step * 32 + lane) * 4);
#pragma unroll
    for (int r = 0; r < 4; ++r) a[r] = four.item[r];
    place = p.places[step * kColumnStep + lane % kColumnStep];
  }
};

// From [position][channels] to [s][line][8 pixels][channels] x 8 pixels.
template <int kChannels>
__device__ __forceinline__ void turn_channels(const ColumnArguments& k, const unsigned char* input,
                                              unsigned char* turned) {
  const TilePlan& t = k.a.t;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int shift = static_cast<int>(k.a.p.g.stride) - 1;  // strides are 1 and 2
  const int rows = static_cast<int>(k.a.p.g.taps_w) * k.d.lines;
  constexpr int kFrom = static_cast<int>(column_position_bytes(kChannels));
  constexpr int kTo = static_cast<int>(turned_piece_bytes(kChannels));
  const unsigned char* from_lane = input + lane % 8 * kFrom + lane / 8 * 16;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < rows; row += warps) {
    const int s = row / k.d.lines;
    const int first = (row - s * k.d.lines) * t.pitch + (s & shift) * t.half + (s >> shift);
    const unsigned char* from = from_lane + first * kFrom;
    auto* to = reinterpret_cast<uint32_t*>(turned + row * k.d.line_pieces * kTo) + lane;
    for (int piece = 0; piece < k.d.line_pieces; ++piece, from += 8 * kFrom, to += kTo / 4) {
#pragma unroll
      for (int part = 0; part < kChannels / 8; part += 4) {
        uint32_t pairs[4];  // pixels 2 (lane % 4) and the next of channels 8 (part + q) + lane / 4
        load_matrices_transposed(pairs, from + part * 16);
#pragma unroll
        for (int q = 0; q < 4; ++q) to[32 * (part + q)] = pairs[q];
      }
    }
  }
}

template <class T, int kChannels>
__global__ void __launch_bounds__(kColumnThreads)
    sparse_conv2d_columns_kernel(const GANSPARSE_GRID_CONSTANT ColumnArguments k) {
  using C = ColumnConfig;
  const TileProblem& p = k.a.p;
  const TilePlan& t = k.a.t;
  const Geometry& g = p.g;
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  constexpr int kParts = kChannels / 8;
  const int input_bytes = t.positions * static_cast<int>(column_position_bytes(kChannels));
  auto* buffers = static_cast<unsigned char*>(dynamic_shared());
  unsigned char* turned = buffers + t.buffers * input_bytes;
  const int64_t tables_at = t.shared_bytes - int64_t{4} * (t.positions + g.taps_h * g.taps_w);
  auto* source = reinterpret_cast<int32_t*>(buffers + tables_at);  // [positions]
  int32_t* tap_bytes = source + t.positions;                       // [taps]

  // ---- Which pixels and rows: neighbouring blocks share their pixels ----
  const int block = static_cast<int>(blockIdx.x);
  const int row_tile = block % t.row_blocks * t.row_warps + warp;
  const int tile = block / t.row_blocks;
  const int tile_x = tile % t.tiles_x;
  const int tile_y = tile / t.tiles_x % t.tiles_y;
  const int tile_n = tile / t.tiles_x / t.tiles_y;
  const bool has_rows = row_tile < t.row_tiles;  // of the last block maybe only some

  // ---- Tables: where each position's pixel is, and how far a tap is from tap (0, 0) ----
  for (int i = thread; i < t.positions; i += threads) {
    source[i] = static_cast<int32_t>(source_of(k.a, tile_n, tile_y, tile_x, i));
  }
  const int taps = static_cast<int>(g.taps_h * g.taps_w);
  for (int i = thread; i < taps; i += threads) {
    const int r = i / static_cast<int>(g.taps_w), s = i % static_cast<int>(g.taps_w);
    tap_bytes[i] =
        (s * k.d.lines + r) * k.d.line_pieces * static_cast<int>(turned_piece_bytes(kChannels));
  }
  __syncthreads();  // the tables are whole

  // Lanes 0 … 15 bring 8 pixels of their column, lanes 16 … 31 the next 8.
  const int lane_bytes = lane / 16 * k.d.pixel_bytes[0];

  // ---- Begin: the first channels are there, turned, and the next on their way ----
  const bool apart = t.buffers == 2;  // else a buffer is read before it is filled again
  request_channels<T, kParts>(k.a, source, 0, buffers);
  commit_copies();
  const ListStarts starts(p, t, has_rows ? row_tile : 0);
  int32_t step = starts[0];
  int32_t end_of_chunk = starts[1];
  const int32_t end = has_rows ? starts[t.chunks] : step;
  StepColumns next{};
  if (step < end) next.load_step(p, step);
  float sums[C::kTiles][C::kGroups][4] = {};
  wait_copies<0>();
  __syncthreads();  // the first channels are there for all
  turn_channels<kChannels>(k, buffers, turned);
  if (!apart) __syncthreads();  // all have read them
  if (t.chunks > 1) {
    request_channels<T, kParts>(k.a, source, kChannels, buffers + (apart ? input_bytes : 0));
  }
  commit_copies();

  // ---- Channels, a list at a time; for each, the columns that are kept ----
  for (int chunk = 0; chunk < t.chunks; ++chunk) {
    const int32_t following = chunk + 2 <= t.chunks ? starts[chunk + 2] : 0;
    wait_copies<0>();
    __syncthreads();  // this chunk is turned, the next is there, and all are done with the last
    const int odd = chunk % 2;
    if (apart && chunk + 2 < t.chunks) {
      request_channels<T, kParts>(k.a, source, (chunk + 2) * kChannels,
                                  buffers + odd * input_bytes);
    }
    if (chunk + 1 < t.chunks) {
      turn_channels<kChannels>(k, buffers + (apart ? (1 - odd) * input_bytes : 0),
                               turned + (1 - odd) * k.d.turned_bytes);
    }
    if (!apart && chunk + 2 < t.chunks) {
      __syncthreads();  // all have read the next chunk: the one after it may come
      request_channels<T, kParts>(k.a, source, (chunk + 2) * kChannels, buffers);
    }
    commit_copies();

    const unsigned char* buffer = turned + odd * k.d.turned_bytes;
    for (; step < min(end_of_chunk, end); ++step) {
      const StepColumns columns = next;
      if (step + 1 < end) next.load_step(p, step + 1);
      const int place = columns.place < 0 ? 0 : min(columns.place, kChannels * taps - 1);
      const unsigned char* from =
          buffer + lane_bytes + tap_bytes[place / kChannels] + place % kChannels * 16;
#pragma unroll
      for (int pair = 0; pair < C::kGroups / 2; ++pair) {
        uint32_t b[4];
        load_matrices_transposed(b, from + pair % 2 * k.d.pixel_bytes[1] +
                                        pair / 2 % 2 * k.d.pixel_bytes[2] +
                                        pair / 4 * k.d.pixel_bytes[3]);
        multiply<T>(sums[0][2 * pair], columns.a, b);
        multiply<T>(sums[0][2 * pair + 1], columns.a, b + 2);
      }
    }
    end_of_chunk = following;
  }
  finish_tile<T, C>(k.a, {tile_n, tile_y, tile_x, tile, block}, buffers, sums);
}

}  // namespace gansparse::sparse_conv2d
