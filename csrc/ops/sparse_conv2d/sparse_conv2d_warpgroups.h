// SPDX-License-Identifier: Apache-2.0
// sparse_conv2d on tiles of 128 matrix rows, pattern 2:4, for processors whose tensor cores take
// 2:4 matrices from warpgroups (wgmma, sm_90a). Arrays as in sparse_conv2d_tiles.h with V = 128,
// where each step is whole: its four blocks are the 32 channels of a list at one tap,
// places[k] = 4 tap + {0, 1, 2, 3}, of which only the first is read.
//
// How: a block of two warpgroups has 128 rows x 256 pixels, 64 rows each; a product is 64 rows x
// 256 pixels x one step. Weights come from global memory straight into registers, some steps ahead,
// and the input of 32 channels, halo included, lies in shared memory once for all taps: in pieces
// of 8 channels, [4][position][8], so that 8 neighbouring pixels are 128 bytes in a row whatever
// the tap. That is the layout the tensor cores read without swizzle, whose rows of 8 pixels may
// begin at any multiple of 16 bytes and lie any distance apart, but one: so the 256 pixels are 32
// rows of 8.
//
// Rows of pixels are those of a tower: all pictures one above the other, `period` rows of the
// output grid each. Pictures that are no multiple of 32 rows high stand close, with as many rows
// between them as their padding needs, and what is computed there is thrown away; others have tiles
// of their own.
#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>

#include "ops/sparse_conv2d/sparse_conv2d_columns.h"

namespace gansparse::sparse_conv2d {

constexpr int64_t kWarpgroupVector = 128;  // V
constexpr int kWarpgroupThreads = 256;
constexpr int kTowerRows = 32;  // of a tile: pixels
constexpr int kTowerColumns = 8;
constexpr int kPieces = 4;  // of 8 channels
constexpr int kPieceBytes = 16;
constexpr int kFragmentPitch = 20;  // floats: the sums of a warp's 16 rows for a pixel

struct WarpgroupPlan {
  int period;             // of the output grid's rows, from one picture to the next
  int wrap;               // of input rows, likewise; INT_MAX where a tile has one picture only
  int halo_rows;          // of input, for a tile's rows
  int half, pitch;        // see TilePlan
  int positions;          // halo_rows · pitch
  int piece_positions;    // those, and a few so that copies of pieces meet different banks
  int buffers;            // 2 to 4
  int ahead;              // chunks that are on their way while one is read
  int chunks, row_tiles;  // ⌈C / 32⌉, M / 128
  int64_t tiles_y;
  int tiles_x;
  int tables_at, shared_bytes;
};

inline WarpgroupPlan plan_warpgroups(const TileProblem& p, int64_t shared_limit) {
  const Geometry& g = p.g;
  const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
  const int64_t grid_h = parts(p.out_height, g.upscale);
  const int64_t grid_w = parts(p.out_width, g.upscale);
  WarpgroupPlan t{};
  // ---- Pictures close together, or each with tiles of its own ----
  const int64_t close = parts((grid_h - 1) * g.stride + g.taps_h, g.stride);
  const int64_t apart = parts(grid_h, kTowerRows) * kTowerRows;
  const int64_t close_rows = p.batch * close - (close - grid_h);
  const bool stand_close =
      p.parts == 0 && parts(close_rows, kTowerRows) * kTowerRows < p.batch * apart;
  t.period = static_cast<int>(stand_close ? close : apart);
  t.wrap = stand_close ? static_cast<int>(close * g.stride) : INT_MAX;
  t.tiles_y = parts(stand_close ? close_rows : p.batch * apart, kTowerRows);
  t.tiles_x = static_cast<int>(parts(grid_w, kTowerColumns));
  // ---- A tile's input ----
  t.halo_rows = static_cast<int>((kTowerRows - 1) * g.stride + g.taps_h);
  t.half = static_cast<int>(parts((kTowerColumns - 1) * g.stride + g.taps_w, g.stride));
  t.pitch = static_cast<int>(g.stride) * t.half;
  t.positions = t.halo_rows * t.pitch;
  // Eight threads copy the four pieces of two positions: 32 bytes apart modulo all banks.
  t.piece_positions = t.positions + (6 - t.positions % 4) % 4;
  t.chunks = static_cast<int>(parts(g.in_channels, kStepChannels));
  t.row_tiles = static_cast<int>(parts(g.out_channels, kWarpgroupVector) * g.upscale * g.upscale);
  // ---- Shared memory: buffers, or the sums at the end; then tables ----
  const int64_t buffer = int64_t{t.piece_positions} * kPieces * kPieceBytes;
  const int64_t tables = int64_t{8} * kTowerRows + 4 * (t.positions + g.taps_h * g.taps_w);
  const int64_t fitting = (shared_limit - tables) / buffer;
  t.buffers = static_cast<int>(
      std::clamp<int64_t>(std::min<int64_t>(fitting, t.chunks + 1), 2, kMostBuffers));
  // With more than two, the last product of a chunk may still read while the next chunk begins.
  t.ahead = t.buffers == 2 ? 1 : t.buffers - 2;
  const int64_t staging =
      int64_t{kWarpgroupThreads / 32} * kTowerRows * kTowerColumns * kFragmentPitch * 4;
  t.tables_at = static_cast<int>(std::max(t.buffers * buffer, staging));
  t.shared_bytes = static_cast<int>(t.tables_at + tables);
  return t;
}

// P of the moments: a part is what a block has of a picture, of one phase.
inline int64_t moment_parts(TileProblem p) {
  p.parts = 1;
  const int64_t phases = p.g.upscale * p.g.upscale;
  if (p.g.vector == kWarpgroupVector) {
    const WarpgroupPlan t = plan_warpgroups(p, INT_MAX);
    return phases * (t.period / kTowerRows) * t.tiles_x;
  }
  const TilePlan t = p.columns ? plan_columns(p, INT_MAX).t : plan_tiles(p, INT_MAX);
  return phases * t.tiles_y * t.tiles_x;
}

// What is said where the device or the build can't.
constexpr const char* kNoWarpgroups =
    "sparse_conv2d: tiles of 128 rows need a device of compute capability 9.0 and a build for "
    "sm_90a: pack the weight with 32 or 64 rows";

void run_warpgroups_cuda(const TileProblem& problem, TileType type, int device, uintptr_t stream);

}  // namespace gansparse::sparse_conv2d
