// SPDX-License-Identifier: Apache-2.0
// mask_update: makes new masks in place, so that of each tensor exactly the `prune` lowest scores
// go.
//
// With s the score (its absolute value for `magnitude`), and i the place in memory, elements are
// ordered by
//   already pruned (only if `monotone`) < −∞ < … < −0 = +0 < … < ∞ < NaN,     equal ones by i;
//   mask[i] ← 0 for the first `prune` in that order, 1 for the others.
// So with `monotone`, and a `prune` that does not fall, what was pruned stays pruned. A NaN counts
// as the highest score whatever its sign: it is kept, where it stays visible.
//
// | argument  | per tensor, P its shape   | dtype                              | role        |
// |-----------|---------------------------|------------------------------------|-------------|
// | scores    | P, dense in any order     | T                                  | read        |
// | masks     | P, strides of the score   | bool or uint8                      | read, write |
// | prune     | number                    | whole, 0 to P's elements           |             |
// |           | for all tensors           |                                    |             |
// | magnitude | flag                      | bool                               |             |
// | monotone  | flag                      | bool                               |             |
//
// T is float32 or float64, on CUDA also float16 or bfloat16. Not monotone, masks are only written.
// No two arrays may overlap. The same arguments give the same masks on every device, whatever the
// number of threads.
//
// How: a radix select. Scores become unsigned keys in the same order; a histogram over the highest
// 11 bits tells in which bucket the threshold lies. On CUDA one over the next 11 bits of that
// bucket's keys goes on, until the threshold is known; the CPU selects among the bucket's keys.
// Then every key is below the threshold, above it, or one of the ties, of which the first few go.
//
// Cost, float32 and monotone. CUDA: keys are read three times to select, once to count ties and
// once to write: 5 · (4 + 1) + 1 = 26 bytes an element (float64 6 times: 73), bound by memory; a
// sort of (score, index) moves more than 100. CPU: read three times, 16 bytes, bound by arithmetic
// on keys.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/half.h"
#include "common/host_device.h"

namespace gansparse::mask_update {

// One tensor and its mask. Strides are gone: both are dense in the same order.
struct Item {
  const void* scores;  // [P]
  uint8_t* mask;       // [P], 0 = pruned
  int64_t numel;
  int64_t prune;
};

constexpr int kDigitBits = 11;
constexpr int kBuckets = 1 << kDigitBits;

// 16-bit scores are widened, which is exact.
template <class T>
using WideOf = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
using KeyOf = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;

template <class T>
constexpr int kDigits = (sizeof(KeyOf<T>) * 8 + kDigitBits - 1) / kDigitBits;

// Key 0 is below that of every score, −∞ included: it is given to what is pruned already.
template <class T>
GANSPARSE_HD KeyOf<T> key_of(T score, bool magnitude) {
  using Key = KeyOf<T>;
  constexpr Key kSign = Key(1) << (sizeof(Key) * 8 - 1);
  WideOf<T> wide = to_float(score);
  const bool is_nan = wide != wide;
  wide += WideOf<T>(0);  // −0 becomes +0
  Key bits;
  memcpy(&bits, &wide, sizeof bits);
  if (magnitude) bits &= ~kSign;
  const Key negative = Key(0) - (bits >> (sizeof(Key) * 8 - 1));  // all ones, or 0: no branch
  bits ^= negative | kSign;
  return is_nan ? ~Key(0) : bits;
}

// Digit 0 is the highest. The lowest has what bits are left: 10 of 32, 9 of 64.
template <class Key>
GANSPARSE_HD int digit_shift(int digit) {
  const int shift = static_cast<int>(sizeof(Key)) * 8 - (digit + 1) * kDigitBits;
  return shift > 0 ? shift : 0;
}
template <class Key>
GANSPARSE_HD int digit_bits(int digit) {
  const int left = static_cast<int>(sizeof(Key)) * 8 - digit * kDigitBits;
  return left < kDigitBits ? left : kDigitBits;
}
template <class Key>
GANSPARSE_HD int digit_of(Key key, int digit) {
  return static_cast<int>((key >> digit_shift<Key>(digit)) &
                          ((Key(1) << digit_bits<Key>(digit)) - 1));
}
// The digits before `digit` are those of `prefix`, whose other digits are 0.
template <class Key>
GANSPARSE_HD bool has_prefix(Key key, Key prefix, int digit) {
  if (digit == 0) return true;
  const int shift = digit_shift<Key>(digit - 1);
  return key >> shift == prefix >> shift;
}

// T is float or double.
template <class T>
void update_cpu(const Item* items, int count, bool magnitude, bool monotone);

enum class CudaType { kFloat16, kBFloat16, kFloat32, kFloat64 };

void update_cuda(CudaType type, const Item* items, int count, bool magnitude, bool monotone,
                 int device, uintptr_t stream);

}  // namespace gansparse::mask_update
