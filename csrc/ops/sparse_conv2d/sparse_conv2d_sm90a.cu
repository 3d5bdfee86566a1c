// SPDX-License-Identifier: Apache-2.0
// The launch of sparse_conv2d on warpgroups. Compiled for sm_90a alone, in a library of its own: no
// other processor has these instructions, not even those that came after it.
#include "common/launch.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_warpgroups.cuh"

namespace gansparse::sparse_conv2d {
namespace {

constexpr const char* kOp = "sparse_conv2d";

template <class T>
void launch_warpgroups(const TileProblem& problem, int device, cudaStream_t stream) {
  const auto kernel = &sparse_conv2d_warpgroups_kernel<T>;
  cudaFuncAttributes found{};
  if (cudaFuncGetAttributes(&found, kernel) != cudaSuccess) {
    (void)cudaGetLastError();  // that is the answer, and no error of a later call
    throw DeviceError(kNoWarpgroups);
  }
  int limit = 0;
  check_cuda(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), kOp,
             "cudaDeviceGetAttribute");
  const WarpgroupArguments arguments{problem, plan_warpgroups(problem, limit)};
  const WarpgroupPlan& plan = arguments.t;
  const int64_t blocks = plan.tiles_y * plan.tiles_x * plan.row_tiles;
  if (plan.shared_bytes > limit || blocks > INT32_MAX) {
    throw DeviceError("sparse_conv2d: this layer needs " + std::to_string(plan.shared_bytes) +
                      " bytes of shared memory and " + std::to_string(blocks) +
                      " blocks; this device has " + std::to_string(limit) +
                      " and 2^31: pack it with 32 or 64 rows");
  }
  // All there is: the allowance is the function's, and another thread's launch must not lower it.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit), kOp,
             "cudaFuncSetAttribute");
  launch_kernel(kOp, kernel, static_cast<unsigned>(blocks), kWarpgroupThreads, plan.shared_bytes,
                stream, arguments);
}

}  // namespace

// The caller has made the device current.
void run_warpgroups_cuda(const TileProblem& problem, TileType type, int device, uintptr_t stream) {
  switch (type) {
    case TileType::kFloat16:
      return launch_warpgroups<Half>(problem, device, stream_of(stream));
    case TileType::kBFloat16:
      return launch_warpgroups<BFloat16>(problem, device, stream_of(stream));
  }
}

}  // namespace gansparse::sparse_conv2d
