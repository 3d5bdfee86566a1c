// SPDX-License-Identifier: Apache-2.0
// sparse_conv2d on CUDA: an implicit matrix product on tensor cores that walks only the tiles of
// the weight that hold something. Equation: sparse_conv2d.h. Arrays in channels_last.
//
//   matrix rows (output channels and phases, V a tile: 16, 32 or 64)
//        x  steps of 32 products (four blocks of 8 input channels at a tap; those that are kept)
//        x  pixels (128 a block: 2^ln pictures x 2^ly rows x 2^lx columns of the output grid)
//
// Two patterns, which combine (for `vector`, see sparse_conv2d_columns.h):
//   2:4     of each four neighbouring input channels at a tap an output channel keeps at most two:
//           sparse tensor cores do a step in half the time; V is 32 or 64
//   block   V output channels x 8 input channels at a tap are kept or not, and what is not is not
//           done; V is 16 or 32 (with 2:4: 32 or 64)
//
// | array      | shape                        | dtype                            | role    |
// |------------|------------------------------|----------------------------------|---------|
// | input      | [N, C, H, W]                 | T: float16, bfloat16; channels_last | read |
// | values     | [K, V / 16, F, 32, 8]        | T; F = 1 for 2:4, 2 for block    | read    |
// | metadata   | [K, V / 32, 32]; block: [0]  | int32                            | read    |
// | places     | [K, 4]                       | int16: 4 (r · S + s) + part      | read    |
// | starts     | [L + 1]                      | int32                            | read    |
// | geometry   | 14 numbers                   | sparse_conv2d.h; block is 32     |         |
// | bias       | [O], or None                 | float32                          | read    |
// | residual   | [N, O, OH, OW], or None      | T, channels_last                 | read    |
// | activation | name                         | none, relu, leaky_relu, prelu, tanh |      |
// | slope      | number; prelu: [1], [O]      | float32                          | read    |
// | output     | [N, O, OH, OW]               | T, channels_last                 | written |
// | moments    | [N, P, 3, O], or None        | float32                          | written |
//
// C is a multiple of 8; kernels have up to 9 x 9 taps. Matrix rows are ordered [O / V][phase][V].
// List l = (tile of rows) · ⌈C / 32⌉ + (32 channels) has the steps [starts[l], starts[l + 1]).
// places[k, q] says which block the products 8 q … 8 q + 7 of step k are: the tap, and which 8 of
// the list's 32 channels; a list's last step may be filled up with zeros. A step's values lie as
// the lanes of a warp hold them (common/tensor_core.cuh): value [k, i, f, lane, 2 r + e] is row
// 16 i + lane / 4 + 8 (r % 2), column 2 (lane % 4) + 8 (r / 2) + e of the 16 x 16 matrix f of rows
// 16 i …: of the two of each four products that are kept (2:4), or of products 16 f … (block).
// metadata[k, i, lane] is for rows 32 i …: lanes 0, 1 of four for the first 16.
// A weight that was pruned inside of a kept block counts as 0: there 0 · NaN is NaN. Lists that are
// out of range give wrong sums and nothing worse.
//
// Moments, for a norm that follows: P parts of each picture of the output, and of each part and
// channel how many pixels it has, their mean, and the sum of their squared distances from it
// (common/moments.cuh), of the values as stored. They are made in registers, first the mean and
// then the distances, in an order that never changes. Tiles have pixels of one picture each then,
// and P (moment_parts) depends on nothing but the layer and the picture's size; a part may have no
// pixels. Neither residual nor activation may follow.
//
// How: a block keeps of 32 channels the input pixels that its 128 output pixels meet, halo
// included, in shared memory, two to four such buffers in turn (cp.async). All taps of these
// channels read the same buffer, each from another place, so for 3 x 3 a pixel comes from the
// second cache 1.4 times and not 9. Weights never see shared memory: a step's 16 bytes a lane come
// straight from global memory, one step ahead.
//
// Cost, for two tiles of V rows, 128 pixels and one step (docs/cuda.md has the tables):
//   multiply-adds  2 V · 128 · 32, of which sparse tensor cores do half
//   weights        2 V · 32 · 2 bytes (2:4: half, and 2 V · 4 of metadata), from the second cache
//   input          (pixels of the halo) · 64 bytes / (steps of 32 channels)
//   shared memory  4 warps · 64 pixels · 64 bytes read: 16 KB, 128 cycles of a multiprocessor
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/host_device.h"
#include "common/shared_memory.h"
#include "ops/sparse_conv2d/sparse_conv2d.h"

namespace gansparse::sparse_conv2d {

constexpr int kStepChannels = 32;
constexpr int64_t kMostTileTaps = 9;

enum class TileActivation : int32_t { kNone, kRelu, kLeaky, kTanh };
enum class TileType { kFloat16, kBFloat16 };

struct TileProblem {
  Geometry g;
  int64_t batch, height, width;   // N, H, W
  int64_t out_height, out_width;  // OH, OW
  int64_t steps;                  // K
  const void* input;              // [N, H, W, C]
  const void* values;             // [K, V / 16, F, 32, 8]
  bool two_of_four;               // or block
  bool columns;                   // neither: vector, of sparse_conv2d_columns.h
  const uint32_t* metadata;       // [K, V / 32, 32]; not read for block
  const int16_t* places;          // [K, 4]
  const int32_t* starts;          // [L + 1]
  const float* bias;              // [O], or null
  const void* residual;           // [N, OH, OW, O], or null
  const float* slopes;            // [1] or [O], or null: slope
  int64_t slope_step;             // 0 or 1
  float slope;
  TileActivation activation;
  void* output;    // [N, OH, OW, O]
  float* moments;  // [N, P, 3, O], or null
  int64_t parts;   // P; 0: moments are not wanted
};

// How a block's 128 pixels lie, and what they need of the input.
struct TilePlan {
  int log_n, log_y, log_x;        // pictures, rows, columns of a block: 2^ of these
  int halo_rows;                  // of input, for the block's rows
  int half;                       // columns of input of one parity (stride 2), or all (stride 1)
  int pitch;                      // positions a row: stride · half
  int positions;                  // 2^log_n · halo_rows · pitch: of a buffer
  int buffers;                    // 2 to 4
  int chunks;                     // ⌈C / 32⌉
  int row_tiles;                  // M / V
  int row_warps;                  // row tiles of a block: 2 or 4
  int row_blocks;                 // ⌈row_tiles / row_warps⌉
  int tiles_n, tiles_y, tiles_x;  // their product times row_blocks fits into an int
  int shared_bytes;
};

constexpr int kTilePixels = 128;
constexpr int kLogTilePixels = 7;
constexpr int kMostBuffers = 4;
// Of a position: 32 channels of 2 bytes, and 16 bytes more, so that the 8 pixels which
// load_matrices reads together lie in different banks.
constexpr int kPositionBytes = 80;
constexpr int kMostRowWarps = 4;   // each with 64 of the pixels; as many again have the others
constexpr int kStagedPixels = 32;  // whose sums a warp puts in order at a time

// How many input pixels 2^log neighbouring output pixels need, along one dimension.
inline int64_t halo(int64_t stride, int64_t taps, int log) {
  return ((int64_t{1} << log) - 1) * stride + taps;
}

// Threads for which the registers of a multiprocessor are enough.
constexpr int most_threads(int64_t vector, bool two_of_four) {
  return vector == 16 ? 512 : vector == 32 && two_of_four ? 384 : 256;
}

inline int tile_threads(const TilePlan& plan) { return 32 * 2 * plan.row_warps; }

// How 128 pixels lie: of the arrangements that fit, with rows of at least 2^least_x, the one with
// the fewest blocks, and of these the smallest halo. fits(plan) tells; where none fits, any.
template <class Fits>
TilePlan arrange_tiles(const TileProblem& p, int least_x, const Fits& fits) {
  const Geometry& g = p.g;
  const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
  const int64_t grid_h = parts(p.out_height, g.upscale);
  const int64_t grid_w = parts(p.out_width, g.upscale);
  TilePlan best{};
  int64_t best_blocks = 0;
  bool found = false, best_fits = false;
  const bool apart = p.parts > 0;  // pictures; and then the device has no say in the arrangement
  for (int log_n = 0; log_n <= (apart ? 0 : kLogTilePixels - least_x); ++log_n) {
    for (int log_y = 0; log_y <= kLogTilePixels - least_x - log_n; ++log_y) {
      TilePlan t{};
      t.log_n = log_n, t.log_y = log_y, t.log_x = kLogTilePixels - log_n - log_y;
      t.tiles_n = static_cast<int>(parts(p.batch, int64_t{1} << log_n));
      t.tiles_y = static_cast<int>(parts(grid_h, int64_t{1} << log_y));
      t.tiles_x = static_cast<int>(parts(grid_w, int64_t{1} << t.log_x));
      t.halo_rows = static_cast<int>(halo(g.stride, g.taps_h, log_y));
      t.half = static_cast<int>(parts(halo(g.stride, g.taps_w, t.log_x), g.stride));
      t.pitch = static_cast<int>(g.stride) * t.half;
      t.positions = (1 << log_n) * t.halo_rows * t.pitch;
      const int64_t blocks = int64_t{t.tiles_n} * t.tiles_y * t.tiles_x;
      // Many small pictures have much halo, which may be too much.
      const bool fitting = apart || fits(t);
      const bool better =
          blocks < best_blocks || (blocks == best_blocks && t.positions < best.positions);
      if (!found || (fitting && (better || !best_fits))) {
        found = true;
        best_fits = fitting;
        best = t;
        best_blocks = blocks;
      }
    }
  }
  best.chunks = static_cast<int>(parts(g.in_channels, g.block));
  best.row_tiles =
      static_cast<int>(parts(g.out_channels, g.vector) * int64_t{g.upscale * g.upscale});
  return best;
}

// As many buffers as let the blocks beside each other share `shared_limit`, and at least two. Where
// no arrangement fits, shared_bytes is above the limit.
inline TilePlan plan_tiles(const TileProblem& p, int64_t shared_limit) {
  const Geometry& g = p.g;
  const auto tables_of = [&g](const TilePlan& t) {
    return int64_t{4} * (t.positions + g.taps_h * g.taps_w);
  };
  TilePlan best = arrange_tiles(p, 0, [&](const TilePlan& t) {
    return 2 * int64_t{t.positions} * kPositionBytes + tables_of(t) <= shared_limit;
  });
  // Few rows a tile: more tiles share the input, or fetching it takes longer than its use.
  best.row_warps = g.vector < 64 && best.row_tiles > 2 ? kMostRowWarps : 2;
  best.row_blocks = (best.row_tiles + best.row_warps - 1) / best.row_warps;
  const int64_t buffer = int64_t{best.positions} * kPositionBytes;
  const int64_t tables = tables_of(best);
  const int64_t beside = std::max(1, most_threads(g.vector, p.two_of_four) / tile_threads(best));
  const int64_t fitting = (shared_beside(shared_limit, beside) - tables) / buffer;
  best.buffers = static_cast<int>(
      std::clamp<int64_t>(std::min<int64_t>(fitting, best.chunks), 2, kMostBuffers));
  // At the end the warps put their sums in order here.
  const int64_t staging = int64_t{2} * best.row_warps * kStagedPixels * (g.vector + 4) * 4;
  best.shared_bytes = static_cast<int>(std::max(best.buffers * buffer, staging) + tables);
  return best;
}

// ---- Gradient of the weights, of `block` --------------------------------------------------------
//
// dvalues [K, V / 16, 2, 32, 8] T, as values lie: for a kept block the product, over output pixels,
// of grad [N, OH, OW, O] (V of its channels; O a multiple of 8) with the input that the tap finds
// for them (8 channels). 0 where the value is 0; outputs that are not there count as 0.
//
// How: a block of threads has a group of row tiles and lists (2^log_rows x 2^log_chunks), brings
// for all of them 128 pixels of grad and of input into shared memory, and walks the tiles of
// pixels, every `splits`th. A warp keeps up to kSteps steps of one row tile in registers, 64 sums a
// lane; where a row tile's warps can't hold all, another block (`part`) has the rest. The splits'
// sums are added by a second kernel, in order: no atomics, the same bits every time.
//
// Cost: 2 · K · 4 · 8 V · pixels flops; from the second cache, for each 128 pixels and each group,
// 128 · 2^log_rows · V · 2 bytes of grad and the halo's pixels · 2^log_chunks · 64 of input, which
// is why a group is as large as shared memory and registers allow.

constexpr int kTileGradientWarps = 16;
constexpr int kTileGradientThreads = 32 * kTileGradientWarps;
constexpr int64_t gradient_steps(int64_t vector) { return 64 / vector; }  // kSteps: 4 or 2

struct TileGradientPlan {
  TilePlan t;                    // pixels, chunks and row tiles; the rest is of the forward kernel
  int log_rows, log_chunks;      // row tiles, lists of 32 channels a group: 2^ of these
  int row_groups, chunk_groups;  // their product: groups
  int parts;                     // blocks that a group may need for all its steps
  int grad_pitch;                // bytes a pixel
  int input_bytes;               // of a buffer, and behind them grad
  int buffer_bytes;
  int buffers;  // 1 or 2
  int shared_bytes;
};

// Steps of a row tile that its warps hold.
inline int64_t gradient_room(int64_t vector, int log_rows) {
  return (kTileGradientWarps >> log_rows) * gradient_steps(vector);
}

// The group with the fewest bytes a list: of those that fit, and with two buffers where they do.
inline TileGradientPlan plan_tile_gradient(const TileProblem& p, int64_t shared_limit) {
  const Geometry& g = p.g;
  const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
  TileGradientPlan best{};
  double best_cost = 0;
  const TilePlan tiles = plan_tiles(p, shared_limit);
  const double steps = static_cast<double>(p.steps) / tiles.row_tiles / tiles.chunks;  // of a list
  for (int log_rows = 0; (1 << log_rows) <= kTileGradientWarps; ++log_rows) {
    for (int log_chunks = 0; log_chunks <= 3; ++log_chunks) {
      TileGradientPlan d{};
      d.t = tiles;
      d.log_rows = log_rows, d.log_chunks = log_chunks;
      const int64_t rows = int64_t{1} << log_rows, chunks = int64_t{1} << log_chunks;
      if (log_rows + log_chunks > 0 &&
          (rows >= 2 * tiles.row_tiles || chunks >= 2 * tiles.chunks)) {
        continue;
      }
      const int64_t room = gradient_room(g.vector, log_rows);
      d.row_groups = static_cast<int>(parts(tiles.row_tiles, rows));
      d.chunk_groups = static_cast<int>(parts(tiles.chunks, chunks));
      d.parts = static_cast<int>(
          parts(std::min<int64_t>(chunks, tiles.chunks) * g.taps_h * g.taps_w, room));
      // 16 bytes more, so that pixels that are read together lie in different banks.
      d.grad_pitch = static_cast<int>(rows * g.vector * 2 + 16);
      const int64_t input = chunks * tiles.positions * kPositionBytes;
      const int64_t buffer = input + int64_t{kTilePixels} * d.grad_pitch;
      // Places of the warps' blocks; two tables of where the positions' pixels are.
      const int64_t tables = 4 * (64 / 4 * kTileGradientWarps + int64_t{2} * tiles.positions);
      d.buffers = 2 * buffer + tables <= shared_limit ? 2 : 1;
      const int64_t shared = d.buffers * buffer + tables;
      if (shared > INT32_MAX) continue;
      d.input_bytes = static_cast<int>(input), d.buffer_bytes = static_cast<int>(buffer);
      d.shared_bytes = static_cast<int>(shared);
      // A quarter more steps than the average list's may well be somewhere, and then need a part.
      const int64_t full = static_cast<int64_t>(1.25 * steps * static_cast<double>(chunks));
      const double again = static_cast<double>(full / room + 1);
      const double cost =
          static_cast<double>(buffer) / static_cast<double>(rows * chunks) * again / d.buffers;
      const bool fits = shared <= shared_limit;
      if (best.buffers == 0 || (fits && (cost < best_cost || best.shared_bytes > shared_limit))) {
        best = d;
        best_cost = cost;
      }
    }
  }
  return best;
}

// ---- Whole op -----------------------------------------------------------------------------------

void run_cuda(const TileProblem& problem, TileType type, int device, uintptr_t stream);

// dvalues from the problem's input, values, places and starts and from grad; bias, residual, slopes
// and output are not looked at.
void run_gradient_cuda(const TileProblem& problem, TileType type, const void* grad, void* dvalues,
                       int device, uintptr_t stream);

}  // namespace gansparse::sparse_conv2d
