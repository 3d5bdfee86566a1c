// SPDX-License-Identifier: Apache-2.0
// The launches of mask_update in the emulator.
// mask_update_driver ARGUMENTS RESULTS DTYPE SEED
//
// Arguments: flags (int64 [2]: magnitude, monotone), elements of each tensor (int64), how many of
// each go (int64), then for each tensor: scores, mask. Results: the masks.
#include "ops/mask_update/mask_update_kernels.cuh"

#include <cstdlib>
#include <string>

#include "arguments.h"

using namespace gansparse;
using namespace gansparse::mask_update;

template <class T>
void update(const char* from, const char* to, uint64_t seed) {
  Arguments arguments(from);
  Batch batch{};
  const int64_t* flags = arguments.next<int64_t>();
  batch.magnitude = flags[0] != 0;
  batch.monotone = flags[1] != 0;
  int64_t items = 0;
  const int64_t* counts = arguments.next<int64_t>(&items);
  const int64_t* prune = arguments.next<int64_t>();
  int blocks = 0;
  for (int i = 0; i < items; ++i) {
    const T* scores = arguments.next<T>();
    batch.items[i] = {scores, arguments.next<uint8_t>(), counts[i], prune[i]};
    batch.first_block[i] = blocks;
    blocks += static_cast<int>((counts[i] + Config::kBlockElements - 1) / Config::kBlockElements);
  }
  batch.count = static_cast<int>(items);
  batch.first_block[items] = blocks;

  const size_t number = static_cast<size_t>(items);
  std::vector<State> states(number, State{});
  std::vector<Count> histograms(number * kBuckets, 0);
  std::vector<Count> ties(static_cast<size_t>(blocks) * Config::kWarps, ~Count(0));
  const dim3 threads(Config::kThreads);
  const emulator::Launch all{dim3(static_cast<unsigned>(blocks)), threads, 0, seed};
  const emulator::Launch each{dim3(static_cast<unsigned>(items)), threads, 0, seed};
  for (int d = 0; d < kDigits<T>; ++d) {
    emulate<&mask_update_count_kernel<T>>(all, batch, states.data(), histograms.data(), d);
    emulate<&mask_update_choose_kernel<KeyOf<T>>>(each, batch, states.data(), histograms.data(), d);
  }
  emulate<&mask_update_count_ties_kernel<T>>(all, batch, states.data(), ties.data());
  emulate<&mask_update_scan_ties_kernel>(each, batch, ties.data());
  emulate<&mask_update_write_kernel<T>>(all, batch, states.data(), ties.data());

  Results results(to);
  for (int i = 0; i < items; ++i) results.add(batch.items[i].mask, counts[i]);
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const std::string dtype = argv[3];
  const uint64_t seed = std::strtoull(argv[4], nullptr, 10);
  if (dtype == "float32") update<float>(argv[1], argv[2], seed);
  if (dtype == "float64") update<double>(argv[1], argv[2], seed);
  if (dtype == "float16") update<Half>(argv[1], argv[2], seed);
  if (dtype == "bfloat16") update<BFloat16>(argv[1], argv[2], seed);
  return 0;
}
