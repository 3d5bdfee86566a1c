// SPDX-License-Identifier: Apache-2.0
// The CPU step: shares the elements of all parameters evenly among the threads.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/cpu_features.h"
#include "common/parallel.h"
#include "ops/masked_adam/masked_adam.h"

namespace gansparse::masked_adam {
namespace {

// A chunk is the unit of sharing. A multiple of 64 elements, so that two threads never write to one
// cache line of an aligned array, and no vector but an item's last is partial.
constexpr int64_t kChunk = 4096;
// A thread is worth waking for about 20 µs of work.
constexpr int64_t kGrainChunks = 8;

template <class T>
void update_range_plain(const Item& item, const Coefficients<T>& c, int64_t begin, int64_t end) {
  T* param = static_cast<T*>(item.param);
  const T* grad = static_cast<const T*>(item.grad);
  T* exp_avg = static_cast<T*>(item.exp_avg);
  T* exp_avg_sq = static_cast<T*>(item.exp_avg_sq);
  T* max_exp_avg_sq = static_cast<T*>(item.max_exp_avg_sq);
  for (int64_t i = begin; i < end; ++i) {
    T* const max_i = max_exp_avg_sq ? max_exp_avg_sq + i : nullptr;
    if (item.mask == nullptr || item.mask[i] != 0) {
      update(c, grad[i], param + i, exp_avg + i, exp_avg_sq + i, max_i);
    } else {
      param[i] = exp_avg[i] = exp_avg_sq[i] = T(0);
      if (max_i) *max_i = T(0);
    }
  }
}

template <class T>
auto choose_range() {
  using Range = void (*)(const Item&, const Coefficients<T>&, int64_t, int64_t);
  Range chosen = &update_range_plain<T>;
#ifdef GANSPARSE_WITH_X86
  if constexpr (std::is_same_v<T, float>) {
    switch (simd_level()) {
      case SimdLevel::kAvx512:
        return Range{&update_range_avx512};
      case SimdLevel::kAvx2:
        return Range{&update_range_avx2};
      case SimdLevel::kPlain:
        break;
    }
  }
#endif
  return chosen;
}

}  // namespace

template <class T>
void step_cpu(const Item* items, int count, const Hyper& hyper) {
  const auto update_range = choose_range<T>();

  std::vector<Coefficients<T>> c;
  std::vector<int64_t> first_chunk{0};  // [count + 1]: where item i's chunks begin
  c.reserve(count);
  first_chunk.reserve(count + 1);
  for (int i = 0; i < count; ++i) {
    c.push_back(coefficients<T>(hyper, hyper.lr, items[i].step));
    first_chunk.push_back(first_chunk.back() + (items[i].numel + kChunk - 1) / kChunk);
  }

  parallel_for(first_chunk.back(), kGrainChunks, [&](int64_t begin, int64_t end) {
    const auto after = std::upper_bound(first_chunk.begin(), first_chunk.end(), begin);
    for (auto i = after - first_chunk.begin() - 1; i < count && first_chunk[i] < end; ++i) {
      const int64_t from = std::max(begin, first_chunk[i]) - first_chunk[i];
      const int64_t to = std::min(end, first_chunk[i + 1]) - first_chunk[i];
      update_range(items[i], c[i], from * kChunk, std::min(to * kChunk, items[i].numel));
    }
  });
}

template void step_cpu<float>(const Item*, int, const Hyper&);
template void step_cpu<double>(const Item*, int, const Hyper&);

}  // namespace gansparse::masked_adam
