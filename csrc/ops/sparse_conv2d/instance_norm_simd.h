// SPDX-License-Identifier: Apache-2.0
// instance_norm over vectors; what `Simd` is: sparse_conv2d_simd.h. Included after it by each file
// of an instruction set.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/sparse_conv2d/instance_norm.h"
#include "ops/sparse_conv2d/sparse_conv2d_simd.h"

namespace gansparse::sparse_conv2d {
namespace {

struct Moments {
  double sum, squares;
};

// Of x − shift; kSquares: or of nothing but their sum.
template <class Simd, bool kSquares>
Moments moments(const float* x, int64_t n, float shift) {
  constexpr int kWide = 4;  // vectors at a time, for the latency of an addition
  constexpr int64_t kStep = kWide * Simd::kWidth, kMost = 4096;
  const auto less = Simd::set(-shift);
  Moments made{0, 0};
  int64_t i = 0;
  while (i + kStep <= n) {
    const int64_t end = i + least(kMost, (n - i) / kStep * kStep);
    typename Simd::Reg sum[kWide], squares[kWide];
#pragma GCC unroll 4
    for (int k = 0; k < kWide; ++k) sum[k] = squares[k] = Simd::zero();
    for (; i < end; i += kStep) {
#pragma GCC unroll 4
      for (int k = 0; k < kWide; ++k) {
        const auto d = Simd::add(Simd::load(x + i + k * Simd::kWidth), less);
        sum[k] = Simd::add(sum[k], d);
        if constexpr (kSquares) squares[k] = Simd::mul_add(d, d, squares[k]);
      }
    }
    float lanes[2][Simd::kWidth];
    const auto fold = [](const typename Simd::Reg* r) {
      return Simd::add(Simd::add(r[0], r[1]), Simd::add(r[2], r[3]));
    };
    Simd::store(lanes[0], fold(sum));
    Simd::store(lanes[1], fold(squares));
    double sums[2][2] = {};  // even and odd lanes
    for (int k = 0; k < Simd::kWidth; ++k) {
      sums[0][k % 2] += lanes[0][k];
      if constexpr (kSquares) sums[1][k % 2] += lanes[1][k];
    }
    made.sum += sums[0][0] + sums[0][1], made.squares += sums[1][0] + sums[1][1];
  }
  for (; i < n; ++i) {
    const double d = x[i] - shift;
    made.sum += d, made.squares += d * d;
  }
  return made;
}

// activation((x − near) · scale + shift + residual), n floats.
template <class Simd, Activation kActivation>
void write_normed(const float* x, int64_t n, float near, float scale, float shift, float slope,
                  const float* residual, float* to) {
  const auto zero = Simd::zero(), less = Simd::set(-near), slopes = Simd::set(slope);
  const auto scales = Simd::set(scale), shifts = Simd::set(shift);
  int64_t i = 0;
  for (; i + Simd::kWidth <= n; i += Simd::kWidth) {
    auto z = Simd::mul_add(Simd::add(Simd::load(x + i), less), scales, shifts);
    if (residual != nullptr) z = Simd::add(z, Simd::load(residual + i));
    if constexpr (kActivation == Activation::kRelu) z = Simd::max(zero, z);
    if constexpr (kActivation == Activation::kLeaky) {
      z = Simd::mul_add(slopes, Simd::min(zero, z), Simd::max(zero, z));
    }
    Simd::store(to + i, z);
  }
  for (; i < n; ++i) {
    float z = (x[i] - near) * scale + shift;
    if (residual != nullptr) z += residual[i];
    if constexpr (kActivation == Activation::kRelu) z = z < 0 ? 0 : z;
    if constexpr (kActivation == Activation::kLeaky) z = z < 0 ? slope * z : z;
    to[i] = z;
  }
}

template <class Simd>
void run_norm_planes(const NormProblem& p, int64_t begin, int64_t end) {
  const int64_t n = p.pixels;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t c = plane % p.channels;
    const float* const x = p.input + plane * n;
    const double count = static_cast<double>(n);
    const float near = static_cast<float>(x[0] + moments<Simd, false>(x, n, x[0]).sum / count);
    const Moments about = moments<Simd, true>(x, n, near);
    const double rest = about.sum / count;  // the mean less near
    const double variance = about.squares / count - rest * rest;
    const double scale = (p.weight ? p.weight[c] : 1.0) / std::sqrt(variance + p.eps);
    const double shift = (p.bias ? p.bias[c] : 0.0) - rest * scale;
    const auto write = [&](auto run) {
      run(x, n, near, static_cast<float>(scale), static_cast<float>(shift),
          p.slopes[c * p.slope_step], p.residual ? p.residual + plane * n : nullptr,
          p.output + plane * n);
    };
    switch (p.activation) {
      case Activation::kNone:
        write(&write_normed<Simd, Activation::kNone>);
        break;
      case Activation::kRelu:
        write(&write_normed<Simd, Activation::kRelu>);
        break;
      case Activation::kLeaky:
        write(&write_normed<Simd, Activation::kLeaky>);
        break;
    }
  }
}

}  // namespace
}  // namespace gansparse::sparse_conv2d
