// SPDX-License-Identifier: Apache-2.0
// instance_norm: each channel of each picture normed by its own statistics; then what follows, in
// the same pass over a plane that is still in the cache.
//
//   y[n, c] = activation(residual[n, c] + weight[c] · (x[n, c] − μ) / √(σ² + eps) + bias[c])
//
// with μ and σ² (of all H · W pixels, not of one less) of the plane x[n, c]; activations as in
// sparse_conv2d.h.
//
// | argument       | shape              | dtype   | role  |
// |----------------|--------------------|---------|-------|
// | input          | [N, C, H, W]       | float32 | read  |
// | weight, bias   | [C], or None       | float32 | read  |
// | residual       | [N, C, H, W], None | float32 | read  |
// | slope          | number, [1] or [C] | float32 | read  |
// | out            | [N, C, H, W]       | float32 | write |
//
// Both moments are of x less a number near them, so that nothing cancels: first of x − x₀, x₀ the
// plane's first pixel, which gives m, μ to some digits; then of x − m, whose squares and sum are
// the variance and what m lacks. Sums are float32 over 4096 pixels at most, double from there on.
//
// Cost: a plane is read three times and written once; it is in the first or second cache by then.
#pragma once

#include "ops/sparse_conv2d/sparse_conv2d.h"

namespace gansparse::sparse_conv2d {

struct NormProblem {
  int64_t batch, channels, pixels;  // N, C, H · W
  const float* input;
  const float* weight;    // [C], or null
  const float* bias;      // [C], or null
  const float* residual;  // [N, C, H, W], or null
  float eps;
  Activation activation;
  const float* slopes;  // [1] or [C]; used by kLeaky
  int64_t slope_step;   // 0 or 1
  float* output;
};

// Planes [begin, end) of N · C.
using RunNorm = void (*)(const NormProblem& p, int64_t begin, int64_t end);
void run_norm_avx2(const NormProblem& p, int64_t begin, int64_t end);
void run_norm_avx512(const NormProblem& p, int64_t begin, int64_t end);

void run_norm(const NormProblem& problem);

}  // namespace gansparse::sparse_conv2d
