// SPDX-License-Identifier: Apache-2.0
// Launches of masked_adam: packs the parameters into as few kernel arguments as they fit.
#include <algorithm>
#include <memory>

#include "common/launch.cuh"
#include "ops/masked_adam/masked_adam_kernels.cuh"

namespace gansparse::masked_adam {
namespace {

constexpr int64_t kMaxBlocks = 0x7fffffff;  // of a grid's first dimension

bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;  // null, an array not there, is
}

template <class T>
bool can_vectorise(const Item& item) {
  using S = typename StateOf<T>::Type;
  constexpr int kItems = Config<T>::kItems;
  constexpr size_t kState = alignof(Vec<S, kItems>);
  return is_aligned(item.param, alignof(Vec<T, kItems>)) &&
         is_aligned(item.grad, alignof(Vec<T, kItems>)) && is_aligned(item.exp_avg, kState) &&
         is_aligned(item.exp_avg_sq, kState) && is_aligned(item.max_exp_avg_sq, kState) &&
         is_aligned(item.mask, alignof(Vec<uint8_t, kItems>));
}

// Launches for the first items that fit together; returns how many those were.
template <class T, int kCapacity>
int launch_batch(const Item* items, int count, const Hyper& hyper, const float* device_lr,
                 cudaStream_t stream) {
  auto batch = std::make_unique<Batch<kCapacity>>();
  batch->hyper = hyper;
  batch->device_lr = device_lr;
  int64_t blocks = 0;
  int taken = 0;
  for (; taken < std::min(count, kCapacity); ++taken) {
    const Item& item = items[taken];
    constexpr int64_t kBlockElements = Config<T>::kBlockElements;
    const int64_t more = (item.numel + kBlockElements - 1) / kBlockElements;
    if (blocks + more > kMaxBlocks) break;
    batch->first_block[taken] = static_cast<int>(blocks);
    batch->vectorised[taken] = can_vectorise<T>(item);
    batch->items[taken] = item;
    blocks += more;
  }
  check_cuda(taken > 0 ? cudaSuccess : cudaErrorInvalidValue, "masked_adam",
             "a parameter of more than 2^31 blocks");
  batch->count = taken;
  batch->first_block[taken] = static_cast<int>(blocks);
  launch_kernel("masked_adam", masked_adam_update_kernel<T, kCapacity>,
                static_cast<unsigned>(blocks), Config<T>::kThreads, 0, stream, *batch);
  return taken;
}

template <class T>
void step_typed(const Item* items, int count, const Hyper& hyper, const float* device_lr,
                cudaStream_t stream) {
  // A driver older than the toolkit takes 4 KB of arguments, whatever this was compiled with.
  int driver = 0;
  check_cuda(cudaDriverGetVersion(&driver), "masked_adam", "cudaDriverGetVersion");
#if CUDART_VERSION >= 12010
  constexpr int kBatch = kLargeBatch;
#else
  constexpr int kBatch = kSmallBatch;
#endif
  const bool large = driver >= 12010;
  for (int done = 0; done < count;) {
    const int left = count - done;
    done += left <= kSmallBatch || !large
                ? launch_batch<T, kSmallBatch>(items + done, left, hyper, device_lr, stream)
                : launch_batch<T, kBatch>(items + done, left, hyper, device_lr, stream);
  }
}

}  // namespace

void step_cuda(CudaType type, const Item* items, int count, const Hyper& hyper,
               const float* device_lr, int device, uintptr_t stream) {
  const DeviceGuard guard(device, "masked_adam");
  const cudaStream_t on = stream_of(stream);
  switch (type) {
    case CudaType::kFloat16:
      return step_typed<Half>(items, count, hyper, device_lr, on);
    case CudaType::kBFloat16:
      return step_typed<BFloat16>(items, count, hyper, device_lr, on);
    case CudaType::kFloat32:
      return step_typed<float>(items, count, hyper, device_lr, on);
    case CudaType::kFloat64:
      return step_typed<double>(items, count, hyper, device_lr, on);
  }
}

}  // namespace gansparse::masked_adam
