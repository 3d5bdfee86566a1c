// SPDX-License-Identifier: Apache-2.0
// The innermost loops of sparse_conv2d: multiply and add what is in the scratch. Their sums must
// stay in registers; tests/kernels/test_sums_stay_in_registers.py looks whether they do. What
// `Simd` is: sparse_conv2d_simd.h.
#pragma once

#include <cstdint>

#include "ops/sparse_conv2d/sparse_conv2d.h"

namespace gansparse::sparse_conv2d {
namespace {

// The lists of one chunk and one block of channels.
struct Lists {
  const Problem& p;
  int64_t first, last;
  int64_t first_row;  // of the chunk
};

// How the D · D · 16 sums of an output row go through the registers: in passes of whole rows of
// pixels, or of parts of one. Where they are few, several weights have partial sums of their own.
template <class Simd, int kPatch, int kMost>
struct Pass {
  static constexpr int kWidth = Simd::kWidth;
  static constexpr int kRow = kPatch * kLanes / Simd::kWidth;  // registers a row of pixels
  static constexpr int kAll = kPatch * kRow;
  static constexpr int kSums = kAll < kMost ? kAll : kMost;
  static constexpr int kColumns = kRow < kSums ? kRow : kSums;
  static constexpr int kPasses = kAll / kSums;
  static constexpr int kPartial = kMost / kSums;
  static_assert(kAll % kSums == 0 && kSums % kColumns == 0 && kRow % kColumns == 0,
                "a pass is whole rows of pixels, or an even part of one");
};

// Where the rows of pixels of a pass begin in the scratch; a weight's offset is added to each. With
// kSpan, the vectors of a row of the scratch, one pointer is enough for all of them.
template <class P, int kSpan = 0>
struct Rows {
  static constexpr int kCount = kSpan > 0 ? 1 : P::kSums / P::kColumns;
  const float* begin[kCount];

  Rows(const float* scratch, int pass, int64_t row_floats) {
    if (kSpan > 0) row_floats = kSpan * kLanes;
    begin[0] =
        scratch + pass * P::kSums / P::kRow * row_floats + pass * P::kSums % P::kRow * P::kWidth;
    for (int y = 1; y < kCount; ++y) begin[y] = begin[y - 1] + row_floats;
    // Unknown to the compiler from here on: it would add up every address of the loop beforehand,
    // and keep them where the sums should be.
#pragma GCC unroll 4
    for (int y = 0; y < kCount; ++y) asm("" : "+r"(begin[y]));
  }
  // Of register i of the pass.
  const float* at(int i, int64_t offset) const {
    const int row = i / P::kColumns, column = i % P::kColumns * P::kWidth;
    return begin[row % kCount] + offset + ((row - row % kCount) * kSpan * kLanes + column);
  }
};

// V = 1: each row has a pattern of its own. Two loads go to the first cache at once if they do not
// want the same bank, as neighbours do not: so the order of the loop's loads is kept as written,
// which is worth 12 % of this loop on Zen 5. From one pointer the compiler keeps it by itself, and
// a layer of 3 x 3 takes up to 3 % less on Zen 4.
template <class Simd, int kPatch, int kSpan = 0>
[[gnu::noinline]] void multiply_element(const Lists& lists, const float* scratch,
                                        int64_t row_floats, bool add, float* sums) {
  using Reg = typename Simd::Reg;
  using P = Pass<Simd, kPatch, Simd::kSums>;
  // Half of the registers hide the latency already, as the loads are what the loop waits for.
  constexpr int kSums = P::kSums, kPartial = P::kPartial > 1 ? P::kPartial / 2 : 1;
  for (int64_t list = lists.first; list < lists.last; ++list) {
    const float* const values = lists.p.values;
    const uint16_t* const offsets = lists.p.offsets;
    const int64_t begin = lists.p.starts[list], end = lists.p.starts[list + 1];
    float* row = sums + (lists.p.rows[list] - lists.first_row) * (kPatch * kPatch * kLanes);
    for (int pass = 0; pass < P::kPasses; ++pass, row += kSums * Simd::kWidth) {
      const Rows<P, kSpan> from(scratch, pass, row_floats);
      Reg sum[kPartial][kSums];
#pragma GCC unroll 16
      for (int i = 0; i < kPartial * kSums; ++i) sum[i / kSums][i % kSums] = Simd::zero();
      if (add) {
#pragma GCC unroll 16
        for (int i = 0; i < kSums; ++i) sum[0][i] = Simd::load(row + i * Simd::kWidth);
      }
      const auto add_weight = [&](int64_t k, Reg* to) {
        const int64_t offset = offsets[k];
        const Reg weight = Simd::set(values[k]);
#pragma GCC unroll 16
        for (int i = 0; i < kSums; ++i) {
          to[i] = Simd::mul_add(weight, Simd::load(from.at(i, offset)), to[i]);
          if (kSpan == 0) Simd::in_order(to[i]);
        }
      };
      int64_t k = begin;
      for (; k + kPartial <= end; k += kPartial) {
#pragma GCC unroll 16
        for (int u = 0; u < kPartial; ++u) add_weight(k + u, sum[u]);
      }
#pragma GCC unroll 16
      for (int u = 0; u < kPartial - 1; ++u) {
        if (k + u < end) add_weight(k + u, sum[u]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kSums; ++i) {
        constexpr int kHalf = kPartial / 2;
#pragma GCC unroll 16
        for (int u = 0; u < kHalf; ++u) sum[u][i] = Simd::add(sum[u][i], sum[kHalf + u][i]);
#pragma GCC unroll 16
        for (int u = 1; u < kHalf; ++u) sum[0][i] = Simd::add(sum[0][i], sum[u][i]);
        Simd::store(row + i * Simd::kWidth, sum[0][i]);
      }
    }
  }
}

// V a multiple of kTogether: so many rows at a time share the loads of the input.
template <class Simd, int kPatch, int kTogether>
[[gnu::noinline]] void multiply_vector(const Lists& lists, const float* scratch, int64_t row_floats,
                                       bool add, float* sums) {
  using Reg = typename Simd::Reg;
  using P = Pass<Simd, kPatch, Simd::kSums / kTogether>;
  constexpr int kSums = P::kSums, kPartial = P::kPartial;
  constexpr int64_t kRowFloats = kPatch * kPatch * kLanes;
  const int64_t vector = lists.p.g.vector;
  for (int64_t list = lists.first; list < lists.last; ++list) {
    const uint16_t* const offsets = lists.p.offsets;
    const int64_t begin = lists.p.starts[list], end = lists.p.starts[list + 1];
    for (int64_t v = 0; v < vector; v += kTogether) {
      const float* const values = lists.p.values + v;
      const float* const next =
          lists.p.values + end * vector + (end - begin) * v - begin * kTogether;
      float* row = sums + (lists.p.rows[list] + v - lists.first_row) * kRowFloats;
      for (int pass = 0; pass < P::kPasses; ++pass, row += kSums * Simd::kWidth) {
        const Rows<P> from(scratch, pass, row_floats);
        Reg sum[kPartial][kTogether * kSums];  // [row][register]
        const auto place = [row](int i) {
          return row + i / kSums * kRowFloats + i % kSums * Simd::kWidth;
        };
#pragma GCC unroll 16
        for (int i = 0; i < kTogether * kSums; ++i) {
          sum[0][i] = add ? Simd::load(place(i)) : Simd::zero();
#pragma GCC unroll 16
          for (int u = 1; u < kPartial; ++u) sum[u][i] = Simd::zero();
        }
        const auto add_weights = [&](int64_t k, Reg* to) {
          const int64_t offset = offsets[k];
          __builtin_prefetch(next + k * kTogether);
          Reg input[kSums];
#pragma GCC unroll 16
          for (int i = 0; i < kSums; ++i) input[i] = Simd::load(from.at(i, offset));
#pragma GCC unroll 16
          for (int i = 0; i < kTogether * kSums; ++i) {
            const Reg weight = Simd::set(values[k * vector + i / kSums]);
            to[i] = Simd::mul_add(weight, input[i % kSums], to[i]);
          }
        };
        int64_t k = begin;
        for (; k + kPartial <= end; k += kPartial) {
#pragma GCC unroll 16
          for (int u = 0; u < kPartial; ++u) add_weights(k + u, sum[u]);
        }
        for (; k < end; ++k) add_weights(k, sum[0]);
#pragma GCC unroll 16
        for (int i = 0; i < kTogether * kSums; ++i) {
#pragma GCC unroll 16
          for (int u = 1; u < kPartial; ++u) sum[0][i] = Simd::add(sum[0][i], sum[u][i]);
          Simd::store(place(i), sum[0][i]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace gansparse::sparse_conv2d
