// SPDX-License-Identifier: Apache-2.0
// What the borders of lists, tiles and Winograd's op check alike.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "common/check.h"
#include "ops/sparse_conv2d/sparse_conv2d.h"

namespace gansparse::sparse_conv2d {

inline const Check check("sparse_conv2d");

inline std::string text(const std::vector<int64_t>& numbers) {
  std::string out = "[";
  for (size_t i = 0; i < numbers.size(); ++i) out += (i ? ", " : "") + std::to_string(numbers[i]);
  return out + "]";
}

// Of a dtype and shape, beside the input.
inline void check_shape(const TensorView& view, DType dtype, const std::vector<int64_t>& shape,
                        const char* name, Device device) {
  bool fits = view.dtype == dtype && view.ndim == static_cast<int>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = view.shape[i] == shape[i];
  if (!fits || view.device != device) {
    refuse(check.op(), name,
           std::string("be ") + name_of(dtype) + " " + text(shape) + " on " + device.name(),
           view.text());
  }
}

// The same, without gaps.
inline void check_array(const TensorView& view, DType dtype, const std::vector<int64_t>& shape,
                        const char* name, Device device = {}) {
  check_shape(view, dtype, shape, name, device);
  check.contiguous(view, name);
}

inline void check_aligned(const TensorView& view, const char* name) {
  if (reinterpret_cast<uintptr_t>(view.data) % 16 != 0) {
    refuse(check.op(), name, "begin at a multiple of 16 bytes", view.text() + " elsewhere");
  }
}

// [N, C, H, W] that lies as [N, H, W, C], from a multiple of 16 bytes on.
inline void check_channels_last(const TensorView& view, const char* name) {
  int64_t expected = 1;
  bool fits = true;
  for (const int i : {1, 3, 2, 0}) {
    fits = fits && (view.shape[i] == 1 || view.strides[i] == expected);
    expected *= view.shape[i];
  }
  if (!fits && view.numel() > 0) refuse(check.op(), name, "be channels_last", view.text());
  check_aligned(view, name);
}

// Memory that is written is nobody else's.
inline void check_apart(const TensorView& out, const TensorView& other, const char* name) {
  const auto bytes = [](const TensorView& view) { return view.numel() * size_of(view.dtype); };
  const auto begin = [](const TensorView& view) { return reinterpret_cast<uintptr_t>(view.data); };
  const bool apart = out.data == nullptr || other.data == nullptr ||
                     begin(out) + bytes(out) <= begin(other) ||
                     begin(other) + bytes(other) <= begin(out);
  check.that(apart, "out", std::string("not overlap ") + name, out.text());
}

inline Geometry check_geometry(const std::vector<int64_t>& numbers) {
  const auto that = [](bool holds, const char* name, const char* rule, int64_t got) {
    check.that(holds, std::string("weight.geometry.") + name, rule, std::to_string(got));
  };
  check.that(numbers.size() == kGeometryNumbers, "weight.geometry", "have 14 numbers",
             std::to_string(numbers.size()));
  static_assert(sizeof(Geometry) == kGeometryNumbers * sizeof(int64_t));
  Geometry g;
  std::memcpy(&g, numbers.data(), sizeof g);
  const auto in = [](int64_t x, int64_t low, int64_t high) { return x >= low && x <= high; };
  constexpr int64_t kMost = int64_t{1} << 20;
  that(in(g.out_channels, 1, kMost), "out_channels", "be 1 to 2^20", g.out_channels);
  that(in(g.in_channels, 1, kMost), "in_channels", "be 1 to 2^20", g.in_channels);
  that(in(g.taps_h, 1, kMostTaps), "taps_h", "be 1 to 15", g.taps_h);
  that(in(g.taps_w, 1, kMostTaps), "taps_w", "be 1 to 15", g.taps_w);
  that(in(g.stride, 1, 2), "stride", "be 1 or 2", g.stride);
  that(in(g.upscale, 1, 2), "upscale", "be 1 or 2", g.upscale);
  that(in(g.pad_h, 0, kMost), "pad_h", "be 0 to 2^20", g.pad_h);
  that(in(g.pad_w, 0, kMost), "pad_w", "be 0 to 2^20", g.pad_w);
  that(in(g.growth_h, -kMost, kMost), "growth_h", "be at most 2^20", g.growth_h);
  that(in(g.growth_w, -kMost, kMost), "growth_w", "be at most 2^20", g.growth_w);
  const int64_t padding = static_cast<int64_t>(g.padding);
  that(in(padding, 0, 2), "padding", "be 0 (zeros), 1 (reflect) or 2 (replicate)", padding);
  that(g.patch == 1 || g.patch == 2 || g.patch == 4, "patch", "be 1, 2 or 4", g.patch);
  that(g.vector == 1 || (in(g.vector, 4, 128) && 128 % g.vector == 0), "vector",
       "be 1, 4, 8, 16, 32, 64 or 128", g.vector);
  that(in(g.block, 1, kMost), "block", "be 1 to 2^20", g.block);
  const int64_t rows = g.patch - 1 + (g.taps_h + g.stride - 1) / g.stride;
  const int64_t columns = g.patch - 1 + (g.taps_w + g.stride - 1) / g.stride;
  const int64_t floats = g.stride * g.stride * rows * columns * kLanes;
  that(g.block * floats <= kScratchFloats, "block",
       "be so few channels that they fit into the scratch", g.block);
  return g;
}

}  // namespace gansparse::sparse_conv2d
