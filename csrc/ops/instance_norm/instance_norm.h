// SPDX-License-Identifier: Apache-2.0
// instance_norm: each picture's channel brought to mean 0 and variance 1, and what follows it.
//
// With mean and variance (of all pixels, divided by their number) over the H · W pixels of a
// channel of one picture (Ulyanov et al. 2016):
//   z[n, c, i] = (x[n, c, i] − mean[n, c]) / √(variance[n, c] + eps) · weight[c] + bias[c]
//              + residual[n, c, i]
//   y = z, max(z, 0), z where z ≥ 0 and slope · z elsewhere (leaky_relu; slope[c]: prelu), tanh(z)
//
// | argument   | shape                | dtype                               | role  |
// |------------|----------------------|-------------------------------------|-------|
// | input      | [N, C, H, W]         | T, contiguous; channels_last (CUDA) | read  |
// | weight     | [C], or None: 1      | float32                             | read  |
// | bias       | [C], or None: 0      | float32                             | read  |
// | eps        | number               | float32                             | ≥ 0   |
// | residual   | [N, C, H, W], or None | T, laid out as the input           | read  |
// | activation | name                 | none, relu, leaky_relu, prelu, tanh |       |
// | slope      | number; prelu: [1], [C] | float32                          | read  |
// | moments    | [N, P, 3, C], or None | float32 (CUDA)                      | read  |
//
// The result is a new [N, C, H, W] T, laid out as the input. T is float32 on the CPU, float16 or
// bfloat16 on CUDA, where C is a multiple of 8. The variance is a sum of squared distances from the
// mean or from a number near it, never a difference of large sums: what a large mean costs is only
// the rounding of the input.
//
// On CUDA, two kernels. A block of the first has 64 channels of a tile of pixels of one picture; it
// leaves their mean and the sum of their squared distances from it, in registers in two passes over
// 4 pixels a thread at a time, joined by Chan et al. 1983, eq. 1.5. The second joins a picture's
// tiles, in order, and applies. No atomics: the same bits every time. Where a convolution has left
// `moments` of what it wrote (common/moments.cuh; sparse_conv2d_tiles.h) the first kernel is not
// needed; of more than kMostTiles parts another one joins some first.
//
// Cost: the input is read twice and the output written once: 6 bytes an element of 16 bits, and 2
// of a residual; with moments 4. 12 bytes for each channel and tile in between. On the CPU a plane
// is read three times and written once, in the first or second cache by then.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gansparse::instance_norm {

enum class Activation : int32_t { kNone, kRelu, kLeaky, kTanh };
enum class Type { kFloat16, kBFloat16 };

struct Problem {
  int64_t batch, pixels, channels;  // N, H · W, C
  const void* input;                // [N, H · W, C]; on the CPU [N, C, H · W]
  const float* weight;              // [C], or null
  const float* bias;                // [C], or null
  const void* residual;             // as the input, or null
  const float* slopes;              // [1] or [C], or null: slope
  int64_t slope_step;               // 0 or 1
  const float* moments;             // [N, P, 3, C], or null
  int64_t parts;                    // P
  float slope, eps;
  Activation activation;
  void* output;  // as the input
};

// ---- CUDA ---------------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kSlab = 64;                      // channels of a block, 8 a thread
constexpr int kRows = kThreads / (kSlab / 8);  // threads that share channels
constexpr int kEach = 4;                       // pixels of a thread at a time
constexpr int kRound = kRows * kEach;          // pixels of a block at a time
constexpr int64_t kMostTiles = 64;             // of a picture: each block of the last reads all

struct Plan {
  int rounds;        // of a tile
  int tiles, slabs;  // of a picture; their product times N fits into an int
};

// Tiles so small that `blocks` blocks are there, if they can be, and not more than kMostTiles.
inline Plan plan_tiles(const Problem& p, int64_t blocks) {
  const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
  Plan plan{};
  plan.slabs = static_cast<int>(parts(p.channels, kSlab));
  const int64_t wanted = std::clamp<int64_t>(parts(blocks, p.batch * plan.slabs), 1, kMostTiles);
  plan.rounds = static_cast<int>(parts(parts(p.pixels, kRound), wanted));
  plan.tiles = static_cast<int>(parts(p.pixels, int64_t{plan.rounds} * kRound));
  return plan;
}

// ---- Whole op -----------------------------------------------------------------------------------

// Planes [begin, end) of N · C.
void norm_planes_avx2(const Problem& p, int64_t begin, int64_t end);
void norm_planes_avx512(const Problem& p, int64_t begin, int64_t end);

void run_cpu(const Problem& problem);
void run_cuda(const Problem& problem, Type type, int device, uintptr_t stream);

}  // namespace gansparse::instance_norm
