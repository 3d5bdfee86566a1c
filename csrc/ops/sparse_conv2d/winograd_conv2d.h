// SPDX-License-Identifier: Apache-2.0
// winograd_conv2d: a dense convolution of 3 x 3 taps and stride 1 with a quarter of the
// multiplications; what sparse_conv2d does before and after it is the same.
//
// A patch of 4 x 4 outputs needs d, 6 x 6 inputs of each channel. With F(4 x 4, 3 x 3) of Winograd
// (Lavin and Gray 2016), at the points 0, ±a, ±b, ∞:
//   y[o] = Aᵀ (Σ_c (G W[o, c] Gᵀ) ⊙ (Bᵀ d[c] B)) A + bias and so on as in sparse_conv2d.h
// Each of the 36 products is a matrix product of [M, C] and [C, patches]. Which points decides how
// much is lost to rounding: with a = 3/4 and b = 3/2, whose powers here are exact, the largest
// error is 2e-6 to 4e-6 of the largest output (64 to 256 channels); with the usual 1 and 2 four
// times that, by oneDNN's direct convolution 3e-7.
//
// | argument   | shape                        | dtype   | role                    |
// |------------|------------------------------|---------|-------------------------|
// | input      | [N, C, H, W]                 | float32 | read                    |
// | values     | [36, M / 8, C, 8]            | float32 | read: G W Gᵀ            |
// | geometry   | of 3 x 3 taps, stride 1, patch 4, vector 8     |         |      |
// | bias, residual, activation, slope, out: as in sparse_conv2d.h                 |
//
// M rows are ordered as there, [O / 8][phase][8]. So a transposed convolution of stride 2 whose
// phases' window is 3 x 3, as that of 4 x 4 taps and padding 1 is, comes in as well.
//
// Cost: 72 · M · C flops a patch, and about 600 cycles a patch's channel for the transforms.
#pragma once

#include "ops/sparse_conv2d/sparse_conv2d.h"

namespace gansparse::sparse_conv2d {

constexpr float kA = 0.75f, kB = 1.5f;
constexpr int64_t kPositions = 36;
constexpr int64_t kWinogradRows = 8;      // of M side by side in `values`
constexpr int64_t kWinogradChannels = 8;  // in lanes at a time

// A thread's own memory, aligned to 64 bytes.
struct WinogradSpace {
  int64_t together;  // tiles that share the loads of the weights: 1 or 2
  float* staged;     // as Workspace has it
  float* scratch;    // [kWinogradChannels][6][6][16]
  float* inputs;     // [36][C][2][16] and a line after each of the 36
  float* outputs;    // [36][chunk's rows][2][16], likewise
  float* sums;       // [chunk's rows][4][4][16]
};

// Units [begin, end), of ⌈tiles / together⌉ · chunks: the chunks of the first tiles, then …
using RunWinograd = void (*)(const Problem& p, const Plan& plan, const WinogradSpace& space,
                             int64_t begin, int64_t end);
void run_winograd_avx2(const Problem& p, const Plan& plan, const WinogradSpace& space,
                       int64_t begin, int64_t end);
void run_winograd_avx512(const Problem& p, const Plan& plan, const WinogradSpace& space,
                         int64_t begin, int64_t end);

void run_winograd(const Problem& problem);

}  // namespace gansparse::sparse_conv2d
