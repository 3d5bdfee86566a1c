// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx2 -mfma.
#include <immintrin.h>

#include "ops/masked_adam/masked_adam_simd.h"

namespace gansparse::masked_adam {
namespace {

struct Avx2 {
  using Reg = __m256;
  using Keep = __m256;  // all bits of a lane set, or none
  static constexpr int kLanes = 8;

  static Reg load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Reg x) { _mm256_storeu_ps(to, x); }
  static Reg set(float x) { return _mm256_set1_ps(x); }
  static Reg add_mul(Reg a, Reg x, Reg y) { return _mm256_fmadd_ps(x, y, a); }  // a + x · y
  static Reg mul(Reg x, Reg y) { return _mm256_mul_ps(x, y); }
  static Reg div(Reg x, Reg y) { return _mm256_div_ps(x, y); }
  static Reg sqrt(Reg x) { return _mm256_sqrt_ps(x); }
  static Reg max(Reg x, Reg y) { return _mm256_max_ps(x, y); }  // y if either is NaN

  static Keep all_kept() { return _mm256_castsi256_ps(_mm256_set1_epi32(-1)); }
  static Keep keep_of(const uint8_t* mask) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(mask));
    const __m256i zero = _mm256_setzero_si256();
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(bytes), zero));
  }
  static Reg only(Keep kept, Reg x) { return _mm256_and_ps(kept, x); }
};

}  // namespace

void update_range_avx2(const Item& item, const Coefficients<float>& c, int64_t begin, int64_t end) {
  update_range<Avx2>(item, c, begin, end);
}

}  // namespace gansparse::masked_adam
