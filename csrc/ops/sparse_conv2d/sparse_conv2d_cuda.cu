// SPDX-License-Identifier: Apache-2.0
// The launch of sparse_conv2d.
#include "common/launch.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_kernels.cuh"

namespace gansparse::sparse_conv2d {
namespace {

template <class T, class C>
void launch(const TileProblem& problem, int device, cudaStream_t stream) {
  const char* op = "sparse_conv2d";
  int limit = 0;
  check_cuda(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), op,
             "cudaDeviceGetAttribute");
  const TileArguments arguments{problem, plan_tiles(problem, limit)};
  const TilePlan& plan = arguments.t;
  const int64_t blocks = int64_t{plan.tiles_n} * plan.tiles_y * plan.tiles_x * plan.row_blocks;
  if (plan.shared_bytes > limit || blocks > 0x7fffffff) {
    throw DeviceError("sparse_conv2d: this layer needs " + std::to_string(plan.shared_bytes) +
                      " bytes of shared memory and " + std::to_string(blocks) +
                      " blocks; this device has " + std::to_string(limit) +
                      " and 2^31: use torch's dense convolution");
  }
  const auto kernel = &sparse_conv2d_tiles_kernel<T, C>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes),
      op, "cudaFuncSetAttribute");
  kernel<<<static_cast<unsigned>(blocks), tile_threads(plan),
           static_cast<size_t>(plan.shared_bytes), stream>>>(arguments);
  check_launch(op);
}

template <class T>
void launch_typed(const TileProblem& p, int device, cudaStream_t stream) {
  if (p.two_of_four) {
    return p.g.vector == 32 ? launch<T, TileConfig<2, true>>(p, device, stream)
                            : launch<T, TileConfig<4, true>>(p, device, stream);
  }
  return p.g.vector == 16 ? launch<T, TileConfig<1, false>>(p, device, stream)
                          : launch<T, TileConfig<2, false>>(p, device, stream);
}

}  // namespace

void run_cuda(const TileProblem& problem, TileType type, int device, uintptr_t stream) {
  const DeviceGuard guard(device, "sparse_conv2d");
  switch (type) {
    case TileType::kFloat16:
      return launch_typed<Half>(problem, device, stream_of(stream));
    case TileType::kBFloat16:
      return launch_typed<BFloat16>(problem, device, stream_of(stream));
  }
}

}  // namespace gansparse::sparse_conv2d
