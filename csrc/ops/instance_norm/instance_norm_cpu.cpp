// SPDX-License-Identifier: Apache-2.0
// instance_norm on the CPU, a picture a thread: sums in float64, three passes.
#include <cmath>
#include <vector>

#include "common/parallel.h"
#include "ops/instance_norm/instance_norm.h"

namespace gansparse::instance_norm {
namespace {

float activate(const Problem& p, float z, int64_t c) {
  switch (p.activation) {
    case Activation::kRelu:
      return z < 0 ? 0.0f : z;  // NaN passes
    case Activation::kLeaky:
      return z >= 0 ? z : z * (p.slopes ? p.slopes[c * p.slope_step] : p.slope);
    case Activation::kTanh:
      return std::tanh(z);
    case Activation::kNone:
      break;
  }
  return z;
}

void norm_picture(const Problem& p, int64_t n) {
  const int64_t begin = n * p.pixels * p.channels;
  const float* x = static_cast<const float*>(p.input) + begin;
  const float* residual = p.residual ? static_cast<const float*>(p.residual) + begin : nullptr;
  float* y = static_cast<float*>(p.output) + begin;
  const auto size = static_cast<size_t>(p.channels);
  std::vector<double> mean(size), squares(size);
  for (int64_t i = 0; i < p.pixels; ++i) {
    for (int64_t c = 0; c < p.channels; ++c) mean[c] += x[i * p.channels + c];
  }
  for (double& m : mean) m /= static_cast<double>(p.pixels);
  for (int64_t i = 0; i < p.pixels; ++i) {
    for (int64_t c = 0; c < p.channels; ++c) {
      const double distance = x[i * p.channels + c] - mean[c];
      squares[c] += distance * distance;
    }
  }
  for (int64_t c = 0; c < p.channels; ++c) {
    const double scale = 1 / std::sqrt(squares[c] / static_cast<double>(p.pixels) + p.eps);
    squares[c] = scale * (p.weight ? p.weight[c] : 1.0f);
  }
  for (int64_t i = 0; i < p.pixels; ++i) {
    for (int64_t c = 0; c < p.channels; ++c) {
      const int64_t at = i * p.channels + c;
      double z = (x[at] - mean[c]) * squares[c] + (p.bias ? p.bias[c] : 0.0f);
      if (residual) z += residual[at];
      y[at] = activate(p, static_cast<float>(z), c);
    }
  }
}

}  // namespace

void run_cpu(const Problem& problem) {
  parallel_for(problem.batch, 1, [&problem](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) norm_picture(problem, n);
  });
}

}  // namespace gansparse::instance_norm
