// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel of masked_adam. Contract and formula: masked_adam.h.
//
// One launch steps a whole list of parameters. The list travels in the kernel's arguments, so there
// is no copy to wait for, and a captured graph keeps it. Blocks are dealt out in order:
//
//   item 0: 5000 elements          item 1: 300        item 2: 8200
//   ├─ block 0 ─┤├─ block 1 ─┤     ├─ block 2 ─┤      ├─ block 3 ─┤├─ block 4 ─┤├─ block 5 ─┤
//   first_block = {0,               2,                 3,                                     6}
//
// Within a block, thread t of vector round r has the kItems neighbours that begin at
//   (r · kThreads + t) · kItems: neighbouring threads, neighbouring 16 bytes.
#pragma once

#include "common/half.h"
#include "common/vec.cuh"
#include "ops/masked_adam/masked_adam.h"

namespace gansparse::masked_adam {

// State and arithmetic: float for parameters of 16 and 32 bits, double for double.
template <class T>
struct StateOf {
  using Type = float;
};
template <>
struct StateOf<double> {
  using Type = double;
};

template <class T>
struct Config {
  static constexpr int kThreads = 256;
  static constexpr int kItems = kMaxAccessBytes / sizeof(T);  // parameters in one 16-byte access
  static constexpr int kRounds = 4;                           // vectors a thread steps
  static constexpr int kBlockElements = kThreads * kItems * kRounds;

  static_assert(kThreads % 32 == 0, "whole warps");
  static_assert(kItems * sizeof(T) == kMaxAccessBytes, "a parameter's size divides an access");
  static_assert(kBlockElements % kItems == 0, "every block begins on a vector of its item");
};

// The kernel's argument. Up to CUDA 12.0 kernels take 4 KB of arguments, from 12.1 on 32 KB.
template <int kCapacity>
struct Batch {
  Hyper hyper;
  const float* device_lr;  // [1], or null: hyper.lr holds it
  int count;
  int first_block[kCapacity + 1];
  bool vectorised[kCapacity];  // all arrays of the item are aligned for Vec
  Item items[kCapacity];
};

constexpr int kSmallBatch = 40;
constexpr int kLargeBatch = 380;
static_assert(sizeof(Batch<kSmallBatch>) <= 4096, "a small batch fits every driver's arguments");
static_assert(sizeof(Batch<kLargeBatch>) <= 32764, "a large batch fits 32 KB of arguments");

// The item that `block` belongs to: the last i with first_block[i] <= block.
template <int kCapacity>
__device__ __forceinline__ int item_of_block(const Batch<kCapacity>& batch, int block) {
  int low = 0;
  int high = batch.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (batch.first_block[middle] <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// One item's arrays with their types, and the two ways to step a stretch of them.
template <class T>
struct Arrays {
  using S = typename StateOf<T>::Type;
  static constexpr int kItems = Config<T>::kItems;

  T* param;             // [P]
  const T* grad;        // [P]
  S* exp_avg;           // [P]
  S* exp_avg_sq;        // [P]
  S* max_exp_avg_sq;    // [P], or null: no amsgrad
  const uint8_t* mask;  // [P], 0 = pruned, or null: nothing pruned

  __device__ __forceinline__ explicit Arrays(const Item& item)
      : param(static_cast<T*>(item.param)),
        grad(static_cast<const T*>(item.grad)),
        exp_avg(static_cast<S*>(item.exp_avg)),
        exp_avg_sq(static_cast<S*>(item.exp_avg_sq)),
        max_exp_avg_sq(static_cast<S*>(item.max_exp_avg_sq)),
        mask(item.mask) {}

  // Elements [i, i + kItems), i a multiple of kItems.
  __device__ __forceinline__ void step_vector(const Coefficients<S>& c, int64_t i) const {
    // ---- Load: all requests leave before the first is needed ----
    auto w = load<kItems>(param + i);
    const auto g = load<kItems>(grad + i);
    auto m = load<kItems>(exp_avg + i);
    auto v = load<kItems>(exp_avg_sq + i);
    Vec<S, kItems> largest{};
    if (max_exp_avg_sq) largest = load<kItems>(max_exp_avg_sq + i);
    Vec<uint8_t, kItems> kept{};
    if (mask) kept = load<kItems>(mask + i);

    // ---- Update ----
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      S value = to_float(w.item[k]);
      update<S>(c, to_float(g.item[k]), &value, &m.item[k], &v.item[k],
                max_exp_avg_sq ? &largest.item[k] : nullptr);
      if (mask && kept.item[k] == 0) {
        value = m.item[k] = v.item[k] = largest.item[k] = S(0);
      }
      round_to(value, &w.item[k]);
    }

    // ---- Store ----
    store<kItems>(param + i, w);
    store<kItems>(exp_avg + i, m);
    store<kItems>(exp_avg_sq + i, v);
    if (max_exp_avg_sq) store<kItems>(max_exp_avg_sq + i, largest);
  }

  __device__ __forceinline__ void step_scalar(const Coefficients<S>& c, int64_t i) const {
    S value = to_float(param[i]);
    S m = exp_avg[i];
    S v = exp_avg_sq[i];
    S largest = max_exp_avg_sq ? max_exp_avg_sq[i] : S(0);
    update<S>(c, to_float(grad[i]), &value, &m, &v, max_exp_avg_sq ? &largest : nullptr);
    if (mask && mask[i] == 0) value = m = v = largest = S(0);
    round_to(value, &param[i]);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    if (max_exp_avg_sq) max_exp_avg_sq[i] = largest;
  }
};

template <class T, int kCapacity>
__global__ void __launch_bounds__(Config<T>::kThreads)
    masked_adam_update_kernel(const GANSPARSE_GRID_CONSTANT Batch<kCapacity> batch) {
  using C = Config<T>;
  using S = typename StateOf<T>::Type;

  // ---- Which stretch of which item ----
  const int index = item_of_block(batch, static_cast<int>(blockIdx.x));
  const Item& item = batch.items[index];
  const int64_t begin =
      static_cast<int64_t>(static_cast<int>(blockIdx.x) - batch.first_block[index]) *
      C::kBlockElements;
  const int64_t left = item.numel - begin;
  const int64_t end = begin + (left < C::kBlockElements ? left : C::kBlockElements);

  // ---- Scalars: double-precision logarithms are dear, so one thread computes them for all ----
  __shared__ Coefficients<S> shared_coefficients;
  if (threadIdx.x == 0) {
    const double step = item.device_step ? *item.device_step : item.step;
    const double lr = batch.device_lr ? *batch.device_lr : batch.hyper.lr;
    shared_coefficients = coefficients<S>(batch.hyper, lr, step);
  }
  __syncthreads();  // thread 0 has written the coefficients before anyone reads them
  const Coefficients<S> c = shared_coefficients;

  // ---- Whole vectors, then the rest of fewer than kItems elements (or all, if unaligned) ----
  const Arrays<T> arrays(item);
  int64_t scalars_from = begin;
  if (batch.vectorised[index]) {
    scalars_from = begin + (end - begin) / C::kItems * C::kItems;
    for (int64_t i = begin + threadIdx.x * C::kItems; i < scalars_from;
         i += C::kThreads * C::kItems) {
      arrays.step_vector(c, i);
    }
  }
  for (int64_t i = scalars_from + threadIdx.x; i < end; i += C::kThreads) {
    arrays.step_scalar(c, i);
  }
}

}  // namespace gansparse::masked_adam
