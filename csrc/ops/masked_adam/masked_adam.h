// SPDX-License-Identifier: Apache-2.0
// masked_adam: one pass of Adam over a list of parameters whose pruned weights stay exactly zero.
//
// For every element (Kingma & Ba 2015, algorithm 1; AdamW: Loshchilov & Hutter 2019; AMSGrad:
// Reddi et al. 2018), with t the step, starting at 1:
//   g  ← ±grad + weight_decay · w              (− to maximize; decay here unless decoupled)
//   w  ← w · (1 − lr · weight_decay)           (only if decoupled)
//   m  ← β1 · m + (1 − β1) · g
//   v  ← β2 · v + (1 − β2) · g²                amsgrad: v̂ ← max(v̂, v), and v̂ takes v's place below
//   w  ← w − lr / (1 − β1ᵗ) · m / (√(v / (1 − β2ᵗ)) + eps)
// and where the mask is 0: w ← 0, m ← 0, v ← 0 (v̂ ← 0), whatever the gradient was, NaN included.
//
// | argument               | per parameter, P its shape | dtype                     | role        |
// |------------------------|----------------------------|---------------------------|-------------|
// | params                 | P, dense in any order      | T                         | read, write |
// | grads                  | P, strides of the param    | T                         | read        |
// | exp_avgs               | P, strides of the param    | S                         | read, write |
// | exp_avg_sqs            | P, strides of the param    | S                         | read, write |
// | steps                  | one; CPU, or beside param  | float32                   | read        |
// | masks                  | P, strides of the param    | bool or uint8; or None    | read        |
// | max_exp_avg_sqs        | P, strides of the param    | S; no list: no amsgrad    | read, write |
// |                        | for all parameters         |                           |             |
// | lr                     | number, or one             | float32 (CPU: or float64) | ≥ 0         |
// | betas                  | β1, β2                     | double                    | in [0, 1)   |
// | eps                    | number                     | double                    | ≥ 0         |
// | weight_decay           | number                     | double                    | ≥ 0         |
// | decoupled_weight_decay | flag                       | bool                      |             |
// | maximize               | flag                       | bool                      |             |
//
// T is float32 or float64, on CUDA also float16 or bfloat16; S is T, or float32 for 16-bit T. No
// two arrays may overlap.
//
// Cost, float32 with masks: 16 bytes read, 1 byte of mask, 12 bytes written: 29 bytes a parameter
// (amsgrad 37), bound by memory. Adam and two multiplications by a mask move 52.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace gansparse::masked_adam {

struct Hyper {
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  bool decoupled_weight_decay;
  bool maximize;
};

// One parameter and what belongs to it, as raw pointers. Strides are gone: all six arrays are dense
// in the same order, and the update does not care which.
struct Item {
  void* param;               // [P]
  const void* grad;          // [P]
  void* exp_avg;             // [P]
  void* exp_avg_sq;          // [P]
  void* max_exp_avg_sq;      // [P], or null: no amsgrad
  const uint8_t* mask;       // [P], 0 = pruned, or null: nothing pruned
  const float* device_step;  // [1] on the device, or null: `step` holds it
  int64_t numel;
  float step;
};

// What a step does, reduced to what the element loop needs. T is the type of the arithmetic.
template <class T>
struct Coefficients {
  T sign;             // −1 to maximize
  T l2;               // weight decay that enters the gradient
  T keep;             // 1 − lr · decoupled weight decay
  T beta1, rest1;     // rest1 = 1 − β1
  T beta2, rest2;     // rest2 = 1 − β2
  T step_size;        // lr / (1 − β1ᵗ)
  T inverse_sqrt_c2;  // 1 / √(1 − β2ᵗ)
  T eps;
};

// 1 − βᵗ is −expm1(t · ln β): pow would lose half the digits where β is near 1.
template <class T>
GANSPARSE_HD Coefficients<T> coefficients(const Hyper& h, double lr, double step) {
  const double correction1 = -std::expm1(step * std::log(h.beta1));
  const double correction2 = -std::expm1(step * std::log(h.beta2));
  Coefficients<T> c;
  c.sign = h.maximize ? T(-1) : T(1);
  c.l2 = h.decoupled_weight_decay ? T(0) : T(h.weight_decay);
  c.keep = h.decoupled_weight_decay ? T(1 - lr * h.weight_decay) : T(1);
  c.beta1 = T(h.beta1);
  c.rest1 = T(1 - h.beta1);
  c.beta2 = T(h.beta2);
  c.rest2 = T(1 - h.beta2);
  c.step_size = T(lr / correction1);
  c.inverse_sqrt_c2 = T(1 / std::sqrt(correction2));
  c.eps = T(h.eps);
  return c;
}

// One element inside the mask. `max_exp_avg_sq` is null without amsgrad.
template <class T>
GANSPARSE_HD void update(const Coefficients<T>& c, T grad, T* param, T* exp_avg, T* exp_avg_sq,
                         T* max_exp_avg_sq) {
  T g = c.sign * grad;
  if (c.l2 != T(0)) g += c.l2 * *param;  // 0 times an infinite weight would be NaN
  const T m = c.beta1 * *exp_avg + c.rest1 * g;
  const T v = c.beta2 * *exp_avg_sq + c.rest2 * (g * g);
  T second = v;
  if (max_exp_avg_sq != nullptr) {
    if (*max_exp_avg_sq > v) second = *max_exp_avg_sq;
    *max_exp_avg_sq = second;
  }
  *param = c.keep * *param - c.step_size * (m / (std::sqrt(second) * c.inverse_sqrt_c2 + c.eps));
  *exp_avg = m;
  *exp_avg_sq = v;
}

// ---- CPU kernels: elements [begin, end) of one item ---------------------------------------------

void update_range_avx2(const Item& item, const Coefficients<float>& c, int64_t begin, int64_t end);
void update_range_avx512(const Item& item, const Coefficients<float>& c, int64_t begin,
                         int64_t end);

// ---- Whole steps --------------------------------------------------------------------------------

// T is float or double; every item.step is set.
template <class T>
void step_cpu(const Item* items, int count, const Hyper& hyper);

enum class CudaType { kFloat16, kBFloat16, kFloat32, kFloat64 };

// One launch (several above some hundred parameters). `device_lr` is [1] or null: hyper.lr holds
// it.
void step_cuda(CudaType type, const Item* items, int count, const Hyper& hyper,
               const float* device_lr, int device, uintptr_t stream);

}  // namespace gansparse::masked_adam
