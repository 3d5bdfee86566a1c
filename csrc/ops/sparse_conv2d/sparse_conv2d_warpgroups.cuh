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

// Where a tile's first row lies in the tower.
struct TowerPlace {
  int64_t n;  // picture
  int64_t y;  // row of the output grid
};

__device__ __forceinline__ TowerPlace tower_place(const WarpgroupPlan& t, int64_t row) {
  return {row / t.period, row % t.period};
}

// The pixel that lies at a position of the block's buffers, or −1: zero.
__device__ __forceinline__ int64_t tower_source(const WarpgroupArguments& a,
                                                const TowerPlace& first, int64_t first_column,
                                                int position) {
  const Geometry& g = a.p.g;
  const int place = position % a.t.pitch;
  const int64_t row = first.y * g.stride + position / a.t.pitch;
  const int64_t n = first.n + row / a.t.wrap;
  const int64_t y = padded(row % a.t.wrap - g.pad_h, a.p.height, g.padding);
  const int64_t x =
      padded(first_column * g.stride + place % a.t.half * g.stride + place / a.t.half - g.pad_w,
             a.p.width, g.padding);
  return n >= a.p.batch || y < 0 || x < 0 ? -1 : (n * a.p.height + y) * a.p.width + x;
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

// From rows of pixels in registers to channels of a pixel, 32 pixels at a time; each warp its 16
// rows, in its own part of the shared memory.
template <class T>
__device__ __forceinline__ void store_sums(const WarpgroupArguments& a,
                                           const float (&sums)[kWarpgroupSums], int row_tile,
                                           int64_t first_row, int64_t first_column) {
  const TileProblem& p = a.p;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int upscale = static_cast<int>(p.g.upscale);
  const int phase = row_tile % (upscale * upscale);
  const int64_t o = static_cast<int64_t>(row_tile / (upscale * upscale)) * kWarpgroupVector +
                    warp * 16 + lane % 2 * 8;
  float* staging = static_cast<float*>(dynamic_shared()) + warp * (kStagedPixels * kFragmentPitch);
#pragma unroll
  for (int from = 0; from < kWarpgroupColumns; from += kStagedPixels) {
#pragma unroll
    for (int i = 0; i < kStagedPixels / 2; ++i) {
      const int pixel = i / 4 * 8 + lane % 4 * 2 + i % 2;
      staging[pixel * kFragmentPitch + lane / 4 + i / 2 % 2 * 8] = sums[from / 2 + i];
    }
    __syncwarp();  // all lanes' sums are there
#pragma unroll 1
    for (int staged = lane / 2; staged < kStagedPixels; staged += 16) {
      const int pixel = from + staged;
      const TowerPlace at = tower_place(a.t, first_row + pixel / kTowerColumns);
      const int64_t y = at.y * upscale + phase / upscale;
      const int64_t x = (first_column + pixel % kTowerColumns) * upscale + phase % upscale;
      if (at.n < p.batch && y < p.out_height && x < p.out_width && o < p.g.out_channels) {
        finish<T>(p, staging + staged * kFragmentPitch + lane % 2 * 8, o,
                  ((at.n * p.out_height + y) * p.out_width + x) * p.g.out_channels + o);
      }
    }
    __syncwarp();  // all lanes have read before the next pixels come
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
  auto* source = reinterpret_cast<int32_t*>(buffers + t.shared_bytes) - (t.positions + taps);
  int32_t* tap_bytes = source + t.positions;  // [taps]

  // ---- Which rows and pixels: neighbouring blocks share their pixels ----
  const int64_t block = blockIdx.x;
  const int row_tile = static_cast<int>(block % t.row_tiles);
  const int64_t first_column = block / t.row_tiles % t.tiles_x * kTowerColumns;
  const int64_t first_row = block / t.row_tiles / t.tiles_x * kTowerRows;

  // ---- Tables: where each position's pixel is, and how far a tap is from tap (0, 0) ----
  const TowerPlace first = tower_place(t, first_row);
  for (int i = static_cast<int>(threadIdx.x); i < t.positions; i += kWarpgroupThreads) {
    source[i] = static_cast<int32_t>(tower_source(a, first, first_column, i));
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
  bool used = false;  // whether a product reads the chunk
  int reading = t.buffers - 1;
  int filling = t.ahead - 1;
  for (int32_t four = begin; four < end; four += kStepsAhead) {
#pragma unroll
    for (int j = 0; j < kStepsAhead; ++j) {
      const int32_t step = four + j;
      if (step >= end) break;
      while (chunk < 0 || (step >= end_of_chunk && chunk + 1 < t.chunks)) {
        // The buffer that is filled next was read by the chunk before the one that ends here; with
        // two buffers by that one.
        if (!used || t.buffers == 2) wait_products<0>();
        used = false;
        ++chunk;
        end_of_chunk = within(starts[chunk + 1]);
        reading = reading + 1 == t.buffers ? 0 : reading + 1;
        filling = filling + 1 == t.buffers ? 0 : filling + 1;
        wait_copies_but(t.ahead - 1);
        fence_products();
        __syncthreads();  // this chunk's input is there for all, and the other buffer free
        if (chunk + t.ahead < t.chunks) {
          request_pieces<T>(a, source, (chunk + t.ahead) * kStepChannels,
                            buffers + filling * buffer_bytes);
        }
        commit_copies();
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
      wait_products<1>();  // the registers of the product before are free
      if (step + kStepsAhead - 1 < end) {
        weights[(j + kStepsAhead - 1) % kStepsAhead].load_step(p, step + kStepsAhead - 1);
      }
    }
  }
  wait_products<0>();
  pin(sums);
  wait_copies<0>();
  __syncthreads();  // all have read the buffers before they take sums
  store_sums<T>(a, sums, row_tile, first_row, first_column);
}

}  // namespace gansparse::sparse_conv2d
