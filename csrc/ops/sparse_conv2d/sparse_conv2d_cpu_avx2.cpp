// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx2 -mfma.
#include <immintrin.h>

#include "ops/sparse_conv2d/instance_norm_simd.h"
#include "ops/sparse_conv2d/sparse_conv2d_simd.h"
#include "ops/sparse_conv2d/winograd_conv2d_simd.h"

namespace gansparse::sparse_conv2d {
namespace {

struct Avx2 {
  using Reg = __m256;
  using Mask = __m256i;
  static constexpr int kWidth = 8;
  static constexpr int kSums = 8;

  static Reg load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Reg x) { _mm256_storeu_ps(to, x); }
  static Reg set(float x) { return _mm256_set1_ps(x); }
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg add(Reg x, Reg y) { return _mm256_add_ps(x, y); }
  static Reg mul_add(Reg x, Reg y, Reg a) { return _mm256_fmadd_ps(x, y, a); }  // a + x · y
  static Reg max(Reg x, Reg y) { return _mm256_max_ps(x, y); }  // y if either is NaN
  static Reg min(Reg x, Reg y) { return _mm256_min_ps(x, y); }  // y if either is NaN
  static Reg load_pieces(const float* from, const int64_t* at) {
    const __m256 x = _mm256_castps128_ps256(_mm_loadu_ps(from + at[0]));
    return _mm256_insertf128_ps(x, _mm_loadu_ps(from + at[1]), 1);
  }
  static void store_pieces(float* to, const int64_t* at, Reg x) {
    _mm_storeu_ps(to + at[0], _mm256_castps256_ps128(x));
    _mm_storeu_ps(to + at[1], _mm256_extractf128_ps(x, 1));
  }
  static void in_order(Reg& x) { asm volatile("" : "+x"(x)); }
  static Mask mask(int begin, int end) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane),
                               _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane));
  }
  static Reg load_masked(const float* from, Mask mask) { return _mm256_maskload_ps(from, mask); }
  static void transpose_low(Reg* four) {
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(four[0], four[1]));
    const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(four[2], four[3]));
    four[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    four[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
  }
  static void transpose(Reg* four) {
    const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(four[0], four[1]));
    const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(four[2], four[3]));
    transpose_low(four);
    four[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    four[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
  }
};

}  // namespace

void run_units_avx2(const Problem& p, const Plan& plan, const Workspace& space, int64_t begin,
                    int64_t end) {
  run_units<Avx2>(p, plan, space, begin, end);
}

void run_winograd_avx2(const Problem& p, const Plan& plan, const WinogradSpace& space,
                       int64_t begin, int64_t end) {
  run_winograd_units<Avx2>(p, plan, space, begin, end);
}

void run_norm_avx2(const NormProblem& p, int64_t begin, int64_t end) {
  run_norm_planes<Avx2>(p, begin, end);
}

}  // namespace gansparse::sparse_conv2d
