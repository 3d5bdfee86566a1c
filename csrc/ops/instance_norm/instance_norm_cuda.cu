// SPDX-License-Identifier: Apache-2.0
// The launches of instance_norm.
#include "common/launch.cuh"
#include "ops/instance_norm/instance_norm_kernels.cuh"

namespace gansparse::instance_norm {
namespace {

constexpr const char* kOp = "instance_norm";
constexpr int64_t kBlocksBeside = 4;  // on a multiprocessor, of the last kernel

template <class T>
void launch(const Problem& p, int device, cudaStream_t stream) {
  int processors = 0;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), kOp,
             "cudaDeviceGetAttribute");
  Arguments a{p, plan_tiles(p, kBlocksBeside * processors), p.moments, static_cast<int>(p.parts)};
  const int64_t blocks = p.batch * a.plan.tiles * a.plan.slabs;
  if (blocks > INT32_MAX) {
    throw DeviceError("instance_norm: too many pictures and channels for one launch: norm fewer");
  }
  const auto grid = static_cast<unsigned>(blocks);
  const auto apply = [&] {
    launch_kernel(kOp, instance_norm_apply_kernel<T>, grid, kThreads, 0, stream, a);
  };
  if (p.moments != nullptr && p.parts <= kMostTiles) return apply();
  const int64_t each = p.moments == nullptr ? 0 : (p.parts + kMostTiles - 1) / kMostTiles;
  a.parts = p.moments == nullptr ? a.plan.tiles : static_cast<int>((p.parts + each - 1) / each);
  const int64_t sums = p.batch * a.parts * p.channels;
  const StreamMemory memory(static_cast<size_t>(3 * sums) * sizeof(float), stream, kOp);
  a.partial = memory.at<float>(0);
  if (p.moments == nullptr) {
    launch_kernel(kOp, instance_norm_sums_kernel<T>, grid, kThreads, 0, stream, a,
                  memory.at<float>(0));
  } else {
    const auto joins = static_cast<unsigned>((sums + kThreads - 1) / kThreads);
    launch_kernel(kOp, instance_norm_join_kernel, joins, kThreads, 0, stream, a, each,
                  memory.at<float>(0));
  }
  apply();
}

}  // namespace

void run_cuda(const Problem& problem, Type type, int device, uintptr_t stream) {
  const DeviceGuard guard(device, kOp);
  switch (type) {
    case Type::kFloat16:
      return launch<Half>(problem, device, stream_of(stream));
    case Type::kBFloat16:
      return launch<BFloat16>(problem, device, stream_of(stream));
  }
}

}  // namespace gansparse::instance_norm
