// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma.
#include <immintrin.h>

#include "ops/masked_adam/masked_adam_simd.h"

namespace gansparse::masked_adam {
namespace {

struct Avx512 {
  using Reg = __m512;
  using Keep = __mmask16;
  static constexpr int kLanes = 16;

  static Reg load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Reg x) { _mm512_storeu_ps(to, x); }
  static Reg set(float x) { return _mm512_set1_ps(x); }
  static Reg add_mul(Reg a, Reg x, Reg y) { return _mm512_fmadd_ps(x, y, a); }  // a + x · y
  static Reg mul(Reg x, Reg y) { return _mm512_mul_ps(x, y); }
  static Reg div(Reg x, Reg y) { return _mm512_div_ps(x, y); }
  static Reg sqrt(Reg x) { return _mm512_sqrt_ps(x); }
  static Reg max(Reg x, Reg y) { return _mm512_max_ps(x, y); }  // y if either is NaN

  static Keep all_kept() { return 0xffff; }
  static Keep keep_of(const uint8_t* mask) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask));
    return _mm_test_epi8_mask(bytes, bytes);
  }
  static Reg only(Keep kept, Reg x) { return _mm512_maskz_mov_ps(kept, x); }
};

}  // namespace

void update_range_avx512(const Item& item, const Coefficients<float>& c, int64_t begin,
                         int64_t end) {
  update_range<Avx512>(item, c, begin, end);
}

}  // namespace gansparse::masked_adam
