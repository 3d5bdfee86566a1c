// SPDX-License-Identifier: Apache-2.0
// 16-bit floats as storage: kernels read them into float, compute, and round back to nearest even.
// On the device the conversions are single instructions; on the host (tests of the kernels through
// the emulator) they are spelled out, so no CUDA header is needed.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/host_device.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace gansparse {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace detail {

GANSPARSE_HD uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

GANSPARSE_HD float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

}  // namespace detail

GANSPARSE_HD float to_float(BFloat16 x) {
  return detail::bits_float(static_cast<uint32_t>(x.bits) << 16);
}

GANSPARSE_HD float to_float(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t fraction = x.bits & 0x3ffu;
  if (exponent == 0x1f) return detail::bits_float(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) return detail::bits_float(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // subnormal, exact
  return sign ? -magnitude : magnitude;
#endif
}

GANSPARSE_HD float to_float(float x) { return x; }
GANSPARSE_HD double to_float(double x) { return x; }

GANSPARSE_HD void round_to(float x, BFloat16* out) {
#ifdef __CUDA_ARCH__
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const uint32_t u = detail::float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>((u >> 16) | 0x40u);  // NaN stays NaN
  } else {
    out->bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
#endif
}

GANSPARSE_HD void round_to(float x, Half* out) {
#ifdef __CUDA_ARCH__
  out->bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t u = detail::float_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  uint32_t bits;
  if (magnitude > 0x7f800000u) {
    bits = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    bits = 0x7c00u;  // 65520 and more round to infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 the spacing is 2^-24. Adding 0.5 puts the last kept bit of a float there, so the
    // addition itself rounds to nearest even.
    bits = detail::float_bits(detail::bits_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    bits = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | bits);
#endif
}

// Both as they are when they have been rounded to T. One conversion of two: of one it is slower.
template <class T>
GANSPARSE_HD void round_both(float* one, float* other) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<T, BFloat16>) {
    const float2 both = __bfloat1622float2(__floats2bfloat162_rn(*one, *other));
    *one = both.x, *other = both.y;
  } else {
    const float2 both = __half22float2(__floats2half2_rn(*one, *other));
    *one = both.x, *other = both.y;
  }
#else
  for (float* x : {one, other}) {
    T rounded;
    round_to(*x, &rounded);
    *x = to_float(rounded);
  }
#endif
}

GANSPARSE_HD void round_to(float x, float* out) { *out = x; }
GANSPARSE_HD void round_to(double x, double* out) { *out = x; }

}  // namespace gansparse
