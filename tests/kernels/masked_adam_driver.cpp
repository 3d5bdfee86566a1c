// SPDX-License-Identifier: Apache-2.0
// One launch of masked_adam's kernel in the emulator.
// masked_adam_driver ARGUMENTS RESULTS DTYPE SEED
//
// Arguments: hyper-parameters (double [8]: in the order of Hyper, and whether the learning rate and
// steps lie on the device, as in a captured graph), then for each parameter: param,
// grad, exp_avg, exp_avg_sq, max_exp_avg_sq or nothing, mask or nothing, step (float [1]).
// Results: for each parameter: param, exp_avg, exp_avg_sq, max_exp_avg_sq.
#include "ops/masked_adam/masked_adam_kernels.cuh"

#include <cmath>
#include <cstdlib>
#include <string>

#include "arguments.h"

using namespace gansparse;
using namespace gansparse::masked_adam;

template <class T>
bool aligned(const T* array) {
  return array == nullptr || reinterpret_cast<uintptr_t>(array) % kMaxAccessBytes == 0;
}

template <class T, int kCapacity>
void launch(const double* h, const int64_t* counts, int64_t items, Arguments* rest, const char* to,
            uint64_t seed) {
  using S = typename StateOf<T>::Type;
  Arguments& arguments = *rest;
  Batch<kCapacity> batch{};
  batch.hyper = {h[0], h[1], h[2], h[3], h[4], h[5] != 0, h[6] != 0};
  const bool on_device = h[7] != 0;
  const auto lr = static_cast<float>(h[0]);
  if (on_device) batch.hyper.lr = NAN, batch.device_lr = &lr;
  int64_t blocks = 0;
  for (int i = 0; i < items; ++i) {
    Item& item = batch.items[i];
    item.numel = counts[i];
    item.param = arguments.next<T>();
    item.grad = arguments.next<T>();
    item.exp_avg = arguments.next<S>();
    item.exp_avg_sq = arguments.next<S>();
    item.max_exp_avg_sq = arguments.next<S>();
    item.mask = arguments.next<uint8_t>();
    const float* taken = arguments.next<float>();
    item.step = on_device ? NAN : *taken;
    item.device_step = on_device ? taken : nullptr;
    batch.vectorised[i] = aligned(item.param) && aligned(item.grad);
    batch.first_block[i] = static_cast<int>(blocks);
    blocks += (item.numel + Config<T>::kBlockElements - 1) / Config<T>::kBlockElements;
  }
  batch.count = static_cast<int>(items);
  batch.first_block[items] = static_cast<int>(blocks);

  emulate<&masked_adam_update_kernel<T, kCapacity>>(
      {dim3(static_cast<unsigned>(blocks)), dim3(Config<T>::kThreads), 0, seed}, batch);

  Results results(to);
  for (int i = 0; i < items; ++i) {
    const Item& item = batch.items[i];
    results.add(static_cast<const T*>(item.param), item.numel);
    results.add(static_cast<const S*>(item.exp_avg), item.numel);
    results.add(static_cast<const S*>(item.exp_avg_sq), item.numel);
    results.add(static_cast<const S*>(item.max_exp_avg_sq), item.numel);
  }
}

template <class T>
void step(const char* from, const char* to, uint64_t seed) {
  Arguments arguments(from);
  const double* hyper = arguments.next<double>();
  int64_t items = 0;
  const int64_t* counts = arguments.next<int64_t>(&items);
  items <= kSmallBatch ? launch<T, kSmallBatch>(hyper, counts, items, &arguments, to, seed)
                       : launch<T, kLargeBatch>(hyper, counts, items, &arguments, to, seed);
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const std::string dtype = argv[3];
  const uint64_t seed = std::strtoull(argv[4], nullptr, 10);
  if (dtype == "float32") step<float>(argv[1], argv[2], seed);
  if (dtype == "float64") step<double>(argv[1], argv[2], seed);
  if (dtype == "float16") step<Half>(argv[1], argv[2], seed);
  if (dtype == "bfloat16") step<BFloat16>(argv[1], argv[2], seed);
  return 0;
}
