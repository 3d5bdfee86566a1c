// SPDX-License-Identifier: Apache-2.0
// Launches of mask_update: all on the caller's stream, none waited for.
#include <algorithm>

#include "common/launch.cuh"
#include "ops/mask_update/mask_update_kernels.cuh"

namespace gansparse::mask_update {
namespace {

constexpr int64_t kMaxBlocks = 0x7fffffff / Config::kWarps;  // stretches are numbered in 32 bits

// Puts the first items that fit together into the batch; returns how many.
int fill(const Item* items, int count, Batch* batch) {
  int64_t blocks = 0;
  int taken = 0;
  for (; taken < std::min(count, kCapacity); ++taken) {
    const int64_t more = (items[taken].numel + Config::kBlockElements - 1) / Config::kBlockElements;
    if (blocks + more > kMaxBlocks) break;
    batch->first_block[taken] = static_cast<int>(blocks);
    batch->items[taken] = items[taken];
    blocks += more;
  }
  check_cuda(taken > 0 ? cudaSuccess : cudaErrorInvalidValue, "mask_update",
             "a tensor of more than 2^28 blocks");
  batch->count = taken;
  batch->first_block[taken] = static_cast<int>(blocks);
  return taken;
}

template <class T>
void launch(const Batch& batch, cudaStream_t stream) {
  using Key = KeyOf<T>;
  const unsigned blocks = static_cast<unsigned>(batch.first_block[batch.count]);
  const unsigned count = static_cast<unsigned>(batch.count);
  const size_t stretches = size_t{blocks} * Config::kWarps;
  const size_t histogram_bytes = count * kBuckets * sizeof(Count);
  const size_t state_bytes = count * sizeof(State);
  const StreamMemory memory(histogram_bytes + state_bytes + stretches * sizeof(Count), stream,
                            "mask_update");
  auto* histograms = memory.at<Count>(0);
  auto* states = memory.at<State>(histogram_bytes);
  auto* ties = memory.at<Count>(histogram_bytes + state_bytes);
  check_cuda(cudaMemsetAsync(histograms, 0, histogram_bytes + state_bytes, stream), "mask_update",
             "cudaMemsetAsync");

  constexpr int kThreads = Config::kThreads;
  for (int digit = 0; digit < kDigits<T>; ++digit) {
    launch_kernel("mask_update", mask_update_count_kernel<T>, blocks, kThreads, 0, stream, batch,
                  states, histograms, digit);
    launch_kernel("mask_update", mask_update_choose_kernel<Key>, count, kThreads, 0, stream, batch,
                  states, histograms, digit);
  }
  launch_kernel("mask_update", mask_update_count_ties_kernel<T>, blocks, kThreads, 0, stream, batch,
                states, ties);
  launch_kernel("mask_update", mask_update_scan_ties_kernel, count, kThreads, 0, stream, batch,
                ties);
  launch_kernel("mask_update", mask_update_write_kernel<T>, blocks, kThreads, 0, stream, batch,
                states, ties);
}

}  // namespace

void update_cuda(CudaType type, const Item* items, int count, bool magnitude, bool monotone,
                 int device, uintptr_t stream) {
  const DeviceGuard guard(device, "mask_update");
  const cudaStream_t on = stream_of(stream);
  for (int done = 0; done < count;) {
    Batch batch{};
    batch.magnitude = magnitude;
    batch.monotone = monotone;
    done += fill(items + done, count - done, &batch);
    switch (type) {
      case CudaType::kFloat16:
        launch<Half>(batch, on);
        break;
      case CudaType::kBFloat16:
        launch<BFloat16>(batch, on);
        break;
      case CudaType::kFloat32:
        launch<float>(batch, on);
        break;
      case CudaType::kFloat64:
        launch<double>(batch, on);
        break;
    }
  }
}

}  // namespace gansparse::mask_update
