// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma.
#include <immintrin.h>

#include "ops/sparse_conv2d/instance_norm_simd.h"
#include "ops/sparse_conv2d/sparse_conv2d_simd.h"
#include "ops/sparse_conv2d/winograd_conv2d_simd.h"

namespace gansparse::sparse_conv2d {
namespace {

struct Avx512 {
  using Reg = __m512;
  using Mask = __mmask16;
  static constexpr int kWidth = 16;
  static constexpr int kSums = 16;

  static Reg load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Reg x) { _mm512_storeu_ps(to, x); }
  static Reg set(float x) { return _mm512_set1_ps(x); }
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg add(Reg x, Reg y) { return _mm512_add_ps(x, y); }
  static Reg mul_add(Reg x, Reg y, Reg a) { return _mm512_fmadd_ps(x, y, a); }  // a + x · y
  static Reg max(Reg x, Reg y) { return _mm512_max_ps(x, y); }  // y if either is NaN
  static Reg min(Reg x, Reg y) { return _mm512_min_ps(x, y); }  // y if either is NaN
  static Reg load_pieces(const float* from, const int64_t* at) {
    Reg x = _mm512_castps128_ps512(_mm_loadu_ps(from + at[0]));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(from + at[1]), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(from + at[2]), 2);
    return _mm512_insertf32x4(x, _mm_loadu_ps(from + at[3]), 3);
  }
  static void store_pieces(float* to, const int64_t* at, Reg x) {
    _mm_storeu_ps(to + at[0], _mm512_castps512_ps128(x));
    _mm_storeu_ps(to + at[1], _mm512_extractf32x4_ps(x, 1));
    _mm_storeu_ps(to + at[2], _mm512_extractf32x4_ps(x, 2));
    _mm_storeu_ps(to + at[3], _mm512_extractf32x4_ps(x, 3));
  }
  static void in_order(Reg& x) { asm volatile("" : "+v"(x)); }
  static Mask mask(int begin, int end) {
    return static_cast<Mask>(((1u << end) - 1u) & ~((1u << begin) - 1u));
  }
  static Reg load_masked(const float* from, Mask mask) { return _mm512_maskz_loadu_ps(mask, from); }
  static void transpose_low(Reg* four) {
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(four[0], four[1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(four[2], four[3]));
    four[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    four[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
  }
  static void transpose(Reg* four) {
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(four[0], four[1]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(four[2], four[3]));
    transpose_low(four);
    four[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    four[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
};

}  // namespace

void run_units_avx512(const Problem& p, const Plan& plan, const Workspace& space, int64_t begin,
                      int64_t end) {
  run_units<Avx512>(p, plan, space, begin, end);
}

void run_winograd_avx512(const Problem& p, const Plan& plan, const WinogradSpace& space,
                         int64_t begin, int64_t end) {
  run_winograd_units<Avx512>(p, plan, space, begin, end);
}

void run_norm_avx512(const NormProblem& p, int64_t begin, int64_t end) {
  run_norm_planes<Avx512>(p, begin, end);
}

}  // namespace gansparse::sparse_conv2d
