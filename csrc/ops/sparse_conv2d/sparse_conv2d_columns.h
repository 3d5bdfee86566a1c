// SPDX-License-Identifier: Apache-2.0
// sparse_conv2d on CUDA for the pattern `vector`: tensor cores walk single columns of the weight.
//
// 16 output channels keep a weight of one input channel at one tap together, or none of them. Such
// a column is 16 x 1: any 16 kept columns make a 16 x 16 matrix, as long as the input comes
// gathered alike, a row of pixels for each column. Arrays and the rest as in sparse_conv2d_tiles.h,
// with V = 16, lists of B = 32 or 64 channels (geometry.block), and
//
// | array      | shape          | dtype                                   | role |
// |------------|----------------|-----------------------------------------|------|
// | values     | [K, 1, 1, 32, 8] | T                                     | read |
// | metadata   | [0]            |                                         |      |
// | places     | [K, 16]        | int16: B (r · S + s) + (channel of B)   | read |
//
// Products k of a step have the input of places[k, :] and values as the 16 x 16 matrix lies in the
// lanes of a warp. What fills a step up are zeros, right behind a column and with its place.
//
// How: tensor cores want of a column 8 neighbouring pixels side by side, where memory has 32
// neighbouring channels. So a block brings a list's channels of its pixels as all tiles do, and
// then turns them, 8 x 8 numbers at a time (ldmatrix.trans), into
//
//   [tap's column s][picture, row of the halo][8 pixels][B channels] x 16 bytes
//
// once for all its output channels: 16 tiles of 16, a warp each, with all 128 pixels. A column of
// the weight at tap (r, s) is then a row of 16 bytes for each 8 pixels, wherever they lie, so
// ldmatrix gathers for nothing: each lane has an address of its own. Eight rows that are read
// together lie in different banks if their channels differ modulo 8; the packing orders the columns
// of a list so, as far as they go. Two turned buffers: while some warps turn the next 32 channels,
// others multiply. Longer lists spread their columns over banks more evenly and fill their last
// step better, but take twice the shared memory: 64 channels are for stride 1 and 3 taps a row.
//
// Cost of a block, 256 rows x 128 pixels and 32 channels, 3 x 3, at the share d of columns kept, in
// cycles of a multiprocessor (docs/cuda.md):
//   products       16 · 128 · 288 d multiply-adds for each of 16 warps, 1290 a cycle: 7300 d
//   gathering      as many numbers from shared memory once, 2 bytes: 9216 d, and what banks cost
//   turning        60 pieces of 8 pixels x 32 channels for 16 warps: 60 reads and 240 writes of
//                  512 and 128 bytes, 480
//
// Two turned buffers must fit: with lists of 32 channels and 227 KB kernels of up to 8 x 8 at
// stride 1 and 4 x 4 at stride 2, with 163 KB (sm_80) 6 x 6 and 3 x 3, with 99 KB (sm_86, 89)
// 4 x 4 at stride 1 and 1 x 1; with lists of 64 channels 4 x 4, 3 x 3, 2 x 2 at stride 1. Larger
// ones are refused at the launch.
#pragma once

#include "ops/sparse_conv2d/sparse_conv2d_tiles.h"

namespace gansparse::sparse_conv2d {

constexpr int kColumnStep = 16;       // columns
constexpr int kColumnRows = 16;       // V
constexpr int kLeastColumnWarps = 4;  // bring and turn the input, with or without rows
constexpr int kMostColumnWarps = 16;  // tiles of 16 rows a block
constexpr int kColumnThreads = 32 * kMostColumnWarps;
constexpr int kLogPiecePixels = 3;

// Of B channels: of a position as it comes, and of 8 pixels turned.
constexpr int64_t column_position_bytes(int64_t channels) { return 2 * channels + 16; }
constexpr int64_t turned_piece_bytes(int64_t channels) { return 16 * channels; }

struct ColumnPlan {
  TilePlan t;        // buffers: 1 or 2, of the input as it comes
  int lines;         // 2^log_n · halo_rows
  int line_pieces;   // 2^log_x / 8
  int turned_bytes;  // of one of two buffers
  // What bit i of the number of 8 pixels of the 128 adds to where tap (0, 0) finds them, in turned
  // bytes.
  int pixel_bytes[kLogTilePixels - kLogPiecePixels];
};

inline int column_threads(const TilePlan& plan) { return 32 * plan.row_warps; }

inline ColumnPlan plan_columns(const TileProblem& p, int64_t shared_limit) {
  const Geometry& g = p.g;
  const auto input = [&g](const TilePlan& t) {
    return t.positions * column_position_bytes(g.block);
  };
  const auto turned = [&g](const TilePlan& t) {
    const int64_t pieces = (int64_t{t.halo_rows} << t.log_n) << (t.log_x - kLogPiecePixels);
    return g.taps_w * pieces * turned_piece_bytes(g.block);
  };
  const auto tables = [&g](const TilePlan& t) {
    return int64_t{4} * (t.positions + g.taps_h * g.taps_w);
  };
  ColumnPlan d{};
  d.t = arrange_tiles(p, kLogPiecePixels, [&](const TilePlan& t) {
    return input(t) + 2 * turned(t) + tables(t) <= shared_limit;
  });
  TilePlan& t = d.t;
  t.row_blocks = (t.row_tiles + kMostColumnWarps - 1) / kMostColumnWarps;
  t.row_warps = std::max((t.row_tiles + t.row_blocks - 1) / t.row_blocks, kLeastColumnWarps);
  d.lines = t.halo_rows << t.log_n;
  d.line_pieces = 1 << (t.log_x - kLogPiecePixels);
  for (int bit = kLogPiecePixels; bit < kLogTilePixels; ++bit) {
    const int above_x = bit - t.log_x, above_y = above_x - t.log_y;
    const int64_t lines = above_y >= 0   ? int64_t{t.halo_rows} << above_y
                          : above_x >= 0 ? g.stride << above_x
                                         : 0;
    const int64_t pieces = lines * d.line_pieces + (above_x < 0 ? 1 << (bit - kLogPiecePixels) : 0);
    d.pixel_bytes[bit - kLogPiecePixels] = static_cast<int>(pieces * turned_piece_bytes(g.block));
  }
  // As many blocks beside each other as registers and shared memory let there be; then buffers.
  const int64_t least = input(t) + 2 * turned(t) + tables(t);
  int64_t beside = std::max(1, kColumnThreads / column_threads(t));
  while (beside > 1 && shared_beside(shared_limit, beside) < least) --beside;
  t.buffers = shared_beside(shared_limit, beside) >= least + input(t) ? 2 : 1;
  const int64_t staging = int64_t{t.row_warps} * kStagedPixels * (kColumnRows + 4) * 4;
  const int64_t shared = std::max(t.buffers * input(t) + 2 * turned(t), staging) + tables(t);
  d.turned_bytes = static_cast<int>(std::min<int64_t>(turned(t), INT32_MAX));
  t.shared_bytes = static_cast<int>(std::min<int64_t>(shared, INT32_MAX));
  return d;
}

}  // namespace gansparse::sparse_conv2d
