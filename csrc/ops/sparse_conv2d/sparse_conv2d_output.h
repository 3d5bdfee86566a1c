// SPDX-License-Identifier: Apache-2.0
// sparse_conv2d on the CPU: sums to pictures. What `Simd` is: sparse_conv2d_simd.h.
#pragma once

#include <cstdint>

#include "ops/sparse_conv2d/sparse_conv2d.h"
#include "ops/sparse_conv2d/sparse_conv2d_input.h"

namespace gansparse::sparse_conv2d {
namespace {

// The sums of four neighbouring columns, from lanes into runs of neighbouring pixels.
template <class Simd>
[[gnu::always_inline]] inline void load_runs(const float* sums, typename Simd::Reg* four) {
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) four[x] = Simd::load(sums + x * kLanes);
  Simd::transpose(four);
}

// The sums of one row, from lanes into picture order: [lanes_n][lanes_y · D][lanes_x · D].
template <class Simd, int kPatch>
void unpack(const Plan& plan, const float* sums, const Corners& corners, float* pixels) {
  const int64_t pitch = plan.lanes_x * kPatch;
  if constexpr (kPatch == 4) {
    for (int y = 0; y < kPatch; ++y, sums += kPatch * kLanes, pixels += pitch) {
      for (int part = 0; part < kLanes / Simd::kWidth; ++part) {
        typename Simd::Reg four[4];
        load_runs<Simd>(sums + part * Simd::kWidth, four);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          if (plan.lanes_x >= 4) {
            Simd::store(pixels + corners.at[4 * q] + part * Simd::kWidth, four[q]);
          } else {
            Simd::store_pieces(pixels, corners.at + 4 * q + part * (Simd::kWidth / 4), four[q]);
          }
        }
      }
    }
  } else {
#pragma GCC unroll 16
    for (int u = 0; u < kLanes; ++u) {
      const float* const from = sums + u % 4 * 4 + u / 4;
      float* const to = pixels + corners.at[u];
#pragma GCC unroll 4
      for (int i = 0; i < kPatch * kPatch; ++i)
        to[i / kPatch * pitch + i % kPatch] = from[i * kLanes];
    }
  }
}

// to[2 · i] = even[i] + biases[0], to[2 · i + 1] = odd[i] + biases[1]: the compiler makes vectors
// of it.
inline void interleave(const float* __restrict__ even, const float* __restrict__ odd,
                       const float* biases, int64_t n, float* __restrict__ to) {
  const float even_bias = biases[0], odd_bias = biases[1];
  for (int64_t i = 0; i < n; ++i) {
    to[2 * i] = even[i] + even_bias;
    to[2 * i + 1] = odd[i] + odd_bias;
  }
}

// What happens to the sums of one output channel on their way to the output.
struct End {
  float bias, slope;
  const float* residual;  // as far from its start as the output is, or null
};

template <class Simd, Activation kActivation>
inline void write_vector(typename Simd::Reg z, const End& end, int64_t at, float* output) {
  const auto zero = Simd::zero();
  z = Simd::add(z, Simd::set(end.bias));
  if (end.residual != nullptr) z = Simd::add(z, Simd::load(end.residual + at));
  if constexpr (kActivation == Activation::kRelu) z = Simd::max(zero, z);
  if constexpr (kActivation == Activation::kLeaky) {
    z = Simd::mul_add(Simd::set(end.slope), Simd::min(zero, z), Simd::max(zero, z));
  }
  Simd::store(output + at, z);
}

template <class Simd, Activation kActivation>
inline void write_pixels(const float* from, int64_t n, const End& end, int64_t at, float* output) {
  int64_t i = 0;
  for (; i + Simd::kWidth <= n; i += Simd::kWidth) {
    write_vector<Simd, kActivation>(Simd::load(from + i), end, at + i, output);
  }
  const float* const residual = end.residual;
  output += at;
  for (; i < n; ++i) {
    float z = from[i] + end.bias;
    if (residual != nullptr) z += residual[at + i];
    if constexpr (kActivation == Activation::kRelu) z = z < 0 ? 0 : z;
    if constexpr (kActivation == Activation::kLeaky) z = z < 0 ? end.slope * z : z;
    output[i] = z;
  }
}

// Writes output channels of a tile of 4 x 4 patches, four or more in a row, that lies inside the
// output: straight from the registers that put the pixels in order. Elsewhere they go through a
// picture of their own, and a layer takes up to 7 % longer.
template <class Simd, Activation kActivation>
void write_whole(const Problem& p, const Plan& plan, const Tile& tile, int64_t first, int64_t rows,
                 const float* sums) {
  const int64_t plane = p.out_height * p.out_width;
  const Corners corners(plan, p.g.out_channels * plane, 4 * p.out_width, 4);
  int64_t at = (tile.n * p.g.out_channels + first) * plane + tile.y * p.out_width + tile.x;
  for (int64_t o = first; o < least(first + rows, p.g.out_channels); ++o, at += plane) {
    const End end{p.bias == nullptr ? 0.0f : p.bias[o], p.slopes[o * p.slope_step], p.residual};
    for (int y = 0; y < 4; ++y, sums += 4 * kLanes) {
      for (int part = 0; part < kLanes / Simd::kWidth; ++part) {
        typename Simd::Reg four[4];
        load_runs<Simd>(sums + part * Simd::kWidth, four);
        const int64_t line = at + y * p.out_width + part * Simd::kWidth;
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          write_vector<Simd, kActivation>(four[q], end, line + corners.at[4 * q], p.output);
        }
      }
    }
  }
}

// Writes a chunk's output channels of one tile.
template <class Simd, int kPatch, int kUp, Activation kActivation>
void write_chunk(const Problem& p, const Plan& plan, const Tile& tile, int64_t chunk,
                 const float* sums) {
  constexpr int64_t kRowFloats = kPatch * kPatch * kLanes;
  const int64_t high = plan.lanes_y * kPatch, wide = plan.lanes_x * kPatch;
  const Corners corners(plan, high * wide, kPatch * wide, kPatch);
  alignas(64) float pixels[kUp * kUp][kRowFloats];
  alignas(64) float line[kUp * kPatch * kLanes];
  const int64_t vector = p.g.vector;
  const int64_t first = chunk * kChunkRows;
  const int64_t rows = least(kChunkRows, plan.matrix_rows - first);
  const int64_t pictures = least(plan.lanes_n, p.batch - tile.n);
  const int64_t lines = least(high, (p.out_height - 1) / kUp + 1 - tile.y);
  const int64_t columns = least(wide * kUp, p.out_width - tile.x * kUp);
  if constexpr (kPatch == 4 && kUp == 1) {
    const bool whole = columns == wide && lines == high && pictures == plan.lanes_n;
    if (whole && plan.lanes_x >= 4) {
      return write_whole<Simd, kActivation>(p, plan, tile, first, rows, sums);
    }
  }
  for (int64_t i = 0; i < rows / (kUp * kUp); ++i) {
    const int64_t o = first / (kUp * kUp) + i;
    if (o >= p.g.out_channels) return;
    for (int64_t phase = 0; phase < kUp * kUp; ++phase) {
      const int64_t row = (i / vector * kUp * kUp + phase) * vector + i % vector;
      unpack<Simd, kPatch>(plan, sums + row * kRowFloats, corners, pixels[phase]);
    }
    float biases[kUp * kUp] = {};
    for (int64_t phase = 0; phase < kUp * kUp && p.bias != nullptr; ++phase) {
      biases[phase] = p.bias[p.bias_step ? o * kUp * kUp + phase : o];
    }
    const End end{kUp == 1 ? biases[0] : 0.0f, p.slopes[o * p.slope_step], p.residual};
    for (int64_t n = 0; n < pictures; ++n) {
      const int64_t plane = ((tile.n + n) * p.g.out_channels + o) * p.out_height;
      int64_t at = (plane + tile.y * kUp) * p.out_width + tile.x * kUp;
      int64_t from = n * high * wide;
      for (int64_t y = 0; y < lines; ++y, from += wide) {
        if constexpr (kUp == 1) {
          write_pixels<Simd, kActivation>(pixels[0] + from, columns, end, at, p.output);
          at += p.out_width;
        } else {
          for (int64_t a = 0; a < kUp && (tile.y + y) * kUp + a < p.out_height; ++a) {
            const float* const even = pixels[a * kUp] + from;
            interleave(even, pixels[a * kUp + 1] + from, biases + a * kUp, wide, line);
            write_pixels<Simd, kActivation>(line, columns, end, at, p.output);
            at += p.out_width;
          }
        }
      }
    }
  }
}

template <class Simd, int kPatch, Activation kActivation>
void write_chunk(const Problem& p, const Plan& plan, const Tile& tile, int64_t chunk,
                 const float* sums) {
  if (p.g.upscale == 1)
    return write_chunk<Simd, kPatch, 1, kActivation>(p, plan, tile, chunk, sums);
  write_chunk<Simd, kPatch, 2, kActivation>(p, plan, tile, chunk, sums);
}

template <class Simd, int kPatch>
void finish_chunk(const Problem& p, const Plan& plan, const Tile& tile, int64_t chunk,
                  const float* sums) {
  switch (p.activation) {
    case Activation::kNone:
      return write_chunk<Simd, kPatch, Activation::kNone>(p, plan, tile, chunk, sums);
    case Activation::kRelu:
      return write_chunk<Simd, kPatch, Activation::kRelu>(p, plan, tile, chunk, sums);
    case Activation::kLeaky:
      return write_chunk<Simd, kPatch, Activation::kLeaky>(p, plan, tile, chunk, sums);
  }
}

}  // namespace
}  // namespace gansparse::sparse_conv2d
