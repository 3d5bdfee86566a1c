// SPDX-License-Identifier: Apache-2.0
// sparse_conv2d on CUDA in float32: the packed lists of the CPU (sparse_conv2d.h), walked by warps.
// Patterns `element` (V = 1) and `vector`. The same PackedConv2d runs on both devices.
//
// | array    | shape                   | dtype   | role    |
// |----------|-------------------------|---------|---------|
// | input    | [N, C, H, W]            | float32 | read    |
// | values   | [K, V]                  | float32 | read    |
// | offsets  | [K]                     | int16   | read    |
// | starts   | [L + 1]                 | int32   | read    |
// | rows     | [L]                     | int32   | read    |
// | bias, residual, slope: as in sparse_conv2d.h               |
// | output   | [N, O, OH, OW]          | float32 | written |
//
// All contiguous; input and output have less than 2^31 elements. Wrong lists give wrong sums and
// nothing worse.
//
// How: a block has 32 matrix rows and 32 · P pixels of the output grid (2^ln pictures x 2^ly rows x
// 2^lx columns), P = 16 or, where the grid is small, 4. It keeps a block of input channels with the
// halo in shared memory, in two buffers in turn (cp.async). A warp has 4 rows, a lane P pixels: 4 P
// sums in registers. It fetches 32 weights of a list at a time, a lane each, turns their offsets
// (of the CPU's scratch) into places in its buffer by a table, and all lanes read them back one by
// one: P loads from shared memory and P multiply-adds (V > 1: 4 P) a weight.
//
// Cost of a weight and 32 P pixels, V = 1: P + 1/2 reads of 128 bytes from shared memory, one a
// cycle and multiprocessor, against P / 4 cycles of its 128 multipliers: never above 25 % of their
// peak, as no two rows share an input. V > 1: P + 5/4 reads for P cycles.
//
// Gradient of the weights that stayed (no atomics, always the same bits):
// (upscale 2: over the pixels of the row's phase)
//   dvalues[k, v] = Σ_{n, i, j} grad[n, o, i, j] · x̂[n, c, i · stride + r, j · stride + s]
// A block has 16 rows of lists, a warp each, and walks the tiles of the grid; 16 weights of a list
// have their sums in registers. `splits` blocks share the tiles and leave partial sums, which a
// second kernel adds in order. Cost of a weight and 32 P pixels: P reads from shared memory again.
// The gradient of the input is the op itself on a transposed packing
// (gansparse/ops/sparse_conv2d_gradients.py).
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/shared_memory.h"
#include "ops/sparse_conv2d/sparse_conv2d.h"

namespace gansparse::sparse_conv2d {

constexpr int kListRows = 32;  // matrix rows of a block
constexpr int kWarpRows = 4;   // and of a warp
constexpr int kListThreads = 32 * kListRows / kWarpRows;
constexpr int kManyPixels = 16;  // of a lane
constexpr int kFewPixels = 4;
constexpr int kBatch = 32;          // weights that a warp fetches at a time
constexpr int kGradientWarps = 16;  // rows of lists of a block
constexpr int kGradientThreads = 32 * kGradientWarps;
constexpr int kGradientWeights = 16;  // of a list, whose sums a warp has
// Blocks a multiprocessor up to which the tiles of a gradient are split, and how often at most, as
// partial sums cost memory.
constexpr int kGradientBlocksBeside = 8;
constexpr int kMostSplits = 64;
static_assert(kChunkRows % kListRows == 0, "a block's rows lie in one chunk");
static_assert(kChunkRows % kGradientWarps == 0, "blocks of gradients don't straddle chunks");

// How a block's pixels lie, and what they need of an input channel.
struct ListPlan {
  int log_n, log_y, log_x;        // pictures, rows, columns of a block: 2^ of these
  int pitch;                      // floats from row to row; columns of one parity (stride 2) or all
  int phase;                      // floats of one parity of rows and columns
  int picture;                    // stride² · phase
  int channel;                    // 2^log_n · picture
  int tiles_n, tiles_y, tiles_x;  // their product times row_blocks fits into an int
  int blocks;                     // of input channels
  int matrix_rows;                // M
  int row_blocks;                 // ⌈M / kListRows⌉
  int patch_columns;              // of the CPU's scratch: what an offset counts
  int patch_phase, patch_channel;
  int table;  // block · patch_channel: offsets that there are
  int shared_bytes;
};

inline int64_t list_parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

// What follows from the pitch.
inline void lay_out(const Geometry& g, int pitch, int64_t taps_h, ListPlan* plan) {
  ListPlan& t = *plan;
  t.pitch = pitch;
  t.phase = ((1 << t.log_y) - 1 + static_cast<int>(taps_h)) * pitch;
  t.picture = static_cast<int>(g.stride * g.stride) * t.phase;
  const int64_t channel = int64_t{t.picture} << t.log_n;
  // Two buffers, two tables of positions, one of offsets, two times a block's lists, and the warps'
  // fetched weights.
  const int64_t floats = (2 * g.block + 2) * channel + t.table + 2 * kListRows +
                         (kWarpRows + 1) * kBatch * (kListThreads / 32);
  t.channel = static_cast<int>(std::min<int64_t>(channel, INT32_MAX));
  t.shared_bytes = static_cast<int>(std::min<int64_t>(4 * floats, INT32_MAX));
}

// Of the arrangements that fit, the one with the fewest tiles, and of these the smallest halo.
// Where none fits, shared_bytes is above the limit.
inline ListPlan plan_lists(const Problem& p, int pixels, int64_t shared_limit) {
  const Geometry& g = p.g;
  const int64_t taps_h = list_parts(g.taps_h, g.stride), taps_w = list_parts(g.taps_w, g.stride);
  ListPlan common{};
  common.blocks = static_cast<int>(list_parts(g.in_channels, g.block));
  common.matrix_rows =
      static_cast<int>(g.upscale * g.upscale * list_parts(g.out_channels, g.vector) * g.vector);
  common.row_blocks = static_cast<int>(list_parts(common.matrix_rows, kListRows));
  common.patch_columns = static_cast<int>(g.patch - 1 + taps_w);
  common.patch_phase = static_cast<int>((g.patch - 1 + taps_h) * common.patch_columns);
  common.patch_channel = static_cast<int>(g.stride * g.stride) * common.patch_phase;
  common.table = static_cast<int>(g.block) * common.patch_channel;
  const int64_t grid_h = list_parts(p.out_height, g.upscale);
  const int64_t grid_w = list_parts(p.out_width, g.upscale);
  const int log = pixels == kManyPixels ? 9 : 7;  // of 32 · pixels
  ListPlan best{};
  int64_t best_tiles = 0;
  for (int log_n = 0; log_n <= log; ++log_n) {
    for (int log_y = 0; log_y <= log - log_n; ++log_y) {
      ListPlan t = common;
      t.log_n = log_n, t.log_y = log_y, t.log_x = log - log_n - log_y;
      t.tiles_n = static_cast<int>(list_parts(p.batch, int64_t{1} << log_n));
      t.tiles_y = static_cast<int>(list_parts(grid_h, int64_t{1} << log_y));
      t.tiles_x = static_cast<int>(list_parts(grid_w, int64_t{1} << t.log_x));
      const int columns = (1 << t.log_x) - 1 + static_cast<int>(taps_w);
      lay_out(g, columns, taps_h, &t);
      const int width = 1 << t.log_x, step = 2 * width;
      if (t.log_x == 3 || t.log_x == 4) {
        // Lanes in rows of 8 or 16 pixels: where it costs little, rows begin in different banks.
        ListPlan apart = t;
        lay_out(g, columns + (step + width - columns % step) % step, taps_h, &apart);
        if (apart.shared_bytes <= shared_beside(shared_limit, 2)) t = apart;
      }
      const int64_t tiles = int64_t{t.tiles_n} * t.tiles_y * t.tiles_x;
      const bool fits = t.shared_bytes <= shared_limit;
      const bool better = tiles < best_tiles || (tiles == best_tiles && t.channel < best.channel);
      if (best_tiles == 0 || (fits && (better || best.shared_bytes > shared_limit))) {
        best = t;
        best_tiles = tiles;
      }
    }
  }
  return best;
}

// Blocks that have part 0 of all lists, for the gradient of the weights.
inline int64_t gradient_groups(const ListPlan& t) {
  const int64_t whole = t.matrix_rows / kChunkRows, rest = t.matrix_rows % kChunkRows;
  return t.blocks * (whole * (kChunkRows / kGradientWarps) + list_parts(rest, kGradientWarps));
}

// How many times kGradientWeights a list may hold.
inline int64_t gradient_parts(const Geometry& g) {
  return list_parts(g.block * g.taps_h * g.taps_w, kGradientWeights);
}

// ---- Whole op -----------------------------------------------------------------------------------

// slope: for kLeaky where problem.slopes, which lie on the device, are null.
void run_cuda(const Problem& problem, float slope, int device, uintptr_t stream);

// dvalues [K, V] from the problem's input and lists and `grad` [N, O, OH, OW]; values, bias,
// residual, slopes and output are not looked at.
void run_gradient_cuda(const Problem& problem, const float* grad, float* dvalues, int device,
                       uintptr_t stream);

}  // namespace gansparse::sparse_conv2d
