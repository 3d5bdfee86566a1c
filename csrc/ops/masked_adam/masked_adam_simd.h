// SPDX-License-Identifier: Apache-2.0
// The element loop of masked_adam over vectors. An instruction set is a traits class with
//   Reg, Keep          a vector of floats; which of its lanes the mask keeps
//   kLanes             floats in a Reg
//   load store set all_kept keep_of only add_mul mul div sqrt max
// Included once by each masked_adam_cpu_<set>.cpp. Everything here is local to that file: a shared
// inline function could end up in the plain build with instructions its machine lacks.
#pragma once

#include <cstdint>

#include "ops/masked_adam/masked_adam.h"

namespace gansparse::masked_adam {
namespace {

struct Pointers {
  float* param;           // [P]
  const float* grad;      // [P]
  float* exp_avg;         // [P]
  float* exp_avg_sq;      // [P]
  float* max_exp_avg_sq;  // [P], amsgrad only
  const uint8_t* mask;    // [P], 0 = pruned, masked only
};

template <class Simd, bool kMasked, bool kAmsgrad>
class VectorUpdate {
 public:
  explicit VectorUpdate(const Coefficients<float>& c)
      : decays_(c.l2 != 0.0f),
        sign_(Simd::set(c.sign)),
        l2_(Simd::set(c.l2)),
        keep_(Simd::set(c.keep)),
        beta1_(Simd::set(c.beta1)),
        rest1_(Simd::set(c.rest1)),
        beta2_(Simd::set(c.beta2)),
        rest2_(Simd::set(c.rest2)),
        negative_step_(Simd::set(-c.step_size)),
        inverse_sqrt_c2_(Simd::set(c.inverse_sqrt_c2)),
        eps_(Simd::set(c.eps)) {}

  // Elements [i, i + kLanes).
  void operator()(const Pointers& p, int64_t i) const {
    const auto w = Simd::load(p.param + i);
    auto g = Simd::mul(sign_, Simd::load(p.grad + i));
    if (decays_) g = Simd::add_mul(g, l2_, w);  // 0 times an infinite weight would be NaN
    const auto m = Simd::add_mul(Simd::mul(beta1_, Simd::load(p.exp_avg + i)), rest1_, g);
    const auto v =
        Simd::add_mul(Simd::mul(beta2_, Simd::load(p.exp_avg_sq + i)), rest2_, Simd::mul(g, g));
    auto second = v;
    if constexpr (kAmsgrad) second = Simd::max(Simd::load(p.max_exp_avg_sq + i), v);
    const auto denominator = Simd::add_mul(eps_, Simd::sqrt(second), inverse_sqrt_c2_);
    const auto updated =
        Simd::add_mul(Simd::mul(keep_, w), negative_step_, Simd::div(m, denominator));

    // Where the mask is 0, zero is written: the lanes are selected, not multiplied, so a NaN or an
    // infinity in a pruned weight's gradient goes nowhere.
    auto kept = Simd::all_kept();
    if constexpr (kMasked) kept = Simd::keep_of(p.mask + i);
    Simd::store(p.param + i, Simd::only(kept, updated));
    Simd::store(p.exp_avg + i, Simd::only(kept, m));
    Simd::store(p.exp_avg_sq + i, Simd::only(kept, v));
    if constexpr (kAmsgrad) Simd::store(p.max_exp_avg_sq + i, Simd::only(kept, second));
  }

 private:
  using Reg = typename Simd::Reg;
  bool decays_;
  Reg sign_, l2_, keep_, beta1_, rest1_, beta2_, rest2_, negative_step_, inverse_sqrt_c2_, eps_;
};

// The last, partial vector goes through a full one on the stack: the same instructions and so the
// same bits as elsewhere, and nothing beyond the array is touched.
template <class Update>
void update_tail(const Update& update, const Pointers& p, int64_t begin, int64_t end) {
  constexpr int kMost = 16;
  float param[kMost] = {}, grad[kMost] = {}, exp_avg[kMost] = {}, exp_avg_sq[kMost] = {};
  float max_exp_avg_sq[kMost] = {};
  uint8_t mask[kMost] = {};
  const int64_t count = end - begin;
  for (int64_t i = 0; i < count; ++i) {
    param[i] = p.param[begin + i];
    grad[i] = p.grad[begin + i];
    exp_avg[i] = p.exp_avg[begin + i];
    exp_avg_sq[i] = p.exp_avg_sq[begin + i];
    if (p.max_exp_avg_sq) max_exp_avg_sq[i] = p.max_exp_avg_sq[begin + i];
    if (p.mask) mask[i] = p.mask[begin + i];
  }
  update(Pointers{param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, mask}, 0);
  for (int64_t i = 0; i < count; ++i) {
    p.param[begin + i] = param[i];
    p.exp_avg[begin + i] = exp_avg[i];
    p.exp_avg_sq[begin + i] = exp_avg_sq[i];
    if (p.max_exp_avg_sq) p.max_exp_avg_sq[begin + i] = max_exp_avg_sq[i];
  }
}

template <class Simd, bool kMasked, bool kAmsgrad>
void update_range_as(const Pointers& p, const Coefficients<float>& c, int64_t begin, int64_t end) {
  static_assert(Simd::kLanes <= 16, "update_tail's buffers hold 16 lanes");
  const VectorUpdate<Simd, kMasked, kAmsgrad> update(c);
  int64_t i = begin;
  for (; i + Simd::kLanes <= end; i += Simd::kLanes) update(p, i);
  if (i < end) update_tail(update, p, i, end);
}

template <class Simd>
void update_range(const Item& item, const Coefficients<float>& c, int64_t begin, int64_t end) {
  const Pointers p{static_cast<float*>(item.param),          static_cast<const float*>(item.grad),
                   static_cast<float*>(item.exp_avg),        static_cast<float*>(item.exp_avg_sq),
                   static_cast<float*>(item.max_exp_avg_sq), item.mask};
  if (p.mask && p.max_exp_avg_sq) return update_range_as<Simd, true, true>(p, c, begin, end);
  if (p.mask) return update_range_as<Simd, true, false>(p, c, begin, end);
  if (p.max_exp_avg_sq) return update_range_as<Simd, false, true>(p, c, begin, end);
  return update_range_as<Simd, false, false>(p, c, begin, end);
}

}  // namespace
}  // namespace gansparse::masked_adam
