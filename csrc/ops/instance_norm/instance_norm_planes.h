// SPDX-License-Identifier: Apache-2.0
// instance_norm on the CPU, over vectors of kBytes bytes (the compiler's own, so one text serves
// all instruction sets). Included by a translation unit of each.
//
// Both moments are of x less a number near them, so that nothing cancels: first of x − x₀, x₀ the
// plane's first pixel, which gives m, the mean to some digits; then of x − m, whose squares and sum
// are the variance and what m lacks. Sums are float32 over 4096 pixels at most, double from there.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "ops/instance_norm/instance_norm.h"

namespace gansparse::instance_norm {
namespace {

template <int kBytes>
struct Vectors {
  typedef float Reg __attribute__((vector_size(kBytes)));
  static constexpr int kWidth = kBytes / 4;

  static Reg load(const float* from) {
    Reg r;
    std::memcpy(&r, from, sizeof(r));
    return r;
  }
  static void store(float* to, const Reg& r) { std::memcpy(to, &r, sizeof(r)); }
};

struct Moments {
  double sum, squares;
};

// Of x − shift; without kSquares of nothing but their sum.
template <int kBytes, bool kSquares>
Moments moments(const float* x, int64_t n, float shift) {
  using V = Vectors<kBytes>;
  constexpr int kWide = 4;  // vectors at a time, for the latency of an addition
  constexpr int64_t kStep = kWide * V::kWidth, kMost = 4096;
  Moments made{0, 0};
  int64_t i = 0;
  while (i + kStep <= n) {
    const int64_t whole = (n - i) / kStep * kStep, end = i + (whole < kMost ? whole : kMost);
    typename V::Reg sum[kWide] = {}, squares[kWide] = {};
    for (; i < end; i += kStep) {
#pragma GCC unroll 4
      for (int k = 0; k < kWide; ++k) {
        const typename V::Reg d = V::load(x + i + k * V::kWidth) - shift;
        sum[k] += d;
        if constexpr (kSquares) squares[k] += d * d;
      }
    }
    const typename V::Reg sums = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    const typename V::Reg all = (squares[0] + squares[1]) + (squares[2] + squares[3]);
    for (int k = 0; k < V::kWidth; ++k) {
      made.sum += sums[k];
      if constexpr (kSquares) made.squares += all[k];
    }
  }
  for (; i < n; ++i) {
    const double d = x[i] - shift;
    made.sum += d, made.squares += d * d;
  }
  return made;
}

// Of a number or of a vector; NaN passes.
template <Activation kActivation, class T>
T activated(T z, float slope) {
  if constexpr (kActivation == Activation::kRelu) return z < 0 ? T{} : z;
  if constexpr (kActivation == Activation::kLeaky) return z < 0 ? z * slope : z;
  return z;
}

// activation((x − near) · scale + shift + residual), n floats.
template <int kBytes, Activation kActivation>
void write_normed(const float* x, int64_t n, float near, float scale, float shift, float slope,
                  const float* residual, float* to) {
  using V = Vectors<kBytes>;
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) {
    typename V::Reg z = (V::load(x + i) - near) * scale + shift;
    if (residual != nullptr) z += V::load(residual + i);
    V::store(to + i, activated<kActivation>(z, slope));
  }
  for (; i < n; ++i) {
    float z = (x[i] - near) * scale + shift;
    if (residual != nullptr) z += residual[i];
    to[i] = activated<kActivation>(z, slope);
  }
  if constexpr (kActivation == Activation::kTanh) {
    for (i = 0; i < n; ++i) to[i] = std::tanh(to[i]);
  }
}

template <int kBytes>
void norm_planes(const Problem& p, int64_t begin, int64_t end) {
  const int64_t n = p.pixels;
  const auto at = [n](const void* planes, int64_t plane) {
    return planes == nullptr ? nullptr : static_cast<const float*>(planes) + plane * n;
  };
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t c = plane % p.channels;
    const float* const x = at(p.input, plane);
    const double count = static_cast<double>(n);
    const float near = static_cast<float>(x[0] + moments<kBytes, false>(x, n, x[0]).sum / count);
    const Moments about = moments<kBytes, true>(x, n, near);
    const double rest = about.sum / count;  // the mean less near
    const double variance = about.squares / count - rest * rest;
    const double scale = (p.weight ? p.weight[c] : 1.0) / std::sqrt(variance + p.eps);
    const double shift = (p.bias ? p.bias[c] : 0.0) - rest * scale;
    const auto write = [&](auto run) {
      run(x, n, near, static_cast<float>(scale), static_cast<float>(shift),
          p.slopes ? p.slopes[c * p.slope_step] : p.slope, at(p.residual, plane),
          static_cast<float*>(p.output) + plane * n);
    };
    switch (p.activation) {
      case Activation::kNone:
        write(&write_normed<kBytes, Activation::kNone>);
        break;
      case Activation::kRelu:
        write(&write_normed<kBytes, Activation::kRelu>);
        break;
      case Activation::kLeaky:
        write(&write_normed<kBytes, Activation::kLeaky>);
        break;
      case Activation::kTanh:
        write(&write_normed<kBytes, Activation::kTanh>);
        break;
    }
  }
}

}  // namespace
}  // namespace gansparse::instance_norm
