// SPDX-License-Identifier: Apache-2.0
// The kernel of sparse_conv2d_warpgroups.h, where layouts and plan are told.
#pragma once

#include "common/async_copy.cuh"
#include "common/vec.cuh"
#include "common/warpgroup.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_kernels.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_warpgroups.h"

namespace gansparse::sparse_conv2d {

constexpr int kStepsAhead = 4;  // whose weights are in registers or on their way

static_assert(kTowerRows * kTowerColumns == kWarpgroupColumns, "a product has a tile's pixels");

struct WarpgroupArguments {
  TileProblem p;
  WarpgroupPlan t;
};

// The pixel that lies at a position of the buffers of a block whose first pixel has this picture,
// row and column of the output grid; or −1: zero.
__device__ __forceinline__ int32_t tower_source(const WarpgroupArguments& a, int n, int y, int x,
                                                int position) {
  const Geometry& g = a.p.g;
  const int stride = static_cast<int>(g.stride);
  const int height = static_cast<int>(a.p.height);
  const int width = static_cast<int>(a.p.width);
  const int place = position % a.t.pitch;
  const int row = y * stride + position / a.t.pitch;
  const int pictures = row / a.t.wrap;
  const int from_y =
      padded(row - pictures * a.t.wrap - static_cast<int>(g.pad_h), height, g.padding);
  const int from_x =
      padded((x + place % a.t.half) * stride + place / a.t.half - static_cast<int>(g.pad_w), width,
             g.padding);
  if (n + pictures >= a.p.batch || from_y < 0 || from_x < 0) return -1;
  return ((n + pictures) * height + from_y) * width + from_x;
}

// Asks for 32 channels of all positions, from `channel` on.
template <class T>
__device__ __forceinline__ void request_pieces(const WarpgroupArguments& a, const int32_t* source,
                                               int channel, unsigned char* buffer) {
  const T* input = static_cast<const T*>(a.p.input);
  const int channels = static_cast<int>(a.p.g.in_channels);
  for (int i = static_cast<int>(threadIdx.x); i < kPieces * a.t.positions; i += kWarpgroupThreads) {
    const int position = i / kPieces;
    const int piece = i % kPieces;
    const int c = channel + piece * 8;
    const int pixel = source[position];
    const bool there = pixel >= 0 && c < channels;
    copy_async(buffer + (piece * a.t.piece_positions + position) * kPieceBytes,
               there ? input + (int64_t{pixel} * channels + c) : input, there);
  }
}

// What a lane holds of a step: the 16 rows of its warp.
struct RowWeights {
  uint32_t a[4];
  uint32_t metadata;
  int place;

  __device__ __forceinline__ void load_step(const TileProblem& p, int64_t step) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const auto four = load<4>(static_cast<const uint32_t*>(p.values) +
                              ((step * (kWarpgroupVector / 16) + warp) * 32 + lane) * 4);
#pragma unroll
    for (int r = 0; r < 4; ++r) a[r] = four.item[r];
    // Packed for pairs of 16 rows, in lanes 0, 1 and 2, 3 of four; here all want lanes 0, 1.
    metadata = p.metadata[(step * (kWarpgroupVector / 32) + warp / 2) * 32 + lane / 4 * 4 +
                          warp % 2 * 2 + lane % 2];
    place = p.places[step * kPieces];
  }
};

// From rows of pixels in registers to channels of a pixel; each warp its 16 rows, in its own part
// of the shared memory. row_starts [32]: where a tile's rows of pixels begin in the output, in
// pixels, or −1.
template <class T>
__device__ __forceinline__ void store_sums(const TileProblem& p,
                                           const float (&sums)[kWarpgroupSums],
                                           const int64_t* row_starts, int64_t first_channel,
                                           int64_t first_x) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  float* staging =
      static_cast<float*>(dynamic_shared()) + warp * (kWarpgroupColumns * kFragmentPitch);
#pragma unroll
  for (int i = 0; i < kWarpgroupSums; ++i) {
    const int pixel = i / 4 * 8 + lane % 4 * 2 + i % 2;
    staging[pixel * kFragmentPitch + lane / 4 + i / 2 % 2 * 8] = sums[i];
  }
  __syncwarp();  // all lanes' sums are there
  const int64_t o = first_channel + warp * 16 + lane % 2 * 8;
#pragma unroll 1
  for (int pixel = lane / 2; o < p.g.out_channels && pixel < kWarpgroupColumns; pixel += 16) {
    const int64_t start = row_starts[pixel / kTowerColumns];
    const int64_t x = first_x + pixel % kTowerColumns * p.g.upscale;
    if (start >= 0 && x < p.out_width) {
      finish<T>(p, staging + pixel * kFragmentPitch + lane % 2 * 8, o,
                (start + x) * p.g.out_channels + o);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kWarpgroupThreads, 1)
    sparse_conv2d_warpgroups_kernel(const GANSPARSE_GRID_CONSTANT WarpgroupArguments a) {
  const TileProblem& p = a.p;
  const WarpgroupPlan& t = a.t;
  const Geometry& g = p.g;
  const int buffer_bytes = t.piece_positions * (kPieces * kPieceBytes);
  auto* buffers = static_cast<unsigned char*>(dynamic_shared());
  const int taps = static_cast<int>(g.taps_h * g.taps_w);
  auto* row_starts = reinterpret_cast<int64_t*>(buffers + t.tables_at);  // [32]
  auto* source = reinterpret_cast<int32_t*>(row_starts + kTowerRows);    // [positions]
  int32_t* tap_bytes = source + t.positions;                             // [taps]

  // ---- Which rows and pixels: neighbouring blocks share their pixels ----
  const int block = static_cast<int>(blockIdx.x);
  const int upscale = static_cast<int>(g.upscale);
  const int row_tile = block % t.row_tiles;
  const int phase = row_tile % (upscale * upscale);
  const int tile = block / t.row_tiles;
  const int first_column = tile % t.tiles_x * kTowerColumns;
  const int64_t first_row = int64_t{tile / t.tiles_x} * kTowerRows;
  const int first_n = static_cast<int>(first_row / t.period);
  const int first_y = static_cast<int>(first_row % t.period);

  // ---- Tables: rows of output, each position's pixel, how far a tap is from tap (0, 0) ----
  for (int i = static_cast<int>(threadIdx.x); i < kTowerRows; i += kWarpgroupThreads) {
    const int64_t n = first_n + (first_y + i) / t.period;
    const int64_t y = int64_t{(first_y + i) % t.period} * upscale + phase / upscale;
    row_starts[i] =
        n < p.batch && y < p.out_height ? (n * p.out_height + y) * p.out_width : int64_t{-1};
  }
  for (int i = static_cast<int>(threadIdx.x); i < t.positions; i += kWarpgroupThreads) {
    source[i] = tower_source(a, first_n, first_y, first_column, i);
  }
  for (int i = static_cast<int>(threadIdx.x); i < taps; i += kWarpgroupThreads) {
    const int s = i % static_cast<int>(g.taps_w);
    const int stride = static_cast<int>(g.stride);
    tap_bytes[i] =
        (i / static_cast<int>(g.taps_w) * t.pitch + s % stride * t.half + s / stride) * kPieceBytes;
  }
  __syncthreads();  // the tables are whole

  // ---- Begin: the first chunks and the first steps' weights are on their way ----
  for (int i = 0; i < t.ahead; ++i) {
    if (i < t.chunks) request_pieces<T>(a, source, i * kStepChannels, buffers + i * buffer_bytes);
    commit_copies();  // empty groups, too: they are counted
  }
  const int32_t* starts = p.starts + static_cast<int64_t>(row_tile) * t.chunks;
  const auto within = [&](int32_t step) {
    return step < 0 ? 0 : step > p.steps ? static_cast<int32_t>(p.steps) : step;
  };
  const int32_t begin = within(starts[0]);
  const int32_t end = within(starts[t.chunks]);
  RowWeights weights[kStepsAhead] = {};
#pragma unroll
  for (int j = 0; j < kStepsAhead - 1; ++j) {
    if (begin + j < end) weights[j].load_step(p, begin + j);
  }
  float sums[kWarpgroupSums] = {};
  pin(sums);

  // ---- Steps, one product each, of which two are in flight; between them chunks end ----
  int chunk = -1;
  int32_t end_of_chunk = begin;
  int32_t following = within(starts[1]);
  bool used = false;  // whether a product reads the chunk
  bool owed = false;  // whether it has not yet asked for the chunk that is `ahead`
  int reading = t.buffers - 1;
  int filling = t.ahead - 1;
  const auto ask = [&] {
    if (chunk + t.ahead < t.chunks) {
      request_pieces<T>(a, source, (chunk + t.ahead) * kStepChannels,
                        buffers + filling * buffer_bytes);
    }
    commit_copies();
    owed = false;
  };
  for (int32_t four = begin; four < end; four += kStepsAhead) {
#pragma unroll
    for (int j = 0; j < kStepsAhead; ++j) {
      const int32_t step = four + j;
      if (step >= end) break;
      while (chunk < 0 || (step >= end_of_chunk && chunk + 1 < t.chunks)) {
        if (owed) ask();
        // The buffer that is filled next was read by the chunk before the one that ends here; with
        // two buffers by that one.
        if (!used || t.buffers == 2) wait_products<0>();
        used = false;
        owed = true;
        ++chunk;
        end_of_chunk = following;
        following = chunk + 2 <= t.chunks ? within(starts[chunk + 2]) : end;
        reading = reading + 1 == t.buffers ? 0 : reading + 1;
        filling = filling + 1 == t.buffers ? 0 : filling + 1;
        wait_copies_but(t.ahead - 1);
        fence_products();
        __syncthreads();  // this chunk's input is there for all, and the other buffer free
      }
      const RowWeights& now = weights[j];
      const int tap = now.place < 0 ? 0 : min(now.place / kPieces, taps - 1);
      const uint64_t b = matrix_descriptor(buffers + reading * buffer_bytes + tap_bytes[tap],
                                           t.piece_positions * kPieceBytes,
                                           static_cast<int>(g.stride) * t.pitch * kPieceBytes);
      begin_products();
      multiply_sparse_async<T>(sums, now.a, b, now.metadata);
      commit_products();
      used = true;
      if (owed) ask();     // beside the product
      wait_products<1>();  // the registers of the product before are free
      if (step + kStepsAhead - 1 < end) {
        weights[(j + kStepsAhead - 1) % kStepsAhead].load_step(p, step + kStepsAhead - 1);
      }
    }
  }
  wait_products<0>();
  pin(sums);

  // ---- Bias; moments of the block's pixels ----
  const int64_t first_channel = int64_t{row_tile / (upscale * upscale)} * kWarpgroupVector;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t o = first_channel + static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
  auto* of_groups = reinterpret_cast<float (*)[4]>(sums);
  add_bias<kWarpgroupSums / 4>(p, of_groups, o);
  if (p.moments != nullptr) {
    const int rows = min(grid_size(p.out_height, upscale, phase / upscale) - first_y, kTowerRows);
    const int columns =
        min(grid_size(p.out_width, upscale, phase % upscale) - first_column, kTowerColumns);
    const int64_t part =
        (first_y / kTowerRows * int64_t{t.tiles_x} + tile % t.tiles_x) * (upscale * upscale) +
        phase;
    const int mine = columns - lane % 4 * 2;
    leave_moments<T, kWarpgroupSums / 4>(
        of_groups, rows > 0 && columns > 0 ? rows * columns : 0,
        [=](int group, int i) { return group < rows && i < mine; },
        p.moments + (first_n * p.parts + part) * 3 * g.out_channels, g.out_channels, o);
  }
  wait_copies<0>();
  __syncthreads();  // all have read the buffers before they take sums
  store_sums<T>(p, sums, row_starts, first_channel,
                int64_t{first_column} * upscale + phase % upscale);
}

}  // namespace gansparse::sparse_conv2d
